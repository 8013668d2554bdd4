"""What a state consists of: by key, what it keeps of each parameter, or once for all."""

from collections.abc import Iterator
from typing import Any

import jax
import optax
from jax.tree_util import DictKey, FlattenedIndexKey, GetAttrKey, SequenceKey

from funcopt._tree import flatten, is_array


def key_name(key: Any) -> str:
    """One step of a path, as names have it."""
    match key:
        case DictKey(key=name) | FlattenedIndexKey(key=name) | GetAttrKey(name=name) | SequenceKey(idx=name):
            return str(name)
    return str(key)


def names_of(params: Any) -> tuple[tuple[str, ...], Any]:
    """The parameters' names, such as `layers.0.w`, and their tree's structure."""
    leaves, treedef = flatten(params)
    paths = jax.tree_util.tree_leaves_with_path(treedef.unflatten(range(len(leaves))))
    return tuple(".".join(map(key_name, path)) for path, _ in paths), treedef


def is_place(node: object) -> bool:
    """Whether a node stands for one parameter, though there may be nothing for it."""
    return node is None or isinstance(node, optax.MaskedNode)


def parts(state: Any, treedef: Any, key: str = "") -> Iterator[tuple[str, list[Any] | None, Any]]:
    """The arrays of a state.

    Args:
        state: state of any transformation.
        treedef: structure of the parameters, from `names_of`.
        key: what the state is called.

    Yields:
        The key, and either a value for each parameter (`None` for those that have none), or else one for all.
    """
    values, structure = jax.tree.flatten(state, is_leaf=is_place)
    if structure == treedef and values:
        yield key, [None if is_place(value) else value for value in values], None
    elif is_array(state):
        yield key, None, state
    else:
        children = jax.tree_util.tree_flatten_with_path(state, is_leaf=lambda x: x is not state)[0]
        for path, child in children:
            if child is state or is_place(child):
                continue
            named = isinstance(path[-1], GetAttrKey) or not key
            yield from parts(child, treedef, key_name(path[-1]) if named else key)
