"""Metrics of updates in JAX: their values, and that they change nothing else."""

import functools
import inspect
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import funcopt

SHAPES = {"encoder": {"w": (7, 5), "b": (5,), "none": None}, "head": (5, 3), "scale": ()}
STEPS = 5


def tree_of(seed: int, dtype: Any = jnp.float64) -> Any:
    generator = np.random.default_rng(seed)

    def make(shape: Any) -> Any:
        return None if shape is None else jnp.asarray(generator.normal(size=shape), dtype)

    return jax.tree.map(make, SHAPES, is_leaf=lambda x: x is None or isinstance(x, tuple))


def clipped(lr: Any = 0.1) -> Any:
    return funcopt.chain(funcopt.clip_by_global_norm(2.0), funcopt.adamw(lr, weight_decay=0.1))


def bounded(lr: Any = 0.1) -> Any:
    return funcopt.chain(funcopt.clip_by_value(0.5), funcopt.sgd(lr, momentum=0.9))


def norm(*arrays: Any) -> float:
    return float(np.sqrt(sum((np.abs(np.asarray(x, np.complex128)) ** 2).sum() for x in arrays if x is not None)))


def leaves(tree: Any) -> list[Any]:
    return jax.tree.leaves(tree, is_leaf=lambda x: x is None)


@pytest.mark.parametrize("make", [clipped, bounded, funcopt.prodigy, funcopt.lamb])
def test_values(make: Callable[..., Any]) -> None:
    with jax.enable_x64(True):
        tx, plain = funcopt.with_metrics(make)(), make()
        params = tree_of(0)
        state, plain_state = tx.init(params), plain.init(params)
        update = jax.jit(tx.update)
        for step in range(STEPS):
            grads = tree_of(1 + step)
            if step % 2:
                grads["encoder"]["b"] = grads["scale"] = None
            updates, state = update(grads, state, params)
            expected, plain_state = plain.update(grads, plain_state, params)
            reached = jax.tree.map(lambda g, p: None if g is None else p, grads, params, is_leaf=lambda x: x is None)
            found = funcopt.metrics(state)
            pairs = {
                "grad_norm": norm(*leaves(grads)),
                "update_norm": norm(*leaves(expected)),
                "param_norm": norm(*leaves(reached)),
            }
            for name, value in pairs.items():
                np.testing.assert_allclose(found[name], value, rtol=1e-12)
            assert [*found["update_ratio"]] == ["encoder", "head", "scale"]
            for part in ("encoder", "head", "scale"):
                ratio = norm(*leaves(expected[part])) / (norm(*leaves(reached[part])) or np.nan)
                np.testing.assert_allclose(found["update_ratio"][part], ratio, rtol=1e-12)
            params = funcopt.apply_updates(params, updates)


def test_what_clipping_took_away() -> None:
    with jax.enable_x64(True):
        for make, kept in ((clipped, lambda g: g * (2 / (norm(g) + 1e-6))), (bounded, lambda g: np.clip(g, -0.5, 0.5))):
            tx = funcopt.with_metrics(make())
            params = {"w": jnp.zeros(6)}
            g = np.array([3.0, -2.0, 0.1, 0.0, 0.4, -0.6])
            state = tx.update({"w": jnp.asarray(g)}, tx.init(params), params)[1]
            expected = 1 - norm(kept(g)) / norm(g)
            np.testing.assert_allclose(funcopt.metrics(state)["clipped_fraction"], expected, rtol=1e-12)
            state = tx.update({"w": jnp.asarray(g / 10)}, state, params)[1]
            assert funcopt.metrics(state)["clipped_fraction"] == 0.0


def test_what_two_clips_took_away() -> None:
    tx = funcopt.with_metrics(funcopt.chain(funcopt.clip_by_value(3.0), funcopt.clip_by_global_norm(1.0)))
    params = {"w": jnp.zeros(2), "b": jnp.zeros(1)}
    state = tx.update({"w": jnp.array([3.0, 0.0]), "b": jnp.array([8.0])}, tx.init(params), params)[1]
    np.testing.assert_allclose(funcopt.metrics(state)["clipped_fraction"], 1 - 1 / np.sqrt(73), rtol=1e-6)


@pytest.mark.parametrize(
    "lr", [0.1, lambda step: 0.1 / (step + 1), {"encoder": 0.1, "head": lambda step: 0.2 + step, "scale": 0.3}]
)
def test_the_learning_rate_in_use(lr: Any) -> None:
    tx = funcopt.with_metrics(funcopt.adamw)(lr)
    params = tree_of(0, jnp.float32)
    state = tx.init(params)
    assert jax.tree.all(jax.tree.map(jnp.isnan, funcopt.metrics(state)["lr"]))
    for step in range(3):
        grads = tree_of(1, jnp.float32) | ({"scale": None} if step == 2 else {})
        state = tx.update(grads, state, params)[1]
        by_part = lr if isinstance(lr, dict) else dict.fromkeys(params, lr)
        expected = {n: x(step) if callable(x) else x for n, x in by_part.items()}
        if step == 2:
            expected["scale"] = np.nan
        for part, value in funcopt.metrics(state)["lr"].items():
            np.testing.assert_allclose(value, expected[part], rtol=1e-6)


def test_a_learning_rate_that_is_not_known() -> None:
    """One that optax applies."""
    params = tree_of(0, jnp.float32)
    tx = funcopt.with_metrics(optax.adamw(0.1))
    state = tx.update(tree_of(1, jnp.float32), tx.init(params), params)[1]
    found = funcopt.metrics(state)
    assert np.isnan(found["lr"]["head"])
    assert found["update_norm"] > 0
    tx = funcopt.with_metrics(funcopt.chain(optax.scale_by_adam(), funcopt.scale_by_learning_rate(0.25)))
    state = tx.update(tree_of(1, jnp.float32), tx.init(params), params)[1]
    assert funcopt.metrics(state)["lr"]["head"] == 0.25


@pytest.mark.parametrize("make", [funcopt.prodigy, funcopt.dadapt_adam, funcopt.lookahead(funcopt.prodigy)])
def test_the_estimate(make: Any) -> None:
    tx = funcopt.with_metrics(make)(d0=1e-3)
    params = tree_of(0, jnp.float32)
    state = tx.init(params)
    assert funcopt.metrics(state)["d"] == np.float32(1e-3)
    for step in range(4):
        params, state = funcopt.step(tx, tree_of(1 + step % 2, jnp.float32), state, params)
    assert funcopt.metrics(state)["d"] == state.inner_state.d > 1e-3
    assert "d" not in funcopt.metrics(funcopt.with_metrics(funcopt.sgd)().init(params))


BITS: dict[str, Callable[..., Any]] = {
    "clipped": clipped,
    "bounded": bounded,
    "ema": lambda: funcopt.chain(funcopt.adamw(lambda step: 0.1 / (step + 1)), funcopt.params_ema(0.9)),
    "lookahead": funcopt.lookahead(funcopt.radam),
    "joined": lambda: funcopt.join_small_leaves(clipped()),
    "optax": lambda: optax.chain(optax.clip(0.5), optax.adamw(0.1)),
    **{name: getattr(funcopt, name) for name in ("sgd", "rmsprop", "lion", "lamb", "adafactor", "soap", "prodigy")},
}


@pytest.mark.thorough
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("name", BITS)
def test_not_a_bit_of_the_trajectory_changes(name: str, dtype: Any) -> None:
    def train(tx: Any) -> tuple[Any, Any]:
        params = tree_of(0, dtype)
        state = tx.init(params)
        step = jax.jit(functools.partial(funcopt.step, tx))
        for i in range(STEPS):
            params, state = step(tree_of(1 + i, dtype), state, params)
        return params, state

    plain, (params, state) = train(BITS[name]()), train(funcopt.with_metrics(BITS[name]()))
    same = jax.tree.map(lambda a, b: bool((a == b).all()), plain, (params, state.inner_state))
    assert jax.tree.all(same)


def test_one_structure_from_the_start() -> None:
    """In a scan, and with donated state: no two metrics share an array."""
    tx = funcopt.with_metrics(clipped(lambda step: 0.1 / (step + 1)))
    params = tree_of(0, jnp.bfloat16)
    grads = jax.tree.map(lambda *x: jnp.stack(x), *(tree_of(i, jnp.bfloat16) for i in range(3)))

    def body(carry: Any, g: Any) -> Any:
        params, state = funcopt.step(tx, g, carry[1], carry[0])
        return (params, state), funcopt.metrics(state)

    run = jax.jit(lambda params, state: jax.lax.scan(body, (params, state), grads), donate_argnums=(0, 1))
    state = funcopt.with_step_per_leaf(tx.init(params))
    (_, state), history = run(params, state)
    assert history["grad_norm"].shape == (3,)
    assert history["grad_norm"].dtype == jnp.float32
    assert float(history["grad_norm"][-1]) == float(funcopt.metrics(state)["grad_norm"])


def test_complex_parameters_and_rows() -> None:
    tx = funcopt.with_metrics(funcopt.sgd(0.5))
    params = {"z": jnp.array([3 + 4j, 0]), "table": jnp.full((4, 2), 2.0)}
    rows = funcopt.RowSparse(jnp.array([1, 3, 1]), jnp.array([[1.0, 0], [0, 2], [2, 0]]))
    state = tx.update({"z": jnp.array([0, 6j]), "table": rows}, tx.init(params), params)[1]
    found = funcopt.metrics(state)
    np.testing.assert_allclose(found["grad_norm"], 7.0, rtol=1e-6)  # 6, and of rows that add up 3 and 2
    np.testing.assert_allclose(found["update_ratio"]["z"], 3 / 5, rtol=1e-6)
    np.testing.assert_allclose(found["update_ratio"]["table"], np.sqrt(1.5**2 + 1) / 4, rtol=1e-6)  # of two rows


def test_a_single_array_is_a_group() -> None:
    tx = funcopt.with_metrics(funcopt.sgd(0.5))
    state = tx.update(jnp.array([2.0]), tx.init(jnp.array([4.0])), jnp.array([4.0]))[1]
    assert funcopt.metrics(state)["update_ratio"] == 0.25


def test_a_checkpoint_goes_on_with_and_without() -> None:
    params, plain, tx = tree_of(0, jnp.float32), clipped(), funcopt.with_metrics(clipped())
    saved = plain.init(params)
    for step in range(2):
        params, saved = funcopt.step(plain, tree_of(1 + step, jnp.float32), saved, params)
    resumed = tx.init(params)._replace(inner_state=saved)
    a, resumed = funcopt.step(tx, tree_of(7, jnp.float32), resumed, params)
    b, saved = funcopt.step(plain, tree_of(7, jnp.float32), saved, params)
    assert jax.tree.all(jax.tree.map(lambda x, y: bool((x == y).all()), (a, resumed.inner_state), (b, saved)))
    assert funcopt.metrics(resumed)["grad_norm"] > 0


def test_other_readers_see_through() -> None:
    tx = funcopt.with_metrics(funcopt.schedule_free_sgd(lambda step: 0.5))
    params = {"w": jnp.ones(2)}
    params, state = funcopt.step(tx, {"w": jnp.ones(2)}, tx.init(params), params)
    assert funcopt.eval_params(state, params)["w"].shape == (2,)
    assert funcopt.current_hyperparams(state)["lr"] == 0.5
    assert funcopt.metrics((state, None))["grad_norm"] == np.float32(np.sqrt(2))


def test_a_factory_keeps_its_arguments() -> None:
    measured = funcopt.with_metrics(funcopt.adamw)
    assert measured is funcopt.with_metrics(funcopt.adamw)
    assert inspect.signature(measured) == inspect.signature(funcopt.adamw)
    assert measured.__name__ == "adamw"
    partial = funcopt.with_metrics(functools.partial(funcopt.adamw, weight_decay=0.5))
    assert partial.func is measured
    assert partial.keywords == {"weight_decay": 0.5}
    with pytest.raises(ValueError, match="adamw: lr must be"):
        measured(-1.0)


def test_elementwise_parts_stay_so() -> None:
    assert isinstance(funcopt.with_metrics(clipped()), funcopt.ElementwiseTransformation)
    assert not isinstance(funcopt.with_metrics(funcopt.lamb()), funcopt.ElementwiseTransformation)


def test_errors() -> None:
    params = {"w": jnp.ones(2)}
    tx = funcopt.with_metrics(funcopt.sgd(0.1))
    with pytest.raises(TypeError, match="with_metrics: inner must be an optimizer or a function that returns one, got"):
        funcopt.with_metrics(0.1)
    with pytest.raises(ValueError, match=r"with_metrics: update needs the parameters; call update\(updates, state"):
        tx.update(params, tx.init(params))
    with pytest.raises(ValueError, match="with_metrics: the state must be a MetricsState"):
        tx.update(params, tx.init(params).inner_state, params)
    for inner, count in ((funcopt.sgd(0.1), 0), (funcopt.with_metrics(tx), 2)):
        state = inner.init(params)
        with pytest.raises(ValueError, match=f"metrics: state must contain .* one funcopt.with_metrics, got {count}"):
            funcopt.metrics(state)
