"""LAMB: Adam whose updates are scaled to each array's norm (You et al., 2020, algorithm 2).

    g = g / max(1, |all g| / max_grad_norm)                                           one norm of all arrays
    m = beta1 * m + (1 - beta1) * g                                                   without grad_averaging: + g
    v = beta2 * v + (1 - beta2) * g * g
    u = m / (1 - beta1**t) / (sqrt(v) / sqrt(1 - beta2**t) + eps) + weight_decay * p
    p = p - lr * |p| / |u| * u                                                        the factor is 1 where a norm is 0

Where the decay is 0, as of biases, the factor is 1, unless `always_adapt`. With `decoupled_decay` p is decayed first,
by `lr * weight_decay`, and u has none. optax's lamb scales all arrays and does not clip.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from funcopt._numerics import norm, root
from funcopt._tree import weak
from funcopt.algorithms._adam import corrected
from funcopt.algorithms._lars import adapts, scaled, trust_ratio
from funcopt.frame import decayed, descend, followed
from funcopt.kinds import Betas, Flag, NonNegative, PositiveOrNone
from funcopt.rule import Keys, Rule, asking, transformation


class LambState(NamedTuple):
    step: Any  # int32 (), or a tree of them: applied updates so far
    exp_avg: Any  # tree like the parameters
    exp_avg_sq: Any  # tree like the parameters


@transformation(elementwise=False, keys=Keys(torch_class="Lamb", group={"step": "step"}))
def lamb(
    lr: NonNegative = 1e-3,
    bias_correction: Flag = True,
    betas: Betas = (0.9, 0.999),
    eps: NonNegative = 1e-6,
    weight_decay: NonNegative = 0.01,
    grad_averaging: Flag = True,
    max_grad_norm: PositiveOrNone = 1.0,
    trust_clip: Flag = False,
    always_adapt: Flag = False,
    decoupled_decay: Flag = False,
) -> Rule:
    """`timm.optim.Lamb`: Adam for large batches.

    Args:
        lr: learning rate, >= 0.
        bias_correction: flag: correct the moments for their start at 0.
        betas: decay rates of the two moments, each in [0, 1).
        eps: added to the denominator, >= 0.
        weight_decay: added to the direction as a multiple of the parameters before it is scaled, >= 0. The updates of
            arrays whose own is 0 are not scaled.
        grad_averaging: flag: new gradients enter the first moment with weight `1 - betas[0]`, otherwise with 1.
        max_grad_norm: largest norm of all gradients together, > 0; None for no limit. As a prefix: the limit that each
            part compares the one norm with; parts without one are left out of it.
        trust_clip: flag: updates are scaled down only.
        always_adapt: flag: scale the updates of arrays without decay, too.
        decoupled_decay: flag: decay the parameters directly, by `lr * weight_decay`, before their norm is taken.

    Returns:
        The optimizer; state keys `step`, `exp_avg`, `exp_avg_sq`.

    Example:
        >>> import funcopt
        >>> tx = funcopt.lamb(lr=5e-3, weight_decay={"w": 0.02, "b": 0.0})
    """
    beta1, beta2 = betas
    adapt = adapts(weight_decay, always_adapt)
    quotient = corrected(betas, eps) if bias_correction else lambda m, v, _: m / (root(v) + eps)
    penalty, decay = (0.0, weight_decay) if decoupled_decay else (weight_decay, 0.0)

    def init(p: jax.Array) -> LambState:
        return LambState(0, jnp.zeros_like(p), jnp.zeros_like(p))

    def total(g: jax.Array, _: LambState) -> jax.Array:
        return jnp.sum(g * g)

    def update(g: jax.Array, s: LambState, *, total: Any = None) -> tuple[jax.Array, LambState]:
        if max_grad_norm is not None:
            g = g / jnp.maximum(1.0, weak(root(total)) / max_grad_norm)
        m = beta1 * s.exp_avg + ((1 - beta1) * g if grad_averaging else g)
        v = beta2 * s.exp_avg_sq + (1 - beta2) * g * g
        return quotient(m, v, s.step), LambState(s.step, m, v)

    def adapted(u: jax.Array, s: LambState, *, param: jax.Array) -> jax.Array:
        u = decayed(u, param, penalty)
        x, y = abs(1 - lr * decay) * norm(param), norm(u)
        q = trust_ratio(x, y, y)
        return scaled(u, jnp.minimum(q, 1.0) if trust_clip else q, adapt)

    rule = Rule(update, init) if max_grad_norm is None else Rule(asking(update, "total"), init, total)
    rule = rule if adapt is False else followed(rule, adapted, "param")
    return descend(rule, lr, weight_decay=decay, decoupled=True)
