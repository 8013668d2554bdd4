"""Learning rate and momentum that move together, in opposite directions: cyclic and one-cycle policies (Smith)."""

import dataclasses
from collections.abc import Callable
from itertools import pairwise
from typing import Any, Literal

from funcopt import _checks
from funcopt._checks import is_traced
from funcopt.kinds import Schedule
from funcopt.schedules._arguments import Value, as_count, as_length, as_value
from funcopt.schedules._formula import call_each, formula, power, progress, where
from funcopt.schedules._lambda import check_function
from funcopt.schedules._shape import Shape, travel


@dataclasses.dataclass(frozen=True)
class CycledSchedule:
    """A schedule of the learning rate that has one of the momentum with it.

    It is itself the schedule of the learning rate: `sgd(lr=cycle, momentum=cycle.momentum)`, or
    `adam(lr=cycle, betas=(cycle.momentum, 0.999))`.
    """

    lr: Schedule
    momentum: Schedule | None  # None where the momentum is not cycled

    def __call__(self, step: Any) -> Any:
        return self.lr(step)


def cyclic_lr(
    base_lr: Value,
    max_lr: Value,
    step_size_up: float = 2000,
    step_size_down: float | None = None,
    mode: Literal["triangular", "triangular2", "exp_range"] = "triangular",
    gamma: Value = 1.0,
    scale_fn: Callable[[Any], Any] | None = None,
    scale_mode: Literal["cycle", "iterations"] = "cycle",
    cycle_momentum: bool = True,
    base_momentum: Value = 0.8,
    max_momentum: Value = 0.9,
) -> CycledSchedule:
    """Goes up and down between two values on straight lines, with a height that may shrink (Smith, 2017).

    Args:
        base_lr: value at the start of each cycle.
        max_lr: value at the peak of a cycle of full height.
        step_size_up: steps from the start of a cycle to its peak, > 0, torch's default.
        step_size_down: steps from the peak to the end, >= 0, `step_size_up` by default.
        mode: the height of each peak: "triangular" (full), "triangular2" (half of the one before), "exp_range"
            (`gamma**step`); not used where `scale_fn` is given.
        gamma: base of "exp_range", torch's default.
        scale_fn: the height as the user's function of the cycle's number, from 1, or of the step; gets a Python int or
            a traced one.
        scale_mode: which of the two `scale_fn` gets.
        cycle_momentum: whether the momentum moves too, down while the learning rate goes up.
        base_momentum: its value at the peak of a cycle of full height, torch's default.
        max_momentum: its value at the start of each cycle, torch's default.

    Returns:
        The schedules of `torch.optim.lr_scheduler.CyclicLR`.

    Raises:
        ValueError: for an unknown mode without `scale_fn`, or steps outside their range.

    Example:
        >>> cycle = cyclic_lr(0.1, 0.5, step_size_up=4, mode="triangular2")
        >>> cycle([0, 1, 4, 7, 8, 12]).round(9).tolist(), float(cycle.momentum(4))
        ([0.1, 0.2, 0.5, 0.2, 0.1, 0.3], 0.8)
    """
    base_lr, max_lr = as_value("cyclic_lr", "base_lr", base_lr), as_value("cyclic_lr", "max_lr", max_lr)
    gamma = as_value("cyclic_lr", "gamma", gamma)
    base_momentum = as_value("cyclic_lr", "base_momentum", base_momentum)
    max_momentum = as_value("cyclic_lr", "max_momentum", max_momentum)
    up = as_length("cyclic_lr", "step_size_up", step_size_up, _checks.POSITIVE)
    down = up if step_size_down is None else step_size_down
    down = as_length("cyclic_lr", "step_size_down", down, _checks.NON_NEGATIVE)
    _check_choice("cyclic_lr", "scale_mode", scale_mode, ("cycle", "iterations"))
    if scale_fn is None:
        _check_choice("cyclic_lr", "mode", mode, ("triangular", "triangular2", "exp_range"))
    else:
        check_function("cyclic_lr", "scale_fn", scale_fn)
    _checks.check_flag("cyclic_lr", "cycle_momentum", cycle_momentum)
    total = up + down

    def peak(xp: Any, step: Any) -> Any:
        if scale_fn is not None:
            return call_each(scale_fn, (step // total + 1 if scale_mode == "cycle" else step).astype(int))
        if mode == "exp_range":
            return power(xp, gamma, step)
        return power(xp, 0.5, step // total) if mode == "triangular2" else 1.0

    def between(start: Value, end: Value) -> Schedule:
        def body(xp: Any, step: Any) -> Any:
            position = step % total
            height = xp.where(position <= up, position / up, (total - position) / (down or 1)) * peak(xp, step)
            return start + (end - start) * height

        return formula(body)

    return CycledSchedule(between(base_lr, max_lr), between(max_momentum, base_momentum) if cycle_momentum else None)


def one_cycle_lr(
    max_lr: Value,
    total_steps: int | None = None,
    epochs: int | None = None,
    steps_per_epoch: int | None = None,
    pct_start: Value = 0.3,
    anneal_strategy: Literal["cos", "linear"] = "cos",
    cycle_momentum: bool = True,
    base_momentum: Value = 0.85,
    max_momentum: Value = 0.95,
    div_factor: Value = 25.0,
    final_div_factor: Value = 1e4,
    three_phase: bool = False,
) -> CycledSchedule:
    """Goes up to `max_lr` and down to almost 0, once (Smith and Topin, 2018, super-convergence).

    With the initial value `max_lr / div_factor` and the final value `max_lr / div_factor / final_div_factor`, the peak
    is at step `pct_start * total_steps - 1` and the end at `total_steps - 1`.

    Args:
        max_lr: peak.
        total_steps: number of steps, an integer > 0; or give `epochs` and `steps_per_epoch`.
        epochs: number of epochs, an integer > 0, not used where `total_steps` is given.
        steps_per_epoch: updates per epoch, an integer > 0.
        pct_start: share of the steps on the way up, a float in [0, 1], torch's default.
        anneal_strategy: the way: half a cosine, or a line.
        cycle_momentum: whether the momentum moves too, down while the learning rate goes up.
        base_momentum: its value at the peak, torch's default.
        max_momentum: its value at start and end, torch's default.
        div_factor: peak over initial value, > 0, torch's default.
        final_div_factor: initial over final value, > 0, torch's default.
        three_phase: whether to come down symmetrically to the initial value first, then to the final one.

    Returns:
        The schedules of `torch.optim.lr_scheduler.OneCycleLR`. After the last step they stay: torch extrapolates one
        step (on a line to a negative value) and raises from the next one on.

    Raises:
        ValueError: if the number of steps is missing or no positive integer, `pct_start` is no float in [0, 1] or puts
            the peak at step 0 (torch divides by 0 there), or the way is unknown.

    Example:
        >>> cycle = one_cycle_lr(1.0, total_steps=11, pct_start=3 / 11, anneal_strategy="linear")
        >>> cycle([0, 1, 2, 6, 10, 11]).round(6).tolist(), float(cycle.momentum(2))
        ([0.04, 0.52, 1.0, 0.500002, 4e-06, 4e-06], 0.85)
    """
    steps = _total_steps(total_steps, epochs, steps_per_epoch)
    max_lr = as_value("one_cycle_lr", "max_lr", max_lr)
    base_momentum = as_value("one_cycle_lr", "base_momentum", base_momentum)
    max_momentum = as_value("one_cycle_lr", "max_momentum", max_momentum)
    pct_start = _checks.plain_number(pct_start)
    if is_traced(pct_start):
        pct_start = as_value("one_cycle_lr", "pct_start", pct_start)
    elif not isinstance(pct_start, float) or not 0.0 <= pct_start <= 1.0:
        _checks.fail("one_cycle_lr", "pct_start", "a float in [0, 1]", pct_start)
    elif pct_start * steps == 1.0:
        _checks.fail("one_cycle_lr", "pct_start * total_steps", "other than 1, which leaves no step to go up", 1.0)
    _check_choice("one_cycle_lr", "anneal_strategy", anneal_strategy, ("cos", "linear"))
    _checks.check_flag("one_cycle_lr", "cycle_momentum", cycle_momentum)
    div_factor = as_value("one_cycle_lr", "div_factor", div_factor, _checks.POSITIVE)
    final_div_factor = as_value("one_cycle_lr", "final_div_factor", final_div_factor, _checks.POSITIVE)
    _checks.check_flag("one_cycle_lr", "three_phase", three_phase)
    shape: Shape = "cosine" if anneal_strategy == "cos" else "linear"
    ends = [pct_start * steps - 1.0, *([2.0 * pct_start * steps - 2.0] if three_phase else []), steps - 1]

    def through(*values: Value) -> Schedule:
        def body(xp: Any, step: Any) -> Any:
            step = xp.minimum(step, steps - 1)
            value: Any = values[-1]
            phases = zip(pairwise([0.0, *ends]), pairwise(values), strict=True)
            for (begin, end), (start, stop) in reversed(list(phases)):
                share = progress(step - begin, end - begin)
                value = where(step <= end, travel(share, start, stop, shape), value)
            return value

        return formula(body)

    initial = max_lr / div_factor
    final = initial / final_div_factor
    if three_phase:
        lr = through(initial, max_lr, initial, final)
        momentum = through(max_momentum, base_momentum, max_momentum, max_momentum)
    else:
        lr, momentum = through(initial, max_lr, final), through(max_momentum, base_momentum, max_momentum)
    return CycledSchedule(lr, momentum if cycle_momentum else None)


def _check_choice(owner: str, argument: str, value: str, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        _checks.fail(owner, argument, f"one of {list(allowed)}", value)


def _total_steps(total_steps: int | None, epochs: int | None, steps_per_epoch: int | None) -> int:
    if total_steps is None and (epochs is None or steps_per_epoch is None):
        _checks.fail("one_cycle_lr", "total_steps", "given, or both epochs and steps_per_epoch", total_steps)
    if total_steps is not None:
        given: dict[str, Any] = {"total_steps": total_steps}
    else:
        given = {"epochs": epochs, "steps_per_epoch": steps_per_epoch}
    product = 1
    for argument, value in given.items():
        product *= as_count("one_cycle_lr", argument, value)
    return product
