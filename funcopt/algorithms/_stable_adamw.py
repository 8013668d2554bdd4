"""StableAdamW: AdamW whose learning rate falls where a gradient is larger than expected (Wortsman et al., 2023).

    w1 = (1 - beta1) / (1 - beta1**t)                                       weights that correct the moments as they are
    w2 = (1 - beta2) / (1 - beta2**t)                                       kept: 1 at the first update
    m  = (1 - w1) * m + w1 * g
    v  = (1 - w2) * v + w2 * g * g
    r  = sqrt(mean of g * g / max(v, eps**2))                               one number for each array
    p  = p - lr / max(1, r) * (m / (sqrt(v) + eps) + weight_decay * p)

The moments are not those of Adam, which are corrected when they are used. `decouple_lr` decays by
`lr / max_lr * weight_decay`; torch-optimi takes the first learning rate for `max_lr` where that is not given.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from funcopt._numerics import bias_correction, once, root
from funcopt._tree import weak
from funcopt.frame import descend, is_zero
from funcopt.kinds import Betas, Flag, NonNegative, PositiveOrNone
from funcopt.rule import Keys, Refused, Rule, asking, transformation


class StableAdamwState(NamedTuple):
    step: Any  # int32 (), or a tree of them: applied updates so far
    exp_avg: Any  # tree like the parameters
    exp_avg_sq: Any  # tree like the parameters


@transformation(elementwise=False, keys=Keys(torch_class="StableAdamW", group={"step": "step"}))
def stable_adamw(
    lr: NonNegative = 1e-3,
    betas: Betas = (0.9, 0.99),
    weight_decay: NonNegative = 1e-2,
    eps: NonNegative = 1e-6,
    decouple_lr: Flag = False,
    max_lr: PositiveOrNone = None,
) -> Rule:
    """`optimi.StableAdamW` without Kahan summation, and transformers' stable_adamw: needs no gradient clipping.

    Args:
        lr: learning rate, >= 0; torch-optimi has no default.
        betas: decay rates of the two moments, each in [0, 1).
        weight_decay: decoupled decay of the parameters, by the lowered `lr` times it, >= 0.
        eps: added to the denominator, and the least root of a second moment that a gradient is compared with, >= 0.
        decouple_lr: flag: decay by `lr / max_lr * weight_decay`.
        max_lr: the schedule's largest learning rate, > 0; needed with `decouple_lr`.

    Returns:
        The optimizer; state keys `step`, `exp_avg`, `exp_avg_sq`.

    Example:
        >>> import funcopt
        >>> tx = funcopt.stable_adamw(lr=1e-3, weight_decay=1e-5, decouple_lr=True, max_lr=1e-3)
    """
    if decouple_lr and max_lr is None:
        raise Refused("max_lr", "> 0 with decouple_lr=True", max_lr)
    beta1, beta2 = betas

    def init(p: jax.Array) -> StableAdamwState:
        return StableAdamwState(0, jnp.zeros_like(p), jnp.zeros_like(p))

    @once
    def weights(t: Any) -> tuple[Any, Any]:
        return (1 - beta1) / bias_correction(beta1, t), (1 - beta2) / bias_correction(beta2, t)

    def update(g: jax.Array, s: StableAdamwState, *, param: Any = None) -> tuple[jax.Array, StableAdamwState]:
        w1, w2 = weights(s.step)
        m = (1 - w1) * s.exp_avg + w1 * g
        v = (1 - w2) * s.exp_avg_sq + w2 * g * g
        r = weak(root(jnp.mean(g * g / jnp.maximum(v, eps * eps))))
        u = m / (root(v) + eps)
        if not is_zero(weight_decay):
            u = u + (weight_decay / max_lr if decouple_lr else weight_decay) * param
        return u / jnp.maximum(1.0, r), StableAdamwState(s.step, m, v)

    return descend(Rule(asking(update, *(() if is_zero(weight_decay) else ["param"])), init), lr)
