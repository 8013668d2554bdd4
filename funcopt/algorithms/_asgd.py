"""ASGD: averaged stochastic gradient descent (Polyak and Juditsky, 1992; schedules of Bottou's sgd, 2010).

    p   = (1 - lambd * eta) * p - eta * g
    ax  = p   if mu == 1 else   ax + mu * (p - ax)
    eta = lr / (1 + lambd * lr * t)**alpha                                 for the next update
    mu  = 1 / max(1, t - t0)                                               for the next update

`eta` is lr at a parameter's first update, so a changed lr acts one update later. As in torch `eta` and `mu` are float32
whatever the parameters are: their rounding is part of the trajectory (1e-8). `ax` starts as the parameter, where torch
has zeros that nothing reads, so that `averaged_params` is right before the first update, too.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from funcopt._numerics import choose
from funcopt._tree import weak
from funcopt.frame import ascend, decayed
from funcopt.kinds import AnyNumber, Flag, NonNegative
from funcopt.rule import Keys, Rule, transformation


class AsgdState(NamedTuple):
    average = "ax"

    step: Any  # int32 (), or a tree of them: applied updates so far
    eta: Any  # tree of float32 (): the next update's learning rate
    mu: Any  # tree of float32 (): the next update's weight in the average
    ax: Any  # tree like the parameters: their average

    def evaluated(self, param: jax.Array) -> jax.Array:
        """The average."""
        del param
        return self.ax


@transformation(keys=Keys(from_first_update=True))
def asgd(
    lr: NonNegative = 1e-2,
    lambd: AnyNumber = 1e-4,
    alpha: AnyNumber = 0.75,
    t0: AnyNumber = 1e6,
    weight_decay: NonNegative = 0.0,
    maximize: Flag = False,
) -> Rule:
    """`torch.optim.ASGD`; `averaged_params` gives the average.

    The average is of the parameters with this optimizer's updates added, so nothing may come behind it in a chain.

    Args:
        lr: learning rate of the first update, >= 0.
        lambd: decay of the parameters, and of the learning rate.
        alpha: exponent of the learning rate's decay.
        t0: update after which averaging starts.
        weight_decay: L2 penalty, >= 0.
        maximize: flag: ascend the objective; decay still shrinks the parameters.

    Returns:
        The optimizer; state keys `step`, `eta`, `mu`, `ax`.

    Example:
        >>> import funcopt
        >>> tx = funcopt.asgd(lr=0.1, t0=1000)
        >>> funcopt.averaged_params(tx.init({"w": 1.0}))
        {'w': Array(1., dtype=float32)}
    """

    def init(p: jax.Array) -> AsgdState:
        return AsgdState(0, jnp.float32(lr), jnp.float32(1.0), jnp.array(p, p.dtype))

    def update(g: jax.Array, s: AsgdState, *, param: jax.Array) -> tuple[jax.Array, AsgdState]:
        g = decayed(ascend(g, maximize), param, weight_decay)
        # The rate that counts is that of a parameter's own first update, which `init` cannot know.
        rate = weak(jnp.where(s.step == 1, lr, s.eta))
        u = -(lambd * rate * param + rate * g)
        new = param + u
        ax = choose(s.mu == 1, new, s.ax + (new - s.ax) * weak(s.mu))
        t = s.step
        return u, AsgdState(t, lr / (1 + lambd * lr * t) ** alpha, 1 / jnp.maximum(1, t - t0), ax)

    return Rule(update, init, final=True)
