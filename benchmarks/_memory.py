"""Memory of a step, in a fresh process: what an optimizer holds between steps, and what it takes during one.

Resident memory, so that torch's allocations and XLA's count alike. Linux resets a process's peak on request, which is
how the peak of one step is told from that of compiling.

    python -m benchmarks._memory adamw resnet50 bridge
"""

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

from benchmarks._bridge import Problem
from benchmarks._case import BenchmarkCase, Run, build
from benchmarks._cases import CASES
from benchmarks._measure import Finding
from benchmarks._settings import Results, Settings, give_back_memory
from benchmarks._workloads import WORKLOADS, Workload


def measure(case: BenchmarkCase, workload: Workload, peers: Sequence[str], settings: Settings) -> Results:
    """Findings, relative to the parameters' bytes: `peak/CASE/WORKLOAD/PEER`, what a step takes beyond what is held
    before it; `held/...`, what is held between steps beyond parameters, gradients and the least state; `total/...`,
    both together, so that what is never given back is no gain.
    """
    results = Results()
    if settings.device.type != "cpu" or not Path("/proc/self/clear_refs").exists():
        results.skipped.append(f"memory, {case.name} on {workload.name}: needs the CPU, and Linux's /proc")
        return results
    for peer in peers:
        command = [sys.executable, "-m", "benchmarks._memory", case.name, workload.name, peer]
        child = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
        for name, value in json.loads(child.stdout).items():
            results.findings[f"{name}/{case.name}/{workload.name}/{peer}"] = Finding.exact(value)
    return results


def in_this_process(case: BenchmarkCase, workload: Workload, peer: str) -> dict[str, float]:
    """The findings of one peer."""
    _started(
        case, peer, Problem(Workload("first", "first", ((2, 3), (3, 2))), torch.device("cpu"))
    )  # the code of libraries and compilers is in memory
    problem = Problem(workload, torch.device("cpu"))
    problem.write_gradients(0)
    bare = settled()
    run = _started(case, peer, problem)
    before = settled()
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
    run.step()
    size = 4 * workload.elements
    peak, held = (_resident("VmHWM") - before) / size, (before - bare) / size - case.arrays
    return {"peak": peak, "held": held, "total": peak + held}


def _started(case: BenchmarkCase, peer: str, problem: Problem) -> Run:
    problem.write_gradients(0)
    run = build(case, peer, problem.params())
    for _ in range(2):
        run.step()
    return run


def settled() -> int:
    """Resident memory without what is free but not given back."""
    give_back_memory()
    return _resident("VmRSS")


def _resident(field: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(field)) * 1024


if __name__ == "__main__":
    chosen = CASES[sys.argv[1]]
    print(json.dumps(in_this_process(chosen, WORKLOADS[sys.argv[2]].only(chosen.wants), sys.argv[3])))
