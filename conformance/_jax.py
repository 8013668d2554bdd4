"""The JAX side: many optimizers in one compiled program, a scan over the steps."""

import inspect
import itertools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

import funcopt
from conformance._problem import LR, STEPS, Problem, learning_rates


class Cell(NamedTuple):
    """An optimizer and what it is given: a tree per step."""

    tx: funcopt.GradientTransformationExtraArgs
    params: Any
    grads: list[Any]


def make_cell(
    recipe: Callable[..., funcopt.GradientTransformationExtraArgs],
    options: Sequence[dict[str, Any]],
    problems: Sequence[Problem],
    *,
    changing: bool,
) -> Cell:
    """One group is plain numbers and a list of parameters; several are prefixes, and lists of such lists."""
    lrs: list[Any] = [LR] * len(options)
    if changing:
        lrs = [_schedule(column) for column in learning_rates(len(options), changing=True).T]
    if len(options) == 1:
        return Cell(recipe(**{**options[0], "lr": lrs[0]}), problems[0].params, problems[0].grads)
    defaults = {name: p.default for name, p in inspect.signature(recipe).parameters.items()}
    names = dict.fromkeys(name for given in options for name in given)
    prefixes: dict[str, Any] = {name: [{**defaults, **given}[name] for given in options] for name in names}
    grads = [[problem.grads[t] for problem in problems] for t in range(STEPS)]
    return Cell(recipe(**{**prefixes, "lr": lrs}), [problem.params for problem in problems], grads)


def _schedule(column: np.ndarray) -> Callable[[Any], Any]:
    return lambda step: jnp.asarray(column)[step]


def run_in_jax(cells: Sequence[Cell], *, x64: bool) -> list[list[np.ndarray]]:
    """Each cell's parameters after all steps, as flat lists.

    Successive steps with the same gradients present are one scan; a single one is a plain update, which may change the
    state's structure.
    """

    def update(carry: Any, grads: Any) -> Any:
        results = []
        for cell, (params, state), given in zip(cells, carry, grads, strict=True):
            updates, state = cell.tx.update(given, state, params)
            results.append((funcopt.apply_updates(params, updates), state))
        return results

    one_step = jax.jit(update)
    many_steps = jax.jit(lambda carry, grads: lax.scan(lambda c, g: (update(c, g), None), carry, grads)[0])
    by_step = [[cell.grads[t] for cell in cells] for t in range(STEPS)]
    with jax.enable_x64(x64):
        carry = [
            (params, cell.tx.init(params)) for cell in cells for params in [jax.tree.map(jnp.asarray, cell.params)]
        ]
        for _, group in itertools.groupby(by_step, key=jax.tree.structure):
            steps = list(group)
            if len(steps) == 1:
                carry = one_step(carry, steps[0])
            else:
                carry = many_steps(carry, jax.tree.map(lambda *xs: np.stack(xs), *steps))
        return [[np.asarray(leaf) for leaf in jax.tree.leaves(params)] for params, _ in carry]
