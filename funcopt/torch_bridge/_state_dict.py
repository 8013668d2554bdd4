"""A state pytree as torch keeps state: per parameter a flat dict of tensors, under the names of the state's fields.

What a state keeps per parameter goes to that parameter; what it keeps once (a count) goes to every parameter, as torch
has a `step` for each. A name that occurs twice in a chain gets a number from its second occurrence on.
"""

from collections.abc import Callable, Hashable, Iterable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import torch
from jax.tree_util import DictKey, GetAttrKey

from funcopt._tree import flatten, is_array, is_none, per_leaf_step, with_step_per_leaf
from funcopt.rule import PyTree, keys_of
from funcopt.torch_bridge._buffers import Device, borrow_as_torch, copy_borrowed, copy_to_jax
from funcopt.torch_bridge._groups import GroupLeaves, PerGroup, is_group_leaves
from funcopt.torch_bridge._parts import Member, Part, Place

SHOWN = "hyperparams."
"""Names of scheduled values begin with it: they show what the last update used, and no later update reads them."""

Entry = dict[str, Any]


class Slice(NamedTuple):
    """One parameter's share of an array of the state."""

    array: Any
    member: Member | None  # None: all of it


Leaves = dict[str, Slice]
"""An entry before its arrays are copied to tensors."""


def _map_named(fn: Callable[[str, int | None, Any], Any], state: PyTree) -> PyTree:
    """Maps `fn(name, group, node)` over a state's units: what is kept for a group's parameters, or once.

    Args:
        fn: gets the name, the group (None: all groups) and a `GroupLeaves` or an array; its results replace the nodes.
        state: the state.
    """
    used: dict[tuple[int | None, str], int] = {}

    def unique(name: str, group: int | None) -> str:
        count = used[group, name] = used.get((group, name), -1) + 1
        return f"{name}.{count}" if count else name

    def visit(node: PyTree, name: str, group: int | None) -> PyTree:
        if isinstance(node, GroupLeaves):
            return fn(unique(name, node.group), node.group, node)
        if isinstance(node, PerGroup):
            return PerGroup(visit(value, name, i) for i, value in enumerate(node.values))
        if is_array(node):
            return fn(unique(name, group), group, node)
        children, treedef = jax.tree_util.tree_flatten_with_path(node, is_leaf=lambda x: x is not node)
        return treedef.unflatten([visit(child, _name(path, name), group) for path, child in children])

    return visit(state, "state", None)


def _name(path: tuple[Any, ...], parent: str) -> str:
    match path[0]:
        case GetAttrKey(name=name):
            return name
        case DictKey(key=key):
            return f"{SHOWN}{key}" if f"{parent}." == SHOWN else str(key)
    return parent


def _inner(name: str, path: tuple[Any, ...]) -> str:
    """The name of one of several arrays that a state keeps for a parameter, such as SM3's per axis."""
    return name + jax.tree_util.keystr(path)


def read_entries(state: PyTree, parts: Iterable[Part]) -> dict[Place, Entry]:
    """Each parameter's state as torch tensors of its own: what is done to them, or later here, stays on its side."""
    return {place: as_entry(leaves) for place, leaves in read_leaves(state, parts).items()}


def as_entry(leaves: Leaves) -> Entry:
    """What there is of one parameter as torch tensors of their own, and plain numbers."""
    return {name: _copy_to_torch(name, leaf) for name, leaf in leaves.items()}


def _copy_to_torch(name: str, leaf: Slice) -> Any:
    if isinstance(leaf.array, int):
        return leaf.array
    tensor = borrow_as_torch(_plain_array(leaf.array))
    tensor = tensor if leaf.member is None else leaf.member.view(tensor)
    # torch counts in float32.
    return copy_borrowed(tensor, torch.float32 if name == "step" else None)


def _plain_array(array: jax.Array) -> jax.Array:
    """An array of numbers; of random keys what they are made of, with a sign, since torch cannot pickle uint32."""
    return jax.random.key_data(array).view(jnp.int32) if _is_key(array) else array


def _is_key(array: jax.Array) -> bool:
    return jnp.issubdtype(array.dtype, jax.dtypes.prng_key)


def read_leaves(state: PyTree, parts: Iterable[Part]) -> dict[Place, Leaves]:
    """What there is of each parameter, nothing of it copied."""
    by_place = {part.place: part for part in parts}
    entries: dict[Place, Leaves] = {member.place: {} for part in by_place.values() for member in part.members}
    with_own: set[Place] = set()

    def read(name: str, group: int | None, node: Any) -> Any:
        if isinstance(node, GroupLeaves):
            for key, value in node.items():
                part = by_place[node.group, key]
                for path, leaf in jax.tree_util.tree_leaves_with_path(value):
                    for member in part.members:
                        entries[member.place][_inner(name, path)] = Slice(
                            leaf, member if _is_flat(part, leaf) else None
                        )
                        with_own.add(member.place)
        else:
            for place, entry in entries.items():
                if group is None or place[0] == group:
                    entry[name] = Slice(node, None)
        return node

    _map_named(read, jax.tree.map(_as_torch_keeps, state, is_leaf=_is_special))
    # A count alone is not the state of a parameter, such as one that is masked out, if others have more.
    return {place: entry if not with_own or place in with_own else {} for place, entry in entries.items()}


def _is_flat(part: Part, leaf: Any) -> bool:
    """Whether an array of a part's state has an element for each of the parameters', and is not one number for all."""
    return part.flat and getattr(leaf, "ndim", 0) == 1


def _is_special(node: object) -> bool:
    return keys_of(node) is not None


def _as_torch_keeps(node: PyTree) -> PyTree:
    """A state whose definition says how torch's checkpoints differ from it, as these have it."""
    keys = keys_of(node)
    if keys is None:
        return node
    if not keys.from_first_update:
        return node._replace(step=jax.tree.map(keys.step, node.step))
    moments = {name: getattr(node, name) for name in node._fields if name != "step"}
    steps = per_leaf_step(node.step, flatten(next(iter(moments.values())))[1])

    def where_started(tree: PyTree) -> PyTree:
        return jax.tree.map(lambda x, step: None if x is None or int(step) == 0 else x, tree, steps, is_leaf=is_none)

    fields = {name: where_started(tree) for name, tree in moments.items()}
    return fields if keys.step is None else {"step": where_started(steps), **fields}


def write_entries(
    fresh: PyTree,
    entries: Mapping[Place, Entry],
    parts: Iterable[Part],
    device: Device,
    describe: Callable[[Place], str],
    *,
    complete: bool = True,
) -> PyTree:
    """A state with the values of torch's entries.

    Args:
        fresh: a new state; says what is needed, and is used as it is for parameters without an entry.
        entries: values by parameter; an empty entry is a parameter that was never updated. Those of one part have the
            same history, see `histories`.
        parts: what the state's arrays are for.
        device: where the arrays go.
        describe: names a parameter in messages.
        complete: whether an entry must have all that is needed; otherwise what it lacks is as in `fresh`.

    Raises:
        ValueError: for a value that is missing where `complete`, or has another shape.
    """
    by_place = {part.place: part for part in parts}
    kept = {
        member.place
        for node in jax.tree.leaves(fresh, is_leaf=is_group_leaves)
        if is_group_leaves(node)
        for key, value in node.items()
        if jax.tree.leaves(value)
        for member in by_place[node.group, key].members
    }
    steps = {float(entry.get("step", len(entry) > 0)) for place, entry in entries.items() if place in kept}
    if len(steps) > 1:
        fresh = with_step_per_leaf(fresh)

    def tensor(name: str, place: Place, old: jax.Array, shape: tuple[int, ...]) -> torch.Tensor:
        value = torch.as_tensor(entries[place][name])
        if tuple(value.shape) != shape:
            raise ValueError(
                f"load_state_dict: {name} of {describe(place)} must have shape {shape}, got {tuple(value.shape)}"
            )
        if value.is_complex() != jnp.iscomplexobj(old):
            raise ValueError(
                f"load_state_dict: {name} of {describe(place)} must be like {old.dtype}, got {value.dtype}"
            )
        return value

    def load(name: str, part: Part, old: jax.Array) -> jax.Array:
        entry = entries.get(part.place, {})
        if not entry:
            return old
        if name == "step" and name not in entry:
            return jnp.ones_like(old)  # torch.optim.SGD's entries: there from the first update on
        if name == "schedule_step" and name not in entry:
            return jnp.asarray(entry.get("step", 0), old.dtype)  # a schedule outside of the state: one per update
        if name not in entry and (name.startswith(SHOWN) or not complete):
            return old
        for member in part.members:
            if name not in entries[member.place]:
                raise ValueError(
                    f"load_state_dict: {describe(member.place)} must have the state {name!r}, got "
                    f"{', '.join(entries[member.place]) or 'none'}"
                )
        if _is_flat(part, old):
            value = part.join(tensor(name, member.place, old, member.own_shape) for member in part.members)
        else:
            value = tensor(name, part.place, old, _plain_array(old).shape)
        if _is_key(old):
            data = copy_to_jax(value.to(torch.int32), device).view(jnp.uint32)
            return jax.random.wrap_key_data(data, impl=jax.random.key_impl(old))
        return copy_to_jax(value, device).astype(old.dtype)

    def replace(name: str, group: int | None, node: Any) -> Any:
        if isinstance(node, GroupLeaves):
            return GroupLeaves(
                node.group,
                node.keys,
                (load_part(name, by_place[node.group, key], value) for key, value in node.items()),
            )
        own = [part for part in by_place.values() if group is None or part.place[0] == group]
        started = [part for part in own if entries.get(part.place)]
        return load(name, started[0], node) if started else node

    def load_part(name: str, part: Part, value: PyTree) -> PyTree:
        return jax.tree_util.tree_map_with_path(lambda path, old: load(_inner(name, path), part, old), value)

    return _map_named(replace, fresh)


def histories(entries: Mapping[Place, Entry], places: Mapping[Place, torch.Tensor]) -> dict[Place, Hashable]:
    """For each parameter what joined ones must have in common: what is kept of it, and what numbers it has."""
    arrays = {place: entry for place, entry in entries.items() if places[place].dim()} or entries
    numbers = {name for entry in arrays.values() for name, value in entry.items() if np.ndim(value) == 0}
    return {
        place: frozenset((name, float(value) if name in numbers else None) for name, value in entry.items())
        for place, entry in entries.items()
    }
