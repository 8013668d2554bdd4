"""Operations as functions of torch: over chunks of flat memory in place, or of whole tensors."""

import contextlib
import linecache
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch

from funcopt.torch_bridge._buffers import torch_dtype
from funcopt.torch_bridge.engines import _segments
from funcopt.torch_bridge.engines._lowering import TOTAL, Operand, fused, in_order, split
from funcopt.torch_bridge.engines._operations import (
    MANY,
    NAMESPACE,
    TORCH,
    VIEWS,
    Call,
    Constant,
    Context,
    Op,
    Value,
    name_of,
    number,
)
from funcopt.torch_bridge.engines._operations import Operand as Name
from funcopt.torch_bridge.engines._products import rounded_products

_NEUTRAL = {"reduce_sum": "0", "reduce_squares": "0", "reduce_max": "-inf", "reduce_min": "inf"}
"""What an element counts as that is only there to fill a row, or whose parameter has no gradient."""


def _reduces(op: Op) -> bool:
    """Whether an operation makes one number of all elements."""
    return op.name in _NEUTRAL and bool(op.inputs[0].shape) and not op.out.shape


class Scratch(NamedTuple):
    """Memory for what is neither an argument nor a result, beside each chunk."""

    dtype: torch.dtype
    rest: tuple[int, ...]  # shape behind the first dimension


class _Writer:
    """Names of values, and lines."""

    def __init__(self, *, lanes: bool) -> None:
        self.names: dict[Value, Name] = {}
        self.lines: list[str] = []
        self.first: list[str] = []  # lines that come once
        self.constants: list[Constant] = []
        self._wrapped: dict[tuple[str, str], str] = {}
        self._count = 0
        self.context = Context(self._tensor, lanes)

    def new(self, value: Value, letter: str = "v") -> Name:
        """A name for a value."""
        self._count += 1
        name = Name(f"{letter}{self._count}")
        self.names[value] = name
        return name

    def name(self, x: Operand) -> Name:
        """What an operand is called."""
        if isinstance(x, Value):
            return self.names[x]
        if not x.shape:
            return Name(number(x.value), is_number=True)
        if not any(x is known for known in self.constants):
            self.constants.append(x)
        return Name(f"c{next(i for i, known in enumerate(self.constants) if known is x)}")

    def _tensor(self, name: Name, dtype: Any) -> str:
        if not name.is_number:
            return name.text
        key = name.text, name_of(dtype)
        if key not in self._wrapped:
            self._wrapped[key] = f"w{len(self._wrapped)}"
            self.first.append(f"{self._wrapped[key]} = torch.scalar_tensor({key[0]}, dtype={key[1]}, device=device)")
        return self._wrapped[key]

    def call(self, op: Op) -> Call:
        """The call of an operation on what its operands are called."""
        own = [self.name(x) for x in op.inputs]
        return (TORCH.get(op.name) or MANY[op.name])(op, self.context, own)

    @contextlib.contextmanager
    def masked(self, op: Op, mask: str) -> Iterator[None]:
        """Has a reduction, whose line comes within the block, see no elements but those of a mask."""
        own: Any = op.inputs[0]
        x = self.name(own)
        self.lines.append(f"m = torch.where({mask}, {x}, {_NEUTRAL[op.name]})")
        self.names[own] = Name("m")
        yield
        self.names[own] = x

    def assign(self, op: Op, call: Call | None = None) -> None:
        """A line that gives an operation's results their names."""
        call = self.call(op) if call is None else call
        names = [self.new(value).text for value in op.outputs]
        if op.name in MANY:
            names[-1] += ","
        self.lines.append(f"{', '.join(names)} = {call}")


_sources = 0


def _function(source: str, constants: Sequence[Constant]) -> Callable[..., Any]:
    """Makes a function of source that defines `run`; the source is there in tracebacks and to be read."""
    global _sources
    _sources += 1
    name = f"<funcopt {_sources}>"
    namespace: dict[str, Any] = dict(NAMESPACE)
    if constants:
        namespace["_constants"] = [x.value for x in constants]
        namespace["_constant"] = _constant
    exec(compile(source, name, "exec"), namespace)
    linecache.cache[name] = len(source), None, source.splitlines(keepends=True), name
    return namespace["run"]


def _constant(value: np.ndarray, device: Any) -> torch.Tensor:
    value = np.array(value, order="C")  # one that torch may write to
    if torch_dtype(value.dtype) == torch.bfloat16:
        return torch.from_numpy(value.view(np.int16)).view(torch.bfloat16).to(device)
    return torch.from_numpy(value).to(device)


def _indented(lines: Iterable[str], by: int = 1) -> str:
    return "".join(f"{'    ' * by}{line}\n" for line in lines)


def _unpacked(names: Sequence[str], source: str) -> list[str]:
    return [f"{', '.join(names)}, = {source}"] if names else []


def _numbers(writer: _Writer, numbers: Sequence[Value]) -> list[str]:
    """Names for numbers of Python's, which come as floats; and the lines that make them what they are."""
    lines = []
    for i, value in enumerate(numbers):
        writer.names[value] = Name(f"h{i}", is_number=True)
        if value.dtype.kind in "iub":
            lines.append(f"h{i} = {'bool' if value.dtype.kind == 'b' else 'int'}(h{i})")
    return lines


class Chunked(NamedTuple):
    """A function `run(chunks, numbers, totals, device)` that updates chunks in place.

    A chunk is a tuple of the arguments' parts and of scratch memory of the same length. What it returns of each chunk
    is a tuple of scalars, beside those that are made once.
    """

    run: Callable[..., Any]
    scratch: list[Scratch]
    source: str


def chunked(
    ops: Sequence[Op],
    arrays: Sequence[Value],
    into: Mapping[int, Value],
    outputs: Sequence[Operand],
    numbers: Sequence[Value],
    totals: Sequence[Value],
    *,
    masked: bool = False,
) -> Chunked:
    """Writes operations down as a loop over chunks.

    Args:
        ops: what to do, on arrays whose first dimension is that of the elements, and on scalars.
        arrays: the arguments.
        into: by index among `outputs` the argument whose place a result takes; the others are scalars, which are
            returned.
        outputs: the results.
        numbers: arguments that are numbers of Python's.
        totals: arguments that are scalars on the device.
        masked: whether sums leave out what only fills rows. A chunk then has, behind the arguments, what says so.
    """
    writer = _Writer(lanes=True)
    converted = _numbers(writer, numbers)
    for i, value in enumerate(arrays):
        writer.names[value] = Name(f"a{i}")
    for i, value in enumerate(totals):
        writer.names[value] = Name(f"t{i}")
    once, ops = _once(ops, arrays)
    for op in once:
        writer.assign(op)
    once_lines, writer.lines = writer.lines, []
    registers = _Registers(writer, ops, arrays, into, outputs)
    for i, op in enumerate(ops):
        if masked and _reduces(op):
            with writer.masked(op, f"mask{'[:, None]' * (len(op.inputs[0].shape) - 1)}"):
                registers.write(i, op)
        else:
            registers.write(i, op)
    registers.put_back(outputs, into)
    made_once = {x for op in once for x in op.outputs} | {*numbers, *totals}
    returned = [outputs[k] for k in range(len(outputs)) if k not in into]
    of_chunks = [x for x in returned if isinstance(x, Value) and x not in made_once]
    single = [x for x in returned if not (isinstance(x, Value) and x not in made_once)]
    if of_chunks:
        writer.lines.append(f"found.append(({', '.join(str(writer.name(x)) for x in of_chunks)},))")
    loop = [
        *(f"a{i}" for i in range(len(arrays))),
        *(["mask"] if masked else []),
        *(f"s{i}" for i in range(len(registers.scratch))),
    ]
    head = [
        *_unpacked([f"h{i}" for i in range(len(numbers))], "numbers"),
        *converted,
        *_unpacked([f"t{i}" for i in range(len(totals))], "totals"),
        *writer.first,
        *(f"c{i} = _constant(_constants[{i}], device)" for i in range(len(writer.constants))),
        *once_lines,
        "found = []",
        f"for {', '.join(loop)}, in chunks:",
    ]
    tail = f"return found, ({''.join(f'{writer.name(x)}, ' for x in single)})"
    body = _indented(writer.lines or ["pass"], 2)
    source = f"def run(chunks, numbers, totals, device):\n{_indented(head)}{body}{_indented([tail])}"
    return Chunked(_function(source, writer.constants), registers.scratch, source)


def _once(ops: Sequence[Op], arrays: Sequence[Value]) -> tuple[list[Op], list[Op]]:
    """What does not depend on arrays, and the rest."""
    depends, once, rest = set(arrays), [], []
    for op in ops:
        if any(x in depends for x in op.inputs):
            depends.update(op.outputs)
            rest.append(op)
        else:
            once.append(op)
    return once, rest


def _last_reads(ops: Sequence[Op], outputs: Iterable[Operand]) -> dict[Operand, int]:
    """By value: the index of the last operation that reads it; results are read after all."""
    last: dict[Operand, int] = {x: i for i, op in enumerate(ops) for x in op.inputs}
    return {**last, **dict.fromkeys(outputs, len(ops))}


class _Registers:
    """Where results are put: into the memory that they are to end in, or scratch that is used again.

    Everything treats each element alone, so a result may take the place of an operand that is not read any more.
    """

    def __init__(
        self,
        writer: _Writer,
        ops: Sequence[Op],
        arrays: Sequence[Value],
        into: Mapping[int, Value],
        outputs: Sequence[Operand],
    ) -> None:
        self._writer = writer
        self.scratch: list[Scratch] = []
        self._free: list[int] = []
        self._in_scratch: dict[Value, int] = {}
        self._taken: dict[Value, Value] = {}  # by argument: what was put into its memory
        end = len(ops)
        self._last = _last_reads(ops, outputs)
        self._last_view: dict[Value, int] = {}  # of an argument or result: when a view of it is read
        self._base: dict[Value, Value] = {}
        for op in ops:
            if op.name in VIEWS and isinstance(op.inputs[0], Value):
                base = self._base.get(op.inputs[0], op.inputs[0])
                self._base.update(dict.fromkeys(op.outputs, base))
        for view, base in self._base.items():
            self._last_view[base] = max(self._last_view.get(base, -1), self._last.get(view, -1))
        # The argument in whose memory a value is to be; also of what only leads to that value.
        self._to: dict[Value, Value] = {}
        for k, argument in into.items():
            x = outputs[k]
            if isinstance(x, Value) and x not in arrays:
                self._to.setdefault(x, argument)
        made = {op.out for op in ops}
        for i in range(end - 1, -1, -1):
            op = ops[i]
            argument = self._to.get(op.out)
            if argument is None or op.name in VIEWS:
                continue
            for x in op.inputs:
                if not isinstance(x, Value) or x not in made or x in self._to:
                    continue
                if self._last[x] == i and _alike(x, argument):
                    self._to[x] = argument
                    break

    def write(self, i: int, op: Op) -> None:
        """The line of an operation."""
        call = self._writer.call(op)
        is_convert = op.name == "convert_element_type"
        if op.name in MANY or not (call.has_out or is_convert) or not _is_plain(op):
            self._writer.assign(op)
            self._release(i, op)
            return
        place = self._place(i, op)
        name = self._writer.names[op.out] = Name(place)
        if is_convert:
            self._writer.lines.append(f"{name}.copy_({self._writer.name(op.inputs[0])})")
        else:
            self._writer.lines.append(f"{call.function}({', '.join(call.arguments)}, out={name})")
        self._release(i, op)

    def _place(self, i: int, op: Op) -> str:
        value = op.out
        argument = self._to.get(value)
        if argument is not None and self._is_free(argument, i) and _alike(value, argument):
            self._taken[argument] = value
            return self._writer.names[argument].text
        for x in op.inputs:
            if isinstance(x, Value) and x in self._in_scratch and self._last[x] == i and _alike(x, value):
                if self._last_view.get(x, -1) >= i:
                    continue
                self._in_scratch[value] = self._in_scratch.pop(x)
                return f"s{self._in_scratch[value]}"
        want = Scratch(torch_dtype(value.dtype), value.shape[1:])
        index = next((j for j in self._free if self.scratch[j] == want), None)
        if index is None:
            index = len(self.scratch)
            self.scratch.append(want)
        else:
            self._free.remove(index)
        self._in_scratch[value] = index
        return f"s{index}"

    def _is_free(self, argument: Value, i: int) -> bool:
        """Whether an argument's memory may be written by an operation."""
        if self._last.get(argument, -1) > i or self._last_view.get(argument, -1) >= i:
            return False
        held = self._taken.get(argument)
        return held is None or (self._last.get(held, -1) <= i and self._last_view.get(held, -1) < i)

    def _release(self, i: int, op: Op) -> None:
        for x in {x for x in op.inputs if isinstance(x, Value)}:
            self._give_back(self._base.get(x, x), i)

    def _give_back(self, x: Value, i: int) -> None:
        if x in self._in_scratch and self._last.get(x, -1) <= i and self._last_view.get(x, -1) <= i:
            self._free.append(self._in_scratch.pop(x))

    def put_back(self, outputs: Sequence[Operand], into: Mapping[int, Value]) -> None:
        """Lines that bring results to where they are not yet."""
        lines = self._writer.lines
        sources: dict[int, Name] = {}
        for k, argument in into.items():
            x = outputs[k]
            if x is argument or (isinstance(x, Value) and self._taken.get(argument) is x):
                continue
            name = self._writer.name(x)
            # An argument that goes to another one's place may have to give its own to somebody before.
            if isinstance(x, Value) and x in into.values():
                lines.append(f"k{k} = {name}.clone()")
                name = Name(f"k{k}")
            sources[k] = name
        for k, name in sources.items():
            target = self._writer.names[into[k]]
            lines.append(f"{target}.{'fill_' if name.is_number else 'copy_'}({name})")


def _alike(x: Value, y: Value) -> bool:
    return x.dtype == y.dtype and x.shape == y.shape


def _is_plain(op: Op) -> bool:
    """Whether an operation's result has elements of its own for all lanes."""
    return bool(op.out.shape) and op.name not in VIEWS


class Flat(NamedTuple):
    """A function `run(arrays, numbers, totals, rows)` of a whole block, to be compiled as one.

    Numbers are tensors (segments, n), one for each dtype. It writes the results into the arguments, or returns what
    goes into a total.
    """

    run: Callable[..., Any]
    numbers: dict[np.dtype[Any], list[Value]]
    source: str


def flat(
    ops: Sequence[Op],
    arrays: Sequence[Value],
    into: Mapping[int, Value],
    outputs: Sequence[Operand],
    numbers: Sequence[Value],
    totals: Sequence[Value],
    *,
    joined: bool,
) -> Flat:
    """Writes operations down for a block: rows of elements of which each has its parameter's numbers, or one parameter.

    Args:
        ops: as for `chunked`, and so are the following.
        arrays: the arguments.
        into: the argument whose place a result takes.
        outputs: the results.
        numbers: arguments that are numbers.
        totals: arguments that are scalars on the device.
        joined: whether there are rows. The last argument of the function says of each which parameter it belongs to,
            and how many elements of it count for totals.
    """
    writer = _Writer(lanes=True)
    by_dtype: dict[np.dtype[Any], list[Value]] = {}
    for value in numbers:
        by_dtype.setdefault(value.dtype, []).append(value)
    columns = []
    for i, own in enumerate(by_dtype.values()):
        for j, value in enumerate(own):
            name = writer.new(value, "n")
            columns.append(f"{name} = p{i}[:, {j}][segment][:, None]" if joined else f"{name} = p{i}[0, {j}]")
    for i, value in enumerate(arrays):
        writer.names[value] = Name(f"a{i}")
    for i, value in enumerate(totals):
        writer.names[value] = Name(f"t{i}")
    for op in ops:
        if joined and _reduces(op):
            with writer.masked(op, "lanes < filled[:, None]"):
                writer.assign(op)
        else:
            writer.assign(op)
    kept, copies, returned = [], [], []
    for k, x in enumerate(outputs):
        name = writer.name(x)
        if k not in into:
            returned.append(str(name))
        elif x is not into[k]:
            target = writer.names[into[k]]
            if x in into.values():  # which may be written before
                kept.append(f"k{k} = {name}.clone()")
                name = Name(f"k{k}")
            copies.append(f"{target}.{'fill_' if name.is_number else 'copy_'}({name})")
    # All are made before any is written.
    source = _indented(
        [
            *_unpacked([f"a{i}" for i in range(len(arrays))], "arrays"),
            *_unpacked([f"p{i}" for i in range(len(by_dtype))], "numbers"),
            *_unpacked([f"t{i}" for i in range(len(totals))], "totals"),
            "device = a0.device",
            *(["segment, filled = rows", "lanes = torch.arange(a0.shape[1], device=device)"] if joined else []),
            *columns,
            *writer.first,
            *writer.lines,
            *kept,
            *copies,
            f"return ({''.join(f'{name}, ' for name in returned)})",
        ]
    )
    source = f"def run(arrays, numbers, totals, rows):\n{source}"
    return Flat(_function(source, writer.constants), by_dtype, source)


class Functional(NamedTuple):
    """A function `run(arrays, numbers, device)` that returns the results, or, with totals, a generator.

    The generator yields what goes into each total and how it is joined, and is sent the totals.
    """

    run: Callable[..., Any]
    numbers: list[Value]  # which it takes
    host: list[Op]  # which make them
    source: str


def functional(
    ops: Sequence[Op],
    arrays: Sequence[Value],
    numbers: Sequence[Value],
    outputs: Sequence[Operand],
    places: Mapping[int, Value],
    *,
    in_place: bool = False,
) -> Functional:
    """Writes operations down as a function of whole tensors, out of place.

    Args:
        ops: what to do.
        arrays: arguments that are tensors.
        numbers: arguments that are numbers of Python's, or what those depend on.
        outputs: the results, in which numbers stay numbers.
        places: by index among `outputs` the argument that a result will replace. What else is an argument, or lies in
            its memory, is copied.
        in_place: whether results may take the memory of operands that nobody reads any more; autograd would read them.
    """
    found = split(ops, outputs, numbers)
    scalars = {*found.numbers, *numbers}
    is_number = lambda x: not x.shape and (isinstance(x, Constant) or x in scalars)  # noqa: E731
    ops = in_order(fused(rounded_products(found.ops, outputs, is_number), outputs, is_number))
    writer = _Writer(lanes=False)
    converted = _numbers(writer, found.numbers)
    for i, value in enumerate(arrays):
        writer.names[value] = Name(f"a{i}")
    made, last = {x for op in ops for x in op.outputs}, _last_reads(ops, outputs)
    overwriting = _Overwriting(last)
    crossing = False
    for i, op in enumerate(ops):
        if op.name == TOTAL:
            crossing = True
            own = ", ".join(writer.context.tensor(writer.name(x), x.dtype) for x in op.inputs)
            names = ", ".join(writer.new(value).text for value in op.outputs)
            writer.lines.append(f"{names}, = yield [{own}], _joins[{_index(ops, op)}]")
            overwriting.share(op)
            taken = None
        else:
            call = writer.call(op)
            taken = overwriting.operand(i, op, call) if in_place else None
            if taken is None:
                writer.assign(op, call)
            else:
                writer.names[op.out] = writer.names[taken]
                writer.lines.append(f"{call.function}({', '.join(call.arguments)}, out={writer.name(taken)})")
        # What nobody reads any more makes room: memory that is asked for anew costs more than a pass over it.
        over = dict.fromkeys(x for x in op.inputs if x in made and last[x] == i and x is not taken)
        if over:
            writer.lines.append(f"del {', '.join(str(writer.name(x)) for x in over)}")
    lent = set(arrays)
    for op in ops:
        if op.name in VIEWS and op.inputs[0] in lent:
            lent.update(op.outputs)
    names = [str(writer.name(x)) for x in outputs]
    results = ", ".join(
        f"{name}.clone()" if x in lent and places.get(k) is not x else name
        for k, (x, name) in enumerate(zip(outputs, names, strict=True))
    )
    head = [
        *_unpacked([f"a{i}" for i in range(len(arrays))], "arrays"),
        *_unpacked([f"h{i}" for i in range(len(found.numbers))], "numbers"),
        *converted,
        *(f"c{i} = _constant(_constants[{i}], device)" for i, x in enumerate(writer.constants) if x.shape),
        *writer.first,
    ]
    source = f"def run(arrays, numbers, device):\n{_indented([*head, *writer.lines, f'return [{results}]'])}"
    run = _function(source, writer.constants)
    if crossing:
        run.__globals__["_joins"] = [op.params["join"] for op in ops if op.name == TOTAL]
    return Functional(run, found.numbers, found.host, source)


_ELEMENTS = (_segments.KEEP_ELEMENTS_APART | {"add_scaled", "addcdiv", "addcmul", "lerp"}) - VIEWS


class _Overwriting:
    """Finds the operand whose memory the result of an operation on elements may take, since nobody reads it later."""

    def __init__(self, last: Mapping[Operand, int]) -> None:
        self._last = last
        self._sharing: dict[Value, list[Value]] = {}  # by value with memory of its own: what may lie in it
        self._owner: dict[Value, Value] = {}

    def operand(self, i: int, op: Op, call: Call) -> Value | None:
        """The operand whose memory the result of the i-th operation is to take, if any."""
        result = op.out
        converts = op.name == "convert_element_type" and torch_dtype(op.inputs[0].dtype) != torch_dtype(result.dtype)
        if call.has_out or converts:
            self._owner[result], self._sharing[result] = result, [result]
        else:
            self.share(op)
        if not call.has_out or op.name not in _ELEMENTS:
            return None
        for x in op.inputs:
            if isinstance(x, Value) and x in self._sharing and _alike(x, result) and self._is_dead(x, i):
                return x
        return None

    def share(self, op: Op) -> None:
        """Notes that an operation's results may lie in its operands' memory."""
        for owner in {self._owner[x] for x in op.inputs if isinstance(x, Value) and x in self._owner}:
            self._sharing[owner] += op.outputs
            self._owner.update(dict.fromkeys(op.outputs, owner))

    def _is_dead(self, x: Value, i: int) -> bool:
        return self._last[x] == i and all(self._last.get(y, -1) < i for y in self._sharing[x] if y is not x)


def _index(ops: Sequence[Op], op: Op) -> int:
    return [own for own in ops if own.name == TOTAL].index(op)
