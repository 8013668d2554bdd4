"""torch's own: optimizer classes by name, live optimizers with their state, live schedulers."""

import copy
import sys
from collections.abc import Mapping
from typing import Any

from funcopt import _checks
from funcopt.config._registry import OPTIMIZERS
from funcopt.groups._algorithms import arguments_of

# Arguments of torch's optimizers that choose among implementations and change no number.
IMPLEMENTATION = ("foreach", "fused", "capturable", "differentiable")

_KEPT = ("params", "param_names", "name", "lr_mult", "decay_mult", "initial_lr")


def is_optimizer(value: object) -> bool:
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(value, torch.optim.Optimizer)


def is_bridge(value: object) -> bool:
    bridge = sys.modules.get("funcopt.torch_bridge")
    return bridge is not None and isinstance(value, bridge.TorchBridge)


def is_optimizer_class(value: object) -> bool:
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(value, type) and issubclass(value, torch.optim.Optimizer)


def is_scheduler(value: object) -> bool:
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(value, torch.optim.lr_scheduler.LRScheduler)


def adopt_optimizer(optimizer: Any) -> Any:
    """A bridge with the groups and the state of a live torch optimizer of torch's own classes, which is left as it is.

    Raises:
        ValueError: for a class that funcopt has no counterpart of, or a differentiable optimizer.
    """
    from funcopt.torch_bridge import TorchBridge

    factory = OPTIMIZERS.get(type(optimizer).__name__)
    known = arguments_of(factory)
    for group in optimizer.param_groups:
        if group.get("differentiable"):
            _checks.fail(type(optimizer).__name__, "differentiable", "False", True)
    groups = [{k: v for k, v in group.items() if k in known or k in _KEPT} for group in optimizer.param_groups]
    bridge = TorchBridge(groups, factory, **{k: v for k, v in optimizer.defaults.items() if k in known})
    state = optimizer.state_dict()
    own = bridge.state_dict()["param_groups"]
    bridge.load_state_dict({"state": state["state"], "param_groups": own})
    return bridge


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


def arguments_of_scheduler(scheduler: Any, known: Mapping[str, Any]) -> dict[str, Any]:
    """A torch scheduler's arguments, as far as a schedule has them."""
    found = {name: getattr(scheduler, name) for name in known if hasattr(scheduler, name)}
    if "milestones" in found:
        found["milestones"] = sorted(found["milestones"].elements())
    if "lr_lambda" in known:
        found["lr_lambda"] = scheduler.lr_lambdas[0]
    return found
