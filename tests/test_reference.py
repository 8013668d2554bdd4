"""The API reference: nothing public without an entry and an example, and the examples that it makes run."""

import importlib.util
from pathlib import Path
from typing import Any

import pytest

import funcopt

PATH = Path(__file__).parents[1] / "docs" / "_extensions" / "reference.py"
NAMES = [*funcopt.algorithms()]


@pytest.fixture(scope="module")
def reference() -> Any:
    spec = importlib.util.spec_from_file_location("reference_of_the_site", PATH)
    assert spec is not None
    module: Any = importlib.util.module_from_spec(spec)
    assert spec.loader is not None
    spec.loader.exec_module(module)
    return module


def test_every_public_name_has_an_entry_and_an_example(reference: Any) -> None:
    assert reference.without_entry() == []
    assert reference.without_example() == []


def test_a_name_without_an_example_is_noticed(reference: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reference, "examples", lambda: "adamw")
    missing = reference.without_example()
    assert "funcopt.chain" in missing
    assert "funcopt.adamw" not in missing


def test_the_pages_say_what_the_definitions_say(reference: Any, tmp_path: Path) -> None:
    reference.write(tmp_path)
    page = (tmp_path / "optimizers.md").read_text(encoding="utf-8")
    assert all(f"\n## {name}\n" in page for name in NAMES)
    assert "| `betas` | (in [0, 1), in [0, 1)) | `(0.9, 0.999)` |" in page
    assert "State: `exp_avg`; 4 bytes for each element" in page
    assert {path.stem for path in tmp_path.iterdir()} == {"index", "optimizers", "directions", *reference.MODULES}


def test_docstrings_in_markdown_become_restructured_text(reference: Any) -> None:
    lines = ["Sets `lr` of **groups.", "", "| a | b |", "|---|---|", "| `x` | y |", "", ">>> f(*x)"]
    reference.as_rst(None, "", "", None, None, lines)
    text = "\n".join(lines)
    assert "Sets ``lr`` of \\*\\*groups." in text
    assert ".. list-table::\n   :header-rows: 1\n\n   * - a\n     - b\n   * - ``x``\n     - y\n" in text
    assert ">>> f(*x)" in text


@pytest.mark.thorough
@pytest.mark.parametrize("name", NAMES)
def test_the_example_of_each_optimizer_runs(reference: Any, name: str) -> None:
    found = funcopt.algorithms()[name]
    exec(compile(reference.example_of(found, reference.class_of(found)), name, "exec"), {"__name__": "page"})
