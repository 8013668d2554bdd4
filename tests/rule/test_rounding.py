"""Half precision is rounded once: updates in a chain and, with `funcopt.step`, up to the parameter stay in float32."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import funcopt

SIZE = 2_000


def recipe() -> funcopt.GradientTransformationExtraArgs:
    return funcopt.chain(
        funcopt.clip_by_global_norm(1.0),
        funcopt.add_decayed_weights(0.01),
        funcopt.adamw(1e-2, weight_decay=0.1),
        funcopt.params_ema(0.99),
    )


def draw(seed: int, dtype: Any) -> dict[str, jax.Array]:
    rng = np.random.default_rng(seed)
    return {"w": jnp.asarray(rng.normal(size=SIZE), dtype)}


def wrongly_rounded(actual: jax.Array, exact: jax.Array) -> int:
    """How many elements are not the exact value rounded once."""
    return int(jnp.sum(actual != exact.astype(actual.dtype)))


def widened(tree: Any) -> Any:
    return jax.tree.map(lambda x: x.astype(jnp.float32) if jnp.issubdtype(x.dtype, jnp.floating) else x, tree)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_a_step_rounds_each_result_once(dtype: str) -> None:
    """Each step begins with the rounded values, as float32 too, and its results are those of float32 rounded."""
    tx = recipe()
    params, state = draw(0, dtype), tx.init(draw(0, dtype))
    before = params["w"]
    for i in range(10):
        grads = draw(i + 1, dtype)
        exact_params, exact_state = funcopt.step(tx, widened(grads), widened(state), widened(params))
        params, state = funcopt.step(tx, grads, state, params)
        assert wrongly_rounded(params["w"], exact_params["w"]) == 0
        for name in ("exp_avg", "exp_avg_sq"):
            assert wrongly_rounded(getattr(state[2], name)["w"], getattr(exact_state[2], name)["w"]) == 0, name
        stored, average = params["w"].astype(jnp.float32), state[3].ema["w"]
        exact = stored if i == 0 else before + (stored - before) * (1 - 0.99)
        assert wrongly_rounded(average, exact) == 0
        before = average.astype(jnp.float32)


@pytest.mark.parametrize("grads_dtype", ["bfloat16", "float32"])
def test_the_average_is_of_the_parameters_as_they_are_stored(grads_dtype: str) -> None:
    """With `update` the update is rounded on its way to the parameter, and the average knows of it."""
    tx = funcopt.chain(funcopt.adamw(0.3), funcopt.params_ema(0.99))
    params, state = draw(0, "bfloat16"), tx.init(draw(0, "bfloat16"))
    updates, state = tx.update(draw(1, grads_dtype), state, params)
    np.testing.assert_array_equal(funcopt.apply_updates(params, updates)["w"], state[1].ema["w"])


def test_a_chain_rounds_its_updates_once() -> None:
    tx = recipe()
    params, grads = draw(0, "bfloat16"), draw(1, "bfloat16")
    updates, state = tx.update(grads, tx.init(params), params)
    exact, exact_state = tx.update(widened(grads), tx.init(params), params)
    assert wrongly_rounded(updates["w"], exact["w"]) == 0
    assert wrongly_rounded(state[2].exp_avg["w"], exact_state[2].exp_avg["w"].astype(jnp.float32)) == 0


def test_a_part_of_optax_gets_stored_dtypes() -> None:
    seen = []

    def update(updates: Any, state: Any, params: Any = None) -> Any:
        seen.append((updates["w"].dtype, params["w"].dtype))
        return updates, state

    part = optax.GradientTransformation(lambda params: (), update)
    tx = funcopt.chain(funcopt.scale(0.3), part, funcopt.scale(0.3))
    params, grads = draw(0, "bfloat16"), draw(1, "bfloat16")
    tx.update(grads, tx.init(params), params)
    assert seen == [(jnp.bfloat16, jnp.bfloat16)]


def test_the_count_of_wrong_roundings_can_fail() -> None:
    params, grads = draw(0, "bfloat16"), draw(1, "bfloat16")
    tx = optax.chain(funcopt.scale(0.3), funcopt.scale(0.7), funcopt.scale(1.3))
    exact = jax.tree.map(lambda g: g.astype(jnp.float32) * 0.3 * 0.7 * 1.3, grads)
    updates, _ = tx.update(grads, tx.init(params), params)
    assert wrongly_rounded(updates["w"], exact["w"]) > 100
