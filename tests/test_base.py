"""apply_updates, chains, counts per leaf, and schedules inside a transformation."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import funcopt

PARAMS = {"a": jnp.ones(2), "b": jnp.ones(3)}
GRADS = {"a": jnp.full(2, 0.5), "b": jnp.full(3, -0.5)}
GAP = {"a": jnp.full(2, 0.5), "b": None}


def test_apply_updates_rounds_once_into_the_parameters_dtype() -> None:
    params = {"a": jnp.asarray(1.0, jnp.bfloat16), "b": jnp.asarray(1.0), "c": jnp.asarray(2.0)}
    updates = {"a": jnp.asarray(2.0**-8 + 2.0**-9), "b": None, "c": jnp.asarray(0.5)}
    result = funcopt.apply_updates(params, updates)
    # 1 + 2**-8 + 2**-9 is above the middle between 1 and 1 + 2**-7.
    assert result["a"].dtype == jnp.bfloat16
    assert result["a"] == 1.0 + 2.0**-7
    assert result["b"] is params["b"]
    assert result["c"] == 2.5


def test_chains_mix_with_optax_and_keep_the_mark_only_where_it_holds() -> None:
    ours, theirs = funcopt.scale(2.0), optax.scale(2.0)
    assert isinstance(funcopt.chain(ours, ours), funcopt.ElementwiseTransformation)
    assert isinstance(funcopt.chain(), funcopt.ElementwiseTransformation)
    mixed = funcopt.chain(ours, theirs, optax.with_extra_args_support(optax.identity()))
    assert not isinstance(mixed, funcopt.ElementwiseTransformation)
    updates, _ = mixed.update(GRADS, mixed.init(PARAMS), PARAMS)
    np.testing.assert_array_equal(updates["a"], [2.0, 2.0])
    around = optax.chain(funcopt.scale(2.0), optax.scale(2.0))
    np.testing.assert_array_equal(around.update(GRADS, around.init(PARAMS), PARAMS)[0]["a"], [2.0, 2.0])


def test_a_marked_part_of_optax_takes_what_others_of_the_chain_need() -> None:
    marked = funcopt.ElementwiseTransformation(*optax.scale_by_lion())
    tx = funcopt.chain(marked, funcopt.reduce_lr_on_plateau(0.1))
    updates, _ = tx.update(GRADS, tx.init(PARAMS), PARAMS, value=1.0)
    expected, _ = marked.update(GRADS, marked.init(PARAMS), PARAMS)
    np.testing.assert_array_equal(updates["a"], expected["a"])


def test_what_takes_further_arguments_keeps_them_when_marked() -> None:
    def update(updates, state, params=None, **extra):
        return jax.tree.map(lambda u: u * extra["factor"], updates), state

    tx = funcopt.chain(funcopt.ElementwiseTransformation(funcopt.scale(1.0).init, update), funcopt.scale(1.0))
    updates, _ = tx.update(GRADS, tx.init(PARAMS), PARAMS, factor=3.0)
    np.testing.assert_array_equal(updates["a"], 3.0 * GRADS["a"])


def test_named_chain() -> None:
    tx = funcopt.named_chain(("moments", funcopt.scale_by_adam()), ("rate", funcopt.scale_by_learning_rate(0.1)))
    state = tx.init(PARAMS)
    assert set(state) == {"moments", "rate"}
    assert isinstance(tx, funcopt.ElementwiseTransformation)


def test_counts_part_where_gradients_are_missing() -> None:
    tx = funcopt.scale_by_adam()
    state = tx.init(PARAMS)
    for grads in (GRADS, GAP, GRADS, GAP):
        _, state = tx.update(grads, state, PARAMS)
    assert jax.tree.map(int, state.step) == {"a": 4, "b": 2}
    # One count while all histories are the same, and a fixed structure once they are not.
    _, uniform = tx.update(GRADS, tx.init(PARAMS), PARAMS)
    assert uniform.step.shape == ()
    _, again = jax.jit(tx.update, donate_argnums=1)(GAP, state, PARAMS)
    assert jax.tree.structure(again) == jax.tree.structure(state)


def test_a_gap_in_the_gradients_equals_torch_in_a_scan() -> None:
    """The pattern of None is fixed inside a scan; after one update outside, the state is a fixed point."""
    tx = funcopt.adam(0.1)
    _, state = tx.update(GAP, tx.init(PARAMS), PARAMS)
    scanned, _ = jax.lax.scan(lambda s, _: (tx.update(GAP, s, PARAMS)[1], None), state, None, length=3)
    assert jax.tree.map(int, scanned.step) == {"a": 4, "b": 0}


def test_schedules_count_applied_updates_and_keep_the_value_used() -> None:
    tx = funcopt.sgd(lr={"a": lambda step: 0.1 * (step + 1), "b": 0.5})
    state = tx.init(PARAMS)
    seen = []
    for grads in (GRADS, GAP, {"a": None, "b": None}, GRADS):
        updates, state = tx.update(grads, state, PARAMS)
        seen.append(None if updates["a"] is None else float(-updates["a"][0] / 0.5))
    assert seen == [pytest.approx(0.1), pytest.approx(0.2), None, pytest.approx(0.3)]
    scheduled = state
    assert isinstance(scheduled, funcopt.ScheduledState)
    assert int(scheduled.schedule_step) == 3
    assert float(scheduled.hyperparams["lr"]["a"]) == pytest.approx(0.3)


def test_a_schedule_may_give_one_entry_of_a_tuple() -> None:
    momentum = lambda step: jnp.where(step == 0, 0.0, 0.9)  # noqa: E731
    tx, fixed = funcopt.scale_by_adam(betas=(momentum, 0.99)), funcopt.scale_by_adam(betas=(0.0, 0.99))
    first, _ = tx.update(GRADS, tx.init(PARAMS), PARAMS)
    expected, _ = fixed.update(GRADS, fixed.init(PARAMS), PARAMS)
    np.testing.assert_allclose(first["a"], expected["a"], rtol=1e-6)


def test_hyperparameters_do_not_take_the_parameters_dtype() -> None:
    """In bfloat16 0.999 is 1, and optax.inject_hyperparams(optax.adamw) gives NaN at the first step."""
    params = {"a": jnp.ones(2, jnp.bfloat16)}
    grads = {"a": jnp.full(2, 0.5, jnp.bfloat16)}
    for tx in (funcopt.adamw(lambda step: 0.1), funcopt.adamw(betas=(jnp.float32(0.9), jnp.float32(0.999)))):
        updates, _ = tx.update(grads, tx.init(params), params)
        assert jnp.isfinite(updates["a"]).all()


def test_bias_correction_is_accurate_in_float32() -> None:
    tx = funcopt.scale_by_adam(betas=(0.9, 0.9999), eps=0.0)
    state = tx.init(1.0)
    _, state = jax.jit(tx.update)(jnp.asarray(0.5), state, 1.0)
    update, state = jax.jit(tx.update)(jnp.asarray(0.5), state, 1.0)
    # Equal gradients: the corrected moments are exact powers of it. 1 - b**t in float32 would be 1,800 ulp off.
    assert abs(float(update) - 1.0) < 8 * 2.0**-23
