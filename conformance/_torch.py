"""The torch side: torch's class and the bridge's, on the same parameters under the same gradients."""

import collections
import contextlib
import copy
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch

from conformance._problem import LR, Problem
from funcopt._rows import RowSparse


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """Keeps torch from waiting in several threads for products of matrices of a dozen numbers."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


class TorchRun:
    """Parameters in groups with an optimizer, torch's or the bridge's.

    Args:
        optimizer_class: takes groups with their options.
        options: one dict per group.
        problems: one per group.
        dtype: what the parameters are cast to; None: nothing.
    """

    def __init__(
        self,
        optimizer_class: Any,
        options: Sequence[dict[str, Any]],
        problems: Sequence[Problem],
        dtype: torch.dtype | None = None,
    ) -> None:
        self.optimizer_class = optimizer_class
        self.options = options
        self.problems = problems
        self.tensors = [
            [torch.nn.Parameter(torch.from_numpy(p.copy()).to(dtype)) for p in problem.params] for problem in problems
        ]
        groups = [{"params": own, **given} for own, given in zip(self.tensors, options, strict=True)]
        self.optimizer = optimizer_class(groups if len(groups) > 1 else groups[0]["params"], **self._shared())

    def _shared(self) -> dict[str, Any]:
        """What the constructor is given: options that all groups share."""
        first, *others = self.options
        return {"lr": LR, **{name: value for name, value in first.items() if all(o.get(name) == value for o in others)}}

    def restart(self, problems: Sequence[Problem]) -> "TorchRun":
        """From the first parameters, with an unused state; what was compiled is kept."""
        self.problems = problems
        self.set_params([problem.params for problem in problems])
        self.optimizer.state = collections.defaultdict(dict)
        return self

    def step(self, lrs: np.ndarray, steps: range) -> "TorchRun":
        """Updates under learning rates that are set by hand."""
        for t in steps:
            for own, problem in zip(self.tensors, self.problems, strict=True):
                for tensor, grad in zip(own, problem.grads[t], strict=True):
                    tensor.grad = None if grad is None else _to_torch(grad, tensor)
            for group, lr in zip(self.optimizer.param_groups, lrs[t], strict=True):
                group["lr"] = float(lr)
            self.optimizer.step()
        return self

    def params(self) -> list[list[np.ndarray]]:
        """Copies by group."""
        return [[tensor.detach().numpy().copy() for tensor in own] for own in self.tensors]

    def set_params(self, params: Sequence[Sequence[np.ndarray]]) -> None:
        for own, arrays in zip(self.tensors, params, strict=True):
            for tensor, array in zip(own, arrays, strict=True):
                tensor.data.copy_(torch.from_numpy(array))

    def resume_from(self, other: "TorchRun") -> "TorchRun":
        """Takes over another run's parameters and checkpoint."""
        self.problems = other.problems
        for own, others in zip(self.tensors, other.tensors, strict=True):
            for tensor, source in zip(own, others, strict=True):
                tensor.data.copy_(source.data)
        self.optimizer.load_state_dict(copy.deepcopy(other.optimizer.state_dict()))
        return self

    def described_state(self) -> tuple[Any, ...]:
        """Names, dtypes and shapes of what is kept of each parameter, and the names of the groups' fields."""
        saved = self.optimizer.state_dict()
        entries = {
            index: {
                name: (getattr(value, "dtype", None), getattr(value, "shape", None)) for name, value in entry.items()
            }
            for index, entry in saved["state"].items()
        }
        return entries, [set(group) for group in saved["param_groups"]]


def _to_torch(grad: Any, like: torch.Tensor) -> torch.Tensor:
    if not isinstance(grad, RowSparse):
        return torch.from_numpy(grad.copy()).to(like.dtype)
    indices, values = torch.from_numpy(grad.indices)[None].long(), torch.from_numpy(grad.values).to(like.dtype)
    return torch.sparse_coo_tensor(indices, values, like.shape, check_invariants=True)
