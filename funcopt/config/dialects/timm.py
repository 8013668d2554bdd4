"""timm's spelling: `create_optimizer_v2(model, "adamw", lr=..., layer_decay=...)` and its argparse names."""

import argparse
import inspect
from collections.abc import Iterator, Mapping
from typing import Any

import jax

from funcopt import _checks
from funcopt._names import nearest
from funcopt.config._registry import OPTIMIZERS
from funcopt.config._spec import OptimizerSpec, Wrapper
from funcopt.config.dialects import timm_schedule
from funcopt.config.dialects.timm_optimizers import Once, rmsproptf, sgdw, takes_once
from funcopt.groups import layer_decay_rules, weight_decay_rules
from funcopt.groups._params import is_tensor, unwrap
from funcopt.transforms import cautious

# timm's names that say more than the algorithm, and its defaults where they are not the algorithm's own.
_NAMES: dict[str, tuple[Any, dict[str, Any]]] = {
    "sgd": ("sgd", {"nesterov": True, "momentum": 0.9}),
    "nesterov": ("sgd", {"nesterov": True, "momentum": 0.9}),
    "momentum": ("sgd", {"nesterov": False, "momentum": 0.9}),
    "sgdw": (sgdw, {"nesterov": True, "momentum": 0.9}),
    "nesterovw": (sgdw, {"nesterov": True, "momentum": 0.9}),
    "adamwlegacy": ("adamw", {}),
    "radamw": ("radam", {"decoupled_weight_decay": True}),
    "adagrad": ("adagrad", {"eps": 1e-8}),
    "rmsprop": ("rmsprop", {"alpha": 0.9, "momentum": 0.9}),
    "rmsproptf": (rmsproptf, {"momentum": 0.9}),
    "adabelief": ("adabelief", {"rectify": False}),
    "radabelief": ("adabelief", {"rectify": True}),
    "adanw": ("adan", {"no_prox": True}),
    "adopt": ("adopt", {"clip_exp": 0.333}),
    "adoptw": ("adopt", {"clip_exp": 0.333, "decouple": True}),
    "adamp": ("adamp", {"wd_ratio": 0.01, "nesterov": True}),
    "sgdp": ("sgdp", {"nesterov": True, "momentum": 0.9}),
    "lambc": ("lamb", {"trust_clip": True}),
    "lambw": ("lamb", {"decoupled_decay": True}),
    "lambcw": ("lamb", {"trust_clip": True, "decoupled_decay": True}),
    "lars": ("lars", {"momentum": 0.9}),
    "larc": ("lars", {"momentum": 0.9, "trust_clip": True}),
    "nlars": ("lars", {"momentum": 0.9, "nesterov": True}),
    "nlarc": ("lars", {"momentum": 0.9, "nesterov": True, "trust_clip": True}),
    "novogradw": ("novograd", {"decoupled_decay": True}),
    "adafactorbv": ("adafactor_bv", {}),
}
# Names of algorithms that are others in timm: its own, or with its own random numbers.
_OTHERS = ("adafactor", "kron", "mars", "muon")
# What a c before the name, or `caution`, makes cautious as here; of others timm masks a part.
_CAUTIOUS = ("adamw", "adopt", "adoptw", "lamb", "lambc", "lambcw", "lambw", "laprop", "lion")
_LOOKAHEAD = "lookahead_"
_ARGPARSE = {"opt_eps": "eps", "opt_betas": "betas", "opt_foreach": "foreach", "opt_args": "opt_args"}
_RENAMED = {"decoupled": "decouple"}
_LAYER_DECAY = {"layer_decay_min_scale": "min_scale", "layer_decay_no_opt_scale": "no_opt_scale"}
# What timm's optimizer_kwargs takes from the arguments of its training script.
_OF_SCRIPT = ("opt", "lr", "weight_decay", "momentum", "layer_decay", *_ARGPARSE, *_LAYER_DECAY)


def matches(cfg: Any) -> bool:
    return isinstance(cfg, str) or (isinstance(cfg, Mapping) and "opt" in cfg)


def of_script(cfg: argparse.Namespace) -> dict[str, Any]:
    """The arguments of a training script that concern the optimizer and its schedule, of the many that it has."""
    known = (*_OF_SCRIPT, *timm_schedule.KEYS)
    return {name: value for name, value in vars(cfg).items() if name in known}


def read(cfg: Any, model: Any) -> OptimizerSpec:
    """The spec of timm's `create_optimizer_v2`: by name, or a mapping of its arguments with `opt` for the name.

    Raises:
        ValueError: for an optimizer that funcopt has not, or has in another form.
    """
    arguments: dict[str, Any] = {"opt": cfg} if isinstance(cfg, str) else dict(cfg)
    if "sched" in arguments:
        arguments = {key: value for key, value in arguments.items() if key not in timm_schedule.KEYS}
    arguments.update(arguments.pop("opt_args", None) or {})
    renamed = {**_ARGPARSE, **_RENAMED}
    arguments = {renamed.get(key, key): value for key, value in arguments.items() if value is not None}
    name = arguments.pop("opt").lower()
    algorithm, defaults = _find(name.removeprefix(_LOOKAHEAD), arguments.pop("caution", False))
    rules = _read_rules(arguments, model)
    known = inspect.signature(algorithm).parameters
    # timm has one set of arguments for all optimizers, and drops these where they do not apply.
    for argument in ("momentum", "betas", "eps"):
        if argument not in known:
            arguments.pop(argument, None)
    values = {"weight_decay": 0.0, **defaults, **arguments}
    once = takes_once(algorithm)
    if once:
        algorithm = Once(
            algorithm, {key: tuple(v) if isinstance(v, list) else v for key, v in values.items() if key in once}
        )
        values = {key: value for key, value in values.items() if key not in once}
    return OptimizerSpec(algorithm, values, rules, wrapper=Wrapper(lookahead=name.startswith(_LOOKAHEAD)))


def _find(name: str, caution: bool) -> tuple[Any, dict[str, Any]]:
    """The algorithm of a name of timm's, and the defaults that go with it."""
    if name not in _NAMES and name not in OPTIMIZERS and name[1:] in _CAUTIOUS and name[0] == "c":
        name, caution = name[1:], True
    if caution:
        if name not in _CAUTIOUS:
            _checks.fail("timm", "caution", f"False but for {', '.join(_CAUTIOUS)}", True)
        algorithm, defaults = _find(name, caution=False)
        return cautious(algorithm), defaults
    known = {*_NAMES, *OPTIMIZERS, *(f"c{own}" for own in _CAUTIOUS)} - {*_OTHERS}
    if name in _OTHERS:
        fix = f"timm's {name} is another algorithm than funcopt's, which is dict(type={name!r}, ...)"
        _checks.fail("timm", "opt", f"one of {', '.join(sorted(known))}", name, fix)
    if name not in _NAMES and name not in OPTIMIZERS:
        _checks.fail("timm", "opt", f"one of {', '.join(sorted(known))}", name, nearest(name, known))
    algorithm, defaults = _NAMES.get(name, (name, {}))
    return (OPTIMIZERS.get(algorithm) if isinstance(algorithm, str) else algorithm), defaults


def _read_rules(arguments: dict[str, Any], model: Any) -> list[Any]:
    exclude_1d = arguments.pop("filter_bias_and_bn", arguments.pop("weight_decay_exclude_1d", True))
    fallback = [*arguments.pop("fallback_list", ())]
    inner = unwrap(model)
    if arguments.pop("fallback_no_weight_decay", False) and hasattr(inner, "no_weight_decay"):
        fallback += inner.no_weight_decay()
    options = {"weight_decay_exclude_1d": exclude_1d, "fallback_list": fallback}
    layer_decay = arguments.pop("layer_decay", None)
    own = {field: arguments.pop(name) for name, field in _LAYER_DECAY.items() if name in arguments}
    if _are_parameters(inner):
        return []
    if layer_decay is not None:
        return layer_decay_rules(inner, layer_decay, **own, **options)
    return weight_decay_rules(inner, **options)


def _are_parameters(model: Any) -> bool:
    """Whether it is parameters or groups of a torch model, which timm passes on as they are."""
    return isinstance(model, Iterator) or (isinstance(model, list) and any(map(is_tensor, jax.tree.leaves(model))))
