"""current_hyperparams: what it finds in states of every make, and under which names."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import funcopt
from funcopt.schedules import cyclic_lr

PARAMS = {"a": jnp.ones((2, 2)), "b": jnp.ones(3)}


def falling(step: Any) -> Any:
    return 0.5 / (step + 1)


def rising(step: Any) -> Any:
    return 0.1 * (step + 1)


def after_two_updates(tx: funcopt.GradientTransformation) -> dict[str, Any]:
    state = tx.init(PARAMS)
    for _ in range(2):
        _, state = optax.with_extra_args_support(tx).update(PARAMS, state, PARAMS, value=1.0)
    return funcopt.current_hyperparams(state)


CYCLE = cyclic_lr(0.1, 0.5, step_size_up=2)
CASES: dict[str, tuple[funcopt.GradientTransformation, Any]] = {
    "numbers": (funcopt.adamw(0.1), {}),
    "none at all": (optax.identity(), {}),
    "lr": (funcopt.sgd(falling, momentum=0.9), {"lr": 0.25}),
    "lr and decay": (funcopt.adamw(falling, weight_decay=rising), {"lr": 0.25, "weight_decay": 0.2}),
    "prefix": (funcopt.adamw({"a": falling, "b": 0.1}), {"lr": {"a": 0.25, "b": 0.1}}),
    "tuple": (funcopt.adam(CYCLE, betas=(CYCLE.momentum, 0.99)), {"betas": (0.85, 0.99), "lr": 0.3}),
    "inside a clip": (
        funcopt.chain(funcopt.clip_by_global_norm(rising), funcopt.sgd(falling)),
        {"max_norm": 0.2, "lr": 0.25},
    ),
    "masked": (funcopt.masked(funcopt.sgd(falling), {"a": True, "b": False}), {"lr": 0.25}),
    "optax's wrappers": (optax.MultiSteps(funcopt.sgd(falling), 1).gradient_transformation(), {"lr": 0.25}),
    "optax's own": (optax.inject_hyperparams(optax.sgd)(learning_rate=falling), {"learning_rate": 0.25}),
    "plateau": (
        funcopt.chain(funcopt.adamw(0.1), funcopt.reduce_lr_on_plateau(0.1, patience=0)),
        {"lr": 0.01},
    ),
    "named, each its own": (
        funcopt.named_chain(("decay", funcopt.add_decayed_weights(rising)), ("step", funcopt.sgd(falling))),
        {"weight_decay": 0.2, "lr": 0.25},
    ),
    "by label": (
        funcopt.partition(
            {"x": funcopt.sgd(falling), "y": funcopt.adamw(rising, weight_decay=falling)}, {"a": "x", "b": "y"}
        ),
        {"lr": {"x": 0.25, "y": 0.2}, "weight_decay": 0.25},
    ),
    "in the order of a nested chain": (
        funcopt.chain(
            funcopt.scale(falling), funcopt.chain(funcopt.scale(rising), funcopt.scale(2.0), funcopt.scale(falling))
        ),
        {"factor": (0.25, 0.2, 0.25)},
    ),
    "label and chain": (
        funcopt.chain(
            funcopt.partition({"x": funcopt.sgd(falling), "y": funcopt.sgd(rising)}, {"a": "x", "b": "y"}),
            funcopt.reduce_lr_on_plateau(1.0, patience=0),
        ),
        {"lr": ({"x": 0.25, "y": 0.2}, 0.1)},
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_values_that_the_last_update_used(name: str) -> None:
    tx, expected = CASES[name]
    found = after_two_updates(tx)
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    np.testing.assert_allclose(jax.tree.leaves(found), jax.tree.leaves(expected), rtol=1e-6)


def test_before_the_first_update_they_are_those_of_step_0() -> None:
    tx = funcopt.sgd(falling)
    assert funcopt.current_hyperparams(tx.init(PARAMS)) == {"lr": 0.5}


def test_in_a_jitted_step() -> None:
    tx = funcopt.chain(funcopt.adamw(falling, weight_decay=rising), funcopt.reduce_lr_on_plateau(1.0))

    @jax.jit
    def step(state: Any) -> Any:
        _, state = tx.update(PARAMS, state, PARAMS, value=1.0)
        return state, funcopt.current_hyperparams(state)

    state, seen = step(tx.init(PARAMS))
    assert jax.tree.structure(seen) == jax.tree.structure({"lr": (0, 0), "weight_decay": 0})
    np.testing.assert_allclose(seen["lr"], (0.5, 1.0))
    np.testing.assert_allclose(step(state)[1]["weight_decay"], 0.2, rtol=1e-6)
