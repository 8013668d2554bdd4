"""A state pytree as torch keeps state: per parameter a flat dict of tensors, under the names of the state's fields.

What a state keeps per parameter goes to that parameter; what it keeps once (a count) goes to every parameter, as torch
has a `step` for each. A name that occurs twice in a chain gets a number from its second occurrence on.
"""

import dataclasses
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import torch
from jax.tree_util import DictKey, GetAttrKey

from funcopt._tree import is_array, with_step_per_leaf
from funcopt.rule import PyTree, keys_of
from funcopt.torch_bridge._buffers import Device, borrow_as_torch, copy_borrowed, copy_to_jax
from funcopt.torch_bridge._groups import GroupLeaves, PerGroup

SHOWN = "hyperparams."
"""Names of scheduled values begin with it: they show what the last update used, and no later update reads them."""

Entry = dict[str, Any]

Place = tuple[int, str | int]
"""A parameter: its group and its key there."""


@dataclasses.dataclass(frozen=True)
class Unit:
    """One array of a state."""

    name: str  # in a parameter's entry
    place: Place | None  # the parameter that it is kept for; None: it is kept once
    group: int | None  # that it is kept once for; None: for all
    shape: tuple[int, ...]
    dtype: Any
    count: type | None = None  # of a count: what torch has for it, a float in a tensor or an int
    hidden: bool = False  # whether torch's entries do not have it

    @property
    def is_key(self) -> bool:
        """Whether it is a random key."""
        return jnp.issubdtype(self.dtype, jax.dtypes.prng_key)


class Form(NamedTuple):
    """What a state consists of."""

    treedef: Any
    units: tuple[Unit, ...]  # in the order of the state's leaves
    late: bool  # whether torch keeps nothing of a parameter before its first update, and no count of it


def form_of(state: PyTree) -> Form:
    """The form of a state whose per-parameter trees are `GroupLeaves`; of arrays or of what stands for them."""
    late = any(keys is not None and keys.from_first_update for keys in map(keys_of, _special(state)))
    labelled = _map_named(_label, jax.tree.map(_mark, state, is_leaf=_is_special))
    units, treedef = jax.tree.flatten(labelled)
    return Form(treedef, tuple(units), late)


def _special(state: PyTree) -> list[Any]:
    return [node for node in jax.tree.leaves(state, is_leaf=_is_special) if _is_special(node)]


def _is_special(node: object) -> bool:
    return keys_of(node) is not None


class _Count:
    """A count, and what torch has for it; stands for it as a leaf."""

    def __init__(self, array: Any, kind: Any) -> None:
        self.shape, self.dtype, self.kind = jnp.shape(array), jnp.result_type(array), kind


def _mark(node: PyTree) -> PyTree:
    keys = keys_of(node)
    if keys is None:
        return node
    return node._replace(step=jax.tree.map(lambda count: _Count(count, keys.step), node.step))


def _label(name: str, group: int | None, node: Any) -> Any:
    if not isinstance(node, GroupLeaves):
        return _unit(name, None, group, node)
    values = (
        jax.tree_util.tree_map_with_path(
            lambda path, leaf, key=key: _unit(_inner(name, path), (node.group, key), node.group, leaf), value
        )
        for key, value in node.items()
    )
    return GroupLeaves(node.group, node.keys, values)


def _unit(name: str, place: Place | None, group: int | None, leaf: Any) -> Unit:
    if isinstance(leaf, _Count):
        return Unit(name, place, group, leaf.shape, leaf.dtype, leaf.kind or float, hidden=leaf.kind is None)
    shape, dtype = jnp.shape(leaf), jnp.result_type(leaf) if not hasattr(leaf, "dtype") else leaf.dtype
    return Unit(name, place, group, shape, dtype, float if name == "step" and shape == () else None)


def _map_named(fn: Callable[[str, int | None, Any], Any], state: PyTree) -> PyTree:
    """Maps `fn(name, group, node)` over what is kept for a group's parameters, or once.

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


def plain_array(array: jax.Array) -> jax.Array:
    """An array of numbers; of random keys what they are made of, with a sign, since torch cannot pickle uint32."""
    if jnp.issubdtype(array.dtype, jax.dtypes.prng_key):
        return jax.random.key_data(array).view(jnp.int32)
    return array.view(jnp.int32) if array.dtype == jnp.uint32 else array


def array_like(value: Any, like: jax.Array, device: Device) -> jax.Array:
    """The inverse of `plain_array`: a tensor or a number as an array like another."""
    tensor = torch.as_tensor(value)
    if jnp.issubdtype(like.dtype, jax.dtypes.prng_key):
        data = copy_to_jax(tensor.to(torch.int32), device).view(jnp.uint32)
        return jax.random.wrap_key_data(data, impl=jax.random.key_impl(like))
    array = copy_to_jax(tensor, device)
    if like.dtype == jnp.uint32 and array.dtype == jnp.int32:
        return array.view(jnp.uint32)
    return array.astype(like.dtype)


def read_entries(state: PyTree, places: Iterable[Place]) -> dict[Place, Entry]:
    """Each parameter's state as torch tensors of its own."""
    state = with_step_per_leaf(state)
    form, arrays = form_of(state), jax.tree.leaves(state)
    entries: dict[Place, Entry] = {place: {} for place in places}
    own: set[Place] = set()
    fresh: set[Place] = set()
    for unit, array in zip(form.units, arrays, strict=True):
        if unit.place is not None and unit.name != "step":
            own.add(unit.place)
        if form.late and unit.name == "step" and unit.place is not None and int(array) == 0:
            fresh.add(unit.place)
        if unit.hidden:
            continue
        for place in [unit.place] if unit.place is not None else entries:
            if unit.group is None or place[0] == unit.group:
                entries[place][unit.name] = _copy_to_torch(unit, array)
    # A count alone is not the state of a parameter, such as one that is masked out, if others have more.
    kept = own or set(entries)
    return {place: entry if place in kept and place not in fresh else {} for place, entry in entries.items()}


def _copy_to_torch(unit: Unit, array: jax.Array) -> Any:
    if unit.count is int:
        return int(array)
    # torch counts in float32.
    return copy_borrowed(borrow_as_torch(plain_array(array)), torch.float32 if unit.count is float else None)


def write_entries(
    fresh: PyTree, entries: Mapping[Place, Entry], device: Device, describe: Callable[[Place], str]
) -> PyTree:
    """A state with the values of torch's entries.

    Args:
        fresh: a new state; says what is needed, and is used as it is for parameters without an entry.
        entries: values by parameter; an empty entry is a parameter that was never updated.
        device: where the arrays go.
        describe: names a parameter in messages.

    Raises:
        ValueError: for a value that is missing, or has another shape.
    """
    kept = {unit.place for unit in form_of(fresh).units if unit.place is not None}
    steps = {float(entry.get("step", len(entry) > 0)) for place, entry in entries.items() if place in kept}
    if len(steps) > 1:
        fresh = with_step_per_leaf(fresh)
    form, arrays = form_of(fresh), jax.tree.leaves(fresh)

    def load(unit: Unit, old: jax.Array) -> jax.Array:
        owners = [unit.place] if unit.place is not None else [p for p in entries if unit.group in (None, p[0])]
        place = next((p for p in owners if entries.get(p)), None)
        if place is None:
            return old
        value = value_of(unit, entries[place], describe(place), "load_state_dict")
        return old if value is None else array_like(value, old, device)

    return jax.tree.structure(fresh).unflatten(map(load, form.units, arrays))


def value_of(unit: Unit, entry: Mapping[str, Any], place: str, owner: str, error: Any = ValueError) -> Any:
    """What an entry has for an array; None where the array is to be as a new one.

    Raises:
        ValueError: or another error, for what is missing or does not fit.
    """
    value = None if unit.hidden else entry.get(unit.name)
    if value is None:
        if unit.name == "step":
            return 1.0  # torch.optim.SGD's entries: there from the first update on
        if unit.name == "schedule_step":
            return entry.get("step", 0)  # a schedule outside of the state: one per update
        if unit.name.startswith(SHOWN):
            return None
        raise error(f"{owner}: {place} must have the state {unit.name!r}, got {', '.join(entry) or 'none'}")
    if isinstance(value, torch.Tensor) and value.layout != torch.strided:
        value = value.to_dense()  # as torch's SGD keeps a momentum after sparse gradients
    tensor = torch.as_tensor(value)
    shape = (*unit.shape, 2) if unit.is_key else unit.shape
    one_number = unit.shape == () and tensor.numel() == 1 and not unit.is_key
    if tuple(tensor.shape) != shape and not one_number and not (unit.is_key and tensor.shape[:-1] == unit.shape):
        raise error(f"{owner}: {unit.name} of {place} must have shape {shape}, got {tuple(tensor.shape)}")
    if not unit.is_key and tensor.is_complex() != jnp.issubdtype(unit.dtype, jnp.complexfloating):
        raise error(f"{owner}: {unit.name} of {place} must be like {unit.dtype}, got {tensor.dtype}")
    return value
