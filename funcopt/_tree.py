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
from jax.core import Tracer
from jax.sharding import Mesh, NamedSharding, PartitionSpec, SingleDeviceSharding

from funcopt._checks import is_schedule, is_tuple_value, is_value
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
        ValueError: if it is not a prefix; the message names the key path and both structures. What has no leaves,
            such as a part that optax has masked out, fits anything.
    """
    values: list[Any] = [None] * treedef.num_leaves

    def visit(path: tuple[Any, ...], value: PyTree, place: PyTree) -> None:
        if not jax.tree.leaves(place):
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
    return jax.tree.map(fn, prefix, is_leaf=lambda node: is_value(node, tuples))


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
    return any(is_schedule(leaf) for leaf in jax.tree.leaves(prefix, is_leaf=is_schedule))


def zero_step(params: Sequence[Any] = ()) -> jax.Array:
    """The count of applied updates of a new state: int32, shape (), over the mesh of the parameters if they have one.

    There a jitted update leaves it, so that the second one is not compiled anew.
    """
    step = jnp.zeros((), jnp.int32)
    meshes = {mesh_of(p) for p in params if p is not None}
    mesh = meshes.pop() if len(meshes) == 1 else None
    return step if mesh is None else jax.device_put(step, NamedSharding(mesh, PartitionSpec()))


def beside(param: Any, new: Any) -> Any:
    """What belongs to a parameter, on the device and in the kind of memory, or over the mesh, that this was put on."""
    if isinstance(param, Tracer) or isinstance(new, Tracer) or not isinstance(new, jax.Array):
        return new
    mesh = mesh_of(param)
    if mesh is not None:
        alike = param.sharding if new.shape == param.shape else NamedSharding(mesh, PartitionSpec())
        return jax.device_put(new, alike) if mesh_of(new) is None else new
    placed = isinstance(param, jax.Array) and param.committed and isinstance(param.sharding, SingleDeviceSharding)
    return jax.device_put(new, param.sharding) if placed and new.sharding != param.sharding else new


def mesh_of(array: Any) -> Any:
    """The mesh over whose devices a concrete array is put; None if there is none."""
    sharding = None if isinstance(array, Tracer) else getattr(array, "sharding", None)
    return sharding.mesh if isinstance(sharding, NamedSharding) and isinstance(sharding.mesh, Mesh) else None


def per_leaf_step(step: PyTree, treedef: Any) -> PyTree:
    """A count, or a prefix of counts, as one count per leaf: each an array of its own, so that all can be donated."""
    counts = broadcast_prefix(step, treedef, owner="state", name="step")
    return treedef.unflatten([None if count is None else jnp.array(count) for count in counts])


def advance(step: PyTree, updates: Sequence[Any], treedef: Any, holes: Sequence[bool]) -> PyTree:
    """Counts one more applied update, for the leaves that have one.

    As long as all leaves have the same history `step` is a scalar (or a prefix). The first update in which some
    gradients are `None` and others not makes it a count per leaf. Where there is no parameter nothing is missing.
    """
    missing = [leaf is None and not hole for leaf, hole in zip(updates, holes, strict=True)]
    if not any(missing):
        return jax.tree.map(optax.safe_increment, step)
    if all(leaf is None for leaf in updates):
        return step
    counts = treedef.flatten_up_to(per_leaf_step(step, treedef))
    return treedef.unflatten(
        [
            count if leaf is None or count is None else optax.safe_increment(count)
            for count, leaf in zip(counts, updates, strict=True)
        ]
    )


def shared_fields(state: Any) -> tuple[str, ...]:
    """The fields of a state, or of its class, that are kept once for all arrays, as its class says in `shared`."""
    return getattr(state, "shared", ())


def with_step_per_leaf(state: PyTree) -> PyTree:
    """Gives each leaf a count of its own in every state that counts updates, for histories that are about to differ.

    By itself a state gets that form at the first update in which some gradients are `None`. A loop whose carry cannot
    change its structure, such as `lax.scan`, starts with it.

    Args:
        state: state of any transformation.

    Returns:
        The same state, with a tree of counts in place of each `step`.

    Example:
        >>> import funcopt, jax.numpy as jnp
        >>> state = funcopt.with_step_per_leaf(funcopt.adam(1e-3).init({"a": jnp.ones(2), "b": jnp.ones(3)}))
        >>> state.step
        {'a': Array(0, dtype=int32), 'b': Array(0, dtype=int32)}
    """

    def visit(node: PyTree) -> PyTree:
        fields = getattr(node, "_fields", ())
        if "step" in fields:
            own = (name for name in fields if name != "step" and name not in shared_fields(node))
            moments = [getattr(node, name) for name in own]
            treedef = flatten(moments[0])[1]  # what follows may have several arrays of each
            counts = treedef.flatten_up_to(per_leaf_step(node.step, treedef))
            kept = [any(x is not None for x in own) for own in zip(*map(treedef.flatten_up_to, moments), strict=True)]
            # Where nothing is kept there is no parameter, unless the algorithm keeps nothing of any.
            counts = [count if has or not any(kept) else None for count, has in zip(counts, kept, strict=True)]
            return node._replace(step=treedef.unflatten(counts))
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
    return x.astype(compute_dtype(x.dtype))


def compute_dtype(dtype: Any) -> Any:
    """What a floating dtype is computed in: float32, or itself where it is wider."""
    narrow = jnp.issubdtype(dtype, jnp.floating) and jnp.finfo(dtype).bits < 32
    return jnp.float32 if narrow else dtype


def from_compute(x: jax.Array, dtype: Any) -> jax.Array:
    """The inverse of `to_compute`: back to the dtype that is stored."""
    if jnp.issubdtype(dtype, jnp.complexfloating):
        return lax.complex(x[..., 0], x[..., 1]).astype(dtype)
    return lax.convert_element_type(x, dtype)


def refuse_unless_floating(leaf: Any) -> str:
    """What a leaf must be that no gradient step can change in place, an integer or a boolean; "" for the others."""
    dtype = jnp.result_type(leaf)
    if jnp.issubdtype(dtype, jnp.inexact):
        return ""
    return f"floating or complex, got {dtype}; leave it out with funcopt.masked, or put None in its place"


def refuse_unless_real(leaf: Any) -> str:
    """What a leaf must be that is no real floating array; "" for the others."""
    dtype = jnp.result_type(leaf)
    if jnp.issubdtype(dtype, jnp.complexfloating):
        return (
            f"real, got {dtype}; give it another algorithm with funcopt.partition, or in torch an optimizer of its own"
        )
    return refuse_unless_floating(leaf)


def check_params(leaves: Sequence[Any], treedef: Any, owner: str, refuse: Callable[[Any], str]) -> None:
    """Refuses parameters that an algorithm cannot update: `refuse` says of one what it must be, "" if it is."""
    check_arrays(f"{owner}: parameter ", leaves, treedef)
    reasons = treedef.unflatten([None if leaf is None else refuse(leaf) for leaf in leaves])
    for path, text in jax.tree_util.tree_leaves_with_path(reasons):
        if text:
            raise ValueError(f"{owner}: parameter {jax.tree_util.keystr(path) or '(the only one)'} must be {text}")


def is_one_value(prefix: PyTree, *, tuples: bool = False) -> bool:
    """Whether a prefix is one value for all."""
    return prefix is None or is_array(prefix) or (tuples and is_tuple_value(prefix))


def any_value(prefix: PyTree, *, tuples: bool = False) -> Any:
    """One of a prefix's values."""
    if is_one_value(prefix, tuples=tuples):
        return weak(prefix)
    values = jax.tree.leaves(prefix, is_leaf=is_tuple_value if tuples else None)
    return weak(values[0]) if values else None


def path_of(treedef: Any, index: int) -> str:
    """The key path of a leaf, as messages write it."""
    paths = jax.tree_util.tree_leaves_with_path(treedef.unflatten(range(treedef.num_leaves)))
    return jax.tree_util.keystr(paths[index][0])


def first_difference(tree: PyTree, like: PyTree) -> tuple[str, str, str]:
    """Where two trees part, from the top: the key path, and what each of them has there."""

    def visit(path: tuple[Any, ...], a: PyTree, b: PyTree) -> tuple[str, str, str] | None:
        if a is None or is_rows(a) or is_array(a):
            return None
        children, shape = jax.tree_util.tree_flatten_with_path(a, is_leaf=lambda x: x is not a)
        others, other_shape = jax.tree.flatten(b, is_leaf=lambda x: x is not b)
        if shape != other_shape:
            return jax.tree_util.keystr(path), _outline(a), _outline(b)
        for (key, child), other in zip(children, others, strict=True):
            found = visit((*path, *key), child, other)
            if found is not None:
                return found
        return None

    return visit((), tree, like) or ("", _outline(tree), _outline(like))


def _outline(tree: PyTree) -> str:
    """A tree's first level in words."""
    if isinstance(tree, dict):
        return f"a dict with {', '.join(map(repr, tree))}" if tree else "an empty dict"
    if is_array(tree):
        return f"an array of shape {jnp.shape(tree)}" if hasattr(tree, "shape") else repr(tree)
    return f"a {type(tree).__name__} of {len(jax.tree.leaves(tree, is_leaf=lambda x: x is not tree))}"


def check_arrays(where: str, leaves: Sequence[Any], treedef: Any) -> None:
    """Refuses leaves that are no arrays, such as a model's functions; `where` begins the message."""
    for i, leaf in enumerate(leaves):
        if not (leaf is None or is_rows(leaf) or hasattr(leaf, "dtype") or isinstance(leaf, int | float | complex)):
            raise TypeError(
                f"{where}{path_of(treedef, i)} must be an array, None or RowSparse, got {leaf!r}; of a model take its "
                "arrays, as equinox.filter(model, equinox.is_inexact_array) does"
            )


def typed_sharding(array: Any) -> Any:
    """The sharding that is part of an array's type (`AxisType.Explicit`), if it divides the array; else None."""
    sharding = getattr(jax.typeof(array), "sharding", None)
    spec = getattr(sharding, "spec", None)
    return sharding if spec is not None and any(axis is not None for axis in spec) else None


def refuse_sharded_types(owner: str, leaves: Sequence[Any], fix: str) -> None:
    """Refuses arrays whose type says that they are sharded (`AxisType.Explicit`), for what makes one vector of them."""
    for leaf in leaves:
        sharding = typed_sharding(leaf)
        if sharding is not None:
            raise ValueError(
                f"{owner}: arrays must not be sharded by their types, since one vector has no such sharding, got "
                f"{sharding.spec}; {fix}"
            )
