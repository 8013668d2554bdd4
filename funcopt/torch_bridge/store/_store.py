"""What an optimizer knows beside its groups and its state: where each parameter's memory is.

Groups and state are the user's, torch's own lists and dicts. Before each step they are compared with what they were at
the last one, by identity; what has changed is taken over.
"""

import dataclasses
import functools
import itertools
import math
import operator
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from operator import attrgetter
from typing import Any, NamedTuple

import numpy as np
import torch
from torch.nn.parameter import is_lazy

from funcopt.torch_bridge import _buffers
from funcopt.torch_bridge._binding import Binding, ProgramClass
from funcopt.torch_bridge._buffers import jax_dtype
from funcopt.torch_bridge._matching import keys_of
from funcopt.torch_bridge._metrics import Reading
from funcopt.torch_bridge._shards import local, sharding_of
from funcopt.torch_bridge._units import Unit
from funcopt.torch_bridge.engines import _torch, _xla
from funcopt.torch_bridge.engines._choice import Choice, Wanted, choose
from funcopt.torch_bridge.engines._elements import elements_of
from funcopt.torch_bridge.engines._engine import Engine, Part
from funcopt.torch_bridge.engines._operations import NotCovered
from funcopt.torch_bridge.engines._pure import Pure, multiplies
from funcopt.torch_bridge.engines._recipes import Elementwise, Given, Whole, class_form, traced
from funcopt.torch_bridge.engines._segments import NotByRows
from funcopt.torch_bridge.store._block import Block, Kind, rows_of, width_for
from funcopt.torch_bridge.store._whole import Member, WholePart

JOIN_UP_TO = 32_768
"""Elements of the largest parameter that is joined with others: torch copies its gradient in less time than a further
array costs, and without starting threads."""

MAX_WITH_SUMS = 200
"""Blocks up to which parameters that a recipe takes sums of are updated in place. XLA's pass that merges loops compares
each with each: 300 take it 6 times as long to compile as without, 161 hardly longer."""

MAX_PATTERNS = 8
"""Patterns of missing gradients that get a program of their own, in which the missing cost nothing. Beyond, one program
for all further patterns computes with zeros and drops what comes of them."""

MAX_SIZES = 8
"""Lists of sizes of large parameters that an algorithm gets programs for in a process: a network that grows from one
optimizer to the next has ever new ones. Beyond, they are joined, where sizes are rounded up."""

QUIET_STEPS = 1000
"""Steps without a change after which it pays to compile for what there is; densification stops for some hundred."""

MAX_DIVISIONS = 2
"""Divisions into groups that parameters in their own shapes get a program for. Beyond, each of them has its own if it
can, until the division has been the same for `QUIET_STEPS`."""

Group = Mapping[str, Any]

_Place = tuple[Kind, tuple[int, ...] | None]
"""What is joined: of one kind, and of one shape where a recipe takes sums of each parameter."""

_grad_of, _layout_of, _found_of = attrgetter("grad"), attrgetter("layout"), attrgetter("found")


class Slot(NamedTuple):
    """A parameter's place."""

    block: Block
    place: int


class _Seen(NamedTuple):
    """A group's values at the last step."""

    group: Group
    size: int  # fields
    read: Callable[[Group], tuple[Any, ...]]  # the values that it has, and its parameters
    values: tuple[Any, ...]
    steady: bool  # whether all values are of kinds that do not change in place
    found: ProgramClass
    numbers: tuple[float, ...]


def _is_as_before(seen: _Seen, group: Group) -> bool:
    if seen.group is not group or not seen.steady or seen.size != len(group):
        return False
    try:
        return seen.read(group)[:-1] == seen.values
    except KeyError:
        return False


class _Work(NamedTuple):
    """Parameters of a block that an update is due for."""

    block: Block
    due: list[int]
    grads: list[torch.Tensor]
    moved: list[int]  # those that are not where they were

    def without(self, params: frozenset[torch.Tensor]) -> "_Work":
        """The same without some parameters."""
        if not params:
            return self
        own = [(i, grad) for i, grad in zip(self.due, self.grads, strict=True) if self.block.params[i] not in params]
        kept = {i for i, _ in own}
        return _Work(self.block, [i for i, _ in own], [grad for _, grad in own], [i for i in self.moved if i in kept])


def _without(work: Sequence[_Work], params: frozenset[torch.Tensor]) -> list[_Work]:
    """What is left of an update without some parameters."""
    return [own for own in (w.without(params) for w in work) if own.due]


def _tied(work: Sequence[_Work], whole: Sequence[Member]) -> frozenset[torch.Tensor]:
    """Parameters over the memory of others: they are updated after these, on top of what these have become."""
    if not whole and not any(w.moved or w.block.param.away for w in work):
        return frozenset()
    params = [*(w.block.params[i] for w in work for i in w.due), *(member.param for member in whole)]
    seen: set[tuple[str, int]] = set()
    found = []
    for p in params:
        place = p.device.type, local(p).data_ptr()
        if local(p).data_ptr() and place in seen:
            found.append(p)
        seen.add(place)
    return frozenset(found)


class Store:
    """Memory and state of all parameters, and the engine that updates them.

    Args:
        binding: what to run.
        fast: whether an elementwise recipe gets joined parameters.
        wanted: which engine.
        compiled: whether torch's compiler is to make kernels, if the engine is torch's.
    """

    def __init__(self, binding: Binding, *, fast: bool, wanted: Wanted = "auto", compiled: bool = False) -> None:
        self._binding = binding
        self._fast = fast
        self._wanted: Wanted = wanted
        self._compiled = compiled
        self.choice: Choice | None = None  # of the engine, once there is one
        self._engine: Engine | None = None
        self._device = torch.device("cpu")
        self._slots: dict[torch.Tensor, Slot] = {}
        self._joined: dict[_Place, Block] = {}
        self._alone: list[Block] = []
        self._shared: dict[str, torch.Tensor] = {}  # what is kept once, by name
        self._seen: list[_Seen] = []
        self._classes: dict[ProgramClass, ProgramClass] = {}
        self._numbers: dict[ProgramClass, np.ndarray] = {}
        self._params: list[torch.Tensor] = []  # of all groups, and how many each has
        self._counts: list[int] = []
        self._state: Any = None  # at the last step, with its keys and entries
        self._keys: list[Any] = []
        self._entries: list[Any] = []
        self._group_of: dict[torch.Tensor, int] = {}
        self._repeats: Counter[torch.Tensor] = Counter()  # how often a parameter is among them, and the largest number
        self._most = 0
        self._several: dict[torch.Tensor, list[int]] = {}  # the groups of a parameter that stands several times
        self._local: list[int] = []  # each group's index among those of its class
        self._loose: list[torch.Tensor] = []  # parameters of groups that have no place
        self._many: bool | None = None  # whether there would be many blocks, once it has been counted
        self._products: dict[tuple[ProgramClass, torch.dtype], bool] = {}  # whether updates multiply matrices
        self._loops: dict[tuple[Kind, tuple[int, ...]], bool] = {}  # whether updates of a shape are such
        self._growing = False  # whether large parameters have come and gone, and for how many steps none has since
        self._quiet = 0
        self._patterns: set[tuple[int, ...]] = set()  # of large parameters that had gradients
        self._independent: dict[ProgramClass, bool] = {}  # whether each parameter is updated by itself
        self._divisions: set[Whole] = set()  # into groups, of those in their own shapes
        self._division: list[tuple[int, int]] = []  # the last one, and for how many steps it has been the same
        self._same = 0
        self._whole_patterns: set[tuple[torch.Tensor, ...]] = set()  # of those in their own shapes
        self.readings: list[Reading] = []  # what the last update was like, if that is measured

    @property
    def compilations(self) -> int:
        """How many programs have been needed so far."""
        return 0 if self._engine is None else len(self._engine.used)

    @property
    def blocks(self) -> list[Block]:
        """Those that hold parameters."""
        return [*self._joined.values(), *self._alone]

    # The groups.

    def read(self, groups: Sequence[Group]) -> None:
        """Follows whatever was done to the groups since the last call."""
        seen = self._read_groups(groups)
        lists = [group["params"] for group in groups]
        counts, params = list(map(len, lists)), list(itertools.chain.from_iterable(lists))
        same = seen is self._seen or list(map(_found_of, seen)) == list(map(_found_of, self._seen))
        if seen is not self._seen:
            self._seen, self._numbers = seen, {}
        if same and counts == self._counts and _are(params, self._params):
            return
        self._counts, self._params, self._numbers, self._many = counts, params, {}, None
        self._group_of = {p: i for i, own in reversed([*enumerate(lists)]) for p in own}
        self._repeats = Counter(params)
        self._most = max(self._repeats.values(), default=0)
        self._several = {
            p: [i for i, own in enumerate(lists) for q in own if q is p]
            for p in (self._repeats if self._most > 1 else ())
            if self._repeats[p] > 1
        }
        count: Counter[ProgramClass] = Counter()
        self._local = []
        for item in seen:
            self._local.append(count[item.found])
            count[item.found] += 1
        self._place()

    def _read_groups(self, groups: Sequence[Group]) -> list[_Seen]:
        """The groups' values; the list of the last step where none has changed."""
        known = self._seen
        if len(known) == len(groups) and all(map(_is_as_before, known, groups)):
            return known
        before = {id(seen.group): seen for seen in known}
        return [self._read_group(group, before.get(id(group))) for group in groups]

    def _read_group(self, group: Group, before: _Seen | None) -> _Seen:
        if before is not None and _is_as_before(before, group):
            return before
        found, numbers = self._binding.split(group, None if before is None else before.found)
        # One object for each class, which is compared faster.
        found = self._classes.setdefault(found, found)
        names = [name for name in self._binding.read if name in group]
        values = operator.itemgetter(*names, "params")
        steady = not any(map(_may_change, values(group)[:-1]))
        return _Seen(group, len(group), values, values(group)[:-1], steady, found, numbers)

    def _numbers_of(self, found: ProgramClass) -> np.ndarray:
        """The numbers of the groups of a class."""
        if found not in self._numbers:
            self._numbers[found] = np.array([seen.numbers for seen in self._seen if seen.found is found], np.float64)
        return self._numbers[found]

    def _groups_of(self, found: ProgramClass) -> np.ndarray:
        """The groups of a class."""
        return np.flatnonzero([seen.found is found for seen in self._seen])

    def _place(self) -> None:
        """Tells each block which groups its parameters are in; drops those that have left, or changed their class."""
        for p, slot in [*self._slots.items()]:
            i = self._group_of.get(p)
            if i is not None and self._seen[i].found is slot.block.kind.found:
                slot.block.group_of[slot.place] = self._local[i]
            else:
                if i is None:
                    self._grow(slot.block)
                self._drop(p)
        self._loose = [p for p in self._group_of if p not in self._slots]

    def _drop(self, p: torch.Tensor) -> None:
        slot = self._slots.pop(p)
        slot.block.drop(slot.place)
        if slot.block.is_empty:
            self._alone = [block for block in self._alone if block is not slot.block]
            self._joined = {place: block for place, block in self._joined.items() if block is not slot.block}

    def _take_out(self, params: Sequence[torch.Tensor]) -> None:
        """Drops parameters that are to get other places."""
        for p in params:
            self._drop(p)
        self._loose += params

    # The update.

    def update(
        self,
        groups: Sequence[Group],
        state: Any,
        *,
        scale: float | None,
        loss: float | None,
        check: Callable[[Sequence[torch.Tensor]], None],
    ) -> bool:
        """Updates the parameters that have a gradient; one that its group has several times as often.

        To be called where nothing interrupts it: the update may write over state and parameters.

        Args:
            groups: the optimizer's groups.
            state: the optimizer's state.
            scale: of the gradients, which they are to be divided by.
            loss: the closure's result.
            check: refuses parameters with sparse gradients.

        Returns:
            Whether any parameter was updated.

        Raises:
            RuntimeError: for state or gradients that do not fit; nothing has been changed then.
        """
        self.read(groups)
        if self._growing:
            self._settle_down()
        given = Given(scale is not None, loss is not None)
        numbers = [number for number in (scale, loss) if number is not None]
        done, before = False, self.readings
        self.readings = []
        for repeat in range(self._most):
            self._turn_to(repeat)
            try:
                done |= self._update(state, given, numbers, repeat, check)
            except NotByRows:
                self._fast = False
                self._take_out([*self._slots])
                done |= self._update(state, given, numbers, repeat, check)
        self._turn_to(0)
        self.readings = self.readings if done else before
        return done

    def _turn_to(self, repeat: int) -> None:
        """Lets parameters that stand several times go by the numbers of the group in which they do so next."""
        for p, groups in self._several.items():
            i, slot = groups[min(repeat, len(groups) - 1)], self._slots.get(p)
            if slot is None:
                self._group_of[p] = i
            elif self._seen[i].found is slot.block.kind.found:
                slot.block.group_of[slot.place] = self._local[i]

    def _update(
        self,
        state: Any,
        given: Given,
        numbers: list[float],
        repeat: int,
        check: Callable[[Any], None],
        only: frozenset[torch.Tensor] | None = None,
    ) -> bool:
        work = self._work(repeat, only)
        gone = self._let_go(work)
        whole: list[Member] = []
        due = self._due_loose(repeat, only)
        if due:
            before = self._engine
            if before is not self._engine_for(due):
                due = self._due_loose(repeat, only)
            whole = self._give_places(due)
        if due or gone:
            work = self._work(repeat, only)
        if not work and not whole:
            return False
        assert self._engine is not None
        if self._has_many_patterns(work):
            whole += self._join_all()
            work = self._work(repeat, only)
        later = _tied(work, whole)
        if later:
            work = _without(work, later)
            whole = [member for member in whole if member.param not in later]
        check([m.param for m in whole if m.grad is not None and m.grad.layout != torch.strided])
        # A parameter's data may lie in another one's place: all that has changed is read before anything is written.
        known = state is self._state and _are([*state], self._keys) and _are([*state.values()], self._entries)
        if not known:
            self._state, self._keys, self._entries = None, [], []
            for block in self.blocks:
                block.look_again()
        changes = [w.block.changes(state, w.due, w.moved, self.describe) for w in work]
        taken = [p for w, found in zip(work, changes, strict=True) for p in w.block.taken(found)]
        if taken:
            self._take_out(taken)
            whole += self._give_places(taken)
            work = _without(self._work(repeat, only), later)
            changes = [w.block.changes(state, w.due, w.moved, self.describe) for w in work]
        for w, found in zip(work, changes, strict=True):
            w.block.follow(found)
            if repeat:
                w.block.start_again([i for i in w.due if i in w.block.started])
        shared = self._shared_of(work, state)
        values = np.array([*numbers, *(float(self._shared[unit.name]) for unit in shared)], np.float64)
        parts: list[Part] = []
        for block, own, grads, _ in work:
            parts.append(block.lend(self._binding, given, own, grads, self._numbers_of(block.kind.found)))
        joint, apart = self._whole_parts(whole, given)
        left = [block for block in self._joined.values() if block.has_gaps] if whole else []
        is_taken = lambda tensor: any(block.has_memory_of(tensor) for block in left)  # noqa: E731
        lent = [part.lend(state, self._shared, self.describe, is_taken) for part in (*joint, *apart)]
        parts += lent[: len(joint)]
        # First those that write nothing yet, so that one which is refused leaves all as it was.
        single = [self._engine.update([part], values[: given.size])[0] for part in lent[len(joint) :]]
        results = [*(self._engine.update(parts, values) if parts else []), *single]
        written: list[torch.Tensor] = []
        for (block, *_), result in zip(work, results, strict=False):
            written += block.store(result, state, self._shared, again=repeat > 0)
            if result.measured is not None:
                self.readings += block.readings(result.measured, self._groups_of(block.kind.found))
        for part, result in zip((*joint, *apart), results[len(work) :], strict=True):
            written += part.store(result, state, self._shared)
            self.readings += part.readings(result)
        self._show_shared(state, written)
        if not known or len(state) != len(self._keys):
            self._state, self._keys, self._entries = state, [*state], [*state.values()]
        # As if torch had written all of it, so that autograd notices a backward pass through what is no longer there.
        torch.autograd.graph.increment_version(written)
        _buffers.wait_for_torch(self._device)
        if later:
            self._update(state, given, numbers, repeat, check, later)
        return True

    def _due_loose(self, repeat: int, only: frozenset[torch.Tensor] | None) -> list[torch.Tensor]:
        """Parameters without a place that have a gradient."""
        if not self._loose:
            return []
        due = [p for p in self._loose if p.grad is not None and self._repeats[p] > repeat]
        return due if only is None else [p for p in due if p in only]

    def _work(self, repeat: int, only: frozenset[torch.Tensor] | None) -> list[_Work]:
        """The blocks of which any parameter, or any of some, has a gradient."""
        if only is not None:
            others = frozenset(p for p in self._slots if p not in only)
            return _without(self._work(repeat, None), others)
        work = []
        for block in self.blocks:
            due, grads = self._due(block, repeat)
            if due:
                work.append(_Work(block, due, grads, block.moved(due)))
        return work

    def _has_many_patterns(self, work: Sequence[_Work]) -> bool:
        """Whether large parameters miss gradients in ever new ways, each of which would be a program."""
        if len(self._alone) < 2:
            return False
        self._patterns.add(tuple(id(w.block) for w in work if not w.block.joined))
        return len(self._patterns) > MAX_PATTERNS

    def _grow(self, block: Block) -> None:
        """Notes that a parameter of a block has gone, or has another size."""
        self._growing |= not block.joined
        self._quiet = 0

    def _settle_down(self) -> None:
        """Gives large parameters places of their own again, once nothing has grown for long."""
        self._quiet += 1
        if self._quiet < QUIET_STEPS or len(self._patterns) > MAX_PATTERNS:
            return
        self._growing = False
        _sizes_of(self._binding.key).clear()
        large = [p for p, slot in self._slots.items() if slot.block.joined and local(p).numel() > JOIN_UP_TO]
        self._take_out(large)

    def _join_all(self) -> list[Member]:
        """Joins large parameters, too: among rows a missing gradient is a number. Returns those that cannot be."""
        self._growing = True
        params = [p for p, slot in self._slots.items() if not slot.block.joined]
        self._take_out(params)
        return self._give_places([p for p in params if p.grad is not None])

    def _due(self, block: Block, repeat: int) -> tuple[list[int], list[torch.Tensor]]:
        """The parameters of a block that have a gradient, and the gradients."""
        params = block.params
        if repeat == 0 and _is_complete(params):
            grads: list[Any] = list(map(_grad_of, params))
            if _is_complete(grads):
                return list(range(len(params))), grads
        due = [i for i, p in enumerate(params) if p is not None and p.grad is not None and self._repeats[p] > repeat]
        return due, [params[i].grad for i in due]

    def _let_go(self, work: Sequence[_Work]) -> bool:
        """Drops the parameters that do not fit their places any more, or get a sparse gradient."""
        gone = False
        for block, due, grads, moved in work:
            layouts = set(map(_layout_of, grads))
            sparse = (
                []
                if layouts == {torch.strided}
                else [i for i, grad in zip(due, grads, strict=True) if grad.layout != torch.strided]
            )
            misfits = [i for i in moved if not block.takes(i)]
            if misfits:
                self._grow(block)
            out = [block.params[i] for i in {*sparse, *misfits}]
            self._take_out(out)
            gone |= bool(out)
        return gone

    def _member(self, p: torch.Tensor) -> Member:
        i = self._group_of[p]
        group = self._seen[i].group
        index = next(j for j, own in enumerate(group["params"]) if own is p)
        return Member(p, p.grad, i, keys_of(group)[index])

    def describe(self, p: torch.Tensor) -> str:
        """A parameter in messages."""
        member = self._member(p)
        return f"parameter {member.key!r} of group {member.group}"

    # Places.

    def _engine_for(self, params: Sequence[torch.Tensor]) -> Engine:
        if self._engine is not None and (self._wanted != "auto" or self._engine.name == "torch"):
            return self._engine
        choice = choose(self._wanted, params, self._multiplies)
        if self._engine is not None and choice.name == self._engine.name:
            return self._engine
        self.choice = choice
        if self._engine is not None:  # which cannot take these, or is the slower one
            self._take_out([*self._slots])
        if choice.name == "torch":
            self._engine = _torch.Engine(compiled=self._compiled)
            return self._engine
        sizes = Counter[torch.device]()
        for p in params:
            sizes[p.device] += 1 + p.numel()
        # XLA computes on one device: parameters on others are copied to the one that has the most, and back.
        self._device = max(sizes, key=sizes.__getitem__)
        devices = {device: _buffers.jax_device(device) for device in sizes}
        self._engine = _xla.Engine(devices[self._device])
        return self._engine

    @property
    def first_choice(self) -> Choice:
        """The engine that a first step of all that is to be trained would take."""
        params = [p for p in self._group_of if p.requires_grad and not is_lazy(p)]
        return choose(self._wanted, params, self._multiplies)

    def _multiplies(self, p: torch.Tensor) -> bool:
        key = self._seen[self._group_of[p]].found, p.dtype
        if key not in self._products:
            self._products[key] = multiplies(self._binding, key[0], local(p))
        return self._products[key]

    def _device_of(self, p: torch.Tensor) -> torch.device:
        """Where a parameter is updated."""
        assert self._engine is not None
        return p.device if self._engine.takes_any_memory else self._device

    def _give_places(self, due: Sequence[torch.Tensor]) -> list[Member]:
        """Gives parameters their places; returns those that are updated in their own shapes."""
        if not self._engine_for(due).takes_any_memory:
            for device in {p.device for p in due}:
                _buffers.jax_device(device)
        whole: list[Member] = []
        joined: dict[_Place, list[torch.Tensor]] = {}
        numbers = [local(p).numel() for p in due]
        sizes = tuple(sorted(number for number in numbers if number > JOIN_UP_TO))
        if sizes and not self._growing:
            known = _sizes_of(self._binding.key)
            self._growing = sizes not in known and len(known) >= MAX_SIZES
            known.update([] if self._growing else [sizes])
        for p, number in zip(due, numbers, strict=True):
            kind = Kind(self._seen[self._group_of[p]].found, p.dtype, self._device_of(p), sharding_of(p))
            grad: Any = p.grad
            strided = grad.layout == torch.strided
            by_rows = strided and self._by_rows(kind)
            if by_rows or (strided and self._by_shape(kind, p)):
                place = kind, None if by_rows else tuple(p.shape)
                if number <= JOIN_UP_TO or (by_rows and self._growing):
                    joined.setdefault(place, []).append(p)
                else:
                    self._stand_alone(place, p)
            else:
                whole.append(self._member(p))
        for place, params in joined.items():
            kind, shape = place
            block = self._joined.get(place)
            if block is None and shape is not None and len(params) == 1:
                self._stand_alone(place, params[0])
                continue
            if block is None or not block.has_room(params):
                old = [p for p, slot in self._slots.items() if slot.block is block] if block is not None else []
                for p in old:
                    self._slots.pop(p)
                params = [*old, *params]
                width = width_for(params) if shape is None else math.prod(shape)
                rows, segments = sum(rows_of(p, width) for p in params), len(params)
                if old:  # and more will come
                    rows, segments = rows + rows // 4, segments + segments // 4
                block = self._block(kind, rows, segments, width, shape)
                self._joined[place] = block
            self._settle(block, params)
        placed = self._slots
        self._loose = [p for p in self._loose if p not in placed]
        return whole

    def _stand_alone(self, place: _Place, p: torch.Tensor) -> None:
        kind, shape = place
        block = self._block(kind, local(p).numel(), 1, None, shape)
        self._alone.append(block)
        self._settle(block, [p])

    def _by_rows(self, kind: Kind) -> bool:
        assert self._engine is not None
        if not self._fast:
            return False
        try:
            with self._engine.precision():
                class_form(self._binding, kind.found, jax_dtype(kind.dtype))
        except NotByRows:
            return False
        return True

    def _by_shape(self, kind: Kind, p: torch.Tensor) -> bool:
        """Whether a parameter's update is made of loops over its elements and of sums of all, such as norms.

        Then one program overwrites it and its state, as those of elementwise recipes. Torch's engine has no such loops.
        """
        assert self._engine is not None
        plain = p.dim() > 0 and p.numel() > 0 and p.is_contiguous() and kind.sharding is None
        possible = plain and self._fast and not self._growing and self._engine.name == "xla"
        if not possible or self._has_many_blocks:
            return False
        place = kind, tuple(p.shape)
        if place not in self._loops:
            rule = self._binding.rule_of(self._seen[self._group_of[p]].group)
            self._loops[place] = rule is not None and self._consists_of_loops(*place)
        return self._loops[place]

    @property
    def _has_many_blocks(self) -> bool:
        """Whether there would be many if each shape of small parameters and each large one had its own."""
        if self._many is None:
            params = [p for p in self._group_of if p.grad is not None]
            small = {p.shape for p in params if p.numel() <= JOIN_UP_TO}
            self._many = len(small) + sum(p.numel() > JOIN_UP_TO for p in params) > MAX_WITH_SUMS
        return self._many

    def _consists_of_loops(self, kind: Kind, shape: tuple[int, ...]) -> bool:
        assert self._engine is not None
        dtype, wide = jax_dtype(kind.dtype), torch.get_default_dtype() == torch.float64
        given = Given(False, False)
        recipe = Elementwise(self._binding, kind.found, dtype, dtype, given, joined=False, wide=wide, shape=shape)
        try:
            with self._engine.precision():
                traced(recipe, math.prod(shape))
        except (NotByRows, TypeError):  # the step says what is wrong
            return False
        return True

    def _block(
        self, kind: Kind, size: int, segments: int, width: int | None, shape: tuple[int, ...] | None = None
    ) -> Block:
        assert self._engine is not None
        with self._engine.precision():
            form = class_form(self._binding, kind.found, jax_dtype(kind.dtype), shape)
            return Block(form, kind, size, segments, width, self._engine, shape)

    def _settle(self, block: Block, params: Sequence[torch.Tensor]) -> None:
        for p in params:
            i = block.add(p)
            self._slots[p] = Slot(block, i)
            block.group_of[i] = self._local[self._group_of[p]]

    def _whole_parts(self, members: list[Member], given: Given) -> tuple[list[WholePart], list[WholePart]]:
        """The parts of parameters in their own shapes: of all together, and of each by itself.

        Together they are one program, which is another one for each division into groups, and for each number of rows
        of each sparse gradient. So a parameter that nothing joins with others goes by itself if its gradient is sparse,
        and all of them do once there have been many programs.
        """
        single, together = [], []
        division = [(member.group, id(member.param)) for member in members]
        self._same = self._same + 1 if division == self._division else 0
        self._division = division
        if self._same == QUIET_STEPS:
            self._divisions.clear()
        for member in members:
            sparse = member.grad is not None and member.grad.layout != torch.strided
            can_be = sparse or len(self._divisions) > MAX_DIVISIONS
            (single if can_be and self._is_independent(member.group) else together).append(member)
        # One for each device that computes.
        joined: dict[torch.device, list[Member]] = {}
        for member in self._with_missing(together) if together else ():
            joined.setdefault(self._device_of(member.param), []).append(member)
        joint = [self._whole_part(own, given) for own in joined.values()]
        self._divisions.update(part.recipe for part in joint)
        return joint, [self._whole_part([member._replace(key=0)], given) for member in single]

    def _is_independent(self, group: int) -> bool:
        """Whether nothing joins a parameter of a group with others, as far as the algorithm's definition tells."""
        seen = self._seen[group]
        if seen.found not in self._independent:
            rule = self._binding.rule_of(seen.group)
            self._independent[seen.found] = rule is not None and rule.total is None
        return self._independent[seen.found]

    def _whole_part(self, members: list[Member], given: Given) -> WholePart:
        assert self._engine is not None
        found = [seen.found for seen in self._seen]
        numbers = [seen.numbers for seen in self._seen]
        device = self._device_of(members[0].param)
        return WholePart(self._binding, members, found, numbers, given, self._engine, device)

    def _with_missing(self, members: list[Member]) -> list[Member]:
        """Parameters in the order of their groups; after many patterns with those whose gradients are missing."""
        order = {p: i for i, p in enumerate(self._group_of)}
        pattern = tuple(sorted((member.param for member in members), key=order.__getitem__))
        strided = all(member.grad is not None and member.grad.layout == torch.strided for member in members)
        if strided and pattern not in self._whole_patterns:
            # What is not there cannot be measured as if it were.
            if len(self._whole_patterns) < MAX_PATTERNS or self._is_measured(members[0]):
                self._whole_patterns.add(pattern)
            else:
                seen = {p for own in self._whole_patterns for p in own}
                missing = [self._member(p)._replace(grad=None) for p in seen - {*pattern} if p in self._group_of]
                members = [*members, *missing]
        return sorted(members, key=lambda member: order[member.param])

    def _is_measured(self, member: Member) -> bool:
        """Whether the update of a parameter says what it was like."""
        return any(unit.measures is not None for unit in self.units(member.group, member.param))

    # What is kept once.

    def _shared_of(self, work: Sequence[_Work], state: Any) -> list[Unit]:
        """What the recipes keep once, as far as there are joined parameters; with the values that the state has."""
        found: list[Unit] = []
        for block, due, *_ in work:
            for unit in block.form.shared:
                if unit not in found:
                    found.append(unit)
                own = self._shared.get(unit.name)
                for i in due:
                    p: Any = block.params[i]
                    value = state.get(p, {}).get(unit.name)
                    if value is not None and value is not own:
                        if own is None:
                            own = self._shared[unit.name] = self._first(block, unit)
                        own.fill_(float(value))
                if own is None:
                    self._shared[unit.name] = self._first(block, unit)
        return found

    def _first(self, block: Block, unit: Unit) -> torch.Tensor:
        """What is kept once, at first."""
        assert self._engine is not None
        numbers = next(seen.numbers for seen in self._seen if seen.found == block.kind.found)
        recipe = Whole(self._binding, [block.kind.found], [(0,)], Given(False, False))
        param = self._engine.lend(torch.zeros(1, dtype=block.kind.dtype))
        leaves = self._engine.init(recipe, np.array(numbers, np.float64), [param])
        value = dict(zip(block.form.form.units, leaves, strict=True))[unit]
        return torch.tensor(float(value), dtype=_buffers.torch_dtype(unit.dtype))

    def _show_shared(self, state: Any, written: Sequence[torch.Tensor]) -> None:
        if not self._shared:
            return
        for p in written:
            i = self._group_of[p]
            for name, tensor in self._shared.items():
                own, _, group = name.partition("@")
                if not group or int(group) == i:
                    state[p][own] = tensor

    def check_covered(self, groups: Sequence[Group]) -> None:
        """Writes the code for each class of groups and dtype, which the first step then has already.

        Raises:
            NotImplementedError: for a recipe that the torch engine has no operations for.
        """
        self.read(groups)
        plain = [p for p in self._group_of if p.requires_grad and not is_lazy(p)]
        kinds = {Kind(self._seen[self._group_of[p]].found, p.dtype, p.device): p for p in plain}
        for kind, p in kinds.items():
            self._engine_for([p])
            try:
                if self._by_rows(kind):
                    dtype = jax_dtype(kind.dtype)
                    wide = torch.get_default_dtype() == torch.float64
                    recipe = Elementwise(
                        self._binding, kind.found, dtype, dtype, Given(False, False), joined=True, wide=wide
                    )
                    elements_of(recipe)
                else:
                    Pure(self._binding, [kind.found], [(0,)], False, [p]).check_covered()
            except (NotByRows, TypeError, ValueError):
                continue  # the step finds another way, or says what is wrong
            except NotCovered as error:
                raise NotImplementedError(
                    f"TorchBridge: {self._binding.name} uses {error}, which the torch engine has no operation for; "
                    "use engine='xla', on a device that JAX has"
                ) from error

    def first(self, group: int, p: torch.Tensor, unit: Unit) -> torch.Tensor:
        """What a new state of a parameter has for one of its `units`."""
        self._engine_for([p])
        part = self._whole_part([Member(p, None, group, 0)], Given(False, False))
        same = next(own for own in part.form.units if own.name == unit.name)
        value = part.first(same)
        return value.clone() if isinstance(value, torch.Tensor) else torch.tensor(np.asarray(value))

    def units(self, group: int, p: torch.Tensor) -> list[Unit]:
        """What the state of a parameter consists of."""
        engine = self._engine_for([p])
        kind = Kind(self._seen[group].found, p.dtype, self._device_of(p))
        if self._by_rows(kind):
            with engine.precision():
                form = class_form(self._binding, kind.found, jax_dtype(kind.dtype))
            return [
                dataclasses.replace(unit, shape=tuple(p.shape)) if unit in form.arrays else unit
                for unit in form.form.units
            ]
        member = Member(p, None, group, 0)
        return list(self._whole_part([member], Given(False, False)).form.units)


@functools.lru_cache(maxsize=256)
def _sizes_of(algorithm: Any) -> set[tuple[int, ...]]:
    """The lists of sizes that have had programs."""
    del algorithm
    return set()


def _is_complete(items: Sequence[Any]) -> bool:
    """Whether none is None; `in` would compare tensors."""
    return all(map(operator.is_not, items, itertools.repeat(None)))


def _are(items: Sequence[Any], others: Sequence[Any]) -> bool:
    """Whether two lists have the same objects."""
    return len(items) == len(others) and all(map(operator.is_, items, others))


def _may_change(value: Any) -> bool:
    """Whether a value can change and still be the same object, such as a tensor that a scheduler fills."""
    return hasattr(value, "item") or (isinstance(value, tuple | list) and any(map(_may_change, value)))
