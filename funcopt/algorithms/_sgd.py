"""Stochastic gradient descent with momentum, as `torch.optim.SGD`.

    g    = g + weight_decay * p
    buf  = momentum * buf + (1 - dampening) * g        first update: buf = g, undampened
    g    = g + momentum * buf   if nesterov else   buf
    p    = p - lr * g

optax's trace has no dampening and is otherwise the same.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from funcopt._numerics import recomputed
from funcopt._tree import is_static
from funcopt.frame import ascend, decay_rows, decayed, is_zero, moved
from funcopt.kinds import AnyNumber, Flag, NonNegative
from funcopt.rule import Frame, Keys, Refused, Rule, asking, direction, transformation


class TraceState(NamedTuple):
    step: Any  # int32 (), or a tree of them: tells the first update, which is not dampened
    momentum_buffer: Any  # tree like the parameters; None where momentum is 0


@transformation(keys=Keys(from_first_update=True, step=None, optax=(optax.TraceState, {"trace": "momentum_buffer"})))
def sgd(
    lr: NonNegative = 1e-3,
    momentum: NonNegative = 0.0,
    dampening: AnyNumber = 0.0,
    weight_decay: NonNegative = 0.0,
    nesterov: Flag = False,
    *,
    maximize: Flag = False,
) -> Rule:
    """`torch.optim.SGD`.

    Args:
        lr: learning rate, >= 0.
        momentum: >= 0; 0 keeps no buffer.
        dampening: part of the gradient that is left out of the buffer, from the second update on.
        weight_decay: L2 penalty, >= 0.
        nesterov: flag; needs momentum > 0 and dampening 0.
        maximize: flag: ascend the objective; the penalty still shrinks the parameters.

    Returns:
        The optimizer; state key `momentum_buffer`.

    Example:
        >>> import funcopt
        >>> tx = funcopt.sgd(lr=0.1, momentum=0.9, weight_decay={"w": 5e-4, "b": 0.0})
    """
    if nesterov and is_static(momentum) and momentum <= 0:
        raise Refused("momentum", "> 0 with nesterov=True", momentum)
    if nesterov and is_static(dampening) and dampening != 0:
        raise Refused("dampening", "0 with nesterov=True", dampening)
    plain = is_zero(momentum)

    def init(p: jax.Array) -> TraceState:
        return TraceState(0, None if plain else jnp.zeros_like(p))

    def update(g: jax.Array, s: TraceState, *, param: Any = None) -> tuple[jax.Array, TraceState]:
        g = ascend(g, maximize)
        u = decayed(g, param, weight_decay)
        if plain:
            return descent(u), s
        buffer, moving = moved(momentum, s.momentum_buffer, u, jnp.where(s.step == 1, 1.0, 1 - dampening))
        if nesterov:  # the decayed gradient is computed again: two results need it, see `recomputed`
            moving = decayed(g, param, recomputed(weight_decay)) + momentum * buffer
        return descent(moving), TraceState(s.step, buffer)

    def descent(u: jax.Array) -> jax.Array:
        return u if is_static(lr) and lr == -1 else -lr * u

    if is_zero(weight_decay):
        update = asking(update)
    # Momentum moves the rows of earlier gradients, too; torch keeps it in a sparse buffer that grows with them.
    rows = decay_rows(weight_decay)
    frame = Frame(lr, maximize=maximize)
    return Rule(update, init, rows=rows if rows == "refuse" or plain else "dense", frame=frame)


trace = direction("trace", sgd, "Accumulates a momentum buffer: `sgd` without its learning rate.", momentum=0.9)
