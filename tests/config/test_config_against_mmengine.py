"""Schedules and whole runs against MMEngine's own."""

import copy
import logging
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from groups.client_models import MODELS

from funcopt.config import SCHEDULES, build_optimizer, build_schedules

pytestmark = pytest.mark.clients
optim = pytest.importorskip("mmengine.optim")
registry = pytest.importorskip("mmengine.registry")

EPOCH_LENGTH, EPOCHS = 5, 12
UPDATES = EPOCH_LENGTH * EPOCHS


@pytest.fixture(autouse=True)
def silence() -> Iterator[None]:
    logging.disable(logging.CRITICAL)
    yield
    logging.disable(logging.NOTSET)


def build_mmengine_schedulers(optimizer: Any, configs: list[dict[str, Any]]) -> list[Any]:
    """As MMEngine's Runner does, with its default for `end`."""
    schedulers = []
    for config in copy.deepcopy(configs):
        by_epoch = config.get("by_epoch", True)
        config.setdefault("end", EPOCHS if by_epoch else UPDATES)
        arguments = {"optimizer": optimizer}
        if config.pop("convert_to_iter_based", False):
            kind = registry.PARAM_SCHEDULERS.get(config.pop("type"))
            schedulers.append(kind.build_iter_from_epoch(**arguments, **config, epoch_length=EPOCH_LENGTH))
        else:
            schedulers.append(registry.PARAM_SCHEDULERS.build(config, default_args=arguments))
    return schedulers


def advance(schedulers: list[Any], update: int) -> None:
    """As MMEngine's ParamSchedulerHook does after an update."""
    for scheduler in schedulers:
        if not scheduler.by_epoch:
            scheduler.step()
    if (update + 1) % EPOCH_LENGTH == 0:
        for scheduler in schedulers:
            if scheduler.by_epoch:
                scheduler.step()


def window(begin: int, end: int, *, by_epoch: bool = False, **config: Any) -> dict[str, Any]:
    return {**config, "begin": begin, "end": end, "by_epoch": by_epoch}


CONFIGS: dict[str, list[dict[str, Any]]] = {
    "constant": [window(0, 4, type="ConstantLR", factor=0.25)],
    "constant by epoch": [window(0, 4, by_epoch=True, type="ConstantLR", factor=0.25)],
    "linear": [window(0, 10, type="LinearLR", start_factor=0.1)],
    "linear down": [window(3, 20, type="LinearLR", start_factor=1.0, end_factor=0.01)],
    "step": [{"type": "StepLR", "step_size": 3, "gamma": 0.5}],
    "step by update, begun late": [window(7, 33, type="StepLR", step_size=4, gamma=0.5)],
    "multi-step": [{"type": "MultiStepLR", "milestones": [3, 8, 8], "gamma": 0.1}],
    "exponential": [{"type": "ExponentialLR", "gamma": 0.9}],
    "cosine": [{"type": "CosineAnnealingLR", "eta_min": 0.01}],
    "cosine, T_max": [{"type": "CosineAnnealingLR", "T_max": 7, "eta_min": 0.01, "by_epoch": False}],
    "cosine, ratio": [{"type": "CosineAnnealingLR", "eta_min_ratio": 0.05}],
    "cosine, converted": [
        {"type": "CosineAnnealingLR", "T_max": EPOCHS, "eta_min": 0.001, "convert_to_iter_based": True}
    ],
    "polynomial": [{"type": "PolyLR", "power": 0.9, "eta_min": 1e-4, "by_epoch": False}],
    "restarts": [{"type": "CosineRestartLR", "periods": [3, 4, 5], "restart_weights": [1, 0.5, 0.25], "eta_min": 0.01}],
    "restarts, ratio, converted": [
        {
            "type": "CosineRestartLR",
            "periods": [3, 9],
            "restart_weights": [1, 0.5],
            "eta_min_ratio": 0.1,
            "convert_to_iter_based": True,
        }
    ],
    "one cycle": [{"type": "OneCycleLR", "eta_max": 0.5, "total_steps": UPDATES, "by_epoch": False}],
    "one cycle, three phases": [
        {"type": "OneCycleLR", "eta_max": 0.5, "three_phase": True, "anneal_strategy": "linear", "by_epoch": False}
    ],
    "warm-up and cosine": [
        {"type": "LinearLR", "start_factor": 1e-3, "begin": 0, "end": 2, "convert_to_iter_based": True},
        {"type": "CosineAnnealingLR", "eta_min": 1e-3, "begin": 2, "convert_to_iter_based": True},
    ],
    "warm-up over multi-step": [
        window(0, 9, type="LinearLR", start_factor=0.001),
        {"type": "MultiStepLR", "begin": 0, "end": EPOCHS, "milestones": [1, 8, 11], "gamma": 0.1},
    ],
    "warm-up and polynomial": [
        window(0, 15, type="LinearLR", start_factor=1e-6),
        window(15, UPDATES, type="PolyLR", eta_min=0.0, power=1.0),
    ],
    "constant, then cosine, with a gap": [
        window(0, 3, by_epoch=True, type="ConstantLR", factor=0.5),
        window(5, 11, by_epoch=True, type="CosineAnnealingLR", eta_min=0.02, convert_to_iter_based=True),
    ],
    "momentum": [{"type": "CosineAnnealingMomentum", "eta_min": 0.5}, {"type": "StepLR", "step_size": 2}],
    "weight decay": [
        {"type": "LinearParamScheduler", "param_name": "weight_decay", "start_factor": 0.1, "by_epoch": False}
    ],
    "warm-up over cosine with a floor": [
        window(0, 8, type="LinearLR", start_factor=0.1),
        {"type": "CosineAnnealingLR", "eta_min": 0.01, "by_epoch": False},
    ],
    "by update over by epoch, with floors": [
        {"type": "PolyLR", "power": 0.9, "eta_min": 0.02},
        window(3, 20, type="CosineAnnealingLR", eta_min=0.03),
    ],
    "the same in the other order": [
        window(3, 20, type="CosineAnnealingLR", eta_min=0.03),
        {"type": "PolyLR", "power": 0.9, "eta_min": 0.02},
    ],
    "three at once, then one alone": [
        window(0, 4, by_epoch=True, type="PolyLR", eta_min=0.05),
        window(2, 7, type="LinearLR", start_factor=0.5),
        window(1, 5, by_epoch=True, type="ConstantLR", factor=0.3),
        window(6, 12, by_epoch=True, type="CosineAnnealingLR", eta_min=0.001),
    ],
    "a cosine that rises again": [
        {"type": "CosineAnnealingLR", "T_max": 4, "eta_min": 0.01},
        {"type": "StepLR", "step_size": 5, "gamma": 0.5},
    ],
    "factors on values that are set": [
        {"type": "CosineRestartLR", "periods": [4, 8], "restart_weights": [1, 0.5], "eta_min": 0.01},
        window(0, 10, type="LinearLR", start_factor=0.1),
        {"type": "StepLR", "step_size": 3, "gamma": 0.7},
    ],
    "set last of all": [
        window(0, 10, type="LinearLR", start_factor=0.1),
        {"type": "OneCycleLR", "eta_max": 0.5, "total_steps": UPDATES, "by_epoch": False},
    ],
    "fractions of an epoch": [
        {"type": "LinearLR", "start_factor": 0.1, "begin": 0, "end": 0.6, "convert_to_iter_based": True},
        {"type": "StepLR", "step_size": 4, "gamma": 0.3},
    ],
}


@pytest.mark.parametrize("configs", CONFIGS.values(), ids=CONFIGS)
def test_values_of_each_update(configs: list[dict[str, Any]]) -> None:
    base = {"lr": 0.1, "momentum": 0.9, "weight_decay": 0.05}
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.ones(1))], **base)
    schedulers = build_mmengine_schedulers(optimizer, configs)
    schedules = build_schedules(configs, base, steps_per_epoch=EPOCH_LENGTH, max_epochs=EPOCHS)
    expected = []
    for update in range(UPDATES):
        expected.append([optimizer.param_groups[0][name] for name in schedules])
        optimizer.step()
        advance(schedulers, update)
    assert len(np.unique(expected, axis=0)) > 1
    ours = np.stack([schedule(np.arange(UPDATES)) for schedule in schedules.values()], axis=1)
    np.testing.assert_allclose(ours, expected, rtol=1e-10, atol=1e-12)


RUNS: dict[str, dict[str, Any]] = {
    "resnet: SGD, paramwise, warm-up over multi-step": {
        "optim_wrapper": {
            "type": "OptimWrapper",
            "optimizer": {"type": "SGD", "lr": 0.05, "momentum": 0.9, "weight_decay": 1e-3},
            "paramwise_cfg": {"norm_decay_mult": 0.0, "bias_lr_mult": 2.0, "custom_keys": {"layer1": {"lr_mult": 0.1}}},
            "clip_grad": {"max_norm": 1.0},
        },
        "param_scheduler": CONFIGS["warm-up over multi-step"],
    },
    "vit: all at once": {
        "optim_wrapper": {
            "optimizer": {"type": "AdamW", "lr": 2e-3, "weight_decay": 0.05},
            "paramwise_cfg": {
                "norm_decay_mult": 0.0,
                "bias_decay_mult": 0.0,
                "custom_keys": {
                    ".cls_token": {"decay_mult": 0.0},
                    "blocks.0": {"lr_mult": 0.1},
                    "head": {"lr_mult": 2.0},
                },
            },
            "clip_grad": {"max_norm": 0.5},
            "accumulative_counts": 2,
        },
        "param_scheduler": CONFIGS["warm-up and polynomial"],
    },
    "swin: by value, momentum and decay scheduled": {
        "optim_wrapper": {
            "optimizer": {"type": "SGD", "lr": 0.05, "weight_decay": 0.05, "momentum": 0.9},
            "paramwise_cfg": {
                "flat_decay_mult": 0.0,
                "custom_keys": {"relative_position_bias_table": {"decay_mult": 0.0}},
            },
            "clip_grad": {"type": "value", "clip_value": 0.01},
        },
        "param_scheduler": [*CONFIGS["momentum"], *CONFIGS["weight decay"]],
    },
    "mobilenet: depthwise": {
        "optim_wrapper": {
            "optimizer": {"type": "SGD", "lr": 0.05, "weight_decay": 1e-3},
            "paramwise_cfg": {"dwconv_decay_mult": 0.0, "norm_decay_mult": 0.5},
        },
        "param_scheduler": CONFIGS["warm-up over cosine with a floor"],
    },
    "resnet: AdamW, custom keys, accumulation": {
        "optim_wrapper": {
            "type": "OptimWrapper",
            "optimizer": {"type": "AdamW", "lr": 1e-3, "weight_decay": 0.05, "betas": (0.9, 0.95)},
            "paramwise_cfg": {
                "flat_decay_mult": 0.0,
                "custom_keys": {"layer2": {"lr_mult": 0.3}, "fc": {"lr_mult": 3.0, "decay_mult": 0.1}},
            },
            "accumulative_counts": 2,
        },
        "param_scheduler": CONFIGS["warm-up and polynomial"],
    },
}


@pytest.mark.parametrize(("label", "config"), RUNS.items(), ids=RUNS)
@pytest.mark.filterwarnings("ignore:Detected call of")  # its schedulers step on micro-steps, before the first update
def test_a_run_of_100_steps_is_the_same(label: str, config: dict[str, Any]) -> None:
    torch.manual_seed(0)
    model_name = label.partition(":")[0]
    ours = MODELS[model_name]().double().eval()  # a Swin Transformer drops paths at random
    theirs = copy.deepcopy(ours)
    size = 16 if model_name in ("resnet", "vit") else 32
    images, labels = torch.randn(4, 3, size, size, dtype=torch.float64), torch.tensor([0, 1, 2, 0])
    whole = config | {"train_cfg": {"max_epochs": EPOCHS}}
    optimizer = build_optimizer(whole, ours, steps_per_epoch=EPOCH_LENGTH)
    wrapper = optim.build_optim_wrapper(theirs, config["optim_wrapper"])
    schedulers = build_mmengine_schedulers(wrapper.optimizer, config["param_scheduler"])
    start = copy.deepcopy(theirs.state_dict())
    for update in range(100):
        batch = images + 0.1 * update
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(ours(batch), labels).backward()
        optimizer.step()
        with wrapper.optim_context(theirs):
            loss = torch.nn.functional.cross_entropy(theirs(batch), labels)
        wrapper.update_params(loss)
        advance(schedulers, update)
    for (name, p), q in zip(ours.named_parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-7, atol=1e-9, msg=lambda text, name=name: f"{name}: {text}")
        assert not torch.equal(q, start[name])


WRAPPER_OF = {"first": "SGD, paramwise, warm-up over multi-step", "second": "AdamW, custom keys, accumulation"}


def test_several_optimizers_run_the_same_as_an_optim_wrapper_dict() -> None:
    configs = {name: RUNS[f"resnet: {rest}"]["optim_wrapper"] for name, rest in WRAPPER_OF.items()}
    torch.manual_seed(0)
    ours = torch.nn.ModuleDict({name: MODELS["resnet"]() for name in configs}).double().eval()
    theirs = copy.deepcopy(ours)
    optimizers = build_optimizer({"optim_wrapper": {**configs, "constructor": "MultiOptimWrapperConstructor"}}, ours)
    wrappers = {name: optim.build_optim_wrapper(theirs[name], config) for name, config in configs.items()}
    images = torch.randn(4, 3, 16, 16, dtype=torch.float64)
    for update in range(20):
        for name, optimizer in optimizers.items():
            optimizer.zero_grad()
            ours[name](images + 0.1 * update).square().sum().backward()
            optimizer.step()
            with wrappers[name].optim_context(theirs[name]):
                loss = theirs[name](images + 0.1 * update).square().sum()
            wrappers[name].update_params(loss)
    for p, q in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-7, atol=1e-9)


PLATEAU = {
    "type": "ReduceOnPlateauLR",
    "monitor": "acc",
    "rule": "greater",
    "factor": 0.5,
    "patience": 1,
    "min_value": 0.02,
}


@pytest.mark.parametrize("options", [{}, {"threshold_rule": "abs", "threshold": 0.05}, {"cooldown": 2}], ids=str)
def test_plateau_follows_the_metric_as_mmengine_s(options: dict[str, Any]) -> None:
    import jax.numpy as jnp

    config = {**PLATEAU, **options}
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.ones(1))], 0.1)
    scheduler = registry.PARAM_SCHEDULERS.build(config, default_args={"optimizer": optimizer})
    bridge = torch.optim.SGD([torch.nn.Parameter(torch.ones(1))], 0.1)
    driver = SCHEDULES.build(config, optimizer=bridge)
    params = {"w": jnp.ones(1)}
    whole = {"optim_wrapper": {"optimizer": {"type": "SGD", "lr": 0.1}}, "param_scheduler": [config]}
    tx = build_optimizer(whole, params, steps_per_epoch=1)
    state, seen = tx.init(params), set()
    for metric in [0.1, 0.5, 0.51, 0.52, 0.53, 0.4, 0.4, 0.4, 0.6, 0.6, 0.6, 0.6, 0.6, 0.6, 0.6]:
        scheduler.step()  # after the epoch's training
        scheduler.step({"acc": metric})
        driver.step(metric)
        updates, state = tx.update({"w": jnp.ones(1)}, state, params, value=metric)
        lr = optimizer.param_groups[0]["lr"]
        assert bridge.param_groups[0]["lr"] == pytest.approx(lr)
        assert float(-updates["w"][0]) == pytest.approx(lr, rel=1e-5)
        seen.add(lr)
    assert len(seen) > 2
