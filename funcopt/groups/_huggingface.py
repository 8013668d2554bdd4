"""The weight-decay rule of Hugging Face's Trainer."""

import re

from funcopt.groups._params import Param
from funcopt.groups._rule import Rule

_NORM = re.compile(r"bias|layernorm|rmsnorm|(?:^|\.)norm(?:$|\.)|_norm(?:$|\.)")


def huggingface_rules() -> list[Rule]:
    """No decay in a LayerNorm, nor for what has "bias", "layernorm", "rmsnorm" or a part "norm" in its name.

    Returns:
        The rules.

    Example:
        >>> [rule.name for rule in huggingface_rules()]
        ['bias or norm']
    """

    def stays(param: Param) -> bool:
        return param.is_in("LayerNorm") or bool(_NORM.search(param.name.lower()))

    return [Rule(where=stays, decay_mult=0.0, name="bias or norm")]
