"""Every Python block of the pages in docs runs, in order and in one namespace, and prints what its comments say."""

import contextlib
import io
import re
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = [
    "start/jax",
    "start/torch",
    "start/trainer",
    "start/config",
    "concepts/transformations",
    "concepts/schedules",
    "concepts/engines",
    "concepts/numerics",
    "checkpoints",
    "many_machines",
    "low_precision",
    "speed",
]


def blocks_of(page: str) -> list[str]:
    return re.findall(r"```python\n(.*?)```", (DOCS / f"{page}.md").read_text(encoding="utf-8"), re.DOTALL)


def exists(target: Path) -> bool:
    """Whether there is a page, or what the site's build makes it of: a gallery's script, a paper of the project."""
    made_of = {
        "gallery": ROOT / "examples" / "gallery" / f"{target.name}.py",
        "project": ROOT / f"{target.name.upper()}.md",
    }
    return target.exists() or (target.parent.name in made_of and made_of[target.parent.name].exists())


@pytest.mark.parametrize("page", PAGES)
def test_page_runs(page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {"__name__": "page"}
    for block in blocks_of(page):
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            exec(compile(block, page, "exec"), names)
        expected = re.findall(r"^ *print\(.*\)  # (.*)$", block, re.MULTILINE)
        assert printed.getvalue().splitlines() == expected


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page: str) -> None:
    path = DOCS / f"{page}.md"
    prose = re.sub(r"```.*?```", "", path.read_text(encoding="utf-8"), flags=re.DOTALL)
    targets = re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", prose)
    assert targets
    assert not [target for target in targets if not exists(path.parent / target)]


def test_pages_have_blocks() -> None:
    assert all(map(blocks_of, PAGES))
    assert all((DOCS / f"{page}.md").read_text(encoding="utf-8").startswith("# ") for page in PAGES)
