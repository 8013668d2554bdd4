"""join_small_leaves: the same updates from fewer arrays."""

from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import funcopt
from funcopt import ElementwiseTransformation

GROUPS = {"body": 1e-2, "head": 1e-1}


def tree(seed: int) -> dict[str, Any]:
    rng = np.random.default_rng(seed)
    array = lambda *shape, dtype="float32": jnp.asarray(rng.normal(size=shape), dtype)  # noqa: E731
    return {
        "body": [array(3, 4), array(5, 5), array(2, dtype="bfloat16"), array()],
        "head": {"w": array(4, 2), "b": array(2), "half": array(3, dtype="bfloat16")},
    }


def lion(lr: Any) -> funcopt.GradientTransformation:
    return funcopt.chain(ElementwiseTransformation(*optax.scale_by_lion()), funcopt.scale_by_learning_rate(lr))


def composed(lr: Any) -> funcopt.GradientTransformation:
    return funcopt.chain(funcopt.clip_by_global_norm(1.0), funcopt.adamw(lr), funcopt.params_ema(0.9))


@pytest.mark.parametrize("max_size", [0, 12, 65_536])
@pytest.mark.parametrize("make", [funcopt.adamw, funcopt.nadam, composed, lion])
def test_same_updates_as_without(make: Any, max_size: int) -> None:
    """To the last bits that another order of the norm's sum leaves, and one rounding of bfloat16."""
    lr = GROUPS if make is not lion else 1e-2
    plain = make(lr)
    joined = funcopt.join_small_leaves(make(lr), max_size, within=GROUPS if make is not lion else None)
    results = []
    for tx in (plain, joined):
        params, state = tree(0), tx.init(tree(0))
        update = jax.jit(tx.update)
        for step in range(4):
            updates, state = update(tree(step + 1), state, params)
            chex.assert_trees_all_equal_shapes_and_dtypes(updates, params)
            params = funcopt.apply_updates(params, updates)
        results.append(params)
    widened = [jax.tree.map(lambda x: x.astype(jnp.float32), params) for params in results]
    chex.assert_trees_all_close(*[(p["body"][:2], p["head"]["w"]) for p in widened], rtol=3e-6, atol=3e-6)
    chex.assert_trees_all_close(*widened, rtol=2**-7, atol=2**-7)


def test_a_thousand_leaves_have_one_state() -> None:
    params = [jnp.ones((4, 4)) for _ in range(1000)]
    state = funcopt.join_small_leaves(funcopt.adamw(1e-3)).init(params)
    assert len(jax.tree.leaves(state)) == 3


def test_missing_gradients() -> None:
    tx = funcopt.join_small_leaves(funcopt.adamw(GROUPS), within=GROUPS)
    params, grads = tree(0), tree(1)
    missing = {**grads, "body": [None] * 4}
    updates, state = tx.update(missing, tx.init(params), params)
    assert updates["body"] == [None] * 4
    expected, _ = funcopt.adamw(GROUPS).update(missing, funcopt.adamw(GROUPS).init(params), params)
    chex.assert_trees_all_close(updates["head"]["w"], expected["head"]["w"], rtol=1e-6)
    some = {**grads, "body": [None, *grads["body"][1:]]}
    with pytest.raises(ValueError, match="leaves that are joined must all have a gradient"):
        tx.update(some, state, params)


def test_what_is_not_elementwise() -> None:
    with pytest.raises(ValueError, match="join_small_leaves: inner must be an ElementwiseTransformation, got"):
        funcopt.join_small_leaves(funcopt.muon(1e-3))
    with pytest.raises(ValueError, match="join_small_leaves: max_size must be >= 0, got -1"):
        funcopt.join_small_leaves(funcopt.adam(1e-3), -1)
