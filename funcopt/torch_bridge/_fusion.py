"""One loop for all results of an update on the CPU, in place of one for each.

By itself XLA:CPU computes every result in a loop of its own. AdamW then moves 40 bytes per parameter where 28 would do,
and where one loop reads what another one replaces XLA copies that first, into new memory. Its pass that merges loops
(`xla_cpu_use_multi_output_fusion`) is off by default. It merges loops over the same arrays, but none that need each
other's result or an intermediate in common. So an update is *taken apart* (`apart`): each result is computed from the
old values alone, in a way that XLA cannot share again. And it is *compiled with that pass* (`compile_merging`), which
concerns this one program. Apart and merged, AdamW moves its 28 bytes, and clip + AdamW + EMA 40 of 56; apart and not
merged, an update would be several times slower, so what came of it is looked at (`moves_little`).

`XLA_FLAGS=--xla_disable_hlo_passes=cpu_multi_output_fusion` keeps XLA from merging anything.
"""

import itertools
from collections.abc import Callable
from typing import Any

import jax
from jax import lax
from jax.extend.core import jaxpr_as_fun

from funcopt._base import PyTree

_PASS = b"xla_cpu_use_multi_output_fusion"

FEW = 1.25
"""Bytes that a merged update may move, relative to each argument read and each result written once. A global norm reads
the gradients once more; loops that did not merge move 1.4 times as much at least."""


def apart(fun: Callable[..., PyTree], label: Callable[[PyTree], PyTree], *arguments: PyTree) -> PyTree:
    """`fun(*arguments)`, where arrays with different labels have no intermediate array in common.

    Scalars are computed once for all. So none is computed inside of a loop, which merges only where it has few
    arguments; and the arrays that a global norm is made of are no others' intermediates either.

    Args:
        fun: the computation; traced once.
        label: gives, for the results' shapes, a tree of integers like them, from 0 on without gaps.
        arguments: trees of arrays.
    """
    traced, shapes = jax.make_jaxpr(fun, return_shape=True)(*arguments)
    jaxpr, labels = traced.jaxpr, jax.tree.leaves(label(shapes))
    arrays = [eqn for eqn in jaxpr.eqns if not _is_scalar(eqn)]
    needed = set(map(id, itertools.chain(jaxpr.outvars, *(eqn.invars for eqn in arrays))))
    scalars = [var for eqn in jaxpr.eqns if _is_scalar(eqn) for var in eqn.outvars if id(var) in needed]
    scalars_of = jaxpr_as_fun(traced.replace(jaxpr=jaxpr.replace(outvars=scalars)))
    results_of = jaxpr_as_fun(traced.replace(jaxpr=jaxpr.replace(invars=[*jaxpr.invars, *scalars], eqns=arrays)))
    leaves = jax.tree.leaves(arguments)
    known = scalars_of(*leaves)
    results: list[Any] = [None] * len(labels)
    for i in range(max(labels, default=0) + 1):
        # Behind one more barrier each time: XLA would take equal barriers for one.
        leaves = lax.optimization_barrier(leaves)
        own = results_of(*leaves, *known)
        results = [new if own_label == i else old for own_label, old, new in zip(labels, results, own, strict=True)]
    return jax.tree.structure(shapes).unflatten(results)


def _is_scalar(eqn: Any) -> bool:
    """Whether an equation has no array as a result; none at all has one that is there for its effect."""
    return not any(var.aval.ndim for var in eqn.outvars)


def compile_merging(lowered: jax.stages.Lowered) -> jax.stages.Compiled:
    """Compiles a program for the CPU with the pass that merges loops; without it where JAX gives no access to it.

    The pass is an option of XLA's that JAX's `compiler_options` cannot express (its field is a map). It is written into
    the serialized options on their way from JAX to XLA.
    """
    arguments = getattr(lowered._lowering, "compile_args", {})
    if "backend" in arguments:
        arguments["backend"] = _MergingClient(arguments["backend"])
    return lowered.compile()


class _MergingClient:
    """A client of XLA that compiles with the pass."""

    def __init__(self, client: Any) -> None:
        self._client = client

    def __getattr__(self, name: str) -> Any:
        return getattr(self._client, name)

    def compile_and_load(self, *arguments: Any, compile_options: Any, **further: Any) -> Any:
        # CompileOptionsProto.executable_build_options.debug_options.xla_backend_extra_options, an entry of the map.
        # What follows a serialized message is merged into it.
        option = _field(3, _field(3, _field(500, _field(1, _PASS) + _field(2, b"true"))))
        merging = compile_options.ParseFromString(compile_options.SerializeAsString() + option)
        return self._client.compile_and_load(*arguments, compile_options=merging, **further)


def _field(number: int, content: bytes) -> bytes:
    """A field of a protocol buffer with content of a length."""
    return _varint(number << 3 | 2) + _varint(len(content)) + content


def _varint(value: int) -> bytes:
    low, high = value & 0x7F, value >> 7
    return bytes([low | 0x80]) + _varint(high) if high else bytes([low])


def moves_little(program: jax.stages.Compiled) -> bool:
    """Whether a program hardly moves more bytes than its arguments and results have."""
    memory: Any = program.memory_analysis()
    return bytes_moved(program) <= FEW * (memory.argument_size_in_bytes + memory.output_size_in_bytes)


def bytes_moved(program: jax.stages.Compiled) -> float:
    """The bytes that a program reads and writes, as XLA counts them."""
    costs: Any = program.cost_analysis()
    return costs["bytes accessed"]
