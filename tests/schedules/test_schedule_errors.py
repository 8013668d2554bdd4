"""Bad arguments raise at construction, for whatever torch raises for and for what it silently gets wrong."""

from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
from torch import nn, zeros
from torch.optim import SGD, Optimizer
from torch.optim import lr_scheduler as torch_lr

from funcopt import plot, schedules


class Case(NamedTuple):
    make: Callable[[], Any]
    error: type[Exception]
    message: str
    torch: Callable[[Optimizer], Any] | None = None  # None where torch takes it


def linear(*args: Any) -> Case:
    """`args`: those of the schedule, then the message."""
    *values, message = args
    return Case(lambda: schedules.linear_lr(0.1, *values), ValueError, message, lambda o: torch_lr.LinearLR(o, *values))


def one_cycle(error: type[Exception], message: str, *args: Any, **options: Any) -> Case:
    return Case(
        lambda: schedules.one_cycle_lr(0.1, *args, **options),
        error,
        message,
        lambda o: torch_lr.OneCycleLR(o, 0.1, *args, cycle_momentum=False, **options),
    )


def restarts(error: type[Exception], message: str, *args: Any) -> Case:
    return Case(
        lambda: schedules.cosine_annealing_warm_restarts(0.1, *args),
        error,
        message,
        lambda o: torch_lr.CosineAnnealingWarmRestarts(o, *args),
    )


def cyclic(message: str, *args: Any, **options: Any) -> Case:
    return Case(
        lambda: schedules.cyclic_lr(0.1, 0.2, *args, **options),
        ValueError,
        message,
        lambda o: torch_lr.CyclicLR(o, 0.1, 0.2, *args, cycle_momentum=False, **options),
    )


def ours(make: Callable[[], Any], error: type[Exception], message: str) -> Case:
    return Case(make, error, message)


AS_TORCH = {
    "constant_factor": Case(
        lambda: schedules.constant_lr(0.1, 1.5),
        ValueError,
        r"constant_lr: factor must be in \[0, 1\], got 1.5",
        lambda o: torch_lr.ConstantLR(o, 1.5),
    ),
    "linear_start_0": linear(0.0, r"linear_lr: start_factor must be in \(0, 1\], got 0.0"),
    "linear_start_2": linear(2.0, r"linear_lr: start_factor must be in \(0, 1\], got 2.0"),
    "linear_end_2": linear(0.5, 2.0, r"linear_lr: end_factor must be in \[0, 1\], got 2.0"),
    "linear_end_negative": linear(0.5, -1.0, r"linear_lr: end_factor must be in \[0, 1\], got -1.0"),
    "step_size_0": Case(
        lambda: schedules.step_lr(0.1, 0),
        ValueError,
        "step_lr: step_size must be > 0, got 0",
        lambda o: torch_lr.StepLR(o, 0),
    ),
    "step_size_none": Case(
        lambda: schedules.step_lr(0.1, None),  # pyright: ignore[reportArgumentType]
        TypeError,
        "step_lr: step_size must be a number, got None",
        lambda o: torch_lr.StepLR(o, None),  # pyright: ignore[reportArgumentType]
    ),
    "milestones_no_list": Case(
        lambda: schedules.multi_step_lr(0.1, 30),  # pyright: ignore[reportArgumentType]
        TypeError,
        "multi_step_lr: milestones must be a sequence of steps, got 30",
        lambda o: torch_lr.MultiStepLR(o, 30),  # pyright: ignore[reportArgumentType]
    ),
    "cosine_T_max_0": Case(
        lambda: schedules.cosine_annealing_lr(0.1, 0),
        ValueError,
        "cosine_annealing_lr: T_max must be > 0, got 0",
        lambda o: torch_lr.CosineAnnealingLR(o, 0),
    ),
    "restarts_T_0": restarts(ValueError, "T_0 must be an integer >= 1, got 0", 0),
    "restarts_T_0_float": restarts(ValueError, "T_0 must be an integer >= 1, got 2.0", 2.0),
    "restarts_T_mult_0": restarts(ValueError, "T_mult must be an integer >= 1, got 0", 2, 0),
    "restarts_T_mult_float": restarts(ValueError, "T_mult must be an integer >= 1, got 1.0", 2, 1.0),
    "restarts_eta_min": restarts(TypeError, "eta_min must be a number, got '0'", 2, 1, "0"),
    "cyclic_mode": cyclic("cyclic_lr: mode must be one of .*, got 'square'", mode="square"),
    "cyclic_up_0": cyclic("cyclic_lr: step_size_up must be > 0, got 0", 0),
    "cyclic_up_0_down": cyclic("cyclic_lr: step_size_up must be > 0, got 0", 0, 5),
    "one_cycle_no_length": one_cycle(
        ValueError, "one_cycle_lr: total_steps must be given, or both epochs and steps_per"
    ),
    "one_cycle_epochs_only": one_cycle(ValueError, "one_cycle_lr: total_steps must be given", epochs=3),
    "one_cycle_total_0": one_cycle(ValueError, "one_cycle_lr: total_steps must be an integer >= 1, got 0", 0),
    "one_cycle_total_float": one_cycle(ValueError, "one_cycle_lr: total_steps must be an integer >= 1, got 9.0", 9.0),
    "one_cycle_epochs_0": one_cycle(ValueError, "epochs must be an integer >= 1, got 0", epochs=0, steps_per_epoch=3),
    "one_cycle_per_epoch": one_cycle(ValueError, "steps_per_epoch must be an integer", epochs=3, steps_per_epoch=0.5),
    "one_cycle_pct_2": one_cycle(ValueError, r"pct_start must be a float in \[0, 1\], got 2.0", 9, pct_start=2.0),
    "one_cycle_pct_int": one_cycle(ValueError, r"pct_start must be a float in \[0, 1\], got 0", 9, pct_start=0),
    "one_cycle_pct_first": one_cycle(ValueError, r"pct_start \* total_steps must be other than 1", 10, pct_start=0.1),
    "one_cycle_way": one_cycle(ValueError, "anneal_strategy must be one of", 9, anneal_strategy="cosine"),
    "one_cycle_div_0": one_cycle(ValueError, "div_factor must be > 0, got 0", 9, div_factor=0),
    "one_cycle_final_div_0": one_cycle(ValueError, "final_div_factor must be > 0, got 0", 9, final_div_factor=0),
    "lambda_none": Case(
        lambda: schedules.lambda_lr(0.1, 0.5),  # pyright: ignore[reportArgumentType]
        TypeError,
        "lambda_lr: lr_lambda must be a function of the step, got 0.5",
        lambda o: torch_lr.LambdaLR(o, 0.5),  # pyright: ignore[reportArgumentType]
    ),
    "multiplicative_none": Case(
        lambda: schedules.multiplicative_lr(0.1, 0.5),  # pyright: ignore[reportArgumentType]
        TypeError,
        "multiplicative_lr: lr_lambda must be a function of the step, got 0.5",
        lambda o: torch_lr.MultiplicativeLR(o, 0.5),  # pyright: ignore[reportArgumentType]
    ),
    "sequential_empty": Case(
        lambda: schedules.sequential_lr([], []),
        ValueError,
        "sequential_lr: schedules must be at least one schedule",
        lambda o: torch_lr.SequentialLR(o, [], []),
    ),
    "sequential_milestones": Case(
        lambda: schedules.sequential_lr([schedules.linear_lr(0.1)], [5]),
        ValueError,
        r"sequential_lr: milestones must be one fewer than the 1 schedules, got \[5\]",
        lambda o: torch_lr.SequentialLR(o, [torch_lr.LinearLR(o)], [5]),
    ),
    "sequential_member": Case(
        lambda: schedules.sequential_lr(["linear"], []),  # pyright: ignore[reportArgumentType]
        TypeError,
        r"sequential_lr: schedules\[0\] must be a schedule or a number, got 'linear'",
        lambda o: torch_lr.SequentialLR(o, ["linear"], []),  # pyright: ignore[reportArgumentType]
    ),
    "chained_empty": Case(
        lambda: schedules.chained_scheduler(0.1, []),
        ValueError,
        "chained_scheduler: schedules must be at least one schedule",
        lambda o: torch_lr.ChainedScheduler([], o),
    ),
    "chained_member": Case(
        lambda: schedules.chained_scheduler(0.1, ["linear"]),  # pyright: ignore[reportArgumentType]
        TypeError,
        r"chained_scheduler: schedules\[0\] must be a schedule or a number, got 'linear'",
        lambda o: torch_lr.ChainedScheduler(["linear"], o),  # pyright: ignore[reportArgumentType]
    ),
}

OURS = {
    "base_lr": ours(lambda: schedules.step_lr("0.1", 3), TypeError, "step_lr: base_lr must be a number, got '0.1'"),  # pyright: ignore[reportArgumentType]
    "base_lr_bool": ours(lambda: schedules.step_lr(True, 3), TypeError, "step_lr: base_lr must be a number, got True"),
    "base_lr_nan": ours(
        lambda: schedules.exponential_lr(float("nan"), 0.9), ValueError, "base_lr must be a finite number, got nan"
    ),
    "base_lr_schedule": ours(
        lambda: schedules.step_lr(schedules.linear_lr(0.1), 3),  # pyright: ignore[reportArgumentType]
        TypeError,
        "step_lr: base_lr must be a number",
    ),
    "constant_total_iters": ours(lambda: schedules.constant_lr(0.1, 0.5, -1), ValueError, "total_iters must be >= 0"),
    "linear_total_iters": ours(lambda: schedules.linear_lr(0.1, 0.5, 1, -1), ValueError, "total_iters must be >= 0"),
    "polynomial_total_iters": ours(lambda: schedules.polynomial_lr(0.1, 0), ValueError, "total_iters must be > 0"),
    "polynomial_power": ours(lambda: schedules.polynomial_lr(0.1, 5, -1.0), ValueError, "power must be >= 0"),
    "step_size_negative": ours(lambda: schedules.step_lr(0.1, -3), ValueError, "step_size must be > 0, got -3"),
    "multi_step_unsorted": ours(
        lambda: schedules.multi_step_lr(0.1, [80, 30]),
        ValueError,
        r"multi_step_lr: milestones must be in increasing order, got \[80, 30\]",
    ),
    "multi_step_negative": ours(
        lambda: schedules.multi_step_lr(0.1, [-1, 30]), ValueError, r"milestones\[0\] must be >= 0, got -1"
    ),
    "sequential_unsorted": ours(
        lambda: schedules.sequential_lr([0.1, 0.2, 0.3], [80, 30]),
        ValueError,
        r"sequential_lr: milestones must be in increasing order, got \[80, 30\]",
    ),
    "sequential_negative": ours(
        lambda: schedules.sequential_lr([0.1, 0.2], [-5]), ValueError, r"milestones\[0\] must be >= 0, got -5"
    ),
    "cyclic_down": ours(lambda: schedules.cyclic_lr(0.1, 0.2, 5, -1), ValueError, "step_size_down must be >= 0"),
    "cyclic_scale_mode": ours(
        lambda: schedules.cyclic_lr(0.1, 0.2, scale_fn=abs, scale_mode="epochs"),  # pyright: ignore[reportArgumentType]
        ValueError,
        "cyclic_lr: scale_mode must be one of",
    ),
    "multiplicative_total_iters": ours(
        lambda: schedules.multiplicative_lr(0.1, abs, -1), ValueError, "total_iters must be >= 0"
    ),
    "join_continuous_from_0": ours(
        lambda: schedules.join([0.1, schedules.ramp(0.0, 1.0, 5)], [5], continuous=True),
        ValueError,
        r"join: first value of schedules\[1\] must be other than 0",
    ),
    "group_list": ours(
        lambda: schedules.scale([0.1, 0.2], 2.0),  # pyright: ignore[reportArgumentType]
        TypeError,
        r"scale: schedule must be a schedule or a number, got \[0.1, 0.2\]; make one per group",
    ),
    "clip_nothing": ours(lambda: schedules.clip(0.1), ValueError, "clip: floor must be given, or ceiling, got None"),
    "clip_order": ours(lambda: schedules.clip(0.1, 0.2, 0.1), ValueError, r"ceiling must be >= floor \(0.2\), got 0.1"),
    "by_epoch_0": ours(
        lambda: schedules.by_epoch(abs, 0), ValueError, "steps_per_epoch must be an integer >= 1, got 0"
    ),
    "by_epoch_float": ours(lambda: schedules.by_epoch(abs, 2.5), ValueError, "steps_per_epoch must be an integer"),  # pyright: ignore[reportArgumentType]
    "ramp_shape": ours(
        lambda: schedules.ramp(0.1, 0.2, 5, "cos"),  # pyright: ignore[reportArgumentType]
        ValueError,
        "ramp: shape must be one of .*'exponential'.* or a function, got 'cos'",
    ),
    "ramp_exponential_to_0": ours(
        lambda: schedules.ramp(0.1, 0.0, 5, "exponential"),
        ValueError,
        "ramp: end_value must be > 0 for the exponential shape, got 0.0",
    ),
    "warmup_exponential_from_0": ours(
        lambda: schedules.warmup(0.1, 5, shape="exponential"),
        ValueError,
        "warmup: start_factor must be > 0 for the exponential shape, got 0.0",
    ),
    "warmup_steps": ours(lambda: schedules.warmup(0.1, -1), ValueError, "warmup_steps must be >= 0, got -1"),
    "cooldown_exponential": ours(
        lambda: schedules.cooldown(0.1, 5, 5, shape="exponential"), ValueError, "cooldown: end_lr must be > 0"
    ),
    "warmup_cosine_total": ours(
        lambda: schedules.warmup_cosine(0.1, 5, 5), ValueError, r"total_steps must be > warmup_steps \(5\), got 5"
    ),
    "wsd_steps": ours(lambda: schedules.wsd(0.1, 5, -5, 5), ValueError, "wsd: stable_steps must be >= 0, got -5"),
    "inverse_sqrt_0": ours(lambda: schedules.inverse_sqrt(0.1, 0), ValueError, "timescale .* must be > 0, got 0"),
    "cycles_mul": ours(lambda: schedules.cycles(0.1, 5, cycle_mul=0.5), ValueError, "cycle_mul must be >= 1, got 0.5"),
    "cycles_steps": ours(lambda: schedules.cycles(0.1, 0), ValueError, "cycle_steps must be > 0, got 0"),
    "cycles_limit": ours(lambda: schedules.cycles(0.1, 5, cycle_limit=0), ValueError, "cycle_limit must be >= 1"),
    "cycles_k": ours(lambda: schedules.cycles(0.1, 5, k_decay=0.0), ValueError, "k_decay must be > 0, got 0.0"),
    "describe_steps": ours(lambda: schedules.describe(abs, 0), ValueError, "describe: steps must be >= 1, got 0"),
    "plot_nothing": ours(lambda: plot.schedules({}, 5), ValueError, "plot.schedules: schedules must be"),
    "plot_member": ours(
        lambda: plot.schedules({"lr": None}, 5),  # pyright: ignore[reportArgumentType]
        TypeError,
        r"plot.schedules: schedules\['lr'\] must be a schedule or a number, got None",
    ),
}

CASES = AS_TORCH | OURS


@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
def test_bad_argument_raises_at_construction(case: Case) -> None:
    with pytest.raises(case.error, match=case.message):
        case.make()


@pytest.mark.parametrize("case", AS_TORCH.values(), ids=AS_TORCH.keys())
def test_torch_raises_as_well(case: Case) -> None:
    optimizer = SGD([nn.Parameter(zeros(1))], lr=0.1)
    assert case.torch is not None

    def first_step(make: Callable[[Optimizer], Any]) -> None:
        scheduler = make(optimizer)
        optimizer.step()
        scheduler.step()

    with pytest.raises((ValueError, TypeError, ZeroDivisionError)):
        first_step(case.torch)
