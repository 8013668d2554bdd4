"""A recipe as pure functions of torch's tensors, for `torch.func`."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch

from funcopt.torch_bridge._binding import Binding
from funcopt.torch_bridge._units import Entry
from funcopt.torch_bridge.engines._pure import Pure

Tensors = Mapping[str, torch.Tensor] | Sequence[torch.Tensor]


class TorchTransformation(NamedTuple):
    """Pure functions over torch's tensors."""

    init: Callable[..., Any]  # params -> state
    update: Callable[..., tuple[Any, Any]]  # (grads, state, params, value=None, **hyperparams) -> (params, state)


def functional(transform: Any, **hyperparams: Any) -> TorchTransformation:
    """A recipe as pure functions of torch's tensors, for `torch.func.vmap` and `torch.func.grad`.

    `init(params)` is the state, `update(grads, state, params)` new parameters and state. Parameters, gradients and
    state are dicts or lists alike: of tensors, and of dicts of tensors with torch's state keys. `update` also takes
    hyperparameters, numbers or tensors, which take the place of those given here, and `value`, the loss. It is
    differentiable, in its hyperparameters, too.

    Args:
        transform: a factory such as `funcopt.adamw`, or a ready transformation, as for `TorchBridge`.
        **hyperparams: values for the factory's arguments, without schedules.

    Raises:
        TypeError: for an argument that the factory lacks or needs.
        ValueError: for a value that the factory refuses, unless it is a tensor.

    Example:
        >>> import funcopt, torch
        >>> tx = funcopt.torch_bridge.functional(funcopt.adamw, weight_decay=0.1)
        >>> def train(w, lr):  # one model of an ensemble, with its own learning rate
        ...     state = tx.init([w])
        ...     for _ in range(3):
        ...         (w,), state = tx.update([2 * w], state, [w], lr=lr)
        ...     return w
        >>> torch.func.vmap(train)(torch.ones(4, 2), torch.tensor([0.0, 0.1, 0.2, 0.3])).shape
        torch.Size([4, 2])
    """
    binding = Binding(transform, hyperparams)
    binding.check_values(dict(binding.defaults))

    def pure(params: Sequence[torch.Tensor], own: Mapping[str, Any], valued: bool) -> tuple[Pure, list[torch.Tensor]]:
        unknown = [name for name in own if name not in binding.defaults]
        if unknown:
            raise TypeError(
                f"functional: {binding.name} has no hyperparameter {unknown[0]}; it has {', '.join(binding.defaults)}"
            )
        found, numbers = binding.split({**binding.defaults, **own}, read=_as_number)
        return Pure(binding, [found], [tuple(range(len(params)))], valued, params), list(numbers)

    def init(params: Tensors, **own: Any) -> Any:
        leaves = _leaves(params)
        what, numbers = pure(leaves, own, False)
        return _like(params, what.entries(what.init(numbers, leaves)))

    def update(
        grads: Tensors, state: Any, params: Tensors, value: torch.Tensor | None = None, **own: Any
    ) -> tuple[Any, Any]:
        leaves = _leaves(params)
        what, numbers = pure(leaves, own, value is not None)
        names = [f"parameter {name!r}" for name in (params if isinstance(params, Mapping) else range(len(params)))]
        new, entries, _ = what.update(
            numbers, _leaves(grads, params), leaves, _leaves(state, params), value, names, ValueError
        )
        return _like(params, new), _like(params, entries)

    return TorchTransformation(init, update)


def _as_number(value: Any) -> torch.Tensor:
    return torch.as_tensor(value, dtype=torch.float64)


def _leaves(values: Any, like: Any = None) -> list[Any]:
    like = values if like is None else like
    if isinstance(like, Mapping):
        return [values[name] for name in like]
    return list(values)


def _like(container: Any, values: Sequence[torch.Tensor] | Sequence[Entry]) -> Any:
    if isinstance(container, Mapping):
        return dict(zip(container, values, strict=True))
    return type(container)(values) if type(container) in (list, tuple) else list(values)
