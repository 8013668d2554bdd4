"""What importing funcopt does and does not do."""

import importlib.util
import statistics
import subprocess
import sys

import pytest

import funcopt


def run(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)


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


def test_importing_starts_no_backend() -> None:
    code = "import funcopt; from jax._src import xla_bridge; print(xla_bridge._backends)"
    assert run(code).stdout.strip() == "{}"


def test_importing_takes_no_longer_than_optax() -> None:
    """At most 1.15 of `import optax`, of which it is a part: medians of CPU times, taken in turn."""
    code = "import time; start = time.process_time(); import {}; print(time.process_time() - start)"
    times = [[float(run(code.format(package)).stdout) for package in ("optax", "funcopt")] for _ in range(7)]
    optax, ours = map(statistics.median, zip(*times, strict=True))
    assert ours <= 1.15 * optax


def test_bridge_without_torch_says_what_to_install() -> None:
    result = run("import sys; sys.modules['torch'] = None; import funcopt; funcopt.TorchBridge")
    assert "ImportError: funcopt.TorchBridge needs PyTorch" in result.stderr
    assert "pip install 'funcopt[torch]'" in result.stderr


def test_unknown_name() -> None:
    with pytest.raises(AttributeError, match="module 'funcopt' has no attribute 'adm'"):
        funcopt.adm  # noqa: B018  # pyright: ignore[reportAttributeAccessIssue]
