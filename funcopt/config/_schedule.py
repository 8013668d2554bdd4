"""Schedules from configs: by name, MMEngine's lists, SCEPTER's sections, Swin's tree, torch's schedulers."""

import inspect
from collections.abc import Mapping
from typing import Any

from funcopt import _checks
from funcopt._base import Schedule
from funcopt.config import _timm_schedule, _torch
from funcopt.config._param_scheduler import WINDOW_KEYS, read_param_schedulers
from funcopt.config._plateau import is_plateau, split_plateau
from funcopt.config._read import check_called, check_given, check_keys, name_of_type, read_config
from funcopt.config._registry import SCHEDULES
from funcopt.groups._names import simplify
from funcopt.schedules import clip, join, multi_step_lr, ramp, sequential_lr, step_lr, warmup


def build_schedule(
    cfg: Any, base_lr: float | None = None, *, steps_per_epoch: int = 1, max_epochs: int | None = None, **options: Any
) -> Schedule:
    """A schedule of the learning rate.

    Args:
        cfg: a name with `options`; `dict(type=..., ...)` with the arguments of funcopt's (and torch's) schedule of that
            name, in which further schedules may be nested; MMEngine's `param_scheduler` list, or one of its schedulers
            with a `begin`, an `end` or a `by_epoch`; SCEPTER's `LR_SCHEDULER` section (`NAME`, ...); Swin's tree
            (`TRAIN.LR_SCHEDULER`); timm's arguments (`sched`, ...); a torch scheduler; a file with any of these; or a
            schedule, which is returned.
        base_lr: the value that the schedule moves; not needed where the config has it.
        steps_per_epoch: updates per epoch, for what counts epochs in MMEngine's, Swin's and timm's configs.
        max_epochs: end of MMEngine's schedulers that have none.
        **options: arguments for a name.

    Returns:
        A function of the count of updates.

    Raises:
        ValueError: for an unknown name or key, with the nearest one; for a list that moves other hyperparameters, see
            `build_schedules`.

    Example:
        >>> schedule = build_schedule({"type": "StepLR", "step_size": 2}, base_lr=1.0)
        >>> schedule([0, 1, 2, 4]).round(9).tolist()
        [1.0, 1.0, 0.1, 0.01]
    """
    cfg = read_config(cfg)
    if _is_mmengine(cfg):
        base = {} if base_lr is None else {"lr": base_lr}
        schedules = build_schedules(cfg, base, steps_per_epoch=steps_per_epoch, max_epochs=max_epochs)
        return schedules["lr"]
    if isinstance(cfg, str):
        cfg = {"type": cfg, **options}
    elif options:
        raise ValueError(f"build_schedule: {', '.join(options)} must be given in the config, or go with a name")
    if _torch.is_scheduler(cfg):
        return _of_scheduler(cfg)
    if callable(cfg):
        return cfg
    if not isinstance(cfg, Mapping):
        raise TypeError(f"build_schedule: cfg must be a config, a name or a schedule, got {cfg!r}")
    if _timm_schedule.matches(cfg):
        return _timm_schedule.timm_schedule(cfg, _needed("timm", base_lr), steps_per_epoch)
    if "TRAIN" in cfg:
        return _swin(cfg["TRAIN"], base_lr, steps_per_epoch)
    if "LR_SCHEDULER" in cfg or "NAME" in cfg:
        return _scepter(cfg.get("LR_SCHEDULER", cfg), base_lr)
    if "type" not in cfg:
        _checks.fail("build_schedule", "cfg", "a mapping with a type", dict(cfg))
    return _by_name(cfg, base_lr)


def build_schedules(
    cfg: Any, base: Mapping[str, float], *, steps_per_epoch: int = 1, max_epochs: int | None = None
) -> dict[str, Schedule]:
    """All schedules of MMEngine's `param_scheduler` list: of the learning rate, the momentum, or anything else.

    Args:
        cfg: the list, or one scheduler.
        base: values of the hyperparameters before any scheduler, by name.
        steps_per_epoch: updates per epoch.
        max_epochs: end of the schedulers that have none.

    Returns:
        Schedules by name of the hyperparameter. For Adam's `momentum` write `betas=(schedules["momentum"], 0.999)`.

    Raises:
        ValueError: for an unknown scheduler or key, or a missing base value.

    Example:
        >>> cfg = [{"type": "LinearLR", "start_factor": 0.5, "begin": 0, "end": 3, "by_epoch": False}]
        >>> build_schedules(cfg, {"lr": 1.0})["lr"]([0, 1, 2, 3]).tolist()
        [0.5, 0.75, 1.0, 1.0]
    """
    cfg = read_config(cfg)
    configs = [cfg] if isinstance(cfg, Mapping) else list(cfg)
    return read_param_schedulers(configs, base, steps_per_epoch=steps_per_epoch, max_epochs=max_epochs)


def drive(optimizer: Any, cfg: Any, **options: Any) -> Any:
    """A torch scheduler that drives an optimizer by a config: a step of it is a step of the schedule.

    A live torch scheduler is copied at the place where it is.
    """
    if _torch.is_scheduler(cfg):
        return _torch.adopt_scheduler(cfg, optimizer)
    from funcopt.torch_bridge import LRScheduler

    cfg = read_config(cfg)
    plateau = None
    if _is_mmengine(cfg):
        cfg, plateau = split_plateau(cfg)
    if plateau is not None:
        if cfg:
            fix = "two schedulers of one optimizer would write over each other's learning rate"
            _checks.fail("param_scheduler", "ReduceOnPlateauLR", "alone for torch", f"{len(cfg)} more", fix)
        return _torch.reduce_lr_on_plateau(optimizer, plateau)
    group = optimizer.param_groups[0]
    schedule = build_schedule(cfg, float(group.get("initial_lr", group["lr"])), **options)
    return LRScheduler(optimizer, schedule)


def _is_mmengine(cfg: Any) -> bool:
    if isinstance(cfg, list):
        return True
    return isinstance(cfg, Mapping) and "type" in cfg and (is_plateau(cfg) or any(k in cfg for k in WINDOW_KEYS))


def _by_name(cfg: Mapping[str, Any], base_lr: float | None) -> Schedule:
    """`dict(type=..., ...)` with the arguments of the schedule of that name."""
    builder = SCHEDULES.get(name_of_type(cfg["type"]))
    known = inspect.signature(builder).parameters
    arguments = {key: _nested(value, base_lr) for key, value in cfg.items() if key != "type"}
    check_keys(str(cfg["type"]), arguments, known)
    if "base_lr" in known and "base_lr" not in arguments:
        if base_lr is None:
            _checks.fail(str(cfg["type"]), "base_lr", "given, in the config or as an argument", None)
        arguments["base_lr"] = base_lr
    check_called(str(cfg["type"]), builder, arguments)
    return builder(**arguments)


def _nested(value: Any, base_lr: float | None) -> Any:
    if isinstance(value, Mapping) and "type" in value:
        return _by_name(value, base_lr)
    if isinstance(value, list):
        return [_nested(item, base_lr) for item in value]
    return value


def _needed(owner: str, base_lr: float | None) -> float:
    if base_lr is None:
        _checks.fail(owner, "base_lr", "given", None)
    return base_lr


def _scepter(section: Mapping[str, Any], base_lr: float | None) -> Schedule:
    """SCEPTER's section, by what its keys say: some of its classes do otherwise (a GAMMA that is not used)."""
    check_given("LR_SCHEDULER", section, "NAME")
    name = str(section["NAME"])
    cfg = {key: value for key, value in section.items() if key not in ("NAME", "LAST_EPOCH", "LAST_STEP")}
    first = max(section.get("LAST_EPOCH", -1), section.get("LAST_STEP", -1)) + 1
    schedule = _scepter_own(name, cfg, base_lr)
    if schedule is None:
        known = {simplify(key): key for key in inspect.signature(SCHEDULES.get(name)).parameters}
        schedule = _by_name({"type": name, **{known.get(simplify(key), key): v for key, v in cfg.items()}}, base_lr)
    inner = schedule
    return inner if first == 0 else lambda step: inner(step + first)


def _scepter_own(name: str, cfg: Mapping[str, Any], base_lr: float | None) -> Schedule | None:
    """The schedulers that only SCEPTER has."""
    if name == "WarmupToConstantLR":
        check_keys(name, cfg, ["WARMUP_STEPS"])
        return warmup(_needed(name, base_lr), cfg.get("WARMUP_STEPS", 10000))
    if name == "LinoPolyLR":
        check_keys(name, cfg, ["END_EPOCH", "POWER"])
        check_given(name, cfg, "END_EPOCH")
        cfg = {"type": "polynomial_lr", "total_iters": cfg["END_EPOCH"], "power": cfg.get("POWER", 1.0)}
        return _by_name(cfg, base_lr)
    if name == "StepAnnealingLR":
        check_keys(name, cfg, ["WARMUP_STEPS", "TOTAL_STEPS", "DECAY_MODE", "MIN_LR"])
        check_given(name, cfg, "WARMUP_STEPS", "TOTAL_STEPS")
        mode, base, first = cfg.get("DECAY_MODE", "cosine"), _needed(name, base_lr), cfg["WARMUP_STEPS"]
        if mode not in ("linear", "cosine", "none"):
            _checks.fail(name, "DECAY_MODE", "'linear', 'cosine' or 'none'", mode)
        decay = base if mode == "none" else ramp(base, 0.0, cfg["TOTAL_STEPS"] - first, mode)
        return clip(warmup(decay, first), floor=cfg.get("MIN_LR", 0.0))
    return None


def _swin(train: Mapping[str, Any], base_lr: float | None, steps_per_epoch: int) -> Schedule:
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


def _of_scheduler(scheduler: Any) -> Schedule:
    """A torch scheduler's values as a function of its `last_epoch`, from its first group's base value."""
    members = getattr(scheduler, "_schedulers", None)
    if members is not None and hasattr(scheduler, "_milestones"):
        return sequential_lr([_of_scheduler(member) for member in members], scheduler._milestones)
    builder = SCHEDULES.get(type(scheduler).__name__)
    arguments = _torch.arguments_of_scheduler(scheduler, inspect.signature(builder).parameters)
    return builder(**{**arguments, "base_lr": scheduler.base_lrs[0]})
