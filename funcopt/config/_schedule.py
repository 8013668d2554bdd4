"""Schedules from configs, whatever their spelling."""

from collections.abc import Mapping
from typing import Any

from funcopt import _checks
from funcopt.config._read import check_base_lr, read_config
from funcopt.config.dialects import huggingface, mmengine_schedule, scepter, swin, timm_schedule
from funcopt.config.dialects.torch import is_scheduler, schedule_by_name, schedule_of
from funcopt.kinds import Schedule


def build_schedule(
    cfg: Any, base_lr: float | None = None, *, steps_per_epoch: int = 1, max_epochs: int | None = None, **options: Any
) -> Schedule:
    """A schedule of the learning rate.

    Args:
        cfg: a name with `options`; `dict(type=..., ...)` with the arguments of funcopt's (and torch's) schedule of that
            name, in which further schedules may be nested; MMEngine's `param_scheduler` list, or one of its schedulers
            with a `begin`, an `end` or a `by_epoch`; SCEPTER's `LR_SCHEDULER` section (`NAME`, ...); Swin's tree
            (`TRAIN.LR_SCHEDULER`); timm's arguments (`sched`, ...); Hugging Face's (`lr_scheduler_type`, ...); a torch
            scheduler; a file with any of these; or a schedule, which is returned.
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
    cfg = read_config(huggingface.of_arguments(cfg))
    if mmengine_schedule.matches(cfg):
        base = {} if base_lr is None else {"lr": base_lr}
        schedules = build_schedules(cfg, base, steps_per_epoch=steps_per_epoch, max_epochs=max_epochs)
        return schedules["lr"]
    if isinstance(cfg, str):
        cfg = {"type": cfg, **options}
    elif options:
        raise ValueError(f"build_schedule: {', '.join(options)} must be given in the config, or go with a name")
    if is_scheduler(cfg):
        return schedule_of(cfg)
    if callable(cfg):
        return cfg
    if not isinstance(cfg, Mapping):
        raise TypeError(f"build_schedule: cfg must be a config, a name or a schedule, got {cfg!r}")
    if timm_schedule.matches(cfg):
        return timm_schedule.read_schedule(cfg, check_base_lr("timm", base_lr), steps_per_epoch)
    if huggingface.has_schedule(cfg):
        return huggingface.read_schedule(cfg, base_lr, steps_per_epoch)
    if "TRAIN" in cfg:
        return swin.read_schedule(cfg["TRAIN"], base_lr, steps_per_epoch)
    if "LR_SCHEDULER" in cfg or "NAME" in cfg:
        return scepter.read_schedule(cfg.get("LR_SCHEDULER", cfg), base_lr)
    if "type" not in cfg:
        _checks.fail("build_schedule", "cfg", "a mapping with a type", dict(cfg))
    return schedule_by_name(cfg, base_lr)


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
    return mmengine_schedule.read_param_schedulers(
        configs, base, steps_per_epoch=steps_per_epoch, max_epochs=max_epochs
    )
