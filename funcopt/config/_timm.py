"""timm's spelling: `create_optimizer_v2(model, "adamw", lr=..., layer_decay=...)` and its argparse names."""

from collections.abc import Iterator, Mapping
from typing import Any

import jax

from funcopt import _checks
from funcopt.config._recipe import Recipe
from funcopt.config._registry import OPTIMIZERS
from funcopt.groups import layer_decay_rules, weight_decay_rules
from funcopt.groups._algorithms import arguments_of
from funcopt.groups._params import is_tensor, unwrap

# timm's names that say more than the algorithm, and its defaults where they are not the algorithm's own.
_NAMES: dict[str, tuple[str, dict[str, Any]]] = {
    "sgd": ("sgd", {"nesterov": True, "momentum": 0.9}),
    "nesterov": ("sgd", {"nesterov": True, "momentum": 0.9}),
    "momentum": ("sgd", {"nesterov": False, "momentum": 0.9}),
    "radamw": ("radam", {"decoupled_weight_decay": True}),
    "adagrad": ("adagrad", {"eps": 1e-8}),
    "rmsprop": ("rmsprop", {"alpha": 0.9, "momentum": 0.9}),
}
# Names that are timm's own algorithms there, not torch's.
_OTHERS = ("adafactor", "muon")
_ARGPARSE = {"opt_eps": "eps", "opt_betas": "betas", "opt_foreach": "foreach"}
_LAYER_DECAY = {"layer_decay_min_scale": "min_scale", "layer_decay_no_opt_scale": "no_opt_scale"}


def matches(cfg: Any) -> bool:
    return isinstance(cfg, str) or (isinstance(cfg, Mapping) and "opt" in cfg)


def read(cfg: Any, model: Any) -> Recipe:
    """The recipe of timm's `create_optimizer_v2`: by name, or a mapping of its arguments with `opt` for the name.

    Raises:
        ValueError: for an optimizer that funcopt has not, or has in another form.
    """
    arguments: dict[str, Any] = {"opt": cfg} if isinstance(cfg, str) else dict(cfg)
    arguments.update(arguments.pop("opt_args", None) or {})
    arguments = {_ARGPARSE.get(key, key): value for key, value in arguments.items() if value is not None}
    name = arguments.pop("opt").lower()
    if name in _OTHERS or "_" in name:
        _checks.fail(
            "timm", "opt", "an optimizer of torch's, without a prefix", name, "build funcopt's by dict(type=...)"
        )
    own, defaults = _NAMES.get(name, (name, {}))
    algorithm = OPTIMIZERS.get(own)
    rules = _read_rules(arguments, model)
    known = arguments_of(algorithm)
    # timm has one set of arguments for all optimizers, and drops these where they do not apply.
    for argument in ("momentum", "betas", "eps"):
        if argument not in known:
            arguments.pop(argument, None)
    return Recipe(algorithm, {"weight_decay": 0.0, **defaults, **arguments}, rules)


def _read_rules(arguments: dict[str, Any], model: Any) -> list[Any]:
    exclude_1d = arguments.pop("filter_bias_and_bn", True)
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
