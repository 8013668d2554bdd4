"""RMSprop (Hinton, 2012, lecture 6e), centred (Graves, 2013, equations 38 to 45), with momentum.

    square_avg = alpha * square_avg + (1 - alpha) * g * g
    grad_avg   = lerp(grad_avg, g, 1 - alpha)                              centered
    u          = g / (sqrt(square_avg - grad_avg**2) + eps)                otherwise without grad_avg
    buf        = momentum * buf + u                                        momentum > 0: u = buf
    p          = p - lr * u

As in torch the learning rate is outside the momentum, which matters as soon as it changes; optax has it inside, eps
inside the root, and another default for alpha.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from funcopt import _checks
from funcopt._base import GradientTransformationExtraArgs, Hyperparameter, chain, leafwise, scheduled
from funcopt._numerics import filled, lerp
from funcopt._tree import is_static
from funcopt.transforms._decay import add_decayed_weights
from funcopt.transforms._scale import ascend_where, scale_by_learning_rate


class ScaleByRmspropState(NamedTuple):
    step: Any  # int32 (), or a tree of them: applied updates so far
    square_avg: Any  # tree like the parameters
    momentum_buffer: Any  # tree like the parameters; None where momentum is 0
    grad_avg: Any  # tree like the parameters; None where centered is False


def rmsprop_rule(
    g: jax.Array,
    square_avg: jax.Array,
    momentum_buffer: jax.Array | None,
    grad_avg: jax.Array | None,
    *,
    step: jax.Array,
    alpha: Any,
    eps: Any,
    momentum: Any,
    centered: bool,
) -> tuple[jax.Array, jax.Array, jax.Array | None, jax.Array | None]:
    """RMSprop's direction: the rule of the module's head, before the learning rate."""
    del step  # counted, as torch does, and not used
    variance = square_avg = alpha * square_avg + (1 - alpha) * g * g
    if centered:
        assert grad_avg is not None
        grad_avg = lerp(grad_avg, g, 1 - alpha)
        variance = square_avg - grad_avg * grad_avg
    update = g / (jnp.sqrt(variance) + eps)
    if momentum_buffer is not None:
        update = momentum_buffer = momentum * momentum_buffer + update
    return update, square_avg, momentum_buffer, grad_avg


def _init_rmsprop(
    param: jax.Array, *, momentum: Any, centered: bool, **hyperparams: Any
) -> tuple[jax.Array | None, ...]:
    del hyperparams
    has_momentum = not (is_static(momentum) and momentum == 0)
    return filled(param), filled(param) if has_momentum else None, filled(param) if centered else None


def _check_rmsprop(
    owner: str, alpha: Hyperparameter, eps: Hyperparameter, momentum: Hyperparameter, centered: Hyperparameter
) -> None:
    _checks.check_hyperparam(owner, "alpha", alpha, _checks.NON_NEGATIVE)
    _checks.check_hyperparam(owner, "eps", eps, _checks.NON_NEGATIVE)
    _checks.check_hyperparam(owner, "momentum", momentum, _checks.NON_NEGATIVE)
    _checks.check_flag(owner, "centered", centered)


def scale_by_rmsprop(
    alpha: Hyperparameter = 0.99,
    eps: Hyperparameter = 1e-8,
    momentum: Hyperparameter = 0.0,
    centered: Hyperparameter = False,
) -> GradientTransformationExtraArgs:
    """Rescales updates as RMSprop does: the direction of `torch.optim.RMSprop`, without its learning rate.

    Args:
        alpha: decay rate of the averages, >= 0.
        eps: added to the root, >= 0.
        momentum: >= 0; where it is the plain number 0 no buffer is kept.
        centered: flag: divide by the deviation from the average gradient instead of from 0.

    Returns:
        The transformation, with a `ScaleByRmspropState`.
    """
    owner = "scale_by_rmsprop"
    _check_rmsprop(owner, alpha, eps, momentum, centered)

    def make(**hyperparams: Hyperparameter) -> GradientTransformationExtraArgs:
        hyperparams["centered"] = centered
        return leafwise(owner, rmsprop_rule, hyperparams, state=ScaleByRmspropState, init_leaf=_init_rmsprop)

    return scheduled(make, {"alpha": alpha, "eps": eps, "momentum": momentum})


def rmsprop(
    lr: Hyperparameter = 1e-2,
    alpha: Hyperparameter = 0.99,
    eps: Hyperparameter = 1e-8,
    weight_decay: Hyperparameter = 0.0,
    momentum: Hyperparameter = 0.0,
    centered: Hyperparameter = False,
    *,
    maximize: Hyperparameter = False,
) -> GradientTransformationExtraArgs:
    """`torch.optim.RMSprop`.

    Args:
        lr: learning rate, >= 0.
        alpha: decay rate of the averages, >= 0.
        eps: added to the root, >= 0.
        weight_decay: L2 penalty, >= 0.
        momentum: >= 0; 0 keeps no buffer.
        centered: flag: divide by the deviation from the average gradient instead of from 0.
        maximize: flag: ascend the objective; the penalty still shrinks the parameters.

    Returns:
        The optimizer; state keys `step`, `square_avg`, `momentum_buffer` with momentum, `grad_avg` with centered.

    Example:
        >>> import funcopt
        >>> tx = funcopt.rmsprop(lr=1e-3, alpha=0.9, momentum=0.9, centered=True)
    """
    _checks.check_hyperparam("rmsprop", "lr", lr, _checks.NON_NEGATIVE)
    _checks.check_hyperparam("rmsprop", "weight_decay", weight_decay, _checks.NON_NEGATIVE)
    _checks.check_flag("rmsprop", "maximize", maximize)
    _check_rmsprop("rmsprop", alpha, eps, momentum, centered)
    return chain(
        ascend_where(maximize),
        add_decayed_weights(weight_decay),
        scale_by_rmsprop(alpha, eps, momentum, centered),
        scale_by_learning_rate(lr),
    )
