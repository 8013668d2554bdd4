"""States of equinox models and of trees with holes go through the checkpoints that JAX users write."""

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from subjects import TRIED

import funcopt

pytestmark = pytest.mark.clients
eqx = pytest.importorskip("equinox")
checkpoint = pytest.importorskip("orbax.checkpoint")

NAMES = [name for name, found in funcopt.algorithms().items() if name != "lbfgs" and not found.matrices_only]


@pytest.fixture(scope="module")
def params() -> Any:
    return eqx.filter(eqx.nn.MLP(3, 1, 4, 1, key=jax.random.key(0)), eqx.is_inexact_array)


def trained(tx: Any, params: Any) -> Any:
    state = tx.init(params)
    for _ in range(2):
        _, state = tx.update(jax.tree.map(jnp.cos, params), state, params)
    return state


@pytest.mark.parametrize("name", NAMES)
def test_a_models_state_is_read_into_a_new_one(name: str, params: Any, tmp_path: Path) -> None:
    for tx in (
        getattr(funcopt, name)(),
        funcopt.chain(funcopt.clip_by_value(1.0), getattr(funcopt, name)(lambda step: 0.1)),
    ):
        state = trained(tx, params)
        eqx.tree_serialise_leaves(tmp_path / "state.eqx", state)
        assert bool(eqx.tree_equal(eqx.tree_deserialise_leaves(tmp_path / "state.eqx", tx.init(params)), state))


def test_orbax_restores_into_a_new_state_and_into_an_abstract_one(tmp_path: Path) -> None:
    params = {"w": jnp.ones(3), "hole": None, "more": [None, jnp.ones((2, 2))]}
    tx = funcopt.chain(*(getattr(funcopt, name)() for name in NAMES if name in TRIED), funcopt.params_ema(0.9))
    state = trained(tx, params)
    with checkpoint.StandardCheckpointer() as checkpointer:
        checkpointer.save(tmp_path / "state", state)
        checkpointer.wait_until_finished()
        for target in (tx.init(params), jax.eval_shape(tx.init, params)):
            restored = checkpointer.restore(tmp_path / "state", target)
            jax.tree.map(np.testing.assert_array_equal, restored, state)


def test_a_loop_over_a_filtered_model(params: Any) -> None:
    model = eqx.nn.MLP(3, 1, 4, 1, key=jax.random.key(0))
    static = eqx.filter(model, eqx.is_inexact_array, inverse=True)
    x = jnp.ones((5, 3))

    def loss(params: Any) -> Any:
        return jnp.mean(jax.vmap(eqx.combine(params, static))(x) ** 2)

    for ours, theirs in ((funcopt.adamw(0.1), optax.adamw(0.1, weight_decay=0.01)), (funcopt.sgd(0.1), optax.sgd(0.1))):

        def step(carry: Any, _: Any, tx: Any) -> Any:
            params, state = carry
            updates, state = tx.update(jax.grad(loss)(params), state, params)
            return (eqx.apply_updates(params, updates), state), None

        ends = [
            jax.jit(lambda carry, tx=tx: jax.lax.scan(lambda c, x: step(c, x, tx), carry, None, length=3)[0])(
                (params, tx.init(params))
            )[0]
            for tx in (ours, theirs)
        ]
        # optax corrects Adam's bias with powers in float32, which are 1e-5 off.
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5), *ends)
