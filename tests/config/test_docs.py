"""Every Python block of docs/groups.md runs, and prints what its comments say; the table is the one that is printed."""

import re
from typing import Any

import pytest
from pages import ROOT, blocks_of, run

PAGE = ROOT / "docs" / "groups.md"
BLOCKS = blocks_of(PAGE)


@pytest.mark.parametrize("block", BLOCKS, ids=range(len(BLOCKS)))
def test_block_runs(block: str) -> None:
    run(block, "groups.md", {"__name__": "page"})


def test_table() -> None:
    names: dict[str, Any] = {"__name__": "page"}
    run(BLOCKS[0], "groups.md", names)
    (table,) = re.findall(r"```text\n(.*?)\n```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    assert str(names["table"]) == table


def test_there_are_blocks() -> None:
    assert len(BLOCKS) >= 7
