"""Tensors in an engine's memory: which can move there, and what they are then."""

import functools
import sys
import weakref
from collections.abc import Callable
from multiprocessing.reduction import ForkingPickler
from typing import Any, NamedTuple

import torch
from torch.multiprocessing.reductions import reduce_storage

from funcopt.torch_bridge.engines._memory import Loan, over


class Arrangement(NamedTuple):
    """How a tensor's elements lie in its memory."""

    shape: tuple[int, ...]
    order: tuple[int, ...]  # dimensions by falling stride

    @classmethod
    def of(cls, tensor: torch.Tensor) -> "Arrangement":
        """That of a tensor; one with gaps counts as contiguous."""
        return cls(tuple(tensor.shape), memory_order(tensor))

    def view(self, elements: torch.Tensor) -> torch.Tensor:
        """Flat elements as a tensor of the shape, with the strides."""
        if self.order == _as_they_are(len(self.shape)):
            return elements.view(self.shape)
        inverse = sorted(range(len(self.order)), key=self.order.__getitem__)
        return elements.view([self.shape[i] for i in self.order]).permute(inverse)

    def flatten(self, tensor: torch.Tensor) -> torch.Tensor:
        """A tensor's elements, flat; a view where it is arranged like this."""
        if self.order != _as_they_are(tensor.dim()):
            tensor = tensor.permute(self.order)
        return tensor.reshape(-1)


@functools.cache
def _as_they_are(dimensions: int) -> tuple[int, ...]:
    return tuple(range(dimensions))


def memory_order(tensor: torch.Tensor) -> tuple[int, ...]:
    """Dimensions by falling stride where the tensor then is contiguous, as one in channels-last is; or as they are."""
    if tensor.is_contiguous():
        return _as_they_are(tensor.dim())
    order = tuple(sorted(range(tensor.dim()), key=lambda i: -tensor.stride(i)))
    return order if tensor.permute(order).is_contiguous() else _as_they_are(tensor.dim())


class Numbers:
    """One number for each of some parameters: an array of NumPy's, and tensors over its elements."""

    def __init__(self, size: int, dtype: torch.dtype) -> None:
        self.values = torch.zeros(size, dtype=dtype).numpy().copy()
        self._dtype = dtype

    def element(self, index: int) -> Loan:
        """One number as a tensor of shape () with a storage of its own."""
        values = self.values
        loan = over(values, values.ctypes.data, values.nbytes, self._dtype, index, index + 1)
        return loan.map(lambda tensor: tensor.view(()))


class _Lent(torch.UntypedStorage):
    """A storage over memory that is not torch's, of one tensor: to change its size gives the tensor memory of its own.

    By itself torch refuses that. Offloading does it: it takes a parameter's memory away, and gives it back.
    """

    _tensor: Callable[[], torch.Tensor | None]

    def resize_(self, size: int) -> torch.UntypedStorage:  # pyright: ignore[reportIncompatibleMethodOverride]
        """The new storage."""
        tensor = self._tensor()
        own = torch.UntypedStorage(size)
        kept = min(size, self.nbytes())
        if kept:
            own[:kept].copy_(self[:kept])
        if tensor is not None:
            as_it_was = torch.empty(0, dtype=tensor.dtype).set_(
                torch.UntypedStorage(tensor.numel() * tensor.element_size()), 0, tensor.size(), tensor.stride()
            )
            as_it_was.untyped_storage().resize_(size)
            as_it_was.untyped_storage().copy_(own)
            tensor.data = as_it_was
        return own

    def clone(self) -> torch.UntypedStorage:
        """A plain storage."""
        return torch.UntypedStorage(self.nbytes()).copy_(self)

    def share_memory_(self, *args: Any, **kwargs: Any) -> torch.UntypedStorage:
        """As any storage's."""
        _give_up(self)
        return self.share_memory_(*args, **kwargs)


def _give_up(storage: torch.UntypedStorage) -> torch.UntypedStorage:
    storage.__class__ = torch.UntypedStorage
    return storage


ForkingPickler.register(_Lent, lambda storage: reduce_storage(_give_up(storage)))


def lend(memory: torch.Tensor, tensor: torch.Tensor | None = None) -> torch.Tensor:
    """Makes a tensor live in memory that is not torch's; without one, that memory's own."""
    if tensor is None:
        tensor = memory
    else:
        tensor.data = memory
    storage = tensor.untyped_storage()
    if not storage.resizable() and storage.nbytes():
        storage.__class__ = _Lent
        storage._tensor = weakref.ref(tensor)  # pyright: ignore[reportAttributeAccessIssue]
    return tensor


def is_movable(tensor: torch.Tensor) -> bool:
    """Whether a tensor's memory can move: no view, no other tensor, no other process would stay behind."""
    if tensor.device.type != "cpu" or _holders(tensor) != _holders(torch.empty(1)):
        return False
    storage = tensor.untyped_storage()
    return (
        type(tensor) in (torch.Tensor, torch.nn.Parameter)
        and tensor.is_leaf
        and not tensor.is_shared()
        and storage.nbytes() == tensor.numel() * tensor.element_size()
        and tensor.numel() > 0
        and not tensor.is_conj()
        and not tensor.is_neg()
    )


def _holders(tensor: torch.Tensor) -> tuple[int, int]:
    """How many tensors refer to a tensor's storage, and how many variables to the one Python object of it."""
    storage = tensor.untyped_storage()
    return torch._C._storage_Use_Count(storage._cdata), sys.getrefcount(storage)  # pyright: ignore


def round_up(number: int, least: int) -> int:
    """A size for that many that few numbers share: up to 12.5 % more, and powers of two for small ones."""
    if number <= least:
        return least
    step = max(1, (1 << (number - 1).bit_length()) // 16) if number > 16 * least else 1 << (number - 1).bit_length()
    return -(-number // step) * step
