"""An elementwise recipe as code: the numbers that the host computes, and what torch does to elements."""

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from funcopt.torch_bridge.engines import _recipes
from funcopt.torch_bridge.engines._code import Chunked, Flat, chunked, flat
from funcopt.torch_bridge.engines._kept import kept
from funcopt.torch_bridge.engines._lowering import (
    TOTAL,
    Operand,
    decided,
    deciding,
    dotted,
    fused,
    join_of,
    lower,
    needed,
    run_host,
    split,
    without_splats,
    zeros,
)
from funcopt.torch_bridge.engines._operations import Op, Value
from funcopt.torch_bridge.engines._recipes import Elementwise
from funcopt.torch_bridge.engines._segments import NotByRows, Traced

WIDTH = 64
"""Elements of what stands for rows of any width."""


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
        self.numbers = found.numbers  # what the host computes for the device
        self._deciding = deciding(found.ops, found.numbers)
        self.counts = traced.outputs
        self.totals = [op for op in found.ops if op.name == TOTAL]
        self._measuring = sum(not self.is_of_host(x) for x in self.measured)
        self._zeros = zeros(found.ops, self.arrays[0], self.is_of_host)
        self._of_elements: set[Operand] = {*self.arrays}
        self._codes: dict[Any, Any] = {}
        self._last: tuple[Any, HostNumbers] | None = None
        self._check()

    def is_of_host(self, x: Operand) -> bool:
        """Whether a value is a number that the host computes."""
        return not x.shape and (not isinstance(x, Value) or x in self._is_host)

    def _check(self) -> None:
        """Refuses totals of anything but elements, and what no operation of torch is."""
        of_elements = self._of_elements
        for op in self._ops:
            if op.name == TOTAL:
                if join_of(op) is None or not all(x in of_elements for x in op.inputs):
                    raise NotByRows("totals that are not of elements")
            elif any(x in of_elements for x in op.inputs):
                of_elements.update(op.outputs)
        for stage in range(len(self.totals) + 1):
            self.chunked(stage, tuple(0 for _ in self._deciding))

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
        """What depends on numbers alone: of all segments at once.

        Large parameters of a group, which are blocks of their own, have the same numbers as a rule.
        """
        key = shared.tobytes(), own.tobytes()
        if self._last is None or self._last[0] != key:
            known: dict[Value, Any] = dict(zip(self.shared, shared, strict=True))
            known.update((value, own[:, i]) for i, value in enumerate(self.own))
            self._last = key, HostNumbers(self, run_host(self._host, known), len(own))
        return self._last[1]

    def chunked(self, stage: int, choices: tuple[int, ...], *, masked: bool = False) -> tuple[Chunked, list[Value]]:
        """The code for chunks that leads to a total, or after the last one to the results; and what numbers it takes.

        Args:
            stage: which total.
            choices: what numbers decide.
            masked: whether elements that only fill rows are left out of sums, see `_code.chunked`.
        """
        key = "chunked", stage, choices, masked
        if key not in self._codes:
            self._codes[key] = self._write_chunked(stage, dict(zip(self._deciding, choices, strict=True)), masked)
        return self._codes[key]

    def _write_chunked(self, stage: int, choices: dict[Value, int], masked: bool) -> tuple[Chunked, list[Value]]:
        ops, outputs, into, totals = self._stage(stage)
        ops, outputs = decided(ops, outputs, choices)
        ops = fused(ops, outputs, self.is_of_host)
        ops = dotted(ops, outputs) if self._measuring and stage == len(self.totals) else ops
        numbers = self._used(ops, outputs)
        return chunked(ops, self.arrays, into, outputs, numbers, totals, masked=masked), numbers

    def flat(self, stage: int, *, joined: bool, measure: bool = False) -> Flat:
        """The same code for whole blocks, whatever the numbers; what is measured is by itself.

        Args:
            stage: which total.
            joined: whether blocks are rows.
            measure: whether it is what is measured, in place of the results.
        """
        key = "flat", stage, joined, measure
        if key not in self._codes:
            ops, outputs, into, totals = self._stage(stage)
            if stage == len(self.totals):
                state = len(outputs) - self._measuring
                outputs, into = (outputs[state:], {}) if measure else (outputs[:state], into)
            ops = needed(ops, outputs)
            numbers = self._used(ops, outputs)
            self._codes[key] = flat(ops, self.arrays, into, outputs, numbers, totals, joined=joined)
        return self._codes[key]

    def _stage(self, stage: int) -> tuple[list[Op], list[Operand], dict[int, Value], list[Value]]:
        """Operations, what they lead to, the places of the results, and the totals that are known by then."""
        last = stage == len(self.totals)
        outputs = self._outputs if last else [*self.totals[stage].inputs]
        # Numbers of the host are returned by the host.
        outputs = [x for k, x in enumerate(outputs) if (last and k < self.counts[0]) or not self.is_of_host(x)]
        totals = [x for op in self.totals[:stage] for x in op.outputs]
        into = dict(enumerate(self.arrays[1 : 1 + self.counts[0]])) if last else {}
        return [op for op in self._ops if op.name != TOTAL], outputs, into, totals

    def _used(self, ops: Sequence[Op], outputs: Sequence[Operand]) -> list[Value]:
        used = {x for op in ops for x in op.inputs} | {*outputs}
        return [x for x in self.numbers if x in used]

    def choices(self, numbers: "HostNumbers", segment: int) -> tuple[int, ...]:
        """What a segment's numbers decide."""
        return tuple(int(numbers.of(x, segment)) for x in self._deciding)

    @property
    def only_arrays(self) -> bool:
        """Whether no number of the state comes from elements, by way of a total."""
        return all(map(self.is_of_host, self.returned))

    @property
    def returned(self) -> list[Operand]:
        """Scalars among the results that are state."""
        arrays, own, shared, _ = self.counts
        return self._outputs[arrays : arrays + own + shared]

    @property
    def measured(self) -> list[Operand]:
        """Scalars among the results that say what the update was like."""
        return self._outputs[sum(self.counts[:3]) :]

    @property
    def sums(self) -> list[Operand]:
        """Those that are sums of elements."""
        return [x for x in self.measured if x in self._of_elements]


class HostNumbers:
    """Numbers of all segments."""

    def __init__(self, elements: Elements, known: dict[Value, Any], segments: int) -> None:
        self._known, self.segments = known, segments
        own = [np.broadcast_to(np.asarray(known[x], np.float64), segments) for x in elements.numbers]
        self._index = {x: i for i, x in enumerate(elements.numbers)}
        self.columns = np.stack(own) if own else np.zeros((0, segments))
        self.packed: dict[Any, Any] = {}  # on devices, by what takes them

    def matrix(self, values: Sequence[Value], dtype: Any) -> np.ndarray:
        """Some numbers of all segments, (segments, n)."""
        return self.columns[[self._index[x] for x in values]].T.astype(dtype)

    def of(self, value: Value, segment: int) -> float:
        """A number of a segment."""
        return float(self.columns[self._index[value], segment])

    def all(self, x: Operand) -> Any:
        """A number of all segments."""
        value = self._known[x] if isinstance(x, Value) else x.value
        return np.broadcast_to(np.asarray(value, np.float64), self.segments)

    def spans(self, due: np.ndarray, groups: np.ndarray | None = None) -> list[tuple[int, int]]:
        """The first and the last of segments that follow each other and have the same numbers, and the same group."""
        which = np.flatnonzero(due)
        if not len(which):
            return []
        bits = self.columns.view(np.int64)[:, which]
        same = (np.diff(which) == 1) & (bits[:, 1:] == bits[:, :-1]).all(axis=0)
        if groups is not None:
            same &= np.diff(groups[which]) == 0
        ends = np.flatnonzero(~same)
        firsts, lasts = which[np.concatenate([[0], ends + 1])], which[np.concatenate([ends, [len(which) - 1]])]
        return list(zip(firsts.tolist(), lasts.tolist(), strict=True))


def elements_of(recipe: Elementwise) -> Elements:
    """The code of a recipe, which the whole process shares.

    Raises:
        NotByRows: if the recipe needs more of a parameter than its elements.
        NotCovered: if it uses what torch has no operation for.
    """

    def make() -> Elements:
        with jax.enable_x64(True):
            return Elements(_recipes.traced(recipe, WIDTH))

    return kept((recipe, "elements"), make)
