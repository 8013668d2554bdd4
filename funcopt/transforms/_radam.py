"""RAdam: Adam that waits until its second moment can be trusted (Liu et al., 2020, algorithm 2).

    m       = lerp(m, g, 1 - beta1)
    v       = beta2 * v + (1 - beta2) * g * g
    rho_inf = 2 / (1 - beta2) - 1
    rho_t   = rho_inf - 2 * t * beta2**t / (1 - beta2**t)
    rect    = sqrt((rho_t - 4) * (rho_t - 2) * rho_inf / ((rho_inf - 4) * (rho_inf - 2) * rho_t))
    u       = m / (1 - beta1**t)  *  (rect * sqrt(1 - beta2**t) / (sqrt(v) + eps)   if rho_t > 5 else   1)
    p       = p - lr * u

As in torch eps joins the root before the bias correction; optax adds it afterwards and takes rho_t >= 5.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from funcopt import _checks
from funcopt._base import GradientTransformationExtraArgs, Hyperparameter, chain, leafwise, scheduled
from funcopt._numerics import bias_correction, filled, lerp, log
from funcopt._tree import map_prefix, weak
from funcopt.transforms._decay import add_decayed_weights
from funcopt.transforms._scale import ascend_where, scale_by_learning_rate


class ScaleByRadamState(NamedTuple):
    step: Any  # int32 (), or a tree of them: applied updates so far
    exp_avg: Any  # tree like the parameters
    exp_avg_sq: Any  # tree like the parameters


def _excess(y: Any) -> jax.Array:
    """`2 / y - 2 / expm1(y)` for y > 0, also where the two nearly cancel: below 1/2 its series, exact to 4e-15."""
    small = jnp.minimum(y, 0.5)
    square = small * small
    tail = 1 / 15120 - square * (1 / 604800 - square * (1 / 23950080 - square * (691 / 653837184000)))
    series = 1 - small * (1 / 6 - square * (1 / 360 - square * tail))
    return jnp.where(y < 0.5, series, 2 / y - 2 / jnp.expm1(y))


def sma_length(beta2: Any, step: jax.Array) -> jax.Array:
    """The rule's `rho_t`, how many gradients the second moment averages over, accurate in float32.

    There `rho_inf` and the term taken from it are both about 2 / (1 - beta2), and float32 leaves an error of 0.04
    (beta2 0.999) in a difference near 5, the threshold. With x = -log(beta2) the same number is
    `1 + t * _excess(t * x) - _excess(x)`, which subtracts nothing larger than 1.
    """
    t = weak(step)
    rate = -log(beta2)
    return 1 + t * _excess(t * rate) - _excess(rate)


def radam_rule(
    g: jax.Array,
    exp_avg: jax.Array,
    exp_avg_sq: jax.Array,
    *,
    betas: tuple[Any, Any],
    eps: Any,
    correction: jax.Array,
    factor: jax.Array,
    rectified: jax.Array,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """RAdam's direction: the rule of the module's head, before the learning rate, with what `_prepare_radam` gives."""
    beta1, beta2 = betas
    exp_avg = lerp(exp_avg, g, 1 - beta1)
    exp_avg_sq = beta2 * exp_avg_sq + (1 - beta2) * g * g
    adaptive = jnp.where(rectified, factor / (jnp.sqrt(exp_avg_sq) + eps), 1.0)
    return exp_avg / correction * adaptive, exp_avg, exp_avg_sq


def _prepare_radam(*, step: jax.Array, betas: tuple[Any, Any], eps: Any) -> dict[str, Any]:
    """Whether there are enough gradients for the variance, and what then corrects it."""
    beta1, beta2 = betas
    rho_inf = 2 / (1 - beta2) - 1
    rho = sma_length(beta2, step)
    rectified = rho > 5
    # Before there are enough gradients the ratio is negative or 0 / 0: no root of it, whose derivative would be NaN.
    ratio = (rho - 4) * (rho - 2) * rho_inf / (jnp.where(rectified, (rho_inf - 4) * (rho_inf - 2), 1.0) * rho)
    factor = jnp.sqrt(jnp.where(rectified, ratio, 1.0) * bias_correction(beta2, step))
    correction = bias_correction(beta1, step)
    return {"betas": betas, "eps": eps, "correction": correction, "factor": factor, "rectified": rectified}


def _init_radam(param: jax.Array, **hyperparams: Any) -> tuple[jax.Array, jax.Array]:
    del hyperparams
    return filled(param), filled(param)


def _check_radam(owner: str, betas: Hyperparameter, eps: Hyperparameter) -> None:
    _checks.check_hyperparam(owner, "betas", betas, (_checks.UNIT_HALF_OPEN, _checks.UNIT_HALF_OPEN))
    _checks.check_hyperparam(owner, "eps", eps, _checks.NON_NEGATIVE)


def scale_by_radam(betas: Hyperparameter = (0.9, 0.999), eps: Hyperparameter = 1e-8) -> GradientTransformationExtraArgs:
    """Rescales updates as RAdam does: the direction of `torch.optim.RAdam`, without its learning rate.

    Args:
        betas: decay rates of the two moments, each in [0, 1). With `betas[1]` up to 2/3 the second is never used.
        eps: added to the root of the second moment before its bias correction, >= 0.

    Returns:
        The transformation, with a `ScaleByRadamState`.
    """
    owner = "scale_by_radam"
    _check_radam(owner, betas, eps)

    def make(**hyperparams: Hyperparameter) -> GradientTransformationExtraArgs:
        return leafwise(
            owner,
            radam_rule,
            hyperparams,
            state=ScaleByRadamState,
            init_leaf=_init_radam,
            tuples=("betas",),
            prepare=_prepare_radam,
        )

    return scheduled(make, {"betas": betas, "eps": eps}, tuples=("betas",))


def radam(
    lr: Hyperparameter = 1e-3,
    betas: Hyperparameter = (0.9, 0.999),
    eps: Hyperparameter = 1e-8,
    weight_decay: Hyperparameter = 0.0,
    decoupled_weight_decay: Hyperparameter = False,
    *,
    maximize: Hyperparameter = False,
) -> GradientTransformationExtraArgs:
    """`torch.optim.RAdam`.

    Args:
        lr: learning rate, >= 0.
        betas: decay rates of the two moments, each in [0, 1).
        eps: added to the root of the second moment, >= 0.
        weight_decay: >= 0; an L2 penalty unless `decoupled_weight_decay`.
        decoupled_weight_decay: flag: decay the parameters directly, by `lr * weight_decay`.
        maximize: flag: ascend the objective; decay still shrinks the parameters.

    Returns:
        The optimizer; state keys `step`, `exp_avg`, `exp_avg_sq`.

    Example:
        >>> import funcopt
        >>> tx = funcopt.radam(lr=1e-3, weight_decay=0.01, decoupled_weight_decay=True)
    """
    _checks.check_hyperparam("radam", "lr", lr, _checks.NON_NEGATIVE)
    _checks.check_hyperparam("radam", "weight_decay", weight_decay, _checks.NON_NEGATIVE)
    _checks.check_flag("radam", "decoupled_weight_decay", decoupled_weight_decay)
    _checks.check_flag("radam", "maximize", maximize)
    _check_radam("radam", betas, eps)
    return chain(
        ascend_where(maximize),
        add_decayed_weights(weight_decay, mask=map_prefix(lambda flag: not flag, decoupled_weight_decay)),
        scale_by_radam(betas, eps),
        add_decayed_weights(weight_decay, mask=decoupled_weight_decay),
        scale_by_learning_rate(lr),
    )
