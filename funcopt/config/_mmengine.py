"""MMEngine's spelling: `dict(type="SGD", lr=..., paramwise_cfg=...)`, `optim_wrapper`, and funcopt's own `rules`."""

from collections.abc import Mapping
from typing import Any

from funcopt import _checks
from funcopt.config._read import check_keys
from funcopt.config._recipe import Recipe, Wrapper
from funcopt.config._registry import OPTIMIZERS
from funcopt.groups import Rule, paramwise_rules

_WRAPPERS = ("OptimWrapper", "AmpOptimWrapper")
_WRAPPER_KEYS = ("type", "optimizer", "paramwise_cfg", "clip_grad", "accumulative_counts", "constructor")
# Keys of MMEngine's mixed-precision wrapper: the loss is scaled before the optimizer sees a gradient.
_AMP_KEYS = ("loss_scale", "dtype", "use_fsdp")


def matches(cfg: Any) -> bool:
    return isinstance(cfg, Mapping) and ("type" in cfg or "optimizer" in cfg or "optim_wrapper" in cfg)


def read(cfg: Mapping[str, Any]) -> Recipe:
    """The recipe of an `optimizer`, an `optim_wrapper`, or a whole config with one of them.

    Raises:
        ValueError: for a key or a type that nothing reads.
    """
    if "optim_wrapper" in cfg:
        cfg = cfg["optim_wrapper"]
    if "optimizer" not in cfg:
        return _read_optimizer(cfg, cfg.get("paramwise_cfg"))
    if "type" in cfg and cfg["type"] not in _WRAPPERS:
        _checks.fail("optim_wrapper", "type", f"one of {', '.join(_WRAPPERS)}", cfg["type"])
    check_keys("optim_wrapper", cfg, (*_WRAPPER_KEYS, *_AMP_KEYS))
    if cfg.get("constructor", "DefaultOptimWrapperConstructor") != "DefaultOptimWrapperConstructor":
        _checks.fail("optim_wrapper", "constructor", "'DefaultOptimWrapperConstructor'", cfg["constructor"])
    optimizer = cfg["optimizer"]
    recipe = _read_optimizer(optimizer, cfg.get("paramwise_cfg", optimizer.get("paramwise_cfg")))
    recipe.wrapper = _read_wrapper(cfg.get("clip_grad"), cfg.get("accumulative_counts", 1))
    return recipe


def _read_optimizer(cfg: Mapping[str, Any], paramwise_cfg: Mapping[str, Any] | None) -> Recipe:
    keys = ("type", "paramwise_cfg", "rules", "strict", "clip_grad", "accumulative_counts")
    kind = cfg["type"]
    algorithm = OPTIMIZERS.get(kind) if isinstance(kind, str) else kind
    paramwise_cfg = paramwise_cfg or {}
    rules = paramwise_rules(paramwise_cfg, strict=cfg.get("strict", False))
    _check_bases(paramwise_cfg, cfg)
    recipe = Recipe(
        algorithm,
        {name: value for name, value in cfg.items() if name not in keys},
        [*rules, *(Rule(**rule) for rule in cfg.get("rules", ()))],
        "first" if paramwise_cfg.get("bypass_duplicate") else "error",
    )
    recipe.wrapper = _read_wrapper(cfg.get("clip_grad"), cfg.get("accumulative_counts", 1))
    return recipe


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
