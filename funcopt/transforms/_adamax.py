"""Adamax: Adam with the infinity norm (Kingma and Ba, 2015, algorithm 2).

    exp_avg = lerp(exp_avg, g, 1 - beta1)
    exp_inf = max(beta2 * exp_inf, |g| + eps)
    u       = exp_avg / ((1 - beta1**t) * exp_inf)
    p       = p - lr * u

The paper has no eps; torch puts it inside the maximum.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from funcopt import _checks
from funcopt._base import GradientTransformationExtraArgs, Hyperparameter, chain, leafwise, scheduled
from funcopt._numerics import bias_correction, filled, lerp
from funcopt.transforms._decay import add_decayed_weights
from funcopt.transforms._scale import ascend_where, scale_by_learning_rate


class ScaleByAdamaxState(NamedTuple):
    step: Any  # int32 (), or a tree of them: applied updates so far
    exp_avg: Any  # tree like the parameters
    exp_inf: Any  # tree like the parameters


def adamax_rule(
    g: jax.Array, exp_avg: jax.Array, exp_inf: jax.Array, *, step: jax.Array, betas: tuple[Any, Any], eps: Any
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Adamax's direction: the rule of the module's head, before the learning rate."""
    beta1, beta2 = betas
    exp_avg = lerp(exp_avg, g, 1 - beta1)
    exp_inf = jnp.maximum(beta2 * exp_inf, jnp.abs(g) + eps)
    return exp_avg / (bias_correction(beta1, step) * exp_inf), exp_avg, exp_inf


def _init_adamax(param: jax.Array, **hyperparams: Any) -> tuple[jax.Array, jax.Array]:
    del hyperparams
    return filled(param), filled(param)


def _check_adamax(owner: str, betas: Hyperparameter, eps: Hyperparameter) -> None:
    _checks.check_hyperparam(owner, "betas", betas, (_checks.UNIT_HALF_OPEN, _checks.UNIT_HALF_OPEN))
    _checks.check_hyperparam(owner, "eps", eps, _checks.NON_NEGATIVE)


def scale_by_adamax(
    betas: Hyperparameter = (0.9, 0.999), eps: Hyperparameter = 1e-8
) -> GradientTransformationExtraArgs:
    """Rescales updates as Adamax does: the direction of `torch.optim.Adamax`, without its learning rate.

    Args:
        betas: decay rates of the average and of the infinity norm, each in [0, 1).
        eps: added to the gradient's magnitude, >= 0.

    Returns:
        The transformation, with a `ScaleByAdamaxState`.
    """
    owner = "scale_by_adamax"
    _check_adamax(owner, betas, eps)

    def make(**hyperparams: Hyperparameter) -> GradientTransformationExtraArgs:
        return leafwise(
            owner, adamax_rule, hyperparams, state=ScaleByAdamaxState, init_leaf=_init_adamax, tuples=("betas",)
        )

    return scheduled(make, {"betas": betas, "eps": eps}, tuples=("betas",))


def adamax(
    lr: Hyperparameter = 2e-3,
    betas: Hyperparameter = (0.9, 0.999),
    eps: Hyperparameter = 1e-8,
    weight_decay: Hyperparameter = 0.0,
    *,
    maximize: Hyperparameter = False,
) -> GradientTransformationExtraArgs:
    """`torch.optim.Adamax`.

    Args:
        lr: learning rate, >= 0.
        betas: decay rates of the average and of the infinity norm, each in [0, 1).
        eps: added to the gradient's magnitude, >= 0.
        weight_decay: L2 penalty, >= 0.
        maximize: flag: ascend the objective; the penalty still shrinks the parameters.

    Returns:
        The optimizer; state keys `step`, `exp_avg`, `exp_inf`.

    Example:
        >>> import funcopt
        >>> tx = funcopt.adamax(lr=2e-3, betas=(0.9, 0.99))
    """
    _checks.check_hyperparam("adamax", "lr", lr, _checks.NON_NEGATIVE)
    _checks.check_hyperparam("adamax", "weight_decay", weight_decay, _checks.NON_NEGATIVE)
    _checks.check_flag("adamax", "maximize", maximize)
    _check_adamax("adamax", betas, eps)
    return chain(
        ascend_where(maximize),
        add_decayed_weights(weight_decay),
        scale_by_adamax(betas, eps),
        scale_by_learning_rate(lr),
    )
