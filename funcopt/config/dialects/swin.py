"""Swin's spelling: the `TRAIN` part of its yacs tree."""

from collections.abc import Mapping
from typing import Any

from funcopt import _checks
from funcopt.config._read import check_given
from funcopt.config._registry import OPTIMIZERS
from funcopt.config._spec import OptimizerSpec
from funcopt.groups import swin_rules
from funcopt.kinds import Schedule
from funcopt.schedules import join, multi_step_lr, ramp, step_lr


def matches(cfg: Any) -> bool:
    return isinstance(cfg, Mapping) and "OPTIMIZER" in cfg.get("TRAIN", {})


def read(cfg: Mapping[str, Any], model: Any) -> OptimizerSpec:
    """The spec that Swin's `build_optimizer(config, model)` has: SGD with Nesterov's momentum, or AdamW.

    Clipping and accumulation are its training loop's.
    """
    train = cfg["TRAIN"]
    check_given("TRAIN", train, "BASE_LR", "WEIGHT_DECAY")
    check_given("TRAIN.OPTIMIZER", train["OPTIMIZER"], "NAME")
    name, section = train["OPTIMIZER"]["NAME"].lower(), train["OPTIMIZER"]
    if name not in ("sgd", "adamw"):
        _checks.fail("TRAIN.OPTIMIZER", "NAME", "'sgd' or 'adamw'", section["NAME"])
    if name == "sgd":
        own = {"momentum": section.get("MOMENTUM", 0.9), "nesterov": True}
    else:
        own = {"eps": section.get("EPS", 1e-8), "betas": tuple(section.get("BETAS", (0.9, 0.999)))}
    values = {"lr": train["BASE_LR"], "weight_decay": train["WEIGHT_DECAY"], **own}
    return OptimizerSpec(OPTIMIZERS.get(name), values, swin_rules(model), decayed_first=True)


def read_schedule(train: Mapping[str, Any], base_lr: float | None, steps_per_epoch: int) -> Schedule:
    """Swin's `build_scheduler`, by the update: its loop sets the value of update n after update n, for the next one."""
    check_given("TRAIN", train, "LR_SCHEDULER", "EPOCHS", *([] if base_lr is not None else ["BASE_LR"]))
    section = train["LR_SCHEDULER"]
    check_given("TRAIN.LR_SCHEDULER", section, "NAME", *(["MULTISTEPS"] if section.get("NAME") == "multistep" else []))
    base = train["BASE_LR"] if base_lr is None else base_lr
    total, first = int(train["EPOCHS"] * steps_per_epoch), int(train.get("WARMUP_EPOCHS", 20) * steps_per_epoch)
    name, prefix = section["NAME"].lower(), section.get("WARMUP_PREFIX", True)
    restart = name == "linear" or (name == "cosine" and prefix)
    if name == "cosine":
        decay = ramp(base, train.get("MIN_LR", 5e-6), total - first if prefix else total, "cosine")
    elif name == "linear":
        decay = ramp(base, base * 0.01, total - first)
    elif name == "step":
        decay = step_lr(base, int(section.get("DECAY_EPOCHS", 30) * steps_per_epoch), section.get("DECAY_RATE", 0.1))
    elif name == "multistep":
        milestones = [epoch * steps_per_epoch for epoch in section["MULTISTEPS"]]
        decay = multi_step_lr(base, milestones, section.get("GAMMA", 0.1))
    else:
        _checks.fail("TRAIN.LR_SCHEDULER", "NAME", "'cosine', 'linear', 'step' or 'multistep'", section["NAME"])
    if first == 0:
        return decay
    rise = ramp(train.get("WARMUP_LR", 5e-7), base, first)
    return join([rise, decay], [first], restart=restart)
