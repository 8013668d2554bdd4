"""What turns a closed form into a schedule: one body, two number systems.

A schedule is called with concrete steps (plots, the torch bridge, resuming) and with traced ones (inside a jitted
update). Concrete steps are computed by numpy in float64, which agrees with torch's Python doubles whether or not JAX's
x64 mode is on, takes microseconds and starts no JAX backend. Traced steps are computed by `jax.numpy` in JAX's default
float dtype. A formula is written once, as `body(xp, step)` with `xp` one of the two.

What a schedule is made of may be traced too, its peak for example, whatever the step is. A formula joins such values to
what it has computed from the step by operators, and by `where` and `power`, which look at both.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from funcopt._checks import is_traced
from funcopt.kinds import Schedule
from funcopt.schedules._arguments import Value, as_value


def namespace(step: Any, *values: Any) -> Any:
    """The array functions: `jax.numpy` where the step is a jax array or traced, or a value is traced; else numpy."""
    return jnp if isinstance(step, jax.Array) or any(map(is_traced, values)) else np


def as_steps(step: Any) -> Any:
    """Steps in full width: a Python number, an int64 or float64 array; for a jax step JAX's default int or float."""
    if isinstance(step, jax.Array):
        return step.astype(float if jnp.issubdtype(step.dtype, jnp.floating) else int)
    steps = np.asarray(step)
    if steps.ndim == 0:
        return steps.item()
    return steps.astype(np.float64 if np.issubdtype(steps.dtype, np.floating) else np.int64)


def to_value(value: Any, step: Any) -> Any:
    """A result in the shape of `step`: float64, or JAX's default float dtype for a jax step and for a traced value."""
    shape = np.shape(step)
    if namespace(step, value) is jnp:
        return jnp.broadcast_to(jnp.asarray(value, dtype=float), shape)
    return np.full(shape, value, dtype=np.float64) if shape else np.float64(value)


def formula(body: Callable[[Any, Any], Any]) -> Schedule:
    """Makes a schedule of `body(xp, step)`.

    The step arrives as np.float64 or a float64 array; a jax step keeps being an integer if it is one, since float32
    counts no further than 2**24.
    """

    def schedule(step: Any) -> Any:
        xp, steps = namespace(step), as_steps(step)
        return to_value(body(xp, steps if xp is jnp else np.asarray(steps, dtype=np.float64)[()]), step)

    schedule.__qualname__ = body.__qualname__  # for its repr: names the factory
    return schedule


def as_schedule(owner: str, argument: str, value: Schedule | Value) -> Schedule:
    """A schedule as it is, a number as the schedule that always has this value."""
    if callable(value):
        return value
    try:
        number = as_value(owner, argument, value)
    except TypeError as error:
        fix = "; make one per group" if isinstance(value, list | tuple) else ""
        raise TypeError(f"{owner}: {argument} must be a schedule or a number, got {value!r}{fix}") from error
    return formula(lambda xp, step: number)


def value_at(schedule: Schedule, step: float) -> Any:
    """A schedule's value at a concrete step as a Python float, or traced if what it is made of is."""
    value = schedule(step)
    return value if is_traced(value) else float(value)


def call_each(fn: Callable[[Any], Any], step: Any) -> Any:
    """Calls a user's function, which is written for one number, on a step or on each of an array of steps.

    It gets a Python int or float for a concrete step, and a scalar for a traced one.
    """
    if isinstance(step, jax.Array):
        return fn(step) if step.ndim == 0 else jnp.vectorize(fn)(step)
    if np.ndim(step) == 0:
        return fn(np.asarray(step).item())
    return as_array([fn(one) for one in step.ravel().tolist()]).reshape(step.shape)


def as_array(values: Sequence[Any]) -> Any:
    """Numbers as one array: float64, or in JAX's default float dtype if any is traced."""
    if namespace(None, *values) is jnp:
        return jnp.stack([jnp.asarray(value, dtype=float) for value in values])
    return np.asarray([float(value) for value in values], dtype=np.float64)


def where(condition: Any, value: Any, otherwise: Any) -> Any:
    """Either of two values, of which any may be traced."""
    return namespace(condition, value, otherwise).where(condition, value, otherwise)


def power(xp: Any, base: Any, exponent: Any) -> Any:
    """`base**exponent`.

    A float32 base is off by up to 6e-8, and its n-th power by n times that (0.6 % after 100,000 steps); its logarithm
    taken in float64 costs only the rounding of the product. A traced base has no more digits to give.
    """
    if is_traced(base):
        return jnp.power(base, exponent)
    if xp is np or base <= 0.0:
        return xp.power(float(base), exponent)
    return xp.exp(exponent * math.log(base))


def progress(step: Any, length: Any) -> Any:
    """The share of `length` steps that is done: exactly 0 at step 0 and exactly 1 from step `length` on."""
    divisor = jnp.where(length == 0, 1.0, length) if is_traced(length) else length or 1
    return where(step < length, step / divisor, 1.0)


def lerp(start: Any, end: Any, share: Any) -> Any:
    """From `start` at share 0 to `end` at share 1, both exactly."""
    return (1.0 - share) * start + share * end


def count_reached(xp: Any, step: Any, boundaries: Sequence[float]) -> Any:
    """How many of the boundaries are at or before each step: `bisect_right` for arrays."""
    return xp.sum(xp.asarray(step)[..., None] >= xp.asarray(boundaries), axis=-1)
