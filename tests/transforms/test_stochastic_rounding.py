"""Stochastic rounding: only to neighbours, right in expectation, and the same bits everywhere."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import funcopt

DTYPES = ("bfloat16", "float16")


def steps(dtype: str, start: np.ndarray, update: np.ndarray, count: int, seed: int = 0) -> np.ndarray:
    """What one parameter becomes by `count` single updates from the same place, each with another count."""
    tx = funcopt.stochastic_rounding(seed=seed)
    p = jnp.asarray(start, dtype)

    def one(state: Any, _: None) -> Any:
        moved, state = funcopt.step(tx, jnp.asarray(update, jnp.float32), state, p)
        return state, moved

    return np.asarray(jax.lax.scan(one, tx.init(p), length=count)[1].astype(jnp.float32))


@pytest.mark.parametrize("dtype", DTYPES)
def test_rounded_to_a_neighbour_and_right_on_average(dtype: str) -> None:
    rng = np.random.default_rng(0)
    start = np.asarray(jnp.asarray(rng.normal(size=400), dtype), np.float32)
    digit = float(jnp.finfo(dtype).eps)
    update = np.float32(rng.uniform(-1, 1, size=400) * digit * np.abs(start))
    found = steps(dtype, start, update, 4000)
    exact = start + update
    assert (np.abs(found - exact) <= digit * np.abs(exact) * 1.01).all()
    assert all(len(np.unique(found[:, i])) <= 2 for i in range(400))
    # The mean of 4000 draws of variance at most (digit / 2)**2: within 5 standard deviations for all of 400.
    assert (np.abs(found.mean(0) - exact) <= 5 * digit * np.abs(exact) / 2 / 4000**0.5).all()


def test_updates_that_the_nearest_loses_arrive() -> None:
    """A thousand updates of a hundredth of the last digit: of 0.04 in all."""
    params = jnp.ones(2000, jnp.bfloat16)
    lost, kept = params, params
    tx, update = funcopt.stochastic_rounding(), jnp.full(2000, 4e-5) * jnp.linspace(0.9, 1.1, 2000)
    state = tx.init(params)
    step = jax.jit(lambda state, p: funcopt.step(tx, update, state, p))
    for _ in range(1000):
        lost = funcopt.apply_updates(lost, update)
        kept, state = step(state, kept)
    assert (lost == 1).all()
    assert float(kept.astype(jnp.float32).mean()) == pytest.approx(1.04, abs=2e-3)


def test_other_seeds_draw_others() -> None:
    start, update = np.ones(300, np.float32), np.linspace(1e-4, 7e-3, 300).astype(np.float32)
    draws = [steps("bfloat16", start, update, 50, seed) for seed in (0, 1)]
    assert 0.2 < (draws[0] != draws[1]).mean() < 0.6
    np.testing.assert_array_equal(draws[0], steps("bfloat16", start, update, 50))
    corr = np.corrcoef((draws[0] > 1).astype(float).T[100:200])
    assert np.abs(corr - np.eye(100)).mean() < 0.25  # 50 draws of independent bits: 0.11 on average


def test_what_is_not_finite_stays() -> None:
    p = jnp.array([jnp.inf, -jnp.inf, jnp.nan, 1.0], jnp.bfloat16)
    moved, _ = funcopt.step(funcopt.stochastic_rounding(), jnp.zeros(4), funcopt.stochastic_rounding().init(p), p)
    np.testing.assert_array_equal(np.isnan(moved.astype(jnp.float32)), [True, True, True, False])


def test_float32_is_left_alone() -> None:
    tx, p = funcopt.chain(funcopt.sgd(0.3), funcopt.stochastic_rounding()), jnp.arange(5.0)
    moved, _ = funcopt.step(tx, p / 7, tx.init(p), p)
    np.testing.assert_array_equal(moved, funcopt.step(funcopt.sgd(0.3), p / 7, funcopt.sgd(0.3).init(p), p)[0])


@pytest.mark.parametrize("engine", ["xla", "torch"])
def test_the_bridge_draws_the_same_bits(engine: Any) -> None:
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(1)
    starts = [rng.normal(size=shape).astype(np.float32) for shape in ((30, 7), (5,), (300, 300))]

    def recipe(lr: float) -> Any:
        return funcopt.chain(funcopt.sgd(lr), funcopt.stochastic_rounding(seed=3))

    own = [torch.nn.Parameter(torch.tensor(x).bfloat16()) for x in starts]
    optimizer = funcopt.TorchBridge(own, recipe, lr=2.0**-9, engine=engine)
    tx, params = recipe(2.0**-9), [jnp.asarray(x, jnp.bfloat16) for x in starts]
    state = tx.init(params)
    step = jax.jit(lambda g, s, p: funcopt.step(tx, g, s, p))
    for seed in range(5):
        grads = [np.random.default_rng(seed).normal(size=x.shape).astype(np.float32) for x in starts]
        for p, g in zip(own, grads, strict=True):
            p.grad = torch.tensor(g).bfloat16()
        optimizer.step()
        params, state = step([jnp.asarray(g, jnp.bfloat16) for g in grads], state, params)
        for p, x in zip(own, params, strict=True):
            np.testing.assert_array_equal(p.detach().float().numpy(), x.astype(jnp.float32))
