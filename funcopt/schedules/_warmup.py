"""Warm-ups and cool-downs: put in front of and behind any schedule, and the usual complete schedules made of them."""

from typing import Any

from funcopt import _checks
from funcopt.kinds import Schedule
from funcopt.schedules._arguments import Value, as_length, as_value
from funcopt.schedules._compose import join
from funcopt.schedules._formula import as_schedule, formula, namespace, value_at
from funcopt.schedules._shape import Shape, check_shape, ramp


def warmup(
    schedule: Schedule | Value,
    warmup_steps: int,
    *,
    start_factor: Value = 0.0,
    shape: Shape = "linear",
    restart: bool = True,
) -> Schedule:
    """Puts a warm-up in front of a schedule; at step `warmup_steps` it has reached the schedule's own value.

    Args:
        schedule: what follows; a number is a constant.
        warmup_steps: length of the warm-up, >= 0; with 0 there is none.
        start_factor: value at step 0 as a part of the value that the warm-up leads to, >= 0.
        shape: the way, see `ramp`.
        restart: whether the schedule starts at the end of the warm-up (default), or at step 0 with the warm-up laid
            over its first steps; either way there is no jump.

    Returns:
        The schedule.

    Raises:
        ValueError: for a negative argument, an unknown shape, or an exponential one from 0.

    Example:
        >>> warmup(1.0, 4)([0, 1, 3, 4, 5]).tolist()
        [0.0, 0.25, 0.75, 1.0, 1.0]
    """
    after = as_schedule("warmup", "schedule", schedule)
    warmup_steps = as_length("warmup", "warmup_steps", warmup_steps, _checks.NON_NEGATIVE)
    start_factor = as_value("warmup", "start_factor", start_factor, _checks.NON_NEGATIVE)
    check_shape("warmup", shape, start_factor=start_factor)
    peak = value_at(after, 0 if restart else warmup_steps)
    return join([ramp(start_factor * peak, peak, warmup_steps, shape), after], [warmup_steps], restart=restart)


def cooldown(
    schedule: Schedule | Value, start_step: int, cooldown_steps: int, *, end_lr: Value = 0.0, shape: Shape = "linear"
) -> Schedule:
    """Ends a schedule: from its value at `start_step` down to `end_lr`, and constant from there.

    Args:
        schedule: what comes before; a number is a constant.
        start_step: step at which the cool-down begins, >= 0.
        cooldown_steps: its length, >= 0.
        end_lr: value from step `start_step + cooldown_steps` on.
        shape: the way, see `ramp`; "sqrt" is the "1-sqrt" of Haegele et al. (2024).

    Returns:
        The schedule.

    Raises:
        ValueError: for a negative number of steps, an unknown shape, or an exponential one to 0.

    Example:
        >>> cooldown(1.0, start_step=6, cooldown_steps=4)([0, 6, 7, 9, 10, 11]).tolist()
        [1.0, 1.0, 0.75, 0.25, 0.0, 0.0]
    """
    before = as_schedule("cooldown", "schedule", schedule)
    start_step = as_length("cooldown", "start_step", start_step, _checks.NON_NEGATIVE)
    cooldown_steps = as_length("cooldown", "cooldown_steps", cooldown_steps, _checks.NON_NEGATIVE)
    end_lr = as_value("cooldown", "end_lr", end_lr)
    check_shape("cooldown", shape, end_lr=end_lr)
    return join([before, ramp(value_at(before, start_step), end_lr, cooldown_steps, shape)], [start_step])


def warmup_cosine(
    base_lr: Value, warmup_steps: int, total_steps: int, end_lr: Value = 0.0, start_factor: Value = 0.0
) -> Schedule:
    """A linear warm-up, then half a cosine, then constant.

    Args:
        base_lr: peak, reached at step `warmup_steps`.
        warmup_steps: length of the warm-up, >= 0.
        total_steps: step at which `end_lr` is reached, > `warmup_steps`.
        end_lr: value from step `total_steps` on.
        start_factor: value at step 0 as a part of the peak, >= 0.

    Returns:
        The schedule.

    Raises:
        ValueError: for a negative number of steps, or if no steps are left after the warm-up.

    Example:
        >>> schedule = warmup_cosine(1.0, warmup_steps=4, total_steps=12, end_lr=0.1)
        >>> schedule([0, 1, 3, 4, 8, 12, 13]).round(9).tolist()
        [0.0, 0.25, 0.75, 1.0, 0.55, 0.1, 0.1]
    """
    base_lr = as_value("warmup_cosine", "base_lr", base_lr)
    warmup_steps = as_length("warmup_cosine", "warmup_steps", warmup_steps, _checks.NON_NEGATIVE)
    total_steps = as_length("warmup_cosine", "total_steps", total_steps, _checks.POSITIVE)
    end_lr = as_value("warmup_cosine", "end_lr", end_lr)
    start_factor = as_value("warmup_cosine", "start_factor", start_factor, _checks.NON_NEGATIVE)
    if total_steps <= warmup_steps:
        _checks.fail("warmup_cosine", "total_steps", f"> warmup_steps ({warmup_steps})", total_steps)
    return warmup(ramp(base_lr, end_lr, total_steps - warmup_steps, "cosine"), warmup_steps, start_factor=start_factor)


def wsd(
    base_lr: Value,
    warmup_steps: int,
    stable_steps: int,
    decay_steps: int,
    *,
    end_lr: Value = 0.0,
    start_factor: Value = 0.0,
    shape: Shape = "linear",
) -> Schedule:
    """Warm-up, stable, decay (Hu et al., 2024, MiniCPM): up on a line, constant, down, constant.

    Args:
        base_lr: value of the constant part.
        warmup_steps: length of the warm-up, >= 0.
        stable_steps: length of the constant part, >= 0.
        decay_steps: length of the cool-down, >= 0.
        end_lr: value after the three parts.
        start_factor: value at step 0 as a part of `base_lr`, >= 0.
        shape: the way down, see `ramp`.

    Returns:
        The schedule.

    Raises:
        ValueError: for a negative number of steps, an unknown shape, or an exponential one to 0.

    Example:
        >>> wsd(1.0, warmup_steps=2, stable_steps=4, decay_steps=4)([0, 1, 2, 6, 8, 10, 11]).tolist()
        [0.0, 0.5, 1.0, 1.0, 0.5, 0.0, 0.0]
    """
    base_lr = as_value("wsd", "base_lr", base_lr)
    warmup_steps = as_length("wsd", "warmup_steps", warmup_steps, _checks.NON_NEGATIVE)
    stable_steps = as_length("wsd", "stable_steps", stable_steps, _checks.NON_NEGATIVE)
    decay_steps = as_length("wsd", "decay_steps", decay_steps, _checks.NON_NEGATIVE)
    end_lr = as_value("wsd", "end_lr", end_lr)
    start_factor = as_value("wsd", "start_factor", start_factor, _checks.NON_NEGATIVE)
    check_shape("wsd", shape, base_lr=base_lr, end_lr=end_lr)
    stable = warmup(base_lr, warmup_steps, start_factor=start_factor)
    return cooldown(stable, warmup_steps + stable_steps, decay_steps, end_lr=end_lr, shape=shape)


def inverse_sqrt(
    base_lr: Value, warmup_steps: int, *, timescale: Value | None = None, start_factor: Value = 0.0
) -> Schedule:
    """A linear warm-up, then decay with the inverse square root of the step (Vaswani et al., 2017).

    After the warm-up `base_lr / sqrt(1 + (step - warmup_steps) / timescale)`.

    Args:
        base_lr: peak, reached at step `warmup_steps`.
        warmup_steps: length of the warm-up, >= 0.
        timescale: steps after the warm-up until the value is `base_lr / sqrt(2)`, > 0. By default `warmup_steps`,
            which makes it `base_lr * sqrt(warmup_steps / step)` as in the paper.
        start_factor: value at step 0 as a part of the peak, >= 0.

    Returns:
        The schedule.

    Raises:
        ValueError: for a negative argument, or if both `warmup_steps` and `timescale` are missing.

    Example:
        >>> inverse_sqrt(1.0, warmup_steps=4)([0, 1, 4, 16, 64]).tolist()
        [0.0, 0.25, 1.0, 0.5, 0.25]
    """
    base_lr = as_value("inverse_sqrt", "base_lr", base_lr)
    warmup_steps = as_length("inverse_sqrt", "warmup_steps", warmup_steps, _checks.NON_NEGATIVE)
    start_factor = as_value("inverse_sqrt", "start_factor", start_factor, _checks.NON_NEGATIVE)
    scale = warmup_steps if timescale is None else timescale
    scale = as_value("inverse_sqrt", "timescale (default warmup_steps)", scale, _checks.POSITIVE)

    def decay(xp: Any, step: Any) -> Any:
        del xp  # that of the step alone
        ratio = 1.0 + step / scale
        return base_lr / namespace(ratio).sqrt(ratio)

    return warmup(formula(decay), warmup_steps, start_factor=start_factor)
