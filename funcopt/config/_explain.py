"""What a config comes to for a model, before anything is built."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np

from funcopt._checks import is_schedule
from funcopt._memory import Memory
from funcopt.config._assemble import groups_of
from funcopt.config._build import read_spec
from funcopt.config._spec import Wrapper
from funcopt.groups import Groups, Table
from funcopt.groups._algorithms import arguments_of, name_of
from funcopt.kinds import Schedule
from funcopt.schedules import describe


@dataclasses.dataclass(frozen=True)
class Explanation:
    """A config in the words of what it does; printing it shows all of it.

    Attributes:
        algorithm: the optimizer's name.
        hyperparams: what the config says, schedules included; what it does not say is the algorithm's default.
        groups: the parameters with their settings: `groups.explain(...)` is the table.
        around: what is put around the optimizer: clips, accumulation, lookahead, a plateau; only what is in use.
    """

    algorithm: str
    hyperparams: Mapping[str, Any]
    groups: Groups
    around: Mapping[str, Any]
    _base: Mapping[str, Any]

    @property
    def table(self) -> Table:
        """Which parameter gets what, and by which rules."""
        return self.groups.explain(**self._base)

    def memory(self) -> Memory:
        """What the optimizer's state takes, by state key."""
        return self.groups.memory(**self.hyperparams)

    @property
    def schedules(self) -> dict[str, Schedule]:
        """The hyperparameters that change with the step."""
        return {name: value for name, value in self.hyperparams.items() if is_schedule(value)}

    def text(self, steps: int) -> str:
        """All of it, with the schedules over a number of updates."""
        plain = {name: value for name, value in self.hyperparams.items() if name not in self.schedules}
        shown = ", ".join(f"{name}={value!r}" for name, value in plain.items())
        around = [f"around it: {', '.join(f'{name}={value!r}' for name, value in self.around.items())}"]
        parts = [f"{self.algorithm}({shown})", *(around if self.around else []), "", str(self.table)]
        for name, schedule in self.schedules.items():
            parts += ["", f"{name}, over {steps:,} updates", str(describe(schedule, steps))]
        return "\n".join(parts)

    def __str__(self) -> str:
        return self.text(1000)


def explain(cfg: Any, model: Any, *, steps_per_epoch: int | None = None, **hyperparams: Any) -> Explanation:
    """Says what a config comes to for a model, and builds nothing.

    Args:
        cfg: a config of one optimizer in any of the spellings of `build_optimizer`, but a live optimizer.
        model: a torch module, (named) tensors, or a pytree.
        steps_per_epoch: as in `build_optimizer`: if given, the config's schedule is shown, too.
        **hyperparams: what is not in the config, or replaces it.

    Raises:
        ValueError: as `build_optimizer`.

    Example:
        >>> import jax.numpy as jnp
        >>> params = {"w": jnp.ones((2, 2)), "bias": jnp.ones(2)}
        >>> found = explain({"type": "SGD", "lr": 0.1, "paramwise_cfg": {"bias_lr_mult": 2.0}}, params)
        >>> found.algorithm, [(row.name, row.lr) for row in found.table.rows]
        ('sgd', [('bias', '0.2'), ('w', '0.1')])
    """
    spec = read_spec(cfg, model, steps_per_epoch, hyperparams)
    arguments = arguments_of(spec.algorithm)
    base = {name: spec.hyperparams.get(name, _default(arguments, name)) for name in ("lr", "weight_decay")}
    around = {
        field.name: getattr(spec.wrapper, field.name)
        for field in dataclasses.fields(Wrapper)
        if getattr(spec.wrapper, field.name) != field.default
    }
    return Explanation(name_of(spec.algorithm), dict(spec.hyperparams), groups_of(spec, model), around, base)


def _default(arguments: Mapping[str, Any], name: str) -> Any:
    default = arguments[name].default if name in arguments else 0.0
    return default if isinstance(default, int | float | np.floating) else None
