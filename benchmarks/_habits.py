"""What people do with an optimizer besides stepping it: the price of edits, of many optimizers, of what does not move.

Whatever may compile is timed in a fresh process, once, as a user meets it; torch's AdamW does the same beside it.

    python -m benchmarks._habits splatting
"""

import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks._bridge import Problem
from benchmarks._case import FLOAT32
from benchmarks._measure import Finding, Triad, ratio
from benchmarks._memory import settled
from benchmarks._settings import Results, Settings
from benchmarks._workloads import WORKLOADS, Workload
from funcopt.torch_bridge import optim

Optimizer = Callable[..., torch.optim.Optimizer]
Habit = Callable[[Optimizer], Iterator[Any]]
"""Yields when the clock is to start and when it is to stop, and then what it computed."""
OURS: Optimizer = optim.AdamW
TORCH: Optimizer = torch.optim.AdamW

MANY_GROUPS = (Workload("161x64", "161 x 64", ((64,),) * 161), WORKLOADS["1000x32x32"])
PROCESSES = 3


def _parameters(*shapes: tuple[int, ...], seed: int = 0) -> list[torch.nn.Parameter]:
    generator = torch.Generator().manual_seed(seed)
    params = [torch.nn.Parameter(torch.randn(shape, generator=generator)) for shape in shapes]
    for p in params:
        p.grad = torch.randn(p.shape, generator=generator)
    return params


def first_step(make: Optimizer) -> Iterator[Any]:
    """The first step of 161 groups."""
    params = _parameters(*MANY_GROUPS[0].shapes)
    yield
    make([{"params": [p], "lr": 1e-3 * (i + 1)} for i, p in enumerate(params)]).step()
    yield
    yield from params


def splatting(make: Optimizer) -> Iterator[Any]:
    """Gaussian splatting: rows of six parameters are cloned and pruned, and their state with them."""
    sizes = {"xyz": 3, "f_dc": 3, "f_rest": 45, "opacity": 1, "scaling": 3, "rotation": 4}
    params = _parameters(*((1000, size) for size in sizes.values()))
    yield
    optimizer = make([{"params": [p], "lr": 1e-3, "name": name} for name, p in zip(sizes, params, strict=True)])
    for densification in range(30):
        for _ in range(10):
            for group in optimizer.param_groups:
                (p,) = group["params"]
                p.grad = torch.ones_like(p)
            optimizer.step()
        for group in optimizer.param_groups:
            (old,) = group["params"]
            entry = optimizer.state.pop(old)
            rows = torch.cat([torch.arange(0, len(old), 1 + 20 * (densification % 2)), torch.arange(37)])
            p = torch.nn.Parameter(old.detach()[rows])
            for key in ("exp_avg", "exp_avg_sq"):
                entry[key] = entry[key][rows]
            group["params"], optimizer.state[p] = [p], entry
    yield
    for group in optimizer.param_groups:
        yield from group["params"]


def empty_state(make: Optimizer) -> Iterator[Any]:
    """`state[p] = {}`, which Horovod writes, for 160 parameters; and a step."""
    params = _parameters(*((16, 16),) * 160)
    optimizer = make(params)
    optimizer.step()
    yield
    for p in params:
        optimizer.state[p] = {}
    optimizer.step()
    yield
    yield from params


def growth(make: Optimizer) -> Iterator[Any]:
    """A network grows 30 times; a new optimizer loads what the old one had."""
    params, optimizer = _parameters((16, 16)), None
    yield
    for stage in range(30):
        params += _parameters((16, 16 + stage), seed=stage)
        saved = optimizer.state_dict() if optimizer is not None else None
        optimizer = make(params)
        if saved is not None:
            saved["param_groups"][0]["params"].append(len(params) - 1)
            optimizer.load_state_dict(saved)
        optimizer.step()
    yield
    yield from params


def _trained(make: Optimizer, params: list[torch.nn.Parameter]) -> list[torch.nn.Parameter]:
    """Parameters after five steps of an optimizer of their own."""
    optimizer = make(params, lr=1e-2)
    for _ in range(5):
        optimizer.step()
    return params


def agents(make: Optimizer) -> Iterator[Any]:
    """20 agents with an actor and a critic each, five steps."""
    trained: list[torch.nn.Parameter] = []
    yield
    for agent in range(20):
        for shapes in (((8, 4), (8,), (2, 8), (2,)), ((8, 4), (8,), (1, 8), (1,))):
            trained += _trained(make, _parameters(*shapes, seed=agent))
    yield
    yield from trained


def per_sample(make: Optimizer) -> Iterator[Any]:
    """A new optimizer for each of 40 samples, as in inversion and test-time training."""
    trained: list[torch.nn.Parameter] = []
    yield
    for sample in range(40):
        trained += _trained(make, _parameters((64, 32), (32,), seed=sample))
    yield
    yield from trained


def add_param_group(make: Optimizer) -> Iterator[Any]:
    """A layer more is thawed, 20 times."""
    layers = [_parameters((32, 32), (32,), seed=i) for i in range(21)]
    yield
    optimizer = make(layers[0])
    for layer in layers[1:]:
        optimizer.step()
        optimizer.add_param_group({"params": layer})
    optimizer.step()
    yield
    for layer in layers:
        yield from layer


def read_state(make: Optimizer) -> Iterator[Any]:
    """All of the state of 10M parameters."""
    params = _parameters(*((1000, 100),) * 100)
    optimizer = make(params)
    optimizer.step()
    yield
    found = [value for p in params for value in optimizer.state[p].values()]
    yield
    yield from found


HABITS: dict[str, Habit] = {
    "first-step": first_step,
    "splatting": splatting,
    "empty-state": empty_state,
    "growth": growth,
    "agents": agents,
    "per-sample": per_sample,
    "add-param-group": add_param_group,
    "read-state": read_state,
}
FROZEN = 50_000_000


def measure(settings: Settings, triad: Triad) -> Results:
    """Findings: `habits/NAME`, seconds, of which `habits-torch/NAME` is torch's; `groups/WORKLOAD`, a step of one group
    for each parameter relative to one of all in one; `frozen`, bytes that 50M frozen parameters take beside 1,000.
    """
    results = Results()
    for workload in MANY_GROUPS:
        results.findings[f"groups/{workload.name}"] = _many_groups(workload, settings, triad)
    if settings.device.type != "cpu" or not Path("/proc/self/status").exists():
        results.skipped.append("habits: they need the CPU, and Linux's /proc")
        return results
    for name in HABITS:
        found = [_in_another_process(name) for _ in range(PROCESSES)]
        error = max(each["error"] for each in found)
        wrong = "" if error <= FLOAT32 else f"{error:.1e} from torch"
        for side in ("habits", "habits-torch"):
            results.findings[f"{side}/{name}"] = Finding.of([each[side] for each in found], wrong=wrong)
    results.findings["frozen"] = Finding.exact(_in_another_process("frozen")["bytes"])
    return results


def _many_groups(workload: Workload, settings: Settings, triad: Triad) -> Finding:
    problem = Problem(workload, settings.device)
    problem.write_gradients(0)
    runs = {
        "one": OURS(problem.params()).step,
        "many": OURS([{"params": [p], "lr": 1e-3 * (i + 1)} for i, p in enumerate(problem.params())]).step,
    }
    for _ in range(settings.warmup):
        for step in runs.values():
            step()
    return ratio(settings.run(runs, triad, before=problem.write_gradients), "one", "many")


def _in_another_process(name: str) -> dict[str, float]:
    command = [sys.executable, "-m", "benchmarks._habits", name]
    return json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout)


def in_this_process(name: str) -> dict[str, float]:
    """What a process of its own finds; the libraries' own first calls are behind it."""
    for make in (TORCH, OURS):
        make(_parameters((3, 2))).step()
    if name == "frozen":
        return {"bytes": _frozen()}
    ran: list[Sequence[torch.Tensor]] = []
    times = []
    for make in (TORCH, OURS):
        run = HABITS[name](make)
        next(run)
        start = time.perf_counter()
        next(run)
        times.append(time.perf_counter() - start)
        ran.append([*run])
    error = max(float((a.detach() - b.detach()).abs().max()) for a, b in zip(*ran, strict=True))
    return {"habits-torch": times[0], "habits": times[1], "error": error}


def _frozen() -> float:
    frozen = [torch.nn.Parameter(torch.zeros(FROZEN // 10), requires_grad=False) for _ in range(10)]
    trained = _parameters((1000,))
    for p in frozen:
        p.data.fill_(1.0)
    before = settled()
    optimizer = OURS([*frozen, *trained])
    for _ in range(3):
        optimizer.step()
    return float(settled() - before)


if __name__ == "__main__":
    print(json.dumps(in_this_process(sys.argv[1])))
