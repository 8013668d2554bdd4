"""The gradients that both sides are given, and the distance of what they make of them."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from conformance._algorithms import Algorithm
from funcopt._rows import RowSparse

STEPS = 30
HALF = STEPS // 2  # where checkpoints are taken
LR = 0.05  # where it is constant
ZERO_STEP = 6  # whose gradients are all 0
MISSING_STEPS = (0, HALF)  # where each group's first parameter has no gradient, if any are missing


class Problem(NamedTuple):
    """The parameters of one group, and their gradients."""

    params: list[np.ndarray]
    grads: list[list[Any]]  # by step and parameter: an array, a RowSparse, or None where it is missing


def make_problem(algorithm: Algorithm, dtype: str, *, group: int = 0, missing: bool = False) -> Problem:
    """Normally distributed parameters and gradients, the same for each dtype.

    Args:
        algorithm: says which shapes, and whether gradients are of rows.
        dtype: numpy's name of it.
        group: groups have different numbers.
        missing: whether some gradients are None.

    Returns:
        The problem, for `STEPS` steps.
    """
    rng = np.random.default_rng(group)
    imaginary = 1j if np.dtype(dtype).kind == "c" else 0.0

    def draw(shape: tuple[int, ...]) -> np.ndarray:
        return np.asarray(rng.normal(size=shape) + imaginary * rng.normal(size=shape)).astype(dtype)

    def draw_gradient(shape: tuple[int, ...]) -> Any:
        if not algorithm.rows:
            return draw(shape)
        rows = rng.permutation(shape[0])[: shape[0] // 2].astype(np.int32)
        indices: Any = np.append(rows, rows[:1])  # the first occurs twice
        values: Any = draw((len(indices), *shape[1:]))
        return RowSparse(indices, values)

    params = [draw(shape) for shape in algorithm.shapes]
    grads = [[draw_gradient(shape) for shape in algorithm.shapes] for _ in range(STEPS)]
    grads[ZERO_STEP] = [_zero(grad) for grad in grads[ZERO_STEP]]
    # Where a group has one parameter, every second group keeps its gradient: a step without any is none.
    for step in MISSING_STEPS if missing and (len(params) > 1 or group % 2) else ():
        grads[step][0] = None
    return Problem(params, grads)


def _zero(grad: Any) -> Any:
    return RowSparse(grad.indices, _zero(grad.values)) if isinstance(grad, RowSparse) else np.zeros_like(grad)


def learning_rates(groups: int, *, changing: bool) -> np.ndarray:
    """Learning rates by step and group."""
    if not changing:
        return np.full((STEPS, groups), LR)
    return LR * (1.2 + np.sin(np.arange(STEPS)[:, None] * (1.0 + 0.7 * np.arange(groups))))


def worst_error(actual: Sequence[np.ndarray], expected: Sequence[np.ndarray], start: Sequence[np.ndarray]) -> float:
    """Largest difference, relative to the largest entry that its tensor had at the start or the end."""
    return max(
        float(np.abs(a - e).max() / max(np.abs(e).max(), np.abs(s).max()))
        for a, e, s in zip(actual, expected, start, strict=True)
    )
