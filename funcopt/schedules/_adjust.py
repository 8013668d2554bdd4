"""Schedules with a scale, bounds or another unit of time put on them."""

from typing import Any

from funcopt import _checks
from funcopt._checks import is_traced
from funcopt.kinds import Schedule
from funcopt.schedules._arguments import Value, as_count, as_value
from funcopt.schedules._formula import as_schedule, as_steps, namespace, to_value


def scale(schedule: Schedule | Value, factor: Schedule | Value) -> Schedule:
    """Multiplies a schedule, its floor included.

    Args:
        schedule: what to multiply; a number is a constant.
        factor: a number, such as a group's multiplier, or another schedule.

    Returns:
        The schedule `schedule(step) * factor(step)`.

    Raises:
        TypeError: if an argument is neither a function nor a number.

    Example:
        >>> floored = clip(lambda step: 0.5**step, floor=0.25)
        >>> [float(scale(floored, 0.5)(step)) for step in (0, 1, 2, 3)]
        [0.5, 0.25, 0.125, 0.125]
    """
    inner, multiplier = as_schedule("scale", "schedule", schedule), as_schedule("scale", "factor", factor)
    return lambda step: to_value(inner(as_steps(step)) * multiplier(as_steps(step)), step)


def clip(schedule: Schedule | Value, floor: Value | None = None, ceiling: Value | None = None) -> Schedule:
    """Keeps a schedule within bounds.

    Args:
        schedule: what to bound; a number is a constant.
        floor: smallest value, `None` for none. To let it follow a group's multiplier, `scale` the result.
        ceiling: largest value, `None` for none, >= `floor`.

    Returns:
        The schedule.

    Raises:
        ValueError: without a bound, or if they are in the wrong order.

    Example:
        >>> clip(lambda step: 1.0 - step / 4, floor=0.25)(3.5)
        np.float64(0.25)
    """
    inner = as_schedule("clip", "schedule", schedule)
    if floor is None and ceiling is None:
        _checks.fail("clip", "floor", "given, or ceiling", floor)
    lowest: Any = None if floor is None else as_value("clip", "floor", floor)
    highest: Any = None if ceiling is None else as_value("clip", "ceiling", ceiling)
    unknown = any(bound is None or is_traced(bound) for bound in (lowest, highest))
    if not unknown and highest < lowest:
        _checks.fail("clip", "ceiling", f">= floor ({lowest})", highest)

    def clipped(step: Any) -> Any:
        value = inner(as_steps(step))
        return to_value(namespace(step, value, lowest, highest).clip(value, lowest, highest), step)

    return clipped


def by_epoch(schedule: Schedule, steps_per_epoch: int, *, fractional: bool = False) -> Schedule:
    """Lets a schedule that counts epochs be read by the count of updates.

    Args:
        schedule: function of the epoch.
        steps_per_epoch: updates per epoch, an integer >= 1.
        fractional: whether the epoch passes continuously, as torch allows for its warm restarts
            (`scheduler.step(epoch + i / iters)`); by default it is the number of complete epochs.

    Returns:
        The schedule as a function of the step. Complete epochs are exact, so a restart is not missed by rounding.

    Raises:
        ValueError: if `steps_per_epoch` is not a positive integer.

    Example:
        >>> per_update = by_epoch(lambda epoch: 0.5**epoch, steps_per_epoch=100)
        >>> [float(per_update(step)) for step in (0, 1, 99, 100, 200)]
        [1.0, 1.0, 1.0, 0.5, 0.25]
    """
    inner = as_schedule("by_epoch", "schedule", schedule)
    steps_per_epoch = as_count("by_epoch", "steps_per_epoch", steps_per_epoch)
    _checks.check_flag("by_epoch", "fractional", fractional)

    def at_step(step: Any) -> Any:
        steps = as_steps(step)
        epoch = steps // steps_per_epoch
        # steps / steps_per_epoch would not do: XLA may multiply by the reciprocal and miss the start of an epoch.
        return to_value(inner(epoch + steps % steps_per_epoch / steps_per_epoch if fractional else epoch), step)

    return at_step
