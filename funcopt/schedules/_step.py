"""Schedules that decay by a constant factor: every step, every `step_size` steps, or at milestones."""

from collections.abc import Iterable
from typing import Any

from funcopt import _checks
from funcopt.kinds import Schedule
from funcopt.schedules._arguments import Value, as_length, as_value
from funcopt.schedules._formula import count_reached, formula, power


def step_lr(base_lr: Value, step_size: int, gamma: Value = 0.1) -> Schedule:
    """Multiplies by `gamma` every `step_size` steps: `base_lr * gamma**(step // step_size)`.

    Args:
        base_lr: value at step 0.
        step_size: steps between two decays, > 0.
        gamma: factor of each decay, torch's default.

    Returns:
        The schedule of `torch.optim.lr_scheduler.StepLR`.

    Raises:
        ValueError: if `step_size` is not positive.

    Example:
        >>> step_lr(1.0, step_size=30)([0, 1, 29, 30, 59, 60, 61]).round(9).tolist()
        [1.0, 1.0, 1.0, 0.1, 0.1, 0.01, 0.01]
    """
    base_lr = as_value("step_lr", "base_lr", base_lr)
    step_size = as_length("step_lr", "step_size", step_size, _checks.POSITIVE)
    gamma = as_value("step_lr", "gamma", gamma)
    return formula(lambda xp, step: base_lr * power(xp, gamma, step // step_size))


def multi_step_lr(base_lr: Value, milestones: Iterable[int], gamma: Value = 0.1) -> Schedule:
    """Multiplies by `gamma` at each milestone: `base_lr * gamma**(number of milestones <= step)`.

    Args:
        base_lr: value before the first milestone.
        milestones: steps at which to decay, >= 0, increasing; one given twice counts twice.
        gamma: factor of each decay, torch's default.

    Returns:
        The schedule of `torch.optim.lr_scheduler.MultiStepLR`.

    Raises:
        ValueError: if milestones are negative or unsorted (torch's documentation forbids it, its code sorts).

    Example:
        >>> multi_step_lr(1.0, milestones=[30, 80])([0, 1, 29, 30, 79, 80, 81]).round(9).tolist()
        [1.0, 1.0, 1.0, 0.1, 0.1, 0.01, 0.01]
    """
    base_lr = as_value("multi_step_lr", "base_lr", base_lr)
    boundaries = check_milestones("multi_step_lr", milestones)
    gamma = as_value("multi_step_lr", "gamma", gamma)
    return formula(lambda xp, step: base_lr * power(xp, gamma, count_reached(xp, step, boundaries)))


def exponential_lr(base_lr: Value, gamma: Value) -> Schedule:
    """Multiplies by `gamma` at every step: `base_lr * gamma**step`.

    Args:
        base_lr: value at step 0.
        gamma: factor per step.

    Returns:
        The schedule of `torch.optim.lr_scheduler.ExponentialLR`.

    Example:
        >>> exponential_lr(1.0, gamma=0.5)([0, 1, 2, 10]).tolist()
        [1.0, 0.5, 0.25, 0.0009765625]
    """
    base_lr = as_value("exponential_lr", "base_lr", base_lr)
    gamma = as_value("exponential_lr", "gamma", gamma)
    return formula(lambda xp, step: base_lr * power(xp, gamma, step))


def check_milestones(owner: str, milestones: Iterable[int]) -> list[Any]:
    """The milestones as a list, checked to be steps in order."""
    if not isinstance(milestones, Iterable) or getattr(milestones, "ndim", 1) == 0:
        raise TypeError(f"{owner}: milestones must be a sequence of steps, got {milestones!r}")
    boundaries = [
        as_length(owner, f"milestones[{i}]", milestone, _checks.NON_NEGATIVE) for i, milestone in enumerate(milestones)
    ]
    if boundaries != sorted(boundaries):
        _checks.fail(owner, "milestones", "in increasing order", boundaries)
    return boundaries
