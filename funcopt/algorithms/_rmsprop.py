"""RMSprop (Hinton, 2012, lecture 6e), centred (Graves, 2013, equations 38 to 45), with momentum.

    square_avg = alpha * square_avg + (1 - alpha) * g * g
    grad_avg   = lerp(grad_avg, g, 1 - alpha)                              centered
    u          = g / (sqrt(square_avg - grad_avg**2) + eps)                otherwise without grad_avg
    buf        = momentum * buf + u                                        momentum > 0: u = buf
    p          = p - lr * u

As in torch the learning rate is outside the momentum, which matters as soon as it changes; optax has it inside, eps
inside the root, and another default for alpha.
"""

from typing import Any, NamedTuple

import jax

from funcopt._numerics import filled, lerp, root
from funcopt.frame import descend, is_zero, moved
from funcopt.kinds import Flag, NonNegative
from funcopt.rule import Rule, direction, transformation


class RmspropState(NamedTuple):
    step: Any  # int32 (), or a tree of them: applied updates so far; torch counts, and does not use it
    square_avg: Any  # tree like the parameters
    momentum_buffer: Any  # tree like the parameters; None where momentum is 0
    grad_avg: Any  # tree like the parameters; None where centered is False


@transformation()
def rmsprop(
    lr: NonNegative = 1e-2,
    alpha: NonNegative = 0.99,
    eps: NonNegative = 1e-8,
    weight_decay: NonNegative = 0.0,
    momentum: NonNegative = 0.0,
    centered: Flag = False,
    *,
    maximize: Flag = False,
) -> Rule:
    """`torch.optim.RMSprop`.

    Args:
        lr: learning rate, >= 0.
        alpha: decay rate of the averages, >= 0.
        eps: added to the root, >= 0.
        weight_decay: L2 penalty, >= 0.
        momentum: >= 0; 0 keeps no buffer.
        centered: flag: divide by the deviation from the average gradient instead of from 0.
        maximize: flag: ascend the objective; the penalty still shrinks the parameters.

    Returns:
        The optimizer; state keys `step`, `square_avg`, `momentum_buffer` with momentum, `grad_avg` with centered.

    Example:
        >>> import funcopt
        >>> tx = funcopt.rmsprop(lr=1e-3, alpha=0.9, momentum=0.9, centered=True)
    """
    plain = is_zero(momentum)

    def init(p: jax.Array) -> RmspropState:
        return RmspropState(0, filled(p), None if plain else filled(p), filled(p) if centered else None)

    def update(g: jax.Array, s: RmspropState) -> tuple[jax.Array, RmspropState]:
        variance = square_avg = alpha * s.square_avg + (1 - alpha) * g * g
        grad_avg = lerp(s.grad_avg, g, 1 - alpha) if centered else None
        if grad_avg is not None:
            variance = square_avg - grad_avg * grad_avg
        u = g / (root(variance) + eps)
        if plain:
            return u, RmspropState(s.step, square_avg, None, grad_avg)
        buffer, moving = moved(momentum, s.momentum_buffer, u)
        return moving, RmspropState(s.step, square_avg, buffer, grad_avg)

    return descend(Rule(update, init), lr, weight_decay=weight_decay, maximize=maximize)


scale_by_rmsprop = direction(
    "scale_by_rmsprop", rmsprop, "Rescales updates as `rmsprop` does, without its learning rate."
)
