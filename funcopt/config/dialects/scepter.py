"""SCEPTER's spelling: upper-case `OPTIMIZER` and `LR_SCHEDULER` sections.

SCEPTER reads the keys that it knows and passes over others; here these are errors. Where its defaults are not torch's,
they apply.
"""

import inspect
from collections.abc import Mapping
from typing import Any

from funcopt import _checks
from funcopt._names import simplify
from funcopt.config._read import check_base_lr, check_given, check_keys
from funcopt.config._registry import OPTIMIZERS, SCHEDULES
from funcopt.config._spec import OptimizerSpec
from funcopt.config.dialects.torch import schedule_by_name
from funcopt.kinds import Schedule
from funcopt.schedules import clip, ramp, warmup

# As its classes have them, where torch's are others.
_DEFAULTS: dict[str, dict[str, Any]] = {
    "adam": {"lr": 1e-2, "eps": 1e-10},
    "adamw": {"weight_decay": 0.0},
    "adadelta": {"rho": 0.0},
}
_RENAMED = {"LEARNING_RATE": "lr", "LEARNING_RATE_DECAY": "lr_decay"}


def matches(cfg: Any) -> bool:
    return isinstance(cfg, Mapping) and ("NAME" in cfg or "OPTIMIZER" in cfg)


def read(cfg: Mapping[str, Any]) -> OptimizerSpec:
    """The spec of an `OPTIMIZER` section, or of a config that has one."""
    section = cfg.get("OPTIMIZER", cfg)
    check_given("OPTIMIZER", section, "NAME")
    given = {_RENAMED.get(key) or key.lower(): value for key, value in section.items() if key != "NAME"}
    return OptimizerSpec(OPTIMIZERS.get(section["NAME"]), {**_DEFAULTS.get(simplify(section["NAME"]), {}), **given})


def read_schedule(section: Mapping[str, Any], base_lr: float | None) -> Schedule:
    """SCEPTER's section, by what its keys say: some of its classes do otherwise (a GAMMA that is not used)."""
    check_given("LR_SCHEDULER", section, "NAME")
    name = str(section["NAME"])
    cfg = {key: value for key, value in section.items() if key not in ("NAME", "LAST_EPOCH", "LAST_STEP")}
    first = max(section.get("LAST_EPOCH", -1), section.get("LAST_STEP", -1)) + 1
    schedule = _own_schedule(name, cfg, base_lr)
    if schedule is None:
        known = {simplify(key): key for key in inspect.signature(SCHEDULES.get(name)).parameters}
        named = {known.get(simplify(key), key): value for key, value in cfg.items()}
        schedule = schedule_by_name({"type": name, **named}, base_lr)
    inner = schedule
    return inner if first == 0 else lambda step: inner(step + first)


def _own_schedule(name: str, cfg: Mapping[str, Any], base_lr: float | None) -> Schedule | None:
    """The schedulers that only SCEPTER has."""
    if name == "WarmupToConstantLR":
        check_keys(name, cfg, ["WARMUP_STEPS"])
        return warmup(check_base_lr(name, base_lr), cfg.get("WARMUP_STEPS", 10000))
    if name == "LinoPolyLR":
        check_keys(name, cfg, ["END_EPOCH", "POWER"])
        check_given(name, cfg, "END_EPOCH")
        cfg = {"type": "polynomial_lr", "total_iters": cfg["END_EPOCH"], "power": cfg.get("POWER", 1.0)}
        return schedule_by_name(cfg, base_lr)
    if name == "StepAnnealingLR":
        check_keys(name, cfg, ["WARMUP_STEPS", "TOTAL_STEPS", "DECAY_MODE", "MIN_LR"])
        check_given(name, cfg, "WARMUP_STEPS", "TOTAL_STEPS")
        mode, base, first = cfg.get("DECAY_MODE", "cosine"), check_base_lr(name, base_lr), cfg["WARMUP_STEPS"]
        if mode not in ("linear", "cosine", "none"):
            _checks.fail(name, "DECAY_MODE", "'linear', 'cosine' or 'none'", mode)
        decay = base if mode == "none" else ramp(base, 0.0, cfg["TOTAL_STEPS"] - first, mode)
        return clip(warmup(decay, first), floor=cfg.get("MIN_LR", 0.0))
    return None
