"""Kahan's summation of updates, for parameters in half precision (Kahan, 1965; Zamirai et al., 2020).

    c  = c + u
    p' = p + c
    c  = c + (p - p')                           what p' has lost to rounding; every result is rounded to p's dtype

The sum of p and c is the parameter as it would be with twice the digits.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from funcopt._numerics import rounded
from funcopt.rule import Rule, transformation


class KahanSumState(NamedTuple):
    kahan_comp: Any  # tree like the parameters; None for those in float32 and wider


@transformation()
def kahan_sum() -> Rule:
    """Keeps what parameters in half precision lose to rounding, as torch-optimi's `kahan_sum`; place it last.

    Updates that are too small to change a parameter add up until they do. Unlike in torch-optimi decay, too, is part of
    the update that is summed. Parameters in float32 and wider are left alone.

    Returns:
        The transformation; state key `kahan_comp`. Its update is what has to be added to the parameter.

    Example:
        >>> import funcopt
        >>> tx = funcopt.chain(funcopt.stable_adamw(1e-3), funcopt.kahan_sum())
    """

    def init(p: jax.Array) -> KahanSumState:
        return KahanSumState(jnp.zeros_like(p) if jnp.finfo(p.dtype).bits < 32 else None)

    def update(u: jax.Array, s: KahanSumState, *, param: jax.Array, dtype: Any) -> tuple[jax.Array, KahanSumState]:
        if s.kahan_comp is None:
            return u, s
        total = rounded(s.kahan_comp + u, dtype)
        lost = rounded(param - rounded(param + total, dtype), dtype)
        return total, KahanSumState(total + lost)

    return Rule(update, init)
