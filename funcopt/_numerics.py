"""Arithmetic that several leaf rules share, in torch's order of operations."""

import math
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from funcopt._tree import is_static, weak


def lerp(start: jax.Array, end: jax.Array, weight: Any) -> jax.Array:
    """`torch.lerp`: from `start` to `end` by `weight`, exact at both ends."""
    near_end = weight >= 0.5
    if isinstance(near_end, bool):
        return end - (end - start) * (1 - weight) if near_end else start + weight * (end - start)
    # Chosen once, where both forms would be computed for each element.
    factor = jnp.where(near_end, weight - 1, weight)
    return jnp.where(near_end, end, start) + factor * (end - start)


def log(beta: Any) -> Any:
    """The logarithm of a decay rate in [0, 1), in float64 where it is a Python number."""
    if not is_static(beta):
        return jnp.log(beta)
    return math.log(beta) if beta > 0 else -math.inf


def bias_correction(beta: Any, step: jax.Array) -> jax.Array:
    """`1 - beta**step` for step >= 1, without the cancellation that costs float32 up to 1,800 ulp (beta 0.9999)."""
    return -jnp.expm1(step * log(beta))


def filled(param: jax.Array, value: Any = 0.0) -> jax.Array:
    """A new array of a parameter's shape and dtype; `value` fills both parts of a complex one, as in torch."""
    return jnp.full(param.shape, value * (1 + 1j) if jnp.iscomplexobj(param) else value, param.dtype)


def again(scalar: Any) -> Any:
    """The same number, which XLA takes for another one: what is computed from it is computed once more.

    For an intermediate that two results need. XLA:CPU would write it to memory, in full, to read it twice.
    """
    if is_static(scalar) and scalar == 0:
        return scalar  # what a plain 0 switches off stays off
    return weak(lax.optimization_barrier(jnp.asarray(scalar, dtype=float)))
