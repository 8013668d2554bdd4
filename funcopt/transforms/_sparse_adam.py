"""Lazy Adam for gradients of some rows: only those rows of moments and parameter change, as `torch.optim.SparseAdam`.

    m[i] = m[i] + (1 - beta1) * (g - m[i])
    v[i] = v[i] + (1 - beta2) * (g * g - v[i])
    u    = m[i] / (sqrt(v[i]) + eps) * sqrt(1 - beta2**t) / (1 - beta1**t)
    p[i] = p[i] - lr * u

Unlike in Adam, eps joins the root before the bias correction, and `t` counts all updates, whichever rows they had.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from funcopt import _checks
from funcopt._base import GradientTransformationExtraArgs, Hyperparameter, chain, leafwise, scheduled
from funcopt._numerics import bias_correction, filled
from funcopt._rows import on_rows
from funcopt.transforms._scale import ascend_where, scale_by_learning_rate


class ScaleBySparseAdamState(NamedTuple):
    step: Any  # int32 (), or a tree of them: applied updates so far
    exp_avg: Any  # tree like the parameters
    exp_avg_sq: Any  # tree like the parameters


def sparse_adam_rule(
    g: jax.Array, exp_avg: jax.Array, exp_avg_sq: jax.Array, *, step: jax.Array, betas: tuple[Any, Any], eps: Any
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """SparseAdam's direction for the rows that have a gradient, before the learning rate."""
    beta1, beta2 = betas
    exp_avg = exp_avg + (1 - beta1) * (g - exp_avg)
    exp_avg_sq = exp_avg_sq + (1 - beta2) * (g * g - exp_avg_sq)
    correction = jnp.sqrt(bias_correction(beta2, step)) / bias_correction(beta1, step)
    return correction * exp_avg / (jnp.sqrt(exp_avg_sq) + eps), exp_avg, exp_avg_sq


def _init_sparse_adam(param: jax.Array, **hyperparams: Any) -> tuple[jax.Array, jax.Array]:
    del hyperparams
    return filled(param), filled(param)


def _check_sparse_adam(owner: str, betas: Hyperparameter, eps: Hyperparameter) -> None:
    _checks.check_hyperparam(owner, "betas", betas, (_checks.UNIT_HALF_OPEN, _checks.UNIT_HALF_OPEN))
    _checks.check_hyperparam(owner, "eps", eps, _checks.POSITIVE)


def scale_by_sparse_adam(
    betas: Hyperparameter = (0.9, 0.999), eps: Hyperparameter = 1e-8
) -> GradientTransformationExtraArgs:
    """Rescales the rows of `funcopt.RowSparse` updates as `torch.optim.SparseAdam`, without its learning rate.

    A dense update is one that has all rows; torch refuses it, and so does `funcopt.torch_bridge.optim.SparseAdam`.

    Args:
        betas: decay rates of the two moments, each in [0, 1).
        eps: added to the root before the bias correction, > 0.

    Returns:
        The transformation, with a `ScaleBySparseAdamState`.
    """
    owner = "scale_by_sparse_adam"
    _check_sparse_adam(owner, betas, eps)

    def make(**hyperparams: Hyperparameter) -> GradientTransformationExtraArgs:
        return leafwise(
            owner,
            sparse_adam_rule,
            hyperparams,
            state=ScaleBySparseAdamState,
            init_leaf=_init_sparse_adam,
            rows=on_rows,
            tuples=("betas",),
        )

    return scheduled(make, {"betas": betas, "eps": eps}, tuples=("betas",))


def sparse_adam(
    lr: Hyperparameter = 1e-3,
    betas: Hyperparameter = (0.9, 0.999),
    eps: Hyperparameter = 1e-8,
    maximize: Hyperparameter = False,
) -> GradientTransformationExtraArgs:
    """`torch.optim.SparseAdam`, for gradients that are `funcopt.RowSparse`.

    Args:
        lr: learning rate, > 0.
        betas: decay rates of the two moments, each in [0, 1).
        eps: added to the root before the bias correction, > 0.
        maximize: flag: ascend the objective.

    Returns:
        The optimizer; state keys `step`, `exp_avg`, `exp_avg_sq`.

    Example:
        >>> import funcopt
        >>> tx = funcopt.sparse_adam(1e-2)
    """
    _checks.check_hyperparam("sparse_adam", "lr", lr, _checks.POSITIVE)
    _check_sparse_adam("sparse_adam", betas, eps)
    _checks.check_flag("sparse_adam", "maximize", maximize)
    return chain(ascend_where(maximize), scale_by_sparse_adam(betas, eps), scale_by_learning_rate(lr))
