"""Parameters that miss gradients: however joined ones are divided, numbers are torch's and compilations are bounded."""

import copy
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from twins import ROUNDING, largest_difference, make_parameters, set_gradients

import funcopt
from funcopt import TorchBridge
from funcopt.torch_bridge import optim
from funcopt.torch_bridge.store import _store
from funcopt.torch_bridge.store._block import WIDTHS, width_for

SHAPES = [(4, 3), (5,), (), (2, 3, 2), (1,), (0, 2), (3, 3), (7,), (2, 2), (6,), (1, 4), (8,)]
STEPS = 40
DECAY = 0.9


def averaged(lr: Any, max_norm: Any = 2.0) -> funcopt.GradientTransformation:
    return funcopt.chain(funcopt.clip_by_global_norm(max_norm), funcopt.adamw(lr), funcopt.params_ema(DECAY))


class ClippedAdamW(torch.optim.AdamW):
    """The same by hand; a parameter without a gradient keeps its average."""

    def __init__(self, params: Any, lr: float) -> None:
        super().__init__(params, lr=lr)
        self.averages: dict[torch.Tensor, torch.Tensor] = {}

    def step(self, closure: Any = None) -> None:
        params = [p for group in self.param_groups for p in group["params"] if p.grad is not None]
        torch.nn.utils.clip_grad_norm_(params, 2.0)
        super().step(closure)
        for p in params:
            old = self.averages.get(p, p.detach())
            self.averages[p] = DECAY * old + (1 - DECAY) * p.detach()


class Case(NamedTuple):
    ours: Callable[..., torch.optim.Optimizer]
    theirs: Callable[..., torch.optim.Optimizer]
    options: dict[str, Any]


CASES = {
    "AdamW": Case(optim.AdamW, torch.optim.AdamW, {"amsgrad": True}),
    "NAdam": Case(optim.NAdam, torch.optim.NAdam, {}),
    "ASGD": Case(optim.ASGD, torch.optim.ASGD, {"t0": 5.0}),
    "SGD": Case(optim.SGD, torch.optim.SGD, {"momentum": 0.9, "dampening": 0.2}),
    "recipe": Case(lambda params, lr: TorchBridge(params, averaged, lr=lr), ClippedAdamW, {}),
}


def patterns(kind: str) -> list[list[bool]]:
    """Which parameters have a gradient, step by step."""
    rng = np.random.default_rng(3)
    n = len(SHAPES)
    match kind:
        case "random":
            return [(rng.random(n) < 0.6).tolist() for _ in range(STEPS)]
        case "rare":
            return [(rng.random(n) < 0.95).tolist() for _ in range(STEPS)]
        case "one more each step":
            return [[i <= step % (n + 1) for i in range(n)] for step in range(STEPS)]
        case "halves":
            return [[(i // 6 + step // 3) % 2 == 0 for i in range(n)] for step in range(STEPS)]
    raise ValueError(kind)


def groups(params: list[torch.nn.Parameter]) -> list[dict[str, Any]]:
    return [{"params": params[:7]}, {"params": params[7:], "lr": 0.03}]


def one_step(
    optimizer: torch.optim.Optimizer, params: list[torch.nn.Parameter], step: int, present: list[bool]
) -> None:
    set_gradients(params, step)
    for p, keep in zip(params, present, strict=True):
        p.grad = p.grad if keep else None
    optimizer.step()


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        *((name, kind) for name in CASES for kind in ("random", "halves")),
        *(("SGD", kind) for kind in ("rare", "one more each step")),
    ],
)
def test_divisions_never_change_numbers(name: str, kind: str) -> None:
    """40 steps, in whose middle the state goes through a checkpoint, under "halves" to an optimizer that joins anew."""
    case = CASES[name]
    params, expected = make_parameters(SHAPES), make_parameters(SHAPES)
    optimizer = case.ours(groups(params), lr=0.1, **case.options)
    reference = case.theirs(groups(expected), lr=0.1, **case.options)
    bridges = [optimizer]
    for step, present in enumerate(patterns(kind)):
        if step in (13, 26):
            saved = copy.deepcopy(optimizer.state_dict())
            if step == 26 and kind == "halves":
                optimizer = case.ours(groups(params), lr=0.7, **case.options)
                bridges.append(optimizer)
            optimizer.load_state_dict(saved)
        one_step(optimizer, params, step, present)
        one_step(reference, expected, step, present)
        assert largest_difference(params, expected) <= ROUNDING
    if isinstance(reference, ClippedAdamW):
        own = [optimizer.state[p]["ema"] for p, q in zip(params, expected, strict=True) if q in reference.averages]
        theirs = [reference.averages[q] for q in expected if q in reference.averages]
        assert len(own) == len(params)
        assert largest_difference(own, theirs) <= ROUNDING
    ours = optimizer.state_dict()["state"]
    counts = {i: int(entry["step"]) for i, entry in reference.state_dict()["state"].items() if entry.get("step")}
    assert {i: int(entry["step"]) for i, entry in ours.items() if entry.get("step")} == counts
    # The programs for single patterns, those of large parameters with and without joined ones, and that for further
    # patterns.
    for bridge in bridges:
        assert isinstance(bridge, TorchBridge)
        assert bridge.compilations <= 2 * _store.MAX_PATTERNS + 2


@pytest.mark.parametrize(
    ("sizes", "width"),
    [
        ([1], 64),
        ([16_384], 64),  # a small block, of whatever
        ([16_385] * 2, 1024),
        ([1024] * 20, 1024),
        ([2049] * 20, 256),
        ([65] * 1000, 64),
    ],
)
def test_rows_are_wide_where_that_wastes_little(sizes: list[int], width: int) -> None:
    assert width_for([torch.empty(size) for size in sizes]) == width


def test_missing_gradients_of_small_parameters_are_numbers() -> None:
    params = make_parameters(SHAPES)
    optimizer = optim.AdamW(params)
    for step in range(12):
        one_step(optimizer, params, step, [True] * 12 if step == 0 else [(i < 6) == (step % 2 == 0) for i in range(12)])
    one_step(optimizer, params, 12, [True] * 12)
    assert optimizer.compilations == 1


@pytest.mark.parametrize(("join_up_to", "width"), [(-1, 64), (3, 64), *((_store.JOIN_UP_TO, w) for w in WIDTHS)])
def test_how_parameters_are_joined_changes_nothing(
    join_up_to: int, width: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever is joined, the numbers are those of parameters in their own shapes."""
    results = []
    for fast in (False, True):
        monkeypatch.setattr(TorchBridge, "fast_path", fast)
        monkeypatch.setattr(_store, "JOIN_UP_TO", join_up_to)
        monkeypatch.setattr(_store, "width_for", lambda params: width)
        params = make_parameters(SHAPES)
        optimizer = TorchBridge(groups(params), averaged, lr=0.1)
        for step, present in enumerate(patterns("halves")[:8]):
            one_step(optimizer, params, step, present)
        results.append(params)
    assert largest_difference(*results) <= ROUNDING


def blocks_of(optimizer: TorchBridge) -> list[Any]:
    """What holds parameters by their own."""
    assert optimizer._held is not None
    return optimizer._held._alone


@pytest.mark.one_engine
@pytest.mark.parametrize(
    "transform",
    [
        funcopt.lamb,
        pytest.param(funcopt.novograd, marks=pytest.mark.thorough),
        pytest.param(funcopt.cautious(funcopt.adamw), marks=pytest.mark.thorough),
    ],
)
def test_those_of_one_shape_of_which_sums_are_taken(transform: Any) -> None:
    """They are joined, one row each, and more of them may come; a missing gradient is a number."""
    shapes = [(8,), (8,), (4, 8), (8,), (200, 300), (4, 8), (200, 300), (3,), (8,)]
    ours, theirs = make_parameters(shapes), make_parameters(shapes)
    fast, plain = (TorchBridge(params[:7], transform, lr=0.1) for params in (ours, theirs))
    plain.fast_path = False
    for step in range(8):
        for params, optimizer in ((ours, fast), (theirs, plain)):
            if step == 4:
                optimizer.add_param_group({"params": params[7:], "lr": 0.2})
            set_gradients(params, step)
            for i, p in enumerate(params):
                p.grad = None if step % 2 and i == step % 4 else p.grad
            optimizer.step()
        assert largest_difference(ours, theirs) <= ROUNDING
    assert fast._held is not None
    sizes = sorted((block.joined, sum(p is not None for p in block.params)) for block in fast._held.blocks)
    assert sizes == [(False, 1), (False, 1), (False, 1), (True, 2), (True, 4)]


@pytest.mark.one_engine
def test_many_parameters_of_few_shapes_of_which_sums_are_taken() -> None:
    params = make_parameters([(5,), (2, 3)] * _store.MAX_WITH_SUMS)
    optimizer = TorchBridge(params, funcopt.lamb, lr=0.1)
    set_gradients(params, 0)
    optimizer.step()
    assert optimizer._held is not None
    assert [len(block.params) for block in optimizer._held.blocks] == [_store.MAX_WITH_SUMS] * 2


@pytest.mark.thorough
@pytest.mark.one_engine
def test_ever_new_patterns_of_updates_that_take_sums() -> None:
    """Parameters have places of their own at first, and none once there have been many patterns."""
    shapes = [(50,), (3, 4), (7,), (2, 3, 2), (5,)]
    ours, theirs = make_parameters(shapes), make_parameters(shapes)
    fast, plain = (TorchBridge(params, funcopt.lamb, lr=0.1) for params in (ours, theirs))
    plain.fast_path = False
    for step in range(2 * _store.MAX_PATTERNS + 6):
        for params, optimizer in ((ours, fast), (theirs, plain)):
            set_gradients(params, step)
            for i, p in enumerate(params):
                p.grad = p.grad if (step + 1) >> i & 1 else None
            optimizer.step()
        if step == 0:
            assert len(blocks_of(fast)) == 1
        assert largest_difference(ours, theirs) <= ROUNDING
    assert blocks_of(fast) == []
    assert fast.compilations <= 2 * _store.MAX_PATTERNS + 2
