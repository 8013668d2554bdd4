"""A schedule as a torch scheduler: what writes hyperparameters into the groups of a torch optimizer."""

import difflib
import numbers
from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

import torch

from funcopt import _checks
from funcopt._checks import is_schedule
from funcopt._tree import at_step
from funcopt.kinds import Schedule
from funcopt.torch_bridge._bridge import TorchBridge

Value: TypeAlias = Schedule | float | tuple[Schedule | float, ...]
"""What one group gets; a tuple is the value of a hyperparameter such as `betas`."""

_OWNER = "LRScheduler"

# As a group's `lr_mult` and `decay_mult` do; a ratio between momenta or betas would mean nothing.
_KEEP_RATIOS = ("lr", "weight_decay")


class LRScheduler(torch.optim.lr_scheduler.LRScheduler):
    """Drives any torch optimizer, `TorchBridge` included, by schedules: at `last_epoch` a hyperparameter is
    `schedule(last_epoch)`, whatever was before.

    One schedule for all groups sets the first group's value. Groups that differ in `lr` or `weight_decay` keep their
    ratio to the first one's initial value, as under torch's schedulers: with `lr` 1e-3 and 1e-4 the second group gets a
    tenth of the schedule, and a group without decay stays without. Any other hyperparameter is the same in all groups.
    A list gives each group its own schedule, and no ratio applies.

    A group that is added later gets what one schedule gives, from the next `step()` on; a list leaves it alone.

    Args:
        optimizer: any torch optimizer. On `TorchBridge` the groups' `lr_mult` and `decay_mult` come on top.
        schedule: a schedule of `lr`, or a mapping from hyperparameters to schedules. In place of a schedule there may
            be a number, a tuple of both for a hyperparameter that is a tuple, or a list with one of these per group.
        last_epoch: -1 to start, which keeps an `initial_lr` that groups have; on going on without a state_dict, the
            number of steps done, less 1.

    Raises:
        TypeError: for an `optimizer` that is none, or a value that is no schedule.
        ValueError: for a hyperparameter that a group lacks or `TorchBridge` already has a schedule of, a list of the
            wrong length, or a first group at 0 to which the others have no ratio.
        KeyError: if `last_epoch` is not -1 and a group has no `initial_lr`, as in torch.

    Example:
        >>> import funcopt, torch
        >>> from funcopt.schedules import warmup_cosine
        >>> optimizer = torch.optim.AdamW([torch.nn.Parameter(torch.ones(2))], lr=1e-3)
        >>> schedule = warmup_cosine(1e-3, warmup_steps=4, total_steps=100)
        >>> scheduler = funcopt.torch_bridge.LRScheduler(optimizer, {"lr": schedule, "betas": (0.9, lambda step: 0.99)})
        >>> for _ in range(2):
        ...     optimizer.step()
        ...     scheduler.step()
        >>> scheduler.get_last_lr(), optimizer.param_groups[0]["betas"]
        ([0.0005], (0.9, 0.99))
    """

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        schedule: Value | Sequence[Value] | Mapping[str, Value | Sequence[Value]],
        last_epoch: int = -1,
    ) -> None:
        if not isinstance(optimizer, torch.optim.Optimizer):
            raise TypeError(f"{_OWNER}: optimizer must be a torch optimizer, got {type(optimizer).__name__}")
        self._schedules: dict[str, Any] = dict(schedule) if isinstance(schedule, Mapping) else {"lr": schedule}
        for name, value in self._schedules.items():
            _check(optimizer, name, value)
        super().__init__(optimizer, last_epoch)

    def get_lr(self) -> list[float]:  # pyright: ignore[reportIncompatibleMethodOverride]
        """The groups' `lr` at `last_epoch`. Writes the other hyperparameters, as torch's cyclic schedulers do."""
        lrs = [group["lr"] for group in self.optimizer.param_groups]
        for name, schedule in self._schedules.items():
            values = self._values(name, schedule)
            if name == "lr":
                lrs[: len(values)] = values
            else:
                for group, value in zip(self.optimizer.param_groups, values, strict=False):
                    group[name] = _put(group[name], value)
        return lrs

    def state_dict(self) -> dict[str, Any]:
        """What is needed to go on: the count. Schedules are functions, which are given anew on construction."""
        return {name: value for name, value in super().state_dict().items() if name != "_schedules"}

    def _values(self, name: str, schedule: Any) -> list[Any]:
        """The values of the groups that a schedule, or list of them, is for."""
        groups = self.optimizer.param_groups
        if isinstance(schedule, list):
            return [_plain(at_step(own, self.last_epoch, tuples=True)) for own in schedule]
        value = _plain(at_step(schedule, self.last_epoch, tuples=True))
        if name not in _KEEP_RATIOS:
            return [value] * len(groups)
        for group in groups:
            group.setdefault(f"initial_{name}", _plain(group[name]))
        initial = [float(group[f"initial_{name}"]) for group in groups]
        return [value * _ratio(name, i, own, initial[0]) for i, own in enumerate(initial)]


def _check(optimizer: torch.optim.Optimizer, name: str, schedule: Any) -> None:
    """Checks what is given for one hyperparameter against the groups as they are."""
    groups = optimizer.param_groups
    known = [key for key in groups[0] if key not in ("params", "param_names")]
    if any(name not in group for group in groups):
        near = difflib.get_close_matches(name, known, n=1)
        fix = f"did you mean {near[0]}?" if near else ""
        _checks.fail(_OWNER, "a hyperparameter", f"among {', '.join(known)}", name, fix)
    if isinstance(optimizer, TorchBridge) and any(name in own.schedules for own in optimizer._scheduled.values()):
        _checks.fail(_OWNER, name, "a number in TorchBridge", "a schedule", "give it here or there, not in both")
    if isinstance(schedule, list) and len(schedule) != len(groups):
        _checks.fail(_OWNER, f"the list for {name}", f"of one schedule per group ({len(groups)})", schedule)
    for value in schedule if isinstance(schedule, list) else [schedule]:
        for item in value if isinstance(value, tuple) else (value,):
            if not is_schedule(item) and (isinstance(item, bool) or not isinstance(item, numbers.Real)):
                raise TypeError(f"{_OWNER}: {name} must be a schedule, a number, or a tuple of them, got {item!r}")
    if name in _KEEP_RATIOS and not isinstance(schedule, list):
        initial = [float(group.get(f"initial_{name}", group[name])) for group in groups]
        for i, own in enumerate(initial):
            _ratio(name, i, own, initial[0])


def _ratio(name: str, index: int, own: float, first: float) -> float:
    if own == first:
        return 1.0
    if first == 0.0:
        _checks.fail(
            _OWNER,
            f"the initial {name} of parameter group {index}",
            "0 as the first group's, to which it would have no ratio",
            own,
            "give a list of one schedule per group",
        )
    return own / first


def _plain(value: Any) -> Any:
    """Numbers of any kind as Python's, which is what groups hold and checkpoints carry."""
    return tuple(map(float, value)) if isinstance(value, tuple | list) else float(value)


def _put(old: Any, new: Any) -> Any:
    """A new value for a group's field; a tensor is filled, as torch's schedulers do with `lr`."""
    if isinstance(old, torch.Tensor):
        return old.fill_(new)
    return tuple(map(_put, old, new)) if isinstance(old, tuple | list) else new
