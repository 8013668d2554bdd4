"""The only place with tree tricks: prefixes, counts per leaf, and `None` leaves.

Words used throughout: a *tree* has the parameters' structure; a *prefix* is a tree whose leaves may stand for whole
subtrees of it (a single number is the shortest prefix); a leaf that is `None` has no gradient and is left untouched.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax

from funcopt._checks import is_schedule, is_tuple_value
from funcopt._rows import is_rows

PyTree = Any


def is_none(x: object) -> bool:
    return x is None


def is_update(x: object) -> bool:
    """Whether a node is one parameter's update, though a pytree could look inside."""
    return x is None or is_rows(x)


def is_array(x: object) -> bool:
    """Whether a node is a leaf and no container, not even an empty one."""
    return jax.tree_util.all_leaves([x])


def flatten(tree: PyTree) -> tuple[list[Any], Any]:
    """Flattens into what stands for one parameter each: arrays, `None` (a missing gradient), `RowSparse`."""
    return jax.tree.flatten(tree, is_leaf=is_update)


def broadcast_prefix(prefix: PyTree, treedef: Any, *, owner: str, name: str, tuples: bool = False) -> list[Any]:
    """Spreads a prefix over the leaves of `treedef`.

    Args:
        prefix: the prefix; with `tuples`, a tuple of numbers in it is one value.
        treedef: structure of the parameters.
        owner: who asks, for the message.
        name: which argument this is, for the message.
        tuples: whether the values are tuples (`betas`).

    Returns:
        One value per leaf of `treedef`, in its order.

    Raises:
        ValueError: if it is not a prefix; the message names the key path and both structures. What optax has masked
            out fits anything.
    """
    values: list[Any] = [None] * treedef.num_leaves

    def visit(path: tuple[Any, ...], value: PyTree, place: PyTree) -> None:
        if isinstance(place, optax.MaskedNode):
            return
        if is_array(value) or value is None or (tuples and is_tuple_value(value)):
            for index in jax.tree.leaves(place):
                values[index] = value
            return
        children, shape = jax.tree_util.tree_flatten_with_path(value, is_leaf=lambda x: x is not value)
        places, place_shape = jax.tree.flatten(place, is_leaf=lambda x: x is not place)
        if shape != place_shape:
            raise ValueError(
                f"{owner}: {name}{jax.tree_util.keystr(path)} must be one value or have the parameters' structure "
                f"{place_shape}, got {shape}"
            )
        for (key, child), child_place in zip(children, places, strict=True):
            visit((*path, *key), child, child_place)

    visit((), prefix, treedef.unflatten(range(treedef.num_leaves)))
    return values


def map_prefix(fn: Callable[[Any], Any], prefix: PyTree, *, tuples: bool = False) -> PyTree:
    """Maps over the values of a prefix."""
    return jax.tree.map(fn, prefix, is_leaf=is_tuple_value if tuples else None)


def is_static(value: object) -> bool:
    """Whether a value is Python's own, known while tracing: flags, names, and zeros that switch a term off."""
    return isinstance(value, bool | int | float | str | np.bool_)


def weak(value: Any) -> Any:
    """A hyperparameter as a scalar that takes the dtype of the array it meets, as Python numbers do.

    torch computes with its hyperparameters in float64 and rounds them only where they meet a tensor. A weakly typed
    scalar does the same: it is as wide as JAX allows (float64 with x64 on) until it meets a leaf, and never widens one.
    """
    if isinstance(value, tuple | list):
        return tuple(weak(item) for item in value)
    if value is None or is_static(value):
        return value
    return lax.full_like(0.0, jnp.reshape(value, ()))


def has_schedule(prefix: PyTree) -> bool:
    """Whether any value of a prefix is a schedule, or a tuple that contains one."""
    return any(is_schedule(leaf) for leaf in jax.tree.leaves(prefix))


def zero_step() -> jax.Array:
    """The count of applied updates of a new state: int32, shape ()."""
    return jnp.zeros((), jnp.int32)


def per_leaf_step(step: PyTree, treedef: Any) -> PyTree:
    """A count, or a prefix of counts, as one count per leaf: each an array of its own, so that all can be donated."""
    counts = broadcast_prefix(step, treedef, owner="state", name="step")
    return treedef.unflatten([None if count is None else jnp.array(count) for count in counts])


def advance(step: PyTree, updates: PyTree) -> PyTree:
    """Counts one more applied update, for the leaves that have one.

    As long as all leaves have the same history `step` is a scalar (or a prefix). The first update in which some
    gradients are `None` and others not makes it a count per leaf.
    """
    leaves, treedef = flatten(updates)
    missing = [leaf is None for leaf in leaves]
    if not any(missing):
        return jax.tree.map(optax.safe_increment, step)
    if all(missing):
        return step
    counts = treedef.flatten_up_to(per_leaf_step(step, treedef))
    return treedef.unflatten(
        [
            count if absent or count is None else optax.safe_increment(count)
            for count, absent in zip(counts, missing, strict=True)
        ]
    )


def with_step_per_leaf(state: PyTree) -> PyTree:
    """Gives each leaf a count of its own in every state that counts updates, for histories that are about to differ."""

    def visit(node: PyTree) -> PyTree:
        fields = getattr(node, "_fields", ())
        if "step" in fields:
            moments = next(getattr(node, name) for name in fields if name != "step")
            return node._replace(step=per_leaf_step(node.step, flatten(moments)[1]))
        children, treedef = jax.tree.flatten(node, is_leaf=lambda x: x is not node)
        return node if is_array(node) else treedef.unflatten([visit(x) for x in children])

    return visit(state)


def at_step(prefix: PyTree, step: Any, *, tuples: bool = False) -> PyTree:
    """Replaces each schedule in a prefix by its value at `step`, a scalar."""

    def value_at(value: Any) -> Any:
        if isinstance(value, tuple | list):
            return tuple(value_at(item) for item in value)
        return value(step) if is_schedule(value) else value

    return map_prefix(value_at, prefix, tuples=tuples)


def as_state(values: PyTree) -> PyTree:
    """Numbers as strong scalar arrays in JAX's default float dtype, so that a state holding them keeps its types."""
    return jax.tree.map(lambda x: jnp.reshape(jnp.asarray(x, dtype=float), ()), values)


def to_compute(x: jax.Array) -> jax.Array:
    """An array in the form that leaf rules compute on.

    Half precision is computed in float32 and rounded once, as torch's kernels do. Complex numbers are a trailing axis
    of real and imaginary parts, since torch's algorithms treat these as independent (`torch.view_as_real`).
    """
    if jnp.issubdtype(x.dtype, jnp.complexfloating):
        return jnp.stack([x.real, x.imag], axis=-1)
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))


def from_compute(x: jax.Array, dtype: Any) -> jax.Array:
    """The inverse of `to_compute`: back to the dtype that is stored."""
    if jnp.issubdtype(dtype, jnp.complexfloating):
        return lax.complex(x[..., 0], x[..., 1]).astype(dtype)
    return lax.convert_element_type(x, dtype)


def complaint_unless_floating(leaf: Any) -> str:
    """What a leaf must be that no gradient step can change in place, an integer or a boolean; "" for the others."""
    dtype = jnp.result_type(leaf)
    if jnp.issubdtype(dtype, jnp.inexact):
        return ""
    return f"floating or complex, got {dtype}; leave it out with funcopt.masked, or put None in its place"


def complaint_unless_real(leaf: Any) -> str:
    """What a leaf must be that is no real floating array; "" for the others."""
    dtype = jnp.result_type(leaf)
    if jnp.issubdtype(dtype, jnp.complexfloating):
        return f"real, got {dtype}; give it another algorithm with funcopt.partition"
    return complaint_unless_floating(leaf)


def check_params(leaves: Sequence[Any], treedef: Any, owner: str, complaint: Callable[[Any], str]) -> None:
    """Refuses parameters that an algorithm cannot update; `complaint` is that of `leafwise`."""
    complaints = treedef.unflatten([None if leaf is None else complaint(leaf) for leaf in leaves])
    for path, text in jax.tree_util.tree_leaves_with_path(complaints):
        if text:
            raise ValueError(f"{owner}: parameter {jax.tree_util.keystr(path) or '(the only one)'} must be {text}")
