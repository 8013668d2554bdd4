"""A step that fails anywhere has changed nothing, and the next one works."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch

import funcopt
from funcopt import TorchBridge
from funcopt.torch_bridge import _bridge, _buffers, _engine


def make() -> tuple[list[torch.nn.Parameter], TorchBridge]:
    generator = torch.Generator().manual_seed(0)
    params = [torch.nn.Parameter(torch.randn(shape, generator=generator)) for shape in ((4, 3), (5,))]
    bridge = TorchBridge(params, funcopt.adamw, lr=lambda step: 0.1 / (1 + step))
    for p in params:
        p.grad = torch.ones_like(p)
    bridge.step()
    return params, bridge


def snapshot(params: list[torch.nn.Parameter], bridge: TorchBridge) -> list[torch.Tensor]:
    state = bridge.state_dict()
    values = [value for entry in state["state"].values() for value in entry.values()]
    counts = [torch.tensor(group["schedule_step"]) for group in state["param_groups"]]
    return copy.deepcopy([p.detach() for p in params] + values + counts)


def same(a: list[torch.Tensor], b: list[torch.Tensor]) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


class FaultError(Exception):
    pass


def raising(*args: Any, **kwargs: Any) -> Any:
    raise FaultError


def fail_after(function: Callable[..., Any]) -> Callable[..., Any]:
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        function(*args, **kwargs)
        raise FaultError

    return wrapped


STAGES = {
    "reading gradients": (_bridge, "_gradient", raising),
    "reading parameters": (_bridge, "_parameter", raising),
    "before the kernel": (_engine.Engine, "update", raising),
    "after the kernel": (_engine.Engine, "update", fail_after(_engine.Engine.update)),
    "planning the writes": (_buffers, "plan_writes", raising),
    "after planning the writes": (_buffers, "plan_writes", fail_after(_buffers.plan_writes)),
    "writing": (_buffers, "write", raising),
}


@pytest.mark.parametrize("stage", STAGES)
def test_exception_at_any_stage(stage: str, monkeypatch: pytest.MonkeyPatch) -> None:
    params, bridge = make()
    other_params, other = make()
    before = snapshot(params, bridge)
    owner, name, replacement = STAGES[stage]
    with monkeypatch.context() as patch:
        patch.setattr(owner, name, replacement)
        with pytest.raises(FaultError):
            bridge.step()
    assert same(snapshot(params, bridge), before)
    bridge.step()
    other.step()
    assert same(snapshot(params, bridge), snapshot(other_params, other))


def test_exception_in_hooks_and_closure() -> None:
    params, bridge = make()
    before = snapshot(params, bridge)
    with pytest.raises(FaultError):
        bridge.step(raising)
    handle = bridge.register_step_pre_hook(raising)
    with pytest.raises(FaultError):
        bridge.step()
    handle.remove()
    assert same(snapshot(params, bridge), before)
    bridge.step()
    assert not same(snapshot(params, bridge), before)


def test_interrupt_while_writing_waits_for_the_rest(monkeypatch: pytest.MonkeyPatch) -> None:
    params, bridge = make()
    other_params, other = make()
    original, calls = _buffers.write, []

    def interrupted(writes: Any) -> None:
        calls.append(1)
        if len(calls) == 1:
            raise KeyboardInterrupt
        original(writes)

    with monkeypatch.context() as patch:
        patch.setattr(_buffers, "write", interrupted)
        with pytest.raises(KeyboardInterrupt):
            bridge.step()
    other.step()
    assert same(snapshot(params, bridge), snapshot(other_params, other))


def test_gradient_of_another_shape() -> None:
    params, bridge = make()
    before = snapshot(params, bridge)
    params[0].grad.data = torch.ones(7)
    with pytest.raises(Exception, match=r"shape|broadcast"):
        bridge.step()
    assert same(snapshot(params, bridge), before)
    params[0].grad = torch.ones_like(params[0])
    bridge.step()
