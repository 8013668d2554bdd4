"""SCEPTER's spelling: upper-case `OPTIMIZER` sections.

SCEPTER reads the keys that it knows and passes over others; here these are errors. Where its defaults are not torch's,
they apply.
"""

from collections.abc import Mapping
from typing import Any

from funcopt.config._read import check_given
from funcopt.config._recipe import Recipe
from funcopt.config._registry import OPTIMIZERS
from funcopt.groups._names import simplify

# As its classes have them, where torch's are others.
_DEFAULTS: dict[str, dict[str, Any]] = {
    "adam": {"lr": 1e-2, "eps": 1e-10},
    "adamw": {"weight_decay": 0.0},
    "adadelta": {"rho": 0.0},
}
_RENAMED = {"LEARNING_RATE": "lr", "LEARNING_RATE_DECAY": "lr_decay"}


def matches(cfg: Any) -> bool:
    return isinstance(cfg, Mapping) and ("NAME" in cfg or "OPTIMIZER" in cfg)


def read(cfg: Mapping[str, Any]) -> Recipe:
    """The recipe of an `OPTIMIZER` section, or of a config that has one."""
    section = cfg.get("OPTIMIZER", cfg)
    check_given("OPTIMIZER", section, "NAME")
    given = {_RENAMED.get(key) or key.lower(): value for key, value in section.items() if key != "NAME"}
    return Recipe(OPTIMIZERS.get(section["NAME"]), {**_DEFAULTS.get(simplify(section["NAME"]), {}), **given})
