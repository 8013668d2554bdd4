"""`python -m benchmarks`: measures and prints the tables; exits with 1 if any number is wrong."""

import argparse
import shlex
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import jax
import torch

from benchmarks import _bridge, _growth, _habits, _jax, _memory, _report
from benchmarks._case import PEERS, BenchmarkCase, can_compile, peers_of
from benchmarks._cases import CASES
from benchmarks._goals import MATRIX, wanted_by_goals
from benchmarks._measure import Triad
from benchmarks._settings import Results, Settings, give_back_memory
from benchmarks._workloads import WORKLOADS, Workload

Pairs = Sequence[tuple[str, str]]  # case, workload

SECTIONS = ("bridge", "jax", "growth", "habits", "memory")
COMPILED_TENSORS = 50
"""`torch.compile` takes 40 s for 150 tensors on two cores: beyond this many it is for goals, or asked for by name."""


class Plan(NamedTuple):
    """What is run unless the command line says otherwise."""

    bridge: Pairs
    jax: Pairs
    memory: Pairs
    peers: tuple[str, ...]
    counts: tuple[int, ...]  # of tensors
    sizes: tuple[int, ...]  # of one tensor
    rounds: int


GOAL_PAIRS = [
    (case, workload)
    for case, workload in dict.fromkeys(tuple(pattern.split("/")[1:3]) for goal in MATRIX for pattern in goal.patterns)
]
QUICK = Plan(
    bridge=GOAL_PAIRS,
    jax=[("adamw", "gpt2-small"), ("adamw", "1000x32x32")],
    memory=[("adamw", "gpt2-small")],
    peers=("default", "foreach", "fused", "bridge"),
    counts=(10, _growth.MODEL, 1000),
    sizes=(),
    rounds=9,
)
FULL = Plan(
    bridge=[(case.name, workload) for case in CASES.values() for workload in case.workloads],
    jax=[(case.name, workload) for case in CASES.values() if case.optax is not None for workload in case.workloads],
    memory=[("adamw", "gpt2-small"), ("adamw", "resnet50"), ("recipe", "gpt2-small"), ("sgd-momentum", "gpt2-small")],
    peers=PEERS,
    counts=(10, 100, _growth.MODEL, 1000, 5000),
    sizes=(2**10, 2**14, 2**18, 2**22, 2**24),
    rounds=21,
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command.

    Args:
        arguments: of the command line; None: those of this process.

    Returns:
        The exit code.
    """
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    given = _parser().parse_args(arguments)
    plan = _restricted(QUICK if given.quick else FULL, given.algorithms, given.workloads)
    settings = Settings(given.rounds or plan.rounds, given.seconds, device=given.device)
    peers = plan.peers if given.peers is None else tuple(dict.fromkeys((*given.peers, "bridge")))
    results, triad = Results(), Triad(settings.device, settings.synchronize)

    def bridge(case: BenchmarkCase, workload: Workload) -> Results:
        chosen, skipped = _peers(case, workload, peers, given.peers is not None, settings)
        measured = _bridge.measure(case, workload, chosen, settings, triad) if chosen else Results()
        measured.skipped += skipped
        return measured

    def in_jax(case: BenchmarkCase, workload: Workload) -> Results:
        if case.optax is None:
            return Results(skipped=[f"jax, {case.name}: optax has another algorithm by that name"])
        if reason := _too_large(case, workload, 3, settings):
            return Results(skipped=[f"jax, {reason}"])
        return _jax.measure(case, workload, settings, triad)

    def memory(case: BenchmarkCase, workload: Workload) -> Results:
        chosen = [peer for peer in peers_of(case) if peer in peers and peer != "compiled"]
        return _memory.measure(case, workload, chosen, settings)

    with jax.default_device(_jax.device_of(settings.device)):
        if "bridge" in given.sections:
            _each(plan.bridge, bridge, results)
        if "jax" in given.sections:
            _each(plan.jax, in_jax, results)
        if "growth" in given.sections:
            print("growth", file=sys.stderr)
            candidates = [peer for peer in ("default", "foreach", "fused", "bridge") if peer in peers]
            results.add(_growth.measure(plan.counts, plan.sizes, candidates, settings, triad))
        if "habits" in given.sections:
            print("habits", file=sys.stderr)
            results.add(_habits.measure(settings, triad))
        if "memory" in given.sections:
            _each(plan.memory, memory, results)
    return _finish(results, settings, arguments, given.json)


def _finish(results: Results, settings: Settings, arguments: Sequence[str], file: Path | None) -> int:
    where = _report.machine(settings)
    print(_report.text(results, where))
    if file is not None:
        file.write_text(_report.as_json(results, where, shlex.join(["python", "-m", "benchmarks", *arguments])))
    wrong = [f"{name}: {finding.wrong}" for name, finding in results.findings.items() if finding.wrong]
    print(*(f"WRONG NUMBERS: {line}" for line in wrong), sep="\n", file=sys.stderr)
    return 1 if wrong else 0


def _each(pairs: Pairs, measure: Callable[[BenchmarkCase, Workload], Results], results: Results) -> None:
    """Runs pairs one after the other, and leaves no memory behind."""
    for case_name, workload_name in pairs:
        case = CASES[case_name]
        print(f"{case_name} on {workload_name}", file=sys.stderr)
        results.add(measure(case, WORKLOADS[workload_name].only(case.wants)))
        torch.compiler.reset()
        jax.clear_caches()
        give_back_memory()


def _peers(
    case: BenchmarkCase, workload: Workload, wanted: Sequence[str], by_name: bool, settings: Settings
) -> tuple[list[str], list[str]]:
    """The peers to run, and why others are not."""
    what = f"{case.name} on {workload.name}"
    if not workload.shapes:
        return [], [f"{what}: no tensor of the kind that it is for"]
    peers = [peer for peer in peers_of(case) if peer in wanted]
    if reason := _too_large(case, workload, len(peers), settings):
        return [], [reason]
    skipped = []
    if "compiled" in peers and not can_compile(settings.device):
        skipped.append(f"compiled, {what}: there is no C++ compiler")
    elif (
        "compiled" in peers
        and len(workload.shapes) > COMPILED_TENSORS
        and settings.device.type == "cpu"
        and not by_name
        and not wanted_by_goals(f"bridge/{case.name}/{workload.name}/compiled")
    ):
        skipped.append(f"compiled, {what}: takes long for {len(workload.shapes)} tensors; ask with --peers compiled")
    return [peer for peer in peers if peer != "compiled" or not skipped], skipped


def _too_large(case: BenchmarkCase, workload: Workload, candidates: int, settings: Settings) -> str:
    """Why a pair does not fit into memory; empty if it does."""
    # Gradients, the noise that they are made of, and in each candidate one array for what it has in passing.
    need = 4 * workload.elements * (2 + candidates * (case.arrays + 1))
    free = settings.free_bytes()
    if need <= 0.9 * free:
        return ""
    return f"{case.name} on {workload.name}: needs {need / 2**30:.0f} GiB, and {free / 2**30:.0f} are free"


def _restricted(plan: Plan, algorithms: Sequence[str] | None, workloads: Sequence[str] | None) -> Plan:
    """The pairs of a plan with these algorithms, or on these workloads; with both, each on each."""

    def few(pairs: Pairs) -> Pairs:
        return [(a, w) for a, w in pairs if a in (algorithms or CASES) and w in (workloads or WORKLOADS)]

    def product(pairs: Pairs) -> Pairs:
        return [(a, w) for a in algorithms for w in workloads] if algorithms and workloads else few(pairs)

    return plan._replace(bridge=product(plan.bridge), jax=product(plan.jax), memory=product(plan.memory))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description="Times funcopt against torch.optim and optax, and says which goals are reached.",
        epilog="Lists are separated by commas.",
    )
    parser.add_argument("--quick", action="store_true", help="only what the goals need; a few minutes")
    for option, names in (("workloads", WORKLOADS), ("algorithms", CASES), ("peers", PEERS)):
        parser.add_argument(f"--{option}", type=_names(names), metavar="LIST", help=f"of {', '.join(names)}")
    parser.add_argument(
        "--sections", type=_names(SECTIONS), metavar="LIST", default=SECTIONS, help=f"of {', '.join(SECTIONS)}"
    )
    parser.add_argument("--rounds", type=int, metavar="N", help="at least so many per comparison")
    parser.add_argument(
        "--seconds", type=float, default=Settings(0).seconds, help="comparisons of short steps go on for so long"
    )
    parser.add_argument("--device", type=torch.device, default=torch.device("cpu"), help="cpu or cuda")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write what was found there, too")
    return parser


def _names(known: Iterable[str]) -> Callable[[str], list[str]]:
    """A parser of lists of known names."""

    def parse(given: str) -> list[str]:
        for name in (names := given.split(",")):
            if name not in known:
                raise argparse.ArgumentTypeError(f"must be among {', '.join(known)}, got {name!r}")
        return names

    return parse


if __name__ == "__main__":
    sys.exit(main())
