"""The table of `Groups.explain`: which parameter gets what, and why."""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from funcopt._names import align
from funcopt.groups._prefix import MULTIPLIER_OF
from funcopt.groups._resolve import Assignment


class Row(NamedTuple):
    """One parameter."""

    name: str
    shape: tuple[int, ...]
    rule: str
    lr: str
    weight_decay: str
    algorithm: str
    group: str


class Total(NamedTuple):
    """One group: how many parameters it has, of how many elements."""

    group: str
    params: int
    elements: int


@dataclasses.dataclass(frozen=True)
class Table:
    """Rows in the model's order, and totals per group; prints as aligned columns."""

    rows: tuple[Row, ...]
    totals: tuple[Total, ...]

    def __str__(self) -> str:
        shown = [(*row[:1], "x".join(map(str, row.shape)) or "scalar", *row[2:]) for row in self.rows]
        parameters = align([("name", "shape", "rule", "lr", "weight decay", "algorithm", "group"), *shown])
        totals = [(total.group, f"{total.params:,}", f"{total.elements:,}") for total in self.totals]
        everything = ("total", f"{sum(t.params for t in self.totals):,}", f"{sum(t.elements for t in self.totals):,}")
        return "\n".join(
            [*parameters, "", *align([("group", "parameters", "elements"), *totals, everything], right=(1, 2))]
        )

    __repr__ = __str__


def make_table(base: Mapping[str, Any], entries: Sequence[tuple[Assignment, str, str]]) -> Table:
    """The table of assignments, each with the names of its algorithm and its group."""
    rows = []
    for assignment, algorithm, group in entries:
        settings = assignment.settings
        lr, decay = (
            "-" if assignment.frozen else _show(settings.get(name, base[name]), settings.get(field, 1.0))
            for name, field in MULTIPLIER_OF.items()
        )
        rule = " + ".join(assignment.rules) or "-"
        rows.append(Row(assignment.param.name, assignment.param.shape, rule, lr, decay, algorithm, group))
    totals = [
        Total(group, len(members), sum(math.prod(row.shape) for row in members))
        for group in dict.fromkeys(row.group for row in rows)
        for members in [[row for row in rows if row.group == group]]
    ]
    return Table(tuple(rows), tuple(totals))


def _show(base: Any, factor: float) -> str:
    """A value as the table shows it: the number, or its factor where the base is not known or moves."""
    if base is None or callable(base):
        text = "base" if base is None else "schedule"
        return text if factor == 1 else f"{text} * {factor:g}"
    return f"{base * factor:g}"
