"""Swin's spelling: the `TRAIN` part of its yacs tree."""

from collections.abc import Mapping
from typing import Any

from funcopt import _checks
from funcopt.config._read import check_given
from funcopt.config._recipe import Recipe
from funcopt.config._registry import OPTIMIZERS
from funcopt.groups import swin_rules


def matches(cfg: Any) -> bool:
    return isinstance(cfg, Mapping) and "OPTIMIZER" in cfg.get("TRAIN", {})


def read(cfg: Mapping[str, Any], model: Any) -> Recipe:
    """The recipe that Swin's `build_optimizer(config, model)` has: SGD with Nesterov's momentum, or AdamW.

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
    return Recipe(OPTIMIZERS.get(name), values, swin_rules(model))
