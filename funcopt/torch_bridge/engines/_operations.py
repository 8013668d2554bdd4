"""What each of JAX's primitives is in torch, as source, and in NumPy, for scalars.

An update traced by JAX is a list of primitives; the torch engine writes them down as a Python function of torch's
operations. Operands are names of tensors, or of numbers of Python's where torch takes them.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch

from funcopt.torch_bridge._buffers import torch_dtype
from funcopt.torch_bridge.engines import _tensors


class NotCovered(NotImplementedError):  # noqa: N818  # as `NotByRows`
    """An algorithm uses one of JAX's primitives that the torch engine has no operation for."""


class Value:
    """What an operation makes, or an argument."""

    def __init__(self, shape: Sequence[int], dtype: Any) -> None:
        self.shape, self.dtype = tuple(shape), np.dtype(dtype)


_WIDER = {np.dtype(f"uint{bits}"): np.dtype(f"int{min(2 * bits, 64)}") for bits in (16, 32, 64)}
"""Integers without a sign, of which torch has no operations, lie in ones with a sign; of 64 bits they are the same
bits."""


class Constant:
    """What is known beforehand: a number, or an array."""

    def __init__(self, value: Any) -> None:
        own = np.asarray(value)
        self.shape, self.dtype = own.shape, own.dtype
        self.value = own.astype(_WIDER[own.dtype]) if own.shape and own.dtype in _WIDER else own  # an array as torch's


class Op(NamedTuple):
    """One operation."""

    name: str
    inputs: tuple[Value | Constant, ...]
    outputs: tuple[Value, ...]
    params: Mapping[str, Any]

    @property
    def out(self) -> Value:
        """The result."""
        return self.outputs[0]


class Call(NamedTuple):
    """A call as source."""

    function: str
    arguments: tuple[str, ...]
    has_out: bool = True  # whether the function takes `out=`
    is_view: bool = False  # whether the result lies in an argument's memory

    def __str__(self) -> str:
        return f"{self.function}({', '.join(self.arguments)})"


class Operand(NamedTuple):
    """A name, and whether it is a number of Python's."""

    text: str
    is_number: bool = False

    def __str__(self) -> str:
        return self.text


class Context(NamedTuple):
    """How operands lie."""

    tensor: Callable[[Operand, Any], str]  # an operand as a tensor of a dtype, where torch takes no number
    lanes: bool = False  # whether in place of the first dimension there are one or more of any sizes


def name_of(dtype: Any) -> str:
    """A dtype in torch's source."""
    return str(torch_dtype(_WIDER.get(np.dtype(dtype), np.dtype(dtype))))


def bounds(dtype: Any) -> tuple[int, int]:
    """The lowest and the highest integer of a dtype."""
    found = np.iinfo(dtype)
    return int(found.min), int(found.max)


def is_inexact(dtype: Any) -> bool:
    """Whether a dtype is floating point or complex; NumPy does not know bfloat16 as such."""
    return np.dtype(dtype).kind in "fcV"


Emit = Callable[[Op, Context, Sequence[Operand]], Call]


def _unary(function: str, *, has_out: bool = True) -> Emit:
    return lambda op, context, x: Call(function, (context.tensor(x[0], op.inputs[0].dtype),), has_out)


def _commutative(function: str) -> Emit:
    def emit(op: Op, context: Context, x: Sequence[Operand]) -> Call:
        first, second = x[::-1] if x[0].is_number else x
        return Call(function, (context.tensor(first, op.inputs[0].dtype), str(second)))

    return emit


def _second_may_be_number(function: str) -> Emit:
    return lambda op, context, x: Call(function, (context.tensor(x[0], op.inputs[0].dtype), str(x[1])))


def _of_tensors(function: str, *, has_out: bool = True) -> Emit:
    def emit(op: Op, context: Context, x: Sequence[Operand]) -> Call:
        own = (context.tensor(operand, var.dtype) for operand, var in zip(x, op.inputs, strict=True))
        return Call(function, tuple(own), has_out)

    return emit


def _compare(function: str, flipped: str) -> Emit:
    def emit(op: Op, context: Context, x: Sequence[Operand]) -> Call:
        dtype = op.inputs[0].dtype
        if x[0].is_number and not x[1].is_number:
            return Call(flipped, (str(x[1]), str(x[0])))
        return Call(function, (context.tensor(x[0], dtype), str(x[1])))

    return emit


def _extremum(function: str, bound: str) -> Emit:
    def emit(op: Op, context: Context, x: Sequence[Operand]) -> Call:
        first, second = x[::-1] if x[0].is_number else x
        if second.is_number and not first.is_number and is_inexact(op.out.dtype):
            return Call(bound, (str(first), str(second)))
        return _of_tensors(function)(op, context, x)

    return emit


def _pow(op: Op, context: Context, x: Sequence[Operand]) -> Call:
    base, exponent = op.inputs
    if base.dtype != exponent.dtype or x[0].is_number == x[1].is_number:
        return _of_tensors("torch.pow")(op, context, x)
    return Call("torch.pow", tuple(map(str, x)))


def _integer_pow(op: Op, context: Context, x: Sequence[Operand]) -> Call:
    power, own = op.params["y"], context.tensor(x[0], op.out.dtype)
    return Call("torch.mul", (own, own)) if power == 2 else Call("torch.pow", (own, repr(power)))


def _square(op: Op, context: Context, x: Sequence[Operand]) -> Call:
    own = context.tensor(x[0], op.out.dtype)
    return Call("torch.mul", (own, own))


def _sign(op: Op, context: Context, x: Sequence[Operand]) -> Call:
    own = context.tensor(x[0], op.out.dtype)
    if _by_clamping(op, context):
        return Call("torch.mul", (own, repr(float(2 ** (np.finfo(op.out.dtype).maxexp - 1)))))
    return Call("torch.sgn", (own,))


def _or_nan(op: Op, context: Context, x: Sequence[Operand]) -> Call:
    """Follows each sign, as torch's is 0 of NaN and of -0."""
    sign, own = (context.tensor(operand, op.out.dtype) for operand in x)
    if _by_clamping(op, context):
        return Call("torch.clamp", (f"torch.mul({sign}, {2.0**64!r})", "-1", "1"))  # of the least number, too
    return Call("torch.where", (f"torch.abs({own}) > 0", sign, f"{own}.detach()"))


def _by_clamping(op: Op, context: Context) -> bool:
    """Whether a sign is a large multiple, brought to between -1 and 1. That is faster; derivatives, which it has not,
    nobody takes of chunks.
    """
    return context.lanes and op.out.dtype in (np.float32, np.float64)


def _logical(function: str) -> Emit:
    def emit(op: Op, context: Context, x: Sequence[Operand]) -> Call:
        return _of_tensors(f"torch.bitwise_{function}")(op, context, x)

    return emit


def _round(op: Op, context: Context, x: Sequence[Operand]) -> Call:
    if int(op.params["rounding_method"]) == 1:  # to even
        return Call("torch.round", (context.tensor(x[0], op.out.dtype),))
    own = context.tensor(x[0], op.out.dtype)
    away = f"torch.copysign((torch.abs(torch.frac({own})) >= 0.5).to({own}.dtype), {own})"
    return Call("torch.add", (f"torch.trunc({own})", away))


def _select(op: Op, context: Context, x: Sequence[Operand]) -> Call:
    which, *cases = x
    own = [context.tensor(case, op.out.dtype) for case in cases]
    if len(cases) == 2:
        condition = context.tensor(which, op.inputs[0].dtype)
        if op.inputs[0].dtype != np.bool_:
            condition = f"{condition} != 0"
        return Call("torch.where", (condition, own[1], own[0]))
    nested, index = own[-1], context.tensor(which, op.inputs[0].dtype)
    for i in range(len(own) - 2, -1, -1):
        nested = f"torch.where({index} == {i}, {own[i]}, {nested})"
    return Call("", (nested,), has_out=False)


def _clamp(op: Op, context: Context, x: Sequence[Operand]) -> Call:
    low, value, high = x
    own = context.tensor(value, op.out.dtype)
    if low.is_number and high.is_number:
        return Call("torch.clamp", (own, str(low), str(high)))
    low_tensor, high_tensor = (context.tensor(bound, op.out.dtype) for bound in (low, high))
    return Call("torch.minimum", (f"torch.maximum({own}, {low_tensor})", high_tensor))


def _convert(op: Op, context: Context, x: Sequence[Operand]) -> Call:
    source = op.inputs[0].dtype
    own = context.tensor(x[0], source)
    if np.dtype(source).kind == "c" and np.dtype(op.out.dtype).kind != "c":
        own = f"torch.real({own})"
    order = ("memory_format=torch.contiguous_format",) if op.params.get("in_order") else ()
    return Call(f"{own}.to", (name_of(op.out.dtype), *order), has_out=False)


def _to_integer(op: Op, context: Context, x: Sequence[Operand]) -> Call:
    own = context.tensor(x[0], op.inputs[0].dtype)
    return Call("_to_integer", (own, name_of(op.out.dtype), *map(str, bounds(op.out.dtype))), has_out=False)


def _conj(op: Op, context: Context, x: Sequence[Operand]) -> Call:
    if op.inputs[0].dtype != op.out.dtype:  # JAX's is complex, also of what is not
        return _convert(op, context, x)
    return Call("torch.conj_physical", (context.tensor(x[0], op.out.dtype),))


def _shift(how: str) -> Emit:
    def emit(op: Op, context: Context, x: Sequence[Operand]) -> Call:
        own, by = context.tensor(x[0], op.out.dtype), op.inputs[1]
        bits, is_signed = 8 * op.out.dtype.itemsize, op.out.dtype.kind == "i" or op.out.dtype == np.uint64
        if how == "arithmetic" and op.out.dtype.kind != "i":
            raise NotCovered(f"shift_right_arithmetic of {op.out.dtype}")
        if not isinstance(by, Constant) or by.shape or not 0 <= int(by.value) < bits:
            return Call("_shift", (own, context.tensor(x[1], by.dtype), str(bits), repr(how)), has_out=False)
        count = int(by.value)
        if how == "left":
            return Call("torch.bitwise_left_shift", (own, str(count)))
        if how == "logical" and is_signed and count:
            return Call(
                "torch.bitwise_and", (f"torch.bitwise_right_shift({own}, {count})", str(2 ** (bits - count) - 1))
            )
        return Call("torch.bitwise_right_shift", (own, str(count)))

    return emit


def _bitcast(op: Op, context: Context, x: Sequence[Operand]) -> Call:
    source, to = op.inputs[0].dtype, op.out.dtype
    if source.itemsize != to.itemsize or np.bool_ in (source, to):
        raise NotCovered(f"bits of {source} as {to}")
    own = context.tensor(x[0], source)
    signed = f"torch.int{8 * to.itemsize}"
    if source in _WIDER:
        own = f"{own}.to({signed})"
    if to not in _WIDER:
        return Call(f"{own}.view", (name_of(to),), has_out=False, is_view=True)
    return Call(f"{own}.view({signed}).to", (name_of(to),), has_out=False, is_view=True)


def _rest(op: Op, context: Context, own: str) -> str:
    """The result's shape as source: with lanes, those that the operand has and the traced ones behind them."""
    shape = op.out.shape
    if not context.lanes:
        return repr(tuple(shape))
    inner = len(op.inputs[0].shape) - 1
    lead = f"*{own}.shape[:{own}.dim() - {inner}]" if inner else f"*{own}.shape"
    return f"({', '.join([lead, *map(str, shape[1:])])},)"


def _reshape(op: Op, context: Context, x: Sequence[Operand]) -> Call:
    own = context.tensor(x[0], op.out.dtype)
    if op.name == "reshape" and op.params["dimensions"] is not None:
        own = f"{own}.permute({tuple(op.params['dimensions'])!r})"
    return Call(f"{own}.reshape", (_rest(op, context, own),), has_out=False, is_view=True)


def _broadcast(op: Op, context: Context, x: Sequence[Operand]) -> Call:
    shape, kept = op.params["shape"], op.params["broadcast_dimensions"]
    if x[0].is_number and not context.lanes:
        return Call(
            "torch.full", (repr(tuple(shape)), str(x[0]), f"dtype={name_of(op.out.dtype)}", "device=device"), False
        )
    own = context.tensor(x[0], op.out.dtype)
    source = dict(zip(kept, op.inputs[0].shape, strict=True))
    full = [source.get(i, 1) for i in range(len(shape))]
    if context.lanes:
        inner = len(op.inputs[0].shape) - 1
        lead = f"*{own}.shape[:{own}.dim() - {inner}]" if inner else f"*{own}.shape"
        first = f"({', '.join([lead, *map(str, full[1:])])},)"
        second = f"({', '.join([lead, *map(str, shape[1:])])},)"
    else:
        first, second = repr(tuple(full)), repr(tuple(shape))
    return Call(f"{own}.reshape({first}).expand", (second,), has_out=False, is_view=True)


def _from_behind(axes: Sequence[int], op: Op) -> tuple[int, ...]:
    """Axes counted from the last one, which lanes in front do not move."""
    ndim = len(op.inputs[0].shape)
    return tuple(int(axis) - ndim for axis in axes)


def _reduction(function: str, *, keyword: str = "dim") -> Emit:
    def emit(op: Op, context: Context, x: Sequence[Operand]) -> Call:
        own, axes = context.tensor(x[0], op.inputs[0].dtype), tuple(map(int, op.params["axes"]))
        if not axes:
            return Call("", (own,), has_out=False, is_view=True)
        further = (f"dtype={name_of(op.out.dtype)}",) if function == "torch.sum" else ()
        return Call(function, (own, f"{keyword}={_from_behind(axes, op)!r}", *further), has_out=False)

    return emit


def _reduce_prod(op: Op, context: Context, x: Sequence[Operand]) -> Call:
    own = context.tensor(x[0], op.out.dtype)
    for axis in sorted(map(int, op.params["axes"]), reverse=True):
        own = f"torch.prod({own}, {axis})"
    return Call("", (own,), has_out=False)


def _arg_extremum(function: str) -> Emit:
    def emit(op: Op, context: Context, x: Sequence[Operand]) -> Call:
        (axis,) = _from_behind(op.params["axes"], op)
        own = context.tensor(x[0], op.inputs[0].dtype)
        return Call(f"{function}({own}, dim={axis}).to", (name_of(op.out.dtype),), has_out=False)

    return emit


def _cumulative(function: str) -> Emit:
    def emit(op: Op, context: Context, x: Sequence[Operand]) -> Call:
        own, (axis,) = context.tensor(x[0], op.out.dtype), _from_behind((op.params["axis"],), op)
        dtype = f"dtype={name_of(op.out.dtype)}"
        if op.params.get("reverse"):
            return Call(
                "torch.flip", (f"{function}(torch.flip({own}, ({axis},)), {axis}, {dtype})", f"({axis},)"), False
            )
        return Call(function, (own, str(axis), dtype), has_out=False)

    return emit


def _cat(function: str, parameter: str) -> Emit:
    def emit(op: Op, context: Context, x: Sequence[Operand]) -> Call:
        own = ", ".join(context.tensor(operand, op.out.dtype) for operand in x)
        axis = op.params[parameter] - len(op.out.shape)
        return Call(function, (f"[{own}]", str(axis)), has_out=False)

    return emit


def _slice(op: Op, context: Context, x: Sequence[Operand]) -> Call:
    own = context.tensor(x[0], op.out.dtype)
    steps = op.params["strides"] or (1,) * len(op.params["start_indices"])
    slices = [
        f"{start}:{stop}:{step}"
        for start, stop, step in zip(op.params["start_indices"], op.params["limit_indices"], steps, strict=True)
    ]
    text = ", ".join(["...", *slices[1:]] if context.lanes else slices)
    return Call("", (f"{own}[{text}]" if slices else own,), has_out=False, is_view=True)


def _flip(op: Op, context: Context, x: Sequence[Operand]) -> Call:
    own = context.tensor(x[0], op.out.dtype)
    return Call("torch.flip", (own, repr(_from_behind(op.params["dimensions"], op))), has_out=False)


def _iota(op: Op, context: Context, x: Sequence[Operand]) -> Call:
    del context, x
    shape, axis = op.params["shape"], op.params["dimension"]
    own = f"torch.arange({shape[axis]}, dtype={name_of(op.out.dtype)}, device=device)"
    view = tuple(-1 if i == axis else 1 for i in range(len(shape)))
    return Call(f"{own}.reshape({view!r}).expand", (repr(tuple(shape)),), has_out=False)


def _dot(op: Op, context: Context, x: Sequence[Operand]) -> Call:
    (left, right), (left_batch, right_batch) = op.params["dimension_numbers"]
    names = iter("abcdefghijklmnopqrstuvwxyz")
    first = [next(names) for _ in op.inputs[0].shape]
    second = [next(names) for _ in op.inputs[1].shape]
    for i, j in zip((*left, *left_batch), (*right, *right_batch), strict=True):
        second[j] = first[i]
    kept = [name for i, name in enumerate(first) if i not in (*left, *left_batch)]
    kept += [name for j, name in enumerate(second) if j not in (*right, *right_batch)]
    result = "".join([*(first[i] for i in left_batch), *kept])
    own = [context.tensor(operand, var.dtype) for operand, var in zip(x, op.inputs, strict=True)]
    # What JAX accumulates and returns in a wider dtype is computed in it.
    own = [
        text if var.dtype == op.out.dtype else f"{text}.to({name_of(op.out.dtype)})"
        for text, var in zip(own, op.inputs, strict=True)
    ]
    plain = not left_batch and len(first) == len(second) == 2
    if plain and tuple(left) == (1,) and tuple(right) == (0,):
        return Call("torch.mm", tuple(own))
    return Call("torch.einsum", (repr(f"{''.join(first)},{''.join(second)}->{result}"), *own), has_out=False)


_HALVES = {(8, 7): "torch.bfloat16", (5, 10): "torch.float16", (8, 23): "torch.float32", (11, 52): "torch.float64"}


def _reduce_precision(op: Op, context: Context, x: Sequence[Operand]) -> Call:
    found = _HALVES.get((op.params["exponent_bits"], op.params["mantissa_bits"]))
    if found is None:
        raise NotCovered(f"reduce_precision to {dict(op.params)}")
    return Call(f"{context.tensor(x[0], op.out.dtype)}.to({found}).to", (name_of(op.out.dtype),), has_out=False)


def _gather(op: Op, context: Context, x: Sequence[Operand]) -> Call:
    """What is at places of one axis, as of tables: `jnp.take(array, indices, axis)`."""
    numbers, sizes = op.params["dimension_numbers"], op.params["slice_sizes"]
    shape, axis = op.inputs[0].shape, next(iter(numbers.start_index_map), 0)
    taken = range(axis, axis + len(op.inputs[1].shape) - 1)
    if (
        numbers.collapsed_slice_dims != (axis,)
        or numbers.start_index_map != (axis,)
        or tuple(sizes) != (*shape[:axis], 1, *shape[axis + 1 :])
        or numbers.operand_batching_dims
        or numbers.offset_dims != tuple(i for i in range(len(op.out.shape)) if i not in taken)
    ):
        raise NotCovered("gather along several axes")
    own, index = context.tensor(x[0], op.inputs[0].dtype), context.tensor(x[1], op.inputs[1].dtype)
    filled = "fill" in str(op.params["mode"]).lower()
    fill = "0" if op.params["fill_value"] is None else number(op.params["fill_value"])
    return Call("_take", (own, index, str(axis), repr(filled), fill), has_out=False)


def _triangular_solve(op: Op, context: Context, x: Sequence[Operand]) -> Call:
    a, b = (context.tensor(operand, op.out.dtype) for operand in x)
    upper, params = not op.params["lower"], op.params
    a = f"{a}.conj()" if params["conjugate_a"] else a
    if params["transpose_a"]:
        a, upper = f"{a}.mT", not upper
    keywords = f"upper={upper}", f"left={params['left_side']}", f"unitriangular={params['unit_diagonal']}"
    return Call("torch.linalg.solve_triangular", (a, b, *keywords))


def _scatter(how: str) -> Emit:
    def emit(op: Op, context: Context, x: Sequence[Operand]) -> Call:
        numbers, shape = op.params["dimension_numbers"], op.inputs[0].shape
        own = [context.tensor(operand, var.dtype) for operand, var in zip(x, op.inputs, strict=True)]
        everything = tuple(range(len(shape)))
        if numbers.scatter_dims_to_operand_dims == (0,) and numbers.update_window_dims == everything and shape:
            # Rows that follow each other, from an index of shape (1,) on.
            own[1] = f"({own[1]} + torch.arange({op.inputs[2].shape[0]}, device={own[1]}.device))[:, None]"
            return Call("_put", (*own, repr(how)), has_out=False)
        of_rows = numbers.inserted_window_dims == numbers.scatter_dims_to_operand_dims == (0,)
        if of_rows and len(op.inputs[1].shape) == 1 and numbers.update_window_dims == everything[:-1]:  # one row
            own[1:] = [f"{x}[None]" for x in own[1:]]
            return Call("_put", (*own, repr(how)), has_out=False)
        rows = (
            of_rows
            and op.inputs[2].shape[1:] == shape[1:]
            and numbers.update_window_dims == tuple(range(1, len(shape)))
            and not numbers.operand_batching_dims
            and len(op.inputs[1].shape) == 2
        )
        if not rows or "clip" in str(op.params["mode"]).lower():
            raise NotCovered("scatter of anything but rows, or to the nearest ones")
        return Call("_put", (*own, repr(how)), has_out=False)

    return emit


TORCH: dict[str, Emit] = {
    "add": _commutative("torch.add"),
    "add_any": _commutative("torch.add"),
    "sub": _second_may_be_number("torch.sub"),
    "mul": _commutative("torch.mul"),
    "neg": _unary("torch.neg"),
    "sqrt": _unary("torch.sqrt"),
    "rsqrt": _unary("torch.rsqrt"),
    "cbrt": lambda op, context, x: Call(
        "torch.copysign",
        (f"torch.pow(torch.abs({context.tensor(x[0], op.out.dtype)}), 1 / 3)", context.tensor(x[0], op.out.dtype)),
    ),
    "exp": _unary("torch.exp"),
    "exp2": _unary("torch.exp2"),
    "log": _unary("torch.log"),
    "log1p": _unary("torch.log1p"),
    "expm1": _unary("torch.expm1"),
    "sin": _unary("torch.sin"),
    "cos": _unary("torch.cos"),
    "tan": _unary("torch.tan"),
    "asin": _unary("torch.asin"),
    "acos": _unary("torch.acos"),
    "atan": _unary("torch.atan"),
    "atan2": _of_tensors("torch.atan2"),
    "sinh": _unary("torch.sinh"),
    "cosh": _unary("torch.cosh"),
    "tanh": _unary("torch.tanh"),
    "asinh": _unary("torch.asinh"),
    "acosh": _unary("torch.acosh"),
    "atanh": _unary("torch.atanh"),
    "logistic": _unary("torch.sigmoid"),
    "erf": _unary("torch.erf"),
    "erfc": _unary("torch.erfc"),
    "erf_inv": _unary("torch.erfinv"),
    "lgamma": _unary("torch.lgamma"),
    "digamma": _unary("torch.digamma"),
    "abs": _unary("torch.abs"),
    "sign": _sign,
    "or_nan": _or_nan,
    "floor": _unary("torch.floor"),
    "ceil": _unary("torch.ceil"),
    "round": _round,
    "square": _square,
    "integer_pow": _integer_pow,
    "pow": _pow,
    "nextafter": _of_tensors("torch.nextafter"),
    "is_finite": _unary("torch.isfinite", has_out=False),
    "max": _extremum("torch.maximum", "torch.clamp_min"),
    "min": _extremum("torch.minimum", "torch.clamp_max"),
    "clamp": _clamp,
    "lt": _compare("torch.lt", "torch.gt"),
    "le": _compare("torch.le", "torch.ge"),
    "gt": _compare("torch.gt", "torch.lt"),
    "ge": _compare("torch.ge", "torch.le"),
    "eq": _compare("torch.eq", "torch.eq"),
    "ne": _compare("torch.ne", "torch.ne"),
    "and": _logical("and"),
    "or": _logical("or"),
    "xor": _logical("xor"),
    "not": _unary("torch.bitwise_not"),
    "shift_left": _shift("left"),
    "shift_right_logical": _shift("logical"),
    "shift_right_arithmetic": _shift("arithmetic"),
    "bitcast_convert_type": _bitcast,
    "select_n": _select,
    "convert_element_type": _convert,
    "to_integer": _to_integer,
    "reduce_precision": _reduce_precision,
    "real": lambda op, context, x: Call("torch.real", (context.tensor(x[0], op.inputs[0].dtype),), False, True),
    "imag": lambda op, context, x: Call("torch.imag", (context.tensor(x[0], op.inputs[0].dtype),), False, True),
    "conj": _conj,
    "complex": _of_tensors("torch.complex"),
    "reshape": _reshape,
    "squeeze": _reshape,
    "broadcast_in_dim": _broadcast,
    "transpose": lambda op, context, x: Call(
        f"{context.tensor(x[0], op.out.dtype)}.permute", (repr(tuple(map(int, op.params["permutation"]))),), False, True
    ),
    "concatenate": _cat("torch.cat", "dimension"),
    "stack": _cat("torch.stack", "axis"),
    "slice": _slice,
    "rev": _flip,
    "iota": _iota,
    "reduce_sum": _reduction("torch.sum"),
    "reduce_max": _reduction("torch.amax"),
    "reduce_min": _reduction("torch.amin"),
    "reduce_and": _reduction("torch.all"),
    "reduce_or": _reduction("torch.any"),
    "reduce_prod": _reduce_prod,
    "argmax": _arg_extremum("torch.argmax"),
    "argmin": _arg_extremum("torch.argmin"),
    "cumsum": _cumulative("torch.cumsum"),
    "cumprod": _cumulative("torch.cumprod"),
    "dot_general": _dot,
    "gather": _gather,
    "triangular_solve": _triangular_solve,
    "scatter": _scatter("set"),
    "scatter-add": _scatter("add"),
}


def _div(op: Op, context: Context, x: Sequence[Operand]) -> Call:
    if is_inexact(op.out.dtype):
        return _second_may_be_number("torch.div")(op, context, x)
    return _of_integers("torch.div", "rounding_mode='trunc'", "_quotient")(op, context, x)


def _rem(op: Op, context: Context, x: Sequence[Operand]) -> Call:
    emit = _of_tensors("torch.fmod") if is_inexact(op.out.dtype) else _of_integers("torch.fmod", "", "_remainder")
    return emit(op, context, x)


def _of_integers(function: str, keyword: str, careful: str) -> Emit:
    """Divisions; those by what may be 0 are apart, as torch raises an error then."""

    def emit(op: Op, context: Context, x: Sequence[Operand]) -> Call:
        own = tuple(context.tensor(operand, op.out.dtype) for operand in x)
        if isinstance(op.inputs[1], Constant) and np.all(op.inputs[1].value > 0):
            return Call(function, (*own, keyword) if keyword else own)
        lowest, highest = bounds(op.out.dtype)
        return Call(careful, (*own, str(-1 if lowest else highest)), has_out=False)

    return emit


TORCH["div"], TORCH["rem"] = _div, _rem


def _scaled(function: str, keyword: str) -> Emit:
    """What torch does in one pass: `fused` in `_lowering` finds it."""

    def emit(op: Op, context: Context, x: Sequence[Operand]) -> Call:
        *own, factor = x
        tensors = (context.tensor(operand, op.out.dtype) for operand in own)
        return Call(function, (*tensors, f"{keyword}{'-' if op.params.get('negated') else ''}{factor}"))

    return emit


TORCH["lerp"] = _scaled("torch.lerp", "")
TORCH["addcmul"] = _scaled("torch.addcmul", "value=")
TORCH["addcdiv"] = _scaled("torch.addcdiv", "value=")
TORCH["add_scaled"] = _scaled("torch.add", "alpha=")
TORCH["reduce_squares"] = lambda op, context, x: Call("torch.dot", (str(x[0]), str(x[0])), has_out=False)


def _addmm(op: Op, context: Context, x: Sequence[Operand]) -> Call:
    """What `_products` finds."""
    *own, beta, alpha = x
    tensors = (context.tensor(operand, op.out.dtype) for operand in own)
    return Call("torch.addmm", (*tensors, f"beta={beta}", f"alpha={alpha}"))


TORCH["addmm"] = _addmm


def _emit_sort(op: Op, context: Context, x: Sequence[Operand]) -> Call:
    own = ", ".join(context.tensor(operand, var.dtype) for operand, var in zip(x, op.inputs, strict=True))
    return Call("_sort", (f"[{own}]", str(op.params["dimension"]), str(op.params["num_keys"])), has_out=False)


def _emit_split(op: Op, context: Context, x: Sequence[Operand]) -> Call:
    own, axis = context.tensor(x[0], op.out.dtype), op.params["axis"] - len(op.inputs[0].shape)
    return Call("torch.split", (own, repr(list(map(int, op.params["sizes"]))), str(axis)), has_out=False, is_view=True)


def _threefry(op: Op, context: Context, x: Sequence[Operand]) -> Call:
    own = (context.tensor(operand, var.dtype) for operand, var in zip(x, op.inputs, strict=True))
    return Call("_threefry", tuple(own), has_out=False)


def _eigh(op: Op, context: Context, x: Sequence[Operand]) -> Call:
    if op.params["subset_by_index"] is not None:
        raise NotCovered("some of the eigenvalues")
    triangle = repr("L" if op.params["lower"] else "U")
    return Call("_eigh", (context.tensor(x[0], op.inputs[0].dtype), triangle), has_out=False)


def _svd(op: Op, context: Context, x: Sequence[Operand]) -> Call:
    if op.params["subset_by_index"] is not None:
        raise NotCovered("some of the singular values")
    own, vectors = context.tensor(x[0], op.inputs[0].dtype), op.params["compute_uv"]
    return Call("_svd", (own, repr(vectors), repr(op.params["full_matrices"])), has_out=False)


def _qr(op: Op, context: Context, x: Sequence[Operand]) -> Call:
    if op.params["pivoting"]:
        raise NotCovered("qr with pivoting")
    mode = repr("complete" if op.params["full_matrices"] else "reduced")
    return Call("torch.linalg.qr", (context.tensor(x[0], op.inputs[0].dtype), mode), has_out=False)


def _wrapped(emit: Emit) -> Emit:
    """What may come out of the range of the integers without a sign that lie in wider ones."""

    def masked(op: Op, context: Context, x: Sequence[Operand]) -> Call:
        call = emit(op, context, x)
        if op.out.dtype not in (np.uint16, np.uint32):
            return call
        return Call("torch.bitwise_and", (str(call), str(bounds(op.out.dtype)[1])))

    return masked


def _ordered(emit: Emit) -> Emit:
    """What is another thing of the same bits with a sign."""

    def refused(op: Op, context: Context, x: Sequence[Operand]) -> Call:
        others = is_inexact(op.inputs[0].dtype) or is_inexact(op.out.dtype)
        if np.uint64 in (op.inputs[0].dtype, op.out.dtype) and (others or op.name != "convert_element_type"):
            raise NotCovered(f"{op.name} of uint64")
        return emit(op, context, x)

    return refused


_MAY_WRAP = (
    "add add_any sub mul neg not square integer_pow shift_left convert_element_type cumsum cumprod "  # noqa: SIM905
    "bitcast_convert_type reduce_sum reduce_prod".split()
)
_ORDERED = (
    "div rem lt le gt ge max min clamp sign convert_element_type to_integer reduce_max reduce_min argmax argmin".split()  # noqa: SIM905
)
for _name in _MAY_WRAP:
    TORCH[_name] = _wrapped(TORCH[_name])
for _name in _ORDERED:
    TORCH[_name] = _ordered(TORCH[_name])


MANY: dict[str, Emit] = {
    "sort": _ordered(_emit_sort),
    "split": _emit_split,
    "threefry2x32": _threefry,
    "eigh": _eigh,
    "svd": _svd,
    "qr": _qr,
}
"""Operations with several results."""

NAMESPACE = {
    "torch": torch,
    "inf": math.inf,
    "nan": math.nan,
    "_take": _tensors.take,
    "_eigh": _tensors.eigh,
    "_svd": _tensors.svd,
    "_put": _tensors.put,
    "_sort": _tensors.sort,
    "_shift": _tensors.shift,
    "_quotient": _tensors.quotient,
    "_remainder": _tensors.remainder,
    "_to_integer": _tensors.to_integer,
    "_threefry": _tensors.threefry2x32,
}
"""What the source refers to."""

VIEWS = frozenset(
    "reshape squeeze broadcast_in_dim transpose slice real imag bitcast_convert_type".split()  # noqa: SIM905
)
"""What may lie in its operand's memory."""


# Scalars, in NumPy.

Host = Callable[[Op, Sequence[Any]], Any]


def _plain(function: Callable[..., Any]) -> Host:
    return lambda op, x: function(*x)


def _host_div(op: Op, x: Sequence[Any]) -> Any:
    if is_inexact(op.out.dtype):
        return np.divide(*x)
    own, by = (np.asarray(value, op.out.dtype) for value in x)
    some = np.where(by == 0, 1, by).astype(op.out.dtype)
    found = np.floor_divide(own, some)
    found = found + ((np.remainder(own, some) != 0) & ((own < 0) != (some < 0)))
    return np.where(by == 0, ~np.zeros_like(own), found)


def _host_rem(op: Op, x: Sequence[Any]) -> Any:
    if is_inexact(op.out.dtype):
        return np.fmod(*x)
    own, by = (np.asarray(value, op.out.dtype) for value in x)
    return np.where(by == 0, own, np.fmod(own, np.where(by == 0, 1, by).astype(op.out.dtype)))


def _host_to_integer(op: Op, x: Sequence[Any]) -> Any:
    lowest, highest = bounds(op.out.dtype)
    own = np.asarray(x[0], np.float64)
    found = np.where(own >= highest, highest, np.where(own <= lowest, lowest, own.astype(op.out.dtype)))
    return np.where(np.isnan(own), 0, found)


def _host_select(op: Op, x: Sequence[Any]) -> Any:
    which, *cases = x
    return np.choose(np.asarray(which).astype(np.intp), np.broadcast_arrays(*cases))


def _host_round(op: Op, x: Sequence[Any]) -> Any:
    if int(op.params["rounding_method"]) == 1:
        return np.round(x[0])
    whole = np.trunc(x[0])
    return whole + np.copysign((np.abs(x[0] - whole) >= 0.5).astype(op.out.dtype), x[0])


def _host_not(op: Op, x: Sequence[Any]) -> Any:
    return np.invert(x[0])


def _host_shift(how: str) -> Host:
    def shifted(op: Op, x: Sequence[Any]) -> Any:
        own, by = (np.asarray(value, op.out.dtype) for value in x)
        bits = 8 * op.out.dtype.itemsize
        inside = (by >= 0) & (by < bits)
        if how == "arithmetic":
            return np.right_shift(own, np.where(inside, by, own.dtype.type(bits - 1)))
        by = np.where(inside, by, own.dtype.type(0)).astype(f"uint{bits}")
        found = (np.left_shift if how == "left" else np.right_shift)(own.astype(by.dtype), by)
        return np.where(inside, found, by.dtype.type(0))

    return shifted


def _host_bitcast(op: Op, x: Sequence[Any]) -> Any:
    return np.asarray(x[0], op.inputs[0].dtype).view(op.out.dtype)


NUMPY: dict[str, Host] = {
    "add": _plain(np.add),
    "add_any": _plain(np.add),
    "sub": _plain(np.subtract),
    "mul": _plain(np.multiply),
    "div": _host_div,
    "neg": _plain(np.negative),
    "sqrt": _plain(np.sqrt),
    "rsqrt": _plain(lambda x: 1 / np.sqrt(x)),
    "cbrt": _plain(np.cbrt),
    "exp": _plain(np.exp),
    "exp2": _plain(np.exp2),
    "log": _plain(np.log),
    "log1p": _plain(np.log1p),
    "expm1": _plain(np.expm1),
    "sin": _plain(np.sin),
    "cos": _plain(np.cos),
    "tan": _plain(np.tan),
    "tanh": _plain(np.tanh),
    "atan2": _plain(np.arctan2),
    "abs": _plain(np.abs),
    "sign": _plain(np.sign),
    "floor": _plain(np.floor),
    "ceil": _plain(np.ceil),
    "round": _host_round,
    "square": _plain(np.square),
    "integer_pow": lambda op, x: x[0] ** op.params["y"],
    "pow": _plain(np.power),
    "rem": _host_rem,
    "logistic": _plain(lambda x: 1 / (1 + np.exp(-x))),
    "is_finite": _plain(np.isfinite),
    "max": _plain(np.maximum),
    "min": _plain(np.minimum),
    "clamp": _plain(lambda low, x, high: np.minimum(np.maximum(x, low), high)),
    "lt": _plain(np.less),
    "le": _plain(np.less_equal),
    "gt": _plain(np.greater),
    "ge": _plain(np.greater_equal),
    "eq": _plain(np.equal),
    "ne": _plain(np.not_equal),
    "and": _plain(np.bitwise_and),
    "or": _plain(np.bitwise_or),
    "xor": _plain(np.bitwise_xor),
    "not": _host_not,
    "shift_left": _host_shift("left"),
    "shift_right_logical": _host_shift("logical"),
    "shift_right_arithmetic": _host_shift("arithmetic"),
    "bitcast_convert_type": _host_bitcast,
    "select_n": _host_select,
    "convert_element_type": _plain(lambda x: x),
    "to_integer": _host_to_integer,
    "or_nan": _plain(lambda sign, x: np.where(np.abs(x) > 0, sign, x)),
}
"""Of scalars, or of arrays of them: every function treats each element alone. Results are brought to the dtype that was
traced."""


def evaluate(op: Op, x: Sequence[Any]) -> Any:
    """A scalar operation on NumPy's numbers."""
    return np.asarray(NUMPY[op.name](op, x)).astype(op.out.dtype, copy=False)


def number(value: Any) -> str:
    """A number as source."""
    own = np.asarray(value).item()
    if isinstance(own, float) and not math.isfinite(own):
        return "nan" if math.isnan(own) else "inf" if own > 0 else "-inf"
    return repr(own)
