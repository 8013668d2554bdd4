"""GaLore: AdamW on a projection of each matrix's gradient to few dimensions (Zhao et al., 2024, algorithm 2).

    L, R  = first `rank` left and right singular vectors of g              every update_proj_gap updates
    x     = g @ R.T     for rows >= columns,   otherwise   L.T @ g         proj_type "std"
    m     = beta1 * m + (1 - beta1) * x                                    as small as x; not turned with the basis
    v     = beta2 * v + (1 - beta2) * x * x
    u     = sqrt(1 - beta2**t) / (1 - beta1**t) * m / (sqrt(v) + eps)
    p     = p - lr * scale * (u @ R   or   L @ u)
    p     = p - lr * weight_decay * p                                      of the new p

What is no matrix is not projected. The sign of a singular vector is anyone's, but m depends on it where the basis
changes: here the entry of largest size is positive, so that engines and devices agree; galore-torch takes the signs as
LAPACK leaves them.
"""

from typing import Annotated, Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
from jax import lax

from funcopt import _checks
from funcopt._numerics import root, undivided
from funcopt._tree import refuse_unless_real
from funcopt.algorithms._adam import step_correction
from funcopt.frame import descend
from funcopt.kinds import Flag, FloatBetas, NonNegative, choice, integer
from funcopt.rule import Keys, Rule, direction, transformation

Count: TypeAlias = Annotated[Any, integer(_checks.AT_LEAST_ONE)]
Rank: TypeAlias = Annotated[Any, integer(_checks.NON_NEGATIVE)]
Side: TypeAlias = Annotated[Any, choice("std", "reverse_std", "left", "right", "full")]
Projector: TypeAlias = tuple[jax.Array | None, jax.Array | None]


class GaloreState(NamedTuple):
    step: Any  # int32 (), or a tree of them: applied updates so far
    exp_avg: Any  # tree of what gradients are projected to
    exp_avg_sq: Any  # the same
    projector: Any  # tree of pairs of (rows, rank) and (rank, columns); None on a side that is not projected


def project(x: jax.Array, projector: Projector) -> jax.Array:
    """A matrix in the coordinates of a projector; without one as it is."""
    left, right = projector
    x = x if left is None else left.T @ x
    return x if right is None else x @ right.T


def project_back(x: jax.Array, projector: Projector) -> jax.Array:
    """The inverse of `project`, as far as there is one."""
    left, right = projector
    x = x if left is None else left @ x
    return x if right is None else x @ right


def projected_zeros(p: jax.Array, projector: Projector) -> jax.Array:
    """Zeros for what a parameter's gradient is projected to."""
    left, right = projector
    shape = list(p.shape)
    if left is not None:
        shape[0] = left.shape[1]
    if right is not None:
        shape[1] = right.shape[0]
    return jnp.zeros(shape, p.dtype)


def no_projector(p: jax.Array, rank: int, proj_type: str | None = "std") -> Projector:
    """Zeros for the projector of a parameter, which is none with rank 0 and for what is no matrix."""
    if p.ndim != 2 or rank == 0:
        return None, None
    rows, columns = p.shape
    shorter, longer = ("right", "left") if rows >= columns else ("left", "right")
    side = {None: shorter, "std": shorter, "reverse_std": longer}.get(proj_type, proj_type)
    return (
        None if side == "right" else jnp.zeros((rows, rank), p.dtype),
        None if side == "left" else jnp.zeros((rank, columns), p.dtype),
    )


def singular_vectors(g: jax.Array, like: Projector) -> Projector:
    """The first singular vectors of a matrix, as a projector like another one."""
    left, _, right = jnp.linalg.svd(g, full_matrices=False)
    return (
        None if like[0] is None else _signed(left[:, : like[0].shape[1]], 0),
        None if like[1] is None else _signed(right[: like[1].shape[0]], 1),
    )


def _signed(vectors: jax.Array, axis: int) -> jax.Array:
    highest, lowest = jnp.max(vectors, axis, keepdims=True), jnp.min(vectors, axis, keepdims=True)
    return jnp.where(highest < -lowest, -vectors, vectors)


@transformation(elementwise=False, refuse_param=refuse_unless_real, keys=Keys(torch_class="GaLoreAdamW"))
def galore(
    lr: NonNegative = 1e-3,
    betas: FloatBetas = (0.9, 0.999),
    eps: NonNegative = 1e-6,
    weight_decay: NonNegative = 0.0,
    correct_bias: Flag = True,
    *,
    rank: Rank = 128,
    update_proj_gap: Count = 200,
    scale: NonNegative = 0.25,
    proj_type: Side = "std",
) -> Rule:
    """`galore_torch.GaLoreAdamW`: the moments of a matrix are `rank / min(rows, columns)` of AdamW's.

    Args:
        lr: learning rate, >= 0.
        betas: decay rates of the two moments, each in [0, 1).
        eps: added to the root of the second moment before the correction of its bias, >= 0.
        weight_decay: decay of the new parameters, by `lr * weight_decay`, >= 0.
        correct_bias: flag: correct the moments for their start at 0.
        rank: dimensions that remain, an integer >= 0, or a prefix of integers; no more than a matrix has; 0 leaves a
            matrix as it is.
        update_proj_gap: updates from one basis to the next, an integer >= 1.
        scale: factor of the projected updates, >= 0.
        proj_type: what is projected: "std" (or None), the shorter side; "reverse_std", the longer one; "left", rows;
            "right", columns; or "full", both.

    Returns:
        The optimizer; state keys `step`, `exp_avg`, `exp_avg_sq`, `projector`.

    Raises:
        ValueError: in `init`, for complex parameters.

    Example:
        >>> import funcopt, jax.numpy as jnp
        >>> tx = funcopt.galore(lr=1e-3, rank=8, update_proj_gap=50)
        >>> tx.init({"w": jnp.ones((64, 32))}).exp_avg["w"].shape
        (64, 8)
    """
    beta1, beta2 = betas
    correction = step_correction(betas, correct_bias)

    def init(p: jax.Array) -> GaloreState:
        projector = no_projector(p, min(rank, *p.shape) if p.ndim == 2 else rank, proj_type)
        return GaloreState(0, projected_zeros(p, projector), projected_zeros(p, projector), projector)

    def update(g: jax.Array, s: GaloreState) -> tuple[jax.Array, GaloreState]:
        projector, projects = s.projector, g.ndim == 2 and rank > 0
        if projects:
            due = (s.step - 1) % update_proj_gap == 0
            projector = lax.cond(due, singular_vectors, lambda g, kept: kept, g, projector)
        x = project(g, projector)
        m = beta1 * s.exp_avg + (1 - beta1) * x
        v = beta2 * s.exp_avg_sq + (1 - beta2) * x * x
        u = project_back(m / (root(v) + eps), projector)
        # The decay is of the new parameter, and so of this update, too.
        factor = correction(s.step) * (1 - lr * weight_decay) * (scale if projects else 1.0)
        return factor * u, GaloreState(s.step, m, v, projector)

    return descend(Rule(undivided(update), init), lr, weight_decay=weight_decay, decoupled=True)


scale_by_galore = direction("scale_by_galore", galore, "Rescales updates as `galore` does, without its learning rate.")
