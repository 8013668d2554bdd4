"""Every script of the gallery runs by itself, and leaves the pictures that the page shows."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SCRIPTS = sorted((ROOT / "examples" / "gallery").glob("plot_*.py"))

# Its globals are what the gallery's page looks for pictures in.
PROGRAM = """
import runpy, sys
from matplotlib.animation import FuncAnimation
from matplotlib.figure import Figure
found = runpy.run_path(sys.argv[1], run_name="__main__").values()
figures = [value for value in found if isinstance(value, Figure)]
assert figures
for figure in figures:
    figure.canvas.draw()
for animation in (value for value in found if isinstance(value, FuncAnimation)):
    animation._draw_was_started = True  # it is not shown, and need not say so
"""


@pytest.mark.thorough
@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.stem)
def test_script_runs_and_draws(script: Path) -> None:
    environment = {**os.environ, "MPLBACKEND": "Agg", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-W", "error::UserWarning", "-c", PROGRAM, str(script)],
        capture_output=True,
        text=True,
        env=environment,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.splitlines()) >= 2


def test_there_are_scripts() -> None:
    assert len(SCRIPTS) >= 8
    assert all(script.read_text(encoding="utf-8").startswith('"""') for script in SCRIPTS)
