"""What a run found: as tables for a terminal, and as JSON."""

import json
import os
import platform
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jaxlib
import numpy as np
import optax
import torch

import funcopt
from benchmarks._goals import COLUMNS, GOALS, MATRIX, OTHERS, Verdict, judge
from benchmarks._measure import Finding
from benchmarks._settings import Results, Row, Settings

HERE = Path(__file__).parent

FLAGS = ("XLA_FLAGS", "JAX_PLATFORMS", "OMP_NUM_THREADS", "GOMP_SPINCOUNT")
"""Environment variables that change times."""


def machine(settings: Settings) -> dict[str, Any]:
    """Where the run took place, and with what."""
    cpu = platform.processor() or platform.machine()
    if Path("/proc/cpuinfo").exists():
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        cpu = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), cpu)
    return {
        "cpu": cpu,
        "cores": os.cpu_count(),
        "device": torch.cuda.get_device_name(settings.device) if settings.device.type == "cuda" else "cpu",
        "load average": os.getloadavg(),
        "torch threads": torch.get_num_threads(),
        "flags": {name: os.environ.get(name, "") for name in FLAGS},
        "rounds": settings.rounds,
        "versions": {
            "python": platform.python_version(),
            "funcopt": funcopt.__version__,
            "git": _git("describe", "--always", "--dirty"),
            **{module.__name__: module.__version__ for module in (torch, jax, jaxlib, optax, np)},
        },
    }


def _git(*arguments: str) -> str:
    try:
        return subprocess.run(["git", *arguments], cwd=HERE, check=True, capture_output=True, text=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def text(results: Results, where: dict[str, Any]) -> str:
    """The whole report."""
    verdicts = {(goal.row, goal.column): judge(goal, results.findings) for goal in GOALS}
    lines = [
        f"{where['cpu']}, {where['cores']} cores, device {where['device']}",
        f"torch with {where['torch threads']} threads, load {where['load average'][0]:.1f}, flags {where['flags']}",
        ", ".join(f"{name} {version}" for name, version in where["versions"].items()),
        "",
        *_rows(results.rows),
        *_memory(results.findings),
        *_habits(results.findings),
        *(["", "not run:", *(f"    {reason}" for reason in results.skipped)] if results.skipped else []),
        "",
        "goals: bridge against torch, how many times faster, 20 % and 80 % quantiles of paired rounds",
        *_table(
            [
                ["", *COLUMNS],
                *(
                    [row, *(_cell(verdicts.get((row, column))) for column in COLUMNS)]
                    for row in dict.fromkeys(goal.row for goal in MATRIX)
                ),
            ]
        ),
        "",
        "further goals",
        *_table([[goal.row, goal.column, _cell(verdicts[goal.row, goal.column])] for goal in OTHERS]),
    ]
    reasons = [
        f"    {verdict.status}: {verdict.goal.row}, {verdict.goal.column}: {verdict.reason}"
        for verdict in verdicts.values()
        if verdict.reason
    ]
    return "\n".join([*lines, *(["", "no verdict:", *reasons] if reasons else [])])


def _cell(verdict: Verdict | None) -> str:
    if verdict is None:
        return ""
    goal, finding = verdict.goal, verdict.finding
    bound = f"{'<=' if goal.upper else '>='} {goal.bound:g}{goal.unit}"
    if finding is None or verdict.reason:
        return f"{verdict.status} ({bound})"
    value, low, high = (x * goal.factor for x in (finding.value, finding.low, finding.high))
    interval = f" [{low:.4g}..{high:.4g}]" if low < high else ""
    aimed = f", aim {goal.aim:g}" if goal.aim is not None and value < goal.aim else ""
    return f"{value:.4g}{goal.unit}{interval} {bound} {verdict.status}{aimed}"


def _rows(rows: Sequence[Row]) -> list[str]:
    """The measurements: shortest times stand beside medians, and ratios of shortest beside medians of ratios."""
    head = ["section", "case", "workload", "candidate", "ms", "min", "ratio", "20..80 %", "min/min", "eff"]
    head += ["start s", "temp", "error", "rejected", ""]
    lines = [head]
    for row in rows:
        ratio = row.ratio
        lines.append(
            [
                row.section,
                row.case,
                row.workload,
                row.candidate,
                f"{row.time.value * 1e3:.3f}",
                f"{row.time.best * 1e3:.3f}",
                "" if ratio is None else f"{ratio.value:.2f}",
                "" if ratio is None else f"{ratio.low:.2f}..{ratio.high:.2f}",
                "" if ratio is None else f"{ratio.best:.2f}",
                "" if row.efficiency is None else f"{row.efficiency:.2f}",
                "" if row.start is None else f"{row.start.value:.2f}",
                "" if row.extra is None else f"{row.extra:.3f}",
                "" if row.error is None else f"{row.error:.0e}",
                row.rejected,
                "WRONG" if row.time.wrong else "noisy" if row.time.noise else "",
            ]
        )
    return _table(lines) if rows else []


def _memory(findings: dict[str, Finding]) -> list[str]:
    """Memory of a step, relative to the parameters'."""
    peaks = [name.split("/", 1)[1] for name in findings if name.startswith("peak/")]
    lines = [["memory x parameters", "during step()", "held beyond parameters, gradients, state"]]
    lines += [[case, *(f"{findings[f'{kind}/{case}'].value:.2f}" for kind in ("peak", "held"))] for case in peaks]
    return ["", *_table(lines)] if peaks else []


def _habits(findings: dict[str, Finding]) -> list[str]:
    """Seconds of what people do besides stepping."""
    names = [name.partition("/")[2] for name in findings if name.startswith("habits/")]
    lines = [["habit, s", "torch", "bridge"]]
    lines += [
        [name, *(f"{findings[f'{side}/{name}'].value:.4f}" for side in ("habits-torch", "habits"))] for name in names
    ]
    return ["", *_table(lines)] if names else []


def _table(lines: list[list[str]]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return ["  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines]


def as_json(results: Results, where: dict[str, Any], command: str) -> str:
    """The findings and the verdicts, to compare runs by.

    Args:
        results: what was found.
        where: the machine.
        command: that made it.
    """
    content = {
        "command": command,
        "machine": where,
        "findings": {name: finding._asdict() for name, finding in results.findings.items()},
        "rows": [_plain(row) for row in results.rows],
        "skipped": results.skipped,
        "goals": [
            {"row": v.goal.row, "column": v.goal.column, "bound": v.goal.bound, "status": v.status, "reason": v.reason}
            for v in (judge(goal, results.findings) for goal in GOALS)
        ],
    }
    return json.dumps(content, indent=1) + "\n"


def _plain(row: Row) -> dict[str, Any]:
    return {name: value._asdict() if isinstance(value, Finding) else value for name, value in row._asdict().items()}
