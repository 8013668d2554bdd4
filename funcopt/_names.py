"""Names that people type, equal but for their spelling or almost right; and tables that they read."""

import difflib
import re
from collections.abc import Iterable, Sequence


def simplify(name: str) -> str:
    """A name without what spellings differ in: `AdamW`, `adamw` and `ADAM_W` are one."""
    return re.sub(r"[^a-z0-9]", "", name.lower())


def nearest(name: str, known: Iterable[str]) -> str:
    """The end of a message: the valid name that was probably meant."""
    by_simple_name = {simplify(other): other for other in known}
    near = difflib.get_close_matches(simplify(name), by_simple_name, n=1, cutoff=0.5)
    return f"did you mean {by_simple_name[near[0]]!r}?" if near else ""


def align(rows: Sequence[Sequence[str]], right: Iterable[int] = ()) -> list[str]:
    """Rows of cells as lines with aligned columns; `right` are the columns that are aligned to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    places = set(right)
    return [
        "  ".join(
            cell.rjust(width) if i in places else cell.ljust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]
