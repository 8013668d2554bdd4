"""The benchmark tool itself: counts and arithmetic, never times."""

import json
import math
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks import _bridge, _growth, _habits, _jax
from benchmarks.__main__ import FULL, QUICK, main
from benchmarks._case import BRIDGE_PEERS, FLOAT32, PEERS, peers_of
from benchmarks._cases import CASES
from benchmarks._goals import GOALS, MATRIX, Goal, judge
from benchmarks._measure import NOISE, Finding, Rounds, Triad, ratio, run_rounds
from benchmarks._settings import Settings
from benchmarks._workloads import WORKLOADS, Workload, tiny

SMALL = Workload("small", "small", ((3, 4), (4,), (2, 3), (5,)))
SETTINGS = Settings(rounds=2, seconds=0.0)


class Still(Triad):
    """A machine on which nothing else runs."""

    def __init__(self) -> None:
        super().__init__(torch.device("cpu"), lambda: None, elements=1)

    def __call__(self) -> float:
        self.best = 1.0
        return 1.0


@pytest.mark.parametrize(
    ("name", "tensors", "elements"),
    [
        ("resnet50", 161, 25_557_032),
        ("gpt2-small", 148, 124_439_808),
        ("vit-b16", 152, 86_567_656),
        ("mobilenet-v2", 158, 3_504_872),
        ("llama-1b", 146, 1_235_814_400),
        ("1000x32x32", 1000, 1_024_000),
        ("gpt2-block", 12, 7_087_872),
    ],
)
def test_workloads_are_those_of_the_models(name: str, tensors: int, elements: int) -> None:
    workload = WORKLOADS[name]
    assert (len(workload.shapes), workload.elements) == (tensors, elements)


def test_muon_takes_matrices() -> None:
    assert len(WORKLOADS["gpt2-small"].only(CASES["muon"].wants).shapes) == 50


def test_ratios_are_paired() -> None:
    """Both slow down together by a factor that the medians of each would not cancel."""
    pace = [1.0, 5.0, 1.0, 5.0, 7.0, 1.0]
    rounds = Rounds({"ours": pace, "peer": [2 * x for x in pace]}, [1.0] * 6)
    assert ratio(rounds, "ours", "peer") == Finding(2.0, 2.0, 2.0, 2.0)


def test_the_spread_is_that_of_the_middle_rounds() -> None:
    rounds = Rounds({"ours": [1.0] * 6, "peer": [1.0, 2.0, 3.0, 4.0, 5.0, 60.0]}, [1.0] * 6)
    assert ratio(rounds, "ours", "peer") == Finding(3.5, 2.0, 5.0, 1.0)


def test_rounds_with_a_slow_triad_do_not_count() -> None:
    """A peer 20 times slower under contention, in a third of the rounds."""
    rounds = Rounds({"ours": [1.0] * 9, "peer": [1.0, 1.0, 20.0] * 3}, [1.0, 1.1, 1.6] * 3)
    assert rounds.accepted() == [0, 1, 3, 4, 6, 7]
    assert ratio(rounds, "ours", "peer") == Finding(1.0, 1.0, 1.0, 1.0)


@pytest.mark.parametrize(
    ("triads", "reason"),
    [
        ([1.0] * 5, ""),
        ([1.0] * 4, "4 of 4 rounds"),
        ([1.0] * 5 + [NOISE + 0.1] * 6, "5 of 11 rounds"),
        ([1.0, 1.0, 1.0, 1.45, 1.45, 1.45], "spreads"),
    ],
)
def test_a_contended_run_is_called_noisy(triads: list[float], reason: str) -> None:
    noise = Rounds({}, triads).noise()
    assert reason in noise
    assert bool(noise) == bool(reason)


def test_every_candidate_runs_once_per_round_in_alternating_order() -> None:
    calls: list[str] = []
    rounds = run_rounds(
        {name: lambda name=name: calls.append(name) for name in "ab"},
        Still(),
        rounds=3,
        synchronize=lambda: None,
        before=lambda number: calls.append(str(number)),
    )
    assert "".join(calls) == "0a0b1b1a2a2b"
    assert list(rounds.triads) == [1.0] * 3


def test_of_steps_in_a_row_the_first_does_not_count() -> None:
    calls: list[int] = []

    def step() -> None:
        time.sleep(0.05 if not calls else 0.01)
        calls.append(1)

    rounds = run_rounds({"a": step}, Still(), rounds=1, synchronize=lambda: None, in_a_row=4)
    assert len(calls) == 5
    assert 0.01 <= rounds.times["a"][0] < 0.05


@pytest.mark.parametrize(
    ("findings", "status"),
    [
        ({"a/1": 2.0, "a/2": 3.0, "b": 2.5}, "pass"),
        ({"a/1": 1.9, "a/2": 3.0, "b": 2.5}, "short"),
        ({"a/1": 2.0, "a/2": 3.0}, "not measured"),
        ({}, "not measured"),
    ],
)
def test_a_goal_needs_all_its_findings(findings: dict[str, float], status: str) -> None:
    goal = Goal("row", "column", ("a/*", "b"), 2.0)
    verdict = judge(goal, {name: Finding.exact(value) for name, value in findings.items()})
    assert verdict.status == status
    assert verdict.finding is None or verdict.finding.value == min(findings.values())


def test_upper_bounds_are_in_their_unit() -> None:
    goal = Goal("row", "column", ("a",), 300, upper=True, factor=1e6)
    assert judge(goal, {"a": Finding.exact(299e-6)}).status == "pass"
    assert judge(goal, {"a": Finding.exact(301e-6)}).status == "short"


def test_noise_gives_no_verdict_and_wrong_numbers_always_one() -> None:
    goal = Goal("row", "column", ("a", "b"), 2.0)
    noisy = Finding.exact(9.0)._replace(noise="rounds")
    wrong = Finding.exact(9.0, wrong="0.1 from torch")
    assert judge(goal, {"a": Finding.exact(9.0), "b": noisy}).status == "noisy"
    assert judge(goal, {"a": wrong, "b": noisy}).status == "wrong"


def test_a_quick_run_measures_every_goal_but_the_compiled() -> None:
    names = [f"bridge/{a}/{w}/{peer}" for a, w in QUICK.bridge for peer in QUICK.peers]
    findings = dict.fromkeys(names, Finding.exact(100.0))
    missing = [goal for goal in MATRIX if judge(goal, findings).status == "not measured"]
    assert {goal.column for goal in missing} == {"vs compiled"}
    assert set(QUICK.bridge) <= set(FULL.bridge)


def _cases() -> list[tuple[str, str]]:
    return [
        (case.name, peer) for case in CASES.values() for peer in peers_of(case) if peer not in ("default", "compiled")
    ]


@pytest.mark.thorough
@pytest.mark.parametrize(("name", "peer"), _cases())
def test_every_candidate_computes_what_torch_does(name: str, peer: str) -> None:
    case = CASES[name]
    comparison = _bridge.compare(case, SMALL.only(case.wants), ("default", peer), SETTINGS, Still())
    assert comparison.errors[peer] <= case.tolerance


@pytest.mark.thorough
@pytest.mark.parametrize("name", [case.name for case in CASES.values() if case.optax is not None])
def test_every_jax_candidate_computes_what_optax_does(name: str) -> None:
    results = _jax.measure(CASES[name], SMALL, SETTINGS, Still())
    compared = [row for row in results.rows if row.candidate != "optax"]
    assert len(compared) == 1 + CASES[name].joinable
    assert all(row.error is not None and row.error <= CASES[name].tolerance for row in compared)


def test_wrong_numbers_are_found() -> None:
    """A peer with another rate, which no goal can be reached with."""

    def wrong(params: Any, implementation: Any) -> _bridge.Run:
        return (
            right.torch(params, implementation)._replace(step=lambda: None)
            if implementation
            else right.torch(params, {})
        )

    right = CASES["adamw"]
    results = _bridge.measure(right._replace(torch=wrong), SMALL, ("default", "foreach", "bridge"), SETTINGS, Still())
    assert not results.findings["bridge/adamw/small/default"].wrong
    assert "from torch" in results.findings["bridge/adamw/small/foreach"].wrong


def test_gradients_are_the_same_for_all_and_written_anew() -> None:
    problem = _bridge.Problem(SMALL, torch.device("cpu"))
    (first, *_), (second, *_) = problem.params(), problem.params()
    problem.write_gradients(0)
    assert first is not second
    assert torch.equal(first, second)
    assert first.grad is not None
    before = first.grad.clone()
    first.grad.mul_(0.1)
    problem.write_gradients(0)
    assert second.grad is not None
    assert torch.equal(second.grad, before)


def test_no_scheduler_compiles_again() -> None:
    assert set(_growth.compilations().values()) == {1}


@pytest.mark.thorough
@pytest.mark.parametrize("name", _habits.HABITS)
def test_every_habit_computes_what_torch_does(name: str) -> None:
    found = _habits.in_this_process(name)
    assert found["error"] <= FLOAT32
    assert min(found["habits"], found["habits-torch"]) > 0.0


def test_growth_is_per_tensor() -> None:
    results = _growth.measure((1, 4), (2,), ("default", "bridge"), SETTINGS, Still())
    few, many = (results.findings[f"overhead/{count}"].value for count in (1, 4))
    assert math.isclose(results.findings["growth/1/4"].value, many / few / 4)
    assert [row.workload for row in results.rows[::2]] == ["1 x 1", "4 x 1", "1 x 2", "161 x 1, single steps"]


def test_the_command_writes_what_it_found(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(WORKLOADS, "3x5", tiny(3, 5))
    file = tmp_path / "found.json"
    arguments = ["--workloads", "3x5", "--algorithms", "adamw", "--sections", "bridge,jax"]
    assert main([*arguments, "--peers", "fused", "--rounds", "2", "--seconds", "0", "--json", str(file)]) == 0
    content = json.loads(file.read_text())
    assert {"bridge/adamw/3x5/fused", "jax/adamw/3x5/funcopt"} <= set(content["findings"])
    assert {goal["status"] for goal in content["goals"]} <= {"noisy", "pass", "short", "not measured"}
    assert len(content["goals"]) == len(GOALS)
    assert "AdamW, GPT-2 small" in capsys.readouterr().out
    assert {row["candidate"] for row in content["rows"]} == {"fused", "bridge", "optax", "funcopt", "joined"}


@pytest.mark.parametrize("option", ["--workloads", "--algorithms", "--peers", "--sections"])
def test_unknown_names_are_refused(option: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main([option, "none"])
    assert "must be among" in capsys.readouterr().err


def test_the_plain_bridge_is_a_peer() -> None:
    assert set(BRIDGE_PEERS) <= set(PEERS)
    assert not BRIDGE_PEERS["bridge-plain"].fast_path
