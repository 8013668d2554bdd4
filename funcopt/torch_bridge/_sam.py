"""Sharpness-aware minimization around any torch optimizer; see `funcopt.sam` for the formulas."""

from collections.abc import Callable, Sequence
from typing import Any

import torch

from funcopt import _checks
from funcopt.torch_bridge._shards import Sharding, local, local_like, reducer, sharding_of


class SAM(torch.optim.Optimizer):
    """davda54's `SAM`: an optimizer that updates with the gradients of a worse point nearby.

    Groups, state and checkpoints are those of the optimizer inside, `base_optimizer`, whose groups get `rho` and
    `adaptive`; schedulers may be given either. The norm is one over all groups, and over all processes. In between the
    parameters are kept beside the state, to the last bit, and a parameter without a gradient stays where it is.

    With `torch.amp.GradScaler` each gradient may stay scaled until the optimizer's step, since the point depends on no
    scale: `scaler.scale(loss).backward()`, `first_step(zero_grad=True)`, `scaler.scale(second_loss).backward()`,
    `restore()`, `scaler.step(optimizer.base_optimizer)`, `scaler.update()`.

    Args:
        base_optimizer: what makes the update: a `TorchBridge`, or any torch optimizer.
        rho: how far the point is, >= 0; a group that has its own `rho` keeps it.
        adaptive: whether the distance of each element is in proportion to its magnitude; `rho` is then larger, such as
            2.

    Raises:
        ValueError: for a `rho` that is negative.

    Example:
        >>> import funcopt, torch
        >>> model = torch.nn.Linear(2, 1)
        >>> base = funcopt.TorchBridge(model.parameters(), funcopt.adamw, lr=1e-3)
        >>> optimizer = funcopt.torch_bridge.SAM(base, rho=0.05)
        >>> def closure():
        ...     optimizer.zero_grad()
        ...     loss = model(torch.ones(1, 2)).square().sum()
        ...     loss.backward()
        ...     return loss
        >>> loss = optimizer.step(closure)
    """

    base_optimizer: torch.optim.Optimizer
    _kept: dict[torch.Tensor, torch.Tensor]  # what was trained, while the parameters are at a point

    def __init__(self, base_optimizer: torch.optim.Optimizer, rho: float = 0.05, adaptive: bool = False) -> None:
        if not isinstance(base_optimizer, torch.optim.Optimizer):
            name = getattr(base_optimizer, "__name__", type(base_optimizer).__name__)
            raise TypeError(f"SAM: base_optimizer must be a torch optimizer, got {name}; make it with its parameters")
        for name in ("rho", "adaptive"):
            if name in base_optimizer.defaults:
                raise ValueError(f"SAM: groups must have room for {name}, which {_name(base_optimizer)} has itself")
        # torch's constructor would make groups and state.
        self.__setstate__(
            {"base_optimizer": base_optimizer, "defaults": {"rho": rho, "adaptive": adaptive}, "_kept": {}}
        )
        _checks.check_number("SAM", "rho", rho, _checks.NON_NEGATIVE)
        self._fill_groups()

    def __getstate__(self) -> dict[str, Any]:
        return {name: self.__dict__[name] for name in ("base_optimizer", "defaults", "_kept")}

    @property
    def param_groups(self) -> list[dict[str, Any]]:  # pyright: ignore[reportIncompatibleVariableOverride]
        """The groups of the optimizer inside."""
        return self.base_optimizer.param_groups

    @property
    def state(self) -> Any:  # pyright: ignore[reportIncompatibleVariableOverride]
        """The state of the optimizer inside."""
        return self.base_optimizer.state

    @torch.no_grad()
    def first_step(self, zero_grad: bool = False) -> None:
        """Goes to the point, from gradients at the parameters.

        Args:
            zero_grad: whether to forget these gradients.

        Raises:
            RuntimeError: if the parameters are at a point already.
        """
        self._refuse_at_point("first_step")
        due = [(group, p) for group in self.param_groups for p in group["params"] if p.grad is not None]
        scale = 1 / (_norm(due) + 1e-12)
        for group, p in due:
            self._kept[p] = local(p).detach().clone()
            ascent = _weight(group, p, 2) * _gradient(p) * (group["rho"] * scale.to(p.device))
            local(p).add_(ascent)
        if zero_grad:
            self.zero_grad()

    @torch.no_grad()
    def second_step(self, zero_grad: bool = False) -> None:
        """Goes back to the parameters, and updates them with the gradients that there are by now.

        Args:
            zero_grad: whether to forget the gradients afterwards.
        """
        self.restore()
        self.base_optimizer.step()
        if zero_grad:
            self.zero_grad()

    @torch.no_grad()
    def restore(self) -> None:
        """Goes back to the parameters without an update, if they are at a point, such as after an error."""
        for p, value in self._kept.items():
            local(p).copy_(value)
        self._kept.clear()

    def step(self, closure: Callable[[], Any] | None = None) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Evaluates the closure at the parameters and at the point, and updates the parameters.

        Whatever breaks off leaves the parameters as they were.

        Args:
            closure: forgets the gradients, evaluates the model anew, goes backward, and returns the loss; called twice,
                with gradients enabled. Gradients that there were before are not used.

        Returns:
            The closure's result at the parameters.

        Raises:
            RuntimeError: without a closure, or if the parameters are at a point already.
        """
        if closure is None:
            raise RuntimeError(
                "SAM: step needs a closure that evaluates the model anew; without one call first_step and second_step"
            )
        self._refuse_at_point("step")
        with torch.enable_grad():
            loss = closure()
        try:
            self.first_step(zero_grad=True)
            with torch.enable_grad():
                closure()
        finally:
            self.restore()
        self.second_step()
        return loss

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Adds a group to the optimizer inside."""
        _checks.check_number("SAM", "rho", param_group.get("rho", 0.0), _checks.NON_NEGATIVE)
        self.base_optimizer.add_param_group(param_group)
        self._fill_groups()

    def state_dict(self) -> dict[str, Any]:
        """The checkpoint of the optimizer inside; its groups have `rho` and `adaptive`."""
        return self.base_optimizer.state_dict()

    def load_state_dict(self, state_dict: Any, **how: Any) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Loads a checkpoint of the optimizer inside, with or without `SAM`; takes and returns what that one does."""
        report = self.base_optimizer.load_state_dict(state_dict, **how)
        self._fill_groups()
        return report

    def _refuse_at_point(self, method: str) -> None:
        if self._kept:
            raise RuntimeError(f"SAM: {method} must start from the parameters; call second_step or restore before")

    def _fill_groups(self) -> None:
        for group in self.param_groups:
            for name in ("rho", "adaptive"):
                group.setdefault(name, self.defaults[name])


def _name(optimizer: torch.optim.Optimizer) -> str:
    return type(optimizer).__name__


def _gradient(p: torch.Tensor) -> torch.Tensor:
    """This process's part of a gradient, in the precision that is computed in."""
    assert p.grad is not None
    grad = local_like(p.grad, sharding_of(p)).detach()
    return _wide(grad if grad.layout == torch.strided else grad.coalesce())


def _weight(group: dict[str, Any], p: torch.Tensor, power: int) -> Any:
    return _wide(local(p).detach().abs()) ** power if group["adaptive"] else 1.0


def _wide(x: torch.Tensor) -> torch.Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))


def _norm(due: Sequence[tuple[dict[str, Any], torch.Tensor]]) -> torch.Tensor:
    """The norm of all gradients of all processes, weighted where that is adaptive."""
    squares: dict[Sharding | None, torch.Tensor] = {}
    for group, p in due:
        x = _weight(group, p, 1) * _gradient(p)
        own = torch.linalg.vector_norm(x if x.layout == torch.strided else x.coalesce().values()).square()
        before = squares.get(sharding_of(p))
        squares[sharding_of(p)] = own if before is None else before + own.to(before.device)
    total = torch.zeros(())
    for sharding, own in squares.items():
        reduce = reducer(sharding)
        total = total.to(own.device) + (own if reduce is None else reduce(own, "sum"))
    return total.sqrt()
