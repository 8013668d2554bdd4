"""Exact values at the ends of every part and one step beyond: the tables of the docstrings."""

import numpy as np
import pytest

import funcopt
from funcopt.schedules import (
    by_epoch,
    chained_scheduler,
    clip,
    constant_lr,
    cooldown,
    cosine_annealing_lr,
    cosine_annealing_warm_restarts,
    cycles,
    cyclic_lr,
    exponential_lr,
    inverse_sqrt,
    join,
    lambda_lr,
    linear_lr,
    multi_step_lr,
    multiplicative_lr,
    one_cycle_lr,
    polynomial_lr,
    ramp,
    scale,
    sequential_lr,
    step_lr,
    warmup,
    warmup_cosine,
    wsd,
)

BOUNDARIES = [
    ("constant_lr", constant_lr(1.0, 0.5, 4), {0: 0.5, 1: 0.5, 3: 0.5, 4: 1.0, 5: 1.0}),
    ("linear_lr", linear_lr(1.0, 0.5, 1.0, 4), {0: 0.5, 1: 0.625, 3: 0.875, 4: 1.0, 5: 1.0}),
    ("linear_lr-third", linear_lr(0.3), {0: 0.1, 1: 0.14, 4: 0.26, 5: 0.3, 6: 0.3}),
    ("polynomial_lr", polynomial_lr(1.0, 4, 2.0), {0: 1.0, 1: 0.5625, 2: 0.25, 4: 0.0, 5: 0.0}),
    ("step_lr", step_lr(1.0, 30), {0: 1.0, 1: 1.0, 29: 1.0, 30: 0.1, 59: 0.1, 60: 0.01, 61: 0.01}),
    ("multi_step_lr", multi_step_lr(1.0, [30, 80]), {0: 1.0, 1: 1.0, 29: 1.0, 30: 0.1, 79: 0.1, 80: 0.01, 81: 0.01}),
    ("exponential_lr", exponential_lr(1.0, 0.5), {0: 1.0, 1: 0.5, 2: 0.25, 10: 0.0009765625}),
    ("cosine_annealing_lr", cosine_annealing_lr(1.0, 4, 0.5), {0: 1.0, 2: 0.75, 4: 0.5, 6: 0.75, 8: 1.0}),
    (
        "cosine_annealing_warm_restarts",
        cosine_annealing_warm_restarts(1.0, 4, 2),
        {0: 1.0, 2: 0.5, 4: 1.0, 8: 0.5, 12: 1.0, 28: 1.0},
    ),
    ("lambda_lr", lambda_lr(2.0, lambda step: 0.5 ** (step // 2)), {0: 2.0, 1: 2.0, 2: 1.0, 4: 0.5}),
    (
        "multiplicative_lr",
        multiplicative_lr(1.0, lambda step: 0.5 if step % 2 == 0 else 1.0),
        {0: 1.0, 1: 1.0, 2: 0.5, 3: 0.5, 4: 0.25},
    ),
    (
        "cyclic_lr",
        cyclic_lr(0.1, 0.5, 4, mode="triangular2"),
        {0: 0.1, 1: 0.2, 4: 0.5, 7: 0.2, 8: 0.1, 12: 0.3, 16: 0.1},
    ),
    ("cyclic_lr-momentum", cyclic_lr(0.1, 0.5, 4).momentum, {0: 0.9, 1: 0.875, 4: 0.8, 8: 0.9}),
    (
        "one_cycle_lr",
        one_cycle_lr(1.0, 11, pct_start=3 / 11, anneal_strategy="linear"),
        {0: 0.04, 1: 0.52, 2: 1.0, 6: 0.500002, 10: 4e-6, 11: 4e-6},
    ),
    ("one_cycle_lr-momentum", one_cycle_lr(1.0, 11, pct_start=3 / 11).momentum, {0: 0.95, 2: 0.85, 6: 0.9, 10: 0.95}),
    (
        "sequential_lr",
        sequential_lr([ramp(0.25, 1.0, 3), exponential_lr(1.0, 0.5)], [3]),
        {0: 0.25, 1: 0.5, 2: 0.75, 3: 1.0, 4: 0.5},
    ),
    (
        "chained_scheduler",
        chained_scheduler(0.5, [constant_lr(1.0, 0.5, 2), exponential_lr(1.0, 0.5)]),
        {0: 0.25, 1: 0.125, 2: 0.125, 3: 0.0625},
    ),
    ("join-global", join([1.0, exponential_lr(1.0, 0.5)], [2], restart=False), {1: 1.0, 2: 0.25, 3: 0.125}),
    (
        "join-continuous",
        join([exponential_lr(1.0, 0.5), 7.0, exponential_lr(3.0, 0.5)], [2, 4], continuous=True),
        {0: 1.0, 2: 0.25, 3: 0.25, 4: 0.25, 5: 0.125},
    ),
    ("scale", scale(step_lr(1.0, 2, 0.5), 0.5), {0: 0.5, 1: 0.5, 2: 0.25}),
    ("clip", clip(exponential_lr(1.0, 0.5), floor=0.25, ceiling=0.75), {0: 0.75, 1: 0.5, 2: 0.25, 3: 0.25}),
    ("by_epoch", by_epoch(exponential_lr(1.0, 0.5), 100), {0: 1.0, 1: 1.0, 99: 1.0, 100: 0.5, 200: 0.25}),
    ("by_epoch-fractional", by_epoch(polynomial_lr(1.0, 4), 2, fractional=True), {0: 1.0, 1: 0.875, 8: 0.0, 9: 0.0}),
    ("ramp-linear", ramp(1.0, 0.5, 4), {0: 1.0, 1: 0.875, 4: 0.5, 5: 0.5}),
    ("ramp-cosine", ramp(1.0, 0.5, 4, "cosine"), {0: 1.0, 2: 0.75, 4: 0.5, 5: 0.5}),
    ("ramp-exponential", ramp(1.0, 0.25, 4, "exponential"), {0: 1.0, 2: 0.5, 4: 0.25, 5: 0.25}),
    ("ramp-constant", ramp(1.0, 0.25, 4, "constant"), {0: 1.0, 3: 1.0, 4: 0.25, 5: 0.25}),
    ("ramp-sqrt", ramp(1.0, 0.0, 4, "sqrt"), {0: 1.0, 1: 0.5, 4: 0.0, 5: 0.0}),
    ("ramp-square", ramp(1.0, 0.0, 4, "square"), {0: 1.0, 2: 0.75, 4: 0.0, 5: 0.0}),
    ("ramp-own", ramp(1.0, 0.0, 4, lambda x: x**3), {0: 1.0, 2: 0.875, 4: 0.0, 5: 0.0}),
    ("ramp-none", ramp(1.0, 0.5, 0), {0: 0.5, 1: 0.5}),
    ("warmup", warmup(1.0, 4), {0: 0.0, 1: 0.25, 3: 0.75, 4: 1.0, 5: 1.0}),
    ("warmup-none", warmup(step_lr(1.0, 2), 0), {0: 1.0, 1: 1.0, 2: 0.1}),
    (
        "warmup-over",
        warmup(polynomial_lr(1.0, 8), 4, start_factor=0.5, restart=False),
        {0: 0.25, 2: 0.375, 4: 0.5, 6: 0.25, 8: 0.0},
    ),
    (
        "warmup-exponential",
        warmup(step_lr(1.0, 2), 4, start_factor=0.0625, shape="exponential"),
        {0: 0.0625, 2: 0.25, 4: 1.0, 6: 0.1},
    ),
    ("warmup-constant", warmup(2.0, 4, start_factor=0.25, shape="constant"), {0: 0.5, 3: 0.5, 4: 2.0}),
    ("cooldown", cooldown(1.0, 6, 4), {0: 1.0, 6: 1.0, 7: 0.75, 9: 0.25, 10: 0.0, 11: 0.0}),
    (
        "warmup_cosine",
        warmup_cosine(1.0, 4, 12, 0.1),
        {0: 0.0, 1: 0.25, 3: 0.75, 4: 1.0, 8: 0.55, 12: 0.1, 13: 0.1, 1000: 0.1},
    ),
    ("warmup_cosine-without", warmup_cosine(1.0, 0, 8), {0: 1.0, 4: 0.5, 8: 0.0, 9: 0.0}),
    ("wsd", wsd(1.0, 2, 4, 4), {0: 0.0, 1: 0.5, 2: 1.0, 6: 1.0, 8: 0.5, 10: 0.0, 11: 0.0}),
    ("wsd-sqrt", wsd(1.0, 0, 0, 4, end_lr=0.5, shape="sqrt"), {0: 1.0, 1: 0.75, 4: 0.5, 5: 0.5}),
    ("inverse_sqrt", inverse_sqrt(1.0, 4), {0: 0.0, 1: 0.25, 4: 1.0, 16: 0.5, 64: 0.25}),
    ("inverse_sqrt-timescale", inverse_sqrt(1.0, 0, timescale=3), {0: 1.0, 9: 0.5}),
    (
        "cycles",
        cycles(1.0, 4, cycle_mul=2.0, cycle_decay=0.5, cycle_limit=2),
        {0: 1.0, 2: 0.5, 4: 0.5, 8: 0.25, 12: 0.0, 13: 0.0},
    ),
]


@pytest.mark.parametrize(("schedule", "table"), [row[1:] for row in BOUNDARIES], ids=[row[0] for row in BOUNDARIES])
def test_boundary_values(schedule: funcopt.Schedule, table: dict[int, float]) -> None:
    # Two roundings of values up to 1.
    np.testing.assert_allclose([schedule(step) for step in table], list(table.values()), rtol=0, atol=4e-16)
