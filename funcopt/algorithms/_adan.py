"""Adan: Nesterov momentum from differences of gradients (Xie et al., 2022, algorithm 1).

    q = g - g_old                                                          0 at the first update
    m = lerp(m, g, 1 - beta1)
    d = beta2 * d + (1 - beta2) * q
    n = beta3 * n + (1 - beta3) * (g + beta2 * q)**2
    u = (m / (1 - beta1**t) + beta2 * d / (1 - beta2**t)) / (sqrt(n / (1 - beta3**t)) + eps)
    p = (p - lr * u) / (1 + lr * weight_decay)                             no_prox: p - lr * (u + weight_decay * p)

The betas are decay rates, 1 minus the paper's. optax's adan has 1 - beta2 where beta2 belongs, twice. The author's
`max_grad_norm` is `clip_by_global_norm` before this; its old gradient is the clipped one, too.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from funcopt._numerics import bias_correction, lerp, once, root
from funcopt.frame import descend, is_zero
from funcopt.kinds import Betas3, Flag, NonNegative
from funcopt.rule import Keys, Rule, direction, transformation


class AdanState(NamedTuple):
    step: Any  # int32 (), or a tree of them: applied updates so far
    exp_avg: Any  # tree like the parameters
    exp_avg_diff: Any  # tree like the parameters: average of the gradients' differences
    exp_avg_sq: Any  # tree like the parameters
    neg_pre_grad: Any  # tree like the parameters: the last gradient, negated


@transformation(keys=Keys(torch_class="Adan", step=None, group={"step": "step"}))
def adan(
    lr: NonNegative = 1e-3,
    betas: Betas3 = (0.98, 0.92, 0.99),
    eps: NonNegative = 1e-8,
    weight_decay: NonNegative = 0.0,
    no_prox: Flag = False,
    *,
    maximize: Flag = False,
) -> Rule:
    """The authors' and timm's `Adan`.

    Args:
        lr: learning rate, >= 0.
        betas: decay rates of the gradient's average, of its differences' and of the squares', each in [0, 1).
        eps: added to the denominator, >= 0.
        weight_decay: decay of the parameters, >= 0: they are divided by `1 + lr * weight_decay` after the update.
        no_prox: flag: decay as AdamW does, of the parameters before the update, by `lr * weight_decay`.
        maximize: flag: ascend the objective; decay still shrinks the parameters.

    Returns:
        The optimizer; state keys `step`, `exp_avg`, `exp_avg_diff`, `exp_avg_sq`, `neg_pre_grad`.

    Example:
        >>> import funcopt
        >>> tx = funcopt.chain(funcopt.clip_by_global_norm(1.0), funcopt.adan(lr=1e-3, weight_decay=0.02))
    """
    beta1, beta2, beta3 = betas

    def init(p: jax.Array) -> AdanState:
        return AdanState(0, jnp.zeros_like(p), jnp.zeros_like(p), jnp.zeros_like(p), jnp.zeros_like(p))

    @once
    def scalars(t: Any) -> tuple[Any, Any, Any, Any]:
        later = jnp.where(t > 1, 1.0, 0.0)
        return later, bias_correction(beta1, t), bias_correction(beta2, t), jnp.sqrt(bias_correction(beta3, t))

    def update(g: jax.Array, s: AdanState) -> tuple[jax.Array, AdanState]:
        later, correction1, correction2, correction3 = scalars(s.step)
        change = later * (g + s.neg_pre_grad)
        ahead = g + beta2 * change
        m = lerp(s.exp_avg, g, 1 - beta1)
        d = beta2 * s.exp_avg_diff + (1 - beta2) * change
        n = beta3 * s.exp_avg_sq + (1 - beta3) * ahead * ahead
        u = (m / correction1 + beta2 / correction2 * d) / (root(n) / correction3 + eps)
        return u, AdanState(s.step, m, d, n, -1.0 * g)

    # The proximal form is the other one with a shorter step.
    rate = lr if no_prox or is_zero(weight_decay) else lr / (1 + lr * weight_decay)
    return descend(Rule(update, init), rate, weight_decay=weight_decay, decoupled=True, maximize=maximize)


scale_by_adan = direction(
    "scale_by_adan", adan, "Rescales updates as `adan` does, without its learning rate.", without=("no_prox",)
)
