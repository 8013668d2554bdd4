"""Names that people type: equal but for their spelling, or almost right."""

import difflib
import re
from collections.abc import Iterable


def simplify(name: str) -> str:
    """A name without what spellings differ in: `AdamW`, `adamw` and `ADAM_W` are one."""
    return re.sub(r"[^a-z0-9]", "", name.lower())


def nearest(name: str, known: Iterable[str]) -> str:
    """The end of a message: the valid name that was probably meant."""
    by_simple_name = {simplify(other): other for other in known}
    near = difflib.get_close_matches(simplify(name), by_simple_name, n=1, cutoff=0.5)
    return f"did you mean {by_simple_name[near[0]]!r}?" if near else ""
