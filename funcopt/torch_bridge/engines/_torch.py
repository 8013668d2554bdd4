"""The torch engine: the same recipes as operations of torch, on whatever device the parameters are on.

JAX traces a recipe once, on the CPU. What depends on numbers alone is computed by NumPy, for all parameters of a block
at once; the rest are torch's operations on flat memory, in place, chunk by chunk, so that what lies between two
operations stays in the cache. Nothing waits for the device.
"""

import collections
import contextlib
import functools
import math
import threading
from collections.abc import Callable, Generator, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import torch

from funcopt.torch_bridge._buffers import jax_dtype, torch_dtype
from funcopt.torch_bridge._units import Form, form_of
from funcopt.torch_bridge.engines import _recipes
from funcopt.torch_bridge.engines._code import Chunked, Functional, Scratch, chunked, functional
from funcopt.torch_bridge.engines._engine import Part, Updated
from funcopt.torch_bridge.engines._lowering import (
    TOTAL,
    Operand,
    decided,
    deciding,
    fused,
    join_of,
    lower,
    needed,
    run_host,
    split,
    without_splats,
    zeros,
)
from funcopt.torch_bridge.engines._memory import Memory, TorchMemory
from funcopt.torch_bridge.engines._operations import Op, Value
from funcopt.torch_bridge.engines._recipes import DUE, Elementwise, Whole
from funcopt.torch_bridge.engines._segments import NotByRows, Traced

CHUNK = 65_536
"""Elements that a thread of the CPU has at a time: of fewer, to start an operation takes longer than to run it; of
more, what lies between two operations does not stay in the cache."""

CHUNK_ELSEWHERE = 2**22
"""The same on a device where starting an operation takes longer than a thread's."""

WIDTH = 64
"""Elements of what stands for rows of any width."""

MAX_SPANS = 64
"""Parts of a block's memory that are remembered."""

MAX_CODES = 1024
"""Pieces of code that are kept; after that the one that was used least recently goes."""

_JOIN = {"sum": torch.sum, "amax": torch.amax, "amin": torch.amin}


class Rows:
    """Where the parameters of a block are.

    Args:
        segment: int32 (rows,), which parameter a row belongs to.
        filled: int32 (rows,), how many elements of a row are a parameter's.
        width: elements of a row.
    """

    def __init__(self, segment: np.ndarray, filled: np.ndarray, width: int) -> None:
        own = segment[filled > 0]
        self._filled = np.bincount(own, weights=filled[filled > 0]).astype(np.int64)
        self._start = np.concatenate([[0], np.cumsum(np.bincount(own))]) * width
        self._chunks: dict[Any, tuple[list[int], list[Any]]] = {}

    def of(self, first: int, last: int) -> tuple[int, int]:
        """The memory of parameters that follow each other."""
        end = len(self._filled)
        return int(self._start[min(first, end)]), int(self._start[min(last + 1, end)])

    def exactly(self, first: int, last: int) -> list[tuple[int, int]]:
        """The elements of each of them."""
        own = range(first, min(last + 1, len(self._filled)))
        return [(int(self._start[i]), int(self._start[i] + self._filled[i])) for i in own if self._filled[i]]

    def chunks(self, arrays: list[torch.Tensor], start: int, stop: int, size: int, scratch: list[Scratch]) -> list[Any]:
        """The parts of arrays, which are the same ones as a rule."""
        key = start, stop, size, tuple(scratch)
        known, addresses = self._chunks.get(key), [x.data_ptr() for x in arrays]
        if known is None or known[0] != addresses:
            if len(self._chunks) >= MAX_SPANS:
                self._chunks.clear()
            known = self._chunks[key] = addresses, list(_chunks([x[start:stop] for x in arrays], size, scratch))
        return known[1]


class Elements:
    """An elementwise recipe as code, for any shapes and numbers."""

    def __init__(self, traced: Traced) -> None:
        lowered = lower(traced.closed)
        ops, outputs = without_splats(lowered.ops, lowered.outputs)
        ops = needed(ops, outputs)
        shared, own, _ = traced.inputs
        self.shared, self.own = lowered.inputs[:shared], lowered.inputs[shared : shared + own]
        self.arrays = lowered.inputs[shared + own :]
        found = split(ops, outputs, [*self.shared, *self.own])
        self._host, self._ops, self._outputs = found.host, found.ops, outputs
        self._is_host = {*self.shared, *self.own, *(op.out for op in found.host)}
        self._numbers = found.numbers
        self._deciding = deciding(found.ops, found.numbers)
        self.counts = traced.outputs
        self.totals = [op for op in found.ops if op.name == TOTAL]
        self._zeros = zeros(found.ops, self.arrays[0], self._is_number)
        self._codes: dict[Any, tuple[Chunked, list[Value]]] = {}
        self._check()

    def _is_number(self, x: Operand) -> bool:
        return not x.shape and (not isinstance(x, Value) or x in self._is_host)

    def _check(self) -> None:
        """Refuses totals of anything but elements, and what no operation of torch is."""
        of_elements = {*self.arrays}
        for op in self._ops:
            if op.name == TOTAL:
                if join_of(op) is None or not all(x in of_elements for x in op.inputs):
                    raise NotByRows("totals that are not of elements")
            elif any(x in of_elements for x in op.inputs):
                of_elements.update(op.outputs)
        for stage in range(len(self.totals) + 1):
            self.code(stage, tuple(0 for _ in self._deciding))

    def is_padded(self, stage: int) -> bool:
        """Whether a total is the same with the zeros that fill rows."""
        op = self.totals[stage]
        made = {own.out: own for own in self._ops}
        todo, reductions = list(op.inputs), []
        while todo:
            own = made.get(todo.pop())  # pyright: ignore[reportArgumentType]
            if own is not None and own.name.startswith("reduce_") and not own.out.shape:
                reductions.append(own)
            elif own is not None:
                todo += own.inputs
        return all(own.name == "reduce_sum" and own.inputs[0] in self._zeros for own in reductions)

    def host(self, shared: np.ndarray, own: np.ndarray) -> "HostNumbers":
        """What depends on numbers alone: of all segments at once."""
        known: dict[Value, Any] = dict(zip(self.shared, shared, strict=True))
        known.update((value, own[:, i]) for i, value in enumerate(self.own))
        return HostNumbers(self, run_host(self._host, known), len(own))

    def code(self, stage: int, choices: tuple[int, ...]) -> tuple[Chunked, list[Value]]:
        """The code that leads to a total, or after the last one to the results; and the numbers that it takes."""
        if (stage, choices) not in self._codes:
            self._codes[stage, choices] = self._write(stage, dict(zip(self._deciding, choices, strict=True)))
        return self._codes[stage, choices]

    def _write(self, stage: int, choices: dict[Value, int]) -> tuple[Chunked, list[Value]]:
        last = stage == len(self.totals)
        outputs = self._outputs if last else [*self.totals[stage].inputs]
        # Numbers of the host are returned by the host.
        outputs = [x for k, x in enumerate(outputs) if (last and k < self.counts[0]) or not self._is_number(x)]
        totals = [x for op in self.totals[:stage] for x in op.outputs]
        ops = [op for op in self._ops if op.name != TOTAL]
        ops, outputs = decided(ops, outputs, choices)
        ops = fused(ops, outputs, self._is_number)
        into = dict(enumerate(self.arrays[1 : 1 + self.counts[0]])) if last else {}
        used = {x for op in ops for x in op.inputs} | {*outputs}
        numbers = [x for x in self._numbers if x in used]
        code = chunked(ops, self.arrays, into, outputs, numbers, totals)
        return code, numbers

    def choices(self, numbers: "HostNumbers", segment: int) -> tuple[int, ...]:
        """What a segment's numbers decide."""
        return tuple(int(numbers.of(x, segment)) for x in self._deciding)

    @property
    def all_numbers(self) -> list[Value]:
        """What the host computes for the device."""
        return self._numbers

    @property
    def returned(self) -> list[Operand]:
        """Scalars among the results."""
        return self._outputs[self.counts[0] :]

    def is_of_host(self, x: Operand) -> bool:
        """Whether a result is a number of the host."""
        return self._is_number(x)


class HostNumbers:
    """Numbers of all segments."""

    def __init__(self, elements: Elements, known: dict[Value, Any], segments: int) -> None:
        self._known, self.segments = known, segments
        own = [np.broadcast_to(np.asarray(known[x], np.float64), segments) for x in elements.all_numbers]
        self._index = {x: i for i, x in enumerate(elements.all_numbers)}
        self.columns = np.stack(own) if own else np.zeros((0, segments))

    def of(self, value: Value, segment: int) -> float:
        """A number of a segment."""
        return float(self.columns[self._index[value], segment])

    def all(self, x: Operand) -> Any:
        """A number of all segments."""
        value = self._known[x] if isinstance(x, Value) else x.value
        return np.broadcast_to(np.asarray(value, np.float64), self.segments)

    def spans(self, due: np.ndarray) -> list[tuple[int, int]]:
        """The first and the last of segments that follow each other and have the same numbers."""
        which = np.flatnonzero(due)
        if not len(which):
            return []
        bits = self.columns.view(np.int64)[:, which]
        same = (np.diff(which) == 1) & (bits[:, 1:] == bits[:, :-1]).all(axis=0)
        ends = np.flatnonzero(~same)
        firsts, lasts = which[np.concatenate([[0], ends + 1])], which[np.concatenate([ends, [len(which) - 1]])]
        return list(zip(firsts.tolist(), lasts.tolist(), strict=True))


@functools.lru_cache(maxsize=512)
def _elements(recipe: Elementwise) -> Elements:
    with jax.enable_x64(True):
        return Elements(_recipes.traced(recipe, WIDTH))


Run = Generator[tuple[list[torch.Tensor], Any], list[torch.Tensor], Updated]
"""An update that yields what it adds to a total and what joins two of them, and is sent the total of all."""


class Engine:
    """Runs recipes as operations of torch, on the device of what they are given."""

    name = "torch"
    takes_any_memory = True

    def __init__(self) -> None:
        self.used: set[Any] = set()

    @contextlib.contextmanager
    def precision(self) -> Iterator[None]:
        """The context in which recipes are traced."""
        with jax.enable_x64(True):
            yield

    def memory(self, shape: Sequence[int], dtype: torch.dtype, device: torch.device) -> Memory:
        """Zeros on a device."""
        return TorchMemory(shape, dtype, device)

    def rows(self, segment: np.ndarray, filled: np.ndarray, width: int) -> Rows:
        """Where the parameters of a block are."""
        return Rows(segment, filled, width)

    def lend(self, tensor: torch.Tensor) -> torch.Tensor:
        """The tensor."""
        return tensor.detach().resolve_conj().resolve_neg()

    def tensor(self, array: Any) -> torch.Tensor:
        """The tensor, or one of a number."""
        return torch.as_tensor(array)

    def load(self, value: Any, like: Any, device: torch.device) -> torch.Tensor:
        """A value of a state as a tensor like that of a new one."""
        return torch.as_tensor(value).to(device=device, dtype=self.tensor(like).dtype)

    def update(self, parts: Sequence[Part], shared: np.ndarray) -> list[Updated]:
        """One update of all parts, in which a total of one is that of all.

        Args:
            parts: what to update.
            shared: float64 (n,), numbers for all.

        Raises:
            NotByRows: if a recipe needs more of a parameter than its elements.
        """
        runs: list[Run] = []
        keys: set[Any] = set()
        for part in parts:
            recipe = part.recipe
            if isinstance(recipe, Whole):
                alone = len(parts) == 1
                key = recipe, part.arrangement, len(shared), alone
                code = _kept(key, lambda part=part, alone=alone: WholeCode.of(part, len(shared), alone=alone))
                runs.append(_run_whole(part, shared, code))
            else:
                key = recipe
                runs.append(_run_elements(part, shared, _elements(recipe)))
            keys.add(key)
        self.used.add(frozenset(keys))
        return _lockstep(runs)

    def init(self, recipe: Whole, numbers: np.ndarray, params: Sequence[torch.Tensor]) -> list[Any]:
        """The leaves of a new state of parameters in their own shapes."""
        shapes = [jax.ShapeDtypeStruct(tuple(p.shape), jax_dtype(p.dtype)) for p in params]
        key = recipe, "init", numbers.shape, *((x.shape, x.dtype) for x in shapes)
        code = _kept(key, lambda: _init_code(recipe, numbers, shapes))
        known = run_host(code.host, dict(zip(code.given, numbers, strict=True)))
        device = params[0].device if params else torch.device("cpu")
        found = code.run(list(params), [known[x].item() for x in code.numbers], device)
        return [self.tensor(_as_array(x, out)).clone() for x, out in zip(found, code.outputs, strict=True)]

    def form(self, recipe: Whole, numbers: np.ndarray, params: Sequence[jax.ShapeDtypeStruct]) -> Form:
        """What the state of parameters in their own shapes consists of."""
        key = recipe, "form", numbers.shape, *((x.shape, x.dtype) for x in params)
        with self.precision():
            return _kept(key, lambda: form_of(jax.eval_shape(recipe.init, numbers, list(params))))


_codes: collections.OrderedDict[Any, Any] = collections.OrderedDict()
_lock = threading.RLock()


def _kept(key: Any, make: Callable[[], Any]) -> Any:
    with _lock:
        if key not in _codes:
            _codes[key] = make()
            while len(_codes) > MAX_CODES:
                _codes.popitem(last=False)
        _codes.move_to_end(key)
        return _codes[key]


def forget_codes() -> None:
    """Has everything written anew."""
    with _lock:
        _codes.clear()
        _elements.cache_clear()
        _recipes.forget()


# Elementwise recipes.


def _run_elements(part: Part, shared: np.ndarray, elements: Elements) -> Run:
    grads, rows = part.given
    arrays = [x.view(-1) for x in (grads, *part.donated)]
    numbers = elements.host(shared, part.own)
    spans = numbers.spans(part.own[:, DUE] != 0)
    device, size = arrays[0].device, _chunk_size(arrays[0].device)
    totals: list[torch.Tensor] = []

    def run(stage: int, *, exactly: bool = False) -> tuple[list[Any], list[Any]]:
        """What all chunks return, and what each span does."""
        of_chunks: list[Any] = []
        of_spans: list[Any] = []
        for first, last in spans:
            code, wanted = elements.code(stage, elements.choices(numbers, first))
            own, single = [numbers.of(x, first) for x in wanted], ()
            for start, stop in [(0, arrays[0].numel())] if rows is None else _ranges(rows, first, last, exactly):
                chunks = (
                    _chunks(arrays, size, code.scratch)
                    if rows is None
                    else rows.chunks(arrays, start, stop, size, code.scratch)
                )
                found, single = code.run(chunks, own, totals, device)
                of_chunks += found
            of_spans.append(single)
        return of_chunks, of_spans

    for stage, op in enumerate(elements.totals):
        found, _ = run(stage, exactly=rows is not None and not elements.is_padded(stage))
        how = join_of(op)
        assert how is not None
        own = (
            [_JOIN[how](torch.stack(column)) for column in zip(*found, strict=True)]
            if found
            else [_nothing(how, x, device) for x in op.inputs]
        )
        sent = yield own, op.params["join"]
        totals += sent
    _, of_spans = run(len(elements.totals))
    return Updated(part.donated, _returned(elements, numbers, spans, of_spans))


def _ranges(rows: Rows, first: int, last: int, exactly: bool) -> list[tuple[int, int]]:
    return rows.exactly(first, last) if exactly else [rows.of(first, last)]


def _returned(elements: Elements, numbers: HostNumbers, spans: Sequence[tuple[int, int]], found: Sequence[Any]) -> Any:
    """The numbers that come back: those of all segments, then those for all."""
    _, own, _ = elements.counts
    columns, device = [], 0
    for x in elements.returned:
        column = np.array(numbers.all(x)) if elements.is_of_host(x) else np.zeros(numbers.segments)
        if not elements.is_of_host(x):
            for (first, last), values in zip(spans, found, strict=True):
                column[first : last + 1] = float(values[device])
            device += 1
        columns.append(column)
    first = spans[0][0] if spans else 0
    mine = np.stack(columns[:own], axis=1).ravel() if own else np.zeros(0)
    return np.concatenate([mine, [column[first] for column in columns[own:]]])


def _nothing(how: str, like: Operand, device: torch.device) -> torch.Tensor:
    """The total of no elements."""
    values = {"sum": 0.0, "amax": -math.inf, "amin": math.inf}
    return torch.full((), values[how], dtype=torch_dtype(like.dtype), device=device)


def _chunk_size(device: torch.device) -> int:
    return CHUNK * torch.get_num_threads() if device.type == "cpu" else CHUNK_ELSEWHERE


def _chunks(
    arrays: Sequence[torch.Tensor], size: int, scratch: Sequence[Scratch]
) -> Iterator[tuple[torch.Tensor, ...]]:
    """The parts of arrays, each with as much scratch memory."""
    length = arrays[0].numel()
    if not length:
        return
    free = _scratch(scratch, min(size, length), arrays[0].device)
    for parts in zip(*(x.split(size) for x in arrays), strict=True):
        short = len(parts[0])
        yield (*parts, *(free if short == min(size, length) else [x[:short] for x in free]))


_free: dict[Any, list[torch.Tensor]] = {}


def _scratch(wanted: Sequence[Scratch], size: int, device: torch.device) -> list[torch.Tensor]:
    """Memory that the whole process uses for what lies between two operations."""
    used: collections.Counter[Any] = collections.Counter()
    found = []
    for own in wanted:
        key = own, device
        known = _free.setdefault(key, [])
        if used[key] == len(known):
            known.append(torch.empty((0, *own.rest), dtype=own.dtype, device=device))
        if len(known[used[key]]) < size:
            known[used[key]] = torch.empty((size, *own.rest), dtype=own.dtype, device=device)
        found.append(known[used[key]][:size])
        used[key] += 1
    return found


# Recipes on parameters in their own shapes.


class WholeCode(NamedTuple):
    """A recipe as code, for some shapes."""

    code: Functional
    given: list[Value]  # the numbers that it is given
    is_host: list[bool]  # of the arrays: whether they are numbers of the host
    outputs: list[Operand]
    structure: Any

    @classmethod
    def of(cls, part: Part, shared: int, *, alone: bool) -> "WholeCode":
        """Traces a part's recipe."""
        numbers, due, *trees = part.given
        leaves, treedef = jax.tree.flatten(trees)
        is_host = [isinstance(x, np.ndarray | np.generic) for x in leaves]
        shapes = [
            jax.ShapeDtypeStruct(tuple(x.shape), x.dtype if own else jax_dtype(x.dtype))
            for x, own in zip(leaves, is_host, strict=True)
        ]
        assert isinstance(part.recipe, Whole)
        with jax.enable_x64(True):
            traced, structure = part.recipe.trace((shared, len(numbers), len(due)), treedef, shapes, totals=not alone)
            lowered = lower(traced.closed)
        scalars = shared + len(numbers) + len(due)
        arrays = lowered.inputs[scalars:]
        given = [*lowered.inputs[:scalars], *(x for x, own in zip(arrays, is_host, strict=True) if own)]
        tensors = [x for x, own in zip(arrays, is_host, strict=True) if not own]
        grads = len(jax.tree.leaves(trees[0]))
        places = dict(enumerate(arrays[grads:]))
        code = functional(lowered.ops, tensors, given, lowered.outputs, places)
        return cls(code, given, is_host, lowered.outputs, structure)


def _run_whole(part: Part, shared: np.ndarray, own: WholeCode) -> Run:
    numbers, due, *trees = part.given
    leaves = jax.tree.leaves(trees)
    hosts = [x for x, is_host in zip(leaves, own.is_host, strict=True) if is_host]
    tensors = [x for x, is_host in zip(leaves, own.is_host, strict=True) if not is_host]
    known = run_host(own.code.host, dict(zip(own.given, [*shared, *numbers, *due, *hosts], strict=True)))
    device = tensors[0].device
    results = own.code.run(tensors, [np.asarray(known[x]).item() for x in own.code.numbers], device)
    if isinstance(results, Generator):
        results = yield from results
    arrays = [_as_array(x, out) for x, out in zip(results, own.outputs, strict=True)]
    return Updated(own.structure.unflatten(arrays), np.zeros(0))


def _as_array(x: Any, like: Operand) -> Any:
    """A result; a number in the dtype that was traced."""
    if isinstance(x, torch.Tensor):
        return x
    return torch.tensor(x, dtype=torch_dtype(like.dtype)) if like.dtype.kind == "V" else np.asarray(x, like.dtype)


class InitCode(NamedTuple):
    """How a state begins, as code."""

    run: Callable[..., list[Any]]
    numbers: list[Value]
    host: list[Op]
    given: list[Value]
    outputs: list[Operand]


def _init_code(recipe: Whole, numbers: np.ndarray, params: Sequence[jax.ShapeDtypeStruct]) -> InitCode:
    def init(numbers: list[Any], params: list[Any]) -> list[Any]:
        return jax.tree.leaves(recipe.init(jnp.stack(numbers) if numbers else jnp.zeros(0), params))

    with jax.enable_x64(True):
        own = [jax.ShapeDtypeStruct((), jnp.float64)] * len(numbers)
        lowered = lower(jax.make_jaxpr(init)(own, list(params)))
    given, arrays = lowered.inputs[: len(numbers)], lowered.inputs[len(numbers) :]
    code = functional(lowered.ops, arrays, given, lowered.outputs, {})
    return InitCode(code.run, code.numbers, code.host, given, lowered.outputs)


# Totals.


def _lockstep(runs: Sequence[Run]) -> list[Updated]:
    """Runs all parts, each total of one joined with those of the others that come to it at the same time."""
    results: dict[int, Updated] = {}
    waiting: dict[int, list[torch.Tensor] | None] = dict.fromkeys(range(len(runs)))
    while waiting:
        totals: dict[int, tuple[list[torch.Tensor], Any]] = {}
        for i, sent in waiting.items():
            try:
                totals[i] = runs[i].send(sent) if sent is not None else next(runs[i])
            except StopIteration as stop:
                results[i] = stop.value
        waiting = {}
        if totals:
            (first, *_), join = next(iter(totals.values()))
            columns = zip(*(own for own, _ in totals.values()), strict=True)
            joined = [
                functools.reduce(_joining(join), [x.to(first.device, column[0].dtype) for x in column])
                for column in columns
            ]
            # Each part has the total in the dtype that it was traced with.
            waiting = {
                i: [x.to(y.device, y.dtype) for x, y in zip(joined, own, strict=True)] for i, (own, _) in totals.items()
            }
    return [results[i] for i in range(len(runs))]


_JOINING: dict[Any, Callable[[torch.Tensor, torch.Tensor], torch.Tensor]] = {
    jnp.add: torch.add,
    jnp.maximum: torch.maximum,
    jnp.minimum: torch.minimum,
}


def _joining(join: Callable[[Any, Any], Any]) -> Callable[[torch.Tensor, torch.Tensor], torch.Tensor]:
    """What joins two totals, in torch."""
    return _JOINING.get(join) or functools.partial(_join_traced, join)


def _join_traced(join: Callable[[Any, Any], Any], a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    def make() -> Functional:
        shapes = [jax.ShapeDtypeStruct(tuple(x.shape), jax_dtype(x.dtype)) for x in (a, b)]
        with jax.enable_x64(True):
            lowered = lower(jax.make_jaxpr(join)(*shapes))
        return functional(lowered.ops, lowered.inputs, [], lowered.outputs, {})

    (joined,) = _kept((join, a.shape, a.dtype, b.dtype), make).run([a, b], [], a.device)
    return joined
