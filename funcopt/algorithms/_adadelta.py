"""Adadelta (Zeiler, 2012, algorithm 1).

    square_avg = rho * square_avg + (1 - rho) * g * g
    u          = sqrt(acc_delta + eps) / sqrt(square_avg + eps) * g
    acc_delta  = rho * acc_delta + (1 - rho) * u * u
    p          = p - lr * u

The paper's lr is 1, torch's default.
"""

from typing import Any, NamedTuple

import jax
import optax

from funcopt._numerics import filled, recomputed, root
from funcopt.frame import descend
from funcopt.kinds import Flag, NonNegative, Unit
from funcopt.rule import Keys, Rule, direction, transformation


class AdadeltaState(NamedTuple):
    step: Any  # int32 (), or a tree of them: applied updates so far; torch counts, and does not use it
    square_avg: Any  # tree like the parameters
    acc_delta: Any  # tree like the parameters


@transformation(keys=Keys(optax=(optax.ScaleByAdaDeltaState, {"e_g": "square_avg", "e_x": "acc_delta"})))
def adadelta(
    lr: NonNegative = 1.0,
    rho: Unit = 0.9,
    eps: NonNegative = 1e-6,
    weight_decay: NonNegative = 0.0,
    *,
    maximize: Flag = False,
) -> Rule:
    """`torch.optim.Adadelta`.

    Args:
        lr: learning rate, >= 0.
        rho: decay rate of both averages, in [0, 1].
        eps: added under both roots, >= 0.
        weight_decay: L2 penalty, >= 0.
        maximize: flag: ascend the objective; the penalty still shrinks the parameters.

    Returns:
        The optimizer; state keys `step`, `square_avg`, `acc_delta`.

    Example:
        >>> import funcopt
        >>> tx = funcopt.adadelta(rho=0.95)
    """

    def init(p: jax.Array) -> AdadeltaState:
        return AdadeltaState(0, filled(p), filled(p))

    def update(g: jax.Array, s: AdadeltaState) -> tuple[jax.Array, AdadeltaState]:
        square_avg = rho * s.square_avg + (1 - rho) * g * g

        def step(eps: Any) -> jax.Array:
            return root(s.acc_delta + eps) / root(square_avg + eps) * g

        acc_delta = rho * s.acc_delta + (1 - rho) * step(recomputed(eps)) ** 2
        return step(eps), AdadeltaState(s.step, square_avg, acc_delta)

    return descend(Rule(update, init), lr, weight_decay=weight_decay, maximize=maximize)


scale_by_adadelta = direction(
    "scale_by_adadelta", adadelta, "Rescales updates as `adadelta` does, without its learning rate."
)
