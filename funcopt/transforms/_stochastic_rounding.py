"""Stochastic rounding of parameters in half precision (Croci et al., 2022; Zamirai et al., 2020).

    x  = p + u                                  in float32
    p' = x rounded up with probability (x - down) / (up - down), else down: right in expectation

The random bits are a hash of x, of the count and of the seed, and not a generator's: they are the same in every engine,
however arrays are joined, cut or sharded, and a checkpoint needs nothing but the count.
"""

from typing import Annotated, Any, NamedTuple

import jax
import jax.numpy as jnp

from funcopt import _checks
from funcopt.kinds import integer
from funcopt.rule import Rule, transformation

# How many bits of float32 the narrower types do not have.
_DROPPED = {"bfloat16": 16, "float16": 13}


class StochasticRoundingState(NamedTuple):
    rounding_count: Any  # tree of int32 () like the parameters: updates of each; None for float32 and wider


@transformation()
def stochastic_rounding(seed: Annotated[int, integer(_checks.NON_NEGATIVE)] = 0) -> Rule:
    """Rounds parameters in half precision up or down at random, so that small updates are not lost; place it last.

    Rounding to the nearest loses every update of less than half of a parameter's last digit (of 1 / 256 in bfloat16).
    Here such an update changes the parameter now and then, by as much as it is missed otherwise. It keeps no second
    array, as `kahan_sum` does, and is noisier. Equal parameters with equal updates are rounded alike within one update.
    Parameters in float32 and wider are left alone; float16 below 6e-5, where it has fewer digits, is rounded to the
    nearest.

    Args:
        seed: an integer >= 0, which chooses the random bits.

    Returns:
        The transformation; state key `rounding_count`. Its update is what has to be added to the parameter.

    Example:
        >>> import funcopt
        >>> tx = funcopt.chain(funcopt.adamw(1e-3), funcopt.stochastic_rounding(seed=1))
    """

    def init(p: jax.Array) -> StochasticRoundingState:
        narrow = p.dtype.name in _DROPPED
        return StochasticRoundingState(jnp.zeros((), jnp.int32) if narrow else None)

    def update(
        u: jax.Array, s: StochasticRoundingState, *, param: jax.Array, dtype: Any
    ) -> tuple[jax.Array, StochasticRoundingState]:
        if s.rounding_count is None:
            return u, s
        exact = param + u
        bits = jax.lax.bitcast_convert_type(exact, jnp.uint32)
        drawn = _mix(bits ^ _mix(s.rounding_count.astype(jnp.uint32) ^ jnp.uint32(seed * 0x9E3779B9 % 2**32)))
        low = jnp.uint32(2 ** _DROPPED[jnp.dtype(dtype).name] - 1)
        rounded = jax.lax.bitcast_convert_type((bits + (drawn & low)) & ~low, jnp.float32)
        moved = jnp.where(jnp.isfinite(exact), rounded, exact) - param
        return moved, StochasticRoundingState(s.rounding_count + 1)

    return Rule(update, init)


def _mix(x: jax.Array) -> jax.Array:
    """A hash of 32 bits to 32 bits (Jenkins, 1997), made of sums, shifts and exclusive ors."""
    x = (x + jnp.uint32(0x7ED55D16)) + (x << jnp.uint32(12))
    x = (x ^ jnp.uint32(0xC761C23C)) ^ (x >> jnp.uint32(19))
    x = (x + jnp.uint32(0x165667B1)) + (x << jnp.uint32(5))
    x = (x + jnp.uint32(0xD3A2646C)) ^ (x << jnp.uint32(9))
    x = (x + jnp.uint32(0xFD7046C5)) + (x << jnp.uint32(3))
    return (x ^ jnp.uint32(0xB55A4F09)) ^ (x >> jnp.uint32(16))
