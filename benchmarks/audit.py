"""What XLA emits for an update, counted: `python -m benchmarks.audit`.

Bytes moved per parameter, launches, donated memory that is used again, temporaries and collectives, of every algorithm,
beside the least possible, optax's program for the same algorithm and torch's operations. Programs for a GPU are
compiled without one; that needs the extra `audit`. Nothing is run, so nothing here is a time.
"""

import argparse
import dataclasses
import importlib
import importlib.util
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

TARGETS = ("cpu", "h200")
_TARGET_CONFIG = Path(__file__).with_name("h200.txtpb")


def cuda_directory() -> Path | None:
    """Where the compiler for CUDA is installed, if it and JAX's plugin for CUDA are."""
    if importlib.util.find_spec("jax_plugins") is None or importlib.util.find_spec("jax_plugins.xla_cuda12") is None:
        return None
    nvidia = importlib.util.find_spec("nvidia")
    places = [] if nvidia is None else [Path(place) / "cuda_nvcc" for place in nvidia.submodule_search_locations or ()]
    return next((place for place in places if place.is_dir()), None)


def why_no_gpu() -> str:
    """Why programs for a GPU cannot be compiled here; "" if they can."""
    if cuda_directory() is None:
        return "the GPU compiler is not installed; install funcopt's extra `audit`"
    return ""


def prepare_environment() -> None:
    """Sets what JAX reads when it starts: the CPU as the only device, and where the GPU compiler is."""
    os.environ["JAX_PLATFORMS"] = "cpu"
    if directory := cuda_directory():
        flags = os.environ.get("XLA_FLAGS", "")
        os.environ["XLA_FLAGS"] = f"{flags} --xla_gpu_cuda_data_dir={directory}".strip()


def devices(target: str, number: int) -> Sequence[Any]:
    """Devices to compile for; those of a GPU need not exist."""
    if target == "cpu":
        return importlib.import_module("jax").devices("cpu")[:1]
    topologies = importlib.import_module("jax.experimental.topologies")
    return topologies.get_topology_desc(
        platform="cuda", target_config=_TARGET_CONFIG.read_text(), topology=f"1x1x{number}"
    ).devices


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns the exit status, 1 if a goal is missed."""
    prepare_environment()
    report = importlib.import_module("benchmarks._audit_report")  # starts JAX, which reads the environment
    parser = argparse.ArgumentParser(prog="python -m benchmarks.audit", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--device", choices=(*TARGETS, "all"), default="all")
    parser.add_argument("--algorithms", nargs="+", choices=tuple(report.ALGORITHMS), default=tuple(report.ALGORITHMS))
    parser.add_argument("--workloads", nargs="+", choices=tuple(report.ALL_WORKLOADS), default=report.DEFAULT_WORKLOADS)
    parser.add_argument("--json", type=Path, help="file for the figures")
    parser.add_argument("--markdown", type=Path, help="file for the tables")
    options = parser.parse_args(arguments)

    rows = []
    for target, number in (("cpu", 1), ("h200", 1), ("h200", 8)):
        if options.device not in (target, "all"):
            continue
        if target != "cpu" and (reason := why_no_gpu()):
            print(f"{target}, {number} devices: skipped: {reason}", file=sys.stderr)
            continue
        found = list(report.audit(target, devices(target, number), options.algorithms, options.workloads))
        rows += found
        print(report.tables(found), flush=True)
    if options.markdown:
        options.markdown.write_text(report.tables(rows))
    if options.json:
        options.json.write_text(json.dumps([dataclasses.asdict(row) for row in rows], indent=1) + "\n")
    return int(any(row.has_goals and row.shortfalls() for row in rows))


if __name__ == "__main__":
    sys.exit(main())
