"""Every Python block of docs/groups.md runs, and prints what its comments say; the table is the one that is printed."""

import contextlib
import io
import re
from pathlib import Path
from typing import Any

import pytest

TEXT = (Path(__file__).parents[2] / "docs" / "groups.md").read_text()
BLOCKS = re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)


def run(block: str) -> tuple[str, dict[str, Any]]:
    printed = io.StringIO()
    scope: dict[str, Any] = {"__name__": "docs"}
    with contextlib.redirect_stdout(printed):
        exec(compile(block, "groups.md", "exec"), scope)
    return printed.getvalue(), scope


@pytest.mark.parametrize("block", BLOCKS, ids=range(len(BLOCKS)))
def test_block_runs(block: str) -> None:
    expected = re.findall(r"^ *print\(.*\)  # (.*)$", block, re.MULTILINE)
    assert run(block)[0].splitlines() == expected


def test_table() -> None:
    (table,) = re.findall(r"```text\n(.*?)\n```", TEXT, re.DOTALL)
    assert str(run(BLOCKS[0])[1]["table"]) == table


def test_there_are_blocks() -> None:
    assert len(BLOCKS) >= 7
