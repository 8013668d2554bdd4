"""Arithmetic that several leaf rules share, in torch's order of operations."""

import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.core import Tracer
from jax.sharding import NamedSharding, PartitionSpec, reshard

from funcopt._tree import compute_dtype, is_static, typed_sharding, weak

try:
    from jax.experimental.shard_alike import shard_alike
except ModuleNotFoundError:  # JAX 0.12 has it no more

    def shard_alike(x: Any, y: Any) -> tuple[Any, Any]:
        """The second is computed from both, which divides it as the first unless XLA knows better."""
        return x, jnp.where(abs(x) < 0, x, y)


def lerp(start: jax.Array, end: jax.Array, weight: Any) -> jax.Array:
    """`torch.lerp`: from `start` to `end` by `weight`, exact at both ends.

    Example:
        >>> import jax.numpy as jnp
        >>> from funcopt.frame import lerp
        >>> lerp(jnp.array([1.0]), jnp.array([3.0]), 0.25)
        Array([1.5], dtype=float32)
    """
    near_end = weight >= 0.5
    if isinstance(near_end, bool):
        return end - (end - start) * (1 - weight) if near_end else start + weight * (end - start)
    # Chosen once, where both forms would be computed for each element.
    factor = jnp.where(near_end, weight - 1, weight)
    return choose(near_end, end, start) + factor * (end - start)


def choose(condition: Any, yes: Any, no: jax.Array) -> jax.Array:
    """`jnp.where` for a scalar condition: `yes`, an array or a number, or else `no`, whose sharding the result has."""
    return lax.select(condition, yes if jnp.ndim(yes) else jnp.full_like(no, yes), no)


def once(fn: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """A function of the count that is computed once for all arrays with the same count: what has no array in it."""
    last: list[Any] = []

    def remembered(step: Any) -> Any:
        if not last or last[0] is not step:
            last[:] = step, fn(step)
        return last[1]

    return remembered


def log(beta: Any) -> Any:
    """The logarithm of a decay rate in [0, 1), in float64 where it is a Python number."""
    if not is_static(beta):
        return jnp.log(beta)
    return math.log(beta) if beta > 0 else -math.inf


def bias_correction(beta: Any, step: Any) -> jax.Array:
    """`1 - beta**step` for a float step >= 1, without the cancellation that costs float32 1,800 ulp (beta 0.9999).

    Example:
        >>> from funcopt.frame import bias_correction
        >>> print(f"{bias_correction(0.9, 2.0):.2f}")
        0.19
    """
    return -jnp.expm1(step * log(beta))


def filled(param: jax.Array, value: Any = 0.0) -> jax.Array:
    """A new array like a parameter, where the parameter is; `value` fills both parts of a complex one, as in torch."""
    return jnp.full_like(param, value * (1 + 1j) if jnp.iscomplexobj(param) else value)


def number_of(param: jax.Array, value: Any = 0.0) -> jax.Array:
    """A number that is kept beside a parameter, in the precision that is computed in."""
    dtype = compute_dtype(param.dtype)
    return jnp.full((), value, jnp.finfo(dtype).dtype)


def zeros_along(param: jax.Array, axis: int) -> jax.Array:
    """Zeros with one element along an axis, otherwise like a parameter, and sharded like it along its other axes."""
    shape = list(param.shape)
    shape[axis] = min(shape[axis], 1)
    sharding = jax.typeof(param).sharding if isinstance(param, Tracer) else getattr(param, "sharding", None)
    if isinstance(sharding, NamedSharding) and not sharding.mesh.empty:
        spec = [*sharding.spec, *[None] * (param.ndim - len(sharding.spec))]
        spec[axis] = None
        return jnp.zeros(shape, param.dtype, device=sharding.update(spec=PartitionSpec(*spec)))
    return jnp.zeros(shape, param.dtype)


@jax.custom_jvp
def _root(x: jax.Array) -> jax.Array:
    return jnp.sqrt(x)


@_root.defjvp
def _root_jvp(primals: tuple[jax.Array], tangents: tuple[jax.Array]) -> tuple[jax.Array, jax.Array]:
    y = _root(*primals)
    return y, jnp.where(y == 0, 0.0, tangents[0] / jnp.where(y == 0, 1.0, 2 * y))


@functools.partial(jax.jit, inline=True)  # traced once for each shape: a custom derivative takes 0.2 ms to trace
def root(x: jax.Array) -> jax.Array:
    """The square root, whose derivative at 0 is 0: so are those of an update where a gradient is 0, and not NaN.

    Example:
        >>> import jax
        >>> from funcopt.frame import root
        >>> float(root(9.0)), float(jax.grad(root)(0.0))
        (3.0, 0.0)
    """
    return _root(x)


def capped(x: jax.Array, base: jax.Array, factor: Any) -> jax.Array:
    """`min(x, base * factor)`; a factor of infinity caps nothing, and leaves no derivative of 0 * inf."""
    endless = factor == float("inf")
    return jnp.where(endless, x, jnp.minimum(x, base * jnp.where(endless, 1.0, factor)))


def norm(x: jax.Array) -> jax.Array:
    """The 2-norm of all elements, as a hyperparameter is: a scalar that takes the dtype of what it meets."""
    return weak(root(jnp.sum(x * x)))


def rms(x: jax.Array) -> jax.Array:
    """The root mean square of all elements, as a hyperparameter is."""
    return weak(root(jnp.sum(x * x))) / x.size**0.5


def undivided(update: Callable[..., tuple[jax.Array, Any]]) -> Callable[[jax.Array, Any], tuple[jax.Array, Any]]:
    """A rule's update that sees whole arrays where types say how they are divided; its results are divided as before.

    For decompositions, and products of matrices that would not say how theirs is.
    """

    def run(g: jax.Array, s: Any) -> tuple[jax.Array, Any]:
        u, new = update(_whole(g), jax.tree.map(_whole, s))
        return _divided(u, g), jax.tree.map(_divided, new, s)

    return run


def _whole(x: Any) -> Any:
    divided = typed_sharding(x)
    return x if divided is None else reshard(x, NamedSharding(divided.mesh, PartitionSpec()))


def _divided(x: Any, like: Any) -> Any:
    divided = typed_sharding(like)
    if divided is not None:
        return reshard(x, divided)
    # Where types do not say it XLA would divide factors of a replicated state as suits it.
    return shard_alike(like, x)[1] if jax.device_count() > 1 else x


def normal(seed: int, count: Any, shape: tuple[int, ...], dtype: Any) -> jax.Array:
    """Standard normal numbers, of a seed and a count: the same ones in each dtype, rounded to it."""
    key = jax.random.fold_in(jax.random.key(seed, impl="threefry2x32"), jnp.asarray(count).astype(jnp.uint32))
    # Odd multiples of 2**-23 between -1 and 1, which float32 has exactly.
    places = 2 * jax.random.uniform(key, shape, jnp.float32).astype(dtype) + (2.0**-23 - 1)
    return 2**0.5 * lax.erf_inv(places)


def rounded(x: jax.Array, dtype: Any) -> jax.Array:
    """An array with the digits of a narrower dtype, and its own dtype."""
    narrow, own = jnp.finfo(dtype), jnp.finfo(x.dtype)
    if narrow.bits >= own.bits:
        return x
    # XLA drops a cast to bfloat16 and back, which it takes for excess precision; this it keeps.
    normal = lax.reduce_precision(x, narrow.nexp, narrow.nmant)
    if narrow.nexp == own.nexp:
        return normal
    # But it makes 0 of what is below the normal numbers, which are as far apart as the wider dtype's at `shift`.
    shift = 1.5 * float(narrow.smallest_subnormal) * 2.0**own.nmant
    return jnp.where(jnp.abs(x) < float(narrow.smallest_normal), (x + shift) - shift, normal)


def recomputed(scalar: Any) -> Any:
    """The same number, which XLA takes for another one: what is computed from it is computed once more.

    For an intermediate that two results need. XLA:CPU would write it to memory, in full, to read it twice.
    """
    if is_static(scalar) and scalar == 0:
        return scalar  # what a plain 0 switches off stays off
    return weak(lax.optimization_barrier(jnp.asarray(scalar, dtype=float)))
