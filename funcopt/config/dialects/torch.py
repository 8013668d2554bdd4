"""torch's own: optimizer classes, live optimizers with their state, schedules by name, live schedulers."""

import copy
import inspect
import sys
from collections.abc import Mapping
from typing import Any

from funcopt import _checks
from funcopt.config._read import check_called, check_keys, name_of_type
from funcopt.config._registry import OPTIMIZERS, SCHEDULES
from funcopt.groups._algorithms import arguments_of
from funcopt.kinds import Schedule
from funcopt.schedules import sequential_lr

# Arguments of torch's optimizers that choose among implementations and change no number.
IMPLEMENTATION = ("foreach", "fused", "capturable", "differentiable")


def is_optimizer(value: object) -> bool:
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(value, torch.optim.Optimizer)


def is_optimizer_class(value: object) -> bool:
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(value, type) and issubclass(value, torch.optim.Optimizer)


def is_scheduler(value: object) -> bool:
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(value, torch.optim.lr_scheduler.LRScheduler)


def reduce_lr_on_plateau(optimizer: Any, arguments: Mapping[str, Any]) -> Any:
    """The torch scheduler of that name, called as `scheduler.step(metric)`."""
    torch = sys.modules["torch"]
    return torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, **arguments)


def adopt_scheduler(scheduler: Any, optimizer: Any) -> Any:
    """A copy of a live torch scheduler, at the place where it is, that drives another optimizer."""
    adopted = copy.copy(scheduler)
    adopted.optimizer = optimizer
    # Only torch's reminder reads this count: it takes the first step of a scheduler for one before the optimizer's.
    if hasattr(scheduler, "_step_count"):
        adopted._step_count = scheduler._step_count + 1
    if hasattr(scheduler, "_schedulers"):
        adopted._schedulers = [adopt_scheduler(member, optimizer) for member in scheduler._schedulers]
    return adopted


def own_names(optimizer: Any) -> dict[int, str]:
    """The parameters' names by id: those in the groups, or their places in the order of all groups."""
    named = [pair for g in optimizer.param_groups for pair in zip(g["params"], _names_of(g), strict=True)]
    return {id(p): name or str(i) for i, (p, name) in enumerate(named)}


def _names_of(group: Mapping[str, Any]) -> list[str | None]:
    return group.get("param_names") or [None] * len(group["params"])


def config_of(optimizer: Any, names: Mapping[int, str]) -> dict[str, Any]:
    """A live torch optimizer's config, with a rule for each group that differs from the defaults.

    Args:
        optimizer: the optimizer.
        names: name of each parameter by its id.
    """
    known = arguments_of(OPTIMIZERS.get(type(optimizer).__name__))
    defaults = {k: v for k, v in optimizer.defaults.items() if k in known and k not in IMPLEMENTATION}
    config: dict[str, Any] = {"type": type(optimizer).__name__, **defaults, "rules": []}
    for group in optimizer.param_groups:
        differs = {k: group[k] for k, v in defaults.items() if group[k] != v}
        differs |= {k: group[k] for k in ("lr_mult", "decay_mult") if k in group}
        if differs:
            config["rules"].append({"path": [names[id(p)] for p in group["params"]], **differs})
    return config


def schedule_by_name(cfg: Mapping[str, Any], base_lr: float | None) -> Schedule:
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
        return schedule_by_name(value, base_lr)
    if isinstance(value, list):
        return [_nested(item, base_lr) for item in value]
    return value


def schedule_of(scheduler: Any) -> Schedule:
    """A torch scheduler's values as a function of its `last_epoch`, from its first group's base value."""
    members = getattr(scheduler, "_schedulers", None)
    if members is not None and hasattr(scheduler, "_milestones"):
        return sequential_lr([schedule_of(member) for member in members], scheduler._milestones)
    builder = SCHEDULES.get(type(scheduler).__name__)
    arguments = _arguments_of(scheduler, inspect.signature(builder).parameters)
    return builder(**{**arguments, "base_lr": scheduler.base_lrs[0]})


def _arguments_of(scheduler: Any, known: Mapping[str, Any]) -> dict[str, Any]:
    """A torch scheduler's arguments, as far as a schedule has them."""
    found = {name: getattr(scheduler, name) for name in known if hasattr(scheduler, name)}
    if "milestones" in found:
        found["milestones"] = sorted(found["milestones"].elements())
    if "lr_lambda" in known:
        found["lr_lambda"] = scheduler.lr_lambdas[0]
    return found
