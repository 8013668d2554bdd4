"""A computation whose results share nothing but the arguments: what XLA:CPU can make one loop of, see `_fusion`.

XLA merges loops over the same arrays, but none that need each other's result or an intermediate in common. So what two
results have in common is computed once for each, from arguments behind a barrier of its own (`optimization_barrier`),
or XLA would find that it is the same and share it again.
"""

import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.extend.core import ClosedJaxpr, Jaxpr, JaxprEqn, Literal, jaxpr_as_fun

from funcopt._base import PyTree


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
    """The equations that make the arrays among the results of other arrays, in parts that have no array in common."""
    needed = {id(var) for var in jaxpr.outvars if _is_array(var)}
    same: dict[int, int] = {}  # from an array to another one of its part, or itself

    def representative(array: int) -> int:
        while same.setdefault(array, array) != array:
            array = same[array]
        return array

    eqns = []
    for eqn in reversed(jaxpr.eqns):
        if any(id(var) in needed for var in eqn.outvars):
            eqns.append(eqn)
            arrays = [id(var) for var in (*eqn.outvars, *eqn.invars) if _is_array(var)]
            needed.update(arrays)
            for array in arrays:
                same[representative(array)] = representative(arrays[0])
    parts: dict[int, list[JaxprEqn]] = {}
    for eqn in reversed(eqns):
        parts.setdefault(representative(next(id(var) for var in eqn.outvars if _is_array(var))), []).append(eqn)
    return parts.values()


def _results(
    jaxpr: Jaxpr, eqns: list[JaxprEqn], known: Mapping[int, Any], labels: Mapping[int, int]
) -> dict[int, jax.Array]:
    """The results of a part, each computed for its label."""
    made = {id(var): var for eqn in eqns for var in eqn.outvars}
    used = {id(var): var for eqn in eqns for var in eqn.invars if id(var) not in made and not isinstance(var, Literal)}
    arrays = [key for key, var in used.items() if _is_array(var)]
    scalars = [key for key, var in used.items() if not _is_array(var)]
    results = [key for key in made if key in labels]
    invars, outvars = [used[key] for key in (*arrays, *scalars)], [made[key] for key in results]
    evaluate = jaxpr_as_fun(ClosedJaxpr(jaxpr.replace(constvars=[], invars=invars, outvars=outvars, eqns=eqns), []))

    # XLA would take equal barriers for one. This one is the part's own, and so is what is packed behind it; another one
    # for each label is behind the last one's.
    old, numbers = lax.optimization_barrier(([known[key] for key in arrays], [known[key] for key in scalars]))
    packed = _pack(numbers)
    found = {}
    for label in sorted({labels[key] for key in results}):
        old, packed = lax.optimization_barrier((old, packed))
        own = evaluate(*old, *_unpack(packed, numbers))
        found.update((key, value) for key, value in zip(results, own, strict=True) if labels[key] == label)
    return found


def _pack(scalars: Sequence[jax.Array]) -> dict[Any, jax.Array]:
    """One array of the scalars of each dtype."""
    by_dtype: dict[Any, list[jax.Array]] = {}
    for scalar in scalars:
        by_dtype.setdefault(scalar.dtype, []).append(scalar)
    return {dtype: jnp.stack(own) for dtype, own in by_dtype.items()}


def _unpack(packed: Mapping[Any, jax.Array], scalars: Sequence[jax.Array]) -> list[jax.Array]:
    """The scalars that were packed."""
    places = {dtype: itertools.count() for dtype in packed}
    return [lax.index_in_dim(packed[x.dtype], next(places[x.dtype]), keepdims=False) for x in scalars]


def _is_array(var: Any) -> bool:
    return getattr(var.aval, "ndim", 0) > 0
