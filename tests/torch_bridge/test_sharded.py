"""FSDP2 and other divisions of parameters over two processes, which train what one process trains."""

import itertools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed.checkpoint as dcp
import torch.multiprocessing
from torch import distributed
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_tensor
from torch.distributed.tensor.debug import CommDebugMode
from twins import ROUNDING

import funcopt
from funcopt import TorchBridge
from funcopt.torch_bridge import SAM, optim

pytestmark = pytest.mark.one_engine

PROCESSES = 2
STEPS = 5


def recipe(lr: Any = 0.01) -> Any:
    return funcopt.chain(funcopt.clip_by_global_norm(0.5), funcopt.adamw(lr), funcopt.params_ema(0.9))


BUILD: dict[str, Callable[..., Any]] = {
    "AdamW": lambda params: optim.AdamW(params, lr=0.01),
    "SGD": lambda params: optim.SGD(params, lr=0.001, momentum=0.9),
    "Rprop": optim.Rprop,
    "NAdam": lambda params: optim.NAdam(params, lr=0.01),
    "recipe": lambda params: TorchBridge(params, recipe),
    "Prodigy": lambda params: TorchBridge(params, funcopt.prodigy, d0=1e-3),
    "schedule-free": lambda params: TorchBridge(params, funcopt.schedule_free_adamw),
}
COLLECTIVES = {"recipe": 1, "Prodigy": 2}  # in a step: one for each total


def make() -> torch.nn.Sequential:
    """Sizes that two processes cannot share evenly, one that leaves a process nothing, and a large one."""
    torch.manual_seed(0)
    sizes = (7, 9, 1, 5, 301, 303)
    return torch.nn.Sequential(*(torch.nn.Linear(a, b) for a, b in itertools.pairwise(sizes))).double()


def shard(model: torch.nn.Sequential, mesh: DeviceMesh) -> Any:
    for layer in model:
        fully_shard(layer, mesh=mesh)
    return fully_shard(model, mesh=mesh)


def gradients(*models: torch.nn.Module) -> Iterator[None]:
    """The same data for all of them, step by step."""
    generator = torch.Generator().manual_seed(5)
    for _ in range(STEPS):
        x = torch.randn(4, 7, generator=generator, dtype=torch.float64)
        for model in models:
            model.zero_grad()
            model(x).square().mean().backward()
        yield


def whole(p: torch.Tensor) -> torch.Tensor:
    return p.full_tensor() if isinstance(p, DTensor) else p.detach()


def difference(model: torch.nn.Module, other: torch.nn.Module) -> float:
    pairs = zip(model.parameters(), other.parameters(), strict=True)
    return max((whole(p) - whole(q)).abs().max().item() for p, q in pairs)


def train_fsdp(mesh: DeviceMesh, folder: Path) -> dict[str, Any]:
    found = {}
    for name, build in BUILD.items():
        plain, divided = make(), shard(make(), mesh)
        optimizers = build(plain.parameters()), build(divided.parameters())
        collectives = 0
        for _ in gradients(plain, divided):
            optimizers[0].step()
            with CommDebugMode() as mode:
                optimizers[1].step()
            collectives = mode.get_total_counts()
        worst = difference(plain, divided)
        kept = [(p, value) for p in divided.parameters() for value in optimizers[1].state[p].values()]
        kept = [(p, value) for p, value in kept if isinstance(value, torch.Tensor) and value.dim()]

        weights, saved = get_state_dict(divided, optimizers[1])
        dcp.save({"model": weights, "optimizer": saved}, checkpoint_id=folder / name)
        resumed = shard(make(), mesh)
        optimizer = build(resumed.parameters())
        weights, saved = get_state_dict(resumed, optimizer)
        dcp.load({"model": weights, "optimizer": saved}, checkpoint_id=folder / name)
        set_state_dict(resumed, optimizer, model_state_dict=weights, optim_state_dict=saved)
        same = difference(divided, resumed)
        for _ in gradients(divided, resumed):
            optimizers[1].step()
            optimizer.step()
        found[name] = {
            "difference": worst,
            "engine": optimizers[1].engine.name,
            "collectives": collectives,
            "divided": all(isinstance(value, DTensor) and value.placements == p.placements for p, value in kept),
            "resumed": max(same, difference(divided, resumed)),
        }
    return found


def train_divided(mesh: DeviceMesh) -> dict[str, float]:
    """Columns, rows and copies, as tensor parallel models have them, beside a plain parameter."""
    found = {}
    for name, build in BUILD.items():
        torch.manual_seed(1)
        values = [torch.randn(4, 6).double() for _ in range(4)]
        places: list[Any] = [[Shard(1)], [Shard(0)], [Replicate()], None]
        plain = [torch.nn.Parameter(x.clone()) for x in values]
        divided = [
            torch.nn.Parameter(x.clone() if place is None else distribute_tensor(x, mesh, place))
            for x, place in zip(values, places, strict=True)
        ]
        optimizers = build(plain), build(divided)
        for step in range(STEPS):
            for p, q, place in zip(plain, divided, places, strict=True):
                grad = torch.randn(4, 6, generator=torch.Generator().manual_seed(step)).double()
                p.grad, q.grad = grad, grad if place is None else distribute_tensor(grad, mesh, place)
            for optimizer in optimizers:
                optimizer.step()
        found[name] = max((whole(q) - p.detach()).abs().max().item() for p, q in zip(plain, divided, strict=True))
    return found


def train_sharpened(mesh: DeviceMesh) -> dict[str, Any]:
    """SAM's norm and the metrics are of all processes; a step has the clip's collective and one of the metrics."""
    models = make(), shard(make(), mesh)
    optimizers = [SAM(TorchBridge(model.parameters(), funcopt.with_metrics(recipe)), rho=0.3) for model in models]
    generator = torch.Generator().manual_seed(5)
    worst, collectives = 0.0, 0
    for _ in range(STEPS):
        x = torch.randn(4, 7, generator=generator, dtype=torch.float64)
        for model, optimizer in zip(models, optimizers, strict=True):
            optimizer.zero_grad()
            model(x).square().mean().backward()
            optimizer.first_step(zero_grad=True)
            model(x).square().mean().backward()
            with CommDebugMode() as mode:
                optimizer.second_step()
            collectives = mode.get_total_counts()
        ours, theirs = (optimizer.base_optimizer.metrics() for optimizer in reversed(optimizers))  # pyright: ignore
        pairs = [(ours[name], theirs[name]) for name in ("grad_norm", "update_norm", "param_norm", "clipped_fraction")]
        pairs += zip(ours["update_ratio"] + ours["lr"], theirs["update_ratio"] + theirs["lr"], strict=True)
        worst = max(worst, *(abs(a - b) / max(abs(b), 1e-9) for a, b in pairs))
    return {"difference": difference(*models), "metrics": worst, "collectives": collectives}


def refused(mesh: DeviceMesh) -> str:
    p = torch.nn.Parameter(distribute_tensor(torch.ones(4, 4), mesh, [Shard(0)]))
    p.grad = distribute_tensor(torch.ones(4, 4), mesh, [Shard(0)])
    try:
        optim.Muon([p]).step()
    except RuntimeError as error:
        return str(error)
    return ""


def work(rank: int, folder: Path) -> None:
    torch.set_num_threads(1)
    distributed.init_process_group(
        "gloo", init_method=f"file://{folder / 'rendezvous'}", rank=rank, world_size=PROCESSES
    )
    mesh = init_device_mesh("cpu", (PROCESSES,))
    results = {
        "fsdp": train_fsdp(mesh, folder),
        "divided": train_divided(mesh),
        "refused": refused(mesh),
        "sam": train_sharpened(mesh),
    }
    torch.save(results, folder / f"{rank}.pt")
    distributed.destroy_process_group()


def test_two_processes(tmp_path: Path) -> None:
    """Spawned and not forked: a forked child must not use the parent's JAX."""
    torch.multiprocessing.spawn(work, (tmp_path,), nprocs=PROCESSES)
    for rank in range(PROCESSES):
        results = torch.load(tmp_path / f"{rank}.pt")
        assert results["sam"]["difference"] <= ROUNDING
        assert results["sam"]["metrics"] <= ROUNDING
        assert results["sam"]["collectives"] == 2
        for name, found in results["fsdp"].items():
            assert found["divided"], name
            assert found["engine"] == "torch"
            assert found["collectives"] == COLLECTIVES.get(name, 0), name
            assert found["difference"] <= ROUNDING, name
            assert found["resumed"] == 0.0, name
        assert all(worst <= ROUNDING for worst in results["divided"].values()), results["divided"]
        assert "muon needs all of a parameter, and parameter 0 of group 0 is divided (S(0)" in results["refused"]
