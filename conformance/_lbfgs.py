"""LBFGS's row: both sides evaluate the same loss, and the number of evaluations is part of the comparison.

Everything after the first iteration is made of inner products, whose order of summation is the library's own, and where
the loss is flat or curved an iteration amplifies a difference of one bit: 1e-6 is what to expect of float64, and
float32 has half the digits.
"""

import copy
import itertools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import torch
from jax import lax

import funcopt
from conformance._check import DTYPES, Errors, Row
from conformance._problem import HALF, LR, STEPS, worst_error
from conformance._torch import one_thread
from funcopt.torch_bridge import optim

FLOAT64 = 1e-6
FLOAT32 = 1e-3

_WOLFE = {"line_search_fn": "strong_wolfe"}
# Few iterations per step, so that 30 steps are not at the minimum before they are over.
OPTIONS: tuple[dict[str, Any], ...] = (
    {"max_iter": 2},
    {"max_iter": 1, "history_size": 2},
    {"max_iter": 3, "max_eval": 2, "history_size": 4},
    {"max_iter": 2, **_WOLFE, "max_eval": 5},
    {"max_iter": 3, **_WOLFE, "history_size": 3},
)


class Lbfgs(NamedTuple):
    """L-BFGS's recipe and class, and its option sets."""

    recipe: Callable[..., funcopt.GradientTransformationExtraArgs] = funcopt.lbfgs
    bridge_class: type[torch.optim.Optimizer] = optim.LBFGS
    options: tuple[dict[str, Any], ...] = OPTIONS

    @property
    def name(self) -> str:
        return "LBFGS"

    def quick(self) -> "Lbfgs":
        """The same with two option sets: the first, and most options at once."""
        return self._replace(options=(self.options[0], self.options[-1]))


_RNG = np.random.default_rng(0)
_FEATURES = _RNG.normal(size=(40, 6)) * np.logspace(0, 0.5, 6)
_LABELS = np.sign(_FEATURES @ _RNG.normal(size=6) + _RNG.normal(size=40))


def _loss(params: Sequence[Any], log1p: Callable[..., Any], exp: Callable[..., Any], array: Any) -> Any:
    """A logistic regression whose features differ in scale: well conditioned enough, and slow enough for 30 steps."""
    weight, bias = params
    margins = array(_LABELS) * (array(_FEATURES) @ weight + bias)
    return log1p(exp(-margins)).mean() + 0.01 * (weight**2).sum()


def _start(dtype: str) -> list[np.ndarray]:
    rng = np.random.default_rng(1)
    return [np.asarray(rng.normal(size=shape)).astype(dtype) for shape in ((6,), ())]


def _rates(changing: bool) -> np.ndarray:
    return 10 * LR * (1.2 + np.sin(np.arange(STEPS))) if changing else np.full(STEPS, 10 * LR)


class _Run:
    """A torch optimizer on the loss."""

    def __init__(self, optimizer_class: Any, options: dict[str, Any], dtype: str) -> None:
        self.make = lambda params: optimizer_class(params, **options)
        self.params = [torch.nn.Parameter(torch.from_numpy(p)) for p in _start(dtype)]
        self.optimizer = self.make(self.params)
        self.calls = 0
        self.path: list[list[np.ndarray]] = []  # parameters after each step

    def _closure(self) -> torch.Tensor:
        self.calls += 1
        self.optimizer.zero_grad()
        dtype = self.params[0].dtype
        loss = _loss(self.params, torch.log1p, torch.exp, lambda x: torch.tensor(x, dtype=dtype))
        loss.backward()
        return loss

    def step(self, rates: Sequence[float]) -> "_Run":
        for lr in rates:
            self.optimizer.param_groups[0]["lr"] = float(lr)
            self.optimizer.step(self._closure)  # pyright: ignore[reportArgumentType]
            self.path.append([p.detach().numpy().copy() for p in self.params])
        return self

    def resume_from(self, other: "_Run") -> "_Run":
        for own, source in zip(self.params, other.params, strict=True):
            own.data.copy_(source.data)
        self.optimizer.load_state_dict(copy.deepcopy(other.optimizer.state_dict()))
        return self

    def state_keys(self) -> set[str]:
        return set(self.optimizer.state[self.params[0]])


def _run_in_jax(
    algorithm: Lbfgs, options: dict[str, Any], dtype: str, by_kind: Sequence[np.ndarray]
) -> list[tuple[list[list[np.ndarray]], int]]:
    """For each kind of learning rate: parameters after each step, and evaluations as the state counts them."""

    def loss(params: Any) -> Any:
        return _loss(params, jnp.log1p, jnp.exp, lambda x: jnp.asarray(x, params[0].dtype))

    with jax.enable_x64(dtype == "float64"):

        @jax.jit
        def run(params: Any, rates: jax.Array) -> tuple[Any, Any]:
            tx = algorithm.recipe(**{**options, "lr": lambda step: rates[step]})

            def step(carry: tuple[Any, Any], _: Any) -> tuple[Any, Any]:
                params, state = carry
                value, grads = jax.value_and_grad(loss)(params)
                updates, state = tx.update(grads, state, params, value=value, value_fn=loss)
                params = funcopt.apply_updates(params, updates)
                return (params, state), params

            return lax.scan(step, (params, tx.init(params)), length=STEPS)

        params = [jnp.asarray(p) for p in _start(dtype)]
        results = [run(params, jnp.asarray(rates)) for rates in by_kind]
        return [
            ([[np.asarray(p[t]) for p in path] for t in range(STEPS)], int(state.inner_state.func_evals))
            for (_, state), path in results
        ]


def _worst(actual: list[list[np.ndarray]], expected: list[list[np.ndarray]], dtype: str) -> float:
    """Over all steps: at the last one all are at the minimum."""
    return float(np.max([worst_error(a, e, _start(dtype)) for a, e in zip(actual, expected, strict=True)]))


def _continues(first: Any, second: Any, options: dict[str, Any]) -> bool:
    """Whether the second class goes on from the first one's checkpoint as torch does from its own."""
    rates = _rates(True).tolist()
    expected = _Run(torch.optim.LBFGS, options, "float64").step(rates)
    half = _Run(first, options, "float64").step(rates[:HALF])
    resumed = _Run(second, options, "float64").resume_from(half).step(rates[HALF:])
    return _worst(resumed.path, expected.path[HALF:], "float64") <= FLOAT64


@one_thread()
def check_lbfgs(algorithm: Lbfgs) -> Row:
    """Compares L-BFGS with torch: option sets, both dtypes, constant and changing learning rate; it has one group."""
    worst = {(dtype, side): 0.0 for dtype in DTYPES for side in ("jax", "bridge")}
    same_calls = same_state = True
    by_kind = [_rates(changing) for changing in (False, True)]
    runs = (
        (options, dtype, rates, *in_jax)
        for options, dtype in itertools.product(algorithm.options, DTYPES)
        for rates, in_jax in zip(by_kind, _run_in_jax(algorithm, options, dtype, by_kind), strict=True)
    )
    for options, dtype, rates, path_in_jax, calls in runs:
        theirs = _Run(torch.optim.LBFGS, options, dtype).step(rates.tolist())
        ours = _Run(algorithm.bridge_class, options, dtype).step(rates.tolist())
        for side, path in (("jax", path_in_jax), ("bridge", ours.path)):
            worst[dtype, side] = float(np.maximum(worst[dtype, side], _worst(path, theirs.path, dtype)))
        # In float32 a line search near the minimum decides by the loss's last digit.
        same_calls &= dtype == "float32" or ours.calls == theirs.calls == calls
        same_state &= ours.state_keys() == theirs.state_keys()
    to_torch, from_torch = (
        all(_continues(*classes, options) for options in algorithm.options)
        for classes in ((algorithm.bridge_class, torch.optim.LBFGS), (torch.optim.LBFGS, algorithm.bridge_class))
    )
    return Row(
        algorithm.name,
        len(algorithm.options),
        float64=Errors(worst["float64", "jax"], worst["float64", "bridge"], FLOAT64),
        float32=Errors(worst["float32", "jax"], worst["float32", "bridge"], FLOAT32),
        roundings=None,
        same_state=same_state,
        to_torch=to_torch,
        from_torch=from_torch,
        same_calls=same_calls,
    )
