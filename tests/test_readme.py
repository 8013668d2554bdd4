"""Every Python block of the README and of the pages in docs runs, and prints what its comments say."""

import contextlib
import io
import re
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]
ALONE = ["README.md"]  # each block for itself
TOGETHER = ["docs/write_your_own.md"]  # blocks that go on from those before


def blocks_of(page: str) -> list[str]:
    return re.findall(r"```python\n(.*?)```", (ROOT / page).read_text(encoding="utf-8"), re.DOTALL)


def run(block: str, page: str, names: dict[str, Any]) -> None:
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(compile(block, page, "exec"), names)
    expected = re.findall(r"^ *print\(.*\)  # (.*)$", block, re.MULTILINE)
    assert printed.getvalue().splitlines() == expected


BLOCKS = [pytest.param(page, block, id=f"{page}-{i}") for page in ALONE for i, block in enumerate(blocks_of(page))]


@pytest.mark.parametrize(("page", "block"), BLOCKS)
def test_block_runs(page: str, block: str) -> None:
    run(block, page, {"__name__": "page"})


@pytest.mark.parametrize("page", TOGETHER)
def test_page_runs(page: str) -> None:
    names: dict[str, Any] = {"__name__": "page"}
    for block in blocks_of(page):
        run(block, page, names)


def test_there_are_blocks() -> None:
    assert len(BLOCKS) >= 2
    assert all(map(blocks_of, TOGETHER))
