"""Yogi: Adam whose second moment grows and shrinks by at most a step (Zaheer et al., 2018, algorithm 2).

    m = beta1 * m + (1 - beta1) * g
    v = v - (1 - beta2) * sign(v - g * g) * g * g
    u = m / (1 - beta1**t) / (sqrt(v) / sqrt(1 - beta2**t) + eps)
    p = p - lr * (u + weight_decay * p)

Both moments start at `initial_accumulator`, as in optax and pytorch-optimizer, and their biases are corrected as if it
were 0; the paper corrects none.
"""

from typing import Annotated, Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp

from funcopt import _checks
from funcopt._numerics import filled
from funcopt.algorithms._adam import corrected
from funcopt.frame import descend
from funcopt.kinds import Betas, Flag, Hyperparameter, NonNegative, fixed
from funcopt.rule import Keys, Rule, direction, transformation

Start: TypeAlias = Annotated[Hyperparameter, fixed(_checks.NON_NEGATIVE)]


class YogiState(NamedTuple):
    step: Any  # int32 (), or a tree of them: applied updates so far
    exp_avg: Any  # tree like the parameters
    exp_avg_sq: Any  # tree like the parameters


@transformation(keys=Keys(torch_class="Yogi", step=None, group={"step": "step"}))
def yogi(
    lr: NonNegative = 1e-2,
    betas: Betas = (0.9, 0.999),
    eps: NonNegative = 1e-3,
    weight_decay: NonNegative = 0.0,
    initial_accumulator: Start = 1e-6,
    *,
    maximize: Flag = False,
) -> Rule:
    """pytorch-optimizer's `Yogi`, and `optax.yogi`.

    Args:
        lr: learning rate, >= 0.
        betas: decay rates of the two moments, each in [0, 1).
        eps: added to the denominator, >= 0.
        weight_decay: decoupled decay of the parameters, by `lr * weight_decay`, >= 0.
        initial_accumulator: where both moments start, >= 0.
        maximize: flag: ascend the objective; decay still shrinks the parameters.

    Returns:
        The optimizer; state keys `step`, `exp_avg`, `exp_avg_sq`.

    Example:
        >>> import funcopt
        >>> tx = funcopt.yogi(lr=1e-2)
    """
    beta1, beta2 = betas
    quotient = corrected(betas, eps)

    def init(p: jax.Array) -> YogiState:
        return YogiState(0, filled(p, initial_accumulator), filled(p, initial_accumulator))

    def update(g: jax.Array, s: YogiState) -> tuple[jax.Array, YogiState]:
        m = beta1 * s.exp_avg + (1 - beta1) * g
        square = g * g
        v = s.exp_avg_sq - (1 - beta2) * jnp.sign(s.exp_avg_sq - square) * square
        return quotient(m, v, s.step), YogiState(s.step, m, v)

    return descend(Rule(update, init), lr, weight_decay=weight_decay, decoupled=True, maximize=maximize)


scale_by_yogi = direction("scale_by_yogi", yogi, "Rescales updates as `yogi` does, without its learning rate.")
