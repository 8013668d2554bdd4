"""Adadelta (Zeiler, 2012, algorithm 1).

    square_avg = rho * square_avg + (1 - rho) * g * g
    u          = sqrt(acc_delta + eps) / sqrt(square_avg + eps) * g
    acc_delta  = rho * acc_delta + (1 - rho) * u * u
    p          = p - lr * u

The paper's lr is 1, torch's default.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from funcopt import _checks
from funcopt._base import GradientTransformationExtraArgs, Hyperparameter, chain, leafwise, scheduled
from funcopt._numerics import again, filled
from funcopt.transforms._decay import add_decayed_weights
from funcopt.transforms._scale import ascend_where, scale_by_learning_rate


class ScaleByAdadeltaState(NamedTuple):
    step: Any  # int32 (), or a tree of them: applied updates so far
    square_avg: Any  # tree like the parameters
    acc_delta: Any  # tree like the parameters


def adadelta_rule(
    g: jax.Array, square_avg: jax.Array, acc_delta: jax.Array, *, step: jax.Array, rho: Any, eps: Any
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Adadelta's direction: the rule of the module's head, before the learning rate."""
    del step  # counted, as torch does, and not used
    square_avg = rho * square_avg + (1 - rho) * g * g

    def direction(eps: Any) -> jax.Array:
        return jnp.sqrt(acc_delta + eps) / jnp.sqrt(square_avg + eps) * g

    return direction(eps), square_avg, rho * acc_delta + (1 - rho) * direction(again(eps)) ** 2


def _init_adadelta(param: jax.Array, **hyperparams: Any) -> tuple[jax.Array, jax.Array]:
    del hyperparams
    return filled(param), filled(param)


def _check_adadelta(owner: str, rho: Hyperparameter, eps: Hyperparameter) -> None:
    _checks.check_hyperparam(owner, "rho", rho, _checks.UNIT)
    _checks.check_hyperparam(owner, "eps", eps, _checks.NON_NEGATIVE)


def scale_by_adadelta(rho: Hyperparameter = 0.9, eps: Hyperparameter = 1e-6) -> GradientTransformationExtraArgs:
    """Rescales updates as Adadelta does: the direction of `torch.optim.Adadelta`, without its learning rate.

    Args:
        rho: decay rate of both averages, in [0, 1].
        eps: added under both roots, >= 0.

    Returns:
        The transformation, with a `ScaleByAdadeltaState`.
    """
    owner = "scale_by_adadelta"
    _check_adadelta(owner, rho, eps)

    def make(**hyperparams: Hyperparameter) -> GradientTransformationExtraArgs:
        return leafwise(owner, adadelta_rule, hyperparams, state=ScaleByAdadeltaState, init_leaf=_init_adadelta)

    return scheduled(make, {"rho": rho, "eps": eps})


def adadelta(
    lr: Hyperparameter = 1.0,
    rho: Hyperparameter = 0.9,
    eps: Hyperparameter = 1e-6,
    weight_decay: Hyperparameter = 0.0,
    *,
    maximize: Hyperparameter = False,
) -> GradientTransformationExtraArgs:
    """`torch.optim.Adadelta`.

    Args:
        lr: learning rate, >= 0.
        rho: decay rate of both averages, in [0, 1].
        eps: added under both roots, >= 0.
        weight_decay: L2 penalty, >= 0.
        maximize: flag: ascend the objective; the penalty still shrinks the parameters.

    Returns:
        The optimizer; state keys `step`, `square_avg`, `acc_delta`.

    Example:
        >>> import funcopt
        >>> tx = funcopt.adadelta(rho=0.95)
    """
    _checks.check_hyperparam("adadelta", "lr", lr, _checks.NON_NEGATIVE)
    _checks.check_hyperparam("adadelta", "weight_decay", weight_decay, _checks.NON_NEGATIVE)
    _checks.check_flag("adadelta", "maximize", maximize)
    _check_adadelta("adadelta", rho, eps)
    return chain(
        ascend_where(maximize),
        add_decayed_weights(weight_decay),
        scale_by_adadelta(rho, eps),
        scale_by_learning_rate(lr),
    )
