"""DistributedDataParallel and torch.distributed.checkpoint in two processes, which train what torch.optim trains."""

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed.checkpoint as dcp
import torch.multiprocessing
from torch import distributed
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict
from torch.nn.parallel import DistributedDataParallel
from twins import ROUNDING, TWINS, batch, difference, make_model

pytestmark = pytest.mark.one_engine

PROCESSES = 2
NAMES = ("SGD", "recipe")


def train_shards(model: torch.nn.Module, optimizer: torch.optim.Optimizer, steps: range) -> None:
    """Each process has its half of every batch; DistributedDataParallel averages the gradients."""
    rank = distributed.get_rank()
    for step in steps:
        x, y = (half.chunk(PROCESSES)[rank] for half in batch(step))
        optimizer.zero_grad()
        torch.nn.functional.mse_loss(model(x), y).backward()
        optimizer.step()


def work(rank: int, folder: Path) -> None:
    """One process: trains with each optimizer, by itself and with a checkpoint half-way, and writes its weights."""
    torch.set_num_threads(1)
    distributed.init_process_group(
        "gloo", init_method=f"file://{folder / 'rendezvous'}", rank=rank, world_size=PROCESSES
    )
    results: dict[str, Any] = {}
    for name in NAMES:
        for side, build in TWINS[name]._asdict().items():
            model = make_model()
            parallel = DistributedDataParallel(model, gradient_as_bucket_view=True)
            optimizer = build(parallel.parameters(), lr=0.05)
            train_shards(parallel, optimizer, range(6))

            weights, state = get_state_dict(parallel, optimizer)
            dcp.save({"model": weights, "optimizer": state}, checkpoint_id=folder / f"{name} {side}")
            resumed = make_model(seed=9)
            parallel = DistributedDataParallel(resumed)
            optimizer = build(parallel.parameters(), lr=0.7)
            weights, state = get_state_dict(parallel, optimizer)
            dcp.load({"model": weights, "optimizer": state}, checkpoint_id=folder / f"{name} {side}")
            set_state_dict(parallel, optimizer, model_state_dict=weights, optim_state_dict=state)
            train_shards(parallel, optimizer, range(6, 10))
            results[name, side] = (model.state_dict(), resumed.state_dict())
    torch.save(results, folder / f"{rank}.pt")
    distributed.destroy_process_group()


def test_two_processes(tmp_path: Path) -> None:
    """Spawned and not forked: a forked child must not use the parent's JAX."""
    torch.multiprocessing.spawn(work, (tmp_path,), nprocs=PROCESSES)
    results = [torch.load(tmp_path / f"{rank}.pt") for rank in range(PROCESSES)]

    def model(rank: int, *key: str, resumed: int) -> torch.nn.Module:
        model = make_model()
        model.load_state_dict(results[rank][key][resumed])
        return model

    for name in NAMES:
        for resumed in (0, 1):
            ours, theirs = model(0, name, "ours", resumed=resumed), model(0, name, "theirs", resumed=resumed)
            assert difference(ours, theirs) <= ROUNDING
            assert difference(ours, model(1, name, "ours", resumed=resumed)) == 0.0
            assert difference(ours, make_model()) > 1e-2
