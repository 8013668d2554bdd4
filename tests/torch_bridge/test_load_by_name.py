"""Checkpoints by name: what positional loading lets through, and what moved."""

import copy
from typing import Any

import pytest
import torch

import funcopt
from funcopt import TorchBridge
from funcopt.torch_bridge import optim

pytestmark = pytest.mark.usefixtures("each_path")


def named(*names: str) -> list[tuple[str, torch.nn.Parameter]]:
    return [(name, torch.nn.Parameter(torch.full((3,), float(len(name))))) for name in names]


def train(optimizer: torch.optim.Optimizer, steps: int = 3) -> None:
    """The gradient of a parameter depends on its name alone."""
    for step in range(steps):
        for group in optimizer.param_groups:
            for name, p in zip(group["param_names"], group["params"], strict=True):
                p.grad = torch.full_like(p, 0.1 * (step + 1) * len(name))
        optimizer.step()


def exp_avgs(optimizer: TorchBridge) -> dict[str, float]:
    return {
        name: optimizer.state[p]["exp_avg"][0].item()
        for group in optimizer.param_groups
        for name, p in zip(group["param_names"], group["params"], strict=True)
    }


@pytest.fixture
def saved() -> tuple[dict[str, Any], dict[str, float]]:
    bridge = TorchBridge(named("a", "bb", "ccc"), funcopt.adam, lr=0.3)
    train(bridge)
    return bridge.state_dict(), exp_avgs(bridge)


def test_swap_of_equal_shapes_is_caught(saved: Any) -> None:
    bridge = TorchBridge(named("bb", "a", "ccc"), funcopt.adam)
    with pytest.raises(ValueError, match="group 0 must have 'bb' where it has 'a'; load with match='name'"):
        bridge.load_state_dict(saved[0])
    torch.optim.Adam(named("bb", "a", "ccc")).load_state_dict(saved[0])  # torch lets it through


def test_reordered_and_regrouped(saved: Any) -> None:
    groups = [{"params": named("ccc"), "lr": 0.5}, {"params": named("bb", "a"), "lr": 0.7}]
    bridge = TorchBridge(groups, funcopt.adam)
    report = bridge.load_state_dict(saved[0], match="name")
    assert report == (("ccc", "bb", "a"), (), ())
    assert exp_avgs(bridge) == saved[1]
    assert [group["param_names"] for group in bridge.param_groups] == [["ccc"], ["bb", "a"]]
    assert [group["lr"] for group in bridge.param_groups] == [0.3, 0.3]
    train(bridge)


def test_added_removed_and_renamed(saved: Any) -> None:
    bridge = TorchBridge(named("ccc", "new", "B"), funcopt.adam)
    before = copy.deepcopy(bridge.state_dict())
    with pytest.raises(ValueError, match="only in the optimizer: new; only in the checkpoint: a; map names"):
        bridge.load_state_dict(saved[0], match="name", rename={"bb": "B"})
    assert bridge.state_dict() == before
    report = bridge.load_state_dict(saved[0], match="name", strict=False, rename={"bb": "B"})
    assert report == (("ccc", "B"), ("new",), ("a",))
    old, new, renamed = bridge.param_groups[0]["params"]
    assert new not in bridge.state
    assert bridge.state[old]["exp_avg"][0] == saved[1]["ccc"]
    assert bridge.state[renamed]["exp_avg"][0] == saved[1]["bb"]
    train(bridge, 1)
    assert [int(bridge.state[p]["step"]) for p in (old, new, renamed)] == [4, 1, 4]


def test_from_torchs_own_checkpoint() -> None:
    reference = torch.optim.AdamW(named("a", "bb"))
    train(reference)
    bridge = optim.AdamW(named("bb", "a"))
    assert bridge.load_state_dict(reference.state_dict(), match="name").matched == ("bb", "a")
    assert exp_avgs(bridge) == {
        name: reference.state[p]["exp_avg"][0].item()
        for name, p in zip(("a", "bb"), reference.param_groups[0]["params"], strict=True)
    }


def test_errors(saved: Any) -> None:
    bridge = TorchBridge(named("a", "bb", "ccc"), funcopt.adam)
    unnamed = TorchBridge([p for _, p in named("a", "bb", "ccc")], funcopt.adam)
    shapes = TorchBridge([("a", torch.nn.Parameter(torch.ones(7)))], funcopt.adam)
    cases = [
        (bridge, saved[0], {"match": "nmae"}, "match must be 'position' or 'name', got 'nmae'"),
        (bridge, saved[0], {"rename": {"a": "b"}}, "match must be 'name' with rename"),
        (bridge, saved[0], {"match": "name", "rename": {"cc": "a"}}, "known parameter, got 'cc'; did you mean 'ccc'"),
        (bridge, saved[0], {"match": "name", "rename": {"a": "cccc"}}, "got 'cccc'; did you mean 'ccc'"),
        (bridge, unnamed.state_dict(), {"match": "name"}, "group 0 of the checkpoint must be named"),
        (unnamed, saved[0], {"match": "name"}, "group 0 must be named, got 'no param_names'; make the optimizer with"),
        (shapes, saved[0], {"match": "name", "strict": False}, r"'a' of group 0 must have shape \(7,\), got \(3,\)"),
    ]
    for optimizer, state, options, message in cases:
        with pytest.raises(ValueError, match=message):
            optimizer.load_state_dict(state, **options)


def test_complex_state_for_a_real_parameter_is_refused(saved: Any) -> None:
    bridge = TorchBridge(named("a", "bb", "ccc"), funcopt.adam)
    state = copy.deepcopy(saved[0])
    state["state"][0]["exp_avg"] = state["state"][0]["exp_avg"].to(torch.complex64)
    with pytest.raises(ValueError, match="exp_avg of parameter 'a' of group 0 must be like float32, got"):
        bridge.load_state_dict(state)


@pytest.mark.parametrize("named", [(True, False), (False, True), (True, True), (False, False)])
def test_names_after_loading_by_position(named: tuple[bool, bool]) -> None:
    """As torch: the checkpoint's where it has any."""
    found = []
    for module in (torch.optim, optim):
        model = torch.nn.Linear(3, 2)
        first, second = (module.SGD(model.named_parameters() if own else model.parameters(), lr=0.1) for own in named)
        model(torch.ones(1, 3)).sum().backward()
        second.load_state_dict(first.state_dict())
        second.step()
        found.append([group.get("param_names") for group in second.state_dict()["param_groups"]])
    assert found[0] == found[1]
