"""What is to be reached on two CPU cores, as data, and the verdicts.

A ratio says how many times faster funcopt is than a peer; durations are seconds, memory is relative to the parameters'.
"""

import fnmatch
from collections.abc import Mapping
from typing import Literal, NamedTuple

from benchmarks._measure import Finding

Status = Literal["pass", "short", "noisy", "wrong", "not measured"]

COLUMNS = ("vs default", "vs foreach", "vs fused", "vs fused, opt-in", "vs compiled")
# Merged loops were to be an opt-in, with bounds of their own. The bridge always merges: both bounds are on one finding.
PEERS = ("bridge/*/default", "bridge/*/foreach", "bridge/*/fused", "bridge/*/fused", "bridge/*/compiled")


class Goal(NamedTuple):
    """A bound on some findings; all of them must keep it, and the worst is shown."""

    row: str
    column: str  # one of COLUMNS; or what is measured, for goals outside of the matrix
    patterns: tuple[str, ...]  # of the findings' names; each must match something
    bound: float
    upper: bool = False  # whether it is an upper bound
    aim: float | None = None  # what would be better still
    unit: str = ""
    factor: float = 1.0  # from what was measured to the unit


class Verdict(NamedTuple):
    """What became of a goal."""

    goal: Goal
    status: Status
    finding: Finding | None  # the worst, in what was measured
    reason: str = ""  # for no verdict


def _cells(row: str, pairs: tuple[str, ...], bounds: tuple[float | None, ...], aim: float | None = None) -> list[Goal]:
    """One line of the matrix; `pairs` are CASE/WORKLOAD, the aim is that of merged loops."""
    return [
        Goal(
            row,
            column,
            tuple(peer.replace("*", pair) for pair in pairs),
            bound,
            aim=aim if "opt-in" in column else None,
        )
        for column, peer, bound in zip(COLUMNS, PEERS, bounds, strict=True)
        if bound is not None
    ]


MATRIX = (
    *_cells("AdamW, GPT-2 small", ("adamw/gpt2-small",), (4.0, 4.0, 0.62, 0.85, 1.0), aim=1.0),
    *_cells("AdamW, ResNet-50", ("adamw/resnet50",), (2.5, 2.5, 0.6, 0.85, 0.8), aim=1.0),
    *_cells("AdamW, 1,000 x 32x32", ("adamw/1000x32x32",), (12.0, 8.0, 3.0, None, None)),
    *_cells("composed recipe, GPT-2 small", ("recipe/gpt2-small",), (2.4, 2.2, 0.87, 1.1, None)),
    *_cells(
        "RMSprop, NAdam, Adadelta, SGD-Nesterov, ResNet-50",
        ("rmsprop/resnet50", "nadam/resnet50", "adadelta/resnet50", "sgd-nesterov/resnet50"),
        (2.0, 2.0, None, None, None),
    ),
)
OTHERS = (
    Goal("JAX loop against optax", "step, funcopt, everywhere", ("jax/*/funcopt",), 1.0),
    Goal("JAX loop against optax", "step, joined, 1,000 x 32x32", ("jax/*/1000x32x32/joined",), 1.3),
    Goal("JAX loop against optax", "compiling, funcopt, GPT-2 small", ("compile/*/gpt2-small/funcopt",), 1.0),
    Goal("JAX loop against optax", "compiling, funcopt, 1,000 x 32x32", ("compile/*/1000x32x32/funcopt",), 1.0),
    Goal("torch's engine", "AdamW, 1,000 x 32x32, to fused", ("bridge-torch/adamw/1000x32x32/fused",), 2.0),
    Goal("torch's engine", "AdamW, GPT-2 small, to foreach", ("bridge-torch/adamw/gpt2-small/foreach",), 2.0),
    Goal("torch's engine, compiled", "AdamW, GPT-2 small, to fused", ("bridge-compiled/adamw/gpt2-small/fused",), 0.9),
    Goal(
        "torch's engine, compiled", "recipe, GPT-2 small, to fused", ("bridge-compiled/recipe/gpt2-small/fused",), 1.3
    ),
    Goal(
        "torch's engine, compiled",
        "RMSprop, NAdam, Adadelta, ResNet-50, to foreach",
        tuple(f"bridge-compiled/{name}/resnet50/foreach" for name in ("rmsprop", "nadam", "adadelta")),
        2.0,
    ),
    Goal("step() beyond the kernel", "161 tensors", ("overhead/161",), 300, upper=True, unit="us", factor=1e6),
    Goal("step() beyond the kernel", "a tensor of many, of few", ("growth/*/*",), 1.0, upper=True),
    Goal("first step", "AdamW, ResNet-50", ("start/adamw/resnet50",), 3.0, upper=True, unit="s"),
    Goal("memory during step()", "AdamW, GPT-2 small", ("peak/adamw/gpt2-small/bridge",), 0.3, upper=True, unit="x"),
    Goal("memory beyond state", "AdamW, GPT-2 small", ("total/adamw/gpt2-small/bridge",), 0.3, upper=True, unit="x"),
    Goal("a group per parameter", "step, 161 x 64", ("groups/161x64",), 1.15, upper=True, unit="x"),
    Goal("a group per parameter", "step, 1,000 x 32x32", ("groups/1000x32x32",), 1.15, upper=True, unit="x"),
    Goal("a group per parameter", "first step, 161 x 64", ("habits/first-step",), 1.0, upper=True, unit="s"),
    Goal("Gaussian splatting", "30 densifications x 10 steps", ("habits/splatting",), 1.5, upper=True, unit="s"),
    Goal("state[p] = {}", "160 parameters, with a step", ("habits/empty-state",), 0.1, upper=True, unit="s"),
    Goal("growing networks", "30 stages with load_state_dict", ("habits/growth",), 1.0, upper=True, unit="s"),
    Goal("many optimizers", "20 agents x 2, 5 steps", ("habits/agents",), 0.8, upper=True, unit="s"),
    Goal("many optimizers", "one for each of 40 samples", ("habits/per-sample",), 0.5, upper=True, unit="s"),
    Goal("add_param_group", "20 times, with steps", ("habits/add-param-group",), 0.5, upper=True, unit="s"),
    Goal("state", "reading that of 10M", ("habits/read-state",), 1.0, upper=True, unit="ms", factor=1e3),
    Goal("memory for the frozen", "50M beside 1,000", ("frozen",), 1.0, upper=True, unit="MB", factor=1e-6),
    Goal("compilations", "50 steps, any scheduler", ("compilations/*",), 1, upper=True),
)
GOALS = (*MATRIX, *OTHERS)


def wanted_by_goals(name: str) -> bool:
    """Whether a goal is about the finding of that name."""
    return any(fnmatch.fnmatchcase(name, pattern) for goal in MATRIX for pattern in goal.patterns)


def judge(goal: Goal, findings: Mapping[str, Finding]) -> Verdict:
    """The verdict on one goal. Wrong numbers are a verdict before all others, noise is none at all."""
    matches = [
        [finding for name, finding in findings.items() if fnmatch.fnmatchcase(name, pattern)]
        for pattern in goal.patterns
    ]
    found = [finding for match in matches for finding in match]
    worst = (max if goal.upper else min)(found, key=lambda finding: finding.value, default=None)
    if worst is None or not all(matches):
        return Verdict(goal, "not measured", None)
    if wrong := next((finding.wrong for finding in found if finding.wrong), ""):
        return Verdict(goal, "wrong", worst, wrong)
    if noise := next((finding.noise for finding in found if finding.noise), ""):
        return Verdict(goal, "noisy", worst, noise)
    value = worst.value * goal.factor
    return Verdict(goal, "pass" if (value <= goal.bound if goal.upper else value >= goal.bound) else "short", worst)
