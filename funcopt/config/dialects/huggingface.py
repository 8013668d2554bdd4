"""Hugging Face's spelling: `TrainingArguments`, or a dict of its fields (`optim`, `learning_rate`, `adam_beta1`, ...).

What the Trainer does around its optimizer stays with it: clipping by `max_grad_norm`, and accumulation.
"""

import json
import math
import re
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

from funcopt import _checks
from funcopt._names import nearest
from funcopt.config._read import check_keys
from funcopt.config._registry import OPTIMIZERS
from funcopt.config._spec import OptimizerSpec
from funcopt.config.dialects import huggingface_schedule
from funcopt.groups import Rule, huggingface_rules
from funcopt.groups._params import Param
from funcopt.kinds import Schedule

_DEFAULTS: dict[str, Any] = {
    "optim": "adamw_torch",
    "optim_args": None,
    "optim_target_modules": None,
    "learning_rate": 5e-5,
    "weight_decay": 0.0,
    "adam_beta1": 0.9,
    "adam_beta2": 0.999,
    "adam_epsilon": 1e-8,
    "lr_scheduler_type": "linear",
    "lr_scheduler_kwargs": None,
    "warmup_steps": 0,
    "warmup_ratio": None,
    "max_steps": -1,
    "num_train_epochs": 3.0,
}


def _flag(text: str) -> bool:
    return text.lower() in ("true", "1", "yes")


class _Optim(NamedTuple):
    """What a name stands for."""

    algorithm: str
    takes: tuple[str, ...] = ()  # of what the arguments say: betas, eps, warmup_steps
    options: Mapping[str, Callable[[str], Any]] = MappingProxyType({})  # what `optim_args` may have
    fixed: Mapping[str, Any] = MappingProxyType({})  # where the Trainer's defaults are not the algorithm's
    projects: bool = False  # whether some of the options are for `optim_target_modules` only


_ADAM = ("betas", "eps")
_AVERAGE = {"weight_lr_power": float, "r": float}
_PROJECTION = {"rank": int, "update_proj_gap": int, "scale": float, "proj_type": str}

_NAMES: dict[str, _Optim] = {
    "adamw_torch": _Optim("adamw", _ADAM),
    "adamw_torch_fused": _Optim("adamw", _ADAM),
    "adamw_torch_npu_fused": _Optim("adamw", _ADAM),
    "adamw_torch_xla": _Optim("adamw", _ADAM),
    "adafactor": _Optim("adafactor_hf", fixed={"scale_parameter": False, "relative_step": False}),
    "adagrad": _Optim("adagrad", options={"lr_decay": float, "eps": float}),
    "ademamix": _Optim(
        "ademamix",
        _ADAM,
        {
            "beta1": float,
            "beta2": float,
            "beta3": float,
            "alpha": float,
            "eps": float,
            "t_alpha": int,
            "t_beta3": int,
        },
        {"alpha": 5.0, "beta3": 0.9999},
    ),
    "apollo_adamw": _Optim("apollo", _ADAM, {**_PROJECTION, "proj": str, "scale_type": str}, projects=True),
    "galore_adamw": _Optim("galore", options=_PROJECTION, projects=True),
    "lion_32bit": _Optim("lion", ("betas",)),
    "rmsprop": _Optim("rmsprop", options={"momentum": float, "alpha": float, "eps": float, "centered": _flag}),
    "schedule_free_adamw": _Optim("schedule_free_adamw", (*_ADAM, "warmup_steps"), _AVERAGE),
    "schedule_free_radam": _Optim("schedule_free_radam", _ADAM, _AVERAGE),
    "schedule_free_sgd": _Optim("schedule_free_sgd", ("warmup_steps",), _AVERAGE),
    "sgd": _Optim("sgd", options={"momentum": float, "dampening": float, "nesterov": _flag}),
    "stable_adamw": _Optim("stable_adamw", _ADAM, {"decouple_lr": _flag, "max_lr": float}),
}

# Names that funcopt does not have, and what to use instead.
_INSTEAD: dict[str, dict[str, str]] = {
    "keeps its state in a few bits": {
        "adamw_torch_4bit": "adamw_torch",
        "adamw_torch_8bit": "adamw_torch",
        "adamw_bnb_8bit": "adamw_torch",
        "adamw_8bit": "adamw_torch",
        "ademamix_8bit": "ademamix",
        "lion_8bit": "lion_32bit",
        "paged_adamw_8bit": "adamw_torch",
        "paged_ademamix_8bit": "ademamix",
        "paged_lion_8bit": "lion_32bit",
        "rmsprop_bnb_8bit": "rmsprop",
        "galore_adamw_8bit": "galore_adamw",
        "galore_adamw_8bit_layerwise": "galore_adamw",
    },
    "moves its state to the host's memory, which changes no number": {
        "paged_adamw_32bit": "adamw_torch",
        "paged_ademamix_32bit": "ademamix",
        "paged_lion_32bit": "lion_32bit",
    },
    "updates each layer during the backward pass": {
        "galore_adamw_layerwise": "galore_adamw",
        "galore_adafactor_layerwise": "adafactor",
        "apollo_adamw_layerwise": "apollo_adamw",
        "lomo": "sgd",
        "adalomo": "adafactor",
    },
    "is an algorithm that funcopt does not have": {
        "adamw_anyprecision": "adamw_torch",
        "galore_adafactor": "galore_adamw",
        "grokadamw": "adamw_torch",
        "rmsprop_bnb": "rmsprop",
        "rmsprop_bnb_32bit": "rmsprop",
    },
}


def matches(cfg: Any) -> bool:
    return isinstance(cfg, Mapping) and ("optim" in cfg or "learning_rate" in cfg)


def has_schedule(cfg: Any) -> bool:
    return matches(cfg) or "lr_scheduler_type" in cfg


def of_arguments(cfg: Any) -> Any:
    """The fields of a `TrainingArguments` that concern the optimizer and its schedule; whatever else as it is."""
    if isinstance(cfg, Mapping) or not (hasattr(cfg, "optim") and hasattr(cfg, "learning_rate")):
        return cfg
    return {name: _plain(getattr(cfg, name)) for name in _DEFAULTS if hasattr(cfg, name)}


def _plain(value: Any) -> Any:
    """An enumeration's member as what it stands for."""
    return getattr(value, "value", value)


def _given(cfg: Mapping[str, Any]) -> dict[str, Any]:
    known = {name: _plain(value) for name, value in cfg.items() if name in _DEFAULTS and value is not None}
    return _DEFAULTS | known


def read(cfg: Mapping[str, Any]) -> OptimizerSpec:
    """The spec of what the Trainer's `create_optimizer` makes, with its groups.

    Raises:
        ValueError: for an optimizer that funcopt does not have, with what to use; and for an unknown option.
    """
    given = _given(cfg)
    name = given["optim"]
    if name not in _NAMES:
        reason, other = next(((why, own[name]) for why, own in _INSTEAD.items() if name in own), ("", ""))
        fix = f"it {reason}: use {other!r}" if other else nearest(str(name), _NAMES)
        _checks.fail("TrainingArguments", "optim", f"one of {', '.join(_NAMES)}", name, fix)
    optim = _NAMES[name]
    told = _read_options(name, given["optim_args"], optim.options)
    values = {"lr": given["learning_rate"], **optim.fixed, **_taken(optim, given), **told}
    if optim.algorithm == "ademamix":
        first, second = values["betas"]
        own = (values.pop(field, value) for field, value in (("beta1", first), ("beta2", second), ("beta3", None)))
        values["betas"] = tuple(own)
    if optim.projects:
        return _read_projected(optim, values, given["optim_target_modules"])
    values["weight_decay"] = given["weight_decay"]
    return OptimizerSpec(OPTIMIZERS.get(optim.algorithm), values, huggingface_rules(), tied="first", decayed_first=True)


def _taken(optim: _Optim, given: Mapping[str, Any]) -> dict[str, Any]:
    said = {
        "betas": (given["adam_beta1"], given["adam_beta2"]),
        "eps": given["adam_epsilon"],
        "warmup_steps": given["warmup_steps"],
    }
    return {name: said[name] for name in optim.takes}


def _read_options(name: str, text: str | None, known: Mapping[str, Callable[[str], Any]]) -> dict[str, Any]:
    """`optim_args`, such as "momentum=0.9,nesterov=true". The Trainer's groups have their own weight decay."""
    pairs = dict(item.split("=") for item in (text or "").replace(" ", "").split(",") if item)
    pairs.pop("weight_decay", None)
    check_keys(f"optim_args of {name}", pairs, known)
    return {key: known[key](value) for key, value in pairs.items()}


def _read_projected(optim: _Optim, values: dict[str, Any], modules: Any) -> OptimizerSpec:
    """As the Trainer has it: the options are for the target modules, and nothing decays."""
    if modules is None:
        _checks.fail("TrainingArguments", "optim_target_modules", f"given for {optim.algorithm}", None)

    def is_target(param: Param) -> bool:
        linear = param.leaf in ("weight", "kernel", "w") and param.ndim == 2
        return linear and (param.module is None or param.is_in("Linear", "Dense")) and _is_named(modules, param.layer)

    own = {"rank": 128, **{name: value for name, value in values.items() if name != "lr"}}
    target = Rule(where=is_target, name="optim_target_modules", **own)
    return OptimizerSpec(OPTIMIZERS.get(optim.algorithm), {"lr": values["lr"], "rank": 0}, [target], tied="first")


def _is_named(modules: str | list[str], name: str) -> bool:
    if isinstance(modules, str):
        return modules.replace("_", "-") == "all-linear" or bool(re.fullmatch(modules, name))
    return any(own in name or re.fullmatch(own, name) for own in modules)


def read_schedule(cfg: Mapping[str, Any], base_lr: float | None, steps_per_epoch: int) -> Schedule:
    """The schedule of the Trainer's `create_scheduler`, by the update.

    Args:
        cfg: the arguments.
        base_lr: the learning rate; None for the arguments'.
        steps_per_epoch: updates per epoch, for what has no `max_steps`.
    """
    given = _given(cfg)
    total = given["max_steps"]
    if total <= 0:
        total = math.ceil(given["num_train_epochs"] * steps_per_epoch)
    warmup = given["warmup_ratio"] or given["warmup_steps"]
    first = int(warmup) if warmup >= 1 else math.ceil(total * warmup)
    options = given["lr_scheduler_kwargs"] or {}
    options = json.loads(options) if isinstance(options, str) else options
    base = given["learning_rate"] if base_lr is None else base_lr
    return huggingface_schedule.build(given["lr_scheduler_type"], base, first, total, options)
