"""ADOPT: Adam that divides by the second moment before the new gradient (Taniguchi et al., 2024, algorithm 2).

    n = g / max(sqrt(v), eps)                                              v before the update
    n = clip(n, -c, c)                                                     c = (t - 1)**clip_exp
    m = lerp(m, n, 1 - beta1)
    v = beta2 * v + (1 - beta2) * g * g
    p = p - lr * m

The first update is v = g * g alone: nothing moves, and nothing decays. The authors' code and optax have clip_exp 0.25,
timm 0.333. With the authors' `foreach` the first update is that of the group, not of each parameter.
"""

from typing import Annotated, Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp

from funcopt import _checks
from funcopt._numerics import lerp, once, root
from funcopt.frame import descend
from funcopt.kinds import Betas, Flag, Hyperparameter, NonNegative, number
from funcopt.rule import Keys, Rule, direction, transformation

Exponent: TypeAlias = Annotated[Hyperparameter, number(_checks.NON_NEGATIVE_OR_NONE)]


class AdoptState(NamedTuple):
    step: Any  # int32 (), or a tree of them: applied updates so far
    exp_avg: Any  # tree like the parameters
    exp_avg_sq: Any  # tree like the parameters


@transformation(keys=Keys(torch_class="ADOPT"))
def adopt(
    lr: NonNegative = 1e-3,
    betas: Betas = (0.9, 0.9999),
    eps: NonNegative = 1e-6,
    clip_exp: Exponent = 0.25,
    weight_decay: NonNegative = 0.0,
    decouple: Flag = False,
    *,
    maximize: Flag = False,
) -> Rule:
    """The authors' `ADOPT`, and timm's `Adopt` with another exponent.

    Args:
        lr: learning rate, >= 0.
        betas: decay rates of the two moments, each in [0, 1).
        eps: smallest denominator, >= 0.
        clip_exp: exponent of what normalised gradients are clipped to, >= 0; None does not clip, as the paper's first
            version.
        weight_decay: >= 0; an L2 penalty unless `decouple`.
        decouple: flag: decay the parameters directly, by `lr * weight_decay`.
        maximize: flag: ascend the objective; decay still shrinks the parameters.

    Returns:
        The optimizer; state keys `step`, `exp_avg`, `exp_avg_sq`.

    Example:
        >>> import funcopt
        >>> tx = funcopt.adopt(lr=1e-3, weight_decay=0.1, decouple=True)
    """
    beta1, beta2 = betas

    def init(p: jax.Array) -> AdoptState:
        return AdoptState(0, jnp.zeros_like(p), jnp.zeros_like(p))

    @once
    def scalars(t: Any) -> tuple[Any, Any]:
        first = t == 1
        limit = jnp.inf if clip_exp is None else jnp.maximum(t - 1, 1) ** clip_exp
        return jnp.where(first, 0.0, limit), jnp.where(first, 1.0, 1 - beta2)

    def update(g: jax.Array, s: AdoptState) -> tuple[jax.Array, AdoptState]:
        limit, new = scalars(s.step)
        normalised = g / jnp.maximum(root(s.exp_avg_sq), eps)
        m = lerp(s.exp_avg, jnp.clip(normalised, -limit, limit), 1 - beta1)
        v = beta2 * s.exp_avg_sq + new * g * g
        return m, AdoptState(s.step, m, v)

    rule = Rule(update, init)
    return descend(rule, lr, weight_decay=weight_decay, decoupled=decouple, maximize=maximize, late=True)


scale_by_adopt = direction(
    "scale_by_adopt", adopt, "Rescales updates as `adopt` does, without its learning rate.", without=("decouple",)
)
