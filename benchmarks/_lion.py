"""Lion (Chen et al., 2023) as people write it for torch, which has none: a loop over tensors, and with foreach."""

# torch's multi-tensor functions have no public name.
# pyright: reportPrivateImportUsage=false

from collections.abc import Iterable
from typing import Any

import torch


class Lion(torch.optim.Optimizer):
    """The sign of an interpolation between momentum and gradient, with decoupled weight decay.

    Args:
        params: tensors or group dicts.
        lr: learning rate.
        betas: rates of the interpolation and of the momentum.
        weight_decay: decoupled.
        foreach: whether to use torch's multi-tensor functions.
    """

    def __init__(
        self,
        params: Iterable[torch.Tensor],
        lr: float = 1e-4,
        betas: tuple[float, float] = (0.9, 0.99),
        weight_decay: float = 0.0,
        foreach: bool = False,
    ) -> None:
        super().__init__(params, {"lr": lr, "betas": betas, "weight_decay": weight_decay, "foreach": foreach})

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Updates all parameters, which must have a gradient."""
        loss = None if closure is None else closure()
        for group in self.param_groups:
            params = group["params"]
            for p in params:
                if not self.state[p]:
                    self.state[p]["exp_avg"] = torch.zeros_like(p)
            update = _foreach if group["foreach"] else _loop
            averages = [self.state[p]["exp_avg"] for p in params]
            beta1, beta2 = group["betas"]
            update(params, [p.grad for p in params], averages, group["lr"], beta1, beta2, group["weight_decay"])
        return loss


def _loop(
    params: list[Any], grads: list[Any], averages: list[Any], lr: float, beta1: float, beta2: float, decay: float
) -> None:
    for p, grad, average in zip(params, grads, averages, strict=True):
        p.mul_(1 - lr * decay)
        p.add_(average.lerp(grad, 1 - beta1).sign_(), alpha=-lr)
        average.lerp_(grad, 1 - beta2)


def _foreach(
    params: list[Any], grads: list[Any], averages: list[Any], lr: float, beta1: float, beta2: float, decay: float
) -> None:
    torch._foreach_mul_(params, 1 - lr * decay)
    updates = torch._foreach_lerp(averages, grads, 1 - beta1)
    torch._foreach_sign_(updates)
    torch._foreach_add_(params, updates, alpha=-lr)
    torch._foreach_lerp_(averages, grads, 1 - beta2)
