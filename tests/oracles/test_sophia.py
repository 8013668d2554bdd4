"""Sophia-G beside its specification, with an estimate of the Hessian that is updated every few steps."""

import harness
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import specs
import torch

import funcopt

EVERY = 4
BETA2 = 0.9
OPTIONS = {"betas": (0.8, BETA2), "rho": 0.1, "bs": 3.0, "weight_decay": 0.1}
ROW = harness.Row("sophia_g", specs.sophia_g)
OF = harness.problem(ROW)


def sampled(t: int) -> list[np.ndarray]:
    """Gradients with sampled labels before the update number t."""
    return OF.noise[t - 1]


def expected() -> list[list[np.ndarray]]:
    now, states, path = [p.copy() for p in OF.starts], [{"h": np.zeros_like(p)} for p in OF.starts], []
    for t, (lr, _) in enumerate(OF.lrs):
        if t % EVERY == 1:
            for g, s in zip(sampled(t), states, strict=True):
                specs.sophia_hessian(g, s, BETA2)
        grads = [OF.gradient(i, p, t) for i, p in enumerate(now)]
        parts = zip(now, grads, states, strict=True)
        now = [specs.sophia_g(p, g, s, t + 1, lr, wd=0.1, b1=0.8, rho=0.1, bs=3.0) for p, g, s in parts]
        path.append(now)
    return path


def test_jax_agrees_with_the_specification() -> None:
    with jax.enable_x64(True):
        lrs = jnp.asarray(OF.lrs[:, 0])
        tx = funcopt.chain(funcopt.sophia_g(lr=lambda step: lrs[step], **OPTIONS), funcopt.scale(1.0))
        params = [jnp.asarray(p) for p in OF.starts]
        state, path = tx.init(params), []
        for t in range(len(OF.lrs)):
            if t % EVERY == 1:
                state = jax.jit(funcopt.update_hessian)(state, sampled(t), BETA2)
            grads = [OF.gradient(i, p, t) for i, p in enumerate(params)]
            params, state = funcopt.step(tx, grads, state, params)
            path.append([np.asarray(p) for p in params])
        assert harness.difference(path, expected(), OF.starts) <= harness.FLOAT64


@pytest.mark.parametrize("engine", ["xla", "torch"])
def test_bridge_agrees_with_the_specification(engine: str) -> None:
    tensors = [torch.nn.Parameter(torch.tensor(p)) for p in OF.starts]
    optimizer = funcopt.TorchBridge(tensors, funcopt.sophia_g, engine=engine, lr=0.1, **OPTIONS)
    path = []
    for t, (lr, _) in enumerate(OF.lrs):
        if t % EVERY == 1:
            for p, g in zip(tensors, sampled(t), strict=True):
                optimizer.state[p]["hessian"].lerp_(torch.tensor(g) ** 2, 1 - BETA2)
        for i, p in enumerate(tensors):
            p.grad = torch.tensor(OF.gradient(i, p.detach().numpy(), t))
        optimizer.param_groups[0]["lr"] = float(lr)
        optimizer.step()
        path.append([p.detach().numpy().copy() for p in tensors])
    assert harness.difference(path, expected(), OF.starts) <= harness.FLOAT64


def test_hessian_of_half_precision_complex_and_missing_gradients() -> None:
    params = {"a": jnp.ones(2, jnp.bfloat16), "b": jnp.ones(2, jnp.complex64), "c": jnp.ones(2)}
    state = funcopt.sophia_g().init(params)
    grads = {"a": jnp.full(2, 0.3, jnp.bfloat16), "b": jnp.array([1 + 2j, 3j]), "c": None}
    new = funcopt.update_hessian(state, grads, 0.5)
    assert new.hessian["a"].dtype == jnp.bfloat16
    assert new.hessian["a"][0] == jnp.bfloat16(0.5 * float(jnp.bfloat16(0.3)) ** 2)
    np.testing.assert_array_equal(new.hessian["b"], [0.5 + 2j, 4.5j])
    np.testing.assert_array_equal(new.hessian["c"], 0.0)
    assert new.exp_avg is state.exp_avg


def test_errors() -> None:
    params = {"w": jnp.ones(2)}
    with pytest.raises(ValueError, match=r"update_hessian: state must contain the state of funcopt\.sophia_g"):
        funcopt.update_hessian(funcopt.adam().init(params), params)
    with pytest.raises(ValueError, match=r"update_hessian: beta2 must be in \[0, 1\), got 1\.0"):
        funcopt.update_hessian(funcopt.sophia_g().init(params), params, 1.0)
