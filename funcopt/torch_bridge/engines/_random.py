"""Random keys as what they are made of: uint32 arrays, on which JAX's own implementation of their kind is written out.

A value of shape (...) whose dtype is that of keys is one of shape (..., 2) here, or of whatever its kind needs.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from funcopt.torch_bridge.engines._operations import NotCovered


def is_key(dtype: Any) -> bool:
    """Whether it is the dtype of random keys."""
    return jnp.issubdtype(dtype, jax.dtypes.prng_key)


def made_of(aval: Any) -> tuple[tuple[int, ...], Any]:
    """The shape and the dtype of what a value is made of."""
    if is_key(aval.dtype):
        return (*aval.shape, *aval.dtype._impl.key_shape), np.dtype(np.uint32)
    return aval.shape, aval.dtype


def written_out(eqn: Any) -> Callable[..., Any] | None:
    """What an equation does to keys, as a function of what those are made of.

    Returns:
        None where keys are not concerned.

    Raises:
        NotCovered: if it does what nobody does to keys.
    """
    name, params = eqn.primitive.name, eqn.params
    inputs, outputs = ([var.aval for var in variables] for variables in (eqn.invars, eqn.outvars))
    if name == "iota_2x32_shape":
        return _counts(**params)
    kinds = [aval.dtype._impl for aval in (*inputs, *outputs) if is_key(aval.dtype)]
    if not kinds:
        return None
    if name in _OF_KEYS:
        return _OF_KEYS[name](kinds[0], inputs, **params)
    if name not in _MOVES:
        raise NotCovered(f"{name} of random keys")

    def fn(*operands: Any) -> Any:
        return eqn.primitive.bind(*operands, **params)

    # What moves keys moves each of the numbers that they are made of.
    axes = tuple(-1 if is_key(aval.dtype) else None for aval in inputs)
    for _ in kinds[0].key_shape:
        fn = jax.vmap(fn, in_axes=axes, out_axes=-1)
    return fn


def _for_each(ndim: int, fn: Callable[..., Any]) -> Callable[..., Any]:
    for _ in range(ndim):
        fn = jax.vmap(fn)
    return fn


def _seed(kind: Any, inputs: Sequence[Any], **params: Any) -> Callable[..., Any]:
    return _for_each(inputs[0].ndim, kind.seed)


def _split(kind: Any, inputs: Sequence[Any], *, shape: Any) -> Callable[..., Any]:
    return _for_each(inputs[0].ndim, lambda key: kind.split(key, shape))


def _fold_in(kind: Any, inputs: Sequence[Any]) -> Callable[..., Any]:
    shape = jnp.broadcast_shapes(*(aval.shape for aval in inputs))
    fold_in = _for_each(len(shape), kind.fold_in)

    def fn(keys: Any, data: Any) -> Any:
        return fold_in(jnp.broadcast_to(keys, (*shape, *kind.key_shape)), jnp.broadcast_to(data, shape))

    return fn


def _bits(kind: Any, inputs: Sequence[Any], *, bit_width: int, shape: Any) -> Callable[..., Any]:
    return _for_each(inputs[0].ndim, lambda key: kind.random_bits(key, bit_width, shape))


def _counts(shape: tuple[int, ...]) -> Callable[..., Any]:
    """The places of elements as 64 bits, in two halves."""
    if math.prod(shape) >= 2**32:
        raise NotCovered(f"random numbers of shape {shape}")
    return lambda: (jnp.zeros(shape, np.uint32), lax.iota(np.uint32, math.prod(shape)).reshape(shape))


def _same(kind: Any, inputs: Sequence[Any], **params: Any) -> Callable[..., Any]:
    return lambda keys: keys


_OF_KEYS: dict[str, Callable[..., Callable[..., Any]]] = {
    "random_seed": _seed,
    "random_split": _split,
    "random_fold_in": _fold_in,
    "random_bits": _bits,
    "random_wrap": _same,
    "random_unwrap": _same,
    "random_clone": _same,
}
_MOVES = frozenset(
    "slice dynamic_slice squeeze expand_dims broadcast_in_dim reshape concatenate stack split transpose rev gather "  # noqa: SIM905
    "select_n".split()
)
