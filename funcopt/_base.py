"""The protocol, and how a leaf rule becomes a transformation.

A transformation is optax's own type: `init(params) -> state` and `update(updates, state, params=None, **extra) ->
(updates, state)`, so funcopt's and optax's parts mix in one chain. An algorithm here is one *leaf rule*: a pure
function of arrays, with every hyperparameter an argument. `leafwise` lifts it to trees and hands each leaf its own
numbers; `scheduled` evaluates the hyperparameters that are functions of the step.
"""

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import optax
from optax import EmptyState, GradientTransformation, GradientTransformationExtraArgs

from funcopt import _tree
from funcopt._rows import HandlingOf, RowSparse, add_rows, coalesce, is_rows, put_rows, refuse, take_rows, to_dense

Schedule: TypeAlias = Callable[[Any], Any]
"""A pure function of the step: `schedule(0)` is the value of the first update. Vectorised over arrays of steps."""

Hyperparameter: TypeAlias = Any
"""A number, a `Schedule`, or a prefix of the parameters' tree with such values; for a flag booleans, no numbers."""

PyTree: TypeAlias = Any


class ElementwiseTransformation(GradientTransformationExtraArgs):
    """A transformation whose update of an element depends on that element and on global reductions only.

    Such a transformation gives the same numbers when several leaves are joined into one flat array, which is much
    faster for many small leaves. `chain` of elementwise parts is elementwise; a part of optax has to be marked.

    Example:
        >>> import funcopt, optax
        >>> direction = funcopt.ElementwiseTransformation(*optax.scale_by_lion())
        >>> tx = funcopt.chain(direction, funcopt.scale_by_learning_rate(1e-4))
    """

    def __new__(cls, init: Any, update: Any) -> "ElementwiseTransformation":
        kinds = [parameter.kind for parameter in inspect.signature(update).parameters.values()]
        if inspect.Parameter.VAR_KEYWORD not in kinds:  # as in optax's own parts, of which most ignore the loss
            _, update = optax.with_extra_args_support(GradientTransformation(init, update))
        return super().__new__(cls, init, update)


class ScheduledState(NamedTuple):
    """State of a transformation with hyperparameters that are schedules."""

    schedule_step: Any  # int32 (): applied updates so far; one for all leaves, as a torch scheduler's
    hyperparams: dict[str, PyTree]  # by name: the scheduled values that the last update used, scalars
    inner_state: PyTree  # state of the transformation that uses them


def apply_updates(params: PyTree, updates: PyTree) -> PyTree:
    """Adds updates to parameters.

    Args:
        params: tree of arrays.
        updates: tree of the same structure and shapes; `None` leaves its parameter untouched, `RowSparse` changes
            some of its rows.

    Returns:
        The new parameters, each in its parameter's dtype; the sum is rounded once.
    """

    def add(update: Any, param: Any) -> Any:
        if update is None:
            return param
        if is_rows(update):
            return add_rows(param, update)
        return jnp.asarray(param + update).astype(jnp.result_type(param))

    return jax.tree.map(add, updates, params, is_leaf=_tree.is_update)


def _mark(init: Any, update: Any, elementwise: bool) -> GradientTransformationExtraArgs:
    return (ElementwiseTransformation if elementwise else GradientTransformationExtraArgs)(init, update)


def _combine(combined: GradientTransformationExtraArgs, parts: Any) -> GradientTransformationExtraArgs:
    elementwise = all(isinstance(part, ElementwiseTransformation) for part in parts)
    return _mark(*combined, elementwise)


def chain(*transformations: GradientTransformation) -> GradientTransformationExtraArgs:
    """Applies transformations one after another: `optax.chain`, which in addition keeps the elementwise mark.

    Args:
        *transformations: funcopt's and optax's, in the order in which they see the updates.

    Returns:
        One transformation; its state is the tuple of their states.

    Example:
        >>> import funcopt
        >>> tx = funcopt.chain(funcopt.add_decayed_weights(1e-4), funcopt.adam(1e-3))
    """
    if not transformations:
        return ElementwiseTransformation(*optax.identity())
    return _combine(optax.chain(*transformations), transformations)


def named_chain(*transformations: tuple[str, GradientTransformation]) -> GradientTransformationExtraArgs:
    """`chain` with names: the state is a mapping from name to state.

    Args:
        *transformations: pairs of a name and a transformation.

    Returns:
        One transformation.
    """
    return _combine(optax.named_chain(*transformations), [part for _, part in transformations])


def leafwise(
    owner: str,
    rule: Callable[..., Any],
    hyperparams: Mapping[str, Hyperparameter],
    *,
    state: type | None = None,
    init_leaf: Callable[..., tuple[jax.Array | None, ...]] | None = None,
    needs_params: bool = False,
    needs_dtype: bool = False,
    complaint: Callable[[Any], str] = _tree.complaint_unless_floating,
    elementwise: bool = True,
    rows: HandlingOf = refuse,
    tuples: tuple[str, ...] = (),
    prepare: Callable[..., Mapping[str, Any]] = dict,
) -> GradientTransformationExtraArgs:
    """Lifts a leaf rule to trees.

    The rule is `rule(update, *moments, **hyperparams) -> (update, *moments)`, or returns just the update where there is
    no state. It gets `param=` where `needs_params`, `dtype=` where `needs_dtype`, and `step=` (the count of this
    update, from 1) where the state has that field. Arrays arrive in the compute form (`_tree.to_compute`),
    hyperparameters as weak scalars.

    Args:
        owner: name for error messages.
        rule: the leaf rule.
        hyperparams: numbers and flags by name, each one value or a prefix of the parameters; no schedules.
        state: NamedTuple class: `step` first if the algorithm counts, then the moments, one tree each.
        init_leaf: `init_leaf(param, **hyperparams)` gives a leaf's initial moments in storage dtype, `None` for one
            that is not kept.
        needs_params: whether the rule reads the parameter.
        needs_dtype: whether the rule reads the dtype that the parameter is stored in; goes with `needs_params`.
        complaint: `complaint(param)` says what a parameter must be that `init` has to refuse, "" for the others.
        elementwise: whether the rule treats each element alone, and so may be marked.
        rows: `rows(**hyperparams)` says what to do with a `RowSparse` update: refuse it, run the rule on those rows
            of everything, or make it dense.
        tuples: names of the hyperparameters whose values are tuples.
        prepare: `prepare(**hyperparams)`, with `step=` where the state has it, gives the rule's arguments instead;
            called once for all leaves that have the same numbers, where the rule would compute with scalars for each.

    Returns:
        The transformation.
    """
    counts = state is not None and "step" in state._fields
    moment_names = [] if state is None else [name for name in state._fields if name != "step"]

    def spread(treedef: Any) -> list[dict[str, Any]]:
        columns = {}
        for name, prefix in hyperparams.items():
            scalars = _tree.map_prefix(_tree.weak, prefix, tuples=name in tuples)
            columns[name] = _tree.broadcast_prefix(scalars, treedef, owner=owner, name=name, tuples=name in tuples)
        return [{name: column[i] for name, column in columns.items()} for i in range(treedef.num_leaves)]

    def init(params: PyTree) -> PyTree:
        leaves, treedef = _tree.flatten(params)
        _tree.check_params(leaves, treedef, owner, complaint)
        values = spread(treedef)
        if state is None or init_leaf is None:
            return EmptyState()
        moments = [
            (None,) * len(moment_names) if leaf is None else init_leaf(jnp.asarray(leaf), **value)
            for leaf, value in zip(leaves, values, strict=True)
        ]
        trees = {name: treedef.unflatten([moment[i] for moment in moments]) for i, name in enumerate(moment_names)}
        return state(step=_tree.zero_step(), **trees) if counts else state(**trees)

    def update_array(leaf: Any, param: Any, moments: Sequence[Any], prepared: Mapping[str, Any]) -> list[Any]:
        stored = [jnp.asarray(leaf), *moments]
        arguments = [None if x is None else _tree.to_compute(x) for x in stored]
        own: dict[str, Any] = {}
        if needs_params:
            own["param"] = _tree.to_compute(jnp.asarray(param))
        if needs_dtype:
            own["dtype"] = jnp.result_type(param)
        outputs = rule(*arguments, **prepared, **own)
        return [
            None if old is None else _tree.from_compute(new, old.dtype)
            for old, new in zip(stored, outputs if moments else (outputs,), strict=True)
        ]

    def update_leaf(
        leaf: Any, param: Any, moments: Sequence[Any], values: Mapping[str, Any], prepared: Mapping[str, Any]
    ) -> list[Any]:
        if not is_rows(leaf):
            return update_array(leaf, param, moments, prepared)
        handling = rows(**values)
        if handling == "refuse":
            raise RuntimeError(f"{owner} does not support sparse gradients; make them dense")
        if handling == "dense":
            # Of a parameter that is given as rows, too, the others are not read: its decay is 0, or it was refused.
            dense_param = to_dense(param, moments[0]) if is_rows(param) else param
            return update_array(to_dense(leaf, moments[0]), dense_param, moments, prepared)
        indices, own = coalesce(leaf)
        row_moments = [take_rows(moment, indices) for moment in moments]
        new, *new_moments = update_array(own, take_rows(param, indices), row_moments, prepared)
        return [
            RowSparse(indices, new),
            *(put_rows(old, indices, new) for old, new in zip(moments, new_moments, strict=True)),
        ]

    def update(updates: PyTree, current: PyTree, params: PyTree = None, **extra: Any) -> tuple[PyTree, PyTree]:
        del extra
        if needs_params and params is None:
            raise ValueError(f"{owner}: update needs the parameters; call update(updates, state, params)")
        leaves, treedef = _tree.flatten(updates)
        step = _tree.advance(current.step, updates) if counts else None
        leaf_steps = _tree.broadcast_prefix(step, treedef, owner=owner, name="step")
        param_leaves = treedef.flatten_up_to(params) if needs_params else [None] * len(leaves)
        columns = [treedef.flatten_up_to(getattr(current, name)) for name in moment_names]
        prepared: dict[tuple[int, ...], Mapping[str, Any]] = {}  # by what it comes from
        results: list[Sequence[Any]] = []
        for leaf, param, leaf_step, values, *moments in zip(
            leaves, param_leaves, leaf_steps, spread(treedef), *columns, strict=True
        ):
            if leaf is None:
                results.append((None, *moments))
                continue
            if counts:
                values["step"] = leaf_step
            sources = tuple(map(id, jax.tree.leaves(values, is_leaf=_tree.is_none)))
            if sources not in prepared:
                prepared[sources] = prepare(**values)
            results.append(update_leaf(leaf, param, moments, values, prepared[sources]))
        trees = (
            [treedef.unflatten(column) for column in zip(*results, strict=True)]
            if results
            else [treedef.unflatten([]) for _ in range(1 + len(moment_names))]
        )
        if state is None:
            return trees[0], current
        moment_trees = dict(zip(moment_names, trees[1:], strict=True))
        return trees[0], (state(step=step, **moment_trees) if counts else state(**moment_trees))

    return _mark(init, update, elementwise)


def scheduled(
    make: Callable[..., GradientTransformationExtraArgs],
    hyperparams: Mapping[str, Hyperparameter],
    *,
    elementwise: bool = True,
    tuples: tuple[str, ...] = (),
) -> GradientTransformationExtraArgs:
    """Makes a transformation whose hyperparameters may be schedules.

    Args:
        make: builds the transformation from numbers; called anew with each update's values.
        hyperparams: its arguments by name: numbers, schedules, or prefixes of them.
        elementwise: whether what `make` builds is marked so.
        tuples: names of the hyperparameters whose values are tuples.

    Returns:
        `make(**hyperparams)` itself where nothing is scheduled; otherwise a transformation with a `ScheduledState`,
        whose `schedule_step` counts the updates in which any leaf had a gradient, and whose schedules read the count
        before each: all leaves are at the same place of a schedule, as under a torch scheduler.
    """
    names = [name for name, value in hyperparams.items() if _tree.has_schedule(value)]
    if not names:
        return make(**hyperparams)

    def values_at(step: jax.Array) -> dict[str, PyTree]:
        return {name: _tree.at_step(hyperparams[name], step, tuples=name in tuples) for name in names}

    def init(params: PyTree) -> ScheduledState:
        step = _tree.zero_step()
        values = values_at(step)
        return ScheduledState(step, _tree.as_state(values), make(**{**hyperparams, **values}).init(params))

    def update(updates: PyTree, state: ScheduledState, params: PyTree = None, **extra: Any) -> tuple[PyTree, Any]:
        values = values_at(state.schedule_step)
        tx = make(**{**hyperparams, **values})
        new_updates, inner_state = tx.update(updates, state.inner_state, params, **extra)
        step = optax.safe_increment(state.schedule_step) if jax.tree.leaves(updates) else state.schedule_step
        return new_updates, ScheduledState(step, _tree.as_state(values), inner_state)

    return _mark(init, update, elementwise)


__all__ = [
    "ElementwiseTransformation",
    "EmptyState",
    "GradientTransformation",
    "GradientTransformationExtraArgs",
    "Hyperparameter",
    "PyTree",
    "Schedule",
    "ScheduledState",
    "apply_updates",
    "chain",
    "leafwise",
    "named_chain",
    "scheduled",
]
