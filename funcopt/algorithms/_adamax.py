"""Adamax: Adam with the infinity norm (Kingma and Ba, 2015, algorithm 2).

    exp_avg = lerp(exp_avg, g, 1 - beta1)
    exp_inf = max(beta2 * exp_inf, |g| + eps)
    u       = exp_avg / ((1 - beta1**t) * exp_inf)
    p       = p - lr * u

The paper has no eps; torch puts it inside the maximum.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from funcopt._numerics import bias_correction, filled, lerp
from funcopt.frame import descend
from funcopt.kinds import Betas, Flag, NonNegative
from funcopt.rule import Keys, Rule, direction, transformation


class AdamaxState(NamedTuple):
    step: Any  # int32 (), or a tree of them: applied updates so far
    exp_avg: Any  # tree like the parameters
    exp_inf: Any  # tree like the parameters


# optax shares the class with Adam; which one is meant is known from the other side.
_OPTAX = (optax.ScaleByAdamState, {"count": "step", "mu": "exp_avg", "nu": "exp_inf"})


@transformation(keys=Keys(optax=_OPTAX))
def adamax(
    lr: NonNegative = 2e-3,
    betas: Betas = (0.9, 0.999),
    eps: NonNegative = 1e-8,
    weight_decay: NonNegative = 0.0,
    *,
    maximize: Flag = False,
) -> Rule:
    """`torch.optim.Adamax`.

    Args:
        lr: learning rate, >= 0.
        betas: decay rates of the average and of the infinity norm, each in [0, 1).
        eps: added to the gradient's magnitude, >= 0.
        weight_decay: L2 penalty, >= 0.
        maximize: flag: ascend the objective; the penalty still shrinks the parameters.

    Returns:
        The optimizer; state keys `step`, `exp_avg`, `exp_inf`.

    Example:
        >>> import funcopt
        >>> tx = funcopt.adamax(lr=2e-3, betas=(0.9, 0.99))
    """
    beta1, beta2 = betas

    def init(p: jax.Array) -> AdamaxState:
        return AdamaxState(0, filled(p), filled(p))

    def update(g: jax.Array, s: AdamaxState) -> tuple[jax.Array, AdamaxState]:
        m = lerp(s.exp_avg, g, 1 - beta1)
        largest = jnp.maximum(beta2 * s.exp_inf, jnp.abs(g) + eps)
        return m / (bias_correction(beta1, s.step) * largest), AdamaxState(s.step, m, largest)

    return descend(Rule(update, init), lr, weight_decay=weight_decay, maximize=maximize)


scale_by_adamax = direction("scale_by_adamax", adamax, "Rescales updates as `adamax` does, without its learning rate.")
