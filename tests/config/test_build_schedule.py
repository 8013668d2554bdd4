"""Schedules from configs, by values computed by hand and by torch's own schedulers."""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

import funcopt
from funcopt import schedules
from funcopt.config import SCHEDULES, build_schedule, build_schedules

SCEPTER: list[tuple[dict[str, Any], list[float]]] = [
    ({"NAME": "StepLR", "STEP_SIZE": 2, "GAMMA": 0.5, "LAST_EPOCH": -1}, [1, 1, 0.5, 0.5, 0.25]),
    ({"NAME": "StepLR", "STEP_SIZE": 2, "GAMMA": 0.5, "LAST_EPOCH": 1}, [0.5, 0.5, 0.25, 0.25, 0.125]),
    ({"NAME": "MultiStepLR", "MILESTONES": [1, 3], "GAMMA": 0.1}, [1, 0.1, 0.1, 0.01, 0.01]),
    ({"NAME": "ExponentialLR", "GAMMA": 0.5}, [1, 0.5, 0.25, 0.125, 0.0625]),
    ({"NAME": "CosineAnnealingLR", "T_MAX": 4, "ETA_MIN": 0.5}, [1, 0.9267766953, 0.75, 0.5732233047, 0.5]),
    ({"NAME": "CosineAnnealingWarmRestarts", "T_0": 2, "T_MULT": 1}, [1, 0.5, 1, 0.5, 1]),
    ({"NAME": "WarmupToConstantLR", "WARMUP_STEPS": 4}, [0, 0.25, 0.5, 0.75, 1]),
    ({"NAME": "LinoPolyLR", "END_EPOCH": 4, "POWER": 2}, [1, 0.5625, 0.25, 0.0625, 0]),
    (
        {"NAME": "StepAnnealingLR", "WARMUP_STEPS": 2, "TOTAL_STEPS": 4, "DECAY_MODE": "linear", "MIN_LR": 0.1},
        [0.1, 0.5, 1.0, 0.5, 0.1],
    ),
    ({"NAME": "StepAnnealingLR", "WARMUP_STEPS": 2, "TOTAL_STEPS": 4}, [0, 0.5, 1.0, 0.5, 0]),
    ({"NAME": "StepAnnealingLR", "WARMUP_STEPS": 2, "TOTAL_STEPS": 4, "DECAY_MODE": "none"}, [0, 0.5, 1, 1, 1]),
]


@pytest.mark.parametrize(("section", "expected"), SCEPTER, ids=[cfg["NAME"] for cfg, _ in SCEPTER])
@pytest.mark.parametrize("whole", [False, True])
def test_scepter(section: dict[str, Any], expected: list[float], whole: bool) -> None:
    schedule = build_schedule({"LR_SCHEDULER": section} if whole else section, 1.0)
    np.testing.assert_allclose([float(schedule(step)) for step in range(5)], expected, atol=1e-9)


def swin(**train: Any) -> dict[str, Any]:
    return {"TRAIN": {"BASE_LR": 1.0, "EPOCHS": 4, "WARMUP_EPOCHS": 1, "WARMUP_LR": 0.2, "MIN_LR": 0.1, **train}}


# Two updates per epoch: 8 updates, 2 of them warm-up.
SWIN: list[tuple[dict[str, Any], list[float]]] = [
    (
        swin(LR_SCHEDULER={"NAME": "cosine"}),
        [0.2, 0.6] + [0.1 + 0.9 * (1 + math.cos(math.pi * t / 6)) / 2 for t in range(7)],
    ),
    (
        swin(LR_SCHEDULER={"NAME": "cosine", "WARMUP_PREFIX": False}),
        [0.2, 0.6] + [0.1 + 0.9 * (1 + math.cos(math.pi * t / 8)) / 2 for t in range(2, 9)],
    ),
    (swin(LR_SCHEDULER={"NAME": "linear"}), [0.2, 0.6] + [1 - 0.99 * t / 6 for t in range(7)]),
    (
        swin(LR_SCHEDULER={"NAME": "step", "DECAY_EPOCHS": 2, "DECAY_RATE": 0.5}),
        [0.2, 0.6, 1, 1, 0.5, 0.5, 0.5, 0.5, 0.25],
    ),
    (
        swin(LR_SCHEDULER={"NAME": "multistep", "MULTISTEPS": [2, 3], "GAMMA": 0.1}),
        [0.2, 0.6, 1, 1, 0.1, 0.1, 0.01, 0.01, 0.01],
    ),
    (swin(WARMUP_EPOCHS=0, LR_SCHEDULER={"NAME": "linear"}), [1 - 0.99 * t / 8 for t in range(9)]),
]


@pytest.mark.parametrize(("cfg", "expected"), SWIN, ids=range(len(SWIN)))
def test_swin(cfg: dict[str, Any], expected: list[float]) -> None:
    np.testing.assert_allclose(build_schedule(cfg, steps_per_epoch=2)(np.arange(9)), expected, rtol=1e-12)


@pytest.mark.parametrize(
    ("cfg", "options"),
    [
        ("StepLR", {"step_size": 2}),
        ("step_lr", {"step_size": 2, "gamma": 0.1}),
        ({"type": "StepLR", "step_size": 2}, {}),
        ({"type": "step_lr", "step_size": 2, "base_lr": 0.5}, {}),
        (schedules.step_lr(0.5, 2), {}),
    ],
)
def test_by_name(cfg: Any, options: dict[str, Any]) -> None:
    schedule = build_schedule(cfg, 0.5, **options)
    assert schedule([0, 1, 2, 3, 4]).round(9).tolist() == [0.5, 0.5, 0.05, 0.05, 0.005]


def test_nested() -> None:
    cfg = {
        "type": "join",
        "schedules": [
            {"type": "LinearLR", "start_factor": 0.5, "total_iters": 2},
            {"type": "ExponentialLR", "gamma": 0.5},
        ],
        "milestones": [2],
    }
    assert build_schedule(cfg, 1.0)([0, 1, 2, 3]).tolist() == [0.5, 0.75, 1.0, 0.5]


TORCH: list[Any] = [
    lambda o: torch.optim.lr_scheduler.StepLR(o, 3),
    lambda o: torch.optim.lr_scheduler.MultiStepLR(o, [2, 2, 5]),
    lambda o: torch.optim.lr_scheduler.ConstantLR(o, 0.5, 4),
    lambda o: torch.optim.lr_scheduler.LinearLR(o, 0.5, 0.9, 4),
    lambda o: torch.optim.lr_scheduler.ExponentialLR(o, 0.9),
    lambda o: torch.optim.lr_scheduler.PolynomialLR(o, 6, 2.0),
    lambda o: torch.optim.lr_scheduler.CosineAnnealingLR(o, 5, 0.01),
    lambda o: torch.optim.lr_scheduler.CosineAnnealingWarmRestarts(o, 2, 2, 0.01),
    lambda o: torch.optim.lr_scheduler.LambdaLR(o, lambda step: 0.5**step),
    lambda o: torch.optim.lr_scheduler.SequentialLR(
        o, [torch.optim.lr_scheduler.LinearLR(o, 0.5, total_iters=2), torch.optim.lr_scheduler.StepLR(o, 2)], [2]
    ),
]


@pytest.mark.parametrize("make", TORCH, ids=range(len(TORCH)))
def test_torch_scheduler_as_a_schedule(make: Any) -> None:
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.ones(1))], 0.1)
    scheduler = make(optimizer)
    schedule = build_schedule(scheduler)
    for step in range(9):
        assert float(schedule(step)) == pytest.approx(optimizer.param_groups[0]["lr"], rel=1e-12)
        optimizer.step()
        scheduler.step()


def test_driving_an_optimizer_keeps_multipliers_and_scales_floors() -> None:
    p, q = torch.nn.Parameter(torch.ones(1)), torch.nn.Parameter(torch.ones(1))
    optimizer = funcopt.TorchBridge([{"params": [p]}, {"params": [q], "lr_mult": 0.1}], funcopt.sgd, lr=1.0)
    cfg = {"NAME": "StepAnnealingLR", "WARMUP_STEPS": 0, "TOTAL_STEPS": 2, "MIN_LR": 0.2}
    scheduler = SCHEDULES.build(cfg, logger=None, optimizer=optimizer)
    for expected in (1.0, 0.5, 0.2, 0.2):
        p.grad, q.grad = torch.ones(1), torch.ones(1)
        before = float(p.detach()), float(q.detach())
        optimizer.step()
        scheduler.step()
        assert before[0] - float(p.detach()) == pytest.approx(expected, rel=1e-5)
        assert before[1] - float(q.detach()) == pytest.approx(0.1 * expected, rel=1e-5)


@pytest.mark.parametrize(
    ("cfg", "message"),
    [
        (
            [{"type": "StpLR", "step_size": 2}],
            "type must be one of MMEngine's schedulers, got 'StpLR'; did you mean 'StepLR'?",
        ),
        (
            [{"type": "ReduceOnPlateauLR"}],
            "it follows a metric and is no function of the step: use build_optimizer",
        ),
        ([{"type": "ReduceOnPlateuLR"}], "got 'ReduceOnPlateuLR'; did you mean 'ReduceOnPlateauLR'?"),
        ([{"type": "StepLR", "stepsize": 2}], "StepLR: each key must be one of type, begin, end, by_epoch,"),
        ([{"type": "StepParamScheduler", "step_size": 2}], "StepParamScheduler: param_name must be given, got None"),
        (
            [{"type": "StepMomentum", "step_size": 2}],
            "param_scheduler: the value of momentum must be given for StepMomentum",
        ),
        ([{"type": "LinearLR", "begin": 3, "end": 3}], "LinearLR: end must be > begin (3), got 3"),
        (
            [{"type": "LinearLR", "by_epoch": False, "convert_to_iter_based": True}],
            "LinearLR: by_epoch must be True to be converted, got False",
        ),
        (
            [{"type": "LinearLR", "end": 3}, {"type": "CosineAnnealingLR", "eta_min": 0.1, "T_max": 9}],
            "CosineAnnealingLR: end must be given for schedulers that overlap, or max_epochs, got None; begin",
        ),
        (
            [{"type": "CosineRestartLR", "periods": [2, 2], "restart_weights": [1], "eta_min": 0}],
            "CosineRestartLR: restart_weights must be 2 weights, one per period, got [1]",
        ),
        ([{"type": "StepLR"}], "StepLR: step_size must be given, got None"),
        ([{"step_size": 2}], "param_scheduler: type must be given, got None"),
        ({"type": "StepLR"}, "StepLR: step_size must be given, got None"),
        ({"NAME": "StepLR"}, "StepLR: step_size must be given, got None"),
        ({"LR_SCHEDULER": {"STEP_SIZE": 2}}, "LR_SCHEDULER: NAME must be given, got None"),
        ({"NAME": "LinoPolyLR"}, "LinoPolyLR: END_EPOCH must be given, got None"),
        ({"NAME": "StepAnnealingLR", "TOTAL_STEPS": 3}, "StepAnnealingLR: WARMUP_STEPS must be given, got None"),
        ({"TRAIN": {"EPOCHS": 3}}, "TRAIN: LR_SCHEDULER must be given, got None"),
        (swin(LR_SCHEDULER={}), "TRAIN.LR_SCHEDULER: NAME must be given, got None"),
        (swin(LR_SCHEDULER={"NAME": "multistep"}), "TRAIN.LR_SCHEDULER: MULTISTEPS must be given, got None"),
        ({"NAME": "StpLR", "STEP_SIZE": 2}, "'StpLR' must be one of the registered schedules; did you mean 'step_lr'?"),
        (
            {"NAME": "StepLR", "STEPSIZES": 2},
            "StepLR: each key must be one of base_lr, step_size, gamma, got 'STEPSIZES'",
        ),
        (
            {"NAME": "StepAnnealingLR", "WARMUP_STEPS": 0, "TOTAL_STEPS": 2, "DECAY_MODE": "sqrt"},
            "StepAnnealingLR: DECAY_MODE must be 'linear', 'cosine' or 'none', got 'sqrt'",
        ),
        (
            {"sched": "cosin"},
            "timm: sched must be one of cosine, tanh, step, constant, multistep, poly, wsd, rsqrt, none",
        ),
        ({"sched": "plateau"}, "got 'plateau'; it follows a metric: see funcopt.reduce_lr_on_plateau"),
        ({"sched": "cosine", "num_epoch": 3}, "got 'num_epoch'; did you mean 'num_epochs'?"),
        ({"sched": "cosine", "lr_noise": [0.5]}, "timm: lr_noise must be None, got [0.5]; its noise is torch's random"),
        (
            {"sched": "wsd", "num_epochs": 5, "decay_epochs": 6},
            "wsd: decay_epochs must be in (0, 5], the length without",
        ),
        ({"sched": "rsqrt"}, "rsqrt: stable_timescale must be > 0, or warmup_epochs, got 0"),
        ({"sched": "wsd", "decay_fn": "sqrt"}, "wsd: decay_fn must be one of linear, 1-sqrt, cosine, power, exp, got"),
        (
            swin(LR_SCHEDULER={"NAME": "poly"}),
            "TRAIN.LR_SCHEDULER: NAME must be 'cosine', 'linear', 'step' or 'multistep'",
        ),
    ],
)
def test_errors(cfg: Any, message: str) -> None:
    with pytest.raises(ValueError, match="must") as error:
        build_schedule(cfg, 1.0)
    assert message in str(error.value)


def test_overlapping_schedulers_act_on_one_value_in_turn() -> None:
    cfg = [
        {"type": "PolyLR", "eta_min": 0.2, "end": 5, "by_epoch": False},  # (value - 0.2) * 3/4, 2/3, 1/2, 0 + 0.2
        {"type": "StepLR", "step_size": 2, "gamma": 0.5, "end": 3, "by_epoch": False},  # half at step 2
    ]
    expected = [1.0, 0.8, 0.3, 0.25, 0.2, 0.2]  # at step 2 (0.8 - 0.2) * 2/3 + 0.2 = 0.6, of which half
    schedule = build_schedules(cfg, {"lr": 1.0})["lr"]
    np.testing.assert_allclose(schedule(np.arange(6)), expected, rtol=1e-12)
    assert [float(schedule(step)) for step in range(6)] == pytest.approx(expected)
    np.testing.assert_allclose(jax.jit(jax.vmap(schedule))(jnp.arange(6)), expected, rtol=1e-6)
    other = build_schedules(cfg[::-1], {"lr": 1.0})["lr"]
    np.testing.assert_allclose(other([1, 2]), [0.8, (0.4 - 0.2) * 2 / 3 + 0.2], rtol=1e-12)


def test_timm_by_hand() -> None:
    cfg = {"sched": "cosine", "epochs": 4, "warmup_epochs": 2, "warmup_lr": 0.2, "warmup_prefix": True, "min_lr": 0.1}
    schedule = build_schedule(cfg, 1.0, steps_per_epoch=2)
    warm = [0.2, 0.2, 0.6, 0.6]
    cosine = [0.1 + 0.9 * (1 + math.cos(math.pi * (t // 2) / 4)) / 2 for t in range(9)]
    np.testing.assert_allclose(schedule(np.arange(13)), warm + cosine, rtol=1e-12)
    for kind in ("cosine", "tanh", "poly", "step", "multistep", "wsd", "rsqrt", "none"):
        own = build_schedule({**cfg, "sched": kind, "decay_epochs": 3, "decay_milestones": [2]}, 1.0, steps_per_epoch=2)
        np.testing.assert_allclose(jax.jit(jax.vmap(own))(jnp.arange(13)), own(np.arange(13)), rtol=1e-5, atol=1e-7)


def test_several_hyperparameters() -> None:
    cfg = [
        {"type": "StepLR", "step_size": 1, "gamma": 0.5},
        {"type": "LinearParamScheduler", "param_name": "weight_decay", "start_factor": 0.5, "end": 3},
    ]
    found = build_schedules(cfg, {"lr": 1.0, "weight_decay": 0.2})
    assert found["lr"]([0, 1, 2]).tolist() == [1.0, 0.5, 0.25]
    assert found["weight_decay"]([0, 1, 2, 3]).round(9).tolist() == [0.1, 0.15, 0.2, 0.2]
