"""Rprop: resilient backpropagation (Riedmiller and Braun, 1993), in the variant Rprop- (Igel and Huesken, 2000).

    step_size = clip(step_size * (eta+ if g * prev > 0, eta- if g * prev < 0, 1 otherwise), low, high)
    g         = 0 where g * prev < 0
    p         = p - sign(g) * step_size
    prev      = g

`step_size` is lr at a parameter's first update, and lr is not read again. As in torch the step is clipped at every
update, the first included. optax's rprop applies the step of the update before.
"""

from typing import Annotated, Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp

from funcopt import _checks
from funcopt._numerics import choose, filled
from funcopt.frame import ascend
from funcopt.kinds import Flag, Hyperparameter, NonNegative, number
from funcopt.rule import Keys, Rule, transformation

Etas: TypeAlias = Annotated[Hyperparameter, number(_checks.UNIT_OPEN, _checks.ABOVE_ONE)]
StepSizes: TypeAlias = Annotated[Hyperparameter, number(_checks.ANY_NUMBER, _checks.ANY_NUMBER)]


class RpropState(NamedTuple):
    step: Any  # int32 (), or a tree of them: applied updates so far
    prev: Any  # tree like the parameters: last gradients, 0 where their sign had changed
    step_size: Any  # tree like the parameters


@transformation(keys=Keys(from_first_update=True))
def rprop(
    lr: NonNegative = 1e-2,
    etas: Etas = (0.5, 1.2),
    step_sizes: StepSizes = (1e-6, 50.0),
    *,
    maximize: Flag = False,
) -> Rule:
    """`torch.optim.Rprop`, for gradients of the whole data set.

    Args:
        lr: the first step size, >= 0. A later change of it has no effect.
        etas: factors for a step whose gradient changed its sign, in (0, 1), and for one that kept it, > 1.
        step_sizes: smallest and largest step.
        maximize: flag: ascend the objective.

    Returns:
        The optimizer; state keys `step`, `prev`, `step_size`.

    Example:
        >>> import funcopt
        >>> tx = funcopt.rprop(lr=1e-3, step_sizes=(1e-8, 1.0))
    """
    eta_minus, eta_plus = etas

    def init(p: jax.Array) -> RpropState:
        return RpropState(0, filled(p), filled(p, lr))

    def update(g: jax.Array, s: RpropState) -> tuple[jax.Array, RpropState]:
        g = ascend(g, maximize)
        # The rate that counts is that of a parameter's own first update, which `init` cannot know.
        size = choose(s.step == 1, lr, s.step_size)
        agreement = g * s.prev
        turned = agreement < 0
        size = jnp.where(agreement > 0, eta_plus * size, jnp.where(turned, eta_minus * size, size))
        size = jnp.clip(size, *step_sizes)
        g = jnp.where(turned, jnp.zeros_like(g), g)
        return -jnp.sign(g) * size, RpropState(s.step, g, size)

    return Rule(update, init)
