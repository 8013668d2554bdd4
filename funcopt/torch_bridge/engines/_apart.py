"""A computation whose results share nothing but the arguments: what XLA:CPU can make one loop of, see `_fusion`.

XLA merges loops over the same arrays, but none that need each other's result or an intermediate in common. So what two
results have in common is computed once for each, from arguments behind a barrier of its own (`optimization_barrier`),
or XLA would find that it is the same and share it again.
"""

import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
from jax import lax
from jax.extend.core import ClosedJaxpr, Jaxpr, JaxprEqn, Literal, Var, jaxpr_as_fun

from funcopt.rule import PyTree


def compute_apart(fun: Callable[..., PyTree], label: Callable[[PyTree], PyTree], *arguments: PyTree) -> PyTree:
    """`fun(*arguments)`, where arrays with different labels, or of different parameters, share nothing but arguments.

    Scalars are computed once. Each parameter has those that it needs packed into a small array of its own, so that a
    loop has few arguments, beyond some number of which XLA merges no more; and so that loops of different parameters
    share none, or XLA would merge them, too, into loops over more arrays than a core reads ahead.

    Args:
        fun: the computation; traced once.
        label: gives, for the results' shapes, a tree of integers like them.
        arguments: trees of arrays.
    """
    traced, shapes = jax.make_jaxpr(fun, return_shape=True)(*arguments)
    jaxpr, leaves = traced.jaxpr, jax.tree.leaves(arguments)
    labels = dict(zip(map(id, jaxpr.outvars), jax.tree.leaves(label(shapes)), strict=True))
    parts = _parts(jaxpr)
    needed = labels.keys() | {id(var) for eqns in parts for eqn in eqns for var in eqn.invars}
    scalars = [var for eqn in jaxpr.eqns for var in eqn.outvars if id(var) in needed and not _is_array(var)]
    known = dict(zip(map(id, [*jaxpr.constvars, *jaxpr.invars]), [*traced.consts, *leaves], strict=True))
    values = jaxpr_as_fun(traced.replace(jaxpr=jaxpr.replace(outvars=scalars)))(*leaves)
    known.update(zip(map(id, scalars), values, strict=True))
    for eqns in parts:
        known.update(_results(jaxpr, eqns, known, labels))
    results = [var.val if isinstance(var, Literal) else known[id(var)] for var in jaxpr.outvars]
    return jax.tree.structure(shapes).unflatten(results)


def _parts(jaxpr: Jaxpr) -> Iterable[list[JaxprEqn]]:
    """The equations that lead to the arrays among the results, in parts that have no array in common."""
    eqns = _leading_to({id(var) for var in jaxpr.outvars if _is_array(var)}, jaxpr.eqns)
    same: dict[int, int] = {}  # from an array to another one of its part, or itself

    def representative(array: int) -> int:
        while same.setdefault(array, array) != array:
            array = same[array]
        return array

    for eqn in eqns:
        first, *others = (id(var) for var in (*eqn.outvars, *eqn.invars) if _is_array(var))
        for other in others:
            same[representative(other)] = representative(first)
    parts: dict[int, list[JaxprEqn]] = {}
    for eqn in eqns:
        parts.setdefault(representative(next(id(var) for var in eqn.outvars if _is_array(var))), []).append(eqn)
    return parts.values()


def _leading_to(results: set[int], eqns: Sequence[JaxprEqn]) -> list[JaxprEqn]:
    """Those equations that arrays come from, back to scalars and to arrays that none of them makes."""
    needed, found = set(results), []
    for eqn in reversed(eqns):
        if any(id(var) in needed for var in eqn.outvars):
            found.append(eqn)
            needed.update(id(var) for var in eqn.invars if _is_array(var))
    return found[::-1]


def _results(
    jaxpr: Jaxpr, eqns: list[JaxprEqn], known: Mapping[int, Any], labels: Mapping[int, int]
) -> dict[int, jax.Array]:
    """The results of a part, each computed for its label."""
    arrays, scalars = _inputs(eqns)
    # XLA would take equal barriers for one. This one is the part's own, and so is what is packed behind it; another one
    # for each label is behind the last one's.
    old, numbers = lax.optimization_barrier(([known[id(var)] for var in arrays], [known[id(var)] for var in scalars]))
    places, packed = _pack(dict(zip(map(id, scalars), numbers, strict=True)))
    by_label: dict[int, list[Var]] = {}
    for var in itertools.chain.from_iterable(eqn.outvars for eqn in eqns):
        if id(var) in labels:
            by_label.setdefault(labels[id(var)], []).append(var)
    found = {}
    for _, results in sorted(by_label.items()):
        old, packed = lax.optimization_barrier((old, packed))
        arguments = dict(zip(map(id, arrays), old, strict=True))
        own = _leading_to(set(map(id, results)), eqns)
        own_arrays, own_scalars = _inputs(own)
        part = jaxpr.replace(constvars=[], invars=[*own_arrays, *own_scalars], outvars=results, eqns=own)
        values = jaxpr_as_fun(ClosedJaxpr(part, []))(
            *(arguments[id(var)] for var in own_arrays),
            *(_unpack(packed, places[id(var)]) for var in own_scalars),
        )
        found.update(zip(map(id, results), values, strict=True))
    return found


def _inputs(eqns: Sequence[JaxprEqn]) -> tuple[list[Var], list[Var]]:
    """What equations need and do not make: arrays, and scalars."""
    made = {id(var) for eqn in eqns for var in eqn.outvars}
    used = {id(var): var for eqn in eqns for var in eqn.invars if not isinstance(var, Literal)}
    inputs = [var for key, var in used.items() if key not in made]
    return [var for var in inputs if _is_array(var)], [var for var in inputs if not _is_array(var)]


Place: TypeAlias = tuple[Any, int]
"""Of a packed scalar: its dtype, and its index among the scalars of that dtype."""


def _pack(scalars: Mapping[int, jax.Array]) -> tuple[dict[int, Place], dict[Any, jax.Array]]:
    """The scalars' places, and one array of those of each dtype."""
    places: dict[int, Place] = {}
    by_dtype: dict[Any, list[jax.Array]] = {}
    for key, scalar in scalars.items():
        own = by_dtype.setdefault(scalar.dtype, [])
        places[key] = scalar.dtype, len(own)
        own.append(scalar)
    return places, {dtype: jnp.stack(own) for dtype, own in by_dtype.items()}


def _unpack(packed: Mapping[Any, jax.Array], place: Place) -> jax.Array:
    dtype, index = place
    return lax.index_in_dim(packed[dtype], index, keepdims=False)


def _is_array(var: Any) -> bool:
    return getattr(var.aval, "ndim", 0) > 0
