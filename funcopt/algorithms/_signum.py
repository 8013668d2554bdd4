"""Signum: the sign of a momentum (Bernstein et al., 2018, algorithm 2), and Tiger (Su, 2023), its other defaults.

    m = lerp(m, g, 1 - momentum)
    p = p - lr * (sign(m) + weight_decay * p)

The sign of 0 is 0; momentum 0 is signSGD. Tiger is Lion with equal decay rates. Its author's TensorFlow code changes
learning rates by the parameters' names and shapes; here these are given, as for any algorithm.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from funcopt._numerics import lerp
from funcopt.algorithms._lion import lion
from funcopt.frame import descend, is_zero
from funcopt.kinds import Beta, Flag, NonNegative
from funcopt.rule import Keys, Rule, direction, transformation


class SignumState(NamedTuple):
    momentum_buffer: Any  # tree like the parameters; None where momentum is 0


@transformation(keys=Keys(torch_class="SignSGD"))
def signum(
    lr: NonNegative = 1e-3,
    momentum: Beta = 0.9,
    weight_decay: NonNegative = 0.0,
    *,
    maximize: Flag = False,
) -> Rule:
    """pytorch-optimizer's `SignSGD`.

    Args:
        lr: learning rate, >= 0: how far each element moves.
        momentum: decay rate of the momentum, in [0, 1); 0 keeps no buffer.
        weight_decay: decoupled decay of the parameters, by `lr * weight_decay`, >= 0.
        maximize: flag: ascend the objective; decay still shrinks the parameters.

    Returns:
        The optimizer; state key `momentum_buffer`.

    Example:
        >>> import funcopt
        >>> tx = funcopt.signum(lr=1e-3, weight_decay=0.1)
    """
    plain = is_zero(momentum)

    def init(p: jax.Array) -> SignumState:
        return SignumState(None if plain else jnp.zeros_like(p))

    def update(g: jax.Array, s: SignumState) -> tuple[jax.Array, SignumState]:
        m = g if plain else lerp(s.momentum_buffer, g, 1 - momentum)
        return jnp.sign(m), SignumState(None if plain else m)

    return descend(Rule(update, init), lr, weight_decay=weight_decay, decoupled=True, maximize=maximize)


@transformation(keys=Keys(torch_class="Tiger"))
def tiger(
    lr: NonNegative = 1e-3,
    beta: Beta = 0.965,
    weight_decay: NonNegative = 0.01,
    *,
    maximize: Flag = False,
) -> Rule:
    """pytorch-optimizer's `Tiger`: `signum` with other defaults, and `exp_avg` for the state's key.

    Args:
        lr: learning rate, >= 0: how far each element moves.
        beta: decay rate of the momentum, in [0, 1).
        weight_decay: decoupled decay of the parameters, by `lr * weight_decay`, >= 0.
        maximize: flag: ascend the objective; decay still shrinks the parameters.

    Returns:
        The optimizer; state key `exp_avg`.

    Example:
        >>> import funcopt
        >>> tx = funcopt.tiger(lr={"w": 1e-3, "b": 5e-4})
    """
    return lion.rule(lr, (beta, beta), weight_decay, maximize=maximize)


scale_by_signum = direction(
    "scale_by_signum", signum, "The sign of `signum`'s momentum, without decay and learning rate."
)
