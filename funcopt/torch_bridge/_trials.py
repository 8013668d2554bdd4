"""Torch optimizers, run beside others: `funcopt.compare`'s half of torch."""

import copy
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np
import torch


class TorchTrial:
    """One run of an optimizer on parameters of its own."""

    def __init__(self, optimizer: Any, schedulers: Iterable[Any], params: Mapping[str, torch.Tensor]) -> None:
        self._optimizer = optimizer
        self._schedulers = tuple(schedulers)
        self._params = params

    def step(self, grads: Mapping[str, np.ndarray | None]) -> None:
        for name, param in self._params.items():
            grad = grads[name]
            param.grad = None if grad is None else torch.tensor(grad, dtype=param.dtype)
        self._optimizer.step()
        for scheduler in self._schedulers:
            scheduler.step()

    def params(self) -> dict[str, np.ndarray]:
        return {name: param.detach().numpy().copy() for name, param in self._params.items()}

    def state(self) -> dict[tuple[str, str], np.ndarray]:
        return {
            (name, key): value.detach().cpu().numpy().copy() if isinstance(value, torch.Tensor) else np.array(value)
            for name, param in self._params.items()
            for key, value in self._optimizer.state.get(param, {}).items()
            if isinstance(value, torch.Tensor | float | int)
        }

    def hyperparams(self) -> dict[str, Any]:
        return _options(self._optimizer)


class OfFactory:
    """A class, or a function of the parameters: it returns an optimizer, or one and its schedulers."""

    def __init__(self, owner: str, factory: Callable[..., Any]) -> None:
        self._owner, self._factory = owner, factory
        self.options = _options(self._make([torch.nn.Parameter(torch.zeros(2, 2))])[0])

    def _make(self, params: list[torch.nn.Parameter]) -> tuple[Any, tuple[Any, ...]]:
        made = self._factory(params)
        optimizer, *schedulers = made if isinstance(made, tuple) else (made,)
        if not hasattr(optimizer, "param_groups"):
            raise TypeError(f"{self._owner} must return a torch optimizer, got {optimizer!r}")
        return optimizer, tuple(schedulers)

    def start(self, start: Any, changes: Mapping[str, Any]) -> TorchTrial:
        own = {name: torch.nn.Parameter(torch.tensor(value)) for name, value in start.values.items()}
        optimizer, schedulers = self._make([*own.values()])
        _change(optimizer, changes)
        return TorchTrial(optimizer, schedulers, own)


class OfOptimizer:
    """A live optimizer, which is copied with its state."""

    def __init__(self, optimizer: Any) -> None:
        self._optimizer = optimizer
        self.options = _options(optimizer)

    def start(self, start: Any, changes: Mapping[str, Any]) -> TorchTrial:
        optimizer = copy.deepcopy(self._optimizer)
        own = [p for group in optimizer.param_groups for p in group["params"]]
        shapes, given = [tuple(p.shape) for p in own], [value.shape for value in start.values.values()]
        if shapes != given:
            raise ValueError(f"compare: params must have the shapes of the live optimizer's, {shapes}, got {given}")
        for param, value in zip(own, start.values.values(), strict=True):
            param.data = torch.tensor(value)
        _change(optimizer, changes)
        return TorchTrial(optimizer, (), dict(zip(start.values, own, strict=True)))


def _options(optimizer: Any) -> dict[str, Any]:
    """What a group says that is a hyperparameter."""
    group = optimizer.param_groups[0]
    return {name: value for name, value in group.items() if isinstance(value, bool | float | int | tuple)}


def _change(optimizer: Any, changes: Mapping[str, Any]) -> None:
    for group in optimizer.param_groups:
        group.update(changes)
