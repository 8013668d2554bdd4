"""The audit's rows, goals and tables."""

import dataclasses
import math
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from benchmarks._audit_programs import (
    ALGORITHMS,
    LAYOUTS,
    SMALL,
    Algorithm,
    Program,
    compile_update,
    join,
    split_groups,
)
from benchmarks._workloads import WORKLOADS, Workload

ONE_TENSOR = Workload("one", "one of 4096 x 4096", ((4096, 4096),))
"""Large enough that a scalar does not show in the bytes per parameter."""

ALL_WORKLOADS = {ONE_TENSOR.name: ONE_TENSOR, **WORKLOADS}
DEFAULT_WORKLOADS = ("one", "gpt2-small", "resnet50", "1000x32x32")

PER_TENSOR = ("adamw", "recipe")
"""Algorithms whose programs for a list of tensors are also compiled with a leaf for each: what joining is for."""

MAX_LEAVES = 200
"""Tensors up to which a list is compiled with a leaf for each, which for 1,000 takes minutes."""

MAX_SCALARS = 64 * 1024
"""Bytes of temporaries that a GPU program may have: scalars, and the partial sums of a norm."""


@dataclasses.dataclass(frozen=True)
class Row:
    """One program's figures.

    Attributes:
        target: what it is for, "cpu" or "h200".
        devices: how many of them.
        layout: how they share the arrays, "" for one device.
        workload: name of the list of tensors.
        joined: whether the small tensors are one leaf.
        algorithm: name in `ALGORITHMS`.
        peer: whose program it is: "funcopt" in a JAX loop, "bridge", or "optax".
        bytes_per_param: that one device moves in a step, per parameter of all devices.
        minimum: the algorithm's least possible on one device.
        launches: on one device in a step.
        tensors: leaves.
        large: tensors too large to be joined.
        aliased: donated leaves whose memory is used again; of `donated`. Of them, `swapped` go to another leaf.
        temporaries: bytes beside arguments and results on one device.
        collectives: how many of each kind.
    """

    target: str
    devices: int
    layout: str
    workload: str
    joined: bool
    algorithm: str
    peer: str
    bytes_per_param: float
    minimum: int
    launches: int
    tensors: int
    large: int
    aliased: int
    donated: int
    swapped: int
    temporaries: int
    collectives: dict[str, int]

    @property
    def has_goals(self) -> bool:
        """Goals are for one device, a GPU or the bridge's CPU, and for what can be joined: elementwise algorithms."""
        if self.devices > 1 or self.peer != ("bridge" if self.target == "cpu" else "funcopt"):
            return False
        return ALGORITHMS[self.algorithm].elementwise and (self.joined or self.workload == ONE_TENSOR.name)

    def shortfalls(self) -> list[str]:
        """The goals that are missed, in words."""
        missed = []
        if self.bytes_per_param > 1.01 * self.minimum:
            missed.append(f"moves {self.bytes_per_param / self.minimum:.2f} x the least")
        if self.aliased < self.donated or self.swapped:
            missed.append(f"{self.donated - self.aliased} leaves not in place, {self.swapped} swapped")
        if self.temporaries > MAX_SCALARS:
            missed.append(f"temporaries of {self.temporaries:,} B")
        if self.target != "cpu" and self.launches > self.large + 10:  # on the CPU a scalar costs nothing of its own
            missed.append(f"{self.launches} launches for {self.large} large tensors")
        return missed

    @property
    def verdict(self) -> str:
        return "" if not self.has_goals else "; ".join(self.shortfalls()) or "pass"


def audit(target: str, devices: Sequence[Any], algorithms: Iterable[str], workloads: Iterable[str]) -> Iterator[Row]:
    """Compiles and counts.

    Args:
        target: what the devices are, "cpu" or "h200".
        devices: one, or several that share the arrays in each of `LAYOUTS`.
        algorithms: names in `ALGORITHMS`.
        workloads: names in `ALL_WORKLOADS`.
    """
    for workload in (ALL_WORKLOADS[name] for name in workloads):
        for name in algorithms:
            algorithm = ALGORITHMS[name]
            for joined, peer in _forms(name, algorithm, workload, target, len(devices)):
                groups = split_groups(algorithm, workload.shapes)
                shapes = [join(group) for group in groups] if joined else groups
                for layout in LAYOUTS if len(devices) > 1 else ("",):
                    program = compile_update(algorithm, shapes, devices, layout or LAYOUTS[0], peer)
                    yield _row(program, target, len(devices), layout, workload, joined, name, peer)


def _forms(
    name: str, algorithm: Algorithm, workload: Workload, target: str, devices: int
) -> Iterator[tuple[bool, str]]:
    """Whether tensors are joined, and whose program: what is worth compiling.

    Over several devices nothing is joined: what is divided must keep its axes.
    """
    single = workload.name == ONE_TENSOR.name
    if single or (name in PER_TENSOR and len(workload.shapes) <= MAX_LEAVES):
        yield False, "funcopt"
        if algorithm.optax is not None:
            yield False, "optax"
    if algorithm.elementwise and devices == 1:
        if not single:
            yield True, "funcopt"
        if target == "cpu":
            yield not single, "bridge"


def _row(
    program: Program,
    target: str,
    devices: int,
    layout: str,
    workload: Workload,
    joined: bool,
    algorithm: str,
    peer: str,
) -> Row:
    return Row(
        target=target,
        devices=devices,
        layout=layout,
        workload=workload.name,
        joined=joined,
        algorithm=algorithm,
        peer=peer,
        bytes_per_param=round(program.bytes_per_param, 3),
        minimum=ALGORITHMS[algorithm].minimum,
        launches=program.cost.launches,
        tensors=program.tensors,
        large=sum(math.prod(shape) > SMALL for shape in workload.shapes),
        aliased=program.aliased,
        donated=program.donated,
        swapped=program.swapped,
        temporaries=program.temporaries,
        collectives=dict(program.cost.collectives),
    )


def tables(rows: Sequence[Row]) -> str:
    """All rows as Markdown: the algorithms, the lists of tensors, the layouts over several devices."""
    parts = []
    for target in dict.fromkeys(row.target for row in rows):
        single = [row for row in rows if row.target == target and row.devices == 1]
        spread = [row for row in rows if row.target == target and row.devices > 1]
        one = [row for row in single if row.workload == ONE_TENSOR.name]
        lists = [row for row in single if row.workload != ONE_TENSOR.name]
        if one:
            parts += [f"### {target}: bytes per parameter, {ONE_TENSOR.title}", _algorithms(one)]
        if lists:
            parts += [f"### {target}: lists of tensors", _lists(lists)]
        if spread:
            parts += [f"### {target}: {spread[0].devices} devices, each one's bytes per parameter", _layouts(spread)]
    return "\n\n".join(parts) + "\n"


def _algorithms(rows: Sequence[Row]) -> str:
    optax = {row.algorithm: row for row in rows if row.peer == "optax"}
    lines = []
    for row in rows:
        if row.peer != "optax":
            algorithm, peer = ALGORITHMS[row.algorithm], optax.get(row.algorithm)
            lines.append(
                [
                    row.algorithm,
                    row.peer,
                    row.minimum,
                    f"{row.bytes_per_param:.2f}",
                    f"{peer.bytes_per_param:.2f}" if peer else None,
                    algorithm.foreach,
                    algorithm.fused,
                    row.launches,
                    f"{row.aliased}/{row.donated}",
                    _size(row.temporaries),
                    _size(peer.temporaries) if peer else None,
                    row.verdict,
                ]
            )
    return _table(
        "algorithm, program, least, B/param, optax, torch foreach, torch fused, launches, in place, temporaries, "
        "optax's temporaries, goals",
        lines,
    )


def _lists(rows: Sequence[Row]) -> str:
    return _table(
        "tensors, algorithm, program, leaves, large, launches, B/param, in place, temporaries, goals",
        [
            [
                ALL_WORKLOADS[row.workload].title,
                row.algorithm,
                f"{row.peer}, joined" if row.joined else row.peer,
                row.tensors,
                row.large,
                row.launches,
                f"{row.bytes_per_param:.2f}",
                f"{row.aliased}/{row.donated}",
                _size(row.temporaries),
                row.verdict,
            ]
            for row in rows
        ],
    )


def _layouts(rows: Sequence[Row]) -> str:
    return _table(
        "tensors, algorithm, layout, program, B/param, launches, collectives, in place, temporaries",
        [
            [
                ALL_WORKLOADS[row.workload].title,
                row.algorithm,
                row.layout,
                row.peer,
                f"{row.bytes_per_param:.2f}",
                row.launches,
                ", ".join(f"{number} {kind}" for kind, number in row.collectives.items()) or None,
                f"{row.aliased}/{row.donated}",
                _size(row.temporaries),
            ]
            for row in rows
        ],
    )


def _size(size: float) -> str:
    for unit in ("B", "KiB"):
        if size < 1024:
            return f"{size:.0f} {unit}"
        size /= 1024
    return f"{size:,.0f} MiB"


def _table(head: str, lines: Sequence[Sequence[Any]]) -> str:
    """A Markdown table whose columns also line up on a terminal; None is nothing to say."""
    cells = [head.split(", "), *([["-" if cell is None else str(cell) for cell in line] for line in lines])]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    padded = [" | ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) for line in cells]
    rule = " | ".join("-" * width for width in widths)
    return "\n".join(f"| {line} |" for line in (padded[0], rule, *padded[1:]))
