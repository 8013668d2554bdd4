"""Eager: torch's operations on chunks of flat memory, in place, with memory of the process for what lies between."""

import collections
import itertools
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch

from funcopt.torch_bridge._buffers import torch_dtype
from funcopt.torch_bridge.engines._code import Scratch
from funcopt.torch_bridge.engines._elements import Elements
from funcopt.torch_bridge.engines._engine import Part, Updated
from funcopt.torch_bridge.engines._lowering import Operand, join_of
from funcopt.torch_bridge.engines._recipes import DUE
from funcopt.torch_bridge.engines._totals import JOIN, Run, measured, nothing, returned

CHUNK = 65_536
"""Elements that a thread of the CPU has at a time: of fewer, to start an operation takes longer than to run it; of
more, what lies between two operations does not stay in the cache."""

CHUNK_ELSEWHERE = 2**22
"""The same on a device where starting an operation takes longer than a thread's."""

MAX_SPANS = 64
"""Parts of a block's memory that are remembered."""


class Rows:
    """Where the parameters of a block are.

    Args:
        segment: int32 (rows,), which parameter a row belongs to.
        filled: int32 (rows,), how many elements of a row are a parameter's.
        width: elements of a row.
    """

    def __init__(self, segment: np.ndarray, filled: np.ndarray, width: int) -> None:
        self.width = width
        self._rows = segment, filled
        self._tensors: tuple[torch.Tensor, torch.Tensor] | None = None
        self._mask: torch.Tensor | None = None
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

    def on(self, device: torch.device, due: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
        """Of each row its parameter, and how many of its elements count for totals.

        Args:
            device: where.
            due: bool (segments,): parameters that have a gradient; the others count for none.
        """
        if self._tensors is None or self._tensors[0].device != device:
            segment, filled = map(torch.from_numpy, self._rows)
            self._tensors = segment.to(device, torch.int64), filled.to(device)
        segment, filled = self._tensors
        if not due[: len(self._filled)].all():
            filled = torch.where(torch.from_numpy(due).to(device)[segment], filled, 0)
        return segment, filled

    def mask(self, device: torch.device) -> torch.Tensor:
        """Of each element of the memory whether it is a parameter's, bool."""
        if self._mask is None or self._mask.device != device:
            filled = torch.from_numpy(self._rows[1]).to(device)
            self._mask = (torch.arange(self.width, device=device) < filled[:, None]).view(-1)
        return self._mask

    def chunks(self, arrays: list[torch.Tensor], start: int, stop: int, size: int, scratch: list[Scratch]) -> list[Any]:
        """The parts of arrays, which are the same ones as a rule."""
        key = start, stop, size, len(arrays), tuple(scratch)
        known, addresses = self._chunks.get(key), [x.data_ptr() for x in arrays]
        if known is None or known[0] != addresses:
            if len(self._chunks) >= MAX_SPANS:
                self._chunks.clear()
            known = self._chunks[key] = addresses, list(_chunks([x[start:stop] for x in arrays], size, scratch))
        return known[1]


def run_chunks(part: Part, shared: np.ndarray, elements: Elements) -> Run:
    grads, rows = part.given
    arrays = [x.view(-1) for x in (grads, *part.donated)]
    numbers = elements.host(shared, part.own)
    spans = numbers.spans(part.own[:, DUE] != 0)
    device, size = arrays[0].device, _chunk_size(arrays[0].device)
    totals: list[torch.Tensor] = []

    def run(stage: int, *mask: torch.Tensor, exactly: bool = False) -> tuple[list[list[Any]], list[Any]]:
        """What the chunks of each span return, and what it returns itself."""
        of_chunks: list[list[Any]] = []
        of_spans: list[Any] = []
        for first, last in spans:
            code, wanted = elements.chunked(stage, elements.choices(numbers, first), masked=bool(mask))
            own, single = [numbers.of(x, first) for x in wanted], ()
            of_chunks.append([])
            for start, stop in [(0, arrays[0].numel())] if rows is None else _ranges(rows, first, last, exactly):
                chunks = (
                    _chunks(arrays, size, code.scratch)
                    if rows is None
                    else rows.chunks([*arrays, *mask], start, stop, size, code.scratch)
                )
                found, single = code.run(chunks, own, totals, device)
                of_chunks[-1] += found
            of_spans.append(single)
        return of_chunks, of_spans

    for stage, op in enumerate(elements.totals):
        of_chunks, _ = run(stage, exactly=rows is not None and not elements.is_padded(stage))
        found = [*itertools.chain.from_iterable(of_chunks)]
        how = join_of(op)
        assert how is not None
        own = (
            [JOIN[how](torch.stack(column)) for column in zip(*found, strict=True)]
            if found
            else [nothing(how, x, device) for x in op.inputs]
        )
        sent = yield own, op.params["join"]
        totals += sent
    if part.groups is not None:  # only here, so that totals are added up in the same order with and without
        spans = numbers.spans(part.own[:, DUE] != 0, part.groups)
    mask = [rows.mask(device)] if rows is not None and part.measured else []
    of_chunks, of_spans = run(len(elements.totals), *mask)
    back = returned(elements, numbers, spans, of_spans)
    if not part.measured:
        return Updated(part.donated, back)
    firsts = np.array([first for first, _ in spans])
    sums = torch.stack([_sums(found, elements.sums, device) for found in of_chunks])
    first = sum(not elements.is_of_host(x) for x in elements.returned)
    of_totals = [torch.stack(column) for column in zip(*(own[first:] for own in of_spans), strict=True)]
    return Updated(part.donated, back, measured(elements, numbers, firsts, sums, of_totals))


def _sums(found: Sequence[tuple[torch.Tensor, ...]], what: Sequence[Operand], device: torch.device) -> torch.Tensor:
    """The sums over all chunks, (n,)."""
    if not found:
        return torch.zeros(len(what), dtype=torch_dtype(what[0].dtype), device=device)
    return torch.stack([x for own in found for x in own]).view(len(found), -1).sum(0)


def _ranges(rows: Rows, first: int, last: int, exactly: bool) -> list[tuple[int, int]]:
    return rows.exactly(first, last) if exactly else [rows.of(first, last)]


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
