"""The optimizers that torch has not, against the fastest implementations that there are: `python -m benchmarks.peers`.

Each peer and the bridge step in turn over the same shapes with the same gradients; what is shown are ratios of times,
above 1 where the bridge is faster. It needs the `clients` extra.
"""

import argparse
import contextlib
import importlib
import statistics
import sys
import time
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch

from benchmarks._bridge import Problem
from benchmarks._workloads import WORKLOADS, Shape
from funcopt.torch_bridge import optim


class Peer(NamedTuple):
    """A class of a package, and arguments that make it as fast as it can be."""

    path: str
    options: Mapping[str, Any] = {}


class Case(NamedTuple):
    """A class of `torch_bridge.optim`, and who has the algorithm, too."""

    ours: str
    options: Mapping[str, Any]
    peers: tuple[Peer, ...]
    matrices: bool = False  # whether it is of products of matrices


def _each(*paths: str) -> tuple[Peer, ...]:
    return tuple(map(Peer, paths))


CASES = (
    Case(
        "AdamWScheduleFree",
        {"lr": 1e-3},
        (Peer("schedulefree.AdamWScheduleFree", {"foreach": True}), Peer("heavyball.SFAdamW")),
    ),
    Case("SGDScheduleFree", {"lr": 1e-2}, (Peer("schedulefree.SGDScheduleFree", {"foreach": True}),)),
    Case(
        "Lion",
        {"lr": 1e-4, "weight_decay": 0.1},
        (
            *_each("lion_pytorch.Lion", "timm.optim.Lion"),
            Peer("optimi.Lion", {"foreach": True}),
        ),
    ),
    Case("Prodigy", {}, (Peer("prodigyopt.Prodigy"),)),
    Case("Lamb", {"lr": 1e-3}, _each("timm.optim.Lamb")),
    Case("Lars", {"lr": 1e-1, "momentum": 0.9, "weight_decay": 1e-4}, _each("timm.optim.Lars")),
    Case("StableAdamW", {"lr": 1e-3}, (Peer("optimi.StableAdamW", {"foreach": True}),)),
    Case("Adan", {"lr": 1e-3}, (*_each("timm.optim.Adan"), Peer("optimi.Adan", {"foreach": True}))),
    Case("AdEMAMix", {"lr": 1e-3}, _each("pytorch_optimizer.AdEMAMix", "heavyball.AdEMAMix")),
    Case("ADOPT", {"lr": 1e-3}, _each("timm.optim.Adopt")),
    Case("Muon", {"lr": 1e-3}, _each("torch.optim.Muon"), matrices=True),
    Case(
        "SOAP",
        {"lr": 1e-3},
        # With the bases, as large and as often anew, that the paper's implementation has by default, as ours.
        (
            Peer("pytorch_optimizer.SOAP"),
            Peer(
                "heavyball.SOAP",
                {
                    "betas": (0.95, 0.95),
                    "max_precond_dim": 10_000,
                    "merge_dims": False,
                    "precondition_frequency": 10,
                    "use_precond_schedule": False,
                },
            ),
        ),
        matrices=True,
    ),
)


def is_matrix(shape: Shape) -> bool:
    return len(shape) == 2 and max(shape) <= 4096


class Candidate(NamedTuple):
    """An optimizer, and what it updates."""

    optimizer: Any
    params: list[torch.nn.Parameter]
    grads: list[torch.Tensor]

    def attach(self) -> None:
        """Gives the parameters their gradients, which heavyball takes away in its step."""
        for p, grad in zip(self.params, self.grads, strict=True):
            p.grad = grad


def candidate(make: Callable[..., Any], problem: Problem, **options: Any) -> Candidate:
    """An optimizer after two steps, in which it compiles what it needs.

    Raises:
        RuntimeError: if the second one changes no parameter.
    """
    params = problem.params()
    found = Candidate(make(params, **options), params, [p.grad for p in params if p.grad is not None])
    if hasattr(found.optimizer, "train"):
        found.optimizer.train()
    before = params[0].detach().clone()
    for _ in range(2):
        before.copy_(params[0].detach())
        found.attach()
        found.optimizer.step()
    if torch.equal(before, params[0]):
        raise RuntimeError(f"{type(found.optimizer).__name__}: a step changed nothing")
    return found


def seconds_of(
    candidates: Mapping[str, Candidate], problem: Problem, seconds: float, *, periodic: bool
) -> dict[str, float]:
    """Seconds of a step, the median, or the mean where not all steps do the same; the candidates take turns."""
    times: dict[str, list[float]] = {name: [] for name in candidates}
    start, turn = time.perf_counter(), 0
    while time.perf_counter() - start < seconds or turn < (21 if periodic else 4):
        problem.write_gradients(turn)
        for name, found in candidates.items():
            found.attach()
            before = time.perf_counter()
            found.optimizer.step()
            times[name].append(time.perf_counter() - before)
        turn += 1
    average = statistics.mean if periodic else statistics.median
    return {name: average(own[1:]) for name, own in times.items()}


def measure(case: Case, workload: str, seconds: float) -> dict[str, float]:
    """Seconds of a step of each who has the algorithm, by class."""
    shapes = WORKLOADS[workload]
    problem = Problem(shapes.only(is_matrix) if case.matrices else shapes, torch.device("cpu"))
    problem.write_gradients(0)
    candidates = {"funcopt": candidate(getattr(optim, case.ours), problem, **case.options)}
    for peer in case.peers:
        module, _, name = peer.path.rpartition(".")
        print(f"{case.ours}, {workload}: first steps of {peer.path}", file=sys.stderr)
        try:
            found = getattr(importlib.import_module(module), name)
        except (ImportError, AttributeError):
            continue
        options = {key: value for key, value in case.options.items() if key != "weight_decay" or case.ours != "Lamb"}
        candidates[peer.path] = candidate(found, problem, **options, **peer.options)
    return seconds_of(candidates, problem, seconds, periodic=case.matrices)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    names = [case.ours for case in CASES]
    parser.add_argument("--cases", nargs="*", choices=names, default=names, metavar="CLASS")
    parser.add_argument("--workloads", nargs="*", choices=sorted(WORKLOADS), default=["resnet50", "gpt2-small"])
    parser.add_argument("--seconds", type=float, default=5.0, help="of each comparison (default: %(default)s)")
    args = parser.parse_args()
    # Without a compiler's autotuning, which takes minutes for each shape.
    with contextlib.suppress(ImportError):
        heavyball: Any = importlib.import_module("heavyball.utils")
        heavyball.compile_mode = "default"
    print("| class | shapes | ms | fastest of the others | ms | ratio |\n|---|---|---|---|---|---|")
    for case in CASES:
        for workload in args.workloads if case.ours in args.cases else ():
            found = measure(case, "gpt2-block" if case.matrices else workload, args.seconds)
            own = found.pop("funcopt")
            if not found:
                continue
            best = min(found, key=lambda name: found[name])
            print(
                f"| {case.ours} | {workload if not case.matrices else 'gpt2-block'} | {1e3 * own:.1f} | {best} | "
                f"{1e3 * found[best]:.1f} | {found[best] / own:.2f} |",
                flush=True,
            )
            if case.matrices:
                break
    return 0


if __name__ == "__main__":
    sys.exit(main())
