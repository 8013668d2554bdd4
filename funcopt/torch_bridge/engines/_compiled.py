"""Compiled: torch's compiler makes one kernel of what is done to a block, for any size of it."""

import functools
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch

from funcopt.torch_bridge._buffers import torch_dtype
from funcopt.torch_bridge.engines._chunks import run_chunks
from funcopt.torch_bridge.engines._code import Flat
from funcopt.torch_bridge.engines._elements import Elements, HostNumbers
from funcopt.torch_bridge.engines._engine import Measurement, Part, Updated
from funcopt.torch_bridge.engines._lowering import join_of
from funcopt.torch_bridge.engines._recipes import DUE
from funcopt.torch_bridge.engines._totals import JOIN, Run, measured, nothing, returned


class _NoCompilerError(Exception):
    """Nothing can be compiled here; nothing has been done either."""


_broken: list[str] = []
"""Why nothing can be compiled, once that is known."""


def run_compiled(part: Part, shared: np.ndarray, elements: Elements) -> Run:
    """The update of a block, by one kernel for each stage."""
    is_empty = part.measured and not part.given[0].numel()  # which nothing is compiled for
    if _broken or not elements.only_arrays or is_empty:
        return (yield from run_chunks(part, shared, elements))
    try:
        return (yield from _run(part, shared, elements))
    except _NoCompilerError:
        # Before anything was written: the first stage is the first to be compiled.
        return (yield from run_chunks(part, shared, elements))


def _run(part: Part, shared: np.ndarray, elements: Elements) -> Run:
    grads, rows = part.given
    arrays = [grads, *part.donated] if rows is None else [x.view(-1, rows.width) for x in (grads, *part.donated)]
    numbers = elements.host(shared, part.own)
    due = part.own[:, DUE] != 0
    device = arrays[0].device
    where = None if rows is None else rows.on(device, due)
    codes = [elements.flat(stage, joined=rows is not None) for stage in range(len(elements.totals) + 1)]
    functions = [_compiled(code) for code in codes]
    totals: list[torch.Tensor] = []
    for op, code, function in zip(elements.totals, codes, functions, strict=False):
        how = join_of(op)
        assert how is not None
        found = _call(function, arrays, _packed(code, numbers, device), totals, where)
        own = [x if x.dim() == 0 else JOIN[how](x) for x in found]
        totals += yield own or [nothing(how, x, device) for x in op.inputs], op.params["join"]
    known = _measured(arrays, numbers, elements, totals, where) if part.measured else None
    _call(functions[-1], arrays, _packed(codes[-1], numbers, device), totals, where)
    first = int(np.argmax(due))
    key = "returned", first
    if key not in numbers.packed:
        numbers.packed[key] = returned(elements, numbers, [(first, first)], [])
    return Updated(part.donated, numbers.packed[key], known)


def _measured(
    arrays: Sequence[torch.Tensor],
    numbers: HostNumbers,
    elements: Elements,
    totals: Sequence[torch.Tensor],
    where: tuple[torch.Tensor, torch.Tensor] | None,
) -> Measurement:
    """What the update is like, before it overwrites what that is made of.

    By a kernel of its own: the compiler breaks down over sums beside results that take the place of arguments.
    """
    code = elements.flat(len(elements.totals), joined=where is not None, measure=True)
    found = _call(_compiled(code), arrays, _packed(code, numbers, arrays[0].device), totals, where)
    by_device = [*zip((x for x in elements.measured if not elements.is_of_host(x)), found, strict=True)]
    of_elements = set(elements.sums)

    def of_segments(sums: torch.Tensor) -> torch.Tensor:
        return sums.view(1) if where is None else sums.new_zeros(numbers.segments).index_add_(0, where[0], sums)

    sums = torch.stack([of_segments(value) for x, value in by_device if x in of_elements], 1)
    of_totals = [value.expand(numbers.segments) for x, value in by_device if x not in of_elements]
    return measured(elements, numbers, np.arange(numbers.segments), sums, of_totals)


def _packed(code: Flat, numbers: HostNumbers, device: torch.device) -> list[torch.Tensor]:
    """The numbers that a function takes, one tensor for each dtype."""
    key = code.run, device
    if key in numbers.packed:
        return numbers.packed[key]
    found = []
    for dtype, values in code.numbers.items():
        own = torch.from_numpy(np.ascontiguousarray(numbers.matrix(values, np.float64))).to(torch_dtype(dtype))
        found.append(own if device.type == "cpu" else own.to(device, non_blocking=True))
    numbers.packed[key] = found
    return found


@functools.lru_cache(maxsize=1024)
def _function_of(run: Callable[..., Any]) -> Callable[..., Any]:
    return torch.compile(run, fullgraph=True)


def _compiled(code: Flat) -> Callable[..., Any]:
    return _function_of(code.run)


_sized: set[Any] = set()
"""What has been compiled, for any number of rows."""


def _call(
    function: Callable[..., Any],
    arrays: Sequence[torch.Tensor],
    numbers: Sequence[torch.Tensor],
    totals: Sequence[torch.Tensor],
    where: tuple[torch.Tensor, torch.Tensor] | None,
) -> tuple[torch.Tensor, ...]:
    if not arrays[0].numel():
        return ()
    key = function, arrays[0].shape[1:]
    arguments = list(arrays), list(numbers), list(totals), where
    if key in _sized:
        return function(*arguments)
    for x in (*arrays, *(where or ()), *(numbers if where is not None else ())):
        torch._dynamo.mark_dynamic(x, 0)  # pyright: ignore[reportPrivateImportUsage]
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the compiler's, of itself
            found = function(*arguments)
    except Exception as error:
        # The module is slow to import, and is there once something is compiled.
        dynamo: Any = torch._dynamo  # pyright: ignore[reportPrivateImportUsage]
        if not isinstance(error, dynamo.exc.TorchDynamoException):
            raise
        _broken.append(str(error))
        warnings.warn(
            f"TorchBridge: torch.compile does not work here, so that updates run uncompiled: {str(error)[:500]}",
            stacklevel=2,
        )
        raise _NoCompilerError from error
    _sized.add(key)
    return found
