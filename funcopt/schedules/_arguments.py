"""What schedules take for a number, whoever made it: values that may be traced, lengths and counts that may not.

A concrete number becomes Python's own, so that it is computed with in float64 (or is an integer without bounds), as if
it had been typed. A traced value stays traced: a schedule can be mapped over its peak, and differentiated by it.
"""

import numbers
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np

from funcopt import _checks
from funcopt._checks import is_traced

Value: TypeAlias = float | np.number | np.ndarray | jax.Array
"""A number; an array has one element, and may be traced."""


def as_value(owner: str, argument: str, value: Any, allowed: _checks.Range = _checks.FINITE) -> Any:
    """A value of the schedule, such as its peak: checked if concrete, in JAX's default float dtype if traced."""
    if isinstance(value, np.ndarray | jax.Array) and value.size != 1:
        _checks.fail(owner, argument, "one number", value, "map over several with jax.vmap")
    if not is_traced(value):
        number = _checks.plain_number(value)
        _checks.check_real(owner, argument, number, allowed)
        return number
    if not (jnp.issubdtype(value.dtype, jnp.floating) or jnp.issubdtype(value.dtype, jnp.integer)):
        raise TypeError(f"{owner}: {argument} must be a number, got {value!r}")
    return jnp.reshape(jnp.asarray(value, dtype=float), ())


def as_length(owner: str, argument: str, value: Any, allowed: _checks.Range) -> Any:
    """A number of steps, which decides what is computed and so is concrete."""
    number = _concrete(owner, argument, value)
    _checks.check_real(owner, argument, number, allowed)
    return number


def as_count(owner: str, argument: str, value: Any) -> int:
    """A number of whole steps or cycles, >= 1."""
    number = _concrete(owner, argument, value)
    if isinstance(number, bool) or not isinstance(number, numbers.Integral) or number < 1:
        _checks.fail(owner, argument, "an integer >= 1", value)
    return int(number)


def _concrete(owner: str, argument: str, value: Any) -> Any:
    if is_traced(value):
        raise TypeError(
            f"{owner}: {argument} must be a number that is known before tracing, got {value!r}; for several lengths "
            "make several schedules"
        )
    return _checks.plain_number(value)
