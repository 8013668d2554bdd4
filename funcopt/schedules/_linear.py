"""Schedules along a line or a power of it: constant and linear factors for the first steps, polynomial decay."""

from funcopt import _checks
from funcopt.kinds import Schedule
from funcopt.schedules._arguments import Value, as_length, as_value
from funcopt.schedules._formula import formula, lerp, progress, where


def constant_lr(base_lr: Value, factor: Value = 1.0 / 3, total_iters: int = 5) -> Schedule:
    """Multiplies by `factor` for the first `total_iters` steps: `base_lr * (factor if step < total_iters else 1)`.

    Args:
        base_lr: value after `total_iters` steps.
        factor: factor until then, in [0, 1], torch's default.
        total_iters: number of steps with the factor, >= 0, torch's default.

    Returns:
        The schedule of `torch.optim.lr_scheduler.ConstantLR`, by its closed form: torch's recursive form divides by a
        factor of 0, and keeps the factor for ever where `total_iters` is 0.

    Raises:
        ValueError: if `factor` is outside [0, 1].

    Example:
        >>> constant_lr(1.0, factor=0.5, total_iters=4)([0, 1, 3, 4, 5]).tolist()
        [0.5, 0.5, 0.5, 1.0, 1.0]
    """
    base_lr = as_value("constant_lr", "base_lr", base_lr)
    factor = as_value("constant_lr", "factor", factor, _checks.UNIT)
    total_iters = as_length("constant_lr", "total_iters", total_iters, _checks.NON_NEGATIVE)
    return formula(lambda xp, step: base_lr * where(step < total_iters, factor, 1.0))


def linear_lr(base_lr: Value, start_factor: Value = 1.0 / 3, end_factor: Value = 1.0, total_iters: int = 5) -> Schedule:
    """Multiplies by a factor that moves on a line over the first `total_iters` steps and then stays.

    Args:
        base_lr: value that the factors multiply.
        start_factor: factor at step 0, in (0, 1], torch's default; for a warm-up from 0 see `warmup`.
        end_factor: factor from step `total_iters` on, in [0, 1], torch's default.
        total_iters: number of steps from one to the other, >= 0, torch's default.

    Returns:
        The schedule of `torch.optim.lr_scheduler.LinearLR`; with `total_iters` 0 it is at the end at once, where
        torch stays at the start.

    Raises:
        ValueError: if a factor is outside its range.

    Example:
        >>> linear_lr(1.0, start_factor=0.5, total_iters=4)([0, 1, 3, 4, 5]).tolist()
        [0.5, 0.625, 0.875, 1.0, 1.0]
    """
    base_lr = as_value("linear_lr", "base_lr", base_lr)
    start_factor = as_value("linear_lr", "start_factor", start_factor, _checks.UNIT_HALF_OPEN_LEFT)
    end_factor = as_value("linear_lr", "end_factor", end_factor, _checks.UNIT)
    total_iters = as_length("linear_lr", "total_iters", total_iters, _checks.NON_NEGATIVE)
    return formula(lambda xp, step: base_lr * lerp(start_factor, end_factor, progress(step, total_iters)))


def polynomial_lr(base_lr: Value, total_iters: int = 5, power: Value = 1.0) -> Schedule:
    """Decays to 0 over `total_iters` steps: `base_lr * (1 - min(step / total_iters, 1))**power`.

    Args:
        base_lr: value at step 0.
        total_iters: number of steps until 0, > 0, torch's default.
        power: exponent, >= 0, torch's default.

    Returns:
        The schedule of `torch.optim.lr_scheduler.PolynomialLR`.

    Raises:
        ValueError: if `total_iters` is not positive (torch's closed form divides by it) or `power` is negative.

    Example:
        >>> polynomial_lr(1.0, total_iters=4, power=2.0)([0, 1, 2, 4, 5]).tolist()
        [1.0, 0.5625, 0.25, 0.0, 0.0]
    """
    base_lr = as_value("polynomial_lr", "base_lr", base_lr)
    total_iters = as_length("polynomial_lr", "total_iters", total_iters, _checks.POSITIVE)
    power = as_value("polynomial_lr", "power", power, _checks.NON_NEGATIVE)
    return formula(lambda xp, step: base_lr * (1.0 - progress(step, total_iters)) ** power)
