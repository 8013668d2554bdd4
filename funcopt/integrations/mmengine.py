"""funcopt's optimizers and schedules in MMEngine's registries: `dict(type="funcopt-adamw", lr=1e-3)` in a config."""

import functools
from collections.abc import Callable, Mapping
from typing import Any

from mmengine.optim.scheduler.param_scheduler import (  # pyright: ignore[reportMissingImports]
    INF,
    OptimizerType,
    _ParamScheduler,
)
from mmengine.registry import OPTIMIZERS, PARAM_SCHEDULERS, Registry  # pyright: ignore[reportMissingImports]

from funcopt.config import build_schedule
from funcopt.groups._algorithms import Factory
from funcopt.integrations._recipes import PREFIX, maker, recipes_or_own, refuse_taken
from funcopt.kinds import Schedule
from funcopt.torch_bridge import TorchBridge

_OWNER = "funcopt.integrations.mmengine.register"


class ScheduledParam(_ParamScheduler):
    """One of funcopt's schedules as an entry of `param_scheduler`.

    Each group gets the schedule of its own initial value, as from MMEngine's schedulers.

    Args:
        optimizer: MMEngine's Runner gives it.
        schedule: what `funcopt.config.build_schedule` reads, such as `dict(type="warmup_cosine", warmup_steps=5,
            total_steps=100)`; or a function of the step, whose value is then that of all groups.
        param_name: the hyperparameter.
        begin: the step, an epoch or an iteration, at which the schedule begins, with its value at 0.
        end: the step at which the hyperparameter is left as it is.
        last_step: -1, or where to go on without a checkpoint.
        by_epoch: whether steps are epochs.
        verbose: whether each value is logged.
    """

    def __init__(
        self,
        optimizer: OptimizerType,
        schedule: Any,
        param_name: str = "lr",
        begin: int = 0,
        end: int = INF,
        last_step: int = -1,
        by_epoch: bool = True,
        verbose: bool = False,
    ) -> None:
        self._schedule = schedule
        self._schedules: dict[float, Schedule] = {}  # by initial value
        super().__init__(optimizer, param_name, begin, end, last_step, by_epoch, verbose)

    def _get_value(self) -> list[float]:
        for base in {*self.base_values} - {*self._schedules}:
            self._schedules[base] = build_schedule(self._schedule, base)
        return [float(self._schedules[base](self.last_step)) for base in self.base_values]

    def state_dict(self) -> dict[str, Any]:
        """What is needed to go on: counts and initial values. Schedules are functions, which the config gives anew."""
        return {name: value for name, value in super().state_dict().items() if not name.startswith("_schedule")}


def register(
    recipes: Mapping[str, Factory] | None = None, *, prefix: str = PREFIX, force: bool = False
) -> tuple[str, ...]:
    """Gives MMEngine's `OPTIMIZERS` and `PARAM_SCHEDULERS` further names.

    MMEngine's constructor multiplies `lr` and `weight_decay` by `paramwise_cfg` itself: a group that has these has no
    live `lr_mult` and `decay_mult`.

    Args:
        recipes: factories by name, such as `{"mine": recipe}`; None for all of funcopt's optimizers.
        prefix: what the names begin with, `schedule`, that of `ScheduledParam`, included; "" for nothing.
        force: whether to replace what has a name already.

    Returns:
        The names of the optimizers.

    Raises:
        ValueError: for a name that is taken.

    Example:
        >>> import torch
        >>> from mmengine.optim import build_optim_wrapper
        >>> from funcopt.integrations.mmengine import register
        >>> names = register()
        >>> cfg = dict(optimizer=dict(type="funcopt-lion", lr=1e-4))
        >>> wrapper = build_optim_wrapper(torch.nn.Linear(2, 1), cfg)
        >>> type(wrapper.optimizer).__name__
        'TorchBridge'
    """
    makers = {f"{prefix}{name}": _maker(factory) for name, factory in recipes_or_own(recipes).items()}
    wanted: list[tuple[Registry, str, Any]] = [(OPTIMIZERS, name, make) for name, make in makers.items()]
    wanted.append((PARAM_SCHEDULERS, f"{prefix}schedule", ScheduledParam))
    for registry, name, module in wanted:
        if registry.module_dict.get(name, module) is not module and not force:
            refuse_taken(_OWNER, name)
    for registry, name, module in wanted:
        registry.register_module(name, force=True, module=module)
    return tuple(makers)


@functools.cache
def _maker(factory: Factory) -> Callable[..., TorchBridge]:
    make = maker(factory)

    def make_from_groups(params: Any, **hyperparams: Any) -> TorchBridge:
        return make([_without_multipliers(p) if isinstance(p, dict) else p for p in params], **hyperparams)

    return make_from_groups


def _without_multipliers(group: dict[str, Any]) -> dict[str, Any]:
    """A group without the factors that MMEngine leaves beside the products, and the bridge would multiply by again."""
    done = {f"{name}_mult" for name, value in (("lr", "lr"), ("decay", "weight_decay")) if value in group}
    return {key: value for key, value in group.items() if key not in done}
