"""Grams: how far Adam goes, in the gradient's direction (Cao et al., 2024, algorithm 1).

    m = beta1 * m + (1 - beta1) * g
    v = beta2 * v + (1 - beta2) * g * g
    u = sqrt(1 - beta2**t) / (1 - beta1**t) * sign(g) * |m| / (sqrt(v) + eps)
    p = p - lr * (u + weight_decay * p)

As in the authors' code, which follows Hugging Face's former AdamW, eps joins the root before the bias correction;
pytorch-optimizer adds it afterwards, as torch's AdamW.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from funcopt._numerics import bias_correction, once, root
from funcopt.frame import descend
from funcopt.kinds import Betas, Flag, NonNegative
from funcopt.rule import Keys, Rule, direction, transformation


class GramsState(NamedTuple):
    step: Any  # int32 (), or a tree of them: applied updates so far
    exp_avg: Any  # tree like the parameters
    exp_avg_sq: Any  # tree like the parameters


@transformation(keys=Keys(torch_class="Grams"))
def grams(
    lr: NonNegative = 1e-3,
    betas: Betas = (0.9, 0.999),
    eps: NonNegative = 1e-6,
    weight_decay: NonNegative = 0.0,
    *,
    maximize: Flag = False,
) -> Rule:
    """The authors' `Grams`.

    Args:
        lr: learning rate, >= 0.
        betas: decay rates of the two moments, each in [0, 1).
        eps: added to the root of the second moment, >= 0.
        weight_decay: decoupled decay of the parameters, by `lr * weight_decay`, >= 0.
        maximize: flag: ascend the objective; decay still shrinks the parameters.

    Returns:
        The optimizer; state keys `step`, `exp_avg`, `exp_avg_sq`.

    Example:
        >>> import funcopt
        >>> tx = funcopt.grams(lr=1e-3, weight_decay=0.1)
    """
    beta1, beta2 = betas

    def init(p: jax.Array) -> GramsState:
        return GramsState(0, jnp.zeros_like(p), jnp.zeros_like(p))

    @once
    def correction(t: Any) -> jax.Array:
        return jnp.sqrt(bias_correction(beta2, t)) / bias_correction(beta1, t)

    def update(g: jax.Array, s: GramsState) -> tuple[jax.Array, GramsState]:
        m = beta1 * s.exp_avg + (1 - beta1) * g
        v = beta2 * s.exp_avg_sq + (1 - beta2) * g * g
        return correction(s.step) * jnp.sign(g) * jnp.abs(m) / (root(v) + eps), GramsState(s.step, m, v)

    return descend(Rule(update, init), lr, weight_decay=weight_decay, decoupled=True, maximize=maximize)


scale_by_grams = direction("scale_by_grams", grams, "Rescales updates as `grams` does, without its learning rate.")
