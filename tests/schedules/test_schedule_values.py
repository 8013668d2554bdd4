"""Values: against torch.optim.lr_scheduler, and timm for the cycles that torch lacks."""

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from torch.optim import lr_scheduler as torch_lr

import funcopt
from funcopt import schedules

STEPS = 300
BASES = (0.05, 0.3)  # of the two groups

# torch multiplies the previous value by a ratio, up to 500 times: some 1e-14 relative. Next to a minimum of 0 its
# 1 + cos has only an absolute accuracy of 1e-16.
RTOL, ATOL = 1e-12, 1e-15


def make_optimizer(cls: Any = torch.optim.SGD, **options: Any) -> torch.optim.Optimizer:
    return cls([{"params": [torch.nn.Parameter(torch.zeros(1))], "lr": lr} for lr in BASES], **options)


def follow(optimizer: torch.optim.Optimizer, scheduler: Any, steps: int, read: Callable[[], Any]) -> np.ndarray:
    """What `read` gives at this step and the following ones, one row per step."""
    rows = []
    for step in range(steps):
        if step:
            optimizer.step()
            scheduler.step()
        rows.append(read())
    return np.array(rows, dtype=np.float64)


def columns(make: Callable[[float], funcopt.Schedule], steps: np.ndarray) -> np.ndarray:
    """The schedules of both groups at the steps, one row per step."""
    return np.stack([make(base)(steps) for base in BASES], axis=1)


def decay(step: Any) -> Any:
    return 0.97**step


def wave(step: Any) -> float:
    return 1.0 + 0.5 * math.sin(step)


def ratio(step: int) -> float:
    return 0.9 if step % 7 == 0 else 1.01


def label(factory_name: str, *args: Any, **options: Any) -> str:
    """A name for a case that is the same in every process."""
    return "-".join([factory_name, *(getattr(value, "__name__", str(value)) for value in (*args, *options.values()))])


class Case(NamedTuple):
    name: str
    torch: Callable[[torch.optim.Optimizer], Any]
    funcopt: Callable[[float], funcopt.Schedule]
    length: int = 10_000  # number of steps that torch's scheduler has values for


def alike(torch_class: Any, factory: Any, *args: Any, length: int = 10_000, **options: Any) -> Case:
    """The schedule and torch's class with the same arguments."""
    return Case(
        label(factory.__name__, *args, **options),
        lambda optimizer: torch_class(optimizer, *args, **options),
        lambda base: factory(base, *args, **options),
        length,
    )


def cyclic(*args: Any, **options: Any) -> Case:
    return Case(
        label("cyclic_lr", *args, **options),
        lambda optimizer: torch_lr.CyclicLR(optimizer, list(BASES), 0.9, *args, cycle_momentum=False, **options),
        lambda base: schedules.cyclic_lr(base, 0.9, *args, cycle_momentum=False, **options),
    )


def one_cycle(length: int, **options: Any) -> Case:
    options = options if "epochs" in options else {"total_steps": length, **options}
    return Case(
        label("one_cycle_lr", **options),
        lambda optimizer: torch_lr.OneCycleLR(optimizer, list(BASES), cycle_momentum=False, **options),
        lambda base: schedules.one_cycle_lr(base, cycle_momentum=False, **options),
        length,
    )


CASES = [
    alike(torch_lr.ConstantLR, schedules.constant_lr),
    alike(torch_lr.ConstantLR, schedules.constant_lr, 0.5, 40),
    alike(torch_lr.ConstantLR, schedules.constant_lr, 1.0, 3),
    alike(torch_lr.ConstantLR, schedules.constant_lr, factor=0.1, total_iters=1000),
    alike(torch_lr.LinearLR, schedules.linear_lr),
    alike(torch_lr.LinearLR, schedules.linear_lr, 1e-3, 1.0, 50),
    alike(torch_lr.LinearLR, schedules.linear_lr, 1.0, 0.0, 77),
    alike(torch_lr.LinearLR, schedules.linear_lr, 0.5, 0.7, 1),
    alike(torch_lr.LinearLR, schedules.linear_lr, start_factor=0.2, end_factor=0.9, total_iters=999),
    alike(torch_lr.PolynomialLR, schedules.polynomial_lr),
    alike(torch_lr.PolynomialLR, schedules.polynomial_lr, 250, 0.9),
    alike(torch_lr.PolynomialLR, schedules.polynomial_lr, total_iters=400, power=3.0),
    alike(torch_lr.PolynomialLR, schedules.polynomial_lr, 20, 0.0),
    alike(torch_lr.StepLR, schedules.step_lr, 30),
    alike(torch_lr.StepLR, schedules.step_lr, step_size=1, gamma=0.99),
    alike(torch_lr.StepLR, schedules.step_lr, 45, 2.0),
    alike(torch_lr.StepLR, schedules.step_lr, 10, 0.0),
    alike(torch_lr.StepLR, schedules.step_lr, 10, -0.5),
    alike(torch_lr.MultiStepLR, schedules.multi_step_lr, [30, 80, 200]),
    alike(torch_lr.MultiStepLR, schedules.multi_step_lr, milestones=(10, 10, 11), gamma=0.3),
    alike(torch_lr.MultiStepLR, schedules.multi_step_lr, [0, 5]),
    alike(torch_lr.MultiStepLR, schedules.multi_step_lr, []),
    alike(torch_lr.ExponentialLR, schedules.exponential_lr, 0.97),
    alike(torch_lr.ExponentialLR, schedules.exponential_lr, gamma=1.01),
    alike(torch_lr.ExponentialLR, schedules.exponential_lr, 0.0),
    alike(torch_lr.CosineAnnealingLR, schedules.cosine_annealing_lr, 600),
    alike(torch_lr.CosineAnnealingLR, schedules.cosine_annealing_lr, T_max=200, eta_min=0.01),
    alike(torch_lr.CosineAnnealingLR, schedules.cosine_annealing_lr, 500, 0.9),
    alike(torch_lr.CosineAnnealingLR, schedules.cosine_annealing_lr, 1, 0.01),
    alike(torch_lr.CosineAnnealingWarmRestarts, schedules.cosine_annealing_warm_restarts, 10),
    alike(torch_lr.CosineAnnealingWarmRestarts, schedules.cosine_annealing_warm_restarts, 1, 1, 0.01),
    alike(torch_lr.CosineAnnealingWarmRestarts, schedules.cosine_annealing_warm_restarts, 7, eta_min=0.001),
    alike(torch_lr.CosineAnnealingWarmRestarts, schedules.cosine_annealing_warm_restarts, T_0=10, T_mult=2),
    alike(torch_lr.CosineAnnealingWarmRestarts, schedules.cosine_annealing_warm_restarts, 1, 3, 0.01),
    alike(torch_lr.CosineAnnealingWarmRestarts, schedules.cosine_annealing_warm_restarts, 3, 10),
    alike(torch_lr.LambdaLR, schedules.lambda_lr, decay),
    alike(torch_lr.LambdaLR, schedules.lambda_lr, wave),
    alike(torch_lr.MultiplicativeLR, schedules.multiplicative_lr, ratio),
    Case(
        "multiplicative_lr-table",
        lambda optimizer: torch_lr.MultiplicativeLR(optimizer, lambda step: ratio(step) if step <= 90 else 1.0),
        lambda base: schedules.multiplicative_lr(base, ratio, total_iters=90),
    ),
    cyclic(),
    cyclic(20),
    cyclic(13, 31),
    cyclic(13, 0),
    cyclic(2.5, 4.25),
    cyclic(20, mode="triangular2"),
    cyclic(7, 8, mode="exp_range", gamma=0.99),
    cyclic(11, scale_fn=lambda cycle: 1 / cycle),
    cyclic(11, scale_fn=wave, mode="not used", scale_mode="iterations"),
    one_cycle(300),
    one_cycle(1000),
    one_cycle(300, epochs=30, steps_per_epoch=10),
    one_cycle(97, pct_start=0.31),
    one_cycle(97, pct_start=0.31, anneal_strategy="linear"),
    one_cycle(97, pct_start=0.31, three_phase=True),
    one_cycle(97, pct_start=0.9, three_phase=True),
    one_cycle(60, pct_start=0.25, anneal_strategy="linear", three_phase=True),
    one_cycle(50, pct_start=0.0),
    one_cycle(50, pct_start=0.01),
    one_cycle(50, pct_start=1.0),
    one_cycle(50, div_factor=3.0, final_div_factor=7.0),
    one_cycle(2),
    Case(
        "sequential_lr-two",
        lambda o: torch_lr.SequentialLR(o, [torch_lr.LinearLR(o, 0.01, 1.0, 20), torch_lr.StepLR(o, 50)], [20]),
        lambda b: schedules.sequential_lr([schedules.linear_lr(b, 0.01, 1.0, 20), schedules.step_lr(b, 50)], [20]),
    ),
    Case(
        "sequential_lr-three",
        lambda o: torch_lr.SequentialLR(
            o,
            [torch_lr.ConstantLR(o, 0.1, 9), torch_lr.ExponentialLR(o, 0.99), torch_lr.CosineAnnealingLR(o, 400)],
            [7, 150],
        ),
        lambda b: schedules.sequential_lr(
            [
                schedules.constant_lr(b, 0.1, 9),
                schedules.exponential_lr(b, 0.99),
                schedules.cosine_annealing_lr(b, 400),
            ],
            [7, 150],
        ),
    ),
    Case(
        "sequential_lr-members-without-steps",
        lambda o: torch_lr.SequentialLR(
            o,
            [torch_lr.ConstantLR(o), torch_lr.LambdaLR(o, decay), torch_lr.LambdaLR(o, wave), torch_lr.StepLR(o, 9)],
            [0, 50, 50],
        ),
        lambda b: schedules.sequential_lr(
            [
                schedules.constant_lr(b),
                schedules.lambda_lr(b, decay),
                schedules.lambda_lr(b, wave),
                schedules.step_lr(b, 9),
            ],
            [0, 50, 50],
        ),
    ),
    Case(
        "sequential_lr-restarts",
        lambda o: torch_lr.SequentialLR(o, [torch_lr.LinearLR(o), torch_lr.CosineAnnealingWarmRestarts(o, 20, 2)], [5]),
        lambda b: schedules.sequential_lr(
            [schedules.linear_lr(b), schedules.cosine_annealing_warm_restarts(b, 20, 2)], [5]
        ),
    ),
    Case(
        "chained_scheduler-two",
        lambda o: torch_lr.ChainedScheduler([torch_lr.ConstantLR(o, 0.1, 20), torch_lr.ExponentialLR(o, 0.99)]),
        lambda b: schedules.chained_scheduler(
            b, [schedules.constant_lr(1.0, 0.1, 20), schedules.exponential_lr(1.0, 0.99)]
        ),
    ),
    Case(
        "chained_scheduler-three",
        lambda o: torch_lr.ChainedScheduler(
            [torch_lr.LinearLR(o, 0.1, 1.0, 20), torch_lr.StepLR(o, 50), torch_lr.CosineAnnealingLR(o, 600)]
        ),
        lambda b: schedules.chained_scheduler(
            b,
            [
                schedules.linear_lr(1.0, 0.1, 1.0, 20),
                schedules.step_lr(1.0, 50),
                schedules.cosine_annealing_lr(1.0, 600),
            ],
        ),
    ),
    Case(
        "chained_scheduler-nested",
        lambda o: torch_lr.ChainedScheduler(
            [torch_lr.ChainedScheduler([torch_lr.LinearLR(o), torch_lr.StepLR(o, 50)]), torch_lr.ExponentialLR(o, 0.99)]
        ),
        lambda b: schedules.chained_scheduler(
            b,
            [
                schedules.chained_scheduler(1.0, [schedules.linear_lr(1.0), schedules.step_lr(1.0, 50)]),
                schedules.exponential_lr(1.0, 0.99),
            ],
        ),
    ),
]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_equals_torch_from_step_0(case: Case) -> None:
    steps = min(STEPS, case.length)
    optimizer = make_optimizer()
    scheduler = case.torch(optimizer)
    expected = follow(optimizer, scheduler, steps, scheduler.get_last_lr)
    np.testing.assert_allclose(columns(case.funcopt, np.arange(steps)), expected, rtol=RTOL, atol=ATOL)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_equals_torch_resumed_from_a_checkpoint(case: Case) -> None:
    restart = int(np.random.default_rng(CASES.index(case)).integers(1, min(200, case.length)))
    steps = min(STEPS, case.length - restart)
    before = make_optimizer()
    saved = case.torch(before)
    follow(before, saved, restart + 1, saved.get_last_lr)
    optimizer = make_optimizer()
    scheduler = case.torch(optimizer)
    optimizer.load_state_dict(before.state_dict())
    scheduler.load_state_dict(saved.state_dict())
    expected = follow(optimizer, scheduler, steps, scheduler.get_last_lr)
    np.testing.assert_allclose(columns(case.funcopt, restart + np.arange(steps)), expected, rtol=RTOL, atol=ATOL)


class CycledCase(NamedTuple):
    name: str
    torch: Callable[[torch.optim.Optimizer], Any]
    funcopt: Callable[[float], schedules.CycledSchedule]


def cycled(torch_class: Any, factory: Any, *args: Any, **options: Any) -> CycledCase:
    return CycledCase(
        label(factory.__name__, *args, **options),
        lambda optimizer: torch_class(optimizer, list(BASES), *args, **options),
        lambda base: factory(base, *args, **options),
    )


CYCLED_CASES = [
    cycled(torch_lr.CyclicLR, schedules.cyclic_lr, 0.9, 20),
    cycled(
        torch_lr.CyclicLR, schedules.cyclic_lr, 0.9, 5, 12, mode="triangular2", base_momentum=0.1, max_momentum=0.99
    ),
    cycled(torch_lr.CyclicLR, schedules.cyclic_lr, 0.9, 20, mode="exp_range", gamma=0.99),
    cycled(torch_lr.OneCycleLR, schedules.one_cycle_lr, 300),
    cycled(torch_lr.OneCycleLR, schedules.one_cycle_lr, 300, three_phase=True, base_momentum=0.5, max_momentum=0.9),
    cycled(torch_lr.OneCycleLR, schedules.one_cycle_lr, 300, pct_start=0.1, anneal_strategy="linear"),
]


@pytest.mark.parametrize("case", CYCLED_CASES, ids=lambda case: case.name)
def test_momentum_equals_torch(case: CycledCase) -> None:
    optimizer = make_optimizer(momentum=0.9)
    scheduler = case.torch(optimizer)
    read = lambda: [(group["lr"], group["momentum"]) for group in optimizer.param_groups]  # noqa: E731
    expected = follow(optimizer, scheduler, STEPS, read)
    for group, base in enumerate(BASES):
        cycle = case.funcopt(base)
        assert cycle.momentum is not None
        np.testing.assert_allclose(cycle(np.arange(STEPS)), expected[:, group, 0], rtol=RTOL, atol=ATOL)
        np.testing.assert_allclose(cycle.lr(np.arange(STEPS)), expected[:, group, 0], rtol=RTOL, atol=ATOL)
        np.testing.assert_allclose(cycle.momentum(np.arange(STEPS)), expected[:, group, 1], rtol=RTOL)


@pytest.mark.parametrize("case", CYCLED_CASES, ids=lambda case: case.name)
def test_first_of_betas_equals_torch(case: CycledCase) -> None:
    optimizer = make_optimizer(torch.optim.Adam, betas=(0.9, 0.99))
    scheduler = case.torch(optimizer)
    expected = follow(optimizer, scheduler, STEPS, lambda: [group["betas"][0] for group in optimizer.param_groups])
    momentum = case.funcopt(BASES[0]).momentum
    assert momentum is not None
    np.testing.assert_allclose(momentum(np.arange(STEPS)), expected[:, 0], rtol=RTOL)


def test_momentum_is_not_cycled_on_request() -> None:
    assert schedules.cyclic_lr(0.1, 0.2, cycle_momentum=False).momentum is None
    assert schedules.one_cycle_lr(0.1, 10, cycle_momentum=False).momentum is None


def closed_form(torch_class: Any, *args: Any, steps: Sequence[int]) -> np.ndarray:
    optimizer = make_optimizer()
    scheduler = torch_class(optimizer, *args)
    rows = []
    for scheduler.last_epoch in steps:
        rows.append(scheduler._get_closed_form_lr())
    return np.array(rows)


# torch's recursive form is off here, so the oracle is its closed form.
CLOSED_FORM_CASES = [
    # drifts: 7e-14 absolute after 5,000 steps
    (torch_lr.CosineAnnealingLR, schedules.cosine_annealing_lr, (10, 0.001), range(4700, 5000)),
    (torch_lr.CosineAnnealingLR, schedules.cosine_annealing_lr, (33,), range(STEPS)),
    (torch_lr.CosineAnnealingLR, schedules.cosine_annealing_lr, (90, 0.9), range(STEPS)),
    # divides by the factor at step total_iters
    (torch_lr.ConstantLR, schedules.constant_lr, (0.0, 5), range(STEPS)),
    # keeps the factor for ever
    (torch_lr.ConstantLR, schedules.constant_lr, (0.5, 0), range(STEPS)),
    (torch_lr.ConstantLR, schedules.constant_lr, (0.5, 2.5), range(STEPS)),
    # stops one step short
    (torch_lr.LinearLR, schedules.linear_lr, (0.5, 1.0, 2.5), range(STEPS)),
    # fires at common multiples of 1 and the step size only
    (torch_lr.StepLR, schedules.step_lr, (2.5, 0.9), range(STEPS)),
    # never fires
    (torch_lr.MultiStepLR, schedules.multi_step_lr, ([2.5, 7.5],), range(STEPS)),
]


@pytest.mark.parametrize(("torch_class", "factory", "args", "steps"), CLOSED_FORM_CASES)
def test_equals_the_closed_form_where_torch_departs_from_it(
    torch_class: Any, factory: Any, args: tuple[Any, ...], steps: range
) -> None:
    actual = columns(lambda base: factory(base, *args), np.asarray(steps))
    # The cosine of 500 half periods has an argument with an error of 2e-13.
    np.testing.assert_allclose(actual, closed_form(torch_class, *args, steps=steps), rtol=RTOL, atol=1e-14)


def run(make: Callable[[torch.optim.Optimizer], Any], steps: int) -> np.ndarray:
    optimizer = make_optimizer()
    scheduler = make(optimizer)
    return follow(optimizer, scheduler, steps, scheduler.get_last_lr)


def test_sequential_in_sequential_follows_its_documentation() -> None:
    # torch 2.13 runs the inner one a step ahead, and raises NotImplementedError where it is not the first.
    inner = lambda b: schedules.sequential_lr([schedules.step_lr(b, 4), schedules.exponential_lr(b, 0.9)], [10])  # noqa: E731
    outer = columns(
        lambda b: schedules.sequential_lr([inner(b), schedules.linear_lr(b), inner(b)], [30, 50]), np.arange(80)
    )
    inner_steps = np.concatenate(
        [run(lambda o: torch_lr.StepLR(o, 4), 10), run(lambda o: torch_lr.ExponentialLR(o, 0.9), 20)]
    )
    expected = np.concatenate([inner_steps, run(torch_lr.LinearLR, 20), inner_steps])
    np.testing.assert_allclose(outer, expected, rtol=RTOL)


def test_chained_in_sequential_follows_its_documentation() -> None:
    # torch 2.13 applies the chained one's first step twice.
    actual = columns(
        lambda b: schedules.sequential_lr(
            [
                schedules.chained_scheduler(b, [schedules.linear_lr(1.0), schedules.exponential_lr(1.0, 0.9)]),
                schedules.step_lr(b, 4),
            ],
            [10],
        ),
        np.arange(30),
    )
    chained = run(lambda o: torch_lr.ChainedScheduler([torch_lr.LinearLR(o), torch_lr.ExponentialLR(o, 0.9)]), 10)
    expected = np.concatenate([chained, run(lambda o: torch_lr.StepLR(o, 4), 20)])
    np.testing.assert_allclose(actual, expected, rtol=RTOL)


def test_one_cycle_in_sequential_follows_its_documentation() -> None:
    # torch 2.13 gives the first member the one cycle's initial value, a 25th, for its base.
    actual = columns(
        lambda b: schedules.sequential_lr([schedules.linear_lr(b), schedules.one_cycle_lr(b, 50)], [10]), np.arange(60)
    )
    one_cycle_alone = run(lambda o: torch_lr.OneCycleLR(o, list(BASES), 50, cycle_momentum=False), 50)
    np.testing.assert_allclose(actual, np.concatenate([run(torch_lr.LinearLR, 10), one_cycle_alone]), rtol=RTOL)


def test_sequential_in_chained_is_the_product() -> None:
    # torch's ChainedScheduler gives the same, as long as the sequential one is not nested further.
    actual = columns(
        lambda b: schedules.chained_scheduler(
            b,
            [
                schedules.sequential_lr([schedules.constant_lr(1.0, 0.5, 100), schedules.step_lr(1.0, 10)], [5]),
                schedules.exponential_lr(1.0, 0.9),
            ],
        ),
        np.arange(40),
    )
    sequence = np.concatenate(
        [run(lambda o: torch_lr.ConstantLR(o, 0.5, 100), 5), run(lambda o: torch_lr.StepLR(o, 10), 35)]
    )
    np.testing.assert_allclose(actual, sequence * 0.9 ** np.arange(40)[:, None], rtol=RTOL)


@pytest.mark.parametrize(("T_0", "T_mult"), [(4, 1), (4, 2), (1, 3), (10, 10), (3, 7)])
def test_warm_restarts_equal_torch_at_fractional_epochs(T_0: int, T_mult: int) -> None:
    epochs = np.arange(1, 40 * 8) / 8
    optimizer = make_optimizer()
    scheduler = torch_lr.CosineAnnealingWarmRestarts(optimizer, T_0, T_mult, 0.01)
    expected = []
    for epoch in epochs:
        scheduler.step(float(epoch))
        expected.append(scheduler.get_last_lr())
    by_epoch = lambda b: schedules.cosine_annealing_warm_restarts(b, T_0, T_mult, 0.01)  # noqa: E731
    np.testing.assert_allclose(columns(by_epoch, epochs), expected, rtol=RTOL)
    by_update = lambda b: schedules.by_epoch(by_epoch(b), 8, fractional=True)  # noqa: E731
    np.testing.assert_allclose(columns(by_update, np.arange(1, 40 * 8)), expected, rtol=RTOL)


@pytest.mark.parametrize(("T_0", "T_mult", "epoch"), [(1, 3, 121), (1, 10, 111)])
def test_warm_restarts_restart_where_torch_rounds_to_the_cycle_before(T_0: int, T_mult: int, epoch: int) -> None:
    scheduler = torch_lr.CosineAnnealingWarmRestarts(make_optimizer(), T_0, T_mult, 0.01)
    scheduler.step(epoch)
    np.testing.assert_allclose(scheduler.get_last_lr(), 0.01)
    assert schedules.cosine_annealing_warm_restarts(0.05, T_0, T_mult, 0.01)(epoch) == 0.05


def test_one_cycle_stays_at_the_end_where_torch_extrapolates() -> None:
    optimizer = make_optimizer()
    scheduler = torch_lr.OneCycleLR(optimizer, 0.1, 5, anneal_strategy="linear", cycle_momentum=False)
    beyond = follow(optimizer, scheduler, 6, scheduler.get_last_lr)[5, 0]
    assert beyond < -0.02
    schedule = schedules.one_cycle_lr(0.1, 5, anneal_strategy="linear")
    assert schedule(4) == schedule(5) == schedule(100) == pytest.approx(0.1 / 25 / 1e4, rel=1e-15)


def test_one_cycle_cut_short_stays_where_it_ended() -> None:
    # The second phase would last until step 16; torch goes on with it for one step.
    schedule = schedules.one_cycle_lr(0.1, 10, pct_start=0.9, three_phase=True)
    assert schedule(8) == 0.1 > schedule(9) == schedule(10) == schedule(100)


def test_linear_is_at_its_end_where_torch_stays_at_the_start() -> None:
    np.testing.assert_array_equal(run(lambda o: torch_lr.LinearLR(o, 0.5, 1.0, 0), 3)[:, 0], 0.025)
    np.testing.assert_array_equal(schedules.linear_lr(0.05, 0.5, 1.0, 0)(np.arange(3)), 0.05)


def timm_cosine(t: int, v: float, T: int, lr_min: float, mul: float, cyc_decay: float, limit: int, k: float) -> float:
    """Timm's `CosineLRScheduler._get_lr` behind its warm-up, with its names."""
    if mul != 1:
        i = math.floor(math.log(1 - t / T * (1 - mul), mul))
        t_i = mul**i * T
        t_curr = t - (1 - mul**i) / (1 - mul) * T
    else:
        i, t_i = t // T, T
        t_curr = t - T * i
    lr_max = v * cyc_decay**i
    return lr_min + 0.5 * (lr_max - lr_min) * (1 + math.cos(math.pi * t_curr**k / t_i**k)) if i < limit else lr_min


@pytest.mark.parametrize(
    ("T", "mul", "cyc_decay", "limit", "k"),
    [
        (30, 1.0, 1.0, 1, 1.0),
        (30, 1.0, 0.5, 3, 1.0),
        (30, 1.5, 0.5, 4, 1.5),
        (30, 2.0, 0.9, 99, 0.7),
        (7, 1.0, 0.9, 99, 2.0),
    ],
)
def test_cycles_equal_timm(T: int, mul: float, cyc_decay: float, limit: int, k: float) -> None:
    # Where mul != 1, timm's logarithm may round a restart down to the cycle before: not at these lengths and steps.
    steps = np.arange(1, STEPS)
    expected = [timm_cosine(int(t), 0.3, T, 0.01, mul, cyc_decay, limit, k) for t in steps]
    schedule = schedules.cycles(0.3, T, 0.01, cycle_mul=mul, cycle_decay=cyc_decay, cycle_limit=limit, k_decay=k)
    np.testing.assert_allclose(schedule(steps), expected, rtol=RTOL)


def test_polynomial_cycles_equal_timm() -> None:
    steps = np.arange(100)
    expected = 0.01 + (0.3 - 0.01) * (1 - steps**1.5 / 100**1.5) ** 0.5
    schedule = schedules.cycles(0.3, 100, 0.01, shape=lambda x: 1 - (1 - x) ** 0.5, k_decay=1.5)
    np.testing.assert_allclose(schedule(steps), expected, rtol=RTOL)
