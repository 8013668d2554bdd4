"""The ways from one value to another, and the schedule that takes one of them: the material of warm-ups and cool-downs.

A shape is a function from the share of the steps that is done, in [0, 1], to the share of the way that is covered.
"""

import math
from collections.abc import Callable
from typing import Any, Literal, TypeAlias

import jax.numpy as jnp
import numpy as np

from funcopt import _checks
from funcopt._checks import is_traced
from funcopt.kinds import Schedule
from funcopt.schedules._arguments import Value, as_length, as_value
from funcopt.schedules._formula import call_each, formula, namespace, progress

Shape: TypeAlias = Literal["linear", "cosine", "exponential", "constant", "sqrt", "square"] | Callable[[Any], Any]


def _sqrt(xp: Any, x: Any) -> Any:
    """The square root, with 0 for its derivative at 0: nothing moves there, and infinity would spread as NaN."""
    return xp.sqrt(x) if xp is np else jnp.where(x > 0.0, jnp.sqrt(jnp.where(x > 0.0, x, 1.0)), 0.0)


_SHARES: dict[str, Callable[[Any, Any], tuple[Any, Any]]] = {
    "linear": lambda xp, x: (1.0 - x, x),
    "cosine": lambda xp, x: ((1.0 + xp.cos(math.pi * x)) / 2.0, (1.0 - xp.cos(math.pi * x)) / 2.0),
    "constant": lambda xp, x: (xp.where(x < 1.0, 1.0, 0.0), xp.where(x < 1.0, 0.0, 1.0)),
    "sqrt": lambda xp, x: (1.0 - _sqrt(xp, x), _sqrt(xp, x)),
    "square": lambda xp, x: (1.0 - x * x, x * x),
}
"""By name: the share of the way that remains and the share that is covered, each without the other's rounding."""


def ramp(start_value: Value, end_value: Value, steps: float, shape: Shape = "linear") -> Schedule:
    """Moves from one value to another in a number of steps and stays there.

    Args:
        start_value: value at step 0.
        end_value: value from step `steps` on.
        steps: number of steps from one to the other, >= 0.
        shape: the way. "linear"; "cosine" (half a period); "exponential" (constant ratio, so both values must be
            positive); "constant" (stays at the start, then jumps); "sqrt" and "square" (that power of the share of
            steps done); or a function from the share of steps done to the share of the way covered, both in [0, 1],
            made of operators only or of `jax.numpy` functions.

    Returns:
        The schedule.

    Raises:
        ValueError: for an unknown shape, negative steps, or an exponential way from, to or across 0.

    Example:
        >>> ramp(1.0, 0.25, steps=4, shape="exponential")([0, 2, 4, 5]).tolist()
        [1.0, 0.5, 0.25, 0.25]
    """
    start_value = as_value("ramp", "start_value", start_value)
    end_value = as_value("ramp", "end_value", end_value)
    steps = as_length("ramp", "steps", steps, _checks.NON_NEGATIVE)
    check_shape("ramp", shape, start_value=start_value, end_value=end_value)
    return formula(lambda xp, step: travel(progress(step, steps), start_value, end_value, shape))


def check_shape(owner: str, shape: Shape, **values: Any) -> None:
    """Checks that a shape is a known name or a function, and that it can lie between the values."""
    if not callable(shape) and shape not in (*_SHARES, "exponential"):
        _checks.fail(owner, "shape", f"one of {[*_SHARES, 'exponential']} or a function", shape)
    for argument, value in values.items():
        if shape == "exponential" and not is_traced(value) and value <= 0.0:
            _checks.fail(owner, argument, "> 0 for the exponential shape", value)


def travel(share: Any, start: Any, end: Any, shape: Shape) -> Any:
    """The value after a share of the steps from `start` to `end`, exactly these at the shares 0 and 1."""
    if shape == "exponential":
        return start ** (1.0 - share) * end**share
    if callable(shape):
        covered = call_each(shape, share)
        return (1.0 - covered) * start + covered * end
    remaining, covered = _SHARES[shape](namespace(share), share)
    return remaining * start + covered * end
