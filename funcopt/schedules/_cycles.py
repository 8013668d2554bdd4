"""Schedules that start again: cycles that may grow longer, lower and bend, and torch's warm restarts."""

from typing import Any

from funcopt import _checks
from funcopt.kinds import Schedule
from funcopt.schedules._arguments import Value, as_count, as_length, as_value
from funcopt.schedules._formula import count_reached, formula, power, where
from funcopt.schedules._shape import Shape, check_shape, travel

_LAST_STEP = 2**31 - 1  # steps are counted in int32


def cycles(
    base_lr: Value,
    cycle_steps: float,
    end_lr: Value = 0.0,
    *,
    shape: Shape = "cosine",
    cycle_mul: float = 1.0,
    cycle_decay: Value = 1.0,
    cycle_limit: int | None = None,
    k_decay: Value = 1.0,
) -> Schedule:
    """Goes from a peak to `end_lr` again and again.

    In cycle i, which has `cycle_steps * cycle_mul**i` steps, the way from `base_lr * cycle_decay**i` to `end_lr` after
    a share x of the steps is that of `shape` at `x**k_decay` (Zhang and Li, 2020, for the exponent).

    Args:
        base_lr: peak of the first cycle.
        cycle_steps: length of the first cycle, > 0.
        end_lr: value that each cycle leads to.
        shape: the way, see `ramp`; timm's polynomial is `lambda x: 1 - (1 - x) ** power`.
        cycle_mul: ratio of the lengths of successive cycles, >= 1.
        cycle_decay: ratio of the peaks of successive cycles.
        cycle_limit: number of cycles, >= 1, after which the value is `end_lr`; without limit by default (timm's is 1).
        k_decay: exponent of the share of steps done, > 0; above 1 stays longer near the peak.

    Returns:
        The schedule of timm's `CosineLRScheduler` (and by `shape` of its relatives) without its warm-up.

    Raises:
        ValueError: for an argument outside its range.

    Example:
        >>> schedule = cycles(1.0, 4, cycle_mul=2.0, cycle_decay=0.5, cycle_limit=2)
        >>> schedule([0, 2, 3, 4, 8, 11, 12, 13]).round(3).tolist()
        [1.0, 0.5, 0.146, 0.5, 0.25, 0.019, 0.0, 0.0]
    """
    base_lr = as_value("cycles", "base_lr", base_lr)
    cycle_steps = as_length("cycles", "cycle_steps", cycle_steps, _checks.POSITIVE)
    end_lr = as_value("cycles", "end_lr", end_lr)
    check_shape("cycles", shape, base_lr=base_lr, end_lr=end_lr)
    cycle_mul = as_length("cycles", "cycle_mul", cycle_mul, _checks.AT_LEAST_ONE)
    cycle_decay = as_value("cycles", "cycle_decay", cycle_decay, _checks.POSITIVE)
    if cycle_limit is not None:
        cycle_limit = as_length("cycles", "cycle_limit", cycle_limit, _checks.AT_LEAST_ONE)
    k_decay = as_value("cycles", "k_decay", k_decay, _checks.POSITIVE)
    return _cycles(base_lr, cycle_steps, end_lr, shape, cycle_mul, cycle_decay, cycle_limit, k_decay)


def cosine_annealing_warm_restarts(base_lr: Value, T_0: int, T_mult: int = 1, eta_min: Value = 0.0) -> Schedule:
    """Half a cosine from `base_lr` to `eta_min`, again and again (Loshchilov and Hutter, 2017, SGDR).

    Args:
        base_lr: value at each restart.
        T_0: length of the first cycle, an integer > 0. Steps may be fractions of it, see `by_epoch`.
        T_mult: ratio of the lengths of successive cycles, an integer >= 1, torch's default.
        eta_min: value that each cycle leads to, torch's default.

    Returns:
        The schedule of `torch.optim.lr_scheduler.CosineAnnealingWarmRestarts`, exact at every restart: where torch is
        given the epoch, it finds the cycle by a logarithm that may round down, and returns `eta_min` there.

    Raises:
        ValueError: if `T_0` or `T_mult` is not an integer in its range.

    Example:
        >>> cosine_annealing_warm_restarts(1.0, T_0=4, T_mult=2)([0, 2, 4, 8, 12, 12.5]).round(3).tolist()
        [1.0, 0.5, 1.0, 0.5, 1.0, 0.998]
    """
    owner = "cosine_annealing_warm_restarts"
    base_lr = as_value(owner, "base_lr", base_lr)
    T_0, T_mult = as_count(owner, "T_0", T_0), as_count(owner, "T_mult", T_mult)
    eta_min = as_value(owner, "eta_min", eta_min)
    return _cycles(base_lr, T_0, eta_min, "cosine", T_mult, 1.0, None, 1.0)


def _cycles(
    base_lr: Value,
    cycle_steps: float,
    end_lr: Value,
    shape: Shape,
    cycle_mul: float,
    cycle_decay: Value,
    cycle_limit: int | None,
    k_decay: Value,
) -> Schedule:
    starts, lengths = [cycle_steps * 0], [cycle_steps]
    while cycle_mul > 1 and starts[-1] + lengths[-1] <= _LAST_STEP and len(starts) != cycle_limit:
        starts.append(starts[-1] + lengths[-1])
        lengths.append(lengths[-1] * cycle_mul)

    def body(xp: Any, step: Any) -> Any:
        if cycle_mul > 1:
            cycle = count_reached(xp, step, starts) - 1
            done = (step - xp.asarray(starts)[cycle]) / xp.asarray(lengths, dtype=float)[cycle]
        else:
            cycle = step // cycle_steps
            done = step % cycle_steps / cycle_steps
        value = travel(xp.minimum(done, 1.0) ** k_decay, base_lr * power(xp, cycle_decay, cycle), end_lr, shape)
        if cycle_limit is None:
            return value
        total = starts[-1] + lengths[-1] if cycle_mul > 1 else cycle_limit * cycle_steps
        return where(step < total, value, end_lr)

    return formula(body)
