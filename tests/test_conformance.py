"""The conformance matrix with two option sets per algorithm; `python -m conformance` runs all of it."""

import functools
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

import funcopt
from conformance import ALGORITHMS, Algorithm, Lbfgs, __main__, check, check_lbfgs
from conformance._algorithms import SGD
from conformance._check import Errors, Row
from conformance._report import HEADERS, table
from funcopt.torch_bridge import optim
from funcopt.torch_bridge._binding import Binding

EVERY_RUN = {"SGD", "AdamW"}


@pytest.mark.parametrize(
    "algorithm",
    [pytest.param(a, id=a.name, marks=[] if a.name in EVERY_RUN else [pytest.mark.thorough]) for a in ALGORITHMS],
)
def test_agrees_with_torch(algorithm: Algorithm) -> None:
    row = check(algorithm.quick())
    assert row.failures() == []
    assert row.option_sets == 2


@pytest.mark.thorough
def test_lbfgs_agrees_with_torch() -> None:
    assert check_lbfgs(Lbfgs().quick()).failures() == []


def test_every_class_of_torch_is_a_row() -> None:
    names = {cls.__name__ for cls in vars(torch.optim).values() if isinstance(cls, type)} - {"Optimizer"}
    assert {a.torch_class.__name__ for a in ALGORITHMS} | {"LBFGS"} == names


@functools.wraps(funcopt.sgd)
def slightly_wrong_sgd(**options: Any) -> funcopt.GradientTransformationExtraArgs:
    return funcopt.chain(funcopt.sgd(**options), funcopt.scale(1 + 1e-9))


class WrongSGD(optim.SGD):
    """The same on the bridge, and bfloat16 parameters move by three more units in the last place."""

    _binding = Binding(slightly_wrong_sgd)

    def step(self, closure: Any = None) -> Any:
        super().step(closure)
        for p in self.param_groups[0]["params"]:
            if p.dtype == torch.bfloat16:
                p.data.mul_(1 + 3 * 2.0**-7)


class ForgetfulSGD(optim.SGD):
    """Takes no state over, and gives none."""

    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "state": {}}

    def load_state_dict(self, state_dict: Any, *args: Any, **kwargs: Any) -> Any:
        return super().load_state_dict({**state_dict, "state": {}}, *args, **kwargs)


CHECKPOINTS = [
    "torch does not continue from the bridge's checkpoint",
    "the bridge does not continue from torch's checkpoint",
]


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        (
            {"recipe": slightly_wrong_sgd, "bridge_class": WrongSGD},
            ["float64, JAX", "float64, bridge", "bfloat16", *CHECKPOINTS],
        ),
        ({"bridge_class": ForgetfulSGD}, ["bfloat16", "the state has other names, dtypes or shapes", *CHECKPOINTS]),
    ],
    ids=["a rule off by 1e-9", "checkpoints without state"],
)
def test_what_is_wrong_is_reported(changes: dict[str, Any], expected: list[str]) -> None:
    options = ({"momentum": 0.5}, {"momentum": 0.9})
    failures = check(SGD._replace(options=options, **changes)).failures()
    assert len(failures) == len(expected)
    for failure, start in zip(failures, expected, strict=True):
        assert failure.startswith(f"SGD: {start}")


def test_command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    errors = Errors(1e-15, 2e-15, 1e-12)
    row = Row("SGD", 2, errors, errors, 0.5, same_state=True, to_torch=True, from_torch=True)
    monkeypatch.setattr(__main__, "ROWS", [SGD])
    monkeypatch.setattr(__main__, "check", lambda algorithm: row)
    assert __main__.main(["--algorithm", "SGD"]) == 0
    output = capsys.readouterr()
    assert [cell.strip() for cell in output.out.splitlines()[2].split("|")[1:4]] == ["SGD", "2", "1.0e-15 / 2.0e-15"]
    assert "all within bounds" in output.err

    wrong = row._replace(float32=Errors(1e-15, float("nan"), 1e-12))
    monkeypatch.setattr(__main__, "check", lambda algorithm: wrong)
    assert __main__.main(["--quick", "--markdown"]) == 1
    output = capsys.readouterr()
    assert "python -m conformance --quick --markdown\n" in output.out
    assert "SGD: float32, bridge: nan from torch, at most 1.0e-12\n" in output.err

    with pytest.raises(SystemExit):
        __main__.main(["--algorithm", "Sgdd"])
    assert "--algorithm must be among 'SGD', got 'Sgdd'" in capsys.readouterr().err


def test_the_page_has_every_row() -> None:
    """As `python -m conformance --markdown` prints it; the numbers are those of one machine."""
    page = (Path(__file__).parents[1] / "docs" / "conformance.md").read_text()
    rows = [line.split("|")[1:3] for line in page.splitlines() if line.startswith("| ")]
    expected = [HEADERS[:2], *((a.name, str(len(a.options))) for a in __main__.ROWS)]
    assert [tuple(cell.strip() for cell in row) for row in rows] == expected
    assert table([]).splitlines()[0].count("|") == len(HEADERS) + 1


def test_without_torch_it_says_what_to_install() -> None:
    code = "import sys; sys.modules['torch'] = None; import conformance"
    command = [sys.executable, "-c", code]
    result = subprocess.run(command, capture_output=True, text=True, check=False, cwd=Path(__file__).parents[1])
    assert "ImportError: conformance compares with torch.optim" in result.stderr
    assert "pip install 'funcopt[torch]'" in result.stderr
