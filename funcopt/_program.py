"""Transformations that can be run without rounding in between, one after the other and up to the parameter.

What everybody sees is optax's own type: `init(params) -> state` and `update(updates, state, params=None, **extra) ->
(updates, state)`. A `Program` has a second face, `run`, on flat lists in the form that rules compute on.
"""

import functools
import inspect
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import optax
from optax import GradientTransformation, GradientTransformationExtraArgs

from funcopt import _tree
from funcopt._rows import RowSparse, add_rows, is_rows

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


class Leaves(NamedTuple):
    """Updates on their way through a chain: what stands for one parameter each, in the form that rules compute on."""

    updates: list[Any]
    params: list[Any] | None  # as rules see them; as they are where no gradient is
    dtypes: list[Any]  # that the parameters are stored in
    narrow: list[Any]  # dtypes of the updates outside of the chain
    treedef: Any

    def unflatten(self, updates: Sequence[Any]) -> PyTree:
        """The updates as a tree, rounded to the dtypes that they have outside."""
        return self.treedef.unflatten([_narrow(x, dtype) for x, dtype in zip(updates, self.narrow, strict=True)])


Run: TypeAlias = Callable[[Leaves, PyTree, dict[str, Any]], tuple[list[Any], PyTree]]
"""`run(leaves, state, extra) -> (updates, state)`: an update before its rounding."""


class Program(GradientTransformationExtraArgs):
    """A transformation that can be run without rounding its updates, by `run`."""

    run: Run | None = None  # None of one whose `update` was replaced
    definition: Any = None  # what it was lifted from, a `Definition`; None of what is composed


class ElementwiseProgram(Program, ElementwiseTransformation):
    """The same, where each element's update depends on that element and on totals only."""


def program(init: Callable[[PyTree], PyTree], run: Run, *, elementwise: bool) -> Program:
    """The transformation that an `init` and a `run` make."""

    def update(updates: PyTree, state: PyTree, params: PyTree = None, **extra: Any) -> tuple[PyTree, PyTree]:
        leaves = _enter(updates, params)
        new, state = run(leaves, state, extra)
        return leaves.unflatten(new), state

    kind: Any = ElementwiseProgram if elementwise else Program
    made = kind(init, update)
    made.run = run
    return made


def _enter(updates: PyTree, params: PyTree) -> Leaves:
    """Updates and parameters in the form that rules compute on.

    Raises:
        ValueError: where the two do not fit, with the key path.
    """
    leaves, treedef = _tree.flatten(updates)
    leaves = [None if getattr(x, "dtype", None) == jax.dtypes.float0 else x for x in leaves]  # an integer's gradient
    _tree.check_arrays("update: updates", leaves, treedef)
    narrow = [_dtype(x) for x in leaves]
    if params is None:
        own, dtypes = None, narrow
    else:
        stored = _flatten_like("update", params, updates, treedef)
        _check_leaves("update", leaves, stored, treedef)
        own = [p if g is None else _widen(p) for g, p in zip(leaves, stored, strict=True)]
        dtypes = [None if g is None else _dtype(p) for g, p in zip(leaves, stored, strict=True)]
    return Leaves([_widen(x) for x in leaves], own, dtypes, narrow, treedef)


def _flatten_like(owner: str, params: PyTree, updates: PyTree, treedef: Any) -> list[Any]:
    try:
        return treedef.flatten_up_to(params)
    except (ValueError, TypeError) as error:
        where, ours, theirs = _tree.first_difference(updates, params)
        order = "update(updates, state, params)" if owner == "update" else f"{owner}(params, updates)"
        raise ValueError(
            f"{owner}: updates{where} must have the structure of the parameters, {theirs}, got {ours}; the order of "
            f"arguments is {order}"
        ) from error


def _check_leaves(owner: str, updates: Sequence[Any], params: Sequence[Any], treedef: Any) -> None:
    for i, (g, p) in enumerate(zip(updates, params, strict=True)):
        if g is None or is_rows(g) or is_rows(p):
            continue
        if p is None:
            raise ValueError(f"{owner}: updates{_tree.path_of(treedef, i)} must be None, where there is no parameter")
        if not _tree.is_array(p) or jnp.shape(g) != jnp.shape(p):
            got = f"shape {jnp.shape(g)}"
            wanted = f"the parameter's shape {jnp.shape(p)}" if _tree.is_array(p) else "a tree like the parameters"
            raise ValueError(f"{owner}: updates{_tree.path_of(treedef, i)} must have {wanted}, got {got}")


def chain(*transformations: GradientTransformation) -> GradientTransformationExtraArgs:
    """Applies transformations one after another, as `optax.chain`.

    Between funcopt's own parts updates stay as they are computed, in float32 at least; they are rounded once, at the
    end. A part of optax in between gets them rounded. The chain is elementwise if all of its parts are.

    Args:
        *transformations: funcopt's and optax's, in the order in which they see the updates.

    Returns:
        One transformation; its state is the tuple of their states.

    Raises:
        TypeError: for what is no transformation.

    Example:
        >>> import funcopt
        >>> tx = funcopt.chain(funcopt.add_decayed_weights(1e-4), funcopt.adam(1e-3))
    """
    if len(transformations) == 1 and type(transformations[0]) in (list, tuple):
        raise TypeError("chain: parts must be arguments of their own, got one list; call chain(*parts)")
    return _compose("chain", transformations, tuple, tuple)


def named_chain(*transformations: tuple[str, GradientTransformation]) -> GradientTransformationExtraArgs:
    """`chain` with names: the state is a mapping from name to state.

    Args:
        *transformations: pairs of a name and a transformation.

    Returns:
        One transformation.

    Raises:
        TypeError: for what is no transformation.
        ValueError: for a name that occurs twice.

    Example:
        >>> import funcopt, jax.numpy as jnp
        >>> tx = funcopt.named_chain(("clip", funcopt.clip_by_global_norm(1.0)), ("lion", funcopt.lion(1e-4)))
        >>> sorted(tx.init(jnp.ones(2)))
        ['clip', 'lion']
    """
    names = [name for name, _ in transformations]
    if len(set(names)) < len(names):
        raise ValueError(f"named_chain: names must differ, got {', '.join(names)}")
    parts = [part for _, part in transformations]
    return _compose("named_chain", parts, lambda states: dict(zip(names, states, strict=True)), dict.values)


def _compose(
    owner: str, transformations: Sequence[GradientTransformation], pack: Any, unpack: Any
) -> GradientTransformationExtraArgs:
    for i, part in enumerate(transformations):
        if not isinstance(part, GradientTransformation):
            name = getattr(part, "__name__", None)
            fix = f"; call it: {name}(...)" if callable(part) and name else ""
            raise TypeError(f"{owner}: part {i} must be a gradient transformation, got {part!r}{fix}")
    runs = [run_of(part) for part in transformations]

    def init(params: PyTree) -> PyTree:
        return pack([part.init(params) for part in transformations])

    def run(leaves: Leaves, state: PyTree, extra: dict[str, Any]) -> tuple[list[Any], PyTree]:
        if not isinstance(state, tuple | dict) or len(state) != len(runs):
            got = "None" if state is None else type(state).__name__
            raise ValueError(
                f"{owner}: the state must have one part for each of {len(runs)} transformations, as init(params) "
                f"returns it, got {got}; the order of arguments is update(updates, state, params)"
            )
        new = []
        for run_part, own in zip(runs, unpack(state), strict=True):
            updates, own = run_part(leaves, own, extra)
            leaves = leaves._replace(updates=updates)
            new.append(own)
        return leaves.updates, pack(new)

    return program(init, run, elementwise=all(isinstance(part, ElementwiseTransformation) for part in transformations))


def run_of(part: GradientTransformation) -> Run:
    """How a transformation is run on flat lists; one of optax with rounded updates."""
    return getattr(part, "run", None) or functools.partial(_run_foreign, part)


def _run_foreign(part: Any, leaves: Leaves, state: PyTree, extra: dict[str, Any]) -> tuple[list[Any], PyTree]:
    """A part of optax, on stored dtypes."""
    params = None
    if leaves.params is not None:
        own = zip(leaves.params, leaves.dtypes, strict=True)
        params = leaves.treedef.unflatten([p if dtype is None else _narrow(p, dtype) for p, dtype in own])
    update = optax.with_extra_args_support(part).update
    updates, state = update(leaves.unflatten(leaves.updates), state, params, **extra)
    return [_widen(x) for x in _tree.flatten(updates)[0]], state


def apply_updates(params: PyTree, updates: PyTree) -> PyTree:
    """Adds updates to parameters.

    Args:
        params: tree of arrays.
        updates: tree of the same structure and shapes; `None` leaves its parameter untouched, `RowSparse` changes
            some of its rows.

    Returns:
        The new parameters, each in its parameter's dtype; the sum is rounded once.

    Raises:
        ValueError: for another structure or shape, with the key path.
    """
    leaves, treedef = _tree.flatten(updates)
    own = _flatten_like("apply_updates", params, updates, treedef)
    _check_leaves("apply_updates", leaves, own, treedef)
    return treedef.unflatten([_add(update, param) for update, param in zip(leaves, own, strict=True)])


def _add(update: Any, param: Any) -> Any:
    if update is None or _dtype(update) == jax.dtypes.float0:
        return param
    if is_rows(update):
        return add_rows(param, update)
    param, update = jnp.asarray(param), jnp.asarray(update)
    dtype = jnp.promote_types(_tree.compute_dtype(param.dtype), _tree.compute_dtype(update.dtype))
    return (param.astype(dtype) + update.astype(dtype)).astype(param.dtype)


def step(
    tx: GradientTransformation, grads: PyTree, state: PyTree, params: PyTree, **extra: Any
) -> tuple[PyTree, PyTree]:
    """One step: `tx.update` and `apply_updates` in one, where the only rounding is that of the new parameter.

    What `update` returns has the gradients' dtype. In half precision that is a rounding more than there has to be: here
    the update stays in float32 up to the sum with the parameter.

    Args:
        tx: any transformation.
        grads: tree of arrays like the parameters; `None` where there is no gradient.
        state: the transformation's state.
        params: tree of arrays.
        **extra: further arguments of `tx.update`, such as `value`.

    Returns:
        The new parameters and the new state.

    Example:
        >>> import funcopt, jax.numpy as jnp
        >>> tx, params = funcopt.sgd(0.1), {"w": jnp.ones(2, jnp.bfloat16)}
        >>> params, state = funcopt.step(tx, {"w": jnp.ones(2, jnp.bfloat16)}, tx.init(params), params)
        >>> params["w"]
        Array([0.898438, 0.898438], dtype=bfloat16)
    """
    updates, state = optax.with_extra_args_support(tx).update(widened(grads), state, params, **extra)
    return apply_updates(params, updates), state


def widened(grads: PyTree) -> PyTree:
    """Gradients in the dtypes that are computed in, so that updates come back in these."""

    def widen(x: Any) -> Any:
        dtype = jnp.result_type(x)
        return jnp.asarray(x).astype(_tree.compute_dtype(dtype)) if jnp.issubdtype(dtype, jnp.inexact) else x

    return jax.tree.map(widen, grads)


def _widen(x: Any) -> Any:
    if x is None or isinstance(x, optax.MaskedNode):
        return x
    if is_rows(x):
        return RowSparse(x.indices, _tree.to_compute(x.values))
    return _tree.to_compute(jnp.asarray(x))


def _narrow(x: Any, dtype: Any) -> Any:
    if x is None or isinstance(x, optax.MaskedNode):
        return x
    return RowSparse(x.indices, _tree.from_compute(x.values, dtype)) if is_rows(x) else _tree.from_compute(x, dtype)


def _dtype(x: Any) -> Any:
    if x is None or isinstance(x, optax.MaskedNode):
        return None
    return jnp.result_type(x.values if is_rows(x) else x)
