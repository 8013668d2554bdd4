"""Counting what a `torch.optim` step moves: bytes that its operations read and write, per float32 parameter."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch.optim.swa_utils import get_ema_multi_avg_fn
from torch.utils import _pytree
from torch.utils._python_dispatch import TorchDispatchMode

from benchmarks._audit_programs import Algorithm

SIDE = 256
"""The parameter counted on is a square matrix of this side: large against the scalars, small enough to be quick."""

# What these are told to change they do not read.
_WRITE_ONLY = {"copy_", "fill_", "zero_"}


class _Traffic(TorchDispatchMode):
    """Sums the bytes of the tensors that each operation reads and writes, views not counted."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        if func.is_view:
            return result
        name = func._schema.name.split("::")[1]
        changed: set[int] = set()
        for place, argument in enumerate(func._schema.arguments):
            value = args[place] if place < len(args) else kwargs.get(argument.name)
            size = _bytes(value)
            # The fused kernels declare that they change the gradients, and do so under a gradient scaler only.
            if argument.alias_info is not None and argument.alias_info.is_write and argument.name != "grads":
                changed.update(id(leaf) for leaf in _pytree.tree_leaves(value))
                self.bytes += size * (1 if name in _WRITE_ONLY else 2)
            else:
                self.bytes += size
        self.bytes += _bytes([leaf for leaf in _pytree.tree_leaves(result) if id(leaf) not in changed])
        return result


def _bytes(tree: Any) -> int:
    return sum(leaf.nbytes for leaf in _pytree.tree_leaves(tree) if isinstance(leaf, torch.Tensor))


def _bytes_per_param(step: Callable[[], Any], param: torch.Tensor) -> float:
    step()  # the first step also makes the state
    with _Traffic() as traffic:
        step()
    return traffic.bytes / param.numel()


def traffic(algorithm: Algorithm, form: str) -> float:
    """Bytes per parameter of one of torch's steps, the first excepted.

    Args:
        algorithm: one that torch has; the recipe is a clip by the global norm, AdamW and an average of the parameters.
        form: "foreach" or "fused".
    """
    param = torch.nn.Parameter(torch.ones(SIDE, SIDE))
    param.grad = torch.ones(SIDE, SIDE)
    options: dict[str, Any] = {name: value for name, value in algorithm.hyperparams.items() if not callable(value)}
    options[form] = True
    if algorithm.torch != "recipe":
        optimizer = getattr(torch.optim, str(algorithm.torch))([param], **options)
        return _bytes_per_param(optimizer.step, param)

    optimizer = torch.optim.AdamW([param], **options)
    average: list[torch.Tensor | torch.nn.Parameter] = [torch.ones(SIDE, SIDE)]
    update_average = get_ema_multi_avg_fn(0.999)

    def step() -> None:
        torch.nn.utils.clip_grad_norm_([param], 1.0, foreach=True)
        optimizer.step()
        with torch.no_grad():
            update_average(average, [param.detach()], 1)

    return _bytes_per_param(step, param)
