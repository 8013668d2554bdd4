"""Clipping agrees with torch.nn.utils."""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

import funcopt


def gradients(scale: float, dtype: Any = np.float64) -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    return [(scale * rng.normal(size=shape)).astype(dtype) for shape in ((3, 4), (5,), ())]


@pytest.mark.parametrize("scale", [0.01, 1.0, 100.0])
@pytest.mark.parametrize("norm_type", [2.0, 1.0, 3.5, math.inf])
def test_global_norm_as_torch(norm_type: float, scale: float) -> None:
    tensors = [torch.nn.Parameter(torch.zeros(g.shape, dtype=torch.float64)) for g in gradients(scale)]
    for tensor, grad in zip(tensors, gradients(scale), strict=True):
        tensor.grad = torch.from_numpy(np.array(grad))
    torch.nn.utils.clip_grad_norm_(tensors, 0.7, norm_type)
    with jax.enable_x64(True):
        tx = funcopt.clip_by_global_norm(0.7, norm_type)
        clipped, _ = tx.update([jnp.asarray(g) for g in gradients(scale)], tx.init(gradients(scale)))
    for ours, tensor in zip(clipped, tensors, strict=True):
        assert tensor.grad is not None
        # two orders of adding up the norm: a few ulp
        np.testing.assert_allclose(ours, tensor.grad.numpy(), rtol=1e-14)


@pytest.mark.parametrize("bad", [math.inf, math.nan])
def test_nonfinite_norm_as_torch(bad: float) -> None:
    tensor = torch.nn.Parameter(torch.zeros(2))
    tensor.grad = torch.tensor([1.0, bad])
    torch.nn.utils.clip_grad_norm_([tensor], 1.0)
    tx = funcopt.clip_by_global_norm(1.0)
    clipped, _ = tx.update(jnp.array([1.0, bad]), tx.init(jnp.zeros(2)))
    np.testing.assert_array_equal(clipped, tensor.grad.numpy())


def test_norm_is_over_all_leaves_and_thresholds_are_per_part() -> None:
    grads = {"a": jnp.array([3.0]), "b": jnp.array([4.0]), "c": None}
    tx = funcopt.clip_by_global_norm({"a": 2.5, "b": 50.0, "c": 1.0})
    clipped, _ = tx.update(grads, tx.init({"a": jnp.zeros(1), "b": jnp.zeros(1), "c": jnp.zeros(1)}))
    np.testing.assert_allclose(clipped["a"], 3.0 * 2.5 / (5.0 + 1e-6), rtol=1e-6)
    assert clipped["b"] == 4.0
    assert clipped["c"] is None


def test_complex_magnitudes_make_the_norm() -> None:
    assert funcopt.global_norm([jnp.array([3 + 4j])]) == 5.0
    assert funcopt.global_norm([jnp.array([3 + 4j])], math.inf) == 5.0


def test_empty_leaves_have_no_norm() -> None:
    assert funcopt.global_norm({}) == 0.0
    assert funcopt.global_norm([jnp.zeros((0, 2)), jnp.array([2.0])], math.inf) == 2.0


def test_half_precision_norm_does_not_overflow() -> None:
    assert funcopt.global_norm([jnp.full((4,), 1e4, jnp.float16)]) == 2e4


def test_clip_by_value_as_torch() -> None:
    tensor = torch.nn.Parameter(torch.zeros(4))
    values = [-2.0, -0.1, 0.3, math.nan]
    tensor.grad = torch.tensor(values)
    torch.nn.utils.clip_grad_value_([tensor], 0.2)
    tx = funcopt.clip_by_value(0.2)
    clipped, _ = tx.update(jnp.array(values), tx.init(jnp.zeros(4)))
    np.testing.assert_array_equal(clipped, tensor.grad.numpy())
