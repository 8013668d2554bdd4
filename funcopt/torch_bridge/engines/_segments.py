"""A recipe for one array with plain numbers, run on many arrays that have numbers of their own.

Parameters that are joined are rows of few elements. A *segment* is the rows of one of them. The recipe is traced once,
for one row with scalars; then what it computes from scalars alone is computed once for each segment, and what it does
to elements for all rows at once, each with its segment's results. So the number of groups, and of parameters, is a size
and no structure.

What crosses arrays is a rule's declared total. Where the trace comes to one the run stops, and goes on with what all
other parts have found, too: a run is a generator that yields totals and is sent the joined ones.
"""

import functools
import math
from collections.abc import Callable, Generator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.extend.core import ClosedJaxpr, Jaxpr, JaxprEqn, Literal, Primitive, Var, jaxpr_as_fun

from funcopt._lift import REDUCE
from funcopt.torch_bridge.engines._apart import compute_apart

Total = tuple[list[jax.Array], Callable[[Any, Any], Any]]
"""What a part adds to a total: its leaves, and what joins two of them."""

_reduce_p: Any = Primitive("funcopt_total")
_reduce_p.multiple_results = True
_reduce_p.def_abstract_eval(lambda *avals, join: avals)

_NEUTRAL = {"reduce_sum": 0, "reduce_max": -jnp.inf, "reduce_min": jnp.inf}
"""What an element that is only there to fill a row counts as."""

_ROWS_OF = {"reduce_sum": jnp.sum, "reduce_max": jnp.max, "reduce_min": jnp.min}
JOIN = {jnp.add: "reduce_sum", jnp.maximum: "reduce_max", jnp.minimum: "reduce_min"}

KEEP_ELEMENTS_APART = frozenset(
    "abs acos acosh add add_any and asin asinh atan atan2 atanh broadcast_in_dim cbrt ceil clamp complex concatenate "  # noqa: SIM905
    "conj convert_element_type copy cos cosh digamma div eq erf erf_inv erfc exp exp2 expand_dims expm1 floor ge gt "
    "imag integer_pow is_finite le lgamma log log1p logistic lt max min mul ne neg nextafter not optimization_barrier "
    "or pow real reduce_precision rem reshape round rsqrt select_n sign sin sinh slice split sqrt square squeeze "
    "stop_gradient sub tan tanh xor".split()
)
KEEP_ZERO = frozenset(
    "abs add add_any broadcast_in_dim complex concatenate convert_element_type copy imag max min mul neg real sign "  # noqa: SIM905
    "slice square squeeze sub".split()
)
"""What makes zeros of zeros."""

_KEEP_PARTS = frozenset({"convert_element_type", "copy", "reshape", "squeeze"})
"""What may be done to a total before it is joined."""

_CALLS = frozenset({"jit", "pjit", "closed_call", "core_call", "custom_jvp_call", "custom_vjp_call", "remat2"})


class NotByRows(Exception):  # noqa: N818  # not an error: there is another way
    """A recipe does more than it declares, and has to see each parameter as it is."""


class Traced(NamedTuple):
    """A recipe `(numbers for all, own numbers, arrays) -> (arrays, own numbers, numbers for all, measured)`, traced.

    What is measured is no state: numbers, and sums of elements of a parameter, which nothing joins.
    """

    closed: ClosedJaxpr
    inputs: tuple[int, int, int]  # how many there are of each
    outputs: tuple[int, int, int, int]


def trace(
    fn: Callable[..., Any],
    shared: int,
    own: int,
    arrays: Sequence[Any],
    *,
    by_rows: bool = True,
    totals: bool = True,
) -> Traced:
    """Traces `fn(shared, own, arrays)`, three lists, of which the first two are of float64 scalars.

    Args:
        fn: the recipe; returns four lists.
        shared: how many numbers are the same for all arrays.
        own: how many an array has of its own.
        arrays: what stands for the arrays.
        by_rows: whether the arrays are rows, or flat, of one size.
        totals: whether there are other parts, which totals are of, too.

    Raises:
        NotByRows: where it needs more of an array than the element.
    """
    numbers = [jax.ShapeDtypeStruct((), jnp.float64)] * (shared + own)

    def flat(*leaves: Any) -> Any:
        return fn(list(leaves[:shared]), list(leaves[shared : shared + own]), list(leaves[shared + own :]))

    token = REDUCE.set(_total_of_all if totals else None)
    try:
        closed, shapes = jax.make_jaxpr(flat, return_shape=True)(*numbers, *arrays)
    finally:
        REDUCE.reset(token)
    closed = jax.make_jaxpr(functools.partial(_evaluate, closed))(*numbers, *arrays)
    first, second, third, fourth = map(len, shapes)
    traced = Traced(closed, (shared, own, len(arrays)), (first, second, third, fourth))
    if by_rows:
        _check(traced, arrays[0].shape[0])
    return traced


def _total_of_all(total: Any, join: Callable[[Any, Any], Any]) -> Any:
    leaves, treedef = jax.tree.flatten(total)
    return treedef.unflatten(_reduce_p.bind(*map(jnp.asarray, leaves), join=join))


def _evaluate(closed: ClosedJaxpr, *arguments: Any) -> list[Any]:
    """Runs equation by equation, also those of functions that are called."""
    jaxpr = closed.jaxpr
    known = dict(zip(map(id, [*jaxpr.constvars, *jaxpr.invars]), [*closed.consts, *arguments], strict=True))
    for eqn in jaxpr.eqns:
        values = [_read(var, known) for var in eqn.invars]
        inner = eqn.params.get("jaxpr") or eqn.params.get("call_jaxpr")
        if eqn.primitive.name in _CALLS and isinstance(inner, ClosedJaxpr):
            results = _evaluate(inner, *values)
        else:
            results = _bind(jaxpr, eqn, values)
        known.update(zip(map(id, eqn.outvars), results, strict=True))
    return [_read(var, known) for var in jaxpr.outvars]


def _bind(jaxpr: Jaxpr, eqn: JaxprEqn, values: Sequence[Any]) -> Sequence[Any]:
    """The results of one equation of a jaxpr."""
    own = {id(v): (v, value) for v, value in zip(eqn.invars, values, strict=True) if not isinstance(v, Literal)}
    alone = jaxpr.replace(constvars=[], invars=[var for var, _ in own.values()], outvars=eqn.outvars, eqns=[eqn])
    return jaxpr_as_fun(ClosedJaxpr(alone, []))(*(value for _, value in own.values()))


def _read(var: Any, known: Mapping[int, Any]) -> Any:
    return var.val if isinstance(var, Literal) else known[id(var)]


def _ndim(var: Any) -> int:
    return getattr(var.aval, "ndim", 0)


SHARED, OWN, ROW = 0, 1, 2
"""What a value depends on: on numbers for all alone, on those of a segment, or on elements; arrays are always ROW."""


def _depends(traced: Traced) -> dict[int, int]:
    jaxpr = traced.closed.jaxpr
    shared, own, _ = traced.inputs
    found = {id(var): SHARED for var in jaxpr.constvars}
    for i, var in enumerate(jaxpr.invars):
        found[id(var)] = SHARED if i < shared else OWN if i < shared + own else ROW
    for eqn in jaxpr.eqns:
        depends = max((found[id(var)] for var in eqn.invars if not isinstance(var, Literal)), default=SHARED)
        for var in eqn.outvars:
            found[id(var)] = SHARED if eqn.primitive is _reduce_p else ROW if _ndim(var) else depends
    return found


def _check(traced: Traced, width: int) -> None:
    """Refuses what mixes the elements of an array other than for a total."""
    jaxpr, depends = traced.closed.jaxpr, _depends(traced)

    def is_partial(var: Any) -> bool:
        return not isinstance(var, Literal) and depends[id(var)] == ROW and not _ndim(var)

    for eqn in jaxpr.eqns:
        name = eqn.primitive.name
        rows = [var for var in (*eqn.invars, *eqn.outvars) if _ndim(var)]
        of_elements = any(not isinstance(var, Literal) and depends[id(var)] == ROW for var in eqn.invars)
        if eqn.effects and (of_elements or any(depends.get(id(var), 0) == OWN for var in eqn.invars)):
            raise NotByRows(f"{name} of an array")
        if eqn.primitive is _reduce_p:
            if eqn.params["join"] not in JOIN:
                raise NotByRows("totals that are neither sums nor extrema")
            continue
        if not rows:
            # A parameter has several rows: what is done to a part of a total has to be done to all of it.
            if any(map(is_partial, eqn.invars)) and name not in _KEEP_PARTS:
                raise NotByRows(f"{name} of a part of a total")
            continue
        to_scalar = all(_ndim(var) == 0 for var in eqn.outvars)
        if to_scalar:
            if name not in _NEUTRAL:
                raise NotByRows(f"{name} of an array")
            continue
        inner = name in _ROWS_OF and 0 not in eqn.params["axes"]  # of the two parts of a complex number
        lanes = all(var.aval.shape[0] == width for var in rows)
        if not lanes or not (inner or name in KEEP_ELEMENTS_APART) or any(map(is_partial, eqn.invars)):
            raise NotByRows(f"{name} of an array")
    arrays, own, shared, _ = traced.outputs
    if any(map(is_partial, jaxpr.outvars[arrays : arrays + own + shared])):
        raise NotByRows("a sum of an array in the state")


def flattened(traced: Traced, shape: tuple[int, ...]) -> Traced:
    """A recipe for one parameter of a shape, on its flat elements.

    Raises:
        NotByRows: unless it is made of operations on elements, and of sums and extrema of all of them.
    """
    size, jaxpr = math.prod(shape), traced.closed.jaxpr

    def flat(*arguments: Any) -> list[Any]:
        known = dict(zip(map(id, [*jaxpr.constvars, *jaxpr.invars]), [*traced.closed.consts, *arguments], strict=True))
        for eqn in jaxpr.eqns:
            name, arrays = eqn.primitive.name, [var for var in (*eqn.invars, *eqn.outvars) if _ndim(var)]
            values = [_read(var, known) for var in eqn.invars]
            if any(var.aval.shape != shape for var in arrays) or eqn.effects:
                raise NotByRows(f"{name} of an array")
            if arrays and name in _NEUTRAL:
                results = [eqn.primitive.bind(*values, **{**eqn.params, "axes": (0,)})]
            elif arrays and name in ("broadcast_in_dim", "reshape"):
                results = [jnp.broadcast_to(values[0], (size,))]
            elif arrays and name not in KEEP_ELEMENTS_APART:
                raise NotByRows(f"{name} of an array")
            else:
                results = _bind(jaxpr, eqn, values)
            known.update(zip(map(id, eqn.outvars), results, strict=True))
        return [_read(var, known) for var in jaxpr.outvars]

    arguments = [jax.ShapeDtypeStruct((size,) if _ndim(var) else (), var.aval.dtype) for var in jaxpr.invars]
    return traced._replace(closed=jax.make_jaxpr(flat)(*arguments))


class Rows(NamedTuple):
    """Where joined parameters are."""

    segment: jax.Array  # int32 (rows,)
    filled: jax.Array  # int32 (rows,): elements of a row that are a parameter's


class Result(NamedTuple):
    arrays: Any  # a tree
    numbers: list[jax.Array]  # of the segments, float64 (segments, n), then those kept for all; or what is measured


Run = Generator[Total, list[jax.Array], Result]


def run(
    traced: Traced,
    shared: jax.Array,
    own: jax.Array,
    arrays: Sequence[jax.Array],
    rows: Rows | None,
    due: jax.Array | None,
    *,
    apart: bool,
    by_shape: bool = False,
    measure: bool = False,
    chunk: Traced | None = None,
) -> Run:
    """Runs a recipe on the arrays of all segments.

    Args:
        traced: the recipe.
        shared: float64 (n,), numbers for all.
        own: float64 (segments, n), the segments' numbers.
        arrays: (rows, width); without `rows` one parameter's flat arrays.
        rows: what belongs to which segment; None if there is one, and no rows.
        due: float64 (segments,), 0 for segments that count for no total; None if all do.
        apart: whether results share no intermediates, see `_apart`.
        by_shape: whether each row is all of a parameter, and each segment one row.
        measure: whether the result is what the update is like, in place of the update.
        chunk: the recipe on chunks in which a single parameter is measured; None to measure it as a whole.
    """
    jaxpr, depends = traced.closed.jaxpr, _depends(traced)
    mapped = rows is not None
    known: dict[int, Any] = dict(zip(map(id, jaxpr.constvars), traced.closed.consts, strict=True))
    columns = [own[:, i] if mapped else own[0, i] for i in range(own.shape[1])]
    values = [*(shared[i] for i in range(shared.shape[0])), *columns, *arrays]
    known.update(zip(map(id, jaxpr.invars), values, strict=True))
    filled, zeros = None, _zero_where_nothing_is(traced)
    if rows is not None:
        filled = rows.filled if due is None else jnp.where(due[rows.segment] != 0, rows.filled, 0)

    def of_rows(var: Any, values: Mapping[int, Any], depending: Mapping[int, int]) -> tuple[Any, int | None]:
        value = _read(var, values)
        kind = SHARED if isinstance(var, Literal) else depending[id(var)]
        if kind == OWN and rows is not None:
            return value[rows.segment], 0
        return value, 0 if kind == ROW and mapped and not _is_constant(var, jaxpr) else None

    def elements(eqn: JaxprEqn, values: Mapping[int, Any], depending: Mapping[int, int]) -> Sequence[Any]:
        given = [of_rows(var, values, depending) for var in eqn.invars]
        operands, axes = [value for value, _ in given], tuple(axis for _, axis in given)
        name = eqn.primitive.name
        reduces = filled is not None and name in _NEUTRAL
        if reduces and (by_shape or (name == "reduce_sum" and id(eqn.invars[0]) in zeros)):
            assert filled is not None
            (found,) = jax.vmap(lambda own: tuple(_bind(jaxpr, eqn, (own,))))(*operands)
            some = filled.reshape(-1, *[1] * (found.ndim - 1)) > 0
            return [jnp.where(some, found, _neutral(name, found.dtype))]
        if reduces and 0 in eqn.params["axes"]:
            assert filled is not None
            lanes = lax.broadcasted_iota(jnp.int32, operands[0].shape[:2], 1) < filled[:, None]
            lanes = lanes.reshape(lanes.shape + (1,) * (operands[0].ndim - 2))
            operands = [jnp.where(lanes, operands[0], _neutral(name, operands[0].dtype))]
        if not mapped or all(axis is None for axis in axes):
            results = _bind(jaxpr, eqn, operands)
            return results if not mapped else [jnp.broadcast_to(x, (arrays[0].shape[0], *x.shape)) for x in results]
        return jax.vmap(lambda *own: tuple(_bind(jaxpr, eqn, own)), in_axes=axes)(*operands)

    count, further, once, _ = traced.outputs
    outputs, measured = jaxpr.outvars, jaxpr.outvars[count + further + once :]
    partial = _leading_to_numbers(jaxpr.eqns, depends, outputs[count : count + further + once])
    for eqn in jaxpr.eqns:
        kinds = [depends[id(var)] for var in eqn.invars if not isinstance(var, Literal)]
        if eqn.primitive is _reduce_p:
            own_total = []
            for var in eqn.invars:
                value, axis = of_rows(var, known, depends)
                own_total.append(value if axis is None else _ROWS_OF[JOIN[eqn.params["join"]]](value, axis=0))
            results = yield own_total, eqn.params["join"]
        elif any(depends[id(var)] == ROW for var in eqn.outvars) or ROW in kinds:
            if id(eqn) not in partial:
                continue
            results = elements(eqn, known, depends)
        elif OWN in kinds and mapped:
            axes = tuple(0 if not isinstance(var, Literal) and depends[id(var)] == OWN else None for var in eqn.invars)
            operands = [_read(var, known) for var in eqn.invars]
            results = jax.vmap(lambda *own, eqn=eqn: tuple(_bind(jaxpr, eqn, own)), in_axes=axes)(*operands)
        else:
            results = _bind(jaxpr, eqn, [_read(var, known) for var in eqn.invars])
        known.update(zip(map(id, eqn.outvars), results, strict=True))

    sums = [*{id(var): var for var in measured if not isinstance(var, Literal) and depends[id(var)] == ROW}.values()]
    results = sums if measure else outputs[:count]
    eqns = _leading_to({id(var) for var in results}, jaxpr.eqns, depends)
    used = _inputs(eqns, results)
    inputs = [var for var in used if depends[id(var)] == ROW]
    numbers = [var for var in used if depends[id(var)] != ROW]
    if mapped:
        assert rows is not None
        places, packed = _pack(numbers, known, own.shape[0])
        # Behind a barrier, or XLA would compute a segment's numbers anew for each element.
        packed = {dtype: array[rows.segment] for dtype, array in lax.optimization_barrier(packed).items()}
        given: Any = packed
    else:
        places, given = {}, [known[id(var)] for var in numbers]

    def finish(own_arrays: list[Any], given: Any) -> list[Any]:
        local = dict(zip(map(id, inputs), own_arrays, strict=True))
        local.update((id(var), known[id(var)]) for var in jaxpr.constvars)
        if mapped:
            local.update((key, given[dtype][:, i]) for key, (dtype, i) in places.items())
        else:
            local.update(zip(map(id, numbers), given, strict=True))
        # By rows a segment's number is by now one number for each row.
        depending = {key: ROW if key in places else kind for key, kind in depends.items()}
        for eqn in eqns:
            local.update(zip(map(id, eqn.outvars), elements(eqn, local, depending), strict=True))
        return [_read(var, local) for var in results]

    own_arrays, segments = [known[id(var)] for var in inputs], own.shape[0]
    if measure:
        if chunk is None or mapped or not _is_alike(traced, chunk):
            found = finish(own_arrays, given)
        else:
            found = _sums_in_chunks(traced, chunk, sums, known, arrays)
        known.update((id(var), _of_segments(x, rows, segments)) for var, x in zip(sums, found, strict=True))
        columns = [_per_segment(_read(var, known), segments) for var in measured]
        return Result([], [jnp.stack(columns, axis=1)] if columns else [])
    if apart:
        new = compute_apart(finish, lambda shapes: list(range(len(shapes))), own_arrays, given)
    else:
        new = finish(own_arrays, given)
    scalars = [_per_segment(_read(var, known), segments) for var in outputs[count : count + further]]
    first = 0 if due is None else jnp.argmax(due != 0)
    for_all = [_one(_read(var, known), first) for var in outputs[count + further : count + further + once]]
    stacked = jnp.stack(scalars, axis=1) if scalars else jnp.zeros((segments, 0))
    return Result(new, [stacked, *for_all])


def lockstep(runs: Sequence[Run]) -> list[Result]:
    """Runs all parts, each total of one joined with those of the others that come to it at the same time."""
    results: dict[int, Result] = {}
    waiting: dict[int, list[jax.Array] | None] = dict.fromkeys(range(len(runs)))
    while waiting:
        totals: dict[int, Total] = {}
        for i, sent in waiting.items():
            try:
                totals[i] = runs[i].send(sent) if sent is not None else next(runs[i])
            except StopIteration as stop:
                results[i] = stop.value
        waiting = {}
        if totals:
            _, join = next(iter(totals.values()))
            joined = [functools.reduce(join, own) for own in zip(*(own for own, _ in totals.values()), strict=True)]
            # Each part has the total in the dtype that it was traced with.
            waiting = {
                i: [x.astype(y.dtype) for x, y in zip(joined, own, strict=True)] for i, (own, _) in totals.items()
            }
    return [results[i] for i in range(len(runs))]


def whole(traced: Traced, leaves: Sequence[Any]) -> Generator[Total, list[jax.Array], list[Any]]:
    """Runs what was traced on the arrays themselves."""
    jaxpr = traced.closed.jaxpr
    known = dict(zip(map(id, [*jaxpr.constvars, *jaxpr.invars]), [*traced.closed.consts, *leaves], strict=True))
    for eqn in jaxpr.eqns:
        values = [_read(var, known) for var in eqn.invars]
        if eqn.primitive is _reduce_p:
            results = yield list(values), eqn.params["join"]
        else:
            results = _bind(jaxpr, eqn, values)
        known.update(zip(map(id, eqn.outvars), results, strict=True))
    return [_read(var, known) for var in jaxpr.outvars]


def _zero_where_nothing_is(traced: Traced) -> set[int]:
    """Arrays that are 0 where a row has no element, as the gradient is, whatever the numbers."""
    jaxpr, depends = traced.closed.jaxpr, _depends(traced)
    shared, own, _ = traced.inputs
    found = {id(jaxpr.invars[shared + own])}

    def is_number(var: Any) -> bool:
        return isinstance(var, Literal) or depends[id(var)] != ROW

    for eqn in jaxpr.eqns:
        zero = [not isinstance(var, Literal) and id(var) in found for var in eqn.invars]
        others = [var for var, is_zero in zip(eqn.invars, zero, strict=True) if not is_zero]
        name = eqn.primitive.name
        keeps = name in KEEP_ZERO or (name == "integer_pow" and eqn.params["y"] > 0)
        scaled = (name == "mul" and any(zero)) or (name == "div" and zero[0])
        if (zero and all(zero) and keeps) or (scaled and all(map(is_number, others))):
            found.update(map(id, eqn.outvars))
    return found


def _is_constant(var: Any, jaxpr: Any) -> bool:
    return isinstance(var, Literal) or any(var is const for const in jaxpr.constvars)


def _neutral(name: str, dtype: Any) -> Any:
    if jnp.issubdtype(dtype, jnp.inexact):
        return jnp.asarray(_NEUTRAL[name], dtype)
    if name == "reduce_sum":
        return jnp.zeros((), dtype)
    if dtype == jnp.bool_:
        return jnp.asarray(name == "reduce_min")
    info = jnp.iinfo(dtype)
    return jnp.asarray(info.min if name == "reduce_max" else info.max, dtype)


def _leading_to_numbers(eqns: Sequence[JaxprEqn], depends: Mapping[int, int], numbers: Sequence[Any]) -> set[int]:
    """The equations over elements that totals need, and numbers of the state."""
    needed = {id(var) for var in numbers if not isinstance(var, Literal) and depends[id(var)] == ROW}
    found: set[int] = set()
    for eqn in reversed(eqns):
        of_elements = any(depends[id(var)] == ROW for var in eqn.outvars)
        if eqn.primitive is _reduce_p or (of_elements and any(id(var) in needed for var in eqn.outvars)):
            needed.update(id(var) for var in eqn.invars if not isinstance(var, Literal) and depends[id(var)] == ROW)
            found.add(id(eqn))
    return found


def _leading_to(results: set[int], eqns: Sequence[JaxprEqn], depends: Mapping[int, int]) -> list[JaxprEqn]:
    """The equations over elements that arrays come from."""
    needed, found = set(results), []
    for eqn in reversed(eqns):
        if eqn.primitive is _reduce_p or not any(id(var) in needed for var in eqn.outvars):
            continue
        if any(depends[id(var)] == ROW for var in eqn.outvars):
            found.append(eqn)
            needed.update(id(var) for var in eqn.invars if not isinstance(var, Literal) and depends[id(var)] == ROW)
    return found[::-1]


def _inputs(eqns: Sequence[JaxprEqn], results: Sequence[Any]) -> list[Var]:
    """What equations that lead to some results need, and none of them makes."""
    made = {id(var) for eqn in eqns for var in eqn.outvars}
    read = (*(var for eqn in eqns for var in eqn.invars), *results)
    return [*{id(var): var for var in read if not isinstance(var, Literal) and id(var) not in made}.values()]


def _per_segment(value: Any, segments: int) -> jax.Array:
    return jnp.broadcast_to(jnp.asarray(value).astype(jnp.float64), (segments,))


def _sums_in_chunks(
    traced: Traced, chunk: Traced, sums: Sequence[Var], known: Mapping[int, Any], arrays: Sequence[jax.Array]
) -> list[jax.Array]:
    """Sums over a single parameter, which have a partial sum for each place of a chunk.

    XLA:CPU adds up element after element otherwise, three times as slow.

    Args:
        traced: the recipe.
        chunk: the same for fewer elements.
        sums: what to add up, variables of `traced`.
        known: values of its variables that are numbers.
        arrays: the parameter's.
    """
    jaxpr, depends = chunk.closed.jaxpr, _depends(chunk)
    same = dict(zip(map(id, _variables(traced.closed.jaxpr)), _variables(jaxpr), strict=True))
    made = {id(var): eqn for eqn in jaxpr.eqns for var in eqn.outvars}

    def summed(var: Any) -> Any:
        """The array that a sum is of."""
        eqn = made[id(var)]
        return eqn.invars[0] if eqn.primitive.name == "reduce_sum" else summed(eqn.invars[0])

    wanted = [summed(same[id(var)]) for var in sums]
    eqns = _leading_to(set(map(id, wanted)), jaxpr.eqns, depends)
    places = [var for var in _inputs(eqns, wanted) if depends[id(var)] == ROW]
    numbers = {id(same[key]): value for key, value in known.items() if key in same and depends[id(same[key])] != ROW}
    first = chunk.inputs[0] + chunk.inputs[1]
    index = {id(var): i for i, var in enumerate(jaxpr.invars[first:])}
    size, total = jaxpr.invars[first].aval.shape[0], arrays[0].shape[0]

    def add(i: Any, partial: list[jax.Array]) -> list[jax.Array]:
        # The last chunk begins before the end of the one before, and does not count what was there.
        start = jnp.minimum(i * size, total - size)
        local = dict(numbers)
        for var in places:
            local[id(var)] = lax.dynamic_slice_in_dim(arrays[index[id(var)]], start, size)
        for eqn in eqns:
            local.update(
                zip(map(id, eqn.outvars), _bind(jaxpr, eqn, [_read(v, local) for v in eqn.invars]), strict=True)
            )
        is_new = lax.iota(jnp.int32, size) >= i * size - start
        return [
            own + jnp.where(is_new.reshape(-1, *[1] * (own.ndim - 1)), local[id(var)], 0)
            for own, var in zip(partial, wanted, strict=True)
        ]

    zeros = [jnp.zeros(var.aval.shape, var.aval.dtype) for var in wanted]
    return [jnp.sum(x) for x in (lax.fori_loop(0, -(-total // size), add, zeros) if total else zeros)]


def _is_alike(traced: Traced, other: Traced) -> bool:
    """Whether two traces are one computation, on arrays of different sizes."""
    own, others = ([eqn.primitive for eqn in x.closed.jaxpr.eqns] for x in (traced, other))
    return own == others


def _variables(jaxpr: Jaxpr) -> list[Var]:
    return [*jaxpr.constvars, *jaxpr.invars, *(var for eqn in jaxpr.eqns for var in eqn.outvars)]


def _of_segments(sums: jax.Array, rows: Rows | None, segments: int) -> jax.Array:
    """Sums of rows as sums of the segments."""
    sums = sums.astype(jnp.float64)
    return sums.reshape(1) if rows is None else jax.ops.segment_sum(sums, rows.segment, segments)


def _one(value: Any, first: Any) -> jax.Array:
    value = jnp.asarray(value)
    return value if value.ndim == 0 else value[first]


def _pack(
    numbers: Sequence[Var], known: Mapping[int, Any], segments: int
) -> tuple[dict[int, tuple[Any, int]], dict[Any, jax.Array]]:
    """Where each number is, and one array (segments, n) of those of each dtype."""
    places: dict[int, tuple[Any, int]] = {}
    columns: dict[Any, list[jax.Array]] = {}
    for var in numbers:
        value = jnp.asarray(known[id(var)])
        own = columns.setdefault(str(value.dtype), [])
        places[id(var)] = str(value.dtype), len(own)
        own.append(jnp.broadcast_to(value, (segments,)))
    return places, {dtype: jnp.stack(own, axis=1) for dtype, own in columns.items()}
