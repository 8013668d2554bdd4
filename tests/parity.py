"""The same gradients through torch.optim, through a jitted JAX loop and through TorchBridge."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import torch

import funcopt

SHAPES = ((4, 3), (5,), (), (2, 3, 2))
GROUP_OF = (0, 0, 1, 1)


class Problem(NamedTuple):
    """Initial parameters, gradients of each step (None: missing), and the learning rates of both groups."""

    params: list[np.ndarray]
    grads: list[list[np.ndarray | None]]
    lrs: np.ndarray  # (steps, groups)


def make_problem(dtype: str, *, steps: int = 50, missing: bool = False, seed: int = 0) -> Problem:
    rng = np.random.default_rng(seed)
    params = [rng.normal(size=shape).astype(dtype) for shape in SHAPES]
    grads: list[list[Any]] = [[rng.normal(size=shape).astype(dtype) for shape in SHAPES] for _ in range(steps)]
    if missing:
        for t in range(0, steps, 5):
            grads[t][t // 5 % len(SHAPES)] = None
    lrs = 0.05 * (1.2 + np.sin(np.arange(steps)[:, None] * np.array([1.0, 1.7])))
    return Problem(params, grads, lrs)


def run_torch(
    problem: Problem, make: Callable[[list[dict[str, Any]]], torch.optim.Optimizer]
) -> tuple[list[np.ndarray], torch.optim.Optimizer]:
    """Steps a torch optimizer, TorchBridge included, under a learning rate that is set by hand at each step."""
    tensors = [torch.nn.Parameter(torch.from_numpy(p.copy())) for p in problem.params]
    groups: list[dict[str, Any]] = [{"params": []}, {"params": []}]
    for tensor, group in zip(tensors, GROUP_OF, strict=True):
        groups[group]["params"].append(tensor)
    optimizer = make(groups)
    for grads, lrs in zip(problem.grads, problem.lrs, strict=True):
        for tensor, grad in zip(tensors, grads, strict=True):
            tensor.grad = None if grad is None else torch.from_numpy(grad.copy())
        for group, lr in zip(optimizer.param_groups, lrs, strict=True):
            group["lr"] = float(lr)
        optimizer.step()
    return [tensor.detach().numpy() for tensor in tensors], optimizer


def run_jax(problem: Problem, factory: Callable[..., Any], options: Mapping[str, Any]) -> list[np.ndarray]:
    """The same in JAX: one jitted update, the learning rate a tree of schedules."""
    schedules = [lambda step, column=column: jnp.asarray(column)[step] for column in problem.lrs.T]
    tx = factory(lr=[schedules[group] for group in GROUP_OF], **options)

    @jax.jit
    def update(params: Any, state: Any, grads: Any) -> tuple[Any, Any]:
        updates, state = tx.update(grads, state, params)
        return funcopt.apply_updates(params, updates), state

    params = [jnp.asarray(p) for p in problem.params]
    state = tx.init(params)
    for grads in problem.grads:
        params, state = update(params, state, grads)
    return [np.asarray(p) for p in params]


def worst_error(actual: Sequence[np.ndarray], expected: Sequence[np.ndarray]) -> float:
    """Largest difference, relative to the largest entry of all tensors: one that passes near 0 has no scale itself."""
    # NumPy's maximum, which keeps NaN; Python's drops it.
    scale = np.max([np.abs(e).max() for e in expected])
    return float(
        np.max([np.abs(a.astype(np.float64) - e).max() for a, e in zip(actual, expected, strict=True)]) / scale
    )
