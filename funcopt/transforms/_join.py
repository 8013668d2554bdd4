"""Joining small leaves into one flat array, for the sake of time alone.

Every array costs a jitted program microseconds at each call, and a kernel of its own; a thousand small ones cost more
than a large model. A transformation that treats each element alone gives the same numbers for joined leaves, and keeps
one array of state where there were many. What it costs is compilation: XLA:CPU compiles each leaf's way out of the
joined array for itself, about 10 ms a leaf.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from funcopt import _checks
from funcopt._rows import is_rows
from funcopt._tree import beside, flatten, is_none, refuse_sharded_types
from funcopt.rule import ElementwiseTransformation, GradientTransformation, PyTree


def join_small_leaves(
    inner: GradientTransformation, max_size: int = 65_536, within: PyTree = None
) -> ElementwiseTransformation:
    """Runs an elementwise transformation on few arrays: leaves of up to `max_size` elements are joined by dtype.

    Updates are the same as without. The state is that of `inner` for the joined arrays: it belongs to parameters of
    these shapes, and has no counterpart in torch's checkpoints.

    Args:
        inner: an `ElementwiseTransformation`: any chain of funcopt's parts but those that look at shapes. Parts of
            optax can be marked, `ElementwiseTransformation(*optax.scale_by_lion())`.
        max_size: elements of the largest leaf that is joined, >= 0.
        within: tree that is a prefix of the parameters; leaves are joined within each of its parts only. So
            hyperparameters of `inner` may be trees of this structure; otherwise they are one value each.

    Returns:
        The transformation.

    Raises:
        ValueError: if `inner` is not elementwise; in `update`, if of joined leaves some have a gradient and some none,
            or one of rows.

    Example:
        >>> import funcopt
        >>> groups = {"backbone": 1e-4, "head": 1e-3}
        >>> tx = funcopt.join_small_leaves(funcopt.adamw(lr=groups), within=groups)
    """
    owner = "join_small_leaves"
    if not isinstance(inner, ElementwiseTransformation):
        _checks.fail(owner, "inner", "an ElementwiseTransformation", inner, "only such may see leaves joined")
    _checks.check_number(owner, "max_size", max_size, _checks.NON_NEGATIVE)

    def by_part(fn: Callable[..., PyTree], *trees: PyTree) -> PyTree:
        return jax.tree.map(lambda _, *parts: fn(*parts, max_size), within, *trees, is_leaf=is_none)

    def init(params: PyTree) -> PyTree:
        return inner.init(by_part(_join, params, params))

    def update(updates: PyTree, state: PyTree, params: PyTree = None, **extra: Any) -> tuple[PyTree, PyTree]:
        like = updates if params is None else params
        joined_params = None if params is None else by_part(_join, params, params)
        joined, new_state = inner.update(by_part(_join, updates, like), state, joined_params, **extra)
        return by_part(_split, joined, updates, like), new_state

    return ElementwiseTransformation(init, update)


def _join(tree: PyTree, like: PyTree, max_size: int) -> PyTree:
    """The small leaves of a tree joined, one flat array per dtype, beside the large ones."""
    leaves, _ = flatten(tree)
    alone, joined = _sort(like, max_size)
    return {
        "alone": [leaves[i] for i in alone],
        "joined": {dtype: _concatenate([leaves[i] for i in members]) for dtype, members in joined.items()},
    }


def _concatenate(leaves: Sequence[Any]) -> jax.Array | None:
    if all(leaf is None for leaf in leaves):
        return None
    if any(leaf is None or is_rows(leaf) for leaf in leaves):
        raise ValueError(
            "join_small_leaves: leaves that are joined must all have a gradient, and of all their rows, or none; "
            "leave the others out with funcopt.masked, or keep them apart with within"
        )
    refuse_sharded_types("join_small_leaves", leaves, "leave them out with funcopt.masked, or join within each shard")
    return beside(leaves[0], jnp.concatenate([jnp.ravel(leaf) for leaf in leaves]))


def _split(parts: PyTree, updates: PyTree, like: PyTree, max_size: int) -> PyTree:
    """The inverse of `_join`."""
    leaves, treedef = flatten(updates)
    alone, joined = _sort(like, max_size)
    results = list(leaves)
    for i, leaf in zip(alone, parts["alone"], strict=True):
        results[i] = leaf
    for dtype, members in joined.items():
        flat = parts["joined"][dtype]
        if flat is None:
            continue
        for i, piece in zip(members, lax.split(flat, [leaves[i].size for i in members]), strict=True):
            results[i] = jnp.reshape(piece, leaves[i].shape)
    return treedef.unflatten(results)


def _sort(like: PyTree, max_size: int) -> tuple[list[int], dict[str, list[int]]]:
    """Which leaves stay alone, and which are joined, by dtype."""
    leaves, _ = flatten(like)
    alone: list[int] = []
    joined: dict[str, list[int]] = {}
    for i, leaf in enumerate(leaves):
        small = leaf is not None and not is_rows(leaf) and jnp.size(leaf) <= max_size
        (joined.setdefault(str(jnp.result_type(leaf)), []) if small else alone).append(i)
    return alone, joined
