"""MMEngine's `paramwise_cfg` as rules.

MMEngine gives a parameter the settings of the longest custom key that its name contains, and then of nothing else.
Other parameters get, each field from the first that applies: the decay of norms, of biases, of depthwise convolutions,
of flat parameters; the learning rate of deformable convolutions' offsets, of biases.
"""

import re
from collections.abc import Callable, Mapping
from typing import Any

from funcopt import _checks
from funcopt._names import nearest
from funcopt.groups._params import Param
from funcopt.groups._rule import Rule

_KEYS = (
    "bias_lr_mult",
    "bias_decay_mult",
    "norm_decay_mult",
    "dwconv_decay_mult",
    "dcn_offset_lr_mult",
    "flat_decay_mult",
    "bypass_duplicate",
    "custom_keys",
)


def paramwise_rules(paramwise_cfg: Mapping[str, Any], *, strict: bool = False) -> list[Rule]:
    """Rules of MMEngine's `paramwise_cfg`.

    `bypass_duplicate` is no rule: it is `group_params(..., tied="first")`.

    Args:
        paramwise_cfg: `bias_lr_mult`, `bias_decay_mult`, `norm_decay_mult`, `dwconv_decay_mult`, `dcn_offset_lr_mult`,
            `flat_decay_mult` and `custom_keys`, as MMEngine's default constructor reads them.
        strict: merge custom keys with the rest, and with each other, field by field, so that the longest key wins for
            the fields that it has; each key must match something then. By default all is as in MMEngine.

    Returns:
        The rules.

    Raises:
        ValueError: for an unknown key, or a negative multiplier.

    Example:
        >>> rules = paramwise_rules({"norm_decay_mult": 0.0, "custom_keys": {"head": {"lr_mult": 10.0}}})
        >>> [rule.name for rule in rules]
        ['norm_decay_mult', "custom_keys['head']"]
    """
    for key in paramwise_cfg:
        if key not in _KEYS:
            _checks.fail("paramwise_cfg", "each key", f"one of {', '.join(_KEYS)}", key, nearest(key, _KEYS))
    custom = paramwise_cfg.get("custom_keys") or {}
    keys = sorted(sorted(custom), key=len, reverse=True)
    patterns = {key: re.compile(re.escape(key)) for key in keys}

    def key_of(param: Param) -> str | None:
        return next((key for key in keys if key in _full_name(param)), None)

    rules = _rules_by_type(paramwise_cfg, lambda param: strict or key_of(param) is None)
    for key in reversed(keys):
        rule = Rule(
            where=(lambda p, key=key: key in _full_name(p)) if strict else (lambda p, key=key: key_of(p) == key),
            name=f"custom_keys[{key!r}]",
            optional=not strict,
            **_fields(custom[key]),
        )
        rule.patterns[key] = patterns[key]
        rules.append(rule)
    return rules


def _full_name(param: Param) -> str:
    """The name as MMEngine matches it, which starts with a dot at the top."""
    return param.name if param.layer else f".{param.name}"


def _fields(settings: Mapping[str, Any]) -> dict[str, Any]:
    """A custom key's settings; a value of its own makes the multiplier of it idle, as in MMEngine."""
    idle = {mult for mult, name in (("lr_mult", "lr"), ("decay_mult", "weight_decay")) if name in settings}
    return {name: value for name, value in settings.items() if name not in idle}


def _rules_by_type(cfg: Mapping[str, Any], is_free: Callable[[Param], bool]) -> list[Rule]:
    """One rule per multiplier, the ones that win last."""
    table: list[tuple[str, str, Callable[[Param], bool]]] = [
        ("flat_decay_mult", "decay_mult", lambda p: p.ndim == 1 and not _in_deformable(p)),
        ("dwconv_decay_mult", "decay_mult", _is_depthwise),
        ("bias_decay_mult", "decay_mult", lambda p: p.leaf == "bias" and not _in_deformable(p)),
        ("norm_decay_mult", "decay_mult", _is_norm),
        ("bias_lr_mult", "lr_mult", lambda p: p.leaf == "bias" and not _is_norm(p) and not _in_deformable(p)),
        ("dcn_offset_lr_mult", "lr_mult", _is_offset),
    ]
    return [
        Rule(where=lambda p, selects=selects: is_free(p) and selects(p), name=key, **{field: cfg[key]})
        for key, field, selects in table
        if cfg.get(key) is not None
    ]


def _is_norm(param: Param) -> bool:
    if param.module is None:
        return "norm" in param.kinds
    return param.is_in("_BatchNorm", "_InstanceNorm", "BatchNorm", "InstanceNorm", "GroupNorm", "LayerNorm")


def _is_depthwise(param: Param) -> bool:
    if param.module is None:
        return "depthwise" in param.kinds
    # MMEngine's own test, which one input channel without groups passes as well.
    return param.is_in("Conv2d") and param.module.in_channels == param.module.groups


def _in_deformable(param: Param) -> bool:
    return (
        "dcn_offset" in param.kinds if param.parent is None else param.is_below("DeformConv2d", "ModulatedDeformConv2d")
    )


def _is_offset(param: Param) -> bool:
    return "conv_offset" in param.layer and _in_deformable(param) and (param.module is None or param.is_in("Conv2d"))
