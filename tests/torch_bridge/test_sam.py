"""SAM: two gradients for one update, in JAX and around any torch optimizer."""

import copy
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from twins import make_parameters

import funcopt
from funcopt import TorchBridge
from funcopt.torch_bridge import SAM

pytestmark = pytest.mark.one_engine

SHAPES = ((4, 3), (5,))
STEPS = 6


def curvature(step: int) -> list[np.ndarray]:
    rng = np.random.default_rng(step)
    return [rng.uniform(0.5, 1.5, size=shape) for shape in SHAPES]


def by_hand(rho: float, adaptive: bool) -> list[np.ndarray]:
    """Plain gradient descent on sums of a * p**2 / 2, with the gradient of the point nearby."""
    now = [p.detach().numpy().copy() for p in make_parameters(SHAPES)]
    for step in range(STEPS):
        a = curvature(step)
        grads = [x * p for x, p in zip(a, now, strict=True)]
        norm = np.sqrt(sum(((g * np.abs(p) if adaptive else g) ** 2).sum() for g, p in zip(grads, now, strict=True)))
        near = [p + rho * (g * p * p if adaptive else g) / (norm + 1e-12) for g, p in zip(grads, now, strict=True)]
        now = [p - 0.1 * x * q for p, x, q in zip(now, a, near, strict=True)]
    return now


@pytest.mark.parametrize("adaptive", [False, True])
def test_jax_and_torch_agree_with_numpy(adaptive: bool) -> None:
    expected = by_hand(0.3, adaptive)
    with jax.enable_x64(True):
        loss = lambda params, a: sum(jnp.sum(x * p * p) / 2 for x, p in zip(a, params, strict=True))  # noqa: E731
        grad_fn = jax.jit(funcopt.sam(jax.value_and_grad(loss), 0.3, adaptive=adaptive, has_value=True))
        tx = funcopt.sgd(0.1)
        params: Any = [jnp.asarray(p.detach().numpy()) for p in make_parameters(SHAPES)]
        state = tx.init(params)
        for step in range(STEPS):
            value, grads = grad_fn(params, curvature(step))
            np.testing.assert_allclose(value, loss(params, curvature(step)))
            params, state = funcopt.step(tx, grads, state, params)
        for p, wanted in zip(params, expected, strict=True):
            np.testing.assert_allclose(p, wanted, rtol=1e-12)
    for make in (lambda p: TorchBridge(p, funcopt.sgd, lr=0.1), lambda p: torch.optim.SGD(p, lr=0.1)):
        tensors = make_parameters(SHAPES)
        optimizer = SAM(make([{"params": [p]} for p in tensors]), rho=0.3, adaptive=adaptive)
        for step in range(STEPS):
            a = [torch.tensor(x) for x in curvature(step)]
            losses = []

            def closure(a: Any = a, tensors: Any = tensors, optimizer: Any = optimizer, losses: Any = losses) -> Any:
                optimizer.zero_grad()
                total = sum((x * p * p).sum() / 2 for x, p in zip(a, tensors, strict=True))
                total.backward()
                losses.append(float(total.detach()))
                return total

            assert float(optimizer.step(closure).detach()) == losses[0] != losses[1]
        for p, wanted in zip(tensors, expected, strict=True):
            np.testing.assert_allclose(p.detach().numpy(), wanted, rtol=1e-12)


def test_missing_gradients_half_precision_and_errors() -> None:
    params = {"w": jnp.ones(2, jnp.bfloat16), "none": None}
    grads = funcopt.sam(jax.grad(lambda p: jnp.sum(p["w"].astype(jnp.float32) ** 2)), 1.0)(params)
    assert grads["none"] is None
    assert grads["w"].dtype == jnp.bfloat16
    with pytest.raises(ValueError, match="sam: rho must be > 0, got 0"):
        funcopt.sam(jax.grad(jnp.sum), 0.0)
    p, q = make_parameters(((2,), (3,)))
    optimizer = SAM(torch.optim.SGD([p, q], lr=0.1))
    before = q.detach().clone()
    p.grad = torch.ones_like(p)
    optimizer.first_step()
    with pytest.raises(RuntimeError, match="SAM: first_step must be followed by second_step"):
        optimizer.first_step()
    optimizer.second_step(zero_grad=True)
    assert p.grad is None
    assert torch.equal(q, before)
    with pytest.raises(RuntimeError, match="SAM: step needs a closure"):
        optimizer.step()
    with pytest.raises(ValueError, match="SAM: rho must be > 0, got -1"):
        SAM(torch.optim.SGD([p], lr=0.1), rho=-1.0)


def test_a_closure_that_fails_leaves_the_parameters_as_they_were() -> None:
    (p,) = make_parameters(((3,),))
    optimizer = SAM(TorchBridge([p], funcopt.adamw))
    before, calls = p.detach().clone(), []

    def closure() -> Any:
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        p.grad = torch.ones_like(p)

    with pytest.raises(KeyboardInterrupt):
        optimizer.step(closure)
    assert torch.equal(p, before)
    assert not optimizer.state


def test_groups_state_schedulers_and_checkpoints_are_the_optimizers() -> None:
    p, q = make_parameters(((3,), (2,)))
    base = TorchBridge([p], funcopt.adamw, lr=0.1)
    optimizer = SAM(base, rho=0.2)
    optimizer.add_param_group({"params": [q], "rho": 0.1})
    assert optimizer.param_groups is base.param_groups
    assert [group["rho"] for group in base.param_groups] == [0.2, 0.1]
    scheduler = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.5)

    def closure() -> Any:
        optimizer.zero_grad()
        loss = (p**2).sum() + (q**2).sum()
        loss.backward()
        return loss

    optimizer.step(closure)
    scheduler.step()
    assert base.param_groups[0]["lr"] == 0.05
    saved = copy.deepcopy(optimizer.state_dict())
    again = SAM(TorchBridge([{"params": [p]}, {"params": [q]}], funcopt.adamw), rho=0.5)
    again.load_state_dict(saved)
    assert [group["rho"] for group in again.param_groups] == [0.2, 0.1]
    assert float(again.state[p]["step"]) == 1
    assert again.state is again.optimizer.state
