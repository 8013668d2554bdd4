"""Python blocks of pages: found, run, and compared with what they say that they print."""

import contextlib
import io
import re
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]


def blocks_of(path: Path) -> list[str]:
    return re.findall(r"```python\n(.*?)```", path.read_text(encoding="utf-8"), re.DOTALL)


def run(block: str, page: str, names: dict[str, Any]) -> None:
    """Runs a block in a namespace; each `print(...)  # output` prints that, and nothing else is printed."""
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(compile(block, page, "exec"), names)
    expected = re.findall(r"^ *print\(.*\)  # (.*)$", block, re.MULTILINE)
    assert printed.getvalue().splitlines() == expected
