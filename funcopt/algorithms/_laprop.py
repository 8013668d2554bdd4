"""LaProp: momentum of normalised gradients (Ziyin, Wang and Ueda, 2020, algorithm 1).

    l1 = beta1 * l1 + (1 - beta1) * lr
    l2 = beta2 * l2 + (1 - beta2)
    v  = beta2 * v + (1 - beta2) * g * g
    m  = beta1 * m + (1 - beta1) * lr * g / (sqrt(v / l2) + eps)
    p  = p - m * lr / l1
    p  = p - lr * weight_decay * p                                         of the new p; fixed_decay: without lr

The learning rate is in the momentum, and l1 corrects for its changes. timm's decay follows the learning rate, the
author's does not. pytorch-optimizer decays before the update.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from funcopt._numerics import number_of, root
from funcopt._tree import weak
from funcopt.frame import followed, is_zero
from funcopt.kinds import Betas, Flag, NonNegative
from funcopt.rule import Keys, Rule, transformation


class LapropState(NamedTuple):
    step: Any  # int32 (), or a tree of them: applied updates so far
    exp_avg: Any  # tree like the parameters: has the dimension of an update
    exp_avg_lr_1: Any  # tree of (): l1
    exp_avg_lr_2: Any  # tree of (): l2
    exp_avg_sq: Any  # tree like the parameters


@transformation(keys=Keys(torch_class="LaProp"))
def laprop(
    lr: NonNegative = 4e-4,
    betas: Betas = (0.9, 0.999),
    eps: NonNegative = 1e-15,
    weight_decay: NonNegative = 0.0,
    fixed_decay: Flag = False,
    *,
    maximize: Flag = False,
) -> Rule:
    """`LaProp` of timm, and the author's with `fixed_decay`.

    Args:
        lr: learning rate, >= 0. While it is 0 nothing but the author's decay moves the parameters.
        betas: decay rates of the momentum and of the squares, each in [0, 1).
        eps: added to the denominator, >= 0.
        weight_decay: decay of the parameters after the update, by `lr * weight_decay`, >= 0.
        fixed_decay: flag: decay by `weight_decay` alone.
        maximize: flag: ascend the objective; decay still shrinks the parameters.

    Returns:
        The optimizer; state keys `step`, `exp_avg`, `exp_avg_lr_1`, `exp_avg_lr_2`, `exp_avg_sq`.

    Example:
        >>> import funcopt
        >>> tx = funcopt.laprop(lr=4e-4, weight_decay=0.1)
    """
    beta1, beta2 = betas

    def init(p: jax.Array) -> LapropState:
        return LapropState(0, jnp.zeros_like(p), number_of(p), number_of(p), jnp.zeros_like(p))

    def update(g: jax.Array, s: LapropState) -> tuple[jax.Array, LapropState]:
        l1 = beta1 * s.exp_avg_lr_1 + (1 - beta1) * lr
        l2 = beta2 * s.exp_avg_lr_2 + (1 - beta2)
        v = beta2 * s.exp_avg_sq + (1 - beta2) * g * g
        m = beta1 * s.exp_avg + (1 - beta1) * lr * (g / (root(v / weak(l2)) + eps))
        return m, LapropState(s.step, m, l1, l2, v)

    def step(m: jax.Array, s: LapropState, *, param: Any = None) -> jax.Array:
        l1 = s.exp_avg_lr_1
        u = -weak(jnp.where(l1 == 0, 0.0, lr / jnp.where(l1 == 0, 1.0, l1))) * m
        if is_zero(weight_decay):
            return u
        return u - (weight_decay if fixed_decay else lr * weight_decay) * (param + u)

    asks = () if is_zero(weight_decay) else ("param",)
    return followed(Rule(update, init), step, *asks, maximize=maximize)
