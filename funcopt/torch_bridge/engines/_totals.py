"""What crosses the parts of an update in torch, and the numbers that come back."""

import functools
import math
from collections.abc import Callable, Generator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import torch

from funcopt.torch_bridge._buffers import jax_dtype, torch_dtype
from funcopt.torch_bridge.engines._code import Functional, functional
from funcopt.torch_bridge.engines._elements import Elements, HostNumbers
from funcopt.torch_bridge.engines._engine import Measurement, Reduce, Updated
from funcopt.torch_bridge.engines._kept import kept
from funcopt.torch_bridge.engines._lowering import HOW, Operand, lower

JOIN = {"sum": torch.sum, "amax": torch.amax, "amin": torch.amin}

Run = Generator[tuple[list[torch.Tensor], Any], list[torch.Tensor], Updated]
"""An update that yields what it adds to a total and what joins two of them, and is sent the total of all."""


def lockstep(runs: Sequence[Run], reduces: Sequence[Reduce | None]) -> list[Updated]:
    """Runs all parts, each total of one joined with those of the others that come to it at the same time.

    Args:
        runs: the parts.
        reduces: what makes a total of each part that of all processes. Those that have the same one are joined before.
    """
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
            join = next(join for _, join in totals.values())
            by_reduce: dict[Reduce | None, list[list[torch.Tensor]]] = {}
            for i, (own, _) in totals.items():
                by_reduce.setdefault(reduces[i], []).append(own)
            joined = _join(join, [_reduced(reduce, join, _join(join, own)) for reduce, own in by_reduce.items()])
            # Each part has the total in the dtype that it was traced with.
            waiting = {
                i: [x.to(y.device, y.dtype) for x, y in zip(joined, own, strict=True)] for i, (own, _) in totals.items()
            }
    return [results[i] for i in range(len(runs))]


def _join(join: Callable[[Any, Any], Any], totals: Sequence[list[torch.Tensor]]) -> list[torch.Tensor]:
    """One total of some."""
    return [
        functools.reduce(_joining(join), [x.to(column[0].device, column[0].dtype) for x in column])
        for column in zip(*totals, strict=True)
    ]


def _reduced(reduce: Reduce | None, join: Callable[[Any, Any], Any], total: list[torch.Tensor]) -> list[torch.Tensor]:
    """A total of all processes."""
    if reduce is None:
        return total
    how = HOW.get(join)
    if how is None:
        raise RuntimeError("TorchBridge: a total of parts in several processes must be a sum or an extremum")
    return [reduce(x, how) for x in total]


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

    (joined,) = kept((join, a.shape, a.dtype, b.dtype), make).run([a, b], [], a.device)
    return joined


def nothing(how: str, like: Operand, device: torch.device) -> torch.Tensor:
    """The total of no elements."""
    values = {"sum": 0.0, "amax": -math.inf, "amin": math.inf}
    return torch.full((), values[how], dtype=torch_dtype(like.dtype), device=device)


def returned(elements: Elements, numbers: HostNumbers, spans: Sequence[tuple[int, int]], found: Sequence[Any]) -> Any:
    """The numbers that come back: those of all segments, then those for all."""
    _, own, _, _ = elements.counts
    columns, device = [], 0
    for x in elements.returned:
        column = np.array(numbers.all(x)) if elements.is_of_host(x) else np.zeros(numbers.segments)
        if not elements.is_of_host(x):
            for (first, last), values in zip(spans, found, strict=True):
                column[first : last + 1] = float(values[device])
            device += 1
        columns.append(column)
    first = spans[0][0]
    mine = np.stack(columns[:own], axis=1).ravel() if own else np.zeros(0)
    return np.concatenate([mine, [column[first] for column in columns[own:]]])


def measured(
    elements: Elements,
    numbers: HostNumbers,
    segments: np.ndarray,
    sums: torch.Tensor,
    of_totals: Sequence[torch.Tensor],
) -> Measurement:
    """What says what an update was like, where it is: on the host or on the device.

    Args:
        elements: the recipe.
        numbers: of all segments.
        segments: int (n,), those that what follows is of.
        sums: (n, k), of elements.
        of_totals: each (n,), what the device makes of totals.
    """
    by_element = dict(zip(elements.sums, sums.unbind(1), strict=True))
    others = iter(of_totals)
    columns = [
        numbers.all(x)[segments] if elements.is_of_host(x) else by_element[x] if x in by_element else next(others)
        for x in elements.measured
    ]
    return Measurement(segments, columns, [i for i, x in enumerate(elements.measured) if x in by_element])


def add_up_processes(found: Sequence[Updated], reduces: Sequence[Reduce | None]) -> None:
    """Makes sums in what was measured those of all processes, at once for parameters that are divided alike."""
    by_reduce: dict[Reduce, list[Measurement]] = {}
    for updated, reduce in zip(found, reduces, strict=True):
        if updated.measured is not None and reduce is not None:
            by_reduce.setdefault(reduce, []).append(updated.measured)
    for reduce, own in by_reduce.items():
        places = [(known.columns, i) for known in own for i in known.sums]
        joined = reduce(torch.cat([columns[i] for columns, i in places]), "sum")
        for (columns, i), column in zip(places, joined.split([len(columns[i]) for columns, i in places]), strict=True):
            columns[i] = column
