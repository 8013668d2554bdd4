"""torch's optimizers against the bridge: the same parameters, the same gradients, the same number of steps."""

# torch's multi-tensor functions have no public name.
# pyright: reportPrivateImportUsage=false

from collections.abc import Sequence
from typing import NamedTuple

import torch

from benchmarks._case import BRIDGE_PEERS, BenchmarkCase, Run, build
from benchmarks._measure import Finding, Rounds, Triad, duration, ratio
from benchmarks._settings import Results, Row, Settings, rejected
from benchmarks._workloads import Workload

OFFSETS = 4096  # tensors start at different places in the noise, so that equal shapes hold different numbers
FACTORS = (1.0, 0.5, 2.0)  # of the gradients, from step to step; one sign, or Lion's would hang on the last bit
SCALE = 0.05  # of the parameters


class Problem:
    """Parameters and gradients of a workload. The gradients are shared by all candidates."""

    def __init__(self, workload: Workload, device: torch.device) -> None:
        self.workload = workload
        generator = torch.Generator().manual_seed(0)
        sizes = [torch.Size(shape).numel() for shape in workload.shapes]
        noise = torch.randn(max(sizes) + OFFSETS + 1, generator=generator).to(device)
        self._start = [_piece(noise, i, shape, 1) for i, shape in enumerate(workload.shapes)]
        self._source = [_piece(noise, i, shape, 0) for i, shape in enumerate(workload.shapes)]
        self._grads = [torch.empty(shape, device=device) for shape in workload.shapes]

    def params(self) -> list[torch.nn.Parameter]:
        """New parameters, equal each time, with the shared gradients."""
        params = [torch.nn.Parameter(start * SCALE) for start in self._start]
        for p, grad in zip(params, self._grads, strict=True):
            p.grad = grad
        return params

    def write_gradients(self, step: int) -> None:
        """Writes the gradients anew, as a backward pass does: what clips them in place changes them for no other."""
        torch._foreach_copy_(self._grads, self._source)
        torch._foreach_mul_(self._grads, FACTORS[step % len(FACTORS)])

    def error(self, actual: Run, expected: Run) -> float:
        """The largest difference between two runs' results, relative to the largest change since the start."""
        difference = change = 0.0
        wanted = expected.results()
        starts = self._start * (len(wanted) // len(self._start))  # parameters, and an average of them if there is one
        for a, b, start in zip(actual.results(), wanted, starts, strict=True):
            difference = max(difference, float((a.detach() - b.detach()).abs().max()))
            change = max(change, float((b.detach() - start * SCALE).abs().max()))
        return difference / change


def _piece(noise: torch.Tensor, index: int, shape: tuple[int, ...], shift: int) -> torch.Tensor:
    begin = 7 * index % OFFSETS + shift
    return noise[begin : begin + torch.Size(shape).numel()].view(shape)


class Comparison(NamedTuple):
    """Candidates that ran against each other."""

    rounds: Rounds
    starts: dict[str, Finding]  # seconds from nothing to the end of the first step
    errors: dict[str, float]  # against the first of torch's peers


def compare(
    case: BenchmarkCase, workload: Workload, peers: Sequence[str], settings: Settings, triad: Triad, in_a_row: int = 1
) -> Comparison:
    """Runs peers on a workload against each other, and compares what they computed."""
    problem = Problem(workload, settings.device)
    runs: dict[str, Run] = {}
    starts: dict[str, Finding] = {}

    def start(peer: str) -> None:
        runs[peer] = build(case, peer, params)
        runs[peer].step()

    for peer in peers:
        problem.write_gradients(0)
        params = problem.params()
        starts[peer] = triad.once(lambda peer=peer: start(peer))
    for i in range(1, settings.warmup):
        for run in runs.values():
            problem.write_gradients(i)
            run.step()
    steps = {peer: run.step for peer, run in runs.items()}
    rounds = settings.run(steps, triad, before=problem.write_gradients, in_a_row=in_a_row)
    reference = next((peer for peer in peers if peer not in BRIDGE_PEERS), peers[0])
    errors = {peer: problem.error(runs[peer], runs[reference]) for peer in peers if peer != reference}
    return Comparison(rounds, starts, errors)


def measure(case: BenchmarkCase, workload: Workload, peers: Sequence[str], settings: Settings, triad: Triad) -> Results:
    """The comparison of a case on a workload.

    Findings: `BRIDGE/CASE/WORKLOAD/PEER`, how many times faster the bridge is, for each way in which it runs; and
    `start/CASE/WORKLOAD`, seconds until its first step is done.
    """
    comparison = compare(case, workload, peers, settings, triad)
    rounds, results = comparison.rounds, Results()
    wrong = {
        peer: f"{error:.1e} from torch" for peer, error in comparison.errors.items() if not error <= case.tolerance
    }
    for peer in peers:
        time, versus = duration(rounds, peer), None
        if "bridge" in peers and peer != "bridge":
            versus = ratio(rounds, "bridge", peer, wrong.get("bridge", "") or wrong.get(peer, ""))
            results.findings[f"bridge/{case.name}/{workload.name}/{peer}"] = versus
        efficiency = None
        if case.min_bytes is not None:
            efficiency = case.min_bytes * workload.elements / time.value / rounds.bandwidth()
        results.rows.append(
            Row(
                "bridge",
                case.name,
                workload.name,
                peer,
                time._replace(wrong=wrong.get(peer, "")),
                versus,
                efficiency,
                comparison.starts[peer],
                None,
                comparison.errors.get(peer),
                rejected(rounds),
            )
        )
    for own in set(BRIDGE_PEERS).intersection(peers) - {"bridge"}:
        for peer in set(peers) - set(BRIDGE_PEERS):
            versus = ratio(rounds, own, peer, wrong.get(own, "") or wrong.get(peer, ""))
            results.findings[f"{own}/{case.name}/{workload.name}/{peer}"] = versus
    if "bridge" in peers:
        results.findings[f"start/{case.name}/{workload.name}"] = comparison.starts["bridge"]
    return results
