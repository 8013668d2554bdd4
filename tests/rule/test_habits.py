"""What JAX users write: holes, loops, wrappers of optax, abstract and traced values, strict promotion, small floats."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from cases import ALGORITHMS, EACH, EACH_ALGORITHM, EACH_KIND, EACH_KIND_AND_PART, Case, structures, with_holes
from jax import lax

import funcopt


def trained(tx: Any, params: Any, steps: int = 2, **extra: Any) -> tuple[Any, Any]:
    state = tx.init(params)
    for i in range(steps):
        grads = jax.tree.map(lambda p, i=i: jnp.cos(p + i), params)
        updates, state = tx.update(grads, state, params, **extra)
        params = funcopt.apply_updates(params, updates)
    return params, state


@EACH_KIND_AND_PART
def test_holes_change_no_structure_and_nothing_else(case: Case) -> None:
    """In scan, cond and while_loop, with one trace; the numbers are those without holes."""
    for tx in (case.make(), case.make(**{name: constant(case, name) for name in case.scheduled[:1]})):
        params = with_holes(case.params())
        state = tx.init(params)
        traces = 0

        def step(carry: Any, tx: Any = tx) -> Any:
            nonlocal traces
            traces += 1
            params, state = carry
            updates, state = tx.update(jax.tree.map(jnp.cos, params), state, params)
            return funcopt.apply_updates(params, updates), state

        jitted = jax.jit(step)
        carry = jitted(jitted((params, state)))
        assert traces == 1
        assert structures(carry[1]) == structures(state)

        @jax.jit
        def loops(carry: Any, step: Any = step) -> Any:
            scanned, _ = lax.scan(lambda carry, _: (step(carry), None), carry, None, length=2)
            chosen = lax.cond(True, step, lambda carry: carry, carry)
            return scanned, lax.while_loop(lambda _: False, step, chosen)

        scanned, _ = loops((params, state))
        plain, _ = trained_jitted(tx, case.params())
        for name, value in plain.items():
            np.testing.assert_allclose(scanned[0][name], value, rtol=1e-6, atol=1e-7)


def constant(case: Case, name: str) -> Any:
    value = funcopt.algorithms()[case.name].defaults[name] if case in ALGORITHMS else 0.9
    return lambda step: value


def trained_jitted(tx: Any, params: Any) -> Any:
    def step(carry: Any, _: Any) -> Any:
        params, state = carry
        updates, state = tx.update(jax.tree.map(jnp.cos, params), state, params)
        return (funcopt.apply_updates(params, updates), state), None

    return jax.jit(lambda carry: lax.scan(step, carry, None, length=2)[0])((params, tx.init(params)))


@EACH
def test_holes_without_parameters(case: Case) -> None:
    if case.reads_params:
        return
    params = with_holes(case.params())
    tx = case.make()
    state = tx.init(params)
    updates, new = tx.update(params, state)
    assert structures(new) == structures(state)
    assert updates["activation"] is None


WRAPPERS = {
    "MultiSteps": lambda tx: optax.MultiSteps(tx, 2).gradient_transformation(),
    "apply_if_finite": lambda tx: optax.apply_if_finite(tx, 2),
    "conditionally_transform": lambda tx: optax.conditionally_transform(tx, lambda step: step < 3),
}


@pytest.mark.parametrize("wrap", WRAPPERS.values(), ids=WRAPPERS)
@EACH_KIND
def test_wrappers_of_optax_take_holes(case: Case, wrap: Any) -> None:
    params = with_holes(case.params())
    tx = wrap(case.make())
    state = tx.init(params)
    step = lambda state, _: (tx.update(params, state, params)[1], None)  # noqa: E731
    scanned, _ = jax.jit(lambda state: lax.scan(step, state, None, length=2))(state)
    assert structures(scanned) == structures(state)


@EACH_KIND
def test_a_count_per_leaf_from_the_start_is_carried_by_scan(case: Case) -> None:
    """A parameter without gradient stays as it is, and so does what is kept of it."""
    tx, params = case.make(), with_holes(case.params())
    state = funcopt.with_step_per_leaf(tx.init(params))
    grads = {**params, "v": None}

    def step(carry: Any, _: Any) -> Any:
        updates, state = tx.update(grads, carry[1], carry[0])
        return (funcopt.apply_updates(carry[0], updates), state), None

    (moved, after), _ = jax.jit(lambda carry: lax.scan(step, carry, None, length=3))((params, state))
    assert structures(after) == structures(state)
    np.testing.assert_array_equal(moved["v"], params["v"])
    for name in after._fields:
        before, now = getattr(state, name), getattr(after, name)
        if isinstance(now, dict) and now["v"] is not None:
            np.testing.assert_array_equal(now["v"], before["v"])
    assert "step" not in after._fields or int(after.step["w"]) == 3


@EACH
def test_update_without_parameters(case: Case) -> None:
    params = case.params()
    tx = case.make()
    state = tx.init(params)
    if case.reads_params:
        with pytest.raises(ValueError, match=r"update needs the parameters; call update\(updates, state, params\)"):
            tx.update(params, state)
        return
    with_params, _ = tx.update(params, state, params)
    without, _ = tx.update(params, state)
    jax.tree.map(np.testing.assert_array_equal, without, with_params)


@EACH
def test_abstract_parameters_give_abstract_states(case: Case) -> None:
    params = with_holes(case.params())
    abstract = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), params)
    for tx in (case.make(), funcopt.chain(optax.scale_by_adam(), case.make())):
        assert structures(tx.init(abstract)) == structures(tx.init(params))
        assert structures(jax.eval_shape(tx.init, abstract)) == structures(tx.init(params))


@pytest.mark.parametrize("case", [case for case in ALGORITHMS if case.smooth], ids=lambda case: case.name)
def test_derivatives_are_finite_where_a_gradient_is_zero(case: Case) -> None:
    tx, params = case.make(), case.params()

    def loss(params: Any) -> Any:
        for _ in range(2):
            state = tx.init(params)
            for _ in range(2):
                grads = jax.tree.map(lambda p: p * jnp.zeros_like(p).at[0].set(1.0), params)
                updates, state = tx.update(grads, state, params)
                params = funcopt.apply_updates(params, updates)
        return sum(jnp.sum(p**2) for p in jax.tree.leaves(params))

    reverse = jax.jit(jax.grad(loss))(params)
    forward = jax.jit(lambda p: jax.jvp(loss, (p,), (p,))[1])(params)
    assert all(bool(jnp.isfinite(x).all()) for x in (*jax.tree.leaves(reverse), forward))


@EACH_ALGORITHM
def test_small_floats(case: Case) -> None:
    """Computed in float32 and rounded, like every half precision."""
    for dtype in ("float8_e4m3fn", "float8_e5m2", "float8_e4m3b11fnuz"):
        params = case.params(dtype=dtype)
        tx = case.make()
        state = tx.init(params)
        updates, new = tx.update(params, state, params)
        assert structures(new) == structures(state)
        assert updates["w"].dtype == dtype
        wide = {name: p.astype(jnp.float32) for name, p in params.items()}
        widened = jax.tree.map(lambda x, dtype=dtype: x.astype(jnp.float32) if x.dtype == dtype else x, state)
        exact, _ = tx.update(wide, widened, wide)
        stepped, _ = funcopt.step(tx, params, state, params)
        expected = funcopt.apply_updates(wide, exact)
        for name in params:
            np.testing.assert_array_equal(stepped[name], expected[name].astype(dtype))
        assert funcopt.apply_updates(params, updates)["w"].dtype == dtype


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@EACH
def test_strict_promotion(case: Case, dtype: str) -> None:
    params, tx = case.params(dtype=dtype), case.make()
    with jax.numpy_dtype_promotion("strict"):
        for given in ({}, {name: constant(case, name) for name in case.scheduled}):
            jax.eval_shape(functools.partial(trained, case.make(**given)), params)
        jax.eval_shape(lambda: funcopt.step(tx, params, tx.init(params), params))


@EACH_KIND
def test_inject_hyperparams_needs_no_static_args(case: Case) -> None:
    params = case.params()
    tx = optax.inject_hyperparams(case.make, static_args=case.static)(lr=0.1)
    injected, _ = trained(tx, params)
    plain, _ = trained(case.make(lr=0.1), params)
    for name in params:
        # Its numbers are float32 scalars where Python's are doubles until they meet an array.
        np.testing.assert_allclose(injected[name], plain[name], rtol=2e-5, atol=2e-6)


@EACH_KIND
def test_tree_map_params_knows_states_of_trees_of_hyperparameters(case: Case) -> None:
    params = with_holes(case.params())
    value = {"w": 0.1, "v": lambda step: 0.2, "activation": None, "more": None}
    for tx in (case.make(), case.make(lr=value), funcopt.chain(funcopt.clip_by_value(1.0), case.make(lr=value))):
        state = tx.init(params)
        marked = optax.tree_utils.tree_map_params(tx, lambda x: x + 1, state, transform_non_params=lambda x: x)
        assert jax.tree.structure(marked) == jax.tree.structure(state)


@EACH_KIND
def test_learning_rates_may_be_traced(case: Case) -> None:
    """Vmap over a sweep, and a derivative by it."""
    params = case.params()

    def end(lr: Any) -> Any:
        return sum(jnp.sum(x) for x in jax.tree.leaves(trained(case.make(lr=lr), params)[0]))

    rates = jnp.array([0.1, 0.2])
    swept = jax.jit(jax.vmap(end))(rates)
    np.testing.assert_allclose(swept, [end(float(r)) for r in rates], rtol=1e-4, atol=1e-4)
    assert bool(jnp.isfinite(jax.jit(jax.grad(end))(0.1)))


@EACH_KIND
def test_schedules_may_be_partial_functions(case: Case) -> None:
    params = case.params()
    rate = jax.tree_util.Partial(lambda factor, step: factor / (step + 1.0), 0.1)
    plain = functools.partial(lambda factor, step: factor / (step + 1.0), 0.1)
    for name, value in trained(case.make(lr=rate), params)[0].items():
        np.testing.assert_array_equal(value, trained(case.make(lr=plain), params)[0][name])


def test_integers_have_no_gradient() -> None:
    """`jax.grad(..., allow_int=True)` gives them float0, which counts as none."""
    params = {"w": jnp.ones(3), "n": jnp.int32(1)}
    grads = jax.grad(lambda t: jnp.sum(t["w"] ** 2) * t["n"], allow_int=True)(params)
    parts = {"train": funcopt.adam(0.1), "fixed": optax.set_to_zero()}
    partition = funcopt.partition(parts, {"w": "train", "n": "fixed"})
    state = partition.init(params)
    clipped, _ = funcopt.clip_by_global_norm(1.0).update(grads, optax.EmptyState(), params)
    assert clipped["n"] is None
    for given in (grads, clipped):
        moved = funcopt.apply_updates(params, partition.update(given, state, params)[0])
        assert moved["n"] == 1
        assert float(moved["w"][0]) < 1.0
    assert funcopt.apply_updates(params, grads)["n"] == 1
