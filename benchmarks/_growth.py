"""How the price of a step grows with the number of tensors and with their size, and whether it ever compiles again."""

import itertools
from collections.abc import Sequence

import torch
from torch.optim import lr_scheduler

import funcopt
from benchmarks._bridge import Comparison, compare
from benchmarks._cases import CASES
from benchmarks._measure import Finding, Triad, duration
from benchmarks._settings import Results, Row, Settings, rejected
from benchmarks._workloads import tiny

ADAMW = CASES["adamw"]
MODEL = 161  # tensors of ResNet-50
IN_A_ROW = 10  # steps at a time: the price of a step, not of filling the caches
SCHEDULED_STEPS = 50


def measure(
    counts: Sequence[int], sizes: Sequence[int], peers: Sequence[str], settings: Settings, triad: Triad
) -> Results:
    """AdamW on many tensors of one element, and on one tensor of many.

    Findings: `overhead/COUNT`, seconds of a step on so many tensors of one element each, all of it, since nothing is
    left there for the kernel to do; `overhead-single/COUNT`, for as many tensors as a model has, the same of a step
    that finds in the caches what others left, as after a backward pass; `growth/FROM/TO`, what each of many tensors
    costs relative to each of few, below 1 if the price grows slower than the number; `compilations/SCHEDULER`, how many
    there are in 50 steps.
    """
    results = Results()
    for workload in (*map(tiny, counts), *(tiny(1, size) for size in sizes)):
        comparison = compare(ADAMW, workload, peers, settings, triad, IN_A_ROW)
        results.rows += _rows(workload.title, comparison)
        if workload.elements == len(workload.shapes):
            results.findings[f"overhead/{len(workload.shapes)}"] = duration(comparison.rounds, "bridge")
    single = compare(ADAMW, tiny(MODEL), peers, settings, triad)
    results.rows += _rows(f"{tiny(MODEL).title}, single steps", single)
    results.findings[f"overhead-single/{MODEL}"] = duration(single.rounds, "bridge")
    for fewer, more in itertools.pairwise(counts):
        few, many = (results.findings[f"overhead/{count}"] for count in (fewer, more))
        times, best = many.value / few.value, many.best / few.best
        linear = more / fewer
        results.findings[f"growth/{fewer}/{more}"] = Finding(
            times / linear,
            many.low / few.high / linear,
            many.high / few.low / linear,
            best / linear,
            few.noise or many.noise,
        )
    for name, count in compilations().items():
        results.findings[f"compilations/{name}"] = Finding.exact(count)
    return results


def _rows(title: str, comparison: Comparison) -> list[Row]:
    return [
        Row(
            "growth",
            ADAMW.name,
            title,
            peer,
            duration(comparison.rounds, peer),
            start=comparison.starts[peer],
            rejected=rejected(comparison.rounds),
        )
        for peer in comparison.starts
    ]


def compilations() -> dict[str, int]:
    """How often the bridge compiles in 50 steps under torch's schedulers, by scheduler."""
    schedulers = (
        lambda optimizer: lr_scheduler.StepLR(optimizer, 5),
        lambda optimizer: lr_scheduler.LambdaLR(optimizer, lambda step: 1 / (1 + step)),
        lambda optimizer: lr_scheduler.CosineAnnealingWarmRestarts(optimizer, 7),
        lambda optimizer: lr_scheduler.OneCycleLR(optimizer, 1e-2, SCHEDULED_STEPS + 1),
        lambda optimizer: lr_scheduler.CyclicLR(optimizer, 1e-4, 1e-2, 5),
    )
    found = {}
    for make in schedulers:
        params = [torch.nn.Parameter(torch.ones(3)), torch.nn.Parameter(torch.ones(2, 2))]
        for p in params:
            p.grad = torch.ones_like(p)
        optimizer = funcopt.TorchBridge(params, funcopt.adamw, lr=1e-3)
        scheduler = make(optimizer)
        for _ in range(SCHEDULED_STEPS):
            optimizer.step()
            scheduler.step()
        found[type(scheduler).__name__] = optimizer.compilations
    return found
