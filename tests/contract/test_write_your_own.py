"""The guide's skeleton, copied as it is: it obeys the laws, agrees with its reference, and is found by its name."""

import inspect
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import test_transforms as laws

import funcopt

ROOT = Path(__file__).parents[2]
SKELETON = re.findall(r"```python\n(.*?)```", (ROOT / "docs/write_your_own.md").read_text(encoding="utf-8"), re.DOTALL)[
    0
]
LAWS = [
    law
    for name, law in vars(laws).items()
    if name.startswith("test_") and list(inspect.signature(law).parameters) == ["case"]
]


@pytest.fixture(scope="module")
def addsign() -> Any:
    names: dict[str, Any] = {"__name__": "skeleton"}
    exec(compile(SKELETON, "skeleton", "exec"), names)
    return names["addsign"]


@pytest.mark.parametrize("law", LAWS, ids=lambda law: law.__name__)
def test_the_skeleton_obeys_the_laws(addsign: Any, law: Any) -> None:
    (case,) = laws.rows_of(addsign)
    law(case._replace(name="skeleton", hyperparams={"lr": 0.1, "weight_decay": 0.1, "maximize": True}))


def test_the_skeleton_is_addsign_in_both_frameworks(addsign: Any) -> None:
    """float64, 30 steps, a changing learning rate: the paper's formula in NumPy."""
    rates = 0.1 * (1.2 + np.sin(np.arange(30)))
    rng = np.random.default_rng(0)
    start, gradients = rng.normal(size=(4, 3)), rng.normal(size=(30, 4, 3))
    expected, m = start.copy(), np.zeros_like(start)
    for rate, g in zip(rates, gradients, strict=True):
        m = 0.9 * m + (1 - 0.9) * g
        expected = expected * (1 - rate * 0.3) - rate * np.where(np.sign(g) == np.sign(m), 2.0, 0.0) * g

    with jax.enable_x64(True):
        schedule = lambda step: jnp.asarray(rates)[step]  # noqa: E731
        tx = addsign(schedule, weight_decay=0.3)
        params = jnp.asarray(start)
        state = tx.init(params)
        for grads in gradients:
            updates, state = tx.update(jnp.asarray(grads), state, params)
            params = funcopt.apply_updates(params, updates)
    np.testing.assert_allclose(params, expected, rtol=1e-14, atol=1e-14)

    torch = pytest.importorskip("torch")
    p = torch.nn.Parameter(torch.tensor(start))
    optimizer = funcopt.TorchBridge([p], addsign, lr=0.1, weight_decay=0.3)
    for rate, grads in zip(rates, gradients, strict=True):
        optimizer.param_groups[0]["lr"] = float(rate)
        p.grad = torch.tensor(grads)
        optimizer.step()
    np.testing.assert_allclose(p.detach().numpy(), expected, rtol=1e-14, atol=1e-14)
    assert optimizer.compilations == 1


FOUND = """
import funcopt, jax.numpy as jnp, torch
from funcopt.config import OPTIMIZERS, build_optimizer
from funcopt.groups import Rule, group_params
found = funcopt.algorithms()["addsign"]
assert found.state_keys == ("exp_avg",) and found.elementwise and found.defaults["beta"] == 0.9
assert OPTIMIZERS.get("AddSign") is found.factory
assert build_optimizer({"type": "AddSign", "lr": 0.1}, torch.nn.Linear(2, 2)).param_groups[0]["beta"] == 0.9
groups = group_params({"a": jnp.ones(2), "b": jnp.ones(2)}, [Rule(path="a", algorithm="addsign")], "adamw")
groups.optimizer(lr=0.1).init({"a": jnp.ones(2), "b": jnp.ones(2)})
print(funcopt.__file__)
"""


def test_a_new_algorithm_is_one_file_and_one_line(tmp_path: Path) -> None:
    pytest.importorskip("torch")
    shutil.copytree(ROOT / "funcopt", tmp_path / "funcopt", ignore=shutil.ignore_patterns("__pycache__"))
    (tmp_path / "funcopt/algorithms/_addsign.py").write_text(SKELETON, encoding="utf-8")
    with (tmp_path / "funcopt/algorithms/__init__.py").open("a", encoding="utf-8") as file:
        file.write("from funcopt.algorithms._addsign import addsign as addsign\n")
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    result = subprocess.run(
        [sys.executable, "-c", FOUND], capture_output=True, text=True, env=environment, cwd=tmp_path, check=False
    )
    assert result.returncode == 0, result.stderr[-1500:]
    assert str(tmp_path) in result.stdout
