"""What every spelling of a config comes to, and the building of it."""

import dataclasses
from typing import Any, Literal

import optax

from funcopt import _checks
from funcopt._base import GradientTransformation, GradientTransformationExtraArgs, chain
from funcopt._checks import is_schedule
from funcopt.config import _torch
from funcopt.config._timm_optimizers import lookahead
from funcopt.groups import Groups, Rule, group_params
from funcopt.groups._algorithms import arguments_of, name_of
from funcopt.groups._names import nearest
from funcopt.transforms import clip_by_global_norm, clip_by_value, reduce_lr_on_plateau


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

    def __call__(self, tx: GradientTransformation) -> GradientTransformationExtraArgs:
        clips = [clip_by_global_norm(self.max_norm)] if self.max_norm is not None else []
        clips += [clip_by_value(self.clip_value)] if self.clip_value is not None else []
        tx = chain(*clips, tx, *([lookahead()] if self.lookahead else []))
        if self.accumulate > 1:
            # In the parameters' dtype, as torch accumulates into `grad`; optax's default is float32.
            multi_steps = optax.MultiSteps(tx, self.accumulate, accumulator_dtype=None)  # pyright: ignore[reportArgumentType]
            tx = multi_steps.gradient_transformation()
        if self.plateau is not None:
            # Behind the accumulation, which hides the metrics of micro-steps that do not update.
            tx = chain(tx, reduce_lr_on_plateau(**self.plateau))
        return optax.with_extra_args_support(tx)


@dataclasses.dataclass
class Recipe:
    """An optimizer's definition: the algorithm, its hyperparameters, the rules for groups, what is put around it."""

    algorithm: Any
    hyperparams: dict[str, Any]
    rules: list[Rule] = dataclasses.field(default_factory=list)
    tied: Literal["error", "first"] = "error"
    wrapper: Wrapper = dataclasses.field(default_factory=Wrapper)

    def build(self, model: Any) -> Any:
        """The optimizer: a bridge for torch parameters, a transformation for a pytree; a torch class as it is."""
        values = {name: value for name, value in self.hyperparams.items() if name not in _torch.IMPLEMENTATION}
        model, own_rules = _read_groups(model)
        if _torch.is_optimizer_class(self.algorithm):
            return self._build_class(group_params(model, [*self.rules, *own_rules], tied=self.tied))
        groups = group_params(model, [*self.rules, *own_rules], self.algorithm, tied=self.tied)
        known = {name for factory in groups.algorithms.values() for name in arguments_of(factory)}
        for name in values:
            if name not in known:
                owner = name_of(self.algorithm)
                _checks.fail(owner, "each key", f"one of {', '.join(sorted(known))}", name, nearest(name, known))
        if groups.is_torch and self.wrapper.plateau is not None:
            raise ValueError(
                "param_scheduler: for torch, what follows a metric must be a scheduler of its own, got "
                "ReduceOnPlateauLR in the list; leave it out and use SCHEDULES.build([that one], optimizer=optimizer)"
            )
        values = {name: tuple(value) if isinstance(value, list) else value for name, value in values.items()}
        if not groups.is_torch:
            values = {name: _by_microstep(value, self.wrapper.accumulate) for name, value in values.items()}
        wrap = None if self.wrapper == Wrapper() else self.wrapper
        return groups.optimizer(wrap=wrap, **values)

    def _build_class(self, groups: Groups) -> Any:
        if self.wrapper != Wrapper():
            raise ValueError(f"{self.algorithm.__name__}: clip_grad and accumulative_counts must be left to the loop")
        base = {name: self.hyperparams.get(name) for name in ("lr", "weight_decay")}
        return self.algorithm(groups.param_groups(**base), **self.hyperparams)


def _by_microstep(value: Any, count: int) -> Any:
    """A schedule of micro-steps, which configs count, for an optimizer inside MultiSteps, which counts updates."""
    if isinstance(value, tuple):
        return tuple(_by_microstep(item, count) for item in value)
    return (lambda step: value(step * count + count - 1)) if is_schedule(value) and count > 1 else value


def _read_groups(model: Any) -> tuple[Any, list[Rule]]:
    """Parameters that come in torch's groups, as named parameters and a rule for each group."""
    if not isinstance(model, list) or not all(isinstance(group, dict) and "params" in group for group in model):
        return model, []
    pairs, rules = [], []
    for i, group in enumerate(model):
        fields = {name: value for name, value in group.items() if name not in ("params", "param_names", "name")}
        own = [item if isinstance(item, tuple) else (f"{i}.{j}", item) for j, item in enumerate(group["params"])]
        if "param_names" in group:
            own = list(zip(group["param_names"], group["params"], strict=True))
        names = frozenset(name for name, _ in own)
        pairs += own
        label = group.get("name", f"group {i}")
        rules.append(Rule(where=lambda p, names=names: p.name in names, name=label, group=group.get("name"), **fields))
    return pairs, rules
