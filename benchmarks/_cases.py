"""What is compared: each case in torch, on the bridge, in funcopt's JAX and in optax, as data."""

import inspect
from collections.abc import Callable, Mapping
from typing import Any

import optax
import torch

import funcopt
from benchmarks._case import FLOAT32, TORCH_PEERS, BenchmarkCase, Implementation, Params, Run
from benchmarks._composed import COMPOSED
from benchmarks._lion import Lion
from benchmarks._workloads import Shape
from funcopt import TorchBridge

ALL = ("resnet50", "gpt2-small", "vit-b16", "mobilenet-v2", "llama-1b", "1000x32x32")
TWO = ("resnet50", "1000x32x32")

# torch's Muon iterates in bfloat16, see `conformance`. Measured 4e-3.
BFLOAT16 = 2.0**-5


def _single(
    name: str,
    torch_class: type[torch.optim.Optimizer],
    factory: Callable[..., Any],
    options: Mapping[str, Any],
    *,
    min_bytes: float | None,
    states: int,
    optax: Callable[[], Any] | None,
    joinable: bool = True,
    workloads: tuple[str, ...] = TWO,
    wants: Callable[[Shape], bool] = lambda shape: True,
    tolerance: float = FLOAT32,
) -> BenchmarkCase:
    """A case of one algorithm with the same options everywhere."""

    def in_torch(params: Params, implementation: Implementation) -> Run:
        return Run(torch_class(params, **options, **implementation).step, lambda: list(params))

    def on_bridge(params: Params, bridge: type[TorchBridge]) -> Run:
        return Run(bridge(params, factory, **options).step, lambda: list(params))

    arguments = inspect.signature(torch_class).parameters
    return BenchmarkCase(
        name,
        min_bytes,
        1 + states,
        in_torch,
        on_bridge,
        lambda shapes: factory(**options),
        None if optax is None else lambda shapes: optax(),
        joinable,
        tuple(peer for peer, implementation in TORCH_PEERS.items() if set(implementation) <= set(arguments)),
        workloads,
        wants,
        tolerance,
    )


def lion(lr: Any, weight_decay: Any) -> Any:
    """Optax's direction between funcopt's parts, as a user would compose it."""
    return funcopt.chain(
        funcopt.ElementwiseTransformation(*optax.scale_by_lion(b1=0.9, b2=0.99)),
        funcopt.add_decayed_weights(weight_decay),
        funcopt.scale_by_learning_rate(lr),
    )


CASES = {
    case.name: case
    for case in (
        _single(
            "adamw",
            torch.optim.AdamW,
            funcopt.adamw,
            {"lr": 1e-3, "weight_decay": 0.01},
            min_bytes=28,
            states=2,
            optax=lambda: optax.adamw(1e-3, weight_decay=0.01),
            workloads=ALL,
        ),
        _single(
            "sgd-momentum",
            torch.optim.SGD,
            funcopt.sgd,
            {"lr": 1e-2, "momentum": 0.9},
            min_bytes=20,
            states=1,
            optax=lambda: optax.sgd(1e-2, momentum=0.9),
            workloads=("resnet50", "gpt2-small", "1000x32x32"),
        ),
        _single(
            "sgd-nesterov",
            torch.optim.SGD,
            funcopt.sgd,
            {"lr": 1e-2, "momentum": 0.9, "nesterov": True, "weight_decay": 1e-4},
            min_bytes=20,
            states=1,
            optax=lambda: optax.chain(optax.add_decayed_weights(1e-4), optax.sgd(1e-2, momentum=0.9, nesterov=True)),
        ),
        _single(
            "rmsprop",
            torch.optim.RMSprop,
            funcopt.rmsprop,
            {"lr": 1e-3},
            min_bytes=20,
            states=1,
            optax=lambda: optax.rmsprop(1e-3, decay=0.99, eps=1e-8, eps_in_sqrt=False),
        ),
        _single(
            "nadam",
            torch.optim.NAdam,
            funcopt.nadam,
            {"lr": 1e-3},
            min_bytes=28,
            states=2,
            optax=None,
        ),
        _single(
            "adadelta",
            torch.optim.Adadelta,
            funcopt.adadelta,
            {"lr": 1.0},
            min_bytes=28,
            states=2,
            optax=lambda: optax.adadelta(1.0),
        ),
        _single(
            "lion",
            Lion,
            lion,
            {"lr": 1e-4, "weight_decay": 0.1},
            min_bytes=20,
            states=1,
            optax=lambda: optax.lion(1e-4, b1=0.9, b2=0.99, weight_decay=0.1),
            workloads=("resnet50", "gpt2-small", "1000x32x32"),
        ),
        _single(
            "muon",
            torch.optim.Muon,
            funcopt.muon,
            {"lr": 1e-3, "weight_decay": 0.1},
            min_bytes=None,
            states=1,
            optax=None,
            joinable=False,
            workloads=("gpt2-block",),
            wants=lambda shape: len(shape) == 2,
            tolerance=BFLOAT16,
        ),
        COMPOSED,
    )
}
