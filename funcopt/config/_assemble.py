"""Optimizers from what was read of a config."""

import functools
from typing import Any

import optax

from funcopt import _checks
from funcopt._checks import is_schedule
from funcopt._names import nearest
from funcopt.config._spec import OptimizerSpec, Wrapper
from funcopt.config.dialects.torch import IMPLEMENTATION, is_optimizer_class
from funcopt.groups import Groups, Rule, group_params
from funcopt.groups._algorithms import arguments_of, name_of
from funcopt.rule import GradientTransformation, GradientTransformationExtraArgs, chain
from funcopt.transforms import clip_by_global_norm, clip_by_value, lookahead_sync, reduce_lr_on_plateau


def assemble(spec: OptimizerSpec, model: Any) -> Any:
    """The optimizer: a bridge for torch parameters, a transformation for a pytree; a torch class as it is."""
    values = {name: value for name, value in spec.hyperparams.items() if name not in IMPLEMENTATION}
    groups = groups_of(spec, model)
    if is_optimizer_class(spec.algorithm):
        return _assemble_class(spec, groups)
    known = {name for factory in groups.algorithms.values() for name in arguments_of(factory)}
    for name in values:
        if name not in known:
            owner = name_of(spec.algorithm)
            _checks.fail(owner, "each key", f"one of {', '.join(sorted(known))}", name, nearest(name, known))
    if groups.is_torch and spec.wrapper.plateau is not None:
        raise ValueError(
            "param_scheduler: for torch, what follows a metric must be a scheduler of its own, got "
            "ReduceOnPlateauLR in the list; leave it out and use SCHEDULES.build([that one], optimizer=optimizer)"
        )
    values = {name: tuple(value) if isinstance(value, list) else value for name, value in values.items()}
    if not groups.is_torch:
        values = {name: _by_microstep(value, spec.wrapper.accumulate) for name, value in values.items()}
    wrap = None if spec.wrapper == Wrapper() else functools.partial(_wrap, spec.wrapper)
    return groups.optimizer(wrap=wrap, **values)


def groups_of(spec: OptimizerSpec, model: Any) -> Groups:
    """A model's parameters under the rules of what was read, and those of its own groups."""
    model, own_rules = _read_groups(model)
    algorithm = None if is_optimizer_class(spec.algorithm) else spec.algorithm
    groups = group_params(model, [*spec.rules, *own_rules], algorithm, tied=spec.tied)
    if spec.decayed_first:
        groups.groups.sort(key=lambda group: "decay_mult" in group.settings)
    return groups


def _assemble_class(spec: OptimizerSpec, groups: Groups) -> Any:
    if spec.wrapper != Wrapper():
        raise ValueError(f"{spec.algorithm.__name__}: clip_grad and accumulative_counts must be left to the loop")
    base = {name: spec.hyperparams.get(name) for name in ("lr", "weight_decay")}
    return spec.algorithm(groups.param_groups(**base), **spec.hyperparams)


def _wrap(wrapper: Wrapper, tx: GradientTransformation) -> GradientTransformationExtraArgs:
    clips = [clip_by_global_norm(wrapper.max_norm)] if wrapper.max_norm is not None else []
    clips += [clip_by_value(wrapper.clip_value)] if wrapper.clip_value is not None else []
    tx = chain(*clips, tx, *([lookahead_sync(slow_from="first_sync")] if wrapper.lookahead else []))
    if wrapper.accumulate > 1:
        # In the parameters' dtype, as torch accumulates into `grad`; optax's default is float32.
        multi_steps = optax.MultiSteps(tx, wrapper.accumulate, accumulator_dtype=None)  # pyright: ignore[reportArgumentType]
        tx = multi_steps.gradient_transformation()
    if wrapper.plateau is not None:
        # Behind the accumulation, which hides the metrics of micro-steps that do not update.
        tx = chain(tx, reduce_lr_on_plateau(**wrapper.plateau))
    return optax.with_extra_args_support(tx)


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
