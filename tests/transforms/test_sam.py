"""SAM in JAX against its specification, in the forms that JAX's gradient functions have."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from oracles import specs

import funcopt

SHAPES = {"a": (4, 3), "b": {"c": (5,), "d": ()}}


def tree_of(seed: int, dtype: Any = jnp.float64) -> Any:
    generator = np.random.default_rng(seed)
    return jax.tree.map(
        lambda shape: jnp.asarray(generator.normal(size=shape), dtype), SHAPES, is_leaf=lambda x: isinstance(x, tuple)
    )


def loss(params: Any, shift: float = 0.5) -> jax.Array:
    """A sum over all elements, so that its gradient has a closed form."""
    return sum((jnp.sum(jnp.sin(x + shift) * x) for x in jax.tree.leaves(params)), jnp.zeros(()))


def gradient(x: np.ndarray, shift: float = 0.5) -> np.ndarray:
    return np.cos(x + shift) * x + np.sin(x + shift)


def arrays(tree: Any) -> list[np.ndarray]:
    return [np.asarray(x) for x in jax.tree.leaves(tree)]


@pytest.mark.parametrize(("rho", "adaptive"), [(0.05, False), (0.7, False), (2.0, True), (0.0, False)])
def test_against_the_specification(rho: float, adaptive: bool) -> None:
    """With momentum SGD as the base: the second gradient, from the old point."""
    with jax.enable_x64(True):
        tx = funcopt.sgd(0.1, momentum=0.9)
        params = tree_of(0)
        state = tx.init(params)
        theirs = arrays(params)
        momentum = [np.zeros_like(p) for p in theirs]
        step = jax.jit(funcopt.sam(jax.grad(loss), rho, adaptive))
        for i in range(10):
            shift = 0.5 + 0.1 * i
            params, state = funcopt.step(tx, step(params, shift), state, params)
            point = specs.sam_point(theirs, [gradient(p, shift) for p in theirs], rho, adaptive)
            momentum = [0.9 * m + gradient(q, shift) for m, q in zip(momentum, point, strict=True)]
            theirs = [p - 0.1 * m for p, m in zip(theirs, momentum, strict=True)]
            for p, q in zip(arrays(params), theirs, strict=True):
                np.testing.assert_allclose(p, q, rtol=1e-12, atol=1e-13)


def test_one_radius_for_each_part_and_one_norm() -> None:
    with jax.enable_x64(True):
        params = tree_of(0)
        found = funcopt.sam(jax.grad(loss), {"a": 0.3, "b": 0.0})(params)
        a, c, d = arrays(params)
        (point, *_) = specs.sam_point([a, c, d], [gradient(x) for x in (a, c, d)], 0.3)
        expected = [gradient(x) for x in (point, c, d)]
        for x, y in zip(arrays(found), expected, strict=True):
            np.testing.assert_allclose(x, y, rtol=1e-12, atol=1e-13)


def test_the_forms_of_gradient_functions() -> None:
    params = tree_of(0, jnp.float32)

    def with_aux(params: Any, scale: float, *, shift: float) -> Any:
        return scale * loss(params, shift), {"largest": jnp.max(params["a"])}

    plain = funcopt.sam(jax.grad(lambda p: 2 * loss(p, 0.1)), 0.5)(params)
    results = {
        "value": funcopt.sam(jax.value_and_grad(lambda p: 2 * loss(p, 0.1)), 0.5, has_value=True)(params),
        "aux": funcopt.sam(jax.grad(with_aux, has_aux=True), 0.5, has_aux=True)(params, 2.0, shift=0.1),
        "both": funcopt.sam(jax.value_and_grad(with_aux, has_aux=True), 0.5, has_value=True, has_aux=True)(
            params, 2.0, shift=0.1
        ),
    }
    value, grads = results["value"]
    np.testing.assert_allclose(value, 2 * loss(params, 0.1), rtol=1e-6)
    jax.tree.map(np.testing.assert_array_equal, grads, plain)
    grads, aux = results["aux"]
    assert aux["largest"] == jnp.max(params["a"])
    jax.tree.map(np.testing.assert_array_equal, grads, plain)
    (value, aux), grads = results["both"]
    np.testing.assert_allclose(value, 2 * loss(params, 0.1), rtol=1e-6)
    assert aux["largest"] == jnp.max(params["a"])
    jax.tree.map(np.testing.assert_array_equal, grads, plain)


@pytest.mark.parametrize("adaptive", [False, True])
def test_what_has_no_gradient_stays(adaptive: bool) -> None:
    params = {"w": jnp.array([3.0, 4.0]), "frozen": jnp.array([1.0]), "count": jnp.array(3), "call": jnp.tanh}
    points = []

    def grad_fn(params: Any) -> Any:
        points.append(params)
        count = np.zeros((), jax.dtypes.float0)
        return {"w": params["w"], "frozen": None, "count": count, "call": None}

    grads = funcopt.sam(grad_fn, 0.5, adaptive)(params)
    assert grads["frozen"] is None
    assert points[1]["frozen"] is params["frozen"]
    assert points[1]["call"] is jnp.tanh
    assert points[1]["count"] is params["count"]
    w = specs.sam_point([np.array([3.0, 4.0])], [np.array([3.0, 4.0])], 0.5, adaptive)[0]
    np.testing.assert_allclose(points[1]["w"], w, rtol=1e-6)


def test_no_gradient_at_all() -> None:
    params = {"w": jnp.ones(3)}
    np.testing.assert_array_equal(funcopt.sam(jax.grad(lambda p: 0.0 * p["w"].sum()))(params)["w"], 0.0)
    assert funcopt.sam(lambda p: {"w": None})(params) == {"w": None}


def test_half_precision_is_rounded_once() -> None:
    params = {"w": jnp.array([1.0, 3.0], jnp.bfloat16)}
    points = []

    def grad_fn(params: Any) -> Any:
        points.append(params)
        return jax.tree.map(lambda x: jnp.full_like(x, 1e-3), params)

    funcopt.sam(grad_fn, 0.1)(params)
    assert points[1]["w"].dtype == jnp.bfloat16
    expected = np.array([1.0, 3.0], np.float32) + np.float32(0.1 / np.sqrt(2))
    np.testing.assert_array_equal(points[1]["w"], jnp.asarray(expected).astype(jnp.bfloat16))


def test_a_radius_that_is_traced() -> None:
    params = tree_of(0, jnp.float32)
    run = jax.jit(lambda rho: funcopt.sam(jax.grad(loss), rho)(params))
    for a, b in zip(arrays(run(0.3)), arrays(funcopt.sam(jax.grad(loss), 0.3)(params)), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


def test_errors() -> None:
    with pytest.raises(ValueError, match="sam: rho must be >= 0, got -1"):
        funcopt.sam(jax.grad(loss), -1.0)
    with pytest.raises(ValueError, match="sam: rho must be one value or have the parameters' structure"):
        funcopt.sam(jax.grad(loss), {"z": 1.0})(tree_of(0, jnp.float32))


def test_it_is_compiled_once() -> None:
    count = 0

    def counted(params: Any) -> jax.Array:
        nonlocal count
        count += 1
        return loss(params)

    step = jax.jit(functools.partial(funcopt.sam(jax.grad(counted)), tree_of(0, jnp.float32)))
    step()
    step()
    assert count == 2  # traces: at the parameters, and at the point
