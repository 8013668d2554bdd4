"""An update that JAX has traced, as a list of operations for torch.

Calls are written out, loops unrolled, both branches of a condition computed. What depends on numbers alone is NumPy's:
it is computed on the host for all parameters at once, and comes to the operations on arrays as plain numbers.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import ClosedJaxpr, Jaxpr, Literal

from funcopt.torch_bridge.engines import _random, _segments
from funcopt.torch_bridge.engines._operations import (
    MANY,
    NUMPY,
    TORCH,
    VIEWS,
    Constant,
    NotCovered,
    Op,
    Value,
    evaluate,
    is_inexact,
)

TOTAL = "funcopt_total"

HOW: dict[Any, str] = {jnp.add: "sum", jnp.maximum: "amax", jnp.minimum: "amin"}
"""How totals are joined, where that is plain."""

Operand = Value | Constant

_INNER = {
    "jit": "jaxpr",
    "pjit": "jaxpr",
    "closed_call": "call_jaxpr",
    "core_call": "call_jaxpr",
    "custom_jvp_call": "call_jaxpr",
    "custom_vjp_call": "call_jaxpr",
    "remat2": "jaxpr",
    "checkpoint": "jaxpr",
}
"""Primitives that call a function, and the parameter that it is in."""

_SAME = frozenset(
    "copy copy_p stop_gradient optimization_barrier sharding_constraint shard_alike device_put".split()  # noqa: SIM905
)
"""What returns its operands."""

_SIZED = frozenset({"concatenate", "stack", "split", "reduce_sum", "reduce_max", "reduce_min", TOTAL})
"""What needs to know how many elements there are."""

MAX_UNROLLED = 4096
"""Operations up to which a loop is written out."""


class Lowered(NamedTuple):
    """An update as operations."""

    inputs: list[Value]
    ops: list[Op]
    outputs: list[Operand]


def lower(closed: ClosedJaxpr) -> Lowered:
    """Writes a traced function out.

    Raises:
        NotCovered: if it uses a primitive that has no counterpart in torch.
    """
    ops: list[Op] = []
    avals: Sequence[Any] = closed.in_avals
    inputs = [Value(*_random.made_of(aval)) for aval in avals]
    outputs = _inline(closed.jaxpr, closed.consts, inputs, ops)
    return simplified(Lowered(inputs, ops, outputs))


def _constant(value: Any) -> Constant:
    return Constant(jax.random.key_data(value) if hasattr(value, "dtype") and _random.is_key(value.dtype) else value)


def _inline(jaxpr: Jaxpr, consts: Sequence[Any], arguments: Sequence[Operand], ops: list[Op]) -> list[Operand]:
    known: dict[Any, Operand] = dict(zip(jaxpr.constvars, map(_constant, consts), strict=True))
    known.update(zip(jaxpr.invars, arguments, strict=True))

    def read(var: Any) -> Operand:
        return Constant(np.asarray(var.val, made(var).dtype)) if isinstance(var, Literal) else known[var]

    def made(var: Any) -> Value:
        return Value(*_random.made_of(var.aval))

    for eqn in jaxpr.eqns:
        own, name = [read(var) for var in eqn.invars], eqn.primitive.name
        if name in _INNER:
            results = _inline(*_parts(eqn.params[_INNER[name]]), own, ops)
        elif name in _SAME:
            results = own
        elif name == "scan":
            results = _unroll(eqn, own, ops)
        elif name == "cond":
            results = _both(eqn, own, ops)
        elif (of_numbers := _random.written_out(eqn)) is not None:
            inner = jax.make_jaxpr(of_numbers)(*(jax.ShapeDtypeStruct(x.shape, x.dtype) for x in own))
            results = _inline(inner.jaxpr, inner.consts, own, ops)
        elif name in TORCH or name in MANY or name == TOTAL:
            values = tuple(map(made, eqn.outvars))
            if name == "convert_element_type" and is_inexact(own[0].dtype) and values[0].dtype.kind in "iu":
                name = "to_integer"
            ops.append(Op(name, tuple(own), values, eqn.params))
            if name == "sign" and values[0].dtype.kind in "fV":
                values = (Value(values[0].shape, values[0].dtype),)
                ops.append(Op("or_nan", (ops[-1].out, *own), values, {}))
            results = values
        else:
            raise NotCovered(f"JAX's primitive {name}")
        known.update(zip(eqn.outvars, results, strict=True))
    return [read(var) for var in jaxpr.outvars]


def _parts(jaxpr: Any) -> tuple[Jaxpr, Sequence[Any]]:
    return (jaxpr.jaxpr, jaxpr.consts) if isinstance(jaxpr, ClosedJaxpr) else (jaxpr, ())


def _unroll(eqn: Any, own: Sequence[Operand], ops: list[Op]) -> list[Operand]:
    params = eqn.params
    constants, carried = params["num_consts"], params["num_consts"] + params["num_carry"]
    carry, length = list(own[constants:carried]), params["length"]
    body, consts = _parts(params["jaxpr"])
    if not length or length * len(body.eqns) > MAX_UNROLLED:
        raise NotCovered(f"a loop of {length} x {len(body.eqns)} operations")
    stacked: list[list[Operand]] = []
    order = range(length - 1, -1, -1) if params["reverse"] else range(length)
    for i in order:
        items: list[Operand] = []
        for array in own[carried:]:
            row = Value((1, *array.shape[1:]), array.dtype)
            item = Value(array.shape[1:], array.dtype)
            starts = (i, *[0] * (len(array.shape) - 1))
            stops = (i + 1, *array.shape[1:])
            ops.append(
                Op("slice", (array,), (row,), {"start_indices": starts, "limit_indices": stops, "strides": None})
            )
            ops.append(Op("squeeze", (row,), (item,), {"dimensions": None}))
            items.append(item)
        results = _inline(body, consts, [*own[:constants], *carry, *items], ops)
        carry = results[: len(carry)]
        stacked.append(results[len(carry) :])
    if params["reverse"]:
        stacked.reverse()
    collected: list[Operand] = []
    for values in zip(*stacked, strict=True):
        result = Value((length, *values[0].shape), values[0].dtype)
        ops.append(Op("stack", tuple(values), (result,), {"axis": 0}))
        collected.append(result)
    return [*carry, *collected]


def _both(eqn: Any, own: Sequence[Operand], ops: list[Op]) -> list[Operand]:
    """A condition as a choice between the results of all branches: nothing has to wait for what it depends on."""
    branches = [_inline(*_parts(branch), own[1:], ops) for branch in eqn.params["branches"]]
    results: list[Operand] = []
    for cases in zip(*branches, strict=True):
        value = Value(cases[0].shape, cases[0].dtype)
        ops.append(Op("select_n", (own[0], *cases), (value,), {}))
        results.append(value)
    return results


# Passes.


def simplified(lowered: Lowered) -> Lowered:
    """Without what changes nothing, what is known beforehand, and what nobody reads."""
    known: dict[Value, Operand] = {}
    ops = []
    for op in lowered.ops:
        own = op._replace(inputs=tuple(_seen(x, known) for x in op.inputs))
        same = own.name in ("convert_element_type", "reshape", "squeeze", "broadcast_in_dim")
        first = own.inputs[0] if own.inputs else None
        same = same and not (own.name == "reshape" and own.params["dimensions"] is not None)
        if same and first is not None and (first.shape, first.dtype) == (own.out.shape, own.out.dtype):
            known[own.out] = first
        elif (kept := _times_one(own)) is not None:
            known[own.out] = kept
        elif own.inputs and own.name in NUMPY and all(isinstance(x, Constant) and not x.shape for x in own.inputs):
            with np.errstate(all="ignore"):
                known[own.out] = Constant(evaluate(own, [x.value for x in own.inputs if isinstance(x, Constant)]))
        else:
            ops.append(own)
    outputs = [_seen(x, known) for x in lowered.outputs]
    return Lowered(lowered.inputs, needed(ops, outputs), outputs)


def _times_one(op: Op) -> Operand | None:
    """What a product is, where a factor of it is 1."""
    for x, factor in (op.inputs, op.inputs[::-1]) if op.name == "mul" else ():
        if isinstance(factor, Constant) and not factor.shape and factor.value == 1 and x.shape == op.out.shape:
            return x
    return None


def _seen(x: Operand, known: Mapping[Value, Operand]) -> Operand:
    return known.get(x, x) if isinstance(x, Value) else x


def needed(ops: Sequence[Op], outputs: Iterable[Any]) -> list[Op]:
    """The operations that lead to some values."""
    used, kept = {x for x in outputs if isinstance(x, Value)}, []
    for op in reversed(ops):
        if any(x in used for x in op.outputs):
            kept.append(op)
            used.update(x for x in op.inputs if isinstance(x, Value))
    return kept[::-1]


def without_splats(ops: Sequence[Op], outputs: Sequence[Operand]) -> tuple[list[Op], list[Operand]]:
    """Numbers that are spread over an array stay numbers where all that reads them treats each element alone.

    Raises:
        NotByRows: if such an array is to be joined with others, or added up: without it nothing says how long it is.
    """
    shaped = {x for op in ops if op.name in VIEWS | _SIZED for x in op.inputs}
    known: dict[Value, Operand] = {}
    spread: set[Operand] = set()
    kept = []
    for op in ops:
        own = op._replace(inputs=tuple(_seen(x, known) for x in op.inputs))
        numbers = [not x.shape for x in own.inputs]
        if own.name in _SIZED and not spread.isdisjoint(own.inputs):
            raise _segments.NotByRows(f"{own.name} of one number for all elements")
        if not own.out.shape or not all(is_one or x in spread for is_one, x in zip(numbers, own.inputs, strict=True)):
            kept.append(own)
        elif own.out in shaped or not all(numbers):
            spread.update(own.outputs)
            kept.append(own)
        elif own.name == "broadcast_in_dim":
            known[own.out] = own.inputs[0]
        else:
            known[own.out] = Value((), own.out.dtype)
            kept.append(own._replace(outputs=(known[own.out],)))
    return kept, [_seen(x, known) for x in outputs]


class Split(NamedTuple):
    """Operations by where they are done."""

    host: list[Op]
    ops: list[Op]
    numbers: list[Value]  # what the second need of the first


def split(ops: Sequence[Op], outputs: Sequence[Operand], known: Iterable[Value]) -> Split:
    """Separates what depends on numbers alone.

    Args:
        ops: all.
        outputs: what they lead to.
        known: the numbers.
    """
    numbers, host, rest = set(known), [], []
    for op in ops:
        scalars = all(not x.shape and (isinstance(x, Constant) or x in numbers) for x in op.inputs)
        if op.inputs and scalars and not op.out.shape and op.name in NUMPY:
            host.append(op)
            numbers.update(op.outputs)
        else:
            rest.append(op)
    used = dict.fromkeys(x for op in rest for x in op.inputs if x in numbers)
    used.update(dict.fromkeys(x for x in outputs if x in numbers))
    return Split(host, rest, [x for x in used if isinstance(x, Value)])


def run_host(ops: Sequence[Op], known: dict[Value, Any]) -> dict[Value, Any]:
    """Adds the results of scalar operations to what is known."""
    with np.errstate(all="ignore"):
        for op in ops:
            known[op.out] = evaluate(op, [x.value if isinstance(x, Constant) else known[x] for x in op.inputs])
    return known


def decided(
    ops: Sequence[Op], outputs: Sequence[Operand], known: Mapping[Value, int]
) -> tuple[list[Op], list[Operand]]:
    """With the choices made that known numbers decide."""
    chosen: dict[Value, Operand] = {}
    kept = []
    for op in ops:
        own = op._replace(inputs=tuple(_seen(x, chosen) for x in op.inputs))
        which = own.inputs[0] if own.name == "select_n" else None
        if isinstance(which, Value) and which in known:
            chosen[own.out] = own.inputs[1 + known[which]]
        elif isinstance(which, Constant) and not which.shape:
            chosen[own.out] = own.inputs[1 + int(which.value)]
        else:
            kept.append(own)
    outputs = [_seen(x, chosen) for x in outputs]
    return needed(kept, outputs), outputs


def deciding(ops: Sequence[Op], numbers: Iterable[Value]) -> list[Value]:
    """The numbers that choose between arrays."""
    which = {op.inputs[0] for op in ops if op.name == "select_n"}
    return [x for x in numbers if x in which]


def fused(ops: Sequence[Op], outputs: Sequence[Operand], is_number: Callable[[Operand], bool]) -> list[Op]:
    """With torch's operations for what several of JAX's do: one pass over memory, and rounded as torch does."""
    made = {op.out: op for op in ops}

    def source(x: Operand, name: str) -> Op | None:
        """The operation that a value comes from. Others may read it, too: what is measured changes no bit."""
        op = made.get(x) if isinstance(x, Value) else None
        return op if op is not None and op.name == name else None

    def scaled(x: Operand) -> tuple[Operand, Operand] | None:
        """An array and a number of which a value is the product."""
        op = source(x, "mul")
        if op is None:
            return None
        a, b = op.inputs
        return (b, a) if is_number(a) and not is_number(b) else (a, b) if is_number(b) and not is_number(a) else None

    def match(op: Op) -> Op | None:
        for x, y in (op.inputs, op.inputs[::-1]):
            if x.dtype != op.out.dtype or x.shape != op.out.shape:
                continue
            found = scaled(y)
            if found is not None:
                array, number = found
                if array.dtype != op.out.dtype or array.shape != op.out.shape:
                    continue
                difference, quotient = source(array, "sub"), source(array, "div")
                if difference is not None and x in difference.inputs:
                    first, second = difference.inputs
                    negated = first is x
                    end = second if negated else first
                    if not is_number(end):
                        return Op("lerp", (x, end, number), op.outputs, {"negated": negated})
                if quotient is not None and not any(map(is_number, quotient.inputs)):
                    return Op("addcdiv", (x, *quotient.inputs, number), op.outputs, {})
                return Op("add_scaled", (x, array, number), op.outputs, {})
            product = source(y, "mul")
            for first, second in (product.inputs, product.inputs[::-1]) if product is not None else ():
                found = scaled(first)
                if found is not None and not is_number(second):
                    return Op("addcmul", (x, found[0], second, found[1]), op.outputs, {})
        return None

    new = []
    for op in ops:
        both = op.name == "add" and not any(map(is_number, op.inputs)) and op.out.dtype in (np.float32, np.float64)
        new.append((match(op) if both else None) or op)
    return needed(new, outputs)


def in_order(ops: Sequence[Op]) -> list[Op]:
    """With transposed arrays laid out anew where they are widened: torch goes through mixed strides far slower."""
    turned = {op.out for op in ops if op.name == "transpose"}
    return [
        op._replace(params={**op.params, "in_order": True})
        if op.name == "convert_element_type"
        and op.inputs[0] in turned
        and op.out.dtype.itemsize > op.inputs[0].dtype.itemsize
        else op
        for op in ops
    ]


def dotted(ops: Sequence[Op], outputs: Sequence[Operand]) -> list[Op]:
    """With one pass over memory for a sum of squares."""
    squared: dict[Operand, Operand] = {
        op.out: op.inputs[0]
        for op in ops
        if op.name == "mul" and op.inputs[0] is op.inputs[1] and len(op.out.shape) == 1 and is_inexact(op.out.dtype)
    }
    new = [
        Op("reduce_squares", (squared[op.inputs[0]],), op.outputs, {})
        if op.name == "reduce_sum" and op.inputs[0] in squared
        else op
        for op in ops
    ]
    return needed(new, outputs)


def totals(ops: Sequence[Op]) -> list[Op]:
    """The operations that cross all arrays."""
    return [op for op in ops if op.name == TOTAL]


def join_of(op: Op) -> str | None:
    """How totals are joined, where that is plain."""
    return HOW.get(op.params["join"])


def zeros(ops: Sequence[Op], first: Value, is_number: Callable[[Operand], bool]) -> set[Value]:
    """What is 0 wherever an argument is, whatever the numbers."""
    found = {first}
    for op in ops:
        zero = [x in found for x in op.inputs]
        others = [x for x, is_zero in zip(op.inputs, zero, strict=True) if not is_zero]
        keeps = op.name in _segments.KEEP_ZERO | {"or_nan"} or (op.name == "integer_pow" and op.params["y"] > 0)
        scaled = (op.name == "mul" and any(zero)) or (op.name == "div" and zero[0])
        if (zero and all(zero) and keeps) or (scaled and all(map(is_number, others))):
            found.update(op.outputs)
    return found
