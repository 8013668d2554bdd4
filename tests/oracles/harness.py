"""An algorithm beside an independent NumPy specification of it, in a closed loop: errors in parameters feed back."""

import inspect
import textwrap
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import torch

import funcopt

STEPS = 30
SHAPES = ((6, 4), (5,), (4, 7), (3,), (4, 3, 2, 2))
GROUPS = 2

# float64: roundings of 30 steps' operations in another order, relative to the way that was gone; measured up to 1e-14.
FLOAT64 = 1e-12
# float32 beside the specification in float64: 30 steps' roundings of 2**-24, which the loop feeds back.
FLOAT32 = 1e-4


class Row(NamedTuple):
    """An algorithm with options, and the specification with the same ones."""

    algorithm: str  # its name in `funcopt.algorithms()`
    spec: Callable[..., Any]  # `(p, g, s, t, lr, wd, **spec_options) -> p` of one array; see `whole`
    options: Mapping[str, Any] = {}  # funcopt's, beside lr and weight_decay
    spec_options: Mapping[str, Any] = {}
    wrong: tuple[tuple[str, str], ...] = ()  # edits of the specification's source that the comparison has to notice
    shapes: tuple[tuple[int, ...], ...] = SHAPES
    lr: float = 0.05
    weight_decay: tuple[float, float] | None = (0.1, 0.02)  # of each group; None for an algorithm that has none
    one_lr: bool = False  # whether both groups have the same learning rate, as where the algorithm demands it
    whole: bool = False  # whether the specification takes all arrays: `(P, G, S, D, t, lr, wd, **spec_options) -> P`
    float64: float = FLOAT64  # larger only with its reason beside the row
    float32: float = FLOAT32
    name: str = ""  # where an algorithm has several rows
    factory: Any = None  # instead of the one of that name, such as one in a wrapper

    @property
    def make(self) -> Any:
        """The factory."""
        return self.factory or funcopt.algorithms()[self.algorithm].factory

    @property
    def label(self) -> str:
        return f"{self.algorithm}, {self.name}" if self.name else self.algorithm


class Problem(NamedTuple):
    starts: list[np.ndarray]
    curvatures: list[np.ndarray]
    offsets: list[np.ndarray]
    noise: list[list[np.ndarray]]  # by step
    lrs: np.ndarray  # (steps, groups)

    def gradient(self, i: int, p: Any, t: int) -> Any:
        """Of array i at the update number t, from 0."""
        return self.curvatures[i] * p + self.offsets[i] + self.noise[t][i]


def problem(row: Row, steps: int = STEPS) -> Problem:
    rng = np.random.default_rng(7)
    draw = lambda: [rng.normal(size=shape) for shape in row.shapes]  # noqa: E731
    lrs = row.lr * (0.7 + 0.3 * np.cos(np.arange(steps)[:, None] * np.array([0.31, 0.47])))
    if row.one_lr:
        lrs[:, 1] = lrs[:, 0]
    curvatures = [rng.uniform(0.5, 1.5, size=shape) for shape in row.shapes]
    return Problem(draw(), curvatures, draw(), [draw() for _ in range(steps)], lrs)


def run_spec(row: Row, of: Problem, spec: Callable[..., Any] | None = None) -> list[list[np.ndarray]]:
    """The parameters after each update."""
    spec = spec or row.spec
    now = [p.copy() for p in of.starts]
    states: list[dict[str, Any]] = [{} for _ in now]
    shared: dict[str, Any] = {}
    path = []
    for t, lrs in enumerate(of.lrs):
        grads = [of.gradient(i, p, t) for i, p in enumerate(now)]
        if row.whole:
            decay = {} if row.weight_decay is None else {"wd": row.weight_decay[0]}
            now = spec(now, grads, states, shared, t + 1, float(lrs[0]), **decay, **row.spec_options)
        else:
            now = [
                spec(p, g, s, t + 1, float(lrs[i % GROUPS]), **_decay(row, i, "wd"), **row.spec_options)
                for i, (p, g, s) in enumerate(zip(now, grads, states, strict=True))
            ]
        path.append([np.array(p) for p in now])
    return path


def _decay(row: Row, i: int, name: str) -> dict[str, float]:
    if row.weight_decay is None:
        return {}
    return {name: row.weight_decay[0 if row.whole else i % GROUPS]}


def run_jax(row: Row, of: Problem, dtype: Any) -> list[list[np.ndarray]]:
    """In a jitted loop, learning rates as schedules and decays as prefixes; float64 needs x64."""
    columns = [jnp.asarray(column) for column in of.lrs.T]
    lrs = [lambda step, column=column: column[step] for column in columns]
    count = len(of.starts)
    given: dict[str, Any] = {"lr": lrs[0] if row.one_lr else [lrs[i % GROUPS] for i in range(count)], **row.options}
    if row.weight_decay is not None:
        decays = [_decay(row, i, "wd")["wd"] for i in range(count)]
        given["weight_decay"] = decays[0] if row.whole else decays
    tx = row.make(**given)

    @jax.jit
    def update(params: Any, state: Any, noise: Any) -> Any:
        parts = zip(of.curvatures, params, of.offsets, noise, strict=True)
        grads = [jnp.asarray(a, dtype) * p + jnp.asarray(c, dtype) + n for a, p, c, n in parts]
        updates, state = tx.update(grads, state, params)
        return funcopt.apply_updates(params, updates), state

    params = [jnp.asarray(p, dtype) for p in of.starts]
    state = tx.init(params)
    path = []
    for noise in of.noise:
        params, state = update(params, state, [jnp.asarray(n, dtype) for n in noise])
        path.append([np.asarray(p, np.float64) for p in params])
    return path


def run_bridge(
    row: Row, of: Problem, make: Callable[[list[dict[str, Any]]], torch.optim.Optimizer], dtype: Any = torch.float64
) -> list[list[np.ndarray]]:
    """A torch optimizer, the bridge among them, whose groups are given a new learning rate before each step."""
    tensors = [torch.nn.Parameter(torch.tensor(p, dtype=dtype)) for p in of.starts]
    decay = lambda i: _decay(row, i, "weight_decay")  # noqa: E731
    groups = [{"params": tensors[i::GROUPS], **decay(i)} for i in range(GROUPS)]
    optimizer = make(groups)
    path = []
    for t, lrs in enumerate(of.lrs):
        for i, p in enumerate(tensors):
            p.grad = torch.tensor(of.gradient(i, p.detach().numpy().astype(np.float64), t), dtype=dtype)
        for group, lr in zip(optimizer.param_groups, lrs, strict=True):
            group["lr"] = float(lr)
        optimizer.step()
        path.append([p.detach().numpy().astype(np.float64) for p in tensors])
    return path


def difference(ours: list[list[np.ndarray]], theirs: list[list[np.ndarray]], starts: list[np.ndarray]) -> float:
    """The largest difference, relative to the furthest that each array has gone by the reference."""
    worst = 0.0
    for i, start in enumerate(starts):
        way = max(np.abs(step[i] - start).max() for step in theirs)
        gap = max(np.abs(a[i] - b[i]).max() for a, b in zip(ours, theirs, strict=True))
        worst = max(worst, float(np.nan_to_num(gap / max(way, 1e-30), nan=np.inf)))
    return worst


def edited(spec: Callable[..., Any], old: str, new: str) -> Callable[..., Any]:
    """The specification with an error put into its source."""
    source = textwrap.dedent(inspect.getsource(spec))
    assert source.count(old) >= 1, f"{spec.__name__} has no {old!r}"
    namespace = dict(spec.__globals__)
    exec(source.replace(old, new), namespace)
    return namespace[spec.__name__]
