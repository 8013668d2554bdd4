"""Parts of the tree on their own: masked, partition, freeze."""

import jax
import jax.numpy as jnp
import optax
import pytest

import funcopt

PARAMS = {"a": jnp.ones((2, 2)), "b": jnp.ones(2)}
GRADS = {"a": jnp.full((2, 2), 0.5), "b": jnp.full(2, 0.5)}


def matrices(params: dict[str, jax.Array]) -> dict[str, bool]:
    return jax.tree.map(lambda p: p.ndim > 1, params)


def test_masked_passes_the_rest_through() -> None:
    tx = funcopt.masked(funcopt.scale(10.0), matrices)
    updates, _ = tx.update(GRADS, tx.init(PARAMS), PARAMS)
    assert (updates["a"] == 5.0).all()
    assert (updates["b"] == 0.5).all()


def test_functions_of_the_parameters_cope_with_missing_gradients() -> None:
    """Optax's own call the function on the updates, and fail here."""
    grads = {"a": None, "b": GRADS["b"]}
    masked = funcopt.masked(funcopt.scale(10.0), matrices)
    updates, _ = masked.update(grads, masked.init(PARAMS), PARAMS)
    assert updates["a"] is None
    split = funcopt.partition({True: funcopt.scale(10.0), False: funcopt.scale(2.0)}, matrices)
    updates, _ = split.update(grads, split.init(PARAMS), PARAMS)
    assert updates["a"] is None
    assert (updates["b"] == 1.0).all()
    reference = optax.masked(optax.scale(10.0), matrices)
    with pytest.raises(ValueError, match="pytree structure error"):
        reference.update(grads, reference.init(PARAMS), PARAMS)


def test_function_needs_the_parameters() -> None:
    tx = funcopt.masked(funcopt.scale(10.0), matrices)
    with pytest.raises(ValueError, match="masked: a function of the parameters needs them"):
        tx.update(GRADS, tx.init(PARAMS))


def test_partition_names_unknown_labels() -> None:
    with pytest.raises(ValueError, match="labels must be among 'x', 'y', got 'z'"):
        funcopt.partition({"x": funcopt.sgd(), "y": funcopt.adam()}, {"a": "x", "b": "z"})


def test_frozen_parts_do_not_move_nor_decay() -> None:
    tx = funcopt.chain(funcopt.adamw(0.1, weight_decay=0.5), funcopt.freeze({"a": True, "b": False}))
    updates, _ = tx.update(GRADS, tx.init(PARAMS), PARAMS)
    assert (updates["a"] == 0.0).all()
    assert (updates["b"] != 0.0).all()


def test_partition_keeps_no_state_for_fixed_parts() -> None:
    tx = funcopt.partition({"fit": funcopt.adam(0.1), "fixed": optax.set_to_zero()}, {"a": "fixed", "b": "fit"})
    assert [leaf.shape for leaf in jax.tree.leaves(tx.init(PARAMS)) if leaf.ndim] == [(2,), (2,)]
