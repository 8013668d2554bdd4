"""Timing on a machine that others use, too.

Candidates run in rounds: each once per round, the order reversed every other round, so that drift and what a neighbour
leaves in the caches meet all alike. What is compared is the ratio within a round. A reference, the in-place triad
`b = a + b / 2` over 16 M elements, runs at both ends of every round: it takes longer when somebody else uses the cores
or the memory, and tells which rounds are worthless. That matters most for the one who would gain: under contention
torch's OpenMP barriers make its kernels up to 20 times slower, which must never count as our speed.
"""

import gc
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import torch

Synchronize = Callable[[], None]

NOISE = 1.5
"""A round is rejected if its triad took longer than this times the shortest one."""
MAX_SPREAD = 0.3
"""A run says nothing if the accepted rounds' triads spread further than this; see `spread`."""
MIN_ROUNDS = 5
"""A run says nothing with fewer accepted rounds."""
TRIAD_ELEMENTS = 2**24
TRIAD_BYTES = 12 * TRIAD_ELEMENTS


class Rounds(NamedTuple):
    """Times of one run, in seconds, in the order of the rounds."""

    times: Mapping[str, Sequence[float]]  # by candidate
    triads: Sequence[float]  # of each round, the slower of its two

    def accepted(self) -> list[int]:
        """The rounds in which the machine was ours."""
        limit = NOISE * min(self.triads)
        return [i for i, triad in enumerate(self.triads) if triad <= limit]

    def of(self, name: str) -> list[float]:
        """A candidate's times in the accepted rounds."""
        return [self.times[name][i] for i in self.accepted()]

    def bandwidth(self) -> float:
        """Bytes per second of the triad in the accepted rounds, their median."""
        return TRIAD_BYTES / statistics.median(self.triads[i] for i in self.accepted())

    def noise(self) -> str:
        """Why nothing can be said from these rounds; empty if something can."""
        accepted = [self.triads[i] for i in self.accepted()]
        if len(accepted) < max(MIN_ROUNDS, len(self.triads) / 2):
            return f"{len(accepted)} of {len(self.triads)} rounds accepted"
        if spread(accepted) > MAX_SPREAD:
            return f"triad spreads by {spread(accepted):.0%}"
        return ""


class Finding(NamedTuple):
    """Something measured: its value, how far it varied, and whether it may be relied on."""

    value: float
    low: float  # 20 % quantile
    high: float  # 80 % quantile
    best: float  # from the shortest times alone
    noise: str = ""  # why it may not be relied on
    wrong: str = ""  # why the numbers computed are not those expected

    @staticmethod
    def of(times: Sequence[float], noise: str = "", wrong: str = "") -> "Finding":
        """Something measured several times: the median."""
        return Finding(statistics.median(times), *quantiles(times), min(times), noise, wrong)

    @staticmethod
    def exact(value: float, wrong: str = "") -> "Finding":
        """Something counted."""
        return Finding(value, value, value, value, "", wrong)


def ratio(rounds: Rounds, ours: str, peer: str, wrong: str = "") -> Finding:
    """How many times faster ours is than a peer: the median over rounds."""
    ratios = [theirs / own for theirs, own in zip(rounds.of(peer), rounds.of(ours), strict=True)]
    best = min(rounds.of(peer)) / min(rounds.of(ours))
    return Finding(statistics.median(ratios), *quantiles(ratios), best, rounds.noise(), wrong)


def duration(rounds: Rounds, name: str) -> Finding:
    """A candidate's time in seconds: the median over rounds."""
    return Finding.of(rounds.of(name), rounds.noise())


def quantiles(values: Sequence[float]) -> tuple[float, float]:
    """The 20 % and 80 % quantiles."""
    if len(values) == 1:
        return values[0], values[0]
    cuts = statistics.quantiles(values, n=5, method="inclusive")
    return cuts[0], cuts[-1]


def spread(values: Sequence[float]) -> float:
    """The distance between the 20 % and 80 % quantiles, as a part of the median."""
    low, high = quantiles(values)
    return (high - low) / statistics.median(values)


class Triad:
    """The reference: `b = a + b / 2` in place, 12 bytes per element (a copy would also read what it overwrites).

    Args:
        device: of the arrays.
        synchronize: waits for the device.
        elements: size of the arrays, far above the last cache.
    """

    def __init__(self, device: torch.device, synchronize: Synchronize, elements: int = TRIAD_ELEMENTS) -> None:
        self._a = torch.ones(elements, device=device)
        self._b = torch.ones(elements, device=device)
        self._synchronize = synchronize
        self.best = float("inf")  # seconds of the shortest pass so far
        for _ in range(5):  # the first passes meet memory that was never touched, and sleeping threads
            self()

    def __call__(self) -> float:
        """Seconds of one pass."""
        seconds = timed(lambda: torch.add(self._a, self._b, alpha=0.5, out=self._b), self._synchronize)
        self.best = min(self.best, seconds)
        return seconds

    def once(self, call: Callable[[], object]) -> Finding:
        """The time of something that happens only once, such as compiling, between two passes."""
        gc.collect()  # or what was left by others is cleared away while this one is timed
        before = self()
        seconds = timed(call, self._synchronize)
        noisy = max(before, self()) > NOISE * self.best
        return Finding(seconds, seconds, seconds, seconds, "the triad beside it was slow" if noisy else "")


def timed(call: Callable[[], object], synchronize: Synchronize) -> float:
    """Seconds that a call takes, what it left on the device included."""
    synchronize()
    start = time.perf_counter()
    call()
    synchronize()
    return time.perf_counter() - start


def run_rounds(
    candidates: Mapping[str, Callable[[], object]],
    triad: Callable[[], float],
    *,
    rounds: int,
    seconds: float = 0.0,
    synchronize: Synchronize,
    before: Callable[[int], object] = lambda number: None,
    in_a_row: int = 1,
) -> Rounds:
    """Times candidates against each other.

    Args:
        candidates: what is timed, by name.
        triad: the reference; returns its own time.
        rounds: how many at least.
        seconds: shorter runs go on for so long, up to five times as many rounds.
        synchronize: waits for the device.
        before: runs before each candidate, untimed, with the number of the round.
        in_a_row: how often a candidate runs when its turn comes; what counts is one of these on average. A single one
            finds in the caches what others left. Where there are more, one that does not count goes ahead, so that they
            find what they need.
    """
    times: dict[str, list[float]] = {name: [] for name in candidates}
    triads: list[float] = []
    order = list(candidates)
    start = time.perf_counter()
    while len(triads) < rounds or (len(triads) < 5 * rounds and time.perf_counter() - start < seconds):
        first = triad()
        for name in order:
            before(len(triads))
            call = candidates[name]
            if in_a_row > 1:
                call()
            seconds_in_a_row = timed(lambda call=call: [call() for _ in range(in_a_row)], synchronize)
            times[name].append(seconds_in_a_row / in_a_row)
        triads.append(max(first, triad()))
        order.reverse()
    return Rounds(times, triads)
