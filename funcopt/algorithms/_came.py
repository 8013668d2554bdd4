"""CAME: Adafactor's updates, made smaller where they differ from their mean (Luo et al., 2023, algorithm 2).

    R, C = lerp((R, C), means of g * g + eps1 along columns and rows, 1 - beta2)         of the last two axes
    u    = g / sqrt(R * C / mean of R)                             a vector: v = lerp(v, g * g + eps1, 1 - beta2)
    u    = u / max(1, rms(u) / clip_threshold)
    m    = beta1 * m + (1 - beta1) * u
    R, C = lerp((R, C), means of (u - m)**2 + eps2, 1 - beta3)     others than the first ones
    u    = m / sqrt(R * C / mean of R)                             a vector: u = m
    p    = p - lr * (u + weight_decay * p)

No mean is corrected for its start at 0.
"""

from typing import Annotated, Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp

from funcopt import _checks
from funcopt._numerics import lerp, rms
from funcopt._tree import refuse_unless_real, to_compute
from funcopt.algorithms._factored import expanded, moved_means, no_means, over_root, squeezed
from funcopt.frame import descend
from funcopt.kinds import Hyperparameter, NonNegative, Positive, number
from funcopt.rule import Keys, Rule, direction, transformation

ThreeBetas: TypeAlias = Annotated[Hyperparameter, number(*(_checks.UNIT_HALF_OPEN,) * 3)]
TwoEpsilons: TypeAlias = Annotated[Hyperparameter, number(_checks.NON_NEGATIVE, _checks.NON_NEGATIVE)]


class CameState(NamedTuple):
    step: Any  # int32 (), or a tree of them: applied updates so far, which nothing reads
    exp_avg: Any  # tree like the parameters, float32 at least, as all below
    exp_avg_sq_row: Any  # tree of (..., rows); None for parameters of less than two axes, as the next three
    exp_avg_sq_col: Any  # tree of (..., columns)
    exp_avg_res_row: Any  # tree of (..., rows)
    exp_avg_res_col: Any  # tree of (..., columns)
    exp_avg_sq: Any  # tree like the parameters; None for those of two axes or more


@transformation(elementwise=False, refuse_param=refuse_unless_real, keys=Keys(step=int, torch_class="CAME"))
def came(
    lr: NonNegative = 2e-4,
    eps: TwoEpsilons = (1e-30, 1e-16),
    clip_threshold: Positive = 1.0,
    betas: ThreeBetas = (0.9, 0.999, 0.9999),
    weight_decay: NonNegative = 0.0,
) -> Rule:
    """`came_pytorch.CAME`: Adam's behaviour, with memory for one moment and the sides of two matrices.

    Args:
        lr: learning rate, >= 0; the reference has no default, and its examples this one.
        eps: added to the squares of gradients, and of what updates differ by, each >= 0.
        clip_threshold: largest root mean square of an update before the momentum, > 0.
        betas: decay rates of the momentum, of the gradients' and of the differences' second moments, each in [0, 1).
        weight_decay: decoupled decay of the parameters, by `lr * weight_decay`, >= 0.

    Returns:
        The optimizer; state keys `step`, `exp_avg`, and `exp_avg_sq_row`, `exp_avg_sq_col`, `exp_avg_res_row`,
        `exp_avg_res_col` for two axes or more, `exp_avg_sq` for fewer. Its `init` raises ValueError for complex
        parameters.

    Example:
        >>> import funcopt
        >>> tx = funcopt.came(lr=2e-4, weight_decay=1e-2)
    """
    beta1, beta2, beta3 = betas

    def init(p: jax.Array) -> CameState:
        wide = to_compute(p)
        if p.ndim < 2:
            return CameState(0, jnp.zeros_like(wide), None, None, None, None, jnp.zeros_like(wide))
        return CameState(0, jnp.zeros_like(wide), *squeezed(no_means(wide)), *squeezed(no_means(wide)), None)

    def update(g: jax.Array, s: CameState) -> tuple[jax.Array, CameState]:
        square = g * g + eps[0]
        if s.exp_avg_sq is not None:
            v = lerp(s.exp_avg_sq, square, 1 - beta2)
            m = moved(g / jnp.sqrt(v), s.exp_avg)[1]
            return m, CameState(s.step, m, None, None, None, None, v)
        means = moved_means(expanded((s.exp_avg_sq_row, s.exp_avg_sq_col)), square, 1 - beta2)
        u, m = moved(over_root(g, means), s.exp_avg)
        residue = (u - m) * (u - m) + eps[1]
        differences = moved_means(expanded((s.exp_avg_res_row, s.exp_avg_res_col)), residue, 1 - beta3)
        new = CameState(s.step, m, *squeezed(means), *squeezed(differences), None)
        return over_root(m, differences), new

    def moved(u: jax.Array, momentum: jax.Array) -> tuple[jax.Array, jax.Array]:
        u = u / jnp.maximum(1.0, rms(u) / clip_threshold)
        return u, beta1 * momentum + (1 - beta1) * u

    return descend(Rule(update, init), lr, weight_decay=weight_decay, decoupled=True)


scale_by_came = direction("scale_by_came", came, "Rescales updates as `came` does, without decay and learning rate.")
