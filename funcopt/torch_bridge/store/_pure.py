"""Updates as pure functions: for autograd, which goes back through them, and for graphs that are recorded once."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch

from funcopt.torch_bridge._binding import Binding
from funcopt.torch_bridge._matching import keys_of
from funcopt.torch_bridge._metrics import Reading
from funcopt.torch_bridge._units import Entry
from funcopt.torch_bridge.engines._pure import Pure


def update_purely(
    binding: Binding,
    groups: Sequence[Mapping[str, Any]],
    state: Any,
    *,
    loss: Any,
    scale: torch.Tensor | None,
    differentiable: bool,
    check: Callable[[Sequence[torch.Tensor]], None],
) -> tuple[bool, list[Reading]]:
    """Updates the parameters that have a gradient, and waits for no device.

    Args:
        binding: the recipe.
        groups: the optimizer's; hyperparameters may be tensors.
        state: the optimizer's.
        loss: the closure's result.
        scale: of the gradients, which they are to be divided by.
        differentiable: whether autograd is to go through: state is replaced, and not written. Otherwise it is
            written in place.
        check: refuses parameters with sparse gradients.

    Returns:
        Whether any parameter was updated, and what the update was like, if that is measured.

    Raises:
        RuntimeError: for state that does not fit, or a gradient that is sparse.
    """
    classes, numbers, keys, params, where, own_groups = [], [], [], [], [], []
    for i, group in enumerate(groups):
        due = {key: p for key, p in zip(keys_of(group), group["params"], strict=True) if p.grad is not None}
        if due:
            found, own = binding.split(group, read=_as_number)
            classes.append(found)
            numbers += own
            keys.append(tuple(due))
            own_groups.append(i)
            params += due.values()
            where += [f"parameter {key!r} of group {i}" for key in due]
    if not params:
        return False, []
    sparse = [p for p in params if p.grad.layout != torch.strided]
    check(sparse)
    if sparse:
        raise RuntimeError("TorchBridge: a sparse gradient cannot be differentiated, nor captured; make it dense")
    loss = loss if isinstance(loss, torch.Tensor) else None
    pure = Pure(binding, classes, keys, loss is not None, params)
    # Autograd keeps what was, also where it is written over.
    old = [p.clone() for p in params] if differentiable else [p.detach() for p in params]
    grads = [p.grad if differentiable else p.grad.detach() for p in params]
    if scale is not None:
        grads = [grad / scale.to(grad.device) for grad in grads]
    entries = [dict(state.get(p, {})) for p in params]
    new_params, new, measured = pure.update(numbers, grads, old, entries, loss, where, RuntimeError)
    for p, value, entry in zip(params, new_params, new, strict=True):
        p.copy_(value)
        shown = {name: entry[name] for name in pure.shown if name in entry}
        if shown:
            _keep(state[p], shown, in_place=not differentiable)
    readings = [
        Reading(str(unit.measures), np.array([own_groups[unit.group or 0]]), value.detach().reshape(1))
        for unit, value in measured
    ]
    return True, readings


def _as_number(value: Any) -> torch.Tensor:
    return torch.as_tensor(value, dtype=torch.float64)


def _keep(entry: Entry, new: Entry, *, in_place: bool) -> None:
    for name, value in new.items():
        old = entry.get(name)
        if in_place and isinstance(old, torch.Tensor) and old.shape == value.shape:
            old.copy_(value)
        else:
            entry[name] = value
