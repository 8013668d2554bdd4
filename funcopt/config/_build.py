"""Optimizers from configs, and configs from optimizers; what the registries build, and the bridge for live ones."""

import argparse
import copy
import inspect
from collections.abc import Callable, Mapping
from typing import Any

from funcopt import _checks
from funcopt.config._assemble import assemble
from funcopt.config._optimizers import Optimizers
from funcopt.config._read import is_file, read_config
from funcopt.config._registry import CONSTRUCTORS, OPTIMIZERS, SCHEDULES
from funcopt.config._schedule import build_schedule, build_schedules
from funcopt.config._spec import OptimizerSpec
from funcopt.config.dialects import huggingface, mmengine, mmengine_schedule, scepter, swin, timm, timm_schedule
from funcopt.config.dialects.mmengine_plateau import as_factor, split_plateau
from funcopt.config.dialects.torch import (
    adopt_scheduler,
    config_of,
    is_optimizer,
    is_optimizer_class,
    is_scheduler,
    own_names,
    reduce_lr_on_plateau,
)
from funcopt.groups._algorithms import arguments_of
from funcopt.groups._params import list_params, unwrap
from funcopt.rule import GradientTransformation

_KEPT = ("params", "param_names", "name", "lr_mult", "decay_mult", "initial_lr")  # of a live optimizer's groups


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
    | `TrainingArguments`, or a dict of its fields (`optim`, `learning_rate`, ...) | Hugging Face |
    | a class such as `torch.optim.AdamW`, or a function such as `funcopt.adamw` | torch, funcopt |
    | a torch optimizer; its state is taken over | torch |
    | a path to a YAML or JSON file with one of the dicts | |

    Args:
        cfg: the config.
        model_or_params: a torch module, (named) tensors, or a pytree; not needed for a torch optimizer.
        steps_per_epoch: if given, the schedule that a whole config has (`param_scheduler`, `LR_SCHEDULER`, `sched`,
            `lr_scheduler_type`) is part of the optimizer. `ReduceOnPlateauLR` in it reads `update(..., value=metric)`.
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
    if is_optimizer(cfg):
        if hyperparams:
            raise ValueError(
                f"build_optimizer: {', '.join(hyperparams)} must be set in the live optimizer that is given"
            )
        if isinstance(cfg, _torch_bridge().TorchBridge):
            return cfg
        names = {} if model_or_params is None else {id(p.value): p.name for p in list_params(unwrap(model_or_params))}
        return _with_config(_adopt(cfg), config_of(cfg, {**own_names(cfg), **names}))
    config = _as_config(cfg, hyperparams)
    steps_per_epoch = config.get("steps_per_epoch", steps_per_epoch)
    own_class = _class_in_scepter_s_manner(config)
    if own_class is not None:
        return _with_config(own_class(cfg, logger=None)(model_or_params), config)
    given = config | ({} if steps_per_epoch is None else {"steps_per_epoch": steps_per_epoch})
    if mmengine.matches(config):
        if mmengine.has_own_constructor(config):
            return _with_config(_construct(config, model_or_params, steps_per_epoch), given)
        several = mmengine.optim_wrappers_of(config, model_or_params)
        if several:
            built = {name: build_optimizer(*own, steps_per_epoch=steps_per_epoch) for name, own in several.items()}
            return _with_config(Optimizers(built), given)
    return _with_config(assemble(_read(config, model_or_params, steps_per_epoch), model_or_params), given)


def read_spec(cfg: Any, model: Any, steps_per_epoch: int | None, hyperparams: dict[str, Any]) -> OptimizerSpec:
    """What one of these configs says, for a model, and nothing built of it."""
    config = _as_config(cfg, hyperparams)
    return _read(config, model, config.get("steps_per_epoch", steps_per_epoch))


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
    if isinstance(cfg, argparse.Namespace) and hasattr(cfg, "opt"):
        cfg = timm.of_script(cfg)
    config = read_config(huggingface.of_arguments(cfg))
    if not isinstance(config, Mapping):
        raise TypeError(f"build_optimizer: cfg must be a config, a name or an optimizer, got {cfg!r}")
    config = dict(config)
    if hyperparams and "type" not in config and "opt" not in config and not huggingface.matches(config):
        raise ValueError(f"build_optimizer: {', '.join(hyperparams)} must be given in the config, which has sections")
    config |= hyperparams
    kind = config.get("type")
    if isinstance(kind, type) and kind.__name__ in OPTIMIZERS:
        config["type"] = kind.__name__
    return config


def _read(given: dict[str, Any], model: Any, steps_per_epoch: int | None) -> OptimizerSpec:
    config = {key: value for key, value in given.items() if key != "steps_per_epoch"}
    if swin.matches(config):
        spec = swin.read(config, model)
    elif scepter.matches(config):
        spec = scepter.read(config)
    elif timm.matches(config):
        spec = timm.read(config, model)
    elif mmengine.matches(config):
        spec = mmengine.read(config)
    elif huggingface.matches(config):
        spec = huggingface.read(config)
    else:
        raise ValueError(
            "build_optimizer: the config must have one of type, optimizer, optim_wrapper (MMEngine), NAME, OPTIMIZER "
            "(SCEPTER), TRAIN.OPTIMIZER (Swin), opt (timm), optim, learning_rate (Hugging Face), got "
            f"{', '.join(config) or 'nothing'}"
        )
    for name, value in spec.hyperparams.items():
        if isinstance(value, Mapping) and "type" in value:
            spec.hyperparams[name] = build_schedule(value)
    if steps_per_epoch is not None:
        _add_schedules(spec, given, steps_per_epoch)
    return spec


def _construct(config: Mapping[str, Any], model: Any, steps_per_epoch: int | None) -> Any:
    if steps_per_epoch is not None:
        fix = "drive its optimizer by SCHEDULES.build(param_scheduler, optimizer=optimizer)"
        _checks.fail("build_optimizer", "steps_per_epoch", "None with a constructor of one's own", steps_per_epoch, fix)
    return CONSTRUCTORS.build(mmengine.optim_wrapper_of(config), model=model)


def _add_schedules(spec: OptimizerSpec, config: Mapping[str, Any], steps_per_epoch: int) -> None:
    """Puts the schedules of a whole config in the places of the numbers."""
    arguments = {} if is_optimizer_class(spec.algorithm) else arguments_of(spec.algorithm)
    values = {name: p.default for name, p in arguments.items() if p.default is not p.empty} | spec.hyperparams
    base = {name: value for name, value in values.items() if isinstance(value, int | float)}
    if "param_scheduler" in config:
        schedulers, plateau = split_plateau(config["param_scheduler"])
        if plateau is not None:
            spec.wrapper.plateau = as_factor(plateau, base)
        if "momentum" not in base and "betas" in values:
            base["momentum"] = values["betas"][0]
        epochs = config.get("train_cfg", {}).get("max_epochs")
        moved: dict[str, Any] = build_schedules(schedulers, base, steps_per_epoch=steps_per_epoch, max_epochs=epochs)
        if "momentum" in moved and "momentum" not in values:
            moved["betas"] = (moved.pop("momentum"), *values["betas"][1:])
        spec.hyperparams |= moved
    else:
        own = (
            {key: value for key, value in config.items() if key in timm_schedule.KEYS} if "sched" in config else config
        )
        if "sched" in own or "LR_SCHEDULER" in own or "TRAIN" in own or huggingface.matches(own):
            lr = build_schedule(own, base.get("lr"), steps_per_epoch=steps_per_epoch)
            spec.hyperparams["lr"] = lr


def _class_in_scepter_s_manner(config: Mapping[str, Any]) -> Any:
    """The class of a user's that the config names, if it is one that is made from a config."""
    section = config.get("OPTIMIZER", config)
    name = section.get("NAME", section.get("type"))
    found = OPTIMIZERS.get(name) if name in OPTIMIZERS else name
    return found if inspect.isclass(found) and not is_optimizer_class(found) else None


def _torch_bridge() -> Any:
    """The bridge, which loads torch: only where torch's objects or parameters are given."""
    from funcopt import torch_bridge

    return torch_bridge


def _adopt(optimizer: Any) -> Any:
    """A bridge with the groups and the state of a live torch optimizer of torch's own classes, which is left as it is.

    Raises:
        ValueError: for a class that funcopt has no counterpart of, or a differentiable optimizer.
    """
    factory = OPTIMIZERS.get(type(optimizer).__name__)
    keys = getattr(factory, "keys", None)
    if keys is not None and keys.torch_class is not None:
        fix = "build it by name, and load optimizer.state_dict(): others' classes of that name may do something else"
        _checks.fail("build_optimizer", "a live optimizer", "of one of torch's classes", type(optimizer).__name__, fix)
    known = arguments_of(factory)
    for group in optimizer.param_groups:
        if group.get("differentiable"):
            _checks.fail(type(optimizer).__name__, "differentiable", "False", True)
    groups = [{k: v for k, v in group.items() if k in known or k in _KEPT} for group in optimizer.param_groups]
    defaults = {k: v for k, v in optimizer.defaults.items() if k in known}
    bridge = _torch_bridge().TorchBridge(groups, factory, **defaults)
    state = optimizer.state_dict()
    own = bridge.state_dict()["param_groups"]
    bridge.load_state_dict({"state": state["state"], "param_groups": own})
    return bridge


def _drive(optimizer: Any, cfg: Any, **options: Any) -> Any:
    """A torch scheduler that drives an optimizer by a config: a step of it is a step of the schedule.

    A live torch scheduler is copied at the place where it is.
    """
    if is_scheduler(cfg):
        return adopt_scheduler(cfg, optimizer)
    cfg = read_config(cfg)
    plateau = None
    if mmengine_schedule.matches(cfg):
        cfg, plateau = split_plateau(cfg)
    if plateau is not None:
        if cfg:
            fix = "two schedulers of one optimizer would write over each other's learning rate"
            _checks.fail("param_scheduler", "ReduceOnPlateauLR", "alone for torch", f"{len(cfg)} more", fix)
        return reduce_lr_on_plateau(optimizer, plateau)
    group = optimizer.param_groups[0]
    schedule = build_schedule(cfg, float(group.get("initial_lr", group["lr"])), **options)
    return _torch_bridge().LRScheduler(optimizer, schedule)


@OPTIMIZERS.builder
def _build_registered(cfg: Any, *, parameters: Any, logger: Any = None, **options: Any) -> Any:
    del logger  # SCEPTER's; there is nothing to log
    return build_optimizer(cfg, parameters, **options)


@SCHEDULES.builder
def _build_or_drive(
    cfg: Any, base_lr: float | None = None, *, optimizer: Any = None, logger: Any = None, **options: Any
) -> Any:
    del logger
    return build_schedule(cfg, base_lr, **options) if optimizer is None else _drive(optimizer, cfg, **options)


@CONSTRUCTORS.builder
def _build_constructed(cfg: Any, model: Any) -> Any:
    """Builds as MMEngine does: the constructor from the config without the parameter-wise part, which comes second."""
    kind = cfg["constructor"]
    constructor = CONSTRUCTORS.get(kind) if isinstance(kind, str) else kind
    rest = {key: value for key, value in cfg.items() if key not in ("constructor", "paramwise_cfg")}
    return constructor(optim_wrapper_cfg=rest, paramwise_cfg=cfg.get("paramwise_cfg"))(model)


@CONSTRUCTORS.register("MultiOptimWrapperConstructor")
@CONSTRUCTORS.register("DefaultOptimWrapperConstructor")
def _default_constructor(optim_wrapper_cfg: Any, paramwise_cfg: Any = None) -> Callable[[Any], Any]:
    """MMEngine's default: what `build_optimizer` does with a config that names no constructor."""
    rest = {key: value for key, value in optim_wrapper_cfg.items() if key != "constructor"}
    own = {} if paramwise_cfg is None else {"paramwise_cfg": paramwise_cfg}
    return lambda model: build_optimizer({"optim_wrapper": {**rest, **own}}, model)
