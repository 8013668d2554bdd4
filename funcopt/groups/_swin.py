"""The weight-decay rule of Swin Transformer's training code."""

from collections.abc import Iterable
from typing import Any

from funcopt.groups._params import Param, unwrap
from funcopt.groups._rule import Rule


def swin_rules(
    model: Any = None, *, skip: Iterable[str] | None = None, skip_keywords: Iterable[str] | None = None
) -> list[Rule]:
    """No decay for what is one-dimensional, a `.bias`, or named by the model: Swin's `set_weight_decay`.

    Args:
        model: asked for `no_weight_decay()` and `no_weight_decay_keywords()`, if it has these methods.
        skip: exact names instead of the model's.
        skip_keywords: parts of names instead of the model's.

    Returns:
        The rules.

    Example:
        >>> [rule.name for rule in swin_rules(skip_keywords=["relative_position_bias_table"])]
        ['1-D or .bias', 'no_weight_decay']
    """
    names, keywords = no_decay_names(model, skip), no_decay_names(model, skip_keywords, "no_weight_decay_keywords")

    def is_named(param: Param) -> bool:
        return param.name in names or any(keyword in param.name for keyword in keywords)

    return [
        Rule(where=lambda p: p.ndim == 1 or p.name.endswith(".bias"), decay_mult=0.0, name="1-D or .bias"),
        Rule(where=is_named, decay_mult=0.0, name="no_weight_decay"),
    ]


def no_decay_names(model: Any, given: Iterable[str] | None, method: str = "no_weight_decay") -> frozenset[str]:
    """What is given, or else what the model's method says."""
    return frozenset(getattr(unwrap(model), method, tuple)() if given is None else given)
