"""Tensors as arrays and back; who owns the memory is in the names.

`borrow_*` shares memory and is valid as long as its owner leaves it alone; `copy_*` owns what it returns; `write_back`
is the only function that changes a tensor.
"""

from collections.abc import Sequence
from typing import Any, TypeAlias

import jax
import ml_dtypes
import numpy as np
import torch

Device: TypeAlias = Any
"""A `jax.Device`, which type checkers take for a variable."""


def jax_device(device: torch.device) -> Device:
    """The JAX device that shares memory with a torch device.

    Raises:
        RuntimeError: if JAX has none; names both.
    """
    if device.type not in ("cpu", "cuda"):
        raise RuntimeError(
            f"TorchBridge: parameters must be on the CPU or a CUDA device, got {device}; move the model first"
        )
    try:
        return jax.devices(device.type)[device.index or 0]
    except (RuntimeError, IndexError) as error:
        raise RuntimeError(
            f"TorchBridge: parameters are on {device}, and JAX has no such device (it has {jax.devices()}); install "
            "JAX with CUDA support, pip install 'jax[cuda12]', or move the model to the CPU"
        ) from error


def borrow_as_jax(tensor: torch.Tensor) -> Any:
    """An array over a tensor's memory, read only: what a jitted function takes without a copy where it can.

    On the CPU this is a NumPy view, the cheapest argument (5 us less than dlpack); on a GPU a JAX array.
    """
    tensor = tensor.detach().resolve_conj().resolve_neg()
    if tensor.device.type == "cuda":
        return jax.dlpack.from_dlpack(tensor.contiguous())
    if tensor.dtype == torch.bfloat16:
        return tensor.view(torch.int16).numpy().view(ml_dtypes.bfloat16)
    return tensor.numpy()


def copy_to_jax(tensor: torch.Tensor, device: Device) -> jax.Array:
    """A JAX array of its own with a tensor's values. With x64 disabled, 64-bit values would lose half their bits."""
    array = borrow_as_jax(tensor.to("cpu") if device.platform == "cpu" else tensor)
    return jax.device_put(np.array(array) if isinstance(array, np.ndarray) else array.copy(), device)


def borrow_as_torch(array: jax.Array) -> torch.Tensor:
    """A tensor over an array's memory. JAX does not reuse that memory while the tensor lives."""
    return torch.from_dlpack(array)


def write_back(tensors: Sequence[torch.Tensor], arrays: Sequence[jax.Array]) -> None:
    """Copies arrays into tensors. The arrays must be ready: nothing that reads the tensors may still run."""
    if tensors:
        torch._foreach_copy_(  # pyright: ignore[reportPrivateImportUsage]  # torch.optim's own way
            list(tensors), [borrow_as_torch(array) for array in arrays]
        )
