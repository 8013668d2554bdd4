"""Sharpness-aware minimization around any torch optimizer; see `funcopt.sam` for what it computes."""

from collections.abc import Callable
from typing import Any

import torch

from funcopt import _checks


class SAM(torch.optim.Optimizer):
    """Steps an optimizer with the gradients of a point nearby: `SAM` of davda54/sam.

    Groups, state and defaults are those of the optimizer that it is around, so that schedulers and checkpoints are,
    too; `rho` and `adaptive` are fields of the groups, and may differ. The norm is one over all groups.

    Args:
        optimizer: torch's or funcopt's.
        rho: how far away, > 0.
        adaptive: whether distances are relative to the parameters' magnitudes.

    Raises:
        ValueError: for a rho that is not positive.

    Example:
        >>> import funcopt, torch
        >>> from funcopt.torch_bridge import SAM
        >>> model = torch.nn.Linear(2, 1)
        >>> optimizer = SAM(funcopt.TorchBridge(model.parameters(), funcopt.sgd, lr=0.1), rho=0.05)
        >>> def closure():
        ...     optimizer.zero_grad()
        ...     loss = model(torch.ones(1, 2)).square().sum()
        ...     loss.backward()
        ...     return loss
        >>> loss = optimizer.step(closure)
    """

    def __init__(self, optimizer: torch.optim.Optimizer, rho: float = 0.05, adaptive: bool = False) -> None:
        _checks.check_number("SAM", "rho", rho, _checks.POSITIVE)
        self.optimizer = optimizer
        super().__init__(optimizer.param_groups, {})
        self.param_groups, self.state = optimizer.param_groups, optimizer.state
        self.defaults = optimizer.defaults
        for group in self.param_groups:
            group.setdefault("rho", rho)
            group.setdefault("adaptive", adaptive)
        self._rho, self._adaptive = rho, adaptive
        self._from: dict[torch.Tensor, torch.Tensor] = {}  # the parameters while they are nearby

    @torch.no_grad()
    def first_step(self, zero_grad: bool = False) -> None:
        """Moves the parameters to the point nearby, by their gradients.

        Args:
            zero_grad: whether to set the gradients to None.

        Raises:
            RuntimeError: if they are there already.
        """
        if self._from:
            raise RuntimeError("SAM: first_step must be followed by second_step, got another first_step")
        due = [(p, group) for group in self.param_groups for p in group["params"] if p.grad is not None]
        wide = [_wide(p.grad) * (_wide(p).abs() if group["adaptive"] else 1.0) for p, group in due]
        norm = torch.nn.utils.get_total_norm(wide)
        self._from = {p: p.detach().clone(memory_format=torch.preserve_format) for p, _ in due}
        for p, group in due:
            step = _wide(p.grad) * (_wide(p) ** 2 if group["adaptive"] else 1.0)
            p.copy_(_wide(p) + group["rho"] / (norm.to(step.device) + 1e-12) * step)
        if zero_grad:
            self.zero_grad()

    @torch.no_grad()
    def second_step(self, zero_grad: bool = False) -> None:
        """Puts the parameters back, to the last bit, and steps the optimizer with the gradients of the point nearby.

        Args:
            zero_grad: whether to set the gradients to None afterwards.
        """
        self._put_back()
        self.optimizer.step()
        if zero_grad:
            self.zero_grad()

    def step(self, closure: Callable[[], Any] | None = None) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Both steps.

        Args:
            closure: sets the gradients to 0, evaluates the model and its gradients, and returns the loss. It is called
                twice, with gradients enabled; if it fails, the parameters are put back.

        Returns:
            The loss of the parameters themselves.

        Raises:
            RuntimeError: without a closure: call `first_step` and `second_step` instead.
        """
        if closure is None:
            raise RuntimeError("SAM: step needs a closure, which evaluates twice; or call first_step and second_step")
        try:
            with torch.enable_grad():
                loss = closure()
            self.first_step()
            with torch.enable_grad():
                closure()
        except BaseException:
            self._put_back()
            raise
        self.second_step()
        return loss

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Adds a group to the optimizer."""
        if not hasattr(self, "_from"):  # while torch's constructor reads the groups that are there
            return
        param_group.setdefault("rho", self._rho)
        param_group.setdefault("adaptive", self._adaptive)
        self.optimizer.add_param_group(param_group)

    def state_dict(self) -> dict[str, Any]:
        """The optimizer's."""
        return self.optimizer.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> Any:
        """Loads the optimizer's."""
        result = self.optimizer.load_state_dict(state_dict)
        self.param_groups, self.state = self.optimizer.param_groups, self.optimizer.state
        for group in self.param_groups:  # of a checkpoint without SAM
            group.setdefault("rho", self._rho)
            group.setdefault("adaptive", self._adaptive)
        return result

    @torch.no_grad()
    def _put_back(self) -> None:
        for p, value in self._from.items():
            p.copy_(value)
        self._from = {}


def _wide(tensor: torch.Tensor | None) -> torch.Tensor:
    assert tensor is not None
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))
