"""A JAX training state as a torch optimizer's checkpoint, and back: the same recipe goes on in the other framework.

State fields carry torch's state keys, so nothing is renamed. Parameters are matched by name: the name of a leaf is its
path in the tree of parameters, joined by dots, which for a tree of torch's names is torch's name.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import jax

from funcopt import _checks
from funcopt._parts import is_place, names_of
from funcopt._tree import is_array
from funcopt.rule import PyTree
from funcopt.torch_bridge import _units
from funcopt.torch_bridge._groups import GroupLeaves, is_group_leaves
from funcopt.torch_bridge._units import Entry, Place


def to_torch_state_dict(
    state: PyTree, params: PyTree, param_groups: Sequence[Mapping[str, Any]], names: Sequence[str] | None = None
) -> dict[str, Any]:
    """A state of a JAX loop in torch's layout, for `load_state_dict` of torch's optimizer or of `TorchBridge`.

    Args:
        state: state of a transformation, such as `funcopt.adamw(...)`.
        params: the parameters that it belongs to; only their structure is used.
        param_groups: what the state does not hold: the groups as `optimizer.state_dict()["param_groups"]` has them.
        names: the parameters' names in the order of the groups' indices; needed where the groups have no
            "param_names".

    Returns:
        `{"state": {index: {name: tensor}}, "param_groups": [...]}`, with tensors of its own.

    Raises:
        ValueError: if a name is not one of a parameter.

    Example:
        >>> import funcopt, jax.numpy as jnp, torch
        >>> model = torch.nn.Linear(2, 1)
        >>> params = {name: jnp.asarray(p.detach().numpy()) for name, p in model.named_parameters()}
        >>> optimizer = torch.optim.AdamW(model.named_parameters())
        >>> groups = optimizer.state_dict()["param_groups"]
        >>> optimizer.load_state_dict(to_torch_state_dict(funcopt.adamw().init(params), params, groups))
    """
    keys, treedef = names_of(params)
    order = _order("to_torch_state_dict", param_groups, names, keys)
    lifted = _lift(state, treedef, keys)
    entries = _units.read_entries(lifted, [(0, key) for key in keys])
    own = {index: entries[0, name] for index, name in order.items() if entries[0, name]}
    saved = {"state": own, "param_groups": [dict(group) for group in param_groups]}
    return _units.as_in_reference(saved, _units.form_of(lifted).units)


def from_torch_state_dict(
    state_dict: Mapping[str, Any], state: PyTree, params: PyTree, names: Sequence[str] | None = None
) -> PyTree:
    """A state for a JAX loop from the checkpoint of a torch optimizer or of `TorchBridge`.

    Args:
        state_dict: `optimizer.state_dict()`.
        state: a new state, `tx.init(params)`; says what is needed and in which dtypes.
        params: the parameters that it belongs to; only their structure is used.
        names: the parameters' names in the order of the checkpoint's indices; needed where its groups have no
            "param_names".

    Returns:
        The state. Parameters that torch had not updated yet are as in `state`. Schedules go on from the count of
        applied updates.

    Raises:
        ValueError: for a name that is not one of a parameter, and for state that is missing or of another shape.
    """
    keys, treedef = names_of(params)
    order = _order("from_torch_state_dict", state_dict["param_groups"], names, keys)
    lifted = _lift(state, treedef, keys)
    saved = _units.from_reference(state_dict, _units.form_of(lifted).units)
    entries: dict[Place, Entry] = {(0, key): {} for key in keys}
    for index, name in order.items():
        entries[0, name] = dict(saved["state"].get(index, {}))
    loaded = _units.write_entries(lifted, entries, jax.devices()[0], lambda place: f"parameter {place[1]!r}")
    return _lower(loaded, treedef)


def _order(
    owner: str, groups: Sequence[Mapping[str, Any]], names: Sequence[str] | None, known: tuple[str, ...]
) -> dict[int, str]:
    """The name of each of a checkpoint's indices."""
    indices = [index for group in groups for index in group["params"]]
    if names is None:
        if not all("param_names" in group for group in groups):
            _checks.fail(owner, "names", "given, as the groups have no param_names", None)
        names = [name for group in groups for name in group["param_names"]]
    if len(names) != len(indices):
        _checks.fail(owner, "names", f"{len(indices)} names, one per parameter of the groups", list(names))
    for name in names:
        if name not in known:
            _checks.fail(owner, "names", f"among the parameters {', '.join(known)}", name)
    return dict(zip(indices, names, strict=True))


def _lift(state: PyTree, treedef: Any, keys: tuple[str, ...]) -> PyTree:
    """The state with what it keeps per parameter in the bridge's own node type."""

    def visit(node: PyTree) -> PyTree:
        leaves, structure = jax.tree.flatten(node, is_leaf=is_place)
        if structure == treedef:
            return GroupLeaves(0, keys, leaves)
        children, one_level = jax.tree.flatten(node, is_leaf=lambda x: x is not node)
        return node if is_array(node) else one_level.unflatten([visit(child) for child in children])

    return visit(state)


def _lower(state: PyTree, treedef: Any) -> PyTree:
    """The inverse of `_lift`."""

    def lower(node: PyTree) -> PyTree:
        return treedef.unflatten(node.values) if is_group_leaves(node) else node

    return jax.tree.map(lower, state, is_leaf=is_group_leaves)
