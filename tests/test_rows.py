"""Gradients of some rows in JAX: the same numbers as torch's sparse gradients, and a cost that is that of the rows."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

import funcopt
from funcopt import RowSparse

ROWS, COLUMNS = 12, 3


def batches(steps: int = 20) -> list[tuple[np.ndarray, np.ndarray]]:
    rng = np.random.default_rng(0)
    sizes = rng.integers(1, 7, steps)
    return [(rng.integers(0, ROWS, size), rng.normal(size=(size, COLUMNS))) for size in sizes]


def padded(indices: np.ndarray, values: np.ndarray, size: int = 8) -> RowSparse:
    missing = size - len(indices)
    return RowSparse(
        jnp.asarray(np.append(indices, np.full(missing, ROWS + 5))),
        jnp.asarray(np.append(values, np.zeros((missing, COLUMNS)), axis=0)),
    )


@pytest.mark.filterwarnings("ignore:Sparse invariant checks")
@pytest.mark.parametrize(
    ("factory", "torch_class", "options"),
    [
        (funcopt.sparse_adam, torch.optim.SparseAdam, {"betas": (0.8, 0.9), "eps": 0.1}),
        (funcopt.sparse_adam, torch.optim.SparseAdam, {"maximize": True}),
        (funcopt.sgd, torch.optim.SGD, {}),
        (funcopt.sgd, torch.optim.SGD, {"momentum": 0.9, "dampening": 0.2}),
        (funcopt.adagrad, torch.optim.Adagrad, {"lr_decay": 0.1, "initial_accumulator_value": 0.1}),
    ],
)
def test_agrees_with_torch(factory: Any, torch_class: Any, options: dict[str, Any]) -> None:
    table = np.random.default_rng(1).normal(size=(ROWS, COLUMNS))
    expected = torch.nn.Parameter(torch.from_numpy(table.copy()))
    reference = torch_class([expected], lr=0.1, **options)
    with jax.enable_x64(True):
        tx = factory(lr=0.1, **options)

        @jax.jit
        def update(params: Any, state: Any, grads: Any) -> Any:
            updates, state = tx.update(grads, state, params)
            return funcopt.apply_updates(params, updates), state

        params = {"table": jnp.asarray(table)}
        state = tx.init(params)
        for indices, values in batches():
            expected.grad = torch.sparse_coo_tensor(
                torch.from_numpy(indices[None]), torch.from_numpy(values), (ROWS, COLUMNS), check_invariants=True
            )
            reference.step()
            params, state = update(params, state, {"table": padded(indices, values)})
        # rounding of 20 steps
        np.testing.assert_allclose(params["table"], expected.detach().numpy(), rtol=1e-12, atol=1e-13)
        assert update._cache_size() == 1


def test_global_norm_adds_up_repeated_rows() -> None:
    grads = {"table": RowSparse(jnp.array([1, 1, 2]), jnp.array([[1.0], [2.0], [4.0]])), "other": None}
    assert funcopt.global_norm(grads) == 5.0
    tx = funcopt.clip_by_global_norm(2.5)
    clipped, _ = tx.update(grads, tx.init({"table": jnp.zeros((4, 1)), "other": jnp.zeros(1)}))
    new = funcopt.apply_updates({"table": jnp.zeros((4, 1)), "other": jnp.zeros(1)}, clipped)
    np.testing.assert_allclose(new["table"][:, 0], [0.0, 1.5, 2.0, 0.0], rtol=1e-6)


def test_whole_rows_of_a_recipe() -> None:
    """A table beside dense parameters, with schedules and groups."""
    params = {"table": jnp.ones((ROWS, COLUMNS)), "head": jnp.ones(3)}
    grads = {"table": RowSparse(jnp.array([4]), jnp.ones((1, COLUMNS))), "head": jnp.ones(3)}
    tx = funcopt.chain(
        funcopt.clip_by_global_norm(10.0),
        funcopt.sgd(lr={"table": 0.5, "head": lambda step: 0.25}, weight_decay={"table": 0.0, "head": 1.0}),
    )
    updates, _ = tx.update(grads, tx.init(params), params)
    new = funcopt.apply_updates(params, updates)
    np.testing.assert_allclose(new["table"][4], 0.5, rtol=1e-6)
    np.testing.assert_array_equal(new["table"][3], 1.0)
    np.testing.assert_allclose(new["head"], 0.5, rtol=1e-6)


@pytest.mark.parametrize(
    "tx", [funcopt.adam(), funcopt.rmsprop(), funcopt.sgd(weight_decay=0.1)], ids=["adam", "rmsprop", "decay"]
)
def test_refused_where_all_rows_would_change(tx: funcopt.GradientTransformation) -> None:
    params = jnp.ones((ROWS, COLUMNS))
    with pytest.raises(RuntimeError, match="does not support sparse gradients; make them dense"):
        tx.update(RowSparse(jnp.array([1]), jnp.ones((1, COLUMNS))), tx.init(params), params)


def test_no_array_of_the_tables_size_is_made() -> None:
    """What the compiled update of a large table needs beside its arguments is of the size of the rows."""
    params = jax.ShapeDtypeStruct((100_000, 64), jnp.float32)
    grads = RowSparse(jax.ShapeDtypeStruct((128,), jnp.int32), jax.ShapeDtypeStruct((128, 64), jnp.float32))
    tx = funcopt.sparse_adam(1e-3)
    state = jax.eval_shape(tx.init, params)

    def update(params: Any, state: Any, grads: Any) -> Any:
        updates, state = tx.update(grads, state, params)
        return funcopt.apply_updates(params, updates), state

    compiled = jax.jit(update, donate_argnums=(0, 1)).lower(params, state, grads).compile()
    memory = compiled.memory_analysis()
    assert memory.alias_size_in_bytes >= 3 * 100_000 * 64 * 4
    assert memory.temp_size_in_bytes < 100_000 * 64 * 4 / 10
