"""What loading executes: nothing. Hostile pickles in every place where a file or a checkpoint comes in."""

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import funcopt
from funcopt.config import build_optimizer
from funcopt.tools._command import main
from funcopt.torch_bridge import from_torch_state_dict, optim


class Hostile:
    """Writes a file when it is unpickled."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> Any:
        return Path.touch, (self.trace,)


@pytest.fixture
def trace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "own_model_of_security.py").write_text(
        "import torch\n\ndef net():\n    return torch.nn.Linear(2, 1)\n", encoding="utf-8"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    return tmp_path / "executed"


def convert(path: str) -> int:
    options = ["--to", "jax", "--optimizer", "adamw", "--model", "own_model_of_security:net", "--output", "out.npz"]
    return main(["convert", path, *options])


def test_the_pickle_is_hostile(trace: Path) -> None:
    pickle.loads(pickle.dumps(Hostile(trace)))
    assert trace.exists()


@pytest.mark.parametrize("place", ["whole", "beside", "in the state"])
def test_a_hostile_checkpoint_of_torch(trace: Path, place: str, capsys: Any) -> None:
    optimizer = torch.optim.AdamW([torch.nn.Parameter(torch.ones(2))])
    saved: Any = optimizer.state_dict()
    if place == "whole":
        saved = Hostile(trace)
    elif place == "beside":
        saved["hook"] = Hostile(trace)
    else:
        saved["state"][0] = {"exp_avg": Hostile(trace)}
    torch.save(saved, "run.pt")
    assert convert("run.pt") == 2
    assert capsys.readouterr().err.startswith("funcopt convert: ")
    assert not trace.exists()


def test_hostile_arrays(trace: Path, capsys: Any) -> None:
    np.savez("state.npz", step=np.array([Hostile(trace)], dtype=object))
    assert convert("state.npz") == 2
    assert capsys.readouterr().err.startswith("funcopt convert: ")
    assert not trace.exists()


def test_a_hostile_config(trace: Path) -> None:
    pytest.importorskip("yaml")
    Path("config.yaml").write_text(f"type: !!python/object/apply:pathlib.Path.touch ['{trace}']\n", encoding="utf-8")
    with pytest.raises(Exception, match="python/object/apply"):
        build_optimizer("config.yaml", torch.nn.Linear(2, 1))
    assert not trace.exists()


def test_what_a_loaded_dict_contains_is_not_called() -> None:
    """A caller who has unpickled it: objects in it are data."""
    called: list[object] = []

    class Calls:
        def __call__(self, *arguments: object) -> None:
            called.append(arguments)

        def __array__(self, *arguments: object) -> Any:
            called.append(arguments)
            return np.zeros(2)

        def __torch_function__(self, *arguments: object) -> Any:
            called.append(arguments)

    param = torch.nn.Parameter(torch.ones(2))
    saved = torch.optim.AdamW([param]).state_dict()
    saved["state"][0] = {"step": torch.tensor(1.0), "exp_avg": Calls(), "exp_avg_sq": Calls()}
    own = optim.AdamW([param])
    with pytest.raises(ValueError, match="exp_avg of parameter 0 of group 0 must be a tensor or a number, got a Calls"):
        own.load_state_dict(saved)
    tx = funcopt.adamw()
    with pytest.raises(ValueError, match="must be a tensor or a number, got a Calls"):
        from_torch_state_dict(saved, tx.init({"w": np.ones(2)}), {"w": np.ones(2)}, ["w"])
    assert called == []
