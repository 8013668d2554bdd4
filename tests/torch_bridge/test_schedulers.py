"""Every class of torch.optim.lr_scheduler drives the bridge, and resumes, as it does torch.optim."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.optim import lr_scheduler
from twins import ROUNDING, TWINS, Twin, difference, make_model, train

pytestmark = pytest.mark.one_engine

Make = Callable[[torch.optim.Optimizer], Any]


def cycles_momentum(optimizer: torch.optim.Optimizer) -> bool:
    return bool({"momentum", "betas"} & set(optimizer.defaults))


MAKERS: dict[str, Make] = {
    "LambdaLR": lambda o: lr_scheduler.LambdaLR(o, [lambda i: 0.9**i, lambda i: 1 / (1 + i)]),
    "MultiplicativeLR": lambda o: lr_scheduler.MultiplicativeLR(o, lambda i: 1 - 0.5 / (i + 1)),
    "StepLR": lambda o: lr_scheduler.StepLR(o, 3, gamma=0.5),
    "MultiStepLR": lambda o: lr_scheduler.MultiStepLR(o, [2, 7, 9], gamma=0.3),
    "ConstantLR": lambda o: lr_scheduler.ConstantLR(o, 0.25, total_iters=8),
    "LinearLR": lambda o: lr_scheduler.LinearLR(o, 0.1, total_iters=9),
    "ExponentialLR": lambda o: lr_scheduler.ExponentialLR(o, 0.8),
    "PolynomialLR": lambda o: lr_scheduler.PolynomialLR(o, 11, power=2.0),
    "CosineAnnealingLR": lambda o: lr_scheduler.CosineAnnealingLR(o, 10, eta_min=1e-3),
    "CosineAnnealingWarmRestarts": lambda o: lr_scheduler.CosineAnnealingWarmRestarts(o, 3, T_mult=2),
    "OneCycleLR": lambda o: lr_scheduler.OneCycleLR(o, [0.1, 0.02], 14, cycle_momentum=cycles_momentum(o)),
    "CyclicLR": lambda o: lr_scheduler.CyclicLR(
        o, [1e-3, 2e-3], [0.1, 0.05], 4, mode="triangular2", cycle_momentum=cycles_momentum(o)
    ),
    "ReduceLROnPlateau": lambda o: lr_scheduler.ReduceLROnPlateau(o, factor=0.5, patience=0, cooldown=1),
    "ChainedScheduler": lambda o: lr_scheduler.ChainedScheduler(
        [lr_scheduler.LinearLR(o, 0.1, total_iters=4), lr_scheduler.ExponentialLR(o, 0.9)]
    ),
    "SequentialLR": lambda o: lr_scheduler.SequentialLR(
        o,
        [lr_scheduler.LinearLR(o, 0.1, total_iters=4), lr_scheduler.CosineAnnealingLR(o, 6)],
        milestones=[4],
    ),
}
# A scheduler sees of an optimizer only its groups, and whether these have momentum or betas.
MOMENTUM_OR_BETAS = pytest.mark.parametrize("twin", [TWINS["SGD"], TWINS["recipe"]], ids=["SGD", "recipe"])
CASES = [("SGD", name) for name in MAKERS] + [
    ("recipe", name) for name in ("OneCycleLR", "CyclicLR", "ReduceLROnPlateau", "ChainedScheduler", "SequentialLR")
]
LAST_EPOCH: dict[str, Callable[[torch.optim.Optimizer, int], Any]] = {
    "LambdaLR": lambda o, last: lr_scheduler.LambdaLR(o, lambda i: 0.9**i, last),
    "StepLR": lambda o, last: lr_scheduler.StepLR(o, 3, 0.5, last),
    "CosineAnnealingLR": lambda o, last: lr_scheduler.CosineAnnealingLR(o, 10, 1e-3, last),
    "OneCycleLR": lambda o, last: lr_scheduler.OneCycleLR(
        o, [0.1, 0.02], 14, cycle_momentum=cycles_momentum(o), last_epoch=last
    ),
    "CyclicLR": lambda o, last: lr_scheduler.CyclicLR(
        o, [1e-3, 2e-3], [0.1, 0.05], 4, cycle_momentum=cycles_momentum(o), last_epoch=last
    ),
}


def groups(model: torch.nn.Sequential) -> list[dict[str, Any]]:
    first, second = (list(layer.parameters()) for layer in model if list(layer.parameters()))
    return [{"params": first}, {"params": second, "lr": 0.02}]


def step_of(scheduler: Any) -> Callable[[float], Any]:
    """What is called after each step: only one of the classes looks at the loss."""
    if isinstance(scheduler, lr_scheduler.ReduceLROnPlateau):
        return scheduler.step
    return lambda loss: scheduler.step()


def numbers(optimizer: torch.optim.Optimizer) -> list[Any]:
    """The groups' scheduled values; `max_momentum` is there where momentum is cycled."""
    return [
        [group["lr"], group.get("initial_lr"), group.get("max_momentum"), group.get("momentum", group.get("betas"))]
        for group in optimizer.param_groups
    ]


def test_every_scheduler_is_here() -> None:
    assert {*MAKERS, "LRScheduler"} == set(lr_scheduler.__all__)


@pytest.mark.parametrize(("name", "scheduler_name"), CASES)
def test_schedulers_and_their_checkpoints(name: str, scheduler_name: str) -> None:
    """A run on torch.optim, and one on the bridge that goes on half-way with a loaded optimizer and scheduler."""
    twin, make = TWINS[name], MAKERS[scheduler_name]
    ours, theirs = make_model(), make_model()
    reference = twin.theirs(groups(theirs), lr=0.1)
    scheduler = make(reference)
    train(theirs, reference, range(14), step_of(scheduler))

    first = twin.ours(groups(ours), lr=0.1)
    saved_by = make(first)
    train(ours, first, range(6), step_of(saved_by))
    second = twin.ours(groups(ours), lr=0.7)
    resumed = make(second)
    # In torch's documented order: the scheduler's constructor has just written its first values into the groups.
    resumed.load_state_dict(copy.deepcopy(saved_by.state_dict()))
    second.load_state_dict(first.state_dict())
    train(ours, second, range(6, 14), step_of(resumed))

    assert difference(ours, theirs) <= ROUNDING
    assert numbers(second) == numbers(reference)
    assert resumed.get_last_lr() == scheduler.get_last_lr()
    assert first.compilations == second.compilations == 1


@MOMENTUM_OR_BETAS
@pytest.mark.parametrize("make", [pytest.param(make, id=name) for name, make in LAST_EPOCH.items()])
def test_resuming_with_last_epoch(twin: Twin, make: Callable[[torch.optim.Optimizer, int], Any]) -> None:
    """`initial_lr`, and what else a scheduler keeps in groups, comes back with the optimizer's state."""
    results = []
    for build in twin:
        model = make_model()
        optimizer = build(groups(model), lr=0.1)
        train(model, optimizer, range(6), step_of(make(optimizer, -1)))
        again = build(groups(model), lr=0.1)
        again.load_state_dict(copy.deepcopy(optimizer.state_dict()))
        train(model, again, range(6, 12), step_of(make(again, 5)))
        results.append((model, numbers(again)))
    (ours, our_numbers), (theirs, their_numbers) = results
    assert difference(ours, theirs) <= ROUNDING
    assert our_numbers == their_numbers


@MOMENTUM_OR_BETAS
def test_group_added_under_a_scheduler(twin: Twin) -> None:
    """Of torch's classes StepLR computes with the groups as they are, and so can go on with one group more."""
    results = []
    for build in twin:
        model = make_model()
        first, second = groups(model)
        optimizer = build([first], lr=0.1)
        scheduler = MAKERS["StepLR"](optimizer)
        train(model, optimizer, range(5), step_of(scheduler))
        optimizer.add_param_group(second)
        train(model, optimizer, range(5, 10), step_of(scheduler))
        results.append((model, numbers(optimizer)))
    (ours, our_numbers), (theirs, their_numbers) = results
    assert difference(ours, theirs) <= ROUNDING
    assert [group[:2] for group in our_numbers] == [group[:2] for group in their_numbers]


@pytest.mark.parametrize("make", [pytest.param(MAKERS[name], id=name) for name in ("LinearLR", "CosineAnnealingLR")])
def test_lr_in_a_tensor_stays_that_tensor(make: Make) -> None:
    lr = torch.tensor(0.1, dtype=torch.float64)
    ours, theirs = make_model(), make_model()
    optimizer, reference = TWINS["AdamW"].ours(ours.parameters(), lr=lr), torch.optim.AdamW(theirs.parameters(), lr=0.1)
    train(ours, optimizer, range(12), step_of(make(optimizer)))
    train(theirs, reference, range(12), step_of(make(reference)))
    assert optimizer.param_groups[0]["lr"] is lr
    assert lr.item() == pytest.approx(reference.param_groups[0]["lr"], rel=1e-15)
    assert difference(ours, theirs) <= ROUNDING


def test_no_step_before_the_scheduler_is_torchs_warning() -> None:
    """Schedulers watch `step()` by replacing it on the instance; they see that the bridge has not stepped yet."""
    optimizer = TWINS["recipe"].ours(make_model().parameters(), lr=0.1)
    scheduler = lr_scheduler.StepLR(optimizer, 1)
    with pytest.warns(UserWarning, match="before `optimizer.step"):
        scheduler.step()
