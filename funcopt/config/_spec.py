"""What every spelling of a config comes to: data, which `_assemble` makes an optimizer of."""

import dataclasses
from typing import Any, Literal

from funcopt.groups import Rule


@dataclasses.dataclass
class Wrapper:
    """What is put around an optimizer.

    Attributes:
        max_norm: clip of the gradients' global norm.
        clip_value: clip of each gradient.
        accumulate: micro-steps per update.
        lookahead: whether the weights go part of the way back every few updates.
        plateau: arguments of `reduce_lr_on_plateau`, if the learning rate follows a metric.
    """

    max_norm: float | None = None
    clip_value: float | None = None
    accumulate: int = 1
    lookahead: bool = False
    plateau: dict[str, Any] | None = None


@dataclasses.dataclass
class OptimizerSpec:
    """An optimizer's definition: the algorithm, its hyperparameters, the rules for groups, what is put around it.

    `decayed_first`: whether the reference's groups are those with weight decay and then those without, whatever the
    model has first; checkpoints load by position.
    """

    algorithm: Any
    hyperparams: dict[str, Any]
    rules: list[Rule] = dataclasses.field(default_factory=list)
    tied: Literal["error", "first"] = "error"
    wrapper: Wrapper = dataclasses.field(default_factory=Wrapper)
    decayed_first: bool = False
