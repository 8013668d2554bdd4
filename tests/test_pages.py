"""Every Python block of README and of the pages in docs runs and prints what it says; links lead somewhere."""

import re
from pathlib import Path
from typing import Any

import pytest
from pages import ROOT, blocks_of, run

DOCS = ROOT / "docs"
MADE = ("gallery", "project", "reference")  # by the site's build
WRITTEN = {
    str(path.relative_to(DOCS).with_suffix("")): path
    for path in sorted(DOCS.rglob("*.md"))
    if path.relative_to(DOCS).parts[0] not in MADE
}
# What imports other libraries, and what is compared with more than its comments.
ELSEWHERE = {"groups": "tests/config/test_docs.py", "integrations": "tests/clients/test_integrations.py"}
PAGES = {
    "README": ROOT / "README.md",
    **{name: path for name, path in WRITTEN.items() if name not in ELSEWHERE and not name.startswith("migrate/")},
}


def exists(target: Path) -> bool:
    """Whether there is a page, or what the site's build makes it of: a script, a paper of the project, a module."""
    made_of = {
        "gallery": ROOT / "examples" / "gallery" / f"{target.name}.py",
        "project": ROOT / f"{target.stem.upper()}.md",
        "reference": DOCS / "_extensions" / "reference.py",
    }
    return target.exists() or target.name == "gallery" or made_of.get(target.parent.name, target).exists()


@pytest.mark.parametrize("page", [name for name, path in PAGES.items() if blocks_of(path)])
def test_page_runs(page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In order and in one namespace; README's blocks each by itself."""
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    for block in blocks_of(PAGES[page]):
        names = {"__name__": "page", **({} if page == "README" else names)}
        run(block, page, names)


@pytest.mark.parametrize("path", [ROOT / "README.md", *WRITTEN.values()], ids=["README", *WRITTEN])
def test_links_lead_somewhere(path: Path) -> None:
    prose = re.sub(r"```.*?```", "", path.read_text(encoding="utf-8"), flags=re.DOTALL)
    targets = re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", prose)
    assert [target for target in targets if not exists((path.parent / target).resolve())] == []


def test_what_is_run_elsewhere_is() -> None:
    for page, test in ELSEWHERE.items():
        assert f"{page}.md" in (ROOT / test).read_text(encoding="utf-8")
    from_guides = (ROOT / "tests" / "guides.py").read_text(encoding="utf-8")
    guides = [name.partition("/")[2] for name in WRITTEN if name.startswith("migrate/")]
    assert [name for name in guides if f'"{name}"' not in from_guides] == ["index"]


def test_pages_have_blocks() -> None:
    assert sum(len(blocks_of(path)) for path in PAGES.values()) > 40
    assert all(path.read_text(encoding="utf-8").startswith("# ") for path in PAGES.values())
