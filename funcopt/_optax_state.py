"""optax's own optimizer states as funcopt's, and back: a run that began with optax goes on with torch's names.

Only states of algorithms that compute the same are converted: their fields differ in name alone.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from funcopt._base import PyTree, ScheduledState
from funcopt._tree import flatten, is_array
from funcopt.transforms import (
    ScaleByAdadeltaState,
    ScaleByAdagradState,
    ScaleByAdamaxState,
    ScaleByAdamState,
    TraceState,
)


class _Twins(NamedTuple):
    """A class of optax, one of funcopt, and the pairs of their fields' names."""

    theirs: type
    ours: type
    fields: dict[str, str]


_TWINS = (
    # optax's adamax shares Adam's class; which one is meant is known from the other side.
    _Twins(optax.ScaleByAdamState, ScaleByAdamState, {"count": "step", "mu": "exp_avg", "nu": "exp_avg_sq"}),
    _Twins(optax.ScaleByAdamState, ScaleByAdamaxState, {"count": "step", "mu": "exp_avg", "nu": "exp_inf"}),
    _Twins(optax.ScaleByAdaDeltaState, ScaleByAdadeltaState, {"e_g": "square_avg", "e_x": "acc_delta"}),
    _Twins(optax.ScaleByRssState, ScaleByAdagradState, {"sum_of_squares": "sum"}),
    _Twins(optax.TraceState, TraceState, {"trace": "momentum_buffer"}),
    _Twins(optax.ScaleByScheduleState, ScheduledState, {"count": "schedule_step"}),
)


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
    """
    return _convert("to_optax_state", state, optax_state, 0)


def _parts(state: PyTree) -> list[Any]:
    """The states in a state that have a twin, in order."""
    return [node for node in jax.tree.leaves(state, is_leaf=_has_twin) if _has_twin(node)]


def _has_twin(node: object) -> bool:
    return any(isinstance(node, (twins.theirs, twins.ours)) for twins in _TWINS)


def _convert(owner: str, source: PyTree, target: PyTree, count: int) -> PyTree:
    sources, targets = _parts(source), _parts(target)
    names = [[_field_names(a, b) for b in targets] for a in sources]
    if len(sources) != len(targets) or any(names[i][i] is None for i in range(len(sources))):
        raise ValueError(
            f"{owner}: both states must have the same parts, got {[type(node).__name__ for node in sources]} for "
            f"{[type(node).__name__ for node in targets]}"
        )
    converted = iter(
        _fill(owner, new, old, names[i][i] or {}, count)
        for i, (old, new) in enumerate(zip(sources, targets, strict=True))
    )
    return jax.tree.map(lambda node: next(converted) if _has_twin(node) else node, target, is_leaf=_has_twin)


def _field_names(source: Any, target: Any) -> dict[str, str] | None:
    """From the target's fields to the source's."""
    for twins in _TWINS:
        if isinstance(source, twins.theirs) and isinstance(target, twins.ours):
            return {ours: theirs for theirs, ours in twins.fields.items()}
        if isinstance(source, twins.ours) and isinstance(target, twins.theirs):
            return twins.fields
    return None


def _fill(owner: str, target: Any, source: Any, names: dict[str, str], count: int) -> Any:
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
