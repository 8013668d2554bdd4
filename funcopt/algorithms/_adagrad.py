"""Adagrad (Duchi et al., 2011), with torch's decay of the learning rate.

    sum = sum + g * g
    u   = g / (sqrt(sum) + eps) / (1 + (t - 1) * lr_decay)
    p   = p - lr * u

As in torch eps joins the root; optax puts it inside and starts from 0.1. Each part of a model may have its own
`initial_accumulator_value`, where torch reads the constructor's argument alone.
"""

from typing import Any, NamedTuple

import jax
import optax

from funcopt._numerics import filled, root
from funcopt.frame import descend
from funcopt.kinds import Flag, NonNegative
from funcopt.rule import Keys, Rule, direction, transformation


class AdagradState(NamedTuple):
    step: Any  # int32 (), or a tree of them: applied updates so far
    sum: Any  # tree like the parameters


@transformation(keys=Keys(optax=(optax.ScaleByRssState, {"sum_of_squares": "sum"})))
def adagrad(
    lr: NonNegative = 1e-2,
    lr_decay: NonNegative = 0.0,
    weight_decay: NonNegative = 0.0,
    initial_accumulator_value: NonNegative = 0.0,
    eps: NonNegative = 1e-10,
    *,
    maximize: Flag = False,
) -> Rule:
    """`torch.optim.Adagrad`.

    Args:
        lr: learning rate, >= 0.
        lr_decay: the rate of update number t, from 1, is `lr / (1 + (t - 1) * lr_decay)`, >= 0.
        weight_decay: L2 penalty, >= 0.
        initial_accumulator_value: what the sum of squares starts from, >= 0.
        eps: added to the root, >= 0.
        maximize: flag: ascend the objective; the penalty still shrinks the parameters.

    Returns:
        The optimizer; state keys `step`, `sum`.

    Example:
        >>> import funcopt
        >>> tx = funcopt.adagrad(lr=0.1, initial_accumulator_value={"w": 0.1, "b": 0.0})
    """

    def init(p: jax.Array) -> AdagradState:
        return AdagradState(0, filled(p, initial_accumulator_value))

    def update(g: jax.Array, s: AdagradState) -> tuple[jax.Array, AdagradState]:
        total = s.sum + g * g
        return g / ((1 + (s.step - 1) * lr_decay) * (root(total) + eps)), AdagradState(s.step, total)

    return descend(Rule(update, init, rows="rows"), lr, weight_decay=weight_decay, maximize=maximize)


scale_by_adagrad = direction(
    "scale_by_adagrad", adagrad, "Rescales updates as `adagrad` does, without its learning rate."
)
