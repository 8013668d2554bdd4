"""Seeing a schedule before a run: its boundaries as a table, and the usual mistakes."""

import warnings
from typing import NamedTuple

import numpy as np

from funcopt import _checks
from funcopt._checks import is_traced
from funcopt.kinds import Schedule
from funcopt.schedules._arguments import as_length
from funcopt.schedules._formula import as_schedule

_JUMP = 3.0  # a change this many times its neighbours is a jump; the steepest start of a shape, "sqrt", has 2.4
_NEGLIGIBLE = 0.01  # of the range: what is missed by less is no mistake
_HORIZON = 10  # how many times the length of the run a minimum is looked for


class Description(NamedTuple):
    """What `describe` found; printing it shows the table and the problems."""

    rows: list[tuple[int, float]]  # (step, value) at every boundary; the last one is one beyond the last update
    problems: list[str]  # what is usually a mistake, a sentence each

    def __str__(self) -> str:
        width = max(len("step"), *(len(str(step)) for step, _ in self.rows))
        table = [f"{'step':>{width}}  value", *(f"{step:>{width}}  {value:.6g}" for step, value in self.rows)]
        return "\n".join([*table, *(f"! {problem}" for problem in self.problems)])


def describe(schedule: Schedule, steps: int) -> Description:
    """Tabulates a schedule at its boundaries and warns of what is usually a mistake.

    Boundaries are steps 0 and 1, the ones where it turns, levels off, starts to move or jumps, the last one and one
    beyond. Mistakes are values that are negative or not finite, a minimum that lies after the end of the run, and a
    jump at the end of a warm-up.

    Args:
        schedule: any schedule that takes an array of steps.
        steps: number of updates in the run, >= 1.

    Returns:
        The table and the problems; each problem is also a `UserWarning`.

    Raises:
        ValueError: if `steps` is less than 1.

    Example:
        >>> from funcopt.schedules import warmup_cosine
        >>> describe(warmup_cosine(1.0, warmup_steps=4, total_steps=12), steps=20).rows
        [(0, 0.0), (1, 0.25), (4, 1.0), (12, 0.0), (19, 0.0), (20, 0.0)]
    """
    inner = as_schedule("describe", "schedule", schedule)
    steps = int(as_length("describe", "steps", steps, _checks.AT_LEAST_ONE))
    values = values_at("describe", inner, np.arange(steps + 1))
    rows = [(int(step), float(values[step])) for step in _boundaries(values)]
    problems = _find_problems(inner, values)
    for problem in problems:
        warnings.warn(problem, UserWarning, stacklevel=2)
    return Description(rows, problems)


def values_at(owner: str, schedule: Schedule, steps: np.ndarray) -> np.ndarray:
    """A schedule's values as numbers."""
    values = schedule(steps)
    if is_traced(values):
        raise TypeError(
            f"{owner}: schedule must have values that are known, got {values!r}; make it outside of jit, vmap and grad"
        )
    return np.asarray(values, dtype=np.float64)


def _is_jump(values: np.ndarray) -> np.ndarray:
    """Which changes to the next value are much larger than the ones before and after them."""
    size = np.abs(np.diff(values))
    neighbours = np.maximum(np.append(0.0, size[:-1]), np.append(size[1:], 0.0))
    return (size > _JUMP * neighbours) & (size > _NEGLIGIBLE * np.ptp(values))


def _boundaries(values: np.ndarray) -> list[int]:
    change = np.diff(values)
    rounding = 1e-12 * np.maximum(np.abs(values[1:]), np.abs(values[:-1]))
    trend = np.sign(np.where(np.abs(change) > rounding, change, 0.0))
    turns = np.flatnonzero(np.diff(trend)) + 1
    jumps = np.flatnonzero(_is_jump(values))
    last = len(values) - 1
    return sorted({0, min(1, last), *turns.tolist(), *jumps.tolist(), *(jumps + 1).tolist(), last - 1, last})


def _find_problems(schedule: Schedule, values: np.ndarray) -> list[str]:
    used = values[:-1]
    if not np.isfinite(used).all():
        return [f"the value is not finite at step {np.flatnonzero(~np.isfinite(used))[0]}"]
    problems = []
    if used.min() < 0.0:
        step = int(np.flatnonzero(used < 0.0)[0])
        problems.append(f"the value is negative at step {step} ({used[step]:.6g})")
    problems += _find_missed_minimum(schedule, values) + _find_warmup_jump(values)
    return problems


def _find_missed_minimum(schedule: Schedule, values: np.ndarray) -> list[str]:
    """A schedule that falls at the end of the run and comes to its minimum later: too long, or in another unit."""
    steps = len(values) - 1
    if steps < 2 or not values[-3] > values[-2] > values[-1]:
        return []
    later = np.unique(np.append(np.arange(steps, 2 * steps), np.linspace(2 * steps, _HORIZON * steps, 1000).round()))
    beyond = values_at("describe", schedule, later)
    lowest = int(np.argmin(beyond))
    # One that falls for ever, such as an exponential, has no minimum to reach; and schedules of n steps usually have
    # theirs at step n, one beyond the last update.
    if lowest in (0, len(beyond) - 1) or values[-2] - beyond[lowest] <= _NEGLIGIBLE * (values.max() - beyond[lowest]):
        return []
    when = int(later[lowest])
    return [f"the minimum {beyond[lowest]:.6g} is reached at step {when} only; the last update uses {values[-2]:.6g}"]


def _find_warmup_jump(values: np.ndarray) -> list[str]:
    rising = np.diff(values) > 0.0
    end = len(rising) if rising.all() else int(np.argmin(rising))
    jumps = np.flatnonzero(_is_jump(values))
    # Either the last rise is too steep, or what follows the warm-up starts elsewhere.
    return [
        f"the value jumps at the end of the warm-up, from {values[i]:.6g} at step {i} to {values[i + 1]:.6g}"
        for i in jumps.tolist()
        if end > 1 and i in (end - 1, end)
    ]
