"""MMEngine's spelling: `dict(type="SGD", lr=..., paramwise_cfg=...)`, `optim_wrapper`, and funcopt's own `rules`."""

from collections.abc import Mapping
from typing import Any

from funcopt import _checks
from funcopt.config._read import check_given, check_keys, name_of_type
from funcopt.config._registry import CONSTRUCTORS, OPTIMIZERS
from funcopt.config._spec import OptimizerSpec, Wrapper
from funcopt.groups import Rule, paramwise_rules
from funcopt.groups._params import submodule

_WRAPPERS = ("OptimWrapper", "AmpOptimWrapper")
_CONSTRUCTOR = "DefaultOptimWrapperConstructor"
_WRAPPER_KEYS = ("type", "optimizer", "paramwise_cfg", "clip_grad", "accumulative_counts", "constructor")
# Keys of MMEngine's mixed-precision wrapper: the loss is scaled before the optimizer sees a gradient.
_AMP_KEYS = ("loss_scale", "dtype", "use_fsdp")


def matches(cfg: Any) -> bool:
    return isinstance(cfg, Mapping) and (
        "type" in cfg or "optimizer" in cfg or "optim_wrapper" in cfg or _has_several(cfg)
    )


def _has_several(cfg: Mapping[str, Any]) -> bool:
    """Whether it is a dict of `optim_wrapper`s by name."""
    wrappers = [own for key, own in cfg.items() if key != "constructor"]
    return bool(wrappers) and all(isinstance(own, Mapping) and "optimizer" in own for own in wrappers)


def read(cfg: Mapping[str, Any]) -> OptimizerSpec:
    """The spec of an `optimizer`, an `optim_wrapper`, or a whole config with one of them.

    Raises:
        ValueError: for a key or a type that nothing reads.
    """
    cfg = optim_wrapper_of(cfg)
    if "optimizer" not in cfg:
        return _read_optimizer(cfg, cfg.get("paramwise_cfg"))
    if name_of_type(cfg.get("type", _WRAPPERS[0])) not in _WRAPPERS:
        _checks.fail("optim_wrapper", "type", f"one of {', '.join(_WRAPPERS)}", cfg["type"])
    check_keys("optim_wrapper", cfg, (*_WRAPPER_KEYS, *_AMP_KEYS))
    optimizer = cfg["optimizer"]
    if not isinstance(optimizer, Mapping):
        fix = "give a live optimizer to build_optimizer itself"
        _checks.fail("optim_wrapper", "optimizer", "a config", type(optimizer).__name__, fix)
    spec = _read_optimizer(optimizer, cfg.get("paramwise_cfg", optimizer.get("paramwise_cfg")))
    spec.wrapper = _read_wrapper(cfg.get("clip_grad"), cfg.get("accumulative_counts", 1))
    return spec


def optim_wrapper_of(cfg: Mapping[str, Any]) -> Mapping[str, Any]:
    """The `optim_wrapper` of a whole config, or what is one itself."""
    return cfg.get("optim_wrapper", cfg)


def has_own_constructor(cfg: Mapping[str, Any]) -> bool:
    """Whether the `optim_wrapper` names a constructor that a user has made.

    Raises:
        ValueError: for a name that is not registered, or what is no constructor.
    """
    kind = optim_wrapper_of(cfg).get("constructor", _CONSTRUCTOR)
    if not isinstance(kind, str) and not callable(kind):
        _checks.fail("optim_wrapper", "constructor", "a name or a constructor", kind)
    name = name_of_type(kind)
    found = CONSTRUCTORS.get(name) if isinstance(kind, str) or name in CONSTRUCTORS else kind
    return found is not CONSTRUCTORS.get(_CONSTRUCTOR)


def optim_wrappers_of(cfg: Mapping[str, Any], model: Any) -> dict[str, tuple[dict[str, Any], Any]]:
    """The configs of several optimizers by name of the submodule that each is for, with that submodule; {} for one.

    Raises:
        ValueError: for a name that the model does not have, or what is no config.
    """
    wrappers = {key: own for key, own in optim_wrapper_of(cfg).items() if key != "constructor"}
    if not wrappers or "type" in wrappers or "optimizer" in wrappers:
        return {}
    schedulers = cfg.get("param_scheduler")
    found = {}
    for name, own in wrappers.items():
        if not isinstance(own, Mapping) or not matches(own):
            _checks.fail("optim_wrapper", name, "a config with an optimizer", own)
        config: dict[str, Any] = {"optim_wrapper": own, "train_cfg": cfg.get("train_cfg", {})}
        if schedulers is not None:
            by_name = isinstance(schedulers, Mapping) and "type" not in schedulers
            if by_name and name not in schedulers:
                _checks.fail("param_scheduler", "its keys", f"those of optim_wrapper, {name!r} too", [*schedulers])
            config["param_scheduler"] = schedulers[name] if by_name else schedulers
        found[name] = config, submodule(model, name)
    return found


def _read_optimizer(cfg: Mapping[str, Any], paramwise_cfg: Mapping[str, Any] | None) -> OptimizerSpec:
    keys = ("type", "paramwise_cfg", "rules", "strict", "clip_grad", "accumulative_counts")
    check_given("optimizer", cfg, "type")
    kind = cfg["type"]
    name = name_of_type(kind)
    algorithm = OPTIMIZERS.get(name) if isinstance(kind, str) or name in OPTIMIZERS else kind
    paramwise_cfg = paramwise_cfg or {}
    rules = paramwise_rules(paramwise_cfg, strict=cfg.get("strict", False))
    _check_bases(paramwise_cfg, cfg)
    spec = OptimizerSpec(
        algorithm,
        {name: value for name, value in cfg.items() if name not in keys},
        [*rules, *(Rule(**rule) for rule in cfg.get("rules", ()))],
        "first" if paramwise_cfg.get("bypass_duplicate") else "error",
    )
    spec.wrapper = _read_wrapper(cfg.get("clip_grad"), cfg.get("accumulative_counts", 1))
    return spec


def _check_bases(paramwise_cfg: Mapping[str, Any], cfg: Mapping[str, Any]) -> None:
    """MMEngine's own check: what is multiplied must be in the config."""
    named = [
        *paramwise_cfg,
        *(field for fields in (paramwise_cfg.get("custom_keys") or {}).values() for field in fields),
    ]
    for suffix, base in (("lr_mult", "lr"), ("decay_mult", "weight_decay")):
        for name in named:
            # MMEngine ignores flat_decay_mult without a decay, and so there is nothing to multiply.
            if name.endswith(suffix) and name != "flat_decay_mult" and cfg.get(base) is None:
                _checks.fail("paramwise_cfg", base, f"in the optimizer's config for {name}", None)


def _read_wrapper(clip_grad: Mapping[str, Any] | None, accumulative_counts: int) -> Wrapper:
    """`clip_grad=dict(max_norm=...)`, or `dict(type="value", clip_value=...)`, and the micro-steps of an update."""
    _checks.check_integer("optim_wrapper", "accumulative_counts", accumulative_counts, _checks.AT_LEAST_ONE)
    clip = dict(clip_grad or {})
    kind = clip.pop("type", "norm")
    clip.pop("error_if_nonfinite", None)
    if kind not in ("norm", "value"):
        _checks.fail("clip_grad", "type", "'norm' or 'value'", kind)
    if clip and clip.pop("norm_type", 2) != 2:
        _checks.fail("clip_grad", "norm_type", "2", clip_grad["norm_type"] if clip_grad else None)
    name = "max_norm" if kind == "norm" else "clip_value"
    check_keys("clip_grad", clip, [name])
    if clip_grad and name not in clip:
        _checks.fail("clip_grad", name, "given", None)
    return Wrapper(accumulate=accumulative_counts, **clip)
