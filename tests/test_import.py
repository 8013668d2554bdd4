"""What importing funcopt does and does not do."""

import importlib.util
import os
import statistics
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

import funcopt


def run(code: str, environment: Mapping[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, env=environment)


LOADED = "import sys; loaded = {name.split('.')[0] for name in sys.modules}; "


needs_torch = pytest.mark.skipif(importlib.util.find_spec("torch") is None, reason="torch is not installed")


@pytest.mark.parametrize(
    ("code", "package", "expected"),
    [
        ("import funcopt", "torch", False),
        ("import funcopt, funcopt.schedules, funcopt.transforms", "torch", False),
        ("import funcopt; funcopt.adamw(1e-3); funcopt.schedules.step_lr(1.0, 2)(3)", "torch", False),
        ("import funcopt", "matplotlib", False),
        # The check can fail:
        pytest.param("import funcopt; funcopt.TorchBridge", "torch", True, marks=needs_torch),
        pytest.param("from funcopt import torch_bridge", "torch", True, marks=needs_torch),
    ],
)
def test_imports(code: str, package: str, expected: bool) -> None:
    result = run(f"{code}; {LOADED} print({package!r} in loaded)")
    assert result.stdout.strip() == str(expected), result.stderr


@needs_torch
def test_importing_leaves_torchs_compiler_alone() -> None:
    """It takes a second, and torch imports it when the first optimizer is made."""
    code = "import sys; from funcopt.torch_bridge import optim; print('torch._dynamo' in sys.modules)"
    assert run(code).stdout.strip() == "False"


def test_importing_starts_no_backend() -> None:
    code = "import funcopt; from jax._src import xla_bridge; print(xla_bridge._backends)"
    assert run(code).stdout.strip() == "{}"


def test_importing_takes_no_longer_than_optax(tmp_path: Path) -> None:
    """At most 1.15 of `import optax`, which is a part of it: the median of several processes' CPU times.

    Compiled files are kept in a folder of the test's own: an installed package has them, a checkout may not. Garbage is
    not collected: a collection takes as long as all of funcopt, and falls into one import or the other by chance.
    """
    code = (
        "import gc; from time import process_time as now; gc.disable(); start = now(); import optax; between = now(); "
        "import funcopt; print((now() - start) / (between - start))"
    )
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    environment["PYTHONPYCACHEPREFIX"] = str(tmp_path)
    _, *ratios = (float(run(code, environment).stdout) for _ in range(6))
    assert statistics.median(ratios) <= 1.15


def test_bridge_without_torch_says_what_to_install() -> None:
    result = run("import sys; sys.modules['torch'] = None; import funcopt; funcopt.TorchBridge")
    assert "ImportError: funcopt.TorchBridge needs PyTorch" in result.stderr
    assert "pip install 'funcopt[torch]'" in result.stderr


def test_unknown_name() -> None:
    with pytest.raises(AttributeError, match="module 'funcopt' has no attribute 'adm'"):
        funcopt.adm  # noqa: B018  # pyright: ignore[reportAttributeAccessIssue]
