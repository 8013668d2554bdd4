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

from funcopt._numerics import bias_correction, filled, root
from funcopt.frame import descend
from funcopt.kinds import Betas, Flag, Positive
from funcopt.rule import Keys, Rule, direction, transformation


class SparseAdamState(NamedTuple):
    step: Any  # int32 (), or a tree of them: applied updates so far
    exp_avg: Any  # tree like the parameters
    exp_avg_sq: Any  # tree like the parameters


@transformation(keys=Keys(step=int))
def sparse_adam(
    lr: Positive = 1e-3,
    betas: Betas = (0.9, 0.999),
    eps: Positive = 1e-8,
    maximize: Flag = False,
) -> Rule:
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
    beta1, beta2 = betas

    def init(p: jax.Array) -> SparseAdamState:
        return SparseAdamState(0, filled(p), filled(p))

    def update(g: jax.Array, s: SparseAdamState) -> tuple[jax.Array, SparseAdamState]:
        m = s.exp_avg + (1 - beta1) * (g - s.exp_avg)
        v = s.exp_avg_sq + (1 - beta2) * (g * g - s.exp_avg_sq)
        correction = jnp.sqrt(bias_correction(beta2, s.step)) / bias_correction(beta1, s.step)
        return correction * m / (root(v) + eps), SparseAdamState(s.step, m, v)

    return descend(Rule(update, init, rows="rows"), lr, maximize=maximize)


scale_by_sparse_adam = direction(
    "scale_by_sparse_adam",
    sparse_adam,
    "Rescales the rows of `funcopt.RowSparse` updates as `sparse_adam` does, without its learning rate.",
)
