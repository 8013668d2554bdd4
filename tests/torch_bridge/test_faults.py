"""A step that fails anywhere has changed nothing, and the next one works."""

import copy
import signal
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import optax
import pytest
import torch

import funcopt
from funcopt import TorchBridge
from funcopt.torch_bridge._binding import Binding
from funcopt.torch_bridge.engines import _kept, _torch, _xla
from funcopt.torch_bridge.store._block import Block
from funcopt.torch_bridge.store._store import JOIN_UP_TO, Store
from funcopt.torch_bridge.store._whole import WholePart


class PlainBridge(TorchBridge):
    fast_path = False


EACH_PATH = pytest.mark.parametrize("fast", [True, False], ids=["fast", "plain"])


def make(fast: bool) -> tuple[list[torch.nn.Parameter], TorchBridge]:
    """Small parameters, and a large one that moves into the bridge's memory."""
    generator = torch.Generator().manual_seed(0)
    shapes = ((4, 3), (5,), (JOIN_UP_TO + 1,))
    params = [torch.nn.Parameter(torch.randn(shape, generator=generator)) for shape in shapes]
    bridge = (TorchBridge if fast else PlainBridge)(params, funcopt.adamw, lr=lambda step: 0.1 / (1 + step))
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


# Everything that can fail comes before the kernel.
STAGES = {
    "reading groups": ((Store, "read"), (Store, "read")),
    "following the state": ((Block, "changes"), (WholePart, "__init__")),
    "lending memory": ((Block, "lend"), (WholePart, "lend")),
    "before the kernel": (("engine", "update"), ("engine", "update")),
}


def place(stage: Any, engine: str) -> tuple[Any, str]:
    """A method, of the engine if it is one's."""
    owner, name = stage
    return ({"xla": _xla.Engine, "torch": _torch.Engine}[engine] if owner == "engine" else owner), name


@pytest.mark.parametrize("stage", STAGES)
@EACH_PATH
def test_exception_before_the_kernel(stage: str, fast: bool, engine: str, monkeypatch: pytest.MonkeyPatch) -> None:
    params, bridge = make(fast)
    other_params, other = make(fast)
    before = snapshot(params, bridge)
    with monkeypatch.context() as patch:
        patch.setattr(*place(STAGES[stage][not fast], engine), raising)
        with pytest.raises(FaultError):
            bridge.step()
    assert same(snapshot(params, bridge), before)
    bridge.step()
    other.step()
    assert same(snapshot(params, bridge), snapshot(other_params, other))


@EACH_PATH
def test_exception_while_a_new_program_is_made(fast: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """With another flag, which decides what is computed."""
    params, bridge = make(fast)
    before = snapshot(params, bridge)
    bridge.param_groups[0]["maximize"] = True
    _xla.forget_programs()
    _kept.forget_codes()
    with monkeypatch.context() as patch:
        patch.setattr(Binding, "build", raising)
        with pytest.raises(FaultError):
            bridge.step()
    assert same(snapshot(params, bridge), before)
    bridge.step()
    steps = [int(bridge.state[p]["step"]) for p in params]
    assert steps == [2, 2, 2]


INTERRUPTED = {
    "in the kernel": (("engine", "update"), ("engine", "update"), False),
    "after the kernel": (("engine", "update"), ("engine", "update"), True),
    "before writing": ((Block, "store"), (WholePart, "store"), False),
    "after writing": ((Block, "store"), (WholePart, "store"), True),
}


@pytest.fixture
def sigint() -> Iterator[None]:
    """Python's own handler, which a shell's background job has not."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("sigint")
@pytest.mark.parametrize("stage", INTERRUPTED)
@EACH_PATH
def test_interrupt_waits_for_the_end_of_the_update(
    stage: str, fast: bool, engine: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ctrl-C between kernel and write-back: the step is complete when it is heard."""
    params, bridge = make(fast)
    other_params, other = make(fast)
    *places, after = INTERRUPTED[stage]
    owner, name = place(places[not fast], engine)
    original = getattr(owner, name)

    def interrupted(*args: Any, **kwargs: Any) -> Any:
        if not after:
            signal.raise_signal(signal.SIGINT)
        result = original(*args, **kwargs)
        if after:
            signal.raise_signal(signal.SIGINT)
        return result

    handler = signal.getsignal(signal.SIGINT)
    with monkeypatch.context() as patch:
        patch.setattr(owner, name, interrupted)
        with pytest.raises(KeyboardInterrupt):
            bridge.step()
    assert signal.getsignal(signal.SIGINT) is handler
    other.step()
    assert same(snapshot(params, bridge), snapshot(other_params, other))
    bridge.step()
    other.step()
    assert same(snapshot(params, bridge), snapshot(other_params, other))


def test_out_of_memory_in_the_update() -> None:
    """A recipe whose update asks for more memory than there is, once."""
    hungry = [True]

    def recipe(lr: Any, rounds: int = 1) -> funcopt.GradientTransformation:
        def update(updates: Any, state: Any, params: Any = None) -> Any:
            del params
            if not hungry[0]:
                return updates, state
            much = jnp.sort(jnp.sin(jnp.arange(2**42, dtype=jnp.float32) * rounds))
            return jax.tree.map(lambda g: g + much[0], updates), state

        return funcopt.chain(optax.GradientTransformation(optax.identity().init, update), funcopt.adamw(lr))

    params, _ = make(True)
    bridge = TorchBridge(params, recipe, lr=lambda step: 0.1 / (1 + step))
    before = snapshot(params, bridge)
    with pytest.raises(Exception, match=r"[Mm]emory"):
        bridge.step()
    assert same(snapshot(params, bridge), before)
    hungry[0] = False
    bridge.param_groups[0]["rounds"] = 2
    bridge.step()
    assert not same(snapshot(params, bridge), before)


@EACH_PATH
def test_exception_in_hooks_and_closure(fast: bool) -> None:
    params, bridge = make(fast)
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


@EACH_PATH
def test_gradient_of_another_shape(fast: bool) -> None:
    params, bridge = make(fast)
    before = snapshot(params, bridge)
    assert params[0].grad is not None
    params[0].grad.data = torch.ones(7)
    with pytest.raises(Exception, match=r"shape|broadcast|size of tensor"):
        bridge.step()
    assert same(snapshot(params, bridge), before)
    params[0].grad = torch.ones_like(params[0])
    bridge.step()
