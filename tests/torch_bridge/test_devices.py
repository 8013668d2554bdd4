"""Devices: what is asked of JAX on a GPU, and what is said where there is none."""

import os
from typing import Any

import jax
import pytest
import torch

import funcopt
from funcopt import TorchBridge
from funcopt.torch_bridge import _buffers

HAS_GPU = torch.cuda.is_available() and any(device.platform == "gpu" for device in jax.devices())


EACH_PATH = pytest.mark.parametrize("fast", [True, False], ids=["fast", "plain"])


class PlainBridge(TorchBridge):
    fast_path = False


def make(fast: bool) -> type[TorchBridge]:
    return TorchBridge if fast else PlainBridge


def clipped(lr: Any) -> funcopt.GradientTransformation:
    return funcopt.chain(funcopt.clip_by_global_norm(1.0), funcopt.adamw(lr))


class Device:
    """A GPU as JAX describes it."""

    def __init__(self, pool: int) -> None:
        self.platform = "gpu"
        self.pool = pool

    def memory_stats(self) -> dict[str, int]:
        return {"pool_bytes": self.pool, "bytes_limit": 100 * 2**30}

    def __str__(self) -> str:
        return "cuda:0"


@pytest.mark.one_engine
def test_no_preallocation_unless_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []

    def devices(platform: str) -> list[Device]:
        asked.append((platform, os.environ.get("XLA_PYTHON_CLIENT_PREALLOCATE")))
        return [Device(0)]

    monkeypatch.setattr(jax, "devices", devices)
    monkeypatch.delenv("XLA_PYTHON_CLIENT_PREALLOCATE", raising=False)
    _buffers.jax_device(torch.device("cuda", 0))
    monkeypatch.setenv("XLA_PYTHON_CLIENT_PREALLOCATE", "true")
    _buffers.jax_device(torch.device("cuda"))
    assert asked == [("cuda", "false"), ("cuda", "true")]


def test_memory_that_jax_already_holds() -> None:
    _buffers.warn_if_memory_is_held(Device(2**30))  # pyright: ignore[reportArgumentType]
    with pytest.warns(UserWarning, match=r"JAX already holds 75.0 GiB of cuda:0"):
        _buffers.warn_if_memory_is_held(Device(75 * 2**30))  # pyright: ignore[reportArgumentType]


@pytest.mark.skipif(HAS_GPU, reason="JAX has a GPU here")
def test_device_without_a_jax_counterpart() -> None:
    with pytest.raises(RuntimeError, match=r"parameters are on cuda:1, and JAX has no such device \(it has \["):
        _buffers.jax_device(torch.device("cuda", 1))


@pytest.mark.one_engine
def test_parameters_without_memory() -> None:
    """XLA's engine: what has no gradient may be anywhere; what has one must be where JAX is."""
    params = [torch.nn.Parameter(torch.ones(1)), torch.nn.Parameter(torch.ones(1, device="meta"))]
    optimizer = TorchBridge(params, funcopt.sgd, engine="xla")
    params[0].grad = torch.ones(1)
    optimizer.step()
    params[1].grad = torch.ones(1, device="meta")
    with pytest.raises(RuntimeError, match="parameters must be on the CPU or a CUDA device, got meta; move the model"):
        optimizer.step()


@pytest.mark.skipif(not HAS_GPU, reason="needs a CUDA device that torch and JAX share")
@pytest.mark.parametrize("large", ["cpu", "cuda"])
@EACH_PATH
def test_parameters_on_two_devices(large: str, fast: bool) -> None:
    """The update runs where most of the parameters are; a global norm is of all."""

    def parameters() -> list[torch.nn.Parameter]:
        sizes = {"cpu": 3, "cuda": 3, large: 100_000}
        return [torch.nn.Parameter(torch.ones(n, device=where, dtype=torch.float64)) for where, n in sizes.items()]

    ours, theirs = parameters(), parameters()
    bridge, reference = make(fast)(ours, clipped, lr=0.1), torch.optim.AdamW(theirs, lr=0.1)
    for step in range(5):
        for p in (*ours, *theirs):
            p.grad = torch.full_like(p, 0.1 * (step + 1))
        bridge.step()
        torch.nn.utils.clip_grad_norm_(theirs, 1.0)
        reference.step()
    for p, q in zip(ours, theirs, strict=True):
        torch.testing.assert_close(p, q, rtol=1e-12, atol=0.0)


@pytest.mark.skipif(not HAS_GPU, reason="needs a CUDA device that torch and JAX share")
@EACH_PATH
def test_on_a_gpu(fast: bool) -> None:
    ours = [torch.nn.Parameter(torch.ones(64, 64, device="cuda", dtype=torch.float64))]
    theirs = [torch.nn.Parameter(torch.ones(64, 64, device="cuda", dtype=torch.float64))]
    bridge, reference = make(fast)(ours, funcopt.adamw, lr=0.1), torch.optim.AdamW(theirs, lr=0.1)
    for step in range(5):
        for p in (*ours, *theirs):
            p.grad = torch.full_like(p, 0.1 * (step + 1))
        bridge.step()
        reference.step()
    torch.testing.assert_close(ours[0], theirs[0], rtol=1e-12, atol=0.0)


@pytest.mark.skipif(not HAS_GPU, reason="needs a CUDA device that torch and JAX share")
@EACH_PATH
def test_streams_wait_for_each_other(fast: bool) -> None:
    """Gradients are written on a side stream that lags behind, parameters and state read there, while JAX computes on.

    With momentum 1 all numbers are integers: another one was read before it was there, or after it was overwritten.
    """
    size, steps, side = 2**22, 100, torch.cuda.Stream()
    p = torch.nn.Parameter(torch.zeros(size, device="cuda"))
    p.grad = torch.zeros_like(p)
    optimizer = make(fast)([p], funcopt.sgd, lr=1.0, momentum=1.0)
    busy = torch.eye(4096, device="cuda")
    seen: list[tuple[torch.Tensor, torch.Tensor]] = []
    torch.cuda.synchronize()
    with torch.cuda.stream(side), jax.default_device(jax.devices("gpu")[0]):
        for step in range(steps):
            for _ in range(5):
                busy = busy @ busy
            p.grad.fill_(step)
            optimizer.step()
            seen.append((p.detach()[::4097].clone(), optimizer.state[p]["momentum_buffer"][::4097].clone()))
            jax.numpy.full(size, -1.0)  # in memory that the update has given back
    side.synchronize()
    expected_p = expected_b = 0
    for step, (param, buffer) in enumerate(seen):
        expected_b += step
        expected_p -= expected_b
        assert torch.equal(param, torch.full_like(param, expected_p))
        assert torch.equal(buffer, torch.full_like(buffer, expected_b))
