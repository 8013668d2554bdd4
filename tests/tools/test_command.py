"""The command line: what it prints, as text and as JSON, and its exit status."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

import funcopt
from funcopt.tools._command import main
from funcopt.torch_bridge import from_torch_state_dict, optim

MODELS = """
import jax.numpy as jnp, torch

def net():
    return torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.LayerNorm(3), torch.nn.Linear(3, 2))

def tree():
    return {"hidden": {"w": jnp.ones((4, 3)), "b": jnp.ones(3)}, "head": jnp.ones((3, 2))}
"""
CONFIG = {
    "optim_wrapper": {
        "optimizer": {"type": "AdamW", "lr": 1e-3, "weight_decay": 0.05, "amsgrad": True},
        "paramwise_cfg": {"bias_decay_mult": 0.0},
        "clip_grad": {"max_norm": 1.0},
    },
    "param_scheduler": [{"type": "StepLR", "step_size": 2, "gamma": 0.1, "by_epoch": True}],
    "train_cfg": {"max_epochs": 4},
}


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "own_models.py").write_text(MODELS)
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)


def run(capsys: pytest.CaptureFixture[str], *arguments: str, status: int = 0) -> str:
    assert main(arguments) == status
    printed = capsys.readouterr()
    return printed.out if status != 2 else printed.err


def test_explain(capsys: Any) -> None:
    model = ("--model", "own_models:net", "--steps-per-epoch", "10", "--steps", "40")
    text = run(capsys, "explain", "config.json", *model)
    assert text.startswith("adamw(weight_decay=0.05, amsgrad=True)\naround it: max_norm=1.0\n")
    assert "0.bias    3      bias_decay_mult  schedule  0 " in text
    table = ["   0  0.001", "   1  0.001", "  19  0.001", "  20  0.0001", "  39  0.0001", "  40  0.0001"]
    assert text.splitlines()[-8:] == ["lr, over 40 updates", "step  value", *table]
    found = json.loads(run(capsys, "explain", "config.json", *model, "--json"))
    assert found["schedules"]["lr"] == pytest.approx([1e-3] * 20 + [1e-4] * 20)
    assert [row["weight_decay"] for row in found["parameters"]] == ["0.05", "0", "0.05", "0", "0.05", "0"]


def test_explain_draws(capsys: Any) -> None:
    run(
        capsys, "explain", "config.json", "--model", "own_models:tree", "--steps-per-epoch", "5", "--plot", "groups.png"
    )
    assert Path("groups.png").stat().st_size > 1000
    assert Path("groups-schedules.png").stat().st_size > 1000


@pytest.mark.parametrize("model", ["net", "tree"])
def test_memory(capsys: Any, model: str) -> None:
    found = json.loads(run(capsys, "memory", "config.json", "--model", f"own_models:{model}", "--json"))
    by_key = {row["key"]: row["elements"] for row in found["state"]}
    assert by_key["exp_avg"] == by_key["max_exp_avg_sq"] == found["params"]
    assert "max_exp_avg_sq" in run(capsys, "memory", "config.json", "--model", f"own_models:{model}")
    assert "prev" not in run(capsys, "memory", "lion", "--model", f"own_models:{model}")


def trained() -> tuple[Any, Any]:
    scope: dict[str, Any] = {}
    exec(MODELS, scope)
    model = scope["net"]()
    optimizer = torch.optim.AdamW(model.parameters())
    for _ in range(3):
        model(torch.ones(2, 4)).square().sum().backward()
        optimizer.step()
    return model, optimizer


def test_convert_there_and_back(capsys: Any) -> None:
    """Torch -> JAX -> optax -> JAX -> torch: the same state."""
    model, optimizer = trained()
    torch.save({"epoch": 3, "optimizer": optimizer.state_dict()}, "run.pt")
    options = ("--optimizer", "adamw", "--model", "own_models:net")
    run(capsys, "convert", "run.pt", "--key", "optimizer", "--to", "jax", "--output", "state.npz", *options)
    params = {name: jnp.array(p.detach().numpy()) for name, p in model.named_parameters()}
    names = [*params]
    expected = from_torch_state_dict(optimizer.state_dict(), funcopt.adamw().init(params), params, names)
    found = np.load("state.npz")
    assert set(found.files) == {"step", *(f"exp_avg{s}.{name}" for s in ("", "_sq") for name in names)}
    np.testing.assert_array_equal(found["exp_avg.0.weight"], expected.exp_avg["0.weight"])
    run(capsys, "convert", "state.npz", "--to", "optax", "--output", "optax.npz", *options)
    assert "0.mu.0.weight" in np.load("optax.npz").files
    run(capsys, "convert", "optax.npz", "--source", "optax", "--to", "jax", "--output", "again.npz", *options)
    text = run(capsys, "convert", "again.npz", "--to", "torch", "--output", "again.pt", *options)
    assert text.startswith("adamw: 13 arrays of jax's for torch in again.pt")
    other = optim.AdamW(model.named_parameters())
    other.load_state_dict(torch.load("again.pt", weights_only=True))
    for p, entry in optimizer.state.items():
        for key, value in entry.items():
            assert torch.equal(torch.as_tensor(other.state[p][key], dtype=value.dtype), value), key


def test_compare(capsys: Any) -> None:
    assert "equal" in run(capsys, "compare", "torch.optim:AdamW(lr=0.1)", "adamw(lr=0.1)")
    options = ("--model", "own_models:net", "--steps", "3", "--dtype", "float32", "--json")
    found = json.loads(run(capsys, "compare", "optax:adamw(0.1)", "adamw(lr=0.1)", *options, status=1))
    assert found["equal"] is False
    assert found["steps"] == 3
    assert found["reasons"] == ["with weight_decay=0.0001 in b, as in a, they are equal"]


def test_config(capsys: Any) -> None:
    assert f"jax         {jax.__version__}\n" in run(capsys, "config")
    found = json.loads(run(capsys, "config", "--json"))
    assert found["versions"]["torch"] == torch.__version__
    assert found["torch"]["cpu"]["name"] == "xla"
    assert found["jax"]["devices"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ("compare", "adamq", "lion"),
            "'adamq' must be one of funcopt's optimizers, or MODULE:NAME; did you mean 'adam'?",
        ),
        (("compare", "adam(lr=x)", "lion"), "'adam(lr=x)' must be a name with literals as arguments"),
        (("explain", "adamw", "--model", "own_models:nothing"), "'own_models:nothing' must be importable"),
        (("explain", "adamw", "--model", "own_models"), "'own_models' must be MODULE:FUNCTION"),
        (("explain", "missing.json", "--model", "own_models:net"), "missing.json"),
        (("memory", "adamw", "--model", "no_such_module:net"), "must be importable: No module named 'no_such_module'"),
    ],
)
def test_bad_input_is_said_in_a_line(capsys: Any, arguments: tuple[str, ...], message: str) -> None:
    text = run(capsys, *arguments, status=2)
    assert text.startswith(f"funcopt {arguments[0]}: ")
    assert message in text


def test_a_checkpoint_that_is_none(capsys: Any) -> None:
    torch.save({"epoch": 3, "optimizer": {"lr": 1.0}}, "run.pt")
    options = ("--to", "jax", "--optimizer", "adamw", "--model", "own_models:net", "--output", "x.npz")
    assert "must have state and param_groups, got epoch, optimizer" in run(
        capsys, "convert", "run.pt", *options, status=2
    )
    text = run(capsys, "convert", "run.pt", "--key", "model.x", *options, status=2)
    assert "--key model.x: the file must have it, got epoch, optimizer" in text
    np.savez("empty.npz", step=np.zeros(()))
    text = run(capsys, "convert", "empty.npz", *options, status=2)
    assert "lacks exp_avg.0.weight" in text or "lacks exp_avg.0.bias" in text
    assert not Path("x.npz").exists()


def test_the_process(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "funcopt", "--help"], capture_output=True, text=True, cwd=Path(__file__).parents[2]
    )
    assert done.returncode == 0
    assert "explain CONFIG --model MODULE:FUNCTION" in done.stdout
