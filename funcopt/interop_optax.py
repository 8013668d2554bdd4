"""optax's own optimizer states as funcopt's, and back: a run that began with optax goes on with torch's names.

Only states of algorithms that compute the same are converted: their fields differ in name alone.
"""

import functools
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from funcopt._tree import flatten, is_array
from funcopt.rule import DEFINITIONS, PyTree, ScheduledState, state_class


class _Twins(NamedTuple):
    """A class of optax, one of funcopt, and the pairs of their fields' names."""

    theirs: type
    ours: type
    fields: Mapping[str, str]


@functools.cache
def _twins() -> tuple[_Twins, ...]:
    """What the definitions say, and the states of schedules."""
    found = {
        state_class(factory): _Twins(factory.keys.optax[0], state_class(factory) or object, factory.keys.optax[1])
        for factory in DEFINITIONS.values()
        if factory.keys.optax is not None
    }
    return *found.values(), _Twins(optax.ScaleByScheduleState, ScheduledState, {"count": "schedule_step"})


def from_optax_state(optax_state: PyTree, state: PyTree) -> PyTree:
    """A funcopt state with the values of an optax state.

    Args:
        optax_state: state of an optax transformation: `scale_by_adam` (and `adam`, `adamw`), `adamax`, `adadelta`,
            `adagrad`, `trace` (and `sgd` with momentum), schedules, in any chain.
        state: a new state of the funcopt transformation that continues, `tx.init(params)`.

    Returns:
        The state. Counts that optax does not keep are taken from those that it does.

    Raises:
        ValueError: if the states do not have the same parts in the same order, or shapes differ.

    Example:
        >>> import funcopt, optax
        >>> params = {"w": 1.0}
        >>> state = funcopt.from_optax_state(optax.adamw(1e-3).init(params), funcopt.adamw(1e-3).init(params))
    """
    count = max((int(node.count) for node in _parts(optax_state) if "count" in node._fields), default=1)
    return _convert("from_optax_state", optax_state, state, count)


def to_optax_state(state: PyTree, optax_state: PyTree) -> PyTree:
    """An optax state with the values of a funcopt state: the inverse of `from_optax_state`.

    Args:
        state: state of a funcopt transformation, as listed there.
        optax_state: a new state of the optax transformation that continues.

    Returns:
        The state.

    Raises:
        ValueError: if the states do not have the same parts in the same order, if shapes differ, or if parameters have
            counts of their own, since optax has one for all.

    Example:
        >>> import funcopt, optax
        >>> params = {"w": 1.0}
        >>> state = funcopt.to_optax_state(funcopt.adamw(1e-3).init(params), optax.adamw(1e-3).init(params))
    """
    return _convert("to_optax_state", state, optax_state, 0)


def _is_twin(node: object) -> bool:
    return any(isinstance(node, (twins.theirs, twins.ours)) for twins in _twins())


def _parts(state: PyTree) -> list[Any]:
    """The states in a state that have a twin, those inside of others included, in order."""
    nodes = [node for node in jax.tree.leaves(state, is_leaf=_is_twin) if _is_twin(node)]
    return [part for node in nodes for part in (node, *_parts(getattr(node, "inner_state", ())))]


def _convert(owner: str, source: PyTree, target: PyTree, count: int) -> PyTree:
    sources, targets = _parts(source), _parts(target)
    left, pairs = list(sources), {}
    for node in targets:
        # A schedule stands behind the algorithm in optax, and around it here.
        i = next((i for i, other in enumerate(left) if _field_names(other, node) is not None), None)
        if i is None:
            break
        pairs[id(node)] = left.pop(i)
    if left or len(pairs) < len(targets):
        raise ValueError(
            f"{owner}: both states must have the same parts, got {[type(node).__name__ for node in sources]} for "
            f"{[type(node).__name__ for node in targets]}"
        )

    def fill(node: Any) -> Any:
        if not _is_twin(node):
            return node
        old = pairs[id(node)]
        filled = _fill(owner, node, old, _field_names(old, node) or {}, count)
        if hasattr(filled, "inner_state"):
            inner = jax.tree.map(fill, filled.inner_state, is_leaf=_is_twin)
            return filled._replace(inner_state=inner)
        return filled

    return jax.tree.map(fill, target, is_leaf=_is_twin)


def _field_names(source: Any, target: Any) -> Mapping[str, str] | None:
    """From the target's fields to the source's."""
    for twins in _twins():
        if isinstance(source, twins.theirs) and isinstance(target, twins.ours):
            return {ours: theirs for theirs, ours in twins.fields.items()}
        if isinstance(source, twins.ours) and isinstance(target, twins.theirs):
            return twins.fields
    return None


def _fill(owner: str, target: Any, source: Any, names: Mapping[str, str], count: int) -> Any:
    values = {}
    for name, source_name in names.items():
        new, old = getattr(target, name), getattr(source, source_name)
        if name == "count" and not is_array(old):
            raise ValueError(f"{owner}: {source_name} must be one count for all parameters, got {old}")
        (leaves, treedef), olds = flatten(new), flatten(old)[0]
        if [jnp.shape(x) for x in olds] != [jnp.shape(x) for x in leaves]:
            raise ValueError(
                f"{owner}: {source_name} must have shapes {[jnp.shape(x) for x in leaves]}, got "
                f"{[jnp.shape(x) for x in olds]}"
            )
        values[name] = treedef.unflatten(
            [None if x is None else jnp.array(value, x.dtype) for value, x in zip(olds, leaves, strict=True)]
        )
    if "step" in getattr(target, "_fields", ()) and "step" not in values:
        values["step"] = jnp.asarray(count, jnp.int32)
    return target._replace(**values)
