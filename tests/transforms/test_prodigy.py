"""Prodigy's and D-Adapt's estimate is one for all parameters, whatever becomes of some of them."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

import funcopt
from funcopt import TorchBridge

FACTORIES = [funcopt.prodigy, funcopt.dadapt_adam]
EACH = pytest.mark.parametrize("factory", FACTORIES, ids=lambda factory: factory.__name__)


def draw(seed: int, *shapes: tuple[int, ...]) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    return [rng.normal(size=shape) for shape in shapes]


@EACH
def test_the_estimate_is_of_all_arrays_and_not_of_each(factory: Any) -> None:
    """One vector, and the same in two arrays, in JAX and in two groups of the bridge."""
    (start,) = draw(0, (6,))
    grads = [draw(step + 1, (6,))[0] + start for step in range(8)]
    with jax.enable_x64(True):
        tx = factory(d0=1e-2)
        whole: Any = jnp.asarray(start)
        parts: Any = {"a": whole[:2], "b": whole[2:]}
        states = tx.init(whole), tx.init(parts)
        for g in grads:
            whole, first = funcopt.step(tx, jnp.asarray(g), states[0], whole)
            parts, second = funcopt.step(tx, {"a": g[:2], "b": g[2:]}, states[1], parts)
            states = first, second
        np.testing.assert_allclose(jnp.concatenate([parts["a"], parts["b"]]), whole, rtol=1e-13)
        np.testing.assert_allclose(states[1].d, states[0].d, rtol=1e-13)
        assert jnp.shape(states[1].d) == ()
    tensors = [torch.nn.Parameter(torch.tensor(x)) for x in (start[:2], start[2:])]
    optimizer = TorchBridge([{"params": [p]} for p in tensors], factory, d0=1e-2)
    for g in grads:
        for p, own in zip(tensors, (g[:2], g[2:]), strict=True):
            p.grad = torch.tensor(own)
        optimizer.step()
    np.testing.assert_allclose(np.concatenate([p.detach().numpy() for p in tensors]), whole, rtol=1e-13)


@EACH
def test_a_late_parameter_has_the_estimate_of_the_others(factory: Any) -> None:
    early, late = draw(0, (4,), (3,))
    grads = [draw(step + 1, (4,), (3,)) for step in range(8)]
    with jax.enable_x64(True):
        tx = factory(d0=1e-2)
        params: Any = {"early": jnp.asarray(early), "late": jnp.asarray(late)}
        state = tx.init(params)
        for step, (a, b) in enumerate(grads):
            before = float(state.d)
            params, state = funcopt.step(tx, {"early": a + early, "late": b if step > 4 else None}, state, params)
            assert float(state.d) >= before
        assert state.step == {"early": 8, "late": 3}
    tensors = {"early": torch.nn.Parameter(torch.tensor(early)), "late": torch.nn.Parameter(torch.tensor(late))}
    optimizer = TorchBridge(tensors.values(), factory, d0=1e-2)
    for step, (a, b) in enumerate(grads):
        tensors["early"].grad = torch.tensor(a + early)
        tensors["late"].grad = torch.tensor(b) if step > 4 else None
        optimizer.step()
        if step == 4:
            assert tensors["late"] not in optimizer.state
    for name, p in tensors.items():
        np.testing.assert_allclose(p.detach().numpy(), params[name], rtol=1e-13)
        assert float(optimizer.state[p]["d"]) == pytest.approx(float(state.d), rel=1e-13)


@EACH
def test_gradients_that_are_zero_move_nothing(factory: Any) -> None:
    tx, params = factory(weight_decay=0.1, decouple=True), {"w": jnp.ones(3)}
    updates, state = tx.update({"w": jnp.zeros(3)}, tx.init(params), params)
    np.testing.assert_array_equal(updates["w"], 0)
    assert float(state.d) == pytest.approx(1e-6)


@EACH
def test_the_estimate_is_kept_in_float32_beside_half_precision(factory: Any) -> None:
    params = {"w": jnp.ones(3, jnp.bfloat16)}
    state = factory().init(params)
    assert state.d.dtype == jnp.float32
    assert state.exp_avg["w"].dtype == jnp.bfloat16
