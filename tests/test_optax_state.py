"""A run that begins with optax's state goes on with funcopt's, and the reverse."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import funcopt

PARAMS = {"w": jnp.ones((3, 2)), "b": jnp.ones(2)}


def schedule(step: Any) -> Any:
    return 0.1 / (1.0 + step)


PAIRS = {
    "adamw": (lambda: optax.adamw(schedule, weight_decay=0.1), lambda: funcopt.adamw(schedule, weight_decay=0.1)),
    "sgd": (lambda: optax.sgd(0.1, 0.9, nesterov=True), lambda: funcopt.sgd(0.1, 0.9, nesterov=True)),
    "adamax": (lambda: optax.adamax(0.1), lambda: funcopt.adamax(0.1)),
    "adadelta": (lambda: optax.adadelta(0.1), lambda: funcopt.adadelta(0.1, eps=1e-6)),
    "adagrad": (
        lambda: optax.adagrad(0.1, 0.1, 0.0),
        lambda: funcopt.adagrad(0.1, eps=0.0, initial_accumulator_value=0.1),
    ),
    "chain": (
        lambda: optax.chain(optax.clip(1.0), optax.scale_by_adam(), optax.trace(0.5), optax.scale(-0.1)),
        lambda: funcopt.chain(funcopt.scale_by_adam(), funcopt.trace(0.5), funcopt.scale(-0.1)),
    ),
}


def train(tx: Any, state: Any, params: Any, steps: range) -> tuple[Any, Any]:
    for step in steps:
        rng = np.random.default_rng(step)
        grads = jax.tree.map(lambda p, rng=rng: jnp.asarray(rng.uniform(-1, 1, p.shape)), params)
        updates, state = jax.jit(tx.update)(grads, state, params)
        params = optax.apply_updates(params, updates)
    return params, state


@pytest.mark.parametrize("name", PAIRS)
def test_runs_go_on(name: str) -> None:
    theirs, ours = PAIRS[name][0](), PAIRS[name][1]()
    with jax.enable_x64(True):
        params = jax.tree.map(lambda p: p.astype(jnp.float64), PARAMS)
        expected, _ = train(theirs, theirs.init(params), params, range(8))
        middle, state = train(theirs, theirs.init(params), params, range(4))
        on, on_state = train(ours, funcopt.from_optax_state(state, ours.init(params)), middle, range(4, 6))
        back, _ = train(theirs, funcopt.to_optax_state(on_state, theirs.init(params)), on, range(6, 8))
        for key, value in expected.items():
            np.testing.assert_allclose(back[key], value, rtol=1e-12)


def test_errors() -> None:
    adam, sgd = optax.adam(0.1).init(PARAMS), optax.sgd(0.1, 0.9).init(PARAMS)
    with pytest.raises(ValueError, match=r"same parts, got \['TraceState'\] for \['AdamState'\]"):
        funcopt.from_optax_state(sgd, funcopt.adam().init(PARAMS))
    with pytest.raises(ValueError, match=r"mu must have shapes \[\(7,\)\], got \[\(2,\), \(3, 2\)\]"):
        funcopt.from_optax_state(adam, funcopt.adam().init(jnp.ones(7)))
    tx = funcopt.adam()
    _, state = tx.update({"w": jnp.ones((3, 2)), "b": None}, tx.init(PARAMS), PARAMS)
    with pytest.raises(ValueError, match="step must be one count for all parameters"):
        funcopt.to_optax_state(state, adam)
