"""Gradient clipping with the numerics of `torch.nn.utils`.

    clip_by_global_norm:  g * min(1, max_norm / (norm + 1e-6))      torch.nn.utils.clip_grad_norm_
    clip_by_value:        clamp(g, -clip_value, clip_value)         torch.nn.utils.clip_grad_value_

optax's clip_by_global_norm has no 1e-6 and no other norms.
"""

import functools
import math
import operator
from typing import Any

import jax
import jax.numpy as jnp

from funcopt import _checks
from funcopt._base import (
    ElementwiseTransformation,
    GradientTransformationExtraArgs,
    Hyperparameter,
    PyTree,
    leafwise,
    scheduled,
)
from funcopt._rows import coalesce, is_rows, on_rows


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
    magnitudes = [x.astype(jnp.promote_types(x.dtype, jnp.float32)) for x in magnitudes if x.size]
    if not magnitudes:
        return jnp.zeros(())
    if norm_type == math.inf:
        return functools.reduce(jnp.maximum, [jnp.max(x) for x in magnitudes])
    if norm_type == 2:
        return jnp.sqrt(functools.reduce(operator.add, [jnp.sum(x * x) for x in magnitudes]))
    return functools.reduce(operator.add, [jnp.sum(x**norm_type) for x in magnitudes]) ** (1 / norm_type)


def _clip_norm_rule(update: jax.Array, *, max_norm: Any, norm: Any) -> jax.Array:
    return update * jnp.minimum(max_norm / (norm + 1e-6), 1.0)


def _clip_value_rule(update: jax.Array, *, clip_value: Any) -> jax.Array:
    return jnp.clip(update, -clip_value, clip_value)


def clip_by_global_norm(max_norm: Hyperparameter, norm_type: float = 2.0) -> GradientTransformationExtraArgs:
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
    owner = "clip_by_global_norm"
    _checks.check_hyperparam(owner, "max_norm", max_norm, _checks.NON_NEGATIVE)
    _checks.check_number(owner, "norm_type", norm_type, _checks.POSITIVE)

    def make(max_norm: Hyperparameter) -> GradientTransformationExtraArgs:
        def clip(norm: Any) -> GradientTransformationExtraArgs:
            return leafwise(owner, _clip_norm_rule, {"max_norm": max_norm, "norm": norm}, rows=on_rows)

        def update(updates: PyTree, state: PyTree, params: PyTree = None, **extra: Any) -> tuple[PyTree, PyTree]:
            return clip(global_norm(updates, norm_type)).update(updates, state, params, **extra)

        return ElementwiseTransformation(clip(0.0).init, update)

    return scheduled(make, {"max_norm": max_norm})


def clip_by_value(clip_value: Hyperparameter) -> GradientTransformationExtraArgs:
    """Bounds each element of the updates to `[-clip_value, clip_value]`.

    Args:
        clip_value: >= 0.

    Returns:
        The transformation.
    """
    owner = "clip_by_value"
    _checks.check_hyperparam(owner, "clip_value", clip_value, _checks.NON_NEGATIVE)

    def make(clip_value: Hyperparameter) -> GradientTransformationExtraArgs:
        return leafwise(owner, _clip_value_rule, {"clip_value": clip_value}, rows=on_rows)

    return scheduled(make, {"clip_value": clip_value})
