"""Kahan's summation in half precision, bit by bit as torch-optimi's."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import funcopt

STEPS, LR = 40, 2.0**-9
RNG = np.random.default_rng(0)
START = RNG.normal(size=(60, 7)).astype(np.float32)
GRADS = RNG.normal(size=(STEPS, 60, 7)).astype(np.float32)


def with_torch(dtype: Any) -> tuple[Any, Any]:
    """The parameter and what it has lost, with every operation of torch's rounded."""
    torch = pytest.importorskip("torch")
    p = torch.tensor(START).to(dtype)
    lost = torch.zeros_like(p)
    for g in GRADS:
        lost.add_(torch.tensor(g).to(dtype), alpha=-LR)
        before = p.clone()
        p.add_(lost)
        lost.add_(before.sub_(p))
    return p.float().numpy(), lost.float().numpy()


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("whole_step", [False, True], ids=["update", "step"])
def test_jax_agrees_with_torch_bit_by_bit(dtype: str, whole_step: bool) -> None:
    torch = pytest.importorskip("torch")
    tx = funcopt.chain(funcopt.sgd(LR), funcopt.kahan_sum())

    @jax.jit
    def update(g: Any, state: Any, p: Any) -> Any:
        if whole_step:
            return funcopt.step(tx, g, state, p)
        updates, state = tx.update(g, state, p)
        return funcopt.apply_updates(p, updates), state

    p = jnp.asarray(START, dtype)
    state = tx.init(p)
    for g in GRADS:
        p, state = update(jnp.asarray(g, dtype), state, p)
    expected, lost = with_torch(getattr(torch, dtype))
    np.testing.assert_array_equal(p.astype(jnp.float32), expected)
    np.testing.assert_array_equal(state[1].kahan_comp.astype(jnp.float32), lost)


@pytest.mark.parametrize("engine", ["xla", "torch"])
def test_bridge_agrees_with_torch_bit_by_bit(engine: Any) -> None:
    torch = pytest.importorskip("torch")
    p = torch.nn.Parameter(torch.tensor(START).bfloat16())
    optimizer = funcopt.TorchBridge([p], funcopt.chain(funcopt.sgd(LR), funcopt.kahan_sum()), engine=engine)
    for g in GRADS:
        p.grad = torch.tensor(g).bfloat16()
        optimizer.step()
    np.testing.assert_array_equal(p.detach().float().numpy(), with_torch(torch.bfloat16)[0])


def test_bridge_agrees_with_optimi_bit_by_bit() -> None:
    torch, optimi = pytest.importorskip("torch"), pytest.importorskip("optimi")
    p, q = (torch.nn.Parameter(torch.tensor(START).bfloat16()) for _ in range(2))
    reference = optimi.SGD([q], lr=LR, kahan_sum=True, foreach=False, triton=False)
    optimizer = funcopt.TorchBridge([p], funcopt.chain(funcopt.sgd(LR), funcopt.kahan_sum()))
    for g in GRADS:
        p.grad, q.grad = torch.tensor(g).bfloat16(), torch.tensor(g).bfloat16()
        optimizer.step()
        reference.step()
    np.testing.assert_array_equal(p.detach().float().numpy(), q.detach().float().numpy())


def test_small_updates_are_not_lost() -> None:
    """Each is a quarter of what changes a parameter at 1 in bfloat16."""
    for parts, expected in (([], 1.0), ([funcopt.kahan_sum()], 1 - 64 * 2.0**-10)):
        tx = funcopt.chain(funcopt.sgd(1.0), *parts)
        p = jnp.ones(3, jnp.bfloat16)
        state = tx.init(p)
        for _ in range(64):
            p, state = funcopt.step(tx, jnp.full(3, 2.0**-10, jnp.bfloat16), state, p)
        np.testing.assert_array_equal(p.astype(jnp.float32), expected)


def test_wide_parameters_are_left_alone() -> None:
    params = {"wide": jnp.ones(3), "narrow": jnp.ones(3, jnp.float16)}
    state = funcopt.kahan_sum().init(params)
    assert state.kahan_comp["wide"] is None
    assert state.kahan_comp["narrow"].dtype == jnp.float16
