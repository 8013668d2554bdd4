"""Memory that torch and the update share.

On the CPU it is the engine's own, and the parameters and their state live in it: JAX's, which an elementwise program
overwrites in place (XLA donates it), or torch's. On other devices it is torch's; what XLA computes there is copied into
it.

Tensors over JAX's memory: XLA must not know of them, or it would not write in place, so they are made from the bare
address. The memory lives as long as any tensor on it, since torch's storage refers to the array's owner. An array whose
update failed half-way is gone, and with it the memory; so what may fail (`jax_debug_nans`) is switched off there, and a
program that needs memory of its own is not given this one.
"""

import ctypes
import functools
import math
import weakref
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import torch

from funcopt.torch_bridge._buffers import Device, borrow_as_jax, borrow_as_torch, copy_to_jax


class JaxMemory:
    """Zeros that JAX owns and updates in place."""

    def __init__(self, shape: Sequence[int], dtype: torch.dtype, device: Device) -> None:
        self._shape, self.dtype, self.device, self._on = tuple(shape), dtype, torch.device("cpu"), device
        self._owner = _Owner(copy_to_jax(torch.zeros(tuple(shape), dtype=dtype), device))
        self.tensor = self.elements(0, self._owner.array.size).tensor

    def another(self) -> "JaxMemory":
        """The same, anew."""
        return JaxMemory(self._shape, self.dtype, self._on)

    def elements(self, start: int, stop: int) -> "Loan":
        """Some of the memory as a tensor with a storage of its own."""
        return over(self._owner, self._owner.address, self._owner.array.nbytes, self.dtype, start, stop)

    def lend(self) -> jax.Array:
        """The array, as the update takes it."""
        return self._owner.array

    def store(self, result: jax.Array) -> None:
        """Takes the update's result over."""
        if result.unsafe_buffer_pointer() == self._owner.address:
            self._owner.array = result
        else:  # somebody held the array, so that XLA left it alone: the old memory is still there, with tensors on it
            self.tensor.copy_(borrow_as_torch(result).reshape(-1))


class _Owner:
    """Holds the array that currently stands for the memory at an address."""

    def __init__(self, array: jax.Array) -> None:
        self.array = array
        self.address = array.unsafe_buffer_pointer()


class Loan(NamedTuple):
    """Memory in the user's hands."""

    tensor: torch.Tensor
    held: Callable[[], object]  # what is not None as long as any tensor over it lives

    def map(self, view: Callable[[torch.Tensor], torch.Tensor]) -> "Loan":
        """The same memory in another shape; a tensor of its own, and not a view, which could not move."""
        return self._replace(tensor=view(self.tensor).data)


def over(owner: Any, address: int, nbytes: int, dtype: torch.dtype, start: int, stop: int) -> Loan:
    if start == stop:
        return NOTHING._replace(tensor=torch.empty(0, dtype=dtype))
    buffer = (ctypes.c_char * nbytes).from_address(address)
    vars(buffer)["owner"] = owner  # torch's storage keeps the buffer, and the buffer what owns the memory
    tensor = torch.frombuffer(buffer, dtype=dtype, count=stop - start, offset=start * dtype.itemsize)
    return Loan(tensor, weakref.ref(buffer))


NOTHING = Loan(torch.empty(0), lambda: None)
"""Memory that nobody has, or of which nobody can tell."""


@functools.cache
def writes_in_place(device: Device) -> bool:
    """Whether a donated array's result is at its address: on the CPU it always was, and nothing promises it."""
    if device.platform != "cpu":
        return False
    array = copy_to_jax(torch.zeros(1024), device)
    address = array.unsafe_buffer_pointer()
    return jax.jit(jnp.negative, donate_argnums=0)(array).unsafe_buffer_pointer() == address


class TorchMemory:
    """Zeros that torch owns; taken when they are first needed."""

    def __init__(self, shape: Sequence[int], dtype: torch.dtype, device: torch.device) -> None:
        self._shape, self.dtype, self.device = tuple(shape), dtype, device

    def another(self) -> "TorchMemory":
        """The same, anew."""
        return type(self)(self._shape, self.dtype, self.device)

    @functools.cached_property
    def tensor(self) -> torch.Tensor:
        """All of it, flat."""
        return torch.zeros(math.prod(self._shape), dtype=self.dtype, device=self.device)

    def elements(self, start: int, stop: int) -> Loan:
        """Some of the memory: on the CPU as a tensor with a storage of its own.

        Elsewhere all of it is one storage, and who has it torch does not tell.
        """
        if self.device.type != "cpu":
            return NOTHING._replace(tensor=self.tensor[start:stop])
        size = self.tensor.untyped_storage().nbytes()
        return over(self.tensor, self.tensor.data_ptr(), size, self.dtype, start, stop)

    def lend(self) -> Any:
        """The array, as the update takes it."""
        return self.tensor

    def store(self, result: Any) -> None:
        """Takes the update's result over, which is there already."""


class CopiedMemory(TorchMemory):
    """The same for XLA where it does not write in place."""

    def lend(self) -> Any:
        return borrow_as_jax(self.tensor.view(self._shape))

    def store(self, result: Any) -> None:
        self.tensor.view(self._shape).copy_(borrow_as_torch(result))


class Memory(Protocol):
    """Zeros that an update may overwrite."""

    tensor: Any  # all of it, flat
    dtype: torch.dtype
    device: torch.device

    def elements(self, start: int, stop: int) -> Loan:
        """Some of it, in the user's hands."""
        ...

    def lend(self) -> Any:
        """The array, as the update takes it."""
        ...

    def store(self, result: Any) -> None:
        """Takes the update's result over."""
        ...

    def another(self) -> "Memory":
        """The same, anew."""
        ...
