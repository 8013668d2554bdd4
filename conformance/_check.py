"""One row of the matrix."""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch

from conformance._algorithms import Algorithm
from conformance._jax import make_cell, run_in_jax
from conformance._problem import HALF, STEPS, Problem, learning_rates, make_problem, worst_error
from conformance._torch import TorchRun, one_thread

DTYPES = ("float64", "float32")
ROUNDINGS = 1.0  # torch rounds bfloat16 after each operation and funcopt once, as torch's fused kernels do


class Errors(NamedTuple):
    """Worst errors in one dtype, and what they may be."""

    jax: float
    bridge: float
    bound: float


class Row(NamedTuple):
    """What came of an algorithm; see `conformance`."""

    name: str
    option_sets: int
    float64: Errors
    float32: Errors
    roundings: float | None  # in bfloat16, after one step from torch's state; None: not asked
    same_state: bool  # names, dtypes and shapes of the state
    to_torch: bool  # torch continues from the bridge's checkpoint
    from_torch: bool  # the bridge continues from torch's
    same_calls: bool = True  # of the closure, where there is one

    def failures(self) -> list[str]:
        """What is not as it must be, in words."""
        found = [
            f"{dtype}, {side}: {error:.1e} from torch, at most {errors.bound:.1e}"
            for dtype, errors in (("float64", self.float64), ("float32", self.float32))
            for side, error in (("JAX", errors.jax), ("bridge", errors.bridge))
            if not error <= errors.bound
        ]
        if self.roundings is not None and not self.roundings <= ROUNDINGS:
            found.append(f"bfloat16: {self.roundings:.2g} roundings from torch after one step, at most {ROUNDINGS:g}")
        claims = {
            "the state has other names, dtypes or shapes": self.same_state,
            "torch does not continue from the bridge's checkpoint": self.to_torch,
            "the bridge does not continue from torch's checkpoint": self.from_torch,
            "the closure is not called as often as by torch": self.same_calls,
        }
        return [f"{self.name}: {text}" for text in (*found, *(text for text, true in claims.items() if not true))]


@one_thread()
def check(algorithm: Algorithm) -> Row:
    """Compares one algorithm with torch, in all cells of the matrix.

    Each option set is one group of parameters: alone, and together with all others as the groups of one optimizer. Each
    is run under a constant learning rate and under one that changes at every step; the groups that are together have
    missing gradients in the latter.
    """
    groups = range(len(algorithm.options))
    settings = [([i], changing, False) for i in groups for changing in (False, True)]
    settings += [(list(groups), changing, changing) for changing in (False, True)]
    bridges: dict[tuple[int, ...], TorchRun] = {}
    expected: list[list[list[np.ndarray]]] = []
    worst = {(dtype, side): 0.0 for dtype in DTYPES for side in ("jax", "bridge")}
    for members, changing, missing in settings:
        options = _options(algorithm, members)
        problems = [_in_both_dtypes(algorithm, i, missing) for i in members]
        lrs = learning_rates(len(members), changing=changing)
        theirs = TorchRun(algorithm.torch_class, options, problems).step(lrs, range(STEPS))
        key = tuple(members)
        if key in bridges:
            bridges[key].restart(problems)
        else:
            bridges[key] = TorchRun(algorithm.bridge_class, options, problems)
        bridges[key].step(lrs, range(STEPS))
        expected.append(theirs.params())
        for dtype in DTYPES:
            error = _error(algorithm, dtype, bridges[key].params(), theirs.params(), problems)
            worst[dtype, "bridge"] = _larger(worst[dtype, "bridge"], error)
    for dtype in DTYPES:
        error = _error_in_jax(algorithm, dtype, settings, expected)
        worst[dtype, "jax"] = _larger(worst[dtype, "jax"], error)
    together = bridges[tuple(groups)]
    errors = {dtype: Errors(worst[dtype, "jax"], worst[dtype, "bridge"], getattr(algorithm, dtype)) for dtype in DTYPES}
    same_state, to_torch, from_torch = _check_checkpoints(algorithm, together)
    return Row(
        algorithm.name,
        len(algorithm.options),
        float64=errors["float64"],
        float32=errors["float32"],
        roundings=_roundings_in_bfloat16(algorithm),
        same_state=same_state,
        to_torch=to_torch,
        from_torch=from_torch,
    )


def _options(algorithm: Algorithm, members: Sequence[int]) -> Sequence[dict[str, Any]]:
    return [algorithm.options[members[0]]] if len(members) == 1 else algorithm.together()


def _larger(a: float, b: float) -> float:
    """The maximum, in which NaN wins."""
    return float(np.maximum(a, b))


def _in_both_dtypes(algorithm: Algorithm, group: int, missing: bool) -> Problem:
    """Parameters of both dtypes side by side: torch and the bridge take them in one group, in one program."""
    first, second = (make_problem(algorithm, dtype, group=group, missing=missing) for dtype in DTYPES)
    grads = [a + b for a, b in zip(first.grads, second.grads, strict=True)]
    return Problem(first.params + second.params, grads)


def _of_dtype(algorithm: Algorithm, dtype: str, by_group: Sequence[Sequence[np.ndarray]]) -> list[np.ndarray]:
    start = DTYPES.index(dtype) * len(algorithm.shapes)
    return [array for arrays in by_group for array in arrays[start : start + len(algorithm.shapes)]]


def _error(algorithm: Algorithm, dtype: str, actual: Any, expected: Any, problems: Sequence[Problem]) -> float:
    start = [problem.params for problem in problems]
    return worst_error(*(_of_dtype(algorithm, dtype, params) for params in (actual, expected, start)))


def _error_in_jax(
    algorithm: Algorithm, dtype: str, settings: Sequence[Any], expected: Sequence[list[list[np.ndarray]]]
) -> float:
    """Of all settings, those without missing gradients in one program."""
    worst = 0.0
    for some_missing in (False, True):
        chosen = [i for i, (_, _, missing) in enumerate(settings) if missing == some_missing]
        problems = [
            [make_problem(algorithm, dtype, group=group, missing=some_missing) for group in settings[i][0]]
            for i in chosen
        ]
        cells = [
            make_cell(algorithm.recipe, _options(algorithm, settings[i][0]), own, changing=settings[i][1])
            for i, own in zip(chosen, problems, strict=True)
        ]
        for i, own, actual in zip(chosen, problems, run_in_jax(cells, x64=dtype == "float64"), strict=True):
            start = [p for problem in own for p in problem.params]
            worst = _larger(worst, worst_error(actual, _of_dtype(algorithm, dtype, expected[i]), start))
    return worst


def _check_checkpoints(algorithm: Algorithm, bridge: TorchRun) -> tuple[bool, bool, bool]:
    """State, and both ways of continuing after `HALF` steps; all option sets as groups, some gradients missing."""
    options = algorithm.together()
    problems = [_in_both_dtypes(algorithm, i, True) for i in range(len(options))]
    lrs = learning_rates(len(options), changing=True)
    first, second = range(HALF), range(HALF, STEPS)

    def torch_run() -> TorchRun:
        return TorchRun(algorithm.torch_class, options, problems)

    def agree(actual: TorchRun, expected: TorchRun) -> bool:
        return all(
            _error(algorithm, dtype, actual.params(), expected.params(), problems) <= getattr(algorithm, dtype)
            for dtype in DTYPES
        )

    theirs = torch_run().step(lrs, first)
    bridge.restart(problems).step(lrs, first)
    same_state = bridge.described_state() == theirs.described_state()
    # torch casts NAdam's and ASGD's float32 scalars to the parameters' dtype when it loads them, the bridge does not:
    # the oracle has loaded its state where torch continues, and has not where the bridge does.
    to_torch = torch_run().resume_from(bridge).step(lrs, second)
    loaded = torch_run().resume_from(theirs).step(lrs, second)
    from_torch = bridge.resume_from(theirs).step(lrs, second)
    return same_state, agree(to_torch, loaded), agree(from_torch, theirs.step(lrs, second))


def _roundings_in_bfloat16(algorithm: Algorithm, steps: int = 12) -> float:
    """Worst error after one step from torch's own state, in units of the last place of the group's largest entry.

    A scalar that passes near 0 has no scale of its own: torch has rounded the update before, at its size.
    """
    options = algorithm.together()
    problems = [make_problem(algorithm, "float32", group=i) for i in range(len(options))]
    lrs = learning_rates(len(options), changing=True)
    theirs = TorchRun(algorithm.torch_class, options, problems, torch.bfloat16)
    ours = TorchRun(algorithm.bridge_class, options, problems, torch.bfloat16)
    worst = 0.0
    for t in range(steps):
        theirs.step(lrs, range(t, t + 1))
        ours.step(lrs, range(t, t + 1))
        for own, others in zip(ours.tensors, theirs.tensors, strict=True):
            largest = torch.stack([tensor.detach().abs().max() for tensor in others]).max()
            unit = torch.nextafter(largest, torch.tensor(math.inf, dtype=torch.bfloat16)) - largest
            for actual, expected in zip(own, others, strict=True):
                worst = _larger(worst, float((actual - expected).detach().abs().max() / unit))
        ours.resume_from(theirs)
    return worst
