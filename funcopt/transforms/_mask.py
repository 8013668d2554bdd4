"""Different transformations for different parts of the tree: optax's, with what trees of masks and labels need around.

- optax calls a mask or label function on the *updates*, where a missing gradient leaves no place to label; here it is
  called on the parameters.
- optax calls whatever is callable; here a callable pytree, such as an equinox module of labels, is a tree.
- A gradient of dtype float0, what `jax.grad(..., allow_int=True)` gives for an integer, is none: it becomes `None`.
- What cannot be meant is an error that names the place.
"""

from collections.abc import Callable, Hashable, Mapping
from typing import Any

import jax
import numpy as np
import optax

from funcopt import _checks
from funcopt._flax import unboxed
from funcopt._names import nearest
from funcopt.rule import GradientTransformation, GradientTransformationExtraArgs, PyTree


def masked(inner: GradientTransformation, mask: PyTree | Callable[[PyTree], PyTree]) -> GradientTransformationExtraArgs:
    """Applies `inner` where the mask is True and passes the other updates through unchanged: `optax.masked`.

    To stop a part of the tree from moving use `freeze` or `partition`: what passes here is the gradient itself.

    Args:
        inner: any transformation; it keeps state only for what it sees.
        mask: prefix of booleans, or a function from the parameters to one.

    Returns:
        The transformation.

    Raises:
        TypeError: if `inner` is no transformation, or a leaf of the mask no boolean.
        ValueError: from `init`, if the mask is no prefix of the parameters.

    Example:
        >>> import funcopt, jax
        >>> matrices = lambda params: jax.tree.map(lambda p: p.ndim > 1, params)
        >>> tx = funcopt.chain(funcopt.masked(funcopt.add_decayed_weights(0.01), matrices), funcopt.sgd(0.1))
    """
    if not _is_transformation(inner) and _is_transformation(mask):
        raise TypeError(f"masked: inner must be a transformation, got {inner!r}; call masked(inner, mask)")
    _check_transformation("masked", "inner", inner)
    return _on_params("masked", "mask", mask, _read_mask, lambda fn: optax.masked(inner, fn))


def freeze(mask: PyTree | Callable[[PyTree], PyTree]) -> GradientTransformationExtraArgs:
    """Stops what the mask says from moving: its updates become 0.

    Args:
        mask: prefix of booleans, True where nothing is to move, or a function from the parameters to one.

    Returns:
        The transformation.

    Example:
        >>> import funcopt
        >>> tx = funcopt.chain(funcopt.sgd(0.1), funcopt.freeze({"stem": True, "head": False}))
    """
    return masked(optax.set_to_zero(), mask)


def partition(
    transforms: Mapping[Hashable, GradientTransformation], labels: PyTree | Callable[[PyTree], PyTree]
) -> GradientTransformationExtraArgs:
    """Applies to each part of the tree the transformation that its label names: `optax.partition`.

    Args:
        transforms: transformation by label.
        labels: prefix of labels, or a function from the parameters to one.

    Returns:
        The transformation.

    Raises:
        TypeError: if `transforms` is no mapping to transformations.
        ValueError: for a label without a transformation; from `init`, if the labels are no prefix of the parameters.

    Example:
        >>> import funcopt, optax
        >>> parts = {"slow": funcopt.sgd(0.01), "fast": funcopt.adamw(1e-3), "fixed": optax.set_to_zero()}
        >>> tx = funcopt.partition(parts, {"stem": "fixed", "body": "slow", "head": "fast"})
    """
    swapped = _is_parts(labels) and not _is_parts(transforms)
    if swapped or not isinstance(transforms, Mapping):
        allowed = "a mapping from labels to transformations"
        fix = "; call partition(transforms, labels)" if swapped else ""
        raise TypeError(f"partition: transforms must be {allowed}, got {transforms!r}{fix}")
    for label, transformation in transforms.items():
        _check_transformation("partition", f"transforms[{label!r}]", transformation)

    def read(where: str, tree: PyTree) -> PyTree:
        for path, label in jax.tree_util.tree_leaves_with_path(tree):
            _check_label(where + jax.tree_util.keystr(path), label, transforms)
        return tree

    return _on_params("partition", "labels", labels, read, lambda fn: optax.partition(transforms, fn))


def _on_params(
    owner: str,
    argument: str,
    tree_or_fn: PyTree | Callable[[PyTree], PyTree],
    read: Callable[[str, PyTree], PyTree],
    wrap: Callable[[Callable[[PyTree], PyTree]], GradientTransformationExtraArgs],
) -> GradientTransformationExtraArgs:
    """Builds `wrap(lambda _: tree)` from a tree, read at once, or at each call from what a function says.

    Args:
        owner: who asks, for messages.
        argument: what the tree is called, for messages.
        tree_or_fn: the tree, or a function from the parameters to it.
        read: `read(where, tree)` gives the tree after checking its leaves.
        wrap: the transformation made with a function that gives the tree.
    """
    is_function = _is_function(tree_or_fn)
    where = f"{argument}(params)" if is_function else argument
    known = None if is_function else read(where, unboxed(tree_or_fn))

    def inner(params: PyTree) -> GradientTransformationExtraArgs:
        tree = read(where, unboxed(tree_or_fn(params))) if is_function else known
        _check_prefix(owner, where, tree, params)
        return wrap(lambda _: tree)

    def update(updates: PyTree, state: PyTree, params: PyTree = None, **extra: Any) -> tuple[PyTree, PyTree]:
        if params is None and is_function:
            raise ValueError(f"{owner}: a function of the parameters needs them; call update(updates, state, params)")
        updates = jax.tree.map(lambda x: None if getattr(x, "dtype", None) == jax.dtypes.float0 else x, updates)
        return inner(updates if params is None else params).update(updates, state, params, **extra)

    return GradientTransformationExtraArgs(lambda params: inner(params).init(params), update)


def _is_function(value: object) -> bool:
    """Whether a function was given: what would be a function of the step elsewhere."""
    return _checks.is_schedule(value)


def _is_transformation(value: object) -> bool:
    return hasattr(value, "init") and hasattr(value, "update") and not isinstance(value, type | Mapping)


def _is_parts(value: object) -> bool:
    return isinstance(value, Mapping) and len(value) > 0 and all(map(_is_transformation, value.values()))


def _check_transformation(owner: str, argument: str, value: object) -> None:
    """Refuses what is no transformation, the function that makes one first of all."""
    if _is_transformation(value):
        return
    name = getattr(value, "__name__", None)
    fix = f"; call it: {name}(...)" if callable(value) and name else ""
    raise TypeError(f"{owner}: {argument} must be a transformation, got {value!r}{fix}")


def _read_mask(where: str, tree: PyTree) -> PyTree:
    """The mask with Python's booleans for its leaves."""

    def read(path: Any, leaf: Any) -> bool:
        array = isinstance(leaf, np.ndarray | jax.Array) and leaf.shape == () and leaf.dtype == bool
        if isinstance(leaf, bool | np.bool_) or (array and not _checks.is_traced(leaf)):
            return bool(leaf)
        fix = ""
        if _checks.is_traced(leaf):
            fix = "; a mask decides what is computed, so it is known before tracing"
        elif isinstance(leaf, str):
            fix = "; did you mean funcopt.partition?"
        raise TypeError(f"masked: {where}{jax.tree_util.keystr(path)} must be True or False, got {leaf!r}{fix}")

    return jax.tree_util.tree_map_with_path(read, tree)


def _check_label(where: str, label: Any, transforms: Mapping[Hashable, Any]) -> None:
    try:
        if label in transforms:
            return
    except TypeError:  # not hashable
        pass
    fix = ""
    if isinstance(label, bool | np.bool_):
        fix = "a tree of booleans is a mask, did you mean funcopt.masked?"
    elif isinstance(label, str):
        fix = nearest(label, [known for known in transforms if isinstance(known, str)])
    _checks.fail("partition", where, f"among {', '.join(map(repr, transforms))}", label, fix)


def _check_prefix(owner: str, where: str, tree: PyTree, params: PyTree) -> None:
    """Raises where a tree of masks or labels is no prefix of the parameters, with the place and both structures."""
    if not jax.tree.leaves(params):
        return  # such as what stands for parameters in `optax.tree.map_params`

    def visit(path: tuple[Any, ...], value: PyTree, place: PyTree) -> None:
        if jax.tree_util.all_leaves([value]):
            return
        children, shape = jax.tree_util.tree_flatten_with_path(value, is_leaf=lambda x: x is not value)
        places, place_shape = jax.tree.flatten(place, is_leaf=lambda x: x is not place)
        if shape != place_shape:
            raise ValueError(
                f"{owner}: {where}{jax.tree_util.keystr(path)} must be one value or have the parameters' structure "
                f"{jax.tree.structure(place)}, got {jax.tree.structure(value)}"
            )
        for (key, child), child_place in zip(children, places, strict=True):
            visit((*path, *key), child, child_place)

    visit((), tree, params)
