"""Schedules made of schedules. Members are any functions of the step, optax's too; a number is a constant schedule."""

import math
from bisect import bisect_right
from collections.abc import Iterable, Sequence
from typing import Any

import jax
import numpy as np

from funcopt import _checks
from funcopt._checks import is_traced
from funcopt.kinds import Schedule
from funcopt.schedules._arguments import Value, as_value
from funcopt.schedules._formula import as_schedule, as_steps, namespace, to_value, value_at, where
from funcopt.schedules._step import check_milestones


def join(
    schedules: Sequence[Schedule | Value],
    milestones: Iterable[int],
    *,
    restart: bool = True,
    continuous: bool = False,
) -> Schedule:
    """Runs schedules one after another.

    Args:
        schedules: the members, in order; a number is a constant.
        milestones: the steps at which the second, third, ... member takes over, >= 0, increasing.
        restart: whether each member counts from its own start (default, as in torch) or from step 0 of the whole.
        continuous: whether each member but the first is scaled to start where the one before it has come to.

    Returns:
        The schedule. A single step evaluates only the member whose turn it is; arrays and traced steps evaluate all
        of them, each at steps of its own turn (its end included).

    Raises:
        ValueError: without members, with another number of milestones than members less one, with unsorted or
            negative milestones, or if a member that starts at 0 should be continuous.
        TypeError: if a member is neither a function nor a number.

    Example:
        >>> join([1.0, lambda step: 0.5**step], milestones=[2])([0, 1, 2, 3, 4]).tolist()
        [1.0, 1.0, 1.0, 0.5, 0.25]
    """
    return _join("join", schedules, milestones, restart, continuous)


def sequential_lr(schedules: Sequence[Schedule | Value], milestones: Iterable[int]) -> Schedule:
    """Runs schedules one after another, each counting from its own start: `join` by torch's name.

    Args:
        schedules: the members, in order.
        milestones: the steps at which the second, third, ... member takes over, >= 0, increasing.

    Returns:
        The schedule of `torch.optim.lr_scheduler.SequentialLR`, as documented: torch leaves the milestones unchecked,
        runs one step ahead where members are themselves sequential, and passes a cyclic member's base value on.

    Raises:
        ValueError: without members, with another number of milestones than members less one, or with unsorted or
            negative milestones.
        TypeError: if a member is neither a function nor a number.

    Example:
        >>> warm = lambda step: (step + 1) / 4
        >>> sequential_lr([warm, lambda step: 0.5**step], milestones=[3])([0, 1, 2, 3, 4]).tolist()
        [0.25, 0.5, 0.75, 1.0, 0.5]
    """
    return _join("sequential_lr", schedules, milestones, restart=True, continuous=False)


def chained_scheduler(base_lr: Value, schedules: Sequence[Schedule | Value]) -> Schedule:
    """Multiplies the factors of several schedules: `base_lr * schedules[0](step) * schedules[1](step) * ...`.

    Args:
        base_lr: value that the factors multiply.
        schedules: the members, made with a base value of 1.

    Returns:
        The schedule of `torch.optim.lr_scheduler.ChainedScheduler` over members that multiply, for which it is meant.
        In torch, those that compute their value from the base (`LambdaLR`, the cyclic ones, a minimum other than 0)
        undo what stands before them.

    Raises:
        ValueError: without members.
        TypeError: if a member is neither a function nor a number.

    Example:
        >>> warm = lambda step: 0.5 if step < 2 else 1.0
        >>> [float(chained_scheduler(0.5, [warm, lambda step: 0.5**step])(step)) for step in (0, 1, 2, 3)]
        [0.25, 0.125, 0.125, 0.0625]
    """
    members = [as_schedule("chained_scheduler", f"schedules[{i}]", member) for i, member in enumerate(schedules)]
    if not members:
        _checks.fail("chained_scheduler", "schedules", "at least one schedule", members)
    base = as_value("chained_scheduler", "base_lr", base_lr)
    return lambda step: to_value(math.prod((member(as_steps(step)) for member in members), start=base), step)


def _join(
    owner: str, schedules: Sequence[Schedule | Value], milestones: Iterable[int], restart: bool, continuous: bool
) -> Schedule:
    members = [as_schedule(owner, f"schedules[{i}]", member) for i, member in enumerate(schedules)]
    boundaries = check_milestones(owner, milestones)
    if not members:
        _checks.fail(owner, "schedules", "at least one schedule", members)
    if len(boundaries) != len(members) - 1:
        _checks.fail(owner, "milestones", f"one fewer than the {len(members)} schedules", boundaries)
    starts = [0, *boundaries]
    offsets = starts if restart else [0] * len(starts)
    factors: list[Any] = [1.0] * len(members)
    if continuous:
        for i, boundary in enumerate(boundaries):
            first = value_at(members[i + 1], boundary - offsets[i + 1])
            if not is_traced(first) and first == 0.0:
                _checks.fail(owner, f"first value of schedules[{i + 1}]", "other than 0 to be continuous", first)
            factors[i + 1] = factors[i] * value_at(members[i], boundary - offsets[i]) / first

    def schedule(step: Any) -> Any:
        steps = as_steps(step)
        if not isinstance(steps, jax.Array | np.ndarray):
            i = bisect_right(boundaries, steps)
            return to_value(factors[i] * members[i](steps - offsets[i]), step)
        xp = namespace(steps)
        value: Any = 0.0
        ends = [*boundaries, None]
        for start, end, offset, factor, member in zip(starts, ends, offsets, factors, members, strict=True):
            value = where(steps >= start, factor * member(xp.clip(steps, start, end) - offset), value)
        return to_value(value, step)

    return schedule
