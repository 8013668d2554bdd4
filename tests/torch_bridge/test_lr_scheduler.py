"""LRScheduler: funcopt's schedules on torch optimizers and the bridge, beside torch's schedulers."""

import io
import math
from collections.abc import Callable
from typing import Any

import optax
import pytest
import torch
from torch.optim import lr_scheduler as theirs

import funcopt
from funcopt import schedules
from funcopt.torch_bridge import LRScheduler

pytestmark = pytest.mark.one_engine

STEPS = 60
BASES = (0.05, 0.01)


def make_sgd(**options: Any) -> torch.optim.Optimizer:
    tensors = [torch.nn.Parameter(torch.ones(2)) for _ in BASES]
    groups = [{"params": [tensor], "lr": lr} for tensor, lr in zip(tensors, BASES, strict=True)]
    return torch.optim.SGD(groups, **{"lr": BASES[0], "momentum": 0.9, **options})


def make_bridge(**options: Any) -> torch.optim.Optimizer:
    groups = make_sgd().param_groups
    return funcopt.TorchBridge([{"params": g["params"], "lr": g["lr"]} for g in groups], funcopt.adamw, **options)


def values(optimizer: torch.optim.Optimizer, name: str) -> list[Any]:
    return [group[name] for group in optimizer.param_groups]


def history(scheduler: Any, steps: int = STEPS, *names: str) -> list[Any]:
    seen = []
    for _ in range(steps):
        assert scheduler.get_last_lr() == values(scheduler.optimizer, "lr")
        seen.append([*scheduler.get_last_lr(), *(x for name in names for x in values(scheduler.optimizer, name))])
        scheduler.optimizer.step()
        scheduler.step()
    return seen


def assert_close(actual: list[Any], expected: list[Any]) -> None:
    torch.testing.assert_close(
        torch.tensor(actual, dtype=torch.float64), torch.tensor(expected, dtype=torch.float64), rtol=1e-12, atol=1e-15
    )


# One schedule keeps the ratio of the groups; where torch's own formula has a floor for all, a list has it too.
PAIRS: dict[str, tuple[Any, Callable[[Any], Any]]] = {
    "lambda_lr": (
        schedules.lambda_lr(BASES[0], lambda i: 1 / (1 + i)),
        lambda o: theirs.LambdaLR(o, lambda i: 1 / (1 + i)),
    ),
    "step_lr": (schedules.step_lr(BASES[0], 7, 0.5), lambda o: theirs.StepLR(o, 7, 0.5)),
    "multi_step_lr": (
        schedules.multi_step_lr(BASES[0], [3, 20, 20], 0.3),
        lambda o: theirs.MultiStepLR(o, [3, 20, 20], 0.3),
    ),
    "linear_lr": (schedules.linear_lr(BASES[0], 0.1, total_iters=9), lambda o: theirs.LinearLR(o, 0.1, total_iters=9)),
    "exponential_lr": (schedules.exponential_lr(BASES[0], 0.9), lambda o: theirs.ExponentialLR(o, 0.9)),
    "polynomial_lr": (schedules.polynomial_lr(BASES[0], 30, 2.0), lambda o: theirs.PolynomialLR(o, 30, 2.0)),
    "cosine_annealing_lr": (
        [schedules.cosine_annealing_lr(base, 50, 1e-3) for base in BASES],
        lambda o: theirs.CosineAnnealingLR(o, 50, 1e-3),
    ),
    "warm restarts": (
        [schedules.cosine_annealing_warm_restarts(base, 5, 2, 1e-3) for base in BASES],
        lambda o: theirs.CosineAnnealingWarmRestarts(o, 5, 2, 1e-3),
    ),
    "a number": (BASES[0], lambda o: theirs.ConstantLR(o, 1.0)),
}


@pytest.mark.parametrize("make", [make_sgd, make_bridge])
@pytest.mark.parametrize("name", PAIRS)
def test_learning_rates_are_torchs(name: str, make: Callable[[], Any]) -> None:
    schedule, reference = PAIRS[name]
    assert_close(history(LRScheduler(make(), schedule)), history(reference(make_sgd())))


@pytest.mark.parametrize("name", PAIRS)
def test_going_on_at_last_epoch(name: str) -> None:
    schedule, reference = PAIRS[name]
    optimizer = make_sgd()
    for group in optimizer.param_groups:
        group["initial_lr"] = group["lr"]
    expected = history(reference(make_sgd()))
    assert_close(history(LRScheduler(optimizer, schedule, last_epoch=24), STEPS - 25), expected[25:])


def test_momentum_and_betas_cycle_as_torchs_do() -> None:
    cycle = schedules.cyclic_lr(0.01, 0.1, 5, mode="triangular2")
    one = schedules.one_cycle_lr(0.1, 80)
    sgd, reference = make_sgd(), make_sgd()
    ours = history(LRScheduler(sgd, {"lr": [cycle, cycle], "momentum": cycle.momentum}), STEPS, "momentum")
    assert_close(ours, history(theirs.CyclicLR(reference, 0.01, 0.1, 5, mode="triangular2"), STEPS, "momentum"))
    adamw, reference = make_bridge(), torch.optim.AdamW(make_sgd().param_groups)
    ours = history(LRScheduler(adamw, {"lr": [one, one], "betas": (one.momentum, 0.999)}), STEPS, "betas")
    expected = history(theirs.OneCycleLR(reference, 0.1, 80), STEPS, "betas")
    assert_close([row[:2] for row in ours], [row[:2] for row in expected])
    assert_close([row[2:] for row in ours], [row[2:] for row in expected])


def test_parameters_follow_on_a_torch_optimizer_and_the_bridge() -> None:
    """weight_decay, too; and on the bridge lr_mult on top, with one compilation."""
    schedule = {"lr": schedules.warmup_cosine(0.05, 5, 40), "weight_decay": lambda step: 0.1 + 0.01 * step}
    results = []
    for make in (funcopt.TorchBridge, lambda params, _, **options: torch.optim.AdamW(params, **options)):
        tensors = [torch.nn.Parameter(torch.tensor([1.0, -2.0], dtype=torch.float64)) for _ in range(3)]
        own = {"lr_mult": 0.2} if make is funcopt.TorchBridge else {"lr": 0.01}
        groups = [
            {"params": tensors[:1]},
            {"params": tensors[1:2], **own},
            {"params": tensors[2:], "weight_decay": 0.0},
        ]
        optimizer = make(groups, funcopt.adamw, lr=0.05, weight_decay=0.2)
        scheduler = LRScheduler(optimizer, schedule)
        for step in range(20):
            for i, tensor in enumerate(tensors):
                tensor.grad = torch.full((2,), math.sin(step + i), dtype=torch.float64)
            optimizer.step()
            scheduler.step()
        assert values(optimizer, "weight_decay") == [pytest.approx(0.3), pytest.approx(0.3), 0.0]
        assert getattr(optimizer, "compilations", 1) == 1
        results.append(torch.stack(tensors).detach())
    torch.testing.assert_close(*results, rtol=1e-12, atol=0)


def test_a_checkpoint_goes_on() -> None:
    """Saved with weights_only-safe content, loaded into a new optimizer and a new scheduler."""

    def make() -> Any:
        schedule = {"lr": optax.cosine_decay_schedule(0.05, 40), "weight_decay": [lambda step: 0.01 * step, 0.5]}
        return LRScheduler(make_bridge(weight_decay=0.1), schedule)

    straight = history(make(), STEPS, "weight_decay")
    first = make()
    history(first, 20)
    file = io.BytesIO()
    torch.save({"optimizer": first.optimizer.state_dict(), "scheduler": first.state_dict()}, file)
    file.seek(0)
    saved = torch.load(file, weights_only=True)
    second = make()
    second.optimizer.load_state_dict(saved["optimizer"])
    second.load_state_dict(saved["scheduler"])
    assert second.last_epoch == 20
    assert history(second, STEPS - 20, "weight_decay") == straight[20:]
    # Or without the scheduler's state, from the count.
    third = make_bridge()
    third.load_state_dict(saved["optimizer"])
    resumed = LRScheduler(third, optax.cosine_decay_schedule(0.05, 40), last_epoch=19)
    assert history(resumed, STEPS - 20) == [row[:2] for row in straight[20:]]


@pytest.mark.parametrize("make", [make_sgd, make_bridge])
def test_a_group_added_later(make: Callable[[], Any]) -> None:
    schedule = schedules.exponential_lr(BASES[0], 0.9)
    optimizer = make()
    scheduler = LRScheduler(optimizer, {"lr": schedule, "weight_decay": [0.1, 0.2]})
    history(scheduler, 3)
    optimizer.add_param_group({"params": [torch.nn.Parameter(torch.ones(1))], "lr": 0.1, "weight_decay": 0.3})
    optimizer.step()
    scheduler.step()
    assert scheduler.get_last_lr() == [pytest.approx(ratio * schedule(4)) for ratio in (1.0, 0.2, 2.0)]
    assert values(optimizer, "weight_decay") == [0.1, 0.2, 0.3]


def test_lists_leave_a_group_added_later_alone() -> None:
    optimizer = make_sgd()
    scheduler = LRScheduler(optimizer, [lambda step: 0.1 * step, 0.3])
    optimizer.add_param_group({"params": [torch.nn.Parameter(torch.ones(1))], "lr": 0.7})
    optimizer.step()
    scheduler.step()
    assert scheduler.get_last_lr() == [0.1, 0.3, 0.7]


def test_tensors_are_filled() -> None:
    lr, betas = torch.tensor(0.05), (torch.tensor(0.9), torch.tensor(0.99))
    optimizer = torch.optim.Adam([torch.nn.Parameter(torch.ones(1))], lr=lr, betas=betas, capturable=True)
    scheduler = LRScheduler(optimizer, {"lr": lambda step: 0.5**step, "betas": lambda step: (0.1 * step, 0.2 * step)})
    first = [*map(float, scheduler.get_last_lr())]  # of older torch's the groups' own tensors
    optimizer.step()
    scheduler.step()
    assert optimizer.param_groups[0]["lr"] is lr
    assert all(now is then for now, then in zip(optimizer.param_groups[0]["betas"], betas, strict=True))
    assert (first, lr.item(), *map(float, betas)) == ([1.0], 0.5, pytest.approx(0.1), pytest.approx(0.2))


def test_within_torchs_composites() -> None:
    optimizer, reference = make_sgd(), make_sgd()
    ours = theirs.SequentialLR(
        optimizer,
        [
            LRScheduler(optimizer, schedules.linear_lr(BASES[0], 0.1, total_iters=5)),
            LRScheduler(optimizer, schedules.exponential_lr(BASES[0], 0.9)),
        ],
        milestones=[5],
    )
    expected = theirs.SequentialLR(
        reference, [theirs.LinearLR(reference, 0.1), theirs.ExponentialLR(reference, 0.9)], milestones=[5]
    )
    assert_close(history(ours, 20), history(expected, 20))


@pytest.mark.parametrize(
    ("schedule", "error", "message"),
    [
        ({"weigth_decay": 0.1}, ValueError, "a hyperparameter must be among lr, .*; did you mean weight_decay[?]"),
        ({"lr": [0.1]}, ValueError, r"the list for lr must be of one schedule per group \(2\)"),
        ("0.1", TypeError, "lr must be a schedule, a number, or a tuple of them, got '0.1'"),
        ({"lr": [0.1, None]}, TypeError, "lr must be .*, got None"),
        ({"momentum": True}, TypeError, "momentum must be .*, got True"),
    ],
)
def test_bad_schedules(schedule: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match="LRScheduler: " + message):
        LRScheduler(make_sgd(), schedule)


def test_what_cannot_be_scheduled() -> None:
    with pytest.raises(TypeError, match="optimizer must be a torch optimizer, got GradientTransformation"):
        LRScheduler(optax.sgd(0.1), 0.1)
    with pytest.raises(ValueError, match="lr must be a number in TorchBridge, got 'a schedule'"):
        LRScheduler(funcopt.TorchBridge([torch.nn.Parameter(torch.ones(1))], funcopt.sgd, lr=lambda step: 0.1), 0.1)
    optimizer = make_sgd()
    optimizer.param_groups[1]["weight_decay"] = 0.1
    with pytest.raises(ValueError, match="initial weight_decay of parameter group 1 must be 0 as the first group's"):
        LRScheduler(optimizer, {"weight_decay": 0.1})
    with pytest.raises(KeyError, match="initial_lr"):
        LRScheduler(make_sgd(), 0.1, last_epoch=3)
