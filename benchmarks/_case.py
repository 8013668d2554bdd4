"""What a case is, and who runs it: torch.optim in several implementations, and the bridge."""

import shutil
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch

from benchmarks._workloads import Shape
from funcopt import TorchBridge

Params = Sequence[torch.nn.Parameter]
Implementation = Mapping[str, Any]  # arguments of a torch optimizer that choose its kernels

# Both sides round a handful of float32 operations per step, relative to what a few dozen steps change. Measured worst
# 2e-4, for the composed recipe: parameters are up to 100 times larger than what its small rate changes.
FLOAT32 = 1e-3


class PlainBridge(TorchBridge):
    """The bridge on its plain path, tensor by tensor."""

    fast_path = False


class TorchEngineBridge(TorchBridge):
    """The bridge with torch's engine."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, engine="torch", **kwargs)


class CompiledBridge(TorchBridge):
    """The same, compiled."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, engine="torch", compiled=True, **kwargs)


class Run(NamedTuple):
    """An optimizer at work."""

    step: Callable[[], object]  # one update with the gradients that the parameters hold
    results: Callable[[], list[torch.Tensor]]  # what it computed


class BenchmarkCase(NamedTuple):
    """An algorithm, or a composition of several, in each framework."""

    name: str  # on the command line
    min_bytes: float | None  # that any program moves per element and step; None where arithmetic decides
    arrays: int  # of the parameters' size that one optimizer needs, the parameters included
    torch: Callable[[Params, Implementation], Run]
    bridge: Callable[[Params, type[TorchBridge]], Run]
    jax: Callable[[Sequence[Shape]], Any]
    optax: Callable[[Sequence[Shape]], Any] | None  # None where optax has another algorithm by that name
    joinable: bool  # whether its leaves may be joined: it treats all alike and each element alone
    torch_peers: tuple[str, ...]  # of TORCH_PEERS
    workloads: tuple[str, ...]  # of a full run
    wants: Callable[[Shape], bool] = lambda shape: True
    tolerance: float = FLOAT32  # of the largest difference to torch, relative to the largest change


TORCH_PEERS: dict[str, Implementation] = {
    "default": {},
    "foreach": {"foreach": True},
    "fused": {"fused": True},
    "compiled": {},
}
BRIDGE_PEERS = {
    "bridge": TorchBridge,
    "bridge-plain": PlainBridge,
    "bridge-torch": TorchEngineBridge,
    "bridge-compiled": CompiledBridge,
}
PEERS = (*TORCH_PEERS, *BRIDGE_PEERS)


def build(case: BenchmarkCase, peer: str, params: Params) -> Run:
    """Makes a peer for parameters."""
    if peer in BRIDGE_PEERS:
        return case.bridge(params, BRIDGE_PEERS[peer])
    run = case.torch(params, TORCH_PEERS[peer])
    return run._replace(step=torch.compile(run.step)) if peer == "compiled" else run


def peers_of(case: BenchmarkCase) -> tuple[str, ...]:
    """The peers that exist for a case."""
    return (*case.torch_peers, *BRIDGE_PEERS)


def can_compile(device: torch.device) -> bool:
    """Whether `torch.compile` finds what it needs."""
    return device.type != "cpu" or any(map(shutil.which, ("c++", "g++", "clang++")))
