"""A *block*: parameters that one recipe updates element by element, and their state, each quantity one array.

Small parameters are joined, as rows of few elements with zeros after the last; a large one is a block of its own. Where
the recipe also takes sums of each, such as its norm, those that are joined have one shape, and one row each. Whatever
holds a parameter's elements or its state's, in the user's hands, is a tensor over the block's memory. What cannot be,
since something else shares its memory, is *away*: copied in before the update and out after it.
"""

import dataclasses
import itertools
import operator
from collections.abc import Callable, Iterable, Mapping, Sequence
from operator import attrgetter
from typing import Any, NamedTuple

import numpy as np
import torch

from funcopt.torch_bridge._binding import Binding, ProgramClass
from funcopt.torch_bridge._buffers import jax_dtype, torch_dtype
from funcopt.torch_bridge._metrics import Reading
from funcopt.torch_bridge._shards import Sharding, as_part_of, local, local_like, reducer, sharding_of
from funcopt.torch_bridge._units import Entry, Unit, value_of
from funcopt.torch_bridge.engines._engine import Engine, Measurement, Part, Updated
from funcopt.torch_bridge.engines._memory import NOTHING, Loan, Memory
from funcopt.torch_bridge.engines._recipes import DUE, FRESH, ClassForm, Elementwise, Given
from funcopt.torch_bridge.store._memory import Arrangement, Numbers, is_movable, lend, round_up

_address, _size = torch.Tensor.data_ptr, torch.Tensor.numel
_stride: Callable[[torch.Tensor], tuple[int, ...]] = torch.Tensor.stride
_dtype_of = attrgetter("dtype")

WIDTHS = 64, 256, 1024
"""Elements of a row. Fewer make the numbers of a row weigh more, and more make small parameters longer."""

LEAST_ROWS, LEAST_SEGMENTS = 256, 32
"""Sizes of a small block, of the least width: whatever is smaller runs the same program."""

State = Mapping[torch.Tensor, Entry]


class Kind(NamedTuple):
    """What parameters that run together have in common."""

    found: ProgramClass
    dtype: torch.dtype
    device: torch.device  # where they are updated
    sharding: Sharding | None = None  # how they are divided over processes, each of which updates its part


class Change(NamedTuple):
    """What is new of a parameter."""

    place: int
    param: torch.Tensor
    entry: Entry | None
    values: dict[Unit, Any]  # of the state; none of a parameter that was never updated
    copies: dict[Unit, torch.Tensor | float | None]  # of those that lie elsewhere
    data: torch.Tensor | None  # a copy of the parameter's, if it lies elsewhere


class Held:
    """One quantity of a block's parameters, as the user has it."""

    def __init__(self) -> None:
        self.held: list[Any] = []  # tensors, None where there is nothing yet
        self.addresses: list[int] = []
        self.lent: list[Callable[[], object]] = []  # what is not None while anybody has a place's memory
        self._noted: list[torch.Tensor] = []
        self._noted_addresses: list[int] = []

    def add_one(self) -> None:
        """A further parameter."""
        self.held.append(None)
        self.addresses.append(0)
        self.lent.append(NOTHING.held)

    def holds(self, i: int, value: Any) -> bool:
        """Whether a value is what it was, where it was."""
        return value is not None and value is self.held[i] and local(value).data_ptr() == self.addresses[i]

    def is_where_it_was(self) -> bool:
        """Whether all that the user had is in the memory in which it was when that was noted."""
        return list(map(_address, self._noted)) == self._noted_addresses

    def note(self) -> None:
        """Notes what the user has, and where."""
        own = [
            (local(tensor), address)
            for tensor, address in zip(self.held, self.addresses, strict=True)
            if tensor is not None
        ]
        self._noted, self._noted_addresses = [tensor for tensor, _ in own], [address for _, address in own]

    def is_taken(self, i: int, value: Any) -> bool:
        """Whether somebody has the memory of what the optimizer has no more; forgets what that was."""
        if self.held[i] is None or self.holds(i, value):
            return False
        self.held[i] = None
        self._noted, self._noted_addresses = [], []
        return self.lent[i]() is not None

    def hold(self, i: int, tensor: torch.Tensor) -> torch.Tensor:
        """Tells what the user has."""
        self.held[i], self.addresses[i] = tensor, local(tensor).data_ptr()
        return tensor

    def drop(self, i: int) -> None:
        """Forgets what the user has."""
        self.held[i], self.addresses[i] = None, 0


class Column(Held):
    """One quantity that is an array: the parameters' elements, or one array of their state."""

    def __init__(self, memory: Memory) -> None:
        super().__init__()
        self.memory = memory
        self.views: list[torch.Tensor] = []  # the parameters' places in the memory
        self.away: set[int] = set()

    def add(self, arrangement: Arrangement, start: int, size: int) -> None:
        """A further parameter's place.

        Args:
            arrangement: of its elements.
            start: index of the first of them.
            size: how many there are.
        """
        self.add_one()
        self.views.append(arrangement.view(self.memory.tensor[start : start + size]))

    def lend(self, due: Iterable[int]) -> Any:
        """What the update takes, with the values of what is away."""
        self._copy_in(due)
        return self.memory.lend()

    def store(self, result: Any, due: Iterable[int]) -> None:
        """Takes the update's result over."""
        self.memory.store(result)
        self._copy_out(due)

    def start(self, i: int, constant: float) -> None:
        """Fills a place anew."""
        self.views[i].fill_(constant)

    def copy_of(self, tensor: torch.Tensor) -> torch.Tensor:
        """What `take` is to be given of values that may lie in this or another memory, which is written before."""
        return tensor.detach().clone()

    def take(
        self,
        i: int,
        values: Any,
        tensor: torch.Tensor | None,
        own: Callable[[], Loan],
        like: torch.Tensor,
        *,
        same: bool = False,
    ) -> torch.Tensor:
        """Takes values over, and makes the tensor that has them live in the memory: see `put`."""
        self.views[i].copy_(values)
        return self.put(i, tensor, own, like, same=same)

    def put(
        self,
        i: int,
        tensor: torch.Tensor | None,
        own: Callable[[], Loan],
        like: torch.Tensor,
        *,
        same: bool = False,
    ) -> torch.Tensor:
        """Makes a tensor live in the memory, which has its values already; a new one where there is none.

        Args:
            i: the parameter.
            tensor: what the user has.
            own: makes a tensor over the parameter's place.
            like: the parameter; a new tensor is divided over processes as it is.
            same: whether no other tensor can take this one's place, as none can a parameter's; otherwise one that
                shares its memory with others in another place of this memory is left to them.
        """
        self.away.discard(i)
        if tensor is None or (not same and self.is_here(tensor) and not is_movable(tensor)):
            loan = own()
            tensor, self.lent[i] = as_part_of(like, lend(loan.tensor)), loan.held
        elif is_movable(tensor):
            loan = own()
            tensor, self.lent[i] = lend(loan.tensor, tensor), loan.held
        elif tensor.numel():
            self.away.add(i)
        return self.hold(i, tensor)

    def is_here(self, tensor: torch.Tensor) -> bool:
        """Whether a tensor lies in this memory, in some place or other."""
        offset = tensor.data_ptr() - self.memory.tensor.data_ptr()
        return 0 <= offset < self.memory.tensor.numel() * self.memory.tensor.element_size()

    def drop(self, i: int) -> None:
        super().drop(i)
        self.away.discard(i)

    def _copy_in(self, due: Iterable[int]) -> None:
        """Reads what is away."""
        found = [i for i in due if i in self.away] if self.away else []
        if found:
            _copy([self.views[i] for i in found], [local(self.held[i]) for i in found])

    def _copy_out(self, due: Iterable[int]) -> None:
        """Writes what is away."""
        found = [i for i in due if i in self.away] if self.away else []
        if found:
            _copy([local(self.held[i]) for i in found], [self.views[i] for i in found])


class OwnColumn(Column):
    """The same of a single parameter, for an engine that overwrites any memory: the tensors stay where they are."""

    def __init__(self, memory: Memory) -> None:
        super().__init__(memory)
        self._lent: torch.Tensor | None = None  # what the user has, flat

    def add(self, arrangement: Arrangement, start: int, size: int) -> None:
        del start, size
        self.add_one()
        self._arrangement = arrangement

    def start(self, i: int, constant: float) -> None:
        self._give_up()
        self.memory.tensor.fill_(constant)

    def copy_of(self, tensor: torch.Tensor) -> torch.Tensor:
        return tensor.detach() if self._fits(tensor) else super().copy_of(tensor)

    def take(
        self,
        i: int,
        values: Any,
        tensor: torch.Tensor | None,
        own: Callable[[], Loan],
        like: torch.Tensor,
        *,
        same: bool = False,
    ) -> torch.Tensor:
        self._give_up()
        if tensor is not None and self._fits(local(tensor)):
            self.away.discard(i)
            self.lent[i] = NOTHING.held
            self._lent = self._arrangement.flatten(local(tensor).detach())
            return self.hold(i, tensor)
        self.views = [self._arrangement.view(self.memory.tensor)]
        return super().take(i, values, tensor, own, like, same=same)

    def lend(self, due: Iterable[int]) -> Any:
        return super().lend(due) if self._lent is None else self._lent

    def _fits(self, tensor: torch.Tensor) -> bool:
        memory = self.memory
        plain = (tensor.dtype, tensor.device, tensor.layout) == (memory.dtype, memory.device, torch.strided)
        if not plain or tensor.is_conj() or tensor.is_neg() or tuple(tensor.shape) != self._arrangement.shape:
            return False
        return self._arrangement.flatten(tensor.detach()).data_ptr() == tensor.data_ptr()

    def _give_up(self) -> None:
        """Lets go of memory that others may have by now, and of what the user had."""
        self._lent, self.views, self.memory = None, [], self.memory.another()


class Block:
    """Memory of parameters that one recipe updates.

    Args:
        form: what the state of one of them consists of.
        kind: theirs.
        size: rows that there is room for; of a single parameter its elements.
        segments: parameters that there is room for.
        width: elements of a row; None for a single parameter, which is no rows.
        engine: what updates them.
        shape: of the parameters, if the recipe also takes sums of each, whose row is then all of it; None if it is
            elementwise.
    """

    def __init__(
        self,
        form: ClassForm,
        kind: Kind,
        size: int,
        segments: int,
        width: int | None,
        engine: Engine,
        shape: tuple[int, ...] | None = None,
    ) -> None:
        self.joined, self.kind, self.form, self.by_shape = width is not None, kind, form, shape
        self._engine, self._device = engine, kind.device
        self._width = width or size
        rounded = self.joined and shape is None
        self._rows = round_up(size, LEAST_ROWS) if rounded else segments
        self._segments = round_up(segments, LEAST_SEGMENTS) if rounded else segments
        shape = (self._rows, self._width) if self.joined else (size,)
        self._shape = shape

        def column(dtype: torch.dtype) -> Column:
            make = Column if self.joined or not engine.takes_any_memory else OwnColumn
            return make(engine.memory(shape, dtype, kind.device))

        self.param = column(kind.dtype)
        self.arrays = {unit: column(torch_dtype(unit.dtype)) for unit in form.arrays}
        self._columns = (self.param, *self.arrays.values())
        # torch keeps numbers in its default dtype where that is wider.
        self._wide = torch.get_default_dtype() == torch.float64
        self.numbers = {unit: Numbers(self._segments, self._number_dtype(unit)) for unit in form.numbers}
        self._elements = {unit: Held() for unit in form.numbers}  # what the user has of them
        self._away: set[tuple[Unit, int]] = set()  # numbers in memory of their own
        self.shown = [unit for unit in form.form.units if not unit.hidden and unit.place is not None]
        # What entries have tensors of.
        self._tensors: list[tuple[Unit, Held]] = [
            (unit, own)
            for unit, own in (*self.arrays.items(), *self._elements.items())
            if not unit.hidden and unit.count is not int
        ]
        self.params: list[Any] = []  # tensors, None for those that have left
        self.group_of = np.zeros(self._segments, np.int64)  # among the groups of the class
        self._fresh: set[int] = set()  # parameters whose state is new
        # What there was when all entries were last looked through: those, and their values.
        self._noted_entries: list[Any] = []
        self._values: list[Any] = []
        self._new: list[int] = []  # parameters that have none
        self._is_noted = False
        self._entries: list[Any] = []  # dicts, None where there is nothing yet
        self._arrangements: list[Arrangement] = []
        self._sizes: list[int] = []
        self._strides: list[tuple[int, ...]] = []
        self._starts: list[int] = []
        self._next = 0  # row
        self._segment = np.zeros(self._rows, np.int32)
        self._filled = np.zeros(self._rows, np.int32)
        self._where: Any = None
        self._grads: torch.Tensor | None = None
        self._borrowed_grads: Any = None
        self._grad_views: list[torch.Tensor] = []
        self._recipe: tuple[Any, Any] = (None, None)
        self._due: list[int] = []
        self.started: list[int] = []  # parameters whose first update was the last one

    def _number_dtype(self, unit: Unit) -> torch.dtype:
        own = torch.float32 if unit.count is not None else torch_dtype(unit.dtype)
        return torch.float64 if own == torch.float32 and self._wide else own

    # Places.

    def has_room(self, params: Sequence[torch.Tensor]) -> bool:
        """Whether further parameters fit in."""
        rows = sum(rows_of(p, self._width) for p in params)
        return self.joined and self._next + rows <= self._rows and len(self.params) + len(params) <= self._segments

    def add(self, p: torch.Tensor) -> int:
        """Gives a parameter its place, in which there is nothing yet."""
        self._is_noted = False
        i = len(self.params)
        start, size = self._next * self._width, local(p).numel()
        arrangement = Arrangement.of(local(p))
        self.params.append(p)
        self._entries.append(None)
        self._arrangements.append(arrangement)
        self._sizes.append(size)
        self._strides.append(())
        self._starts.append(start)
        for column in self._columns:
            column.add(arrangement, start, size)
        for elements in self._elements.values():
            elements.add_one()
        if self.joined:
            rows = rows_of(p, self._width)
            self._segment[self._next : self._next + rows] = i
            self._filled[self._next : self._next + rows] = self._width
            if rows and size % self._width:
                self._filled[self._next + rows - 1] = size % self._width
            self._next += rows
        self._where = None
        self._grads = None
        return i

    def drop(self, i: int) -> None:
        """Forgets a parameter; its elements and its state stay where they are, as long as somebody has them."""
        self._is_noted = False
        self._fresh.discard(i)
        self.params[i] = self._entries[i] = None
        self.group_of[i] = 0
        for column in self._columns:
            column.drop(i)
        for unit, elements in self._elements.items():
            elements.drop(i)
            self._away.discard((unit, i))

    @property
    def has_gaps(self) -> bool:
        """Whether some have left, whose elements and state may still be here."""
        return any(p is None for p in self.params)

    def has_memory_of(self, tensor: torch.Tensor) -> bool:
        """Whether a tensor lies in the memory that updates overwrite."""
        return any(column.is_here(tensor) for column in self._columns)

    @property
    def is_empty(self) -> bool:
        """Whether nothing is left."""
        return all(p is None for p in self.params)

    def takes(self, i: int) -> bool:
        """Whether a parameter still fits its place, wherever its memory is."""
        p = self.params[i]
        here = not self._engine.takes_any_memory or p.device == self.kind.device
        same = (p.dtype, sharding_of(p)) == (self.kind.dtype, self.kind.sharding)
        return here and same and Arrangement.of(local(p)) == self._arrangements[i]

    # Following what the user did.

    def moved(self, due: Sequence[int]) -> list[int]:
        """Parameters that are due and not where they were, or in another order."""
        params, addresses, strides = self.params, self.param.addresses, self._strides
        if len(due) < len(params):
            params, addresses, strides = ([known[i] for i in due] for known in (params, addresses, strides))
        own = params if self.kind.sharding is None else list(map(local, params))
        now = list(map(_address, own)), list(map(_stride, own))
        if now == (addresses, strides):
            return []
        return [i for i, *new in zip(due, *now, strict=True) if new != [self.param.addresses[i], self._strides[i]]]

    def changes(
        self,
        state: State,
        due: Sequence[int],
        moved: Sequence[int],
        describe: Callable[[torch.Tensor], str],
    ) -> list["Change"]:
        """What the user did to parameters that are due, and to their state.

        Args:
            state: the optimizer's.
            due: the parameters.
            moved: those of them that are not where they were.
            describe: names a parameter in messages.

        Raises:
            RuntimeError: for state that does not fit.
        """
        found = []
        candidates = due
        if self._is_untouched():
            new = {*self._new} & {*due} if self.shown and self._new else set()
            candidates = sorted({*moved, *new}) if new else moved
        for i in candidates:
            p: Any = self.params[i]
            entry = state.get(p)
            if i not in moved and self._holds_entry(entry, i):
                continue
            values = self._read(entry, p, describe)
            copies = {unit: self._kept(unit, i, value) for unit, value in values.items()}
            found.append(Change(i, p, entry, values, copies, self.param.copy_of(local(p)) if i in moved else None))
        return found

    def taken(self, changes: Sequence["Change"]) -> list[torch.Tensor]:
        """Parameters whose places somebody else still has a part of; forgets what the user has replaced.

        What the optimizer has no more is not to be written.
        """
        if not changes:
            return []
        self._is_noted, self._values, self._noted_entries = False, [], []
        found = []
        for change in changes:
            i = change.place
            self._entries[i] = None
            entry = change.entry or {}
            own = [(self.param, change.param), *((own, entry.get(unit.name)) for unit, own in self._tensors)]
            # Of all of them, and not up to the first: what was there is to be forgotten.
            if sum(held.is_taken(i, value) for held, value in own):
                found.append(change.param)
        return found

    def follow(self, changes: Sequence["Change"]) -> None:
        """Takes over what the user did."""
        for change in changes:
            self._take(*change)

    def look_again(self) -> None:
        """Tells that the state may have other entries."""
        self._is_noted = False

    def _is_untouched(self) -> bool:
        """Whether no entry has changed since all were looked through; without going through them one by one."""
        if not self.shown:
            return True
        values = list(itertools.chain.from_iterable(map(dict.values, self._noted_entries)))
        self._is_noted = (
            self._is_noted
            and len(values) == len(self._values)
            and all(map(operator.is_, values, self._values))
            and all(own.is_where_it_was() for _, own in self._tensors)
        )
        return self._is_noted

    def _note(self, state: State) -> None:
        """Looks all entries through, for the next step to tell that nothing has changed."""
        self._noted_entries = [entry for entry in self._entries if entry is not None]
        self._new = [
            i for i, (p, e) in enumerate(zip(self.params, self._entries, strict=True)) if e is None and p is not None
        ]
        for _, own in self._tensors:
            own.note()
        held = [(unit.name, own.held) for unit, own in self._tensors]
        same = all(p is None or state.get(p) is e for p, e in zip(self.params, self._entries, strict=True))
        self._is_noted = same and all(
            entry.get(name) is values[i]
            for i, entry in enumerate(self._entries)
            if entry is not None
            for name, values in held
        )
        self._values = list(itertools.chain.from_iterable(map(dict.values, self._noted_entries)))

    def _holds_entry(self, entry: Entry | None, i: int) -> bool:
        if not self.shown:
            return True
        if entry is None or entry is not self._entries[i]:
            return False
        return all(own.holds(i, entry.get(unit.name)) for unit, own in self._tensors)

    def _read(self, entry: Entry | None, p: torch.Tensor, describe: Callable[[torch.Tensor], str]) -> dict[Unit, Any]:
        """What an entry has for each array of the state; nothing of a parameter that was never updated."""
        if not entry or all(entry.get(unit.name) is None for unit in self.shown):
            return {}
        values = {}
        for unit in (*self.form.arrays, *self.form.numbers):
            shape = tuple(p.shape) if unit in self.arrays else ()
            own = dataclasses.replace(unit, shape=shape)
            values[unit] = value_of(own, entry, describe(p), "TorchBridge: step", RuntimeError)
        return values

    def _kept(self, unit: Unit, i: int, value: Any) -> torch.Tensor | float | None:
        """A copy of a value, where it does not already lie in its place."""
        if unit in self.numbers:
            return float(value)
        column = self.arrays[unit]
        here = column.holds(i, value) and i not in column.away
        return None if here else column.copy_of(local_like(torch.as_tensor(value), self.kind.sharding))

    def _take(
        self,
        i: int,
        p: torch.Tensor,
        entry: Entry | None,
        values: dict[Unit, Any],
        copies: dict[Unit, torch.Tensor | float | None],
        data: torch.Tensor | None,
    ) -> None:
        start, stop = self._starts[i], self._starts[i] + self._sizes[i]

        def own(column: Column) -> Callable[[], Loan]:
            return lambda: column.memory.elements(start, stop).map(self._arrangements[i].view)

        self._is_noted = False
        if data is not None:
            self.param.take(i, data, p, own(self.param), p, same=True)
        self._strides[i] = local(p).stride()
        (self._fresh.discard if values else self._fresh.add)(i)
        for (unit, column), constant in zip(self.arrays.items(), self.form.constants, strict=True):
            value, copy = values.get(unit), copies.get(unit)
            if value is None:
                column.start(i, constant or 0.0)
                column.drop(i)
                continue
            if copy is not None:
                same = isinstance(value, torch.Tensor) and value.dtype == torch_dtype(unit.dtype)
                same = same and sharding_of(value) == self.kind.sharding
                value = column.take(i, copy, value if same else None, own(column), p)
            if entry is not None and not unit.hidden:
                entry[unit.name] = value
        for unit, numbers in self.numbers.items():
            value = values.get(unit)
            numbers.values[i] = copies.get(unit) or 0.0
            self._elements[unit].drop(i)
            self._away.discard((unit, i))
            if value is not None and entry is not None and not unit.hidden:
                entry[unit.name] = self._element(unit, i, value)
        self._entries[i] = entry if values else None

    def _element(self, unit: Unit, i: int, value: Any = None) -> Any:
        """What an entry has for a number of the state: a tensor over it, the user's own if there is one."""
        if unit.count is int:
            return int(self.numbers[unit].values[i])
        memory, held = self.numbers[unit].element(i)
        elements = self._elements[unit]
        self._away.discard((unit, i))
        if isinstance(value, torch.Tensor) and value.device.type == "cpu" and value.dtype.is_floating_point:
            if value.dtype == memory.dtype and value.shape == () and is_movable(value):
                lend(memory, value)
            else:
                self._away.add((unit, i))
            tensor = value
        else:
            tensor = lend(memory)
        if (unit, i) not in self._away:
            elements.lent[i] = held
        return elements.hold(i, tensor)

    def start_again(self, due: Sequence[int]) -> None:
        """Lets parameters go on as new ones, where torch makes state after the update and not before it."""
        if not any(unit.hidden for unit in self.form.numbers):
            return
        for i in due:
            for column, constant in zip(self.arrays.values(), self.form.constants, strict=True):
                column.start(i, constant or 0.0)
            for numbers in self.numbers.values():
                numbers.values[i] = 0.0

    # The update.

    def lend(
        self, binding: Binding, given: Given, due: Sequence[int], grads: Sequence[torch.Tensor], rows: np.ndarray
    ) -> Part:
        """What the update takes.

        Args:
            binding: the recipe.
            given: what goes beside the gradients.
            due: parameters that have a gradient.
            grads: theirs.
            rows: float64 (groups of the class, numbers).
        """
        self._due = list(due)
        if self.kind.sharding is not None:
            grads = [local_like(grad, self.kind.sharding) for grad in grads]
        for unit, i in self._away:
            self.numbers[unit].values[i] = float(self._elements[unit].held[i])
        for unit in self.numbers:
            if unit.count is int and not unit.hidden:
                self._read_ints(unit)
        start = 2 + rows.shape[1]
        own = np.zeros((self._segments, start + len(self.numbers)))
        own[self._which(), DUE] = 1.0
        if self._fresh:
            own[[*self._fresh], FRESH] = 1.0
        own[:, 2:start] = rows if len(rows) == 1 else rows[self.group_of]
        for j, numbers in enumerate(self.numbers.values(), start):
            own[:, j] = numbers.values
        dtype = grads[0].dtype if len(grads) == 1 else widest(set(map(_dtype_of, grads)))
        if self._recipe[0] != (given, dtype):
            found, dtypes = self.kind.found, (jax_dtype(self.kind.dtype), jax_dtype(dtype))
            recipe = Elementwise(
                binding, found, *dtypes, given, joined=self.joined, wide=self._wide, shape=self.by_shape
            )
            self._recipe = (given, dtype), recipe
        donated = [column.lend(due) for column in self._columns]
        returned = self._segments * len(self.numbers) + len(self.form.shared)
        lent = self._lend_grads(due, grads, dtype), self._places()
        reduce, measured = reducer(self.kind.sharding), len(self.form.measured)
        groups = self.group_of if measured else None
        return Part(self._recipe[1], self._shape, donated, lent, own, returned, reduce, measured, groups)

    def _which(self) -> slice | list[int]:
        """The parameters that are due, as an index."""
        return slice(len(self._due)) if len(self._due) == len(self.params) else self._due

    def _read_ints(self, unit: Unit) -> None:
        for i in self._due:
            entry = self._entries[i]
            if entry is not None:
                self.numbers[unit].values[i] = float(entry[unit.name])

    def _places(self) -> Any:
        if self.joined and self._where is None:
            self._where = self._engine.rows(self._segment, self._filled, self._width)
        return self._where

    def _lend_grads(self, due: Sequence[int], grads: Sequence[torch.Tensor], dtype: torch.dtype) -> Any:
        # One of as many elements and another shape is refused by the copy.
        sizes = self._sizes if len(due) == len(self._sizes) else [self._sizes[i] for i in due]
        if list(map(_size, grads)) != sizes:
            raise RuntimeError(
                next(self._wrong_shape(i, g) for i, g in zip(due, grads, strict=True) if g.numel() != self._sizes[i])
            )
        if not self.joined:
            return self._lend_one(grads[0])
        if self._grads is None or self._grads.dtype != dtype:
            self._grads = torch.zeros(self._shape, dtype=dtype, device=self._device)
            self._borrowed_grads = self._engine.lend(self._grads)
            flat = self._grads.view(-1)
            self._grad_views = [
                arrangement.view(flat[start : start + size])
                for arrangement, start, size in zip(self._arrangements, self._starts, self._sizes, strict=True)
            ]
        views = self._grad_views if len(due) == len(self._grad_views) else [self._grad_views[i] for i in due]
        _copy(views, list(grads))
        return self._borrowed_grads

    def _wrong_shape(self, i: int, grad: torch.Tensor) -> str:
        return (
            f"TorchBridge: a gradient must have its parameter's shape {self._arrangements[i].shape}, got "
            f"{tuple(grad.shape)}"
        )

    def _lend_one(self, grad: torch.Tensor) -> Any:
        if grad.shape != self._arrangements[0].shape:
            raise RuntimeError(self._wrong_shape(0, grad))
        flat = self._arrangements[0].flatten(grad)
        return self._engine.lend(flat if flat.device == self._device else flat.to(self._device))

    def store(
        self, result: Updated, state: Any, shared: Mapping[str, torch.Tensor], *, again: bool
    ) -> list[torch.Tensor]:
        """Takes the update's results over, and gives new parameters their entries; returns what was written."""
        for column, array in zip(self._columns, result.arrays, strict=True):
            column.store(array, self._due)
        own = self._segments * len(self.numbers)
        if self.numbers:
            new, which = result.numbers[:own].reshape(self._segments, -1), self._which()
            for j, numbers in enumerate(self.numbers.values()):
                numbers.values[which] = new[which, j]
            for unit, i in self._away:
                self._elements[unit].held[i].fill_(float(self.numbers[unit].values[i]))
        for unit, value in zip(self.form.shared, result.numbers[own:], strict=True):
            shared[unit.name].fill_(float(value))
        if not again:
            self.started = sorted(self._fresh.intersection(self._due)) if self._fresh else []
            for i in self.started:
                self._start(i, state)
        for unit in self.numbers:
            if unit.count is int and not unit.hidden:
                for i in self._due:
                    entry = self._entries[i]
                    assert entry is not None
                    entry[unit.name] = int(self.numbers[unit].values[i])
        if not self._is_noted:
            self._note(state)
        return self.params if len(self._due) == len(self.params) else [self.params[i] for i in self._due]

    def readings(self, measured: Measurement, groups: np.ndarray) -> list[Reading]:
        """What the last update was like.

        Args:
            measured: by the update.
            groups: int, among all groups those of the class.
        """
        own = np.full(self._segments, -1)
        own[self._due] = groups[self.group_of[self._due]]
        fields = [str(unit.measures) for unit in self.form.measured]
        return [Reading(field, own[measured.segments], x) for field, x in zip(fields, measured.columns, strict=True)]

    def _start(self, i: int, state: Any) -> None:
        """Gives a parameter that was updated for the first time its entry."""
        p: Any = self.params[i]
        self._is_noted = False
        self._fresh.discard(i)
        if not self.shown:
            return
        entry = state[p]
        start, stop = self._starts[i], self._starts[i] + self._sizes[i]
        for unit in self.shown:
            if unit in self.arrays:
                column = self.arrays[unit]
                loan = column.memory.elements(start, stop).map(self._arrangements[i].view)
                entry[unit.name] = column.put(i, None, lambda loan=loan: loan, p)
            else:
                entry[unit.name] = self._element(unit, i)
        self._entries[i] = entry


def rows_of(p: torch.Tensor, width: int) -> int:
    """How many rows a parameter takes."""
    return -(-local(p).numel() // width)


def width_for(params: Sequence[torch.Tensor]) -> int:
    """The largest width of rows that fills them nearly as well as the least one; that one for a small block."""

    def elements(width: int) -> int:
        return sum(rows_of(p, width) for p in params) * width

    least = elements(WIDTHS[0])
    if least <= LEAST_ROWS * WIDTHS[0]:
        return WIDTHS[0]
    return max(width for width in WIDTHS if elements(width) <= 1.125 * least)


def widest(dtypes: set[torch.dtype]) -> torch.dtype:
    """The dtype that holds all of some."""
    first, *others = dtypes
    for dtype in others:
        first = torch.promote_types(first, dtype)
    return first


def _copy(targets: list[Any], sources: list[Any]) -> None:
    torch._foreach_copy_(targets, sources)  # pyright: ignore[reportPrivateImportUsage]
