"""MMEngine's `ReduceOnPlateauLR`, which follows a metric: in torch torch's scheduler, in JAX a part of the chain."""

from collections.abc import Mapping
from typing import Any

from funcopt import _checks
from funcopt.config._read import check_keys, name_of_type

PLATEAU = "ReduceOnPlateauLR"
# Its arguments, and torch's names of them.
_KEYS = {
    "monitor": "monitor",
    "rule": "mode",
    "factor": "factor",
    "patience": "patience",
    "threshold": "threshold",
    "threshold_rule": "threshold_mode",
    "cooldown": "cooldown",
    "min_value": "min_lr",
    "eps": "eps",
}


def is_plateau(config: Mapping[str, Any]) -> bool:
    """Whether a scheduler follows a metric."""
    return name_of_type(config.get("type")) == PLATEAU


def split_plateau(configs: Any) -> tuple[list[dict[str, Any]], dict[str, Any] | None]:
    """The schedulers that are functions of the step, and the arguments of the one that follows a metric, as torch's.

    Raises:
        ValueError: for a second one, a window, or an unknown key or value.
    """
    configs = configs if isinstance(configs, list | tuple) else [configs]
    plateaus = [config for config in configs if is_plateau(config)]
    if len(plateaus) > 1:
        _checks.fail("param_scheduler", PLATEAU, "given once", len(plateaus))
    return [config for config in configs if not is_plateau(config)], _read_plateau(*plateaus) if plateaus else None


def _read_plateau(config: Mapping[str, Any]) -> dict[str, Any]:
    check_keys(PLATEAU, config, ("type", "begin", "end", "by_epoch", "verbose", *_KEYS))
    for key, only in (("begin", 0), ("by_epoch", True)):
        if config.get(key, only) != only:
            _checks.fail(PLATEAU, key, repr(only), config[key])
    if config.get("end") is not None:
        _checks.fail(PLATEAU, "end", "left out", config["end"], "give metrics as long as it shall act")
    own = {_KEYS[key]: value for key, value in config.items() if key in _KEYS}
    own.pop("monitor", None)  # the metric's name: here the metric itself is given
    if "mode" in own:
        modes = {"less": "min", "greater": "max"}
        if own["mode"] not in modes:
            _checks.fail(PLATEAU, "rule", "'less' or 'greater'", own["mode"])
        own["mode"] = modes[own["mode"]]
    return own


def as_factor(arguments: Mapping[str, Any], base: Mapping[str, float]) -> dict[str, Any]:
    """The arguments for a factor on whatever learning rate there is, in whose unit the bounds are then.

    Args:
        arguments: those for the learning rate itself.
        base: the optimizer's numbers by name.

    Raises:
        ValueError: without a learning rate.
    """
    if not base.get("lr"):
        _checks.fail(PLATEAU, "lr", "a number > 0 in the optimizer's config", base.get("lr"))
    bounds = {"min_lr": arguments.get("min_lr", 0.0) / base["lr"], "eps": arguments.get("eps", 1e-8) / base["lr"]}
    return {"base_lr": 1.0, **arguments, **bounds}
