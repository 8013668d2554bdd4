"""Optimizers from configs, and configs from optimizers."""

import argparse
import copy
import inspect
from collections.abc import Mapping
from typing import Any

from funcopt import _checks
from funcopt._base import GradientTransformation
from funcopt.config import _mmengine, _scepter, _swin, _timm, _timm_schedule, _torch
from funcopt.config._plateau import as_factor, split_plateau
from funcopt.config._read import is_file, read_config
from funcopt.config._recipe import Recipe
from funcopt.config._registry import CONSTRUCTORS, OPTIMIZERS
from funcopt.config._schedule import build_schedule, build_schedules
from funcopt.groups._algorithms import arguments_of
from funcopt.groups._params import list_params, unwrap


class Optimizers(dict[str, Any]):
    """Several optimizers by name of the submodule that each is for, which step one by one, as MMEngine's
    `OptimWrapperDict`: bridges for torch, transformations of the submodules' parameters for a pytree.
    """

    config: dict[str, Any]

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Sets the gradients of all bridges to None, or zero."""
        for optimizer in self.values():
            optimizer.zero_grad(set_to_none)

    def state_dict(self) -> dict[str, Any]:
        """The state of each bridge by its name."""
        return {name: optimizer.state_dict() for name, optimizer in self.items()}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Loads the state of each bridge.

        Raises:
            ValueError: unless the names are the same.
        """
        if state_dict.keys() != self.keys():
            _checks.fail("Optimizers", "state_dict", f"of {', '.join(self)}", [*state_dict])
        for name, optimizer in self.items():
            optimizer.load_state_dict(state_dict[name])


def build_optimizer(
    cfg: Any, model_or_params: Any = None, *, steps_per_epoch: int | None = None, **hyperparams: Any
) -> Any:
    """An optimizer from a config, in any of these spellings.

    | cfg | as in |
    |---|---|
    | `dict(type="SGD", lr=..., paramwise_cfg=...)`, with `rules` too: dicts of `Rule`'s arguments | MMEngine |
    | `dict(optimizer=..., clip_grad=..., accumulative_counts=...)`, or a config with an `optim_wrapper` | MMEngine |
    | a dict of such dicts by name of a submodule, with a `constructor` or without | MMEngine |
    | an `OPTIMIZER` section (`NAME`, `LEARNING_RATE`, ...), or a config with one | SCEPTER |
    | a tree with `TRAIN.OPTIMIZER` | Swin |
    | "adamw", or `dict(opt="adamw", ...)`, or argparse's namespace; no decay for biases and norms | timm |
    | a class such as `torch.optim.AdamW`, or a function such as `funcopt.adamw` | torch, funcopt |
    | a torch optimizer; its state is taken over | torch |
    | a path to a YAML or JSON file with one of the dicts | |

    Args:
        cfg: the config.
        model_or_params: a torch module, (named) tensors, or a pytree; not needed for a torch optimizer.
        steps_per_epoch: if given, the schedule that a whole config has (`param_scheduler`, `LR_SCHEDULER`, `sched`) is
            part of the optimizer. A `ReduceOnPlateauLR` in it reads `update(..., value=metric)`.
        **hyperparams: what is not in the config, or replaces it. A mapping with a `type` is a schedule.

    Returns:
        For torch parameters a `TorchBridge`; for a pytree a transformation; for several optimizers `Optimizers`, a dict
        of them. What users have registered as a torch optimizer, in SCEPTER's manner, or as a constructor, is built as
        it is.

    Raises:
        ValueError: for an unknown name or key, with the nearest one.

    Example:
        >>> import jax.numpy as jnp
        >>> params = {"w": jnp.ones((2, 2)), "b": jnp.ones(2)}
        >>> tx = build_optimizer({"type": "SGD", "lr": 0.1, "paramwise_cfg": {"bias_lr_mult": 2.0}}, params)
        >>> to_config(tx)
        {'type': 'SGD', 'lr': 0.1, 'paramwise_cfg': {'bias_lr_mult': 2.0}}
    """
    if _torch.is_optimizer(cfg):
        if hyperparams:
            raise ValueError(
                f"build_optimizer: {', '.join(hyperparams)} must be set in the live optimizer that is given"
            )
        if _torch.is_bridge(cfg):
            return cfg
        names = {} if model_or_params is None else {id(p.value): p.name for p in list_params(unwrap(model_or_params))}
        names = {**_torch.own_names(cfg), **names}
        return _with_config(_torch.adopt_optimizer(cfg), _torch.config_of(cfg, names))
    config = _as_config(cfg, hyperparams)
    steps_per_epoch = config.get("steps_per_epoch", steps_per_epoch)
    own_class = _class_in_scepter_s_manner(config)
    if own_class is not None:
        return _with_config(own_class(cfg, logger=None)(model_or_params), config)
    given = config | ({} if steps_per_epoch is None else {"steps_per_epoch": steps_per_epoch})
    if _mmengine.matches(config):
        if _mmengine.has_own_constructor(config):
            return _with_config(_construct(config, model_or_params, steps_per_epoch), given)
        several = _mmengine.optim_wrappers_of(config, model_or_params)
        if several:
            built = {name: build_optimizer(*own, steps_per_epoch=steps_per_epoch) for name, own in several.items()}
            return _with_config(Optimizers(built), given)
    recipe = _read(config, model_or_params)
    if steps_per_epoch is not None:
        _add_schedules(recipe, config, steps_per_epoch)
    built = recipe.build(model_or_params)
    return _with_config(built, given)


def to_config(optimizer: Any) -> dict[str, Any]:
    """The config that builds an optimizer again: `build_optimizer(to_config(optimizer), model)`.

    Args:
        optimizer: what `build_optimizer` has returned.

    Returns:
        A dict of its own; plain data if the config was.

    Raises:
        ValueError: for an optimizer that was not built from a config.
    """
    config = getattr(optimizer, "config", None)
    if config is None:
        raise ValueError("to_config: the optimizer must have been built by build_optimizer, which keeps the config")
    return copy.deepcopy(config)


def _with_config(optimizer: Any, config: dict[str, Any]) -> Any:
    optimizer.config = copy.deepcopy(config)
    return optimizer


def _as_config(cfg: Any, hyperparams: dict[str, Any]) -> dict[str, Any]:
    """The config as a mapping that has all that was given."""
    if isinstance(cfg, GradientTransformation):
        raise TypeError("build_optimizer: a ready transformation is no config; give the function that made it")
    if isinstance(cfg, str) and not is_file(cfg):
        return {"opt": cfg, **hyperparams}
    if callable(cfg) and not isinstance(cfg, Mapping):
        name = cfg.__name__ if getattr(cfg, "__name__", "") in OPTIMIZERS else cfg
        return {"type": name, **hyperparams}
    config = read_config(_timm.of_script(cfg) if isinstance(cfg, argparse.Namespace) else cfg)
    if not isinstance(config, Mapping):
        raise TypeError(f"build_optimizer: cfg must be a config, a name or an optimizer, got {cfg!r}")
    config = dict(config)
    if hyperparams and "type" not in config and "opt" not in config:
        raise ValueError(f"build_optimizer: {', '.join(hyperparams)} must be given in the config, which has sections")
    config |= hyperparams
    kind = config.get("type")
    if isinstance(kind, type) and kind.__name__ in OPTIMIZERS:
        config["type"] = kind.__name__
    return config


def _read(config: dict[str, Any], model: Any) -> Recipe:
    config = {key: value for key, value in config.items() if key != "steps_per_epoch"}
    if _swin.matches(config):
        recipe = _swin.read(config, model)
    elif _scepter.matches(config):
        recipe = _scepter.read(config)
    elif _timm.matches(config):
        recipe = _timm.read(config, model)
    elif _mmengine.matches(config):
        recipe = _mmengine.read(config)
    else:
        raise ValueError(
            "build_optimizer: the config must have one of type, optimizer, optim_wrapper (MMEngine), NAME, OPTIMIZER "
            f"(SCEPTER), TRAIN.OPTIMIZER (Swin), opt (timm), got {', '.join(config) or 'nothing'}"
        )
    for name, value in recipe.hyperparams.items():
        if isinstance(value, Mapping) and "type" in value:
            recipe.hyperparams[name] = build_schedule(value)
    return recipe


def _construct(config: Mapping[str, Any], model: Any, steps_per_epoch: int | None) -> Any:
    if steps_per_epoch is not None:
        fix = "drive its optimizer by SCHEDULES.build(param_scheduler, optimizer=optimizer)"
        _checks.fail("build_optimizer", "steps_per_epoch", "None with a constructor of one's own", steps_per_epoch, fix)
    return CONSTRUCTORS.build(_mmengine.optim_wrapper_of(config), model=model)


def _add_schedules(recipe: Recipe, config: Mapping[str, Any], steps_per_epoch: int) -> None:
    """Puts the schedules of a whole config in the places of the numbers."""
    arguments = {} if _torch.is_optimizer_class(recipe.algorithm) else arguments_of(recipe.algorithm)
    values = {name: p.default for name, p in arguments.items() if p.default is not p.empty} | recipe.hyperparams
    base = {name: value for name, value in values.items() if isinstance(value, int | float)}
    if "param_scheduler" in config:
        schedulers, plateau = split_plateau(config["param_scheduler"])
        if plateau is not None:
            recipe.wrapper.plateau = as_factor(plateau, base)
        if "momentum" not in base and "betas" in values:
            base["momentum"] = values["betas"][0]
        epochs = config.get("train_cfg", {}).get("max_epochs")
        moved: dict[str, Any] = build_schedules(schedulers, base, steps_per_epoch=steps_per_epoch, max_epochs=epochs)
        if "momentum" in moved and "momentum" not in values:
            moved["betas"] = (moved.pop("momentum"), *values["betas"][1:])
        recipe.hyperparams |= moved
    else:
        own = (
            {key: value for key, value in config.items() if key in _timm_schedule.KEYS} if "sched" in config else config
        )
        if "sched" in own or "LR_SCHEDULER" in own or "TRAIN" in own:
            lr = build_schedule(own, base.get("lr"), steps_per_epoch=steps_per_epoch)
            recipe.hyperparams["lr"] = lr


def _class_in_scepter_s_manner(config: Mapping[str, Any]) -> Any:
    """The class of a user's that the config names, if it is one that is made from a config."""
    section = config.get("OPTIMIZER", config)
    name = section.get("NAME", section.get("type"))
    found = OPTIMIZERS.get(name) if name in OPTIMIZERS else name
    return found if inspect.isclass(found) and not _torch.is_optimizer_class(found) else None
