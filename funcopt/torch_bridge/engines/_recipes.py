"""What a part of the parameters has to go through, as something that can be traced, compared and hashed.

A recipe holds no arrays: two optimizers with equal recipes, on arrays of the same shapes, run the same program.
"""

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import Literal

from funcopt._program import ElementwiseTransformation, apply_updates, widened
from funcopt._rows import is_rows
from funcopt._tree import weak, with_step_per_leaf
from funcopt.rule import GradientTransformationExtraArgs, PyTree
from funcopt.torch_bridge._binding import Binding, ProgramClass
from funcopt.torch_bridge._groups import GroupLeaves, PerGroup
from funcopt.torch_bridge._units import Form, Unit, form_of
from funcopt.torch_bridge.engines import _segments
from funcopt.torch_bridge.engines._segments import NotByRows, Traced

_LANES = 64
"""Elements of what stands for any parameter; a number, since sizes have to be."""

_CHUNK = 16_384
"""Elements of a large parameter that are measured at a time: XLA starts no threads for so few, and caches hold them."""

DUE, FRESH = 0, 1
"""The first of a segment's numbers: whether it has a gradient, and whether its state is new."""


class Given(NamedTuple):
    """What goes beside the gradients into an update, and is the same for all parameters."""

    scaled: bool  # whether gradients are multiplied with the loss's scale, which is the first number
    valued: bool  # whether there is a loss, which is the next one

    @property
    def size(self) -> int:
        """How many numbers that are."""
        return self.scaled + self.valued

    def unscale(self, grads: PyTree, shared: Sequence[Any]) -> PyTree:
        """Gradients without the scale of their loss."""
        return jax.tree.map(functools.partial(_unscale, scale=shared[0]), grads) if self.scaled else grads

    def extra(self, shared: Sequence[Any]) -> dict[str, Any]:
        """Further arguments of a transformation's update."""
        return {"value": weak(shared[self.scaled])} if self.valued else {}


class _Keyed:
    """Equal by what it computes."""

    _key: Any

    def __eq__(self, other: object) -> bool:
        return type(other) is type(self) and self._key == other._key  # pyright: ignore[reportAttributeAccessIssue]

    def __hash__(self) -> int:
        return hash(self._key)


class ClassForm(NamedTuple):
    """What the state of one parameter consists of, for an elementwise recipe."""

    form: Form
    arrays: tuple[Unit, ...]  # like the parameter
    numbers: tuple[Unit, ...]  # its own
    shared: tuple[Unit, ...]  # kept once for all
    measured: tuple[Unit, ...]  # not kept: what the update was like
    constants: tuple[float | None, ...]  # what the arrays are filled with at first; None: what `init` says


class Elementwise(_Keyed):
    """A recipe over elements, for parameters of one dtype and class.

    Args:
        binding: what to run.
        found: the class.
        dtype: of the parameters, JAX's.
        grad_dtype: of the gradients.
        given: what goes beside.
        joined: whether there are several, of which some may not be due.
        wide: whether numbers of the state that are float32 are kept as float64.
        shape: of the parameters, if the recipe also takes sums of each, such as its norm; None if it is elementwise.
    """

    def __init__(
        self,
        binding: Binding,
        found: ProgramClass,
        dtype: Any,
        grad_dtype: Any,
        given: Given,
        *,
        joined: bool,
        wide: bool,
        shape: tuple[int, ...] | None = None,
    ) -> None:
        self._binding, self._class, self._joined, self._wide, self.shape = binding, found, joined, wide, shape
        self._dtype, self._grad_dtype, self._given = np.dtype(dtype), np.dtype(grad_dtype), given
        self._key = binding.key, found, self._dtype, self._grad_dtype, given, joined, wide, shape

    def run(
        self, shared: Any, donated: Any, given: Any, own: Any, *, apart: bool, alone: bool, measure: bool, cpu: bool
    ) -> _segments.Run:
        """The update of all segments, or what it is like: see `_segments.run`."""
        del alone
        grads, rows = given
        width = donated[0].shape[-1]
        in_chunks = measure and cpu and self.shape is None
        return _segments.run(
            traced(self, width),
            shared,
            own,
            [grads, *donated],
            rows,
            own[:, DUE] if self._joined else None,
            apart=apart,
            by_shape=self.shape is not None,
            measure=measure,
            chunk=traced(self, min(width, _CHUNK)) if in_chunks else None,
        )

    def trace(self, width: int) -> Traced:
        """The recipe on rows of a width."""
        form = class_form(self._binding, self._class, self._dtype, self.shape)
        row = functools.partial(jax.ShapeDtypeStruct, (width,) if self.shape is None else self.shape)
        numbers = self._class.size
        arrays = [row(self._grad_dtype), row(self._dtype), *(row(unit.dtype) for unit in form.arrays)]

        def update(shared: list[Any], own: list[Any], arrays: list[Any]) -> Any:
            due, fresh = own[DUE] != 0, own[FRESH] != 0
            own = own[2:]
            grad, param, *old_arrays = arrays
            params = _as_groups(param)
            tx = _build(self._binding, self._class, own[:numbers])
            first = with_step_per_leaf(tx.init(params))
            old = _join(form, old_arrays, own[numbers:], shared[self._given.size :], wide=self._wide)
            unit_of = dict(zip(form.arrays, form.constants, strict=True))

            def start(unit: Unit, new: Any, kept: Any) -> Any:
                known = unit.place is None or unit_of.get(unit) is not None
                return kept if known else jnp.where(fresh, new, kept)

            leaves = map(start, form.form.units, jax.tree.leaves(first), jax.tree.leaves(old))
            state = form.form.treedef.unflatten(leaves)
            grads = self._given.unscale(_as_groups(grad), shared)
            new_param, new = update_params(self._binding, tx, grads, state, params, self._given.extra(shared))
            kept = jax.tree.leaves(state)
            if_due = functools.partial(jnp.where, due) if self._joined else lambda new, old: new
            by_unit = {
                unit: x if unit.place is None else if_due(x, y)
                for unit, x, y in zip(form.form.units, jax.tree.leaves(new), kept, strict=True)
            }
            return (
                [if_due(jax.tree.leaves(new_param)[0], param), *(by_unit[unit] for unit in form.arrays)],
                [by_unit[unit] for unit in form.numbers],
                [by_unit[unit] for unit in form.shared],
                [by_unit[unit] for unit in form.measured],
            )

        counts = self._given.size + len(form.shared), 2 + numbers + len(form.numbers)
        found = _segments.trace(update, *counts, arrays, by_rows=self.shape is None)
        return found if self.shape is None else _segments.flattened(found, self.shape)


@functools.lru_cache(maxsize=512)
def traced(recipe: Elementwise, width: int) -> Traced:
    """The recipe on rows of a width, traced once for the whole process."""
    return recipe.trace(width)


def forget() -> None:
    """Has everything traced anew."""
    traced.cache_clear()
    _class_form.cache_clear()


class _FormKey(_Keyed):
    def __init__(self, binding: Binding, found: ProgramClass, dtype: Any, shape: tuple[int, ...] | None) -> None:
        self.binding, self.found, self.dtype, self.shape = binding, found, dtype, shape
        self._key = binding.key, found, dtype, shape


def class_form(binding: Binding, found: ProgramClass, dtype: Any, shape: tuple[int, ...] | None = None) -> ClassForm:
    """What there is of one parameter, of any shape, or of one.

    Raises:
        NotByRows: if the recipe is not elementwise, or what it keeps has other shapes.
        ValueError: for parameters that the recipe refuses.
    """
    form = _class_form(_FormKey(binding, found, np.dtype(dtype), shape))
    if isinstance(form, str):
        raise NotByRows(form)
    return form


@functools.lru_cache(maxsize=512)
def _class_form(key: _FormKey) -> ClassForm | str:
    """The form, or why there is none: that is found out once, too."""
    count, shape = key.found.size, key.shape or (_LANES,)
    elementwise = []

    def init(numbers: list[Any], param: Any) -> PyTree:
        tx = _build(key.binding, key.found, numbers)
        elementwise.append(key.shape is not None or isinstance(tx, ElementwiseTransformation))
        return with_step_per_leaf(tx.init(_as_groups(param))) if elementwise[-1] else ()

    numbers = [jax.ShapeDtypeStruct((), jnp.float64)] * count
    closed, state = jax.make_jaxpr(init, return_shape=True)(numbers, jax.ShapeDtypeStruct(shape, key.dtype))
    if not elementwise[-1]:
        return "a recipe that is not elementwise"
    form = form_of(state)
    arrays = [unit for unit in form.units if unit.place is not None and unit.shape == shape]
    own = [unit for unit in form.units if unit.place is not None and unit.shape == ()]
    measured = [unit for unit in form.units if unit.measures is not None]
    shared = [unit for unit in form.units if unit.place is None and unit.shape == () and unit not in measured]
    plain = all(not unit.is_key for unit in (*own, *shared))
    if len(arrays) + len(own) + len(shared) + len(measured) < len(form.units) or not plain:
        return "a state of other shapes"
    constants = dict(zip(form.units, _constants(closed), strict=True))
    filled = tuple(constants[unit] for unit in arrays)
    return ClassForm(form, tuple(arrays), tuple(own), tuple(shared), tuple(measured), filled)


def _constants(closed: Any) -> list[float | None]:
    """Of each result the number that it is filled with, where the trace knows it."""
    jaxpr = closed.jaxpr
    known: dict[int, Any] = {}
    for eqn in jaxpr.eqns:
        if eqn.primitive.name in ("broadcast_in_dim", "convert_element_type", "copy"):
            (source,) = eqn.invars
            value = source.val if isinstance(source, Literal) else known.get(id(source))
            if value is not None:
                known[id(eqn.outvars[0])] = value
    found = [var.val if isinstance(var, Literal) else known.get(id(var)) for var in jaxpr.outvars]
    return [None if value is None or np.ndim(value) else complex(value).real for value in found]


class Whole(_Keyed):
    """Any recipe, on parameters in their own shapes.

    Args:
        binding: what to run.
        classes: of the groups.
        keys: of each group's parameters.
        given: what goes beside.
    """

    def __init__(
        self, binding: Binding, classes: Sequence[ProgramClass], keys: Sequence[tuple[str | int, ...]], given: Given
    ) -> None:
        self._binding, self._classes, self._keys, self._given = binding, tuple(classes), tuple(keys), given
        self._key = binding.key, self._classes, self._keys, given

    def run(
        self, shared: Any, donated: Any, given: Any, own: Any, *, apart: bool, alone: bool, measure: bool, cpu: bool
    ) -> _segments.Run:
        """The update: new parameters and the state's leaves. What it is like is among these."""
        del apart, measure, cpu, donated, own
        numbers, due, *trees = given
        flat, treedef = jax.tree.flatten(trees)
        shapes = [jax.ShapeDtypeStruct(x.shape, x.dtype) for x in flat]
        counts = shared.shape[0], numbers.shape[0], due.shape[0]
        found, structure = self.trace(counts, treedef, shapes, totals=not alone)
        scalars = [array[i] for array in (shared, numbers, due) for i in range(array.shape[0])]
        leaves = yield from _segments.whole(found, [*scalars, *flat])
        return _segments.Result(structure.unflatten(leaves), [])

    def trace(
        self, counts: tuple[int, int, int], treedef: Any, leaves: Sequence[Any], *, totals: bool
    ) -> tuple[Traced, Any]:
        """The update as traced, and the structure of its results: new parameters and state.

        Args:
            counts: numbers for all, of the groups, and flags of parameters that are due, none where all are.
            treedef: of gradients, parameters and state.
            leaves: theirs.
            totals: whether there are other parts, which totals are of, too.
        """
        shared, numbers, due = counts
        structure = None

        def update(shared: list[Any], own: list[Any], arrays: list[Any]) -> Any:
            nonlocal structure
            grads, params, state = treedef.unflatten(arrays)
            tx = self.build(own[:numbers])
            own_due = own[numbers:]
            old_params, old = self._tree(params), state
            full = self._given.unscale(self._tree(grads), shared)
            results = update_params(self._binding, tx, full, old, old_params, self._given.extra(shared))
            new_params, new = results
            if own_due:
                new_params, new = self._select(own_due, (new_params, new), (old_params, old))
            leaves, structure = jax.tree.flatten((new_params, new))
            return leaves, [], [], []

        found = _segments.trace(update, shared, numbers + due, leaves, by_rows=False, totals=totals)
        return found, structure

    def build(self, numbers: Sequence[Any]) -> GradientTransformationExtraArgs:
        """The transformation of all groups."""
        groups, start = [], 0
        for found in self._classes:
            groups.append(found.fill([weak(number) for number in numbers[start : start + found.size]]))
            start += found.size
        return self._binding.build(groups)

    def init(self, numbers: Any, params: Sequence[Any]) -> PyTree:
        """A new state."""
        tx = self.build([numbers[i] for i in range(numbers.shape[0])])
        return jax.tree.map(jnp.array, with_step_per_leaf(tx.init(self._tree(params))))

    def _tree(self, leaves: Sequence[Any]) -> PerGroup:
        rest = iter(leaves)
        return PerGroup(GroupLeaves(i, keys, [next(rest) for _ in keys]) for i, keys in enumerate(self._keys))

    def _select(self, due: Sequence[Any], new: PyTree, old: PyTree) -> PyTree:
        """The new values of the parameters that are due; of what is kept once all new values."""
        flags = {
            (i, key): flag != 0
            for (i, key), flag in zip(((i, key) for i, keys in enumerate(self._keys) for key in keys), due, strict=True)
        }

        def choose(fresh: Any, kept: Any) -> Any:
            if not isinstance(fresh, GroupLeaves):
                return fresh
            values = (
                jax.tree.map(functools.partial(jnp.where, flags[fresh.group, key]), value, before)
                for (key, value), before in zip(fresh.items(), kept.values, strict=True)
            )
            return GroupLeaves(fresh.group, fresh.keys, values)

        return jax.tree.map(choose, new, old, is_leaf=lambda node: isinstance(node, GroupLeaves))


def update_params(
    binding: Binding,
    tx: GradientTransformationExtraArgs,
    grads: PyTree,
    state: PyTree,
    params: PyTree,
    extra: dict[str, Any],
) -> tuple[PyTree, PyTree]:
    """New parameters and state, in the dtypes of the old ones."""
    try:
        updates, new_state = tx.update(widened(grads), state, params, **extra)
    except TypeError as error:
        if "required keyword-only argument" not in str(error):
            raise
        raise TypeError(
            f"TorchBridge: {binding.name} needs value, the loss; call step(closure) with a closure that returns it"
        ) from error
    # A transformation that is careless with dtypes (float32 moments for bfloat16 parameters after one update) must not
    # change what its state is made of.
    new_state = jax.tree.map(lambda new, old: new.astype(old.dtype), new_state, state)
    return jax.tree.map(_new_value, updates, params, is_leaf=is_rows), new_state


def _new_value(update: Any, param: Any) -> Any:
    """The new parameter; or the update itself, where it is dense and of the parameter only some rows are here."""
    return update if is_rows(param) and not is_rows(update) else apply_updates(param, update)


def _unscale(grad: jax.Array, scale: jax.Array) -> jax.Array:
    """A gradient without the scale of its loss, in float32 at least, since half precision is what it was scaled for."""
    if not jnp.issubdtype(grad.dtype, jnp.inexact):
        return grad
    return widened(grad) * (1 / scale).astype(jnp.promote_types(grad.real.dtype, jnp.float32))


def _build(binding: Binding, found: ProgramClass, numbers: Sequence[Any]) -> GradientTransformationExtraArgs:
    return binding.build([found.fill([weak(number) for number in numbers])])


def _as_groups(array: Any) -> PerGroup:
    return PerGroup([GroupLeaves(0, (0,), [array])])


def _join(
    form: ClassForm, arrays: Sequence[Any], numbers: Sequence[Any], shared: Sequence[Any], *, wide: bool
) -> PyTree:
    """The state of one parameter; numbers come as float64."""

    def dtype(unit: Unit) -> Any:
        return jnp.float64 if wide and unit.dtype == jnp.float32 else unit.dtype

    leaves = dict(zip(form.arrays, arrays, strict=True))
    for units, values in ((form.numbers, numbers), (form.shared, shared)):
        leaves.update((unit, jnp.asarray(value).astype(dtype(unit))) for unit, value in zip(units, values, strict=True))
    leaves.update((unit, jnp.zeros((), unit.dtype)) for unit in form.measured)
    return form.form.treedef.unflatten([leaves[unit] for unit in form.form.units])


Recipe = Elementwise | Whole
