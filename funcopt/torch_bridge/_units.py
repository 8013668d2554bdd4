"""A state pytree as torch keeps state: per parameter a flat dict of tensors, under the names of the state's fields.

What a state keeps per parameter goes to that parameter; what it keeps once (a count) goes to every parameter, as torch
has a `step` for each. A name that occurs twice in a chain gets a number from its second occurrence on.
"""

import dataclasses
import math
import numbers
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import torch
from jax.tree_util import DictKey, GetAttrKey

from funcopt._tree import is_array, with_step_per_leaf
from funcopt.rule import Keys, PyTree, keys_of
from funcopt.torch_bridge._buffers import Device, borrow_as_torch, copy_borrowed, copy_to_jax
from funcopt.torch_bridge._groups import GroupLeaves, PerGroup
from funcopt.torch_bridge._shards import sharding_of
from funcopt.transforms._metrics import Measured

SHOWN = "hyperparams."
"""Names of scheduled values begin with it: they show what the last update used, and no later update reads them."""

_COUNTS = frozenset({"step", "update_counter"})
"""What counts updates, and is known without asking a device for it."""

_ARRAYS = (torch.Tensor, np.ndarray, np.generic, jax.Array, numbers.Number, list, tuple)
"""What a checkpoint may have for an array; of all else no method is called."""

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
    in_group: str | None = None  # what the reference calls it, if it keeps it in its groups
    flat: bool = False  # whether the reference keeps it as a vector
    own: bool = False  # whether the reference does not keep it
    keeper: tuple[type, str] | None = None  # the class of a state that tells weights to evaluate, and its field here
    measures: str | None = None  # of a number that says what an update was like: its field in `Measured`

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
    return keys_of(node) is not None or hasattr(type(node), "evaluated") or isinstance(node, Measured)


class _Known:
    """An array of which its definition tells more; stands for it as a leaf."""

    def __init__(self, array: Any, **known: Any) -> None:
        self.shape, self.dtype, self.known = jnp.shape(array), jnp.result_type(array), known


def _mark(node: PyTree) -> PyTree:
    if not _is_special(node):
        return node
    if isinstance(node, Measured):
        return jax.tree_util.tree_map_with_path(lambda p, x: _Known(x, measures=p[0].name, hidden=True), node)
    keys, keeps = keys_of(node), hasattr(type(node), "evaluated")
    counted, keys = keys is not None, keys or Keys()
    named = {field: name for name, field in keys.group.items()}

    def mark(field: str) -> PyTree:
        known = {"in_group": named.get(field), "flat": field in keys.flat, "own": field in keys.own}
        if keeps:
            known["keeper"] = type(node), field
        if field == "step" and counted:
            hidden = keys.step is None and field not in named
            known |= {"count": float if hidden else keys.step or int, "hidden": hidden}
        return jax.tree.map(lambda x: _Known(x, **known), getattr(node, field))

    told = {"step", *named, *keys.flat, *keys.own}
    return node._replace(**{field: mark(field) for field in node._fields if keeps or field in told})


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
    shape, dtype = jnp.shape(leaf), jnp.result_type(leaf) if not hasattr(leaf, "dtype") else leaf.dtype
    if isinstance(leaf, _Known):
        return Unit(name, place, group, shape, dtype, **leaf.known)
    return Unit(name, place, group, shape, dtype, float if name in _COUNTS and shape == () else None)


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


def as_in_reference(saved: Mapping[str, Any], units: Sequence[Unit]) -> dict[str, Any]:
    """A checkpoint that the reference can load: its groups have, beside the entries, what is kept there.

    Args:
        saved: the checkpoint.
        units: what the state of a parameter consists of.
    """
    named = {unit.in_group: unit for unit in units if unit.in_group is not None}
    flat = [unit.name for unit in units if unit.flat]
    if not named and not flat:
        return dict(saved)
    state = {
        # What is divided over devices cannot be flattened, and is in no reference's checkpoint.
        key: {**entry, **{n: entry[n].reshape(-1) for n in flat if n in entry and sharding_of(entry[n]) is None}}
        for key, entry in saved["state"].items()
    }
    groups = []
    for group in saved["param_groups"]:
        own = [entry for entry in (state.get(index) for index in group["params"]) if entry]
        found: dict[str, Any] = {}
        for field, unit in named.items():
            # A group without gradients so far has what is kept once for all, and has counted nothing.
            among = own or ([] if unit.place is not None else [entry for entry in state.values() if entry])
            values = [float(entry[unit.name]) for entry in among if unit.name in entry]
            if unit.count is not None:
                count = max(values, default=0.0)
                found[field] = int(count) if unit.count is int else torch.tensor(count)
            elif values:
                found[field] = values[0]
        groups.append({**group, **found})
    return {**saved, "state": state, "param_groups": groups}


def from_reference(saved: Mapping[str, Any], units: Sequence[Unit]) -> dict[str, Any]:
    """The inverse: what the groups have goes to the entries of their parameters.

    An entry keeps what it has itself if that has gone as far as the group: parameters differ in their counts where
    gradients were missing, while a reference that goes on from here counts in its groups alone.
    """
    named = {unit.in_group: unit for unit in units if unit.in_group is not None}
    if not named:
        return dict(saved)
    state = dict(saved["state"])
    groups = []
    for group in saved["param_groups"]:
        own = [index for index in group["params"] if state.get(index)]
        for field, unit in named.items():
            values = [float(state[index].get(unit.name, -math.inf)) for index in own]
            if field in group and max(values, default=-math.inf) != float(group[field]):
                number = torch.tensor(float(group[field]), dtype=torch.float64 if unit.count is None else torch.float32)
                state |= {index: {**state[index], unit.name: number} for index in own}
        groups.append({field: value for field, value in group.items() if field not in named})
    return {**saved, "state": state, "param_groups": groups}


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
        if unit.hidden:
            return 1.0  # torch.optim.SGD's entries: there from the first update on
        if unit.name == "schedule_step":
            return entry.get("step", 0)  # a schedule outside of the state: one per update
        if unit.name.startswith(SHOWN) or unit.own:
            return None
        raise error(f"{owner}: {place} must have the state {unit.name!r}, got {', '.join(entry) or 'none'}")
    if not isinstance(value, _ARRAYS):
        raise error(f"{owner}: {unit.name} of {place} must be a tensor or a number, got a {type(value).__name__}")
    if isinstance(value, torch.Tensor) and value.layout != torch.strided:
        value = value.to_dense()  # as torch's SGD keeps a momentum after sparse gradients
    tensor = torch.as_tensor(value)
    if unit.flat and tensor.numel() == math.prod(unit.shape):
        value = tensor = tensor.reshape(unit.shape)
    elif unit.flat and tensor.numel() == 1:  # as Prodigy keeps what is 0 everywhere
        value = tensor = tensor.expand(unit.shape).clone()
    shape = (*unit.shape, 2) if unit.is_key else unit.shape
    one_number = unit.shape == () and tensor.numel() == 1 and not unit.is_key
    if tuple(tensor.shape) != shape and not one_number and not (unit.is_key and tensor.shape[:-1] == unit.shape):
        raise error(f"{owner}: {unit.name} of {place} must have shape {shape}, got {tuple(tensor.shape)}")
    if not unit.is_key and tensor.is_complex() != jnp.issubdtype(unit.dtype, jnp.complexfloating):
        raise error(f"{owner}: {unit.name} of {place} must be like {unit.dtype}, got {tensor.dtype}")
    return value
