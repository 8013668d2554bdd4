"""APOLLO: gradients scaled as AdamW would scale them, found in a random projection (Zhu et al., 2024, algorithm 1).

    B     ~ N(0, 1 / rank)                                                 anew every update_proj_gap updates
    x     = g @ B.T     for rows >= columns,   otherwise   B.T @ g
    m     = beta1 * m + (1 - beta1) * x
    v     = beta2 * v + (1 - beta2) * x * x
    f     = norm(m / (sqrt(v) + eps)) / (norm(x) + 1e-8)                   of each row or column, or of all
    y     = f * g
    y     = y / max(1, norm(y) / (1.01 * (n + 1e-8)));   n = norm(y)       not at the first update; n before and after
    u     = sqrt(1 - beta2**t) / (1 - beta1**t) * sqrt(scale) * y
    p     = p - lr * u
    p     = p - lr * weight_decay * p                                      of the new p

What is no matrix goes by AdamW. Random numbers come from a seed and the count, where apollo-torch takes torch's
generator; with "svd" B is GaLore's basis.
"""

from typing import Annotated, Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
from jax import lax

from funcopt._checks import ANY_NUMBER
from funcopt._numerics import norm, normal, number_of, root, undivided
from funcopt._tree import refuse_unless_real
from funcopt.algorithms._adam import step_correction
from funcopt.algorithms._galore import Count, Projector, Rank, no_projector, project, projected_zeros, singular_vectors
from funcopt.frame import descend
from funcopt.kinds import Flag, FloatBetas, NonNegative, choice, integer
from funcopt.rule import Keys, Rule, direction, transformation

Proj: TypeAlias = Annotated[Any, choice("random", "svd")]
ScaleType: TypeAlias = Annotated[Any, choice("channel", "tensor")]
Seed: TypeAlias = Annotated[Any, integer(ANY_NUMBER)]


class ApolloState(NamedTuple):
    step: Any  # int32 (), or a tree of them: applied updates so far
    exp_avg: Any  # tree of what gradients are projected to
    exp_avg_sq: Any  # the same
    projector: Any  # tree of pairs of (rows, rank) and (rank, columns), of which a matrix has one
    scaled_grad: Any  # tree of numbers: norm of the last update; None for what is no matrix, and with disable_nl


@transformation(elementwise=False, refuse_param=refuse_unless_real, keys=Keys(torch_class="APOLLOAdamW"))
def apollo(
    lr: NonNegative = 1e-3,
    betas: FloatBetas = (0.9, 0.999),
    eps: NonNegative = 1e-6,
    weight_decay: NonNegative = 0.0,
    correct_bias: Flag = True,
    scale_front: Flag = False,
    disable_nl: Flag = False,
    *,
    rank: Rank = 128,
    update_proj_gap: Count = 200,
    scale: NonNegative = 1.0,
    proj: Proj = "random",
    scale_type: ScaleType = "channel",
    seed: Seed = 0,
) -> Rule:
    """`apollo_torch.APOLLOAdamW`: memory of SGD, nearly; with `rank=1, scale_type="tensor", scale=128` APOLLO-Mini.

    Args:
        lr: learning rate, >= 0.
        betas: decay rates of the two moments, each in [0, 1).
        eps: added to the root of the second moment before the correction of its bias, >= 0.
        weight_decay: decay of the new parameters, by `lr * weight_decay`, >= 0.
        correct_bias: flag: correct the moments for their start at 0.
        scale_front: flag: multiply with `sqrt(scale)` before the norm is limited, not after.
        disable_nl: flag: let norms of updates grow by more than 1 % from one to the next.
        rank: dimensions of the projection, an integer >= 0, or a prefix of integers; 0 leaves a matrix to AdamW.
        update_proj_gap: updates from one projection to the next, an integer >= 1.
        scale: square of a factor of the updates, >= 0.
        proj: what gradients are projected on: "random" (or None) vectors, or their "svd"'s.
        scale_type: what has a factor of its own: each "channel" (or None), a row or column, or all of a "tensor".
        seed: of random projections, an integer or a prefix of integers. Matrices with the same seed and sides have the
            same one.

    Returns:
        The optimizer; state keys `step`, `exp_avg`, `exp_avg_sq`, `projector`, and `scaled_grad` unless `disable_nl`.

    Raises:
        ValueError: in `init`, for complex parameters.

    Example:
        >>> import funcopt
        >>> mini = funcopt.apollo(lr=1e-2, rank=1, scale=128.0, scale_type="tensor")
    """
    beta1, beta2 = betas
    correction = step_correction(betas, correct_bias)

    def init(p: jax.Array) -> ApolloState:
        projector = no_projector(p, min(rank, *p.shape) if proj == "svd" and p.ndim == 2 else rank)
        limit = None if disable_nl or p.ndim != 2 or rank == 0 else number_of(p)
        return ApolloState(0, projected_zeros(p, projector), projected_zeros(p, projector), projector, limit)

    def drawn(t: Any, like: Projector) -> Projector:
        left, right = (None if x is None else normal(seed, t, x.shape, x.dtype) / rank**0.5 for x in like)
        return left, right

    def scaled(g: jax.Array, x: jax.Array, u: jax.Array) -> jax.Array:
        if scale_type == "tensor":
            return g * (norm(u) / (norm(x) + 1e-8))
        axis = 1 if g.shape[0] >= g.shape[1] else 0
        lengths = lambda y: root(jnp.sum(y * y, axis, keepdims=True))  # noqa: E731
        return g * (lengths(u) / (lengths(x) + 1e-8))

    def update(g: jax.Array, s: ApolloState) -> tuple[jax.Array, ApolloState]:
        projector, limit, projects = s.projector, s.scaled_grad, g.ndim == 2 and rank > 0
        if projects:
            due = (s.step - 1) % update_proj_gap == 0
            find = (lambda: singular_vectors(g, s.projector)) if proj == "svd" else lambda: drawn(s.step, s.projector)
            projector = lax.cond(due, find, lambda: s.projector)
        x = project(g, projector)
        m = beta1 * s.exp_avg + (1 - beta1) * x
        v = beta2 * s.exp_avg_sq + (1 - beta2) * x * x
        u = m / (root(v) + eps)
        if projects:
            u = scaled(g, x, u) * (scale**0.5 if scale_front else 1.0)
            if limit is not None:
                growth = jnp.maximum(norm(u) / (limit + 1e-8), 1.01) / 1.01
                u = u / jnp.where(s.step == 1, 1.0, growth)
                limit = norm(u)
            u = u * (1.0 if scale_front else scale**0.5)
        # The decay is of the new parameter, and so of this update, too.
        factor = correction(s.step) * (1 - lr * weight_decay)
        return factor * u, ApolloState(s.step, m, v, projector, limit)

    return descend(Rule(undivided(update), init), lr, weight_decay=weight_decay, decoupled=True)


scale_by_apollo = direction("scale_by_apollo", apollo, "Rescales updates as `apollo` does, without its learning rate.")
