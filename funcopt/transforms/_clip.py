"""Gradient clipping with the numerics of `torch.nn.utils`.

    clip_by_global_norm:  g * min(1, max_norm / (norm + 1e-6))      torch.nn.utils.clip_grad_norm_
    clip_by_value:        clamp(g, -clip_value, clip_value)         torch.nn.utils.clip_grad_value_

optax's clip_by_global_norm has no 1e-6 and no other norms.
"""

import functools
import math
from typing import Annotated, Any, TypeAlias

import jax
import jax.numpy as jnp

from funcopt import _checks
from funcopt._lift import REDUCE
from funcopt._numerics import root
from funcopt._rows import coalesce, is_rows
from funcopt._tree import compute_dtype, from_compute, weak
from funcopt.kinds import Hyperparameter, NonNegative, fixed
from funcopt.rule import PyTree, Rule, transformation

NormType: TypeAlias = Annotated[Hyperparameter, fixed(_checks.POSITIVE)]


def _partial_norm(x: jax.Array, norm_type: Any) -> jax.Array:
    """What an array adds to a norm, before the root."""
    if norm_type == math.inf:
        return jnp.max(x, initial=0.0)
    return jnp.sum(x * x) if norm_type == 2 else jnp.sum(x**norm_type)


def _root_of(total: jax.Array, norm_type: Any) -> jax.Array:
    if norm_type == math.inf:
        return total
    return root(total) if norm_type == 2 else total ** (1 / norm_type)


def global_norm(updates: PyTree, norm_type: float = 2.0) -> jax.Array:
    """The norm of all leaves as one vector, as `torch.nn.utils.get_total_norm`.

    Args:
        updates: tree of arrays; `None` leaves count as absent.
        norm_type: p of the p-norm, > 0; `math.inf` for the largest magnitude.

    Returns:
        Scalar, at least float32, as wide as the widest leaf.

    Example:
        >>> import funcopt, jax.numpy as jnp
        >>> float(funcopt.global_norm({"w": jnp.array([3.0]), "b": jnp.array([4.0])}))
        5.0
    """
    leaves = [coalesce(leaf).values if is_rows(leaf) else leaf for leaf in jax.tree.leaves(updates, is_leaf=is_rows)]
    magnitudes = [jnp.abs(jnp.asarray(leaf)) for leaf in leaves]
    parts = [_partial_norm(x.astype(compute_dtype(x.dtype)), norm_type) for x in magnitudes]
    if not parts:
        return jnp.zeros(())
    join = jnp.maximum if norm_type == math.inf else jnp.add
    reduce = REDUCE.get()
    total = functools.reduce(join, parts)
    return _root_of(total if reduce is None else reduce(total, join), norm_type)


@transformation()
def clip_by_global_norm(max_norm: NonNegative, norm_type: NormType = 2.0) -> Rule:
    """Scales all updates down together when their global norm exceeds `max_norm`.

    Args:
        max_norm: largest norm that passes, >= 0. As a prefix: the threshold that each part compares the one global
            norm with.
        norm_type: p of the p-norm, > 0; `math.inf` for the largest magnitude.

    Returns:
        The transformation. A norm that is infinite or NaN makes the updates 0 or NaN, as in torch.

    Example:
        >>> import funcopt
        >>> tx = funcopt.chain(funcopt.clip_by_global_norm(1.0), funcopt.adamw(1e-3))
    """

    def total(g: jax.Array, *, dtype: Any) -> jax.Array:
        # Of a complex number the magnitude counts, and not its parts.
        x = from_compute(g, jnp.promote_types(dtype, jnp.complex64)) if _is_complex(dtype) else g
        return _partial_norm(jnp.abs(x), norm_type)

    def update(g: jax.Array, *, total: Any) -> jax.Array:
        norm = weak(_root_of(total, norm_type))
        return g * jnp.minimum(max_norm / (norm + 1e-6), 1.0)

    return Rule(update, total=total, join=jnp.maximum if norm_type == math.inf else jnp.add, rows="rows")


def _is_complex(dtype: Any) -> bool:
    return jnp.issubdtype(dtype, jnp.complexfloating)


@transformation()
def clip_by_value(clip_value: NonNegative) -> Rule:
    """Bounds each element of the updates to `[-clip_value, clip_value]`.

    Args:
        clip_value: >= 0.

    Returns:
        The transformation.
    """
    return Rule(lambda u: jnp.clip(u, -clip_value, clip_value), rows="rows")
