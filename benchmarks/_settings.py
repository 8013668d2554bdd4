"""How a run goes, on which device, and what it yields."""

import ctypes
import dataclasses
import gc
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch

from benchmarks._measure import Finding, Rounds, Synchronize, Triad, run_rounds


class Settings(NamedTuple):
    """How a run goes."""

    rounds: int
    seconds: float = 3.0  # runs of short steps go on for so long
    warmup: int = 3  # rounds before those that count, the first step included
    device: torch.device = torch.device("cpu")

    @property
    def synchronize(self) -> Synchronize:
        """Waits until what was started on the device is done."""
        return torch.cuda.synchronize if self.device.type == "cuda" else lambda: None

    def run(self, candidates: Mapping[str, Callable[[], object]], triad: Triad, **options: Any) -> Rounds:
        """`run_rounds` as this run goes."""
        return run_rounds(
            candidates,
            triad,
            rounds=self.rounds,
            seconds=self.seconds,
            synchronize=self.synchronize,
            **options,
        )

    def free_bytes(self) -> int:
        """Memory of the device that can still be taken."""
        if self.device.type == "cuda":
            return torch.cuda.mem_get_info(self.device)[0]
        lines = Path("/proc/meminfo").read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith("MemAvailable:")) * 1024


class Row(NamedTuple):
    """One candidate of one comparison, as it stands in the table."""

    section: str
    case: str
    workload: str
    candidate: str
    time: Finding  # seconds of a step
    ratio: Finding | None = None  # how many times faster funcopt is; None for funcopt itself
    efficiency: float | None = None  # least possible bytes per second, relative to the triad's bandwidth
    start: Finding | None = None  # seconds until the first step is done; in JAX, of tracing and compiling
    extra: float | None = None  # temporaries of the compiled program, relative to the parameters' bytes
    error: float | None = None  # largest difference to the reference, relative to the largest change
    rejected: str = ""  # rounds


@dataclasses.dataclass
class Results:
    """What a run yields."""

    findings: dict[str, Finding] = dataclasses.field(default_factory=dict)
    rows: list[Row] = dataclasses.field(default_factory=list)
    skipped: list[str] = dataclasses.field(default_factory=list)  # what was not run, and why

    def add(self, other: "Results") -> None:
        """Takes over what another run yielded."""
        self.findings.update(other.findings)
        self.rows += other.rows
        self.skipped += other.skipped


def rejected(rounds: Rounds) -> str:
    """How many rounds were rejected."""
    return f"{len(rounds.triads) - len(rounds.accepted())}/{len(rounds.triads)}"


def give_back_memory() -> None:
    """Gives what is free back to the system; glibc keeps gigabytes of it."""
    gc.collect()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)
