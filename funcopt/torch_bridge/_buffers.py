"""Tensors as arrays and back; who owns the memory is in the names.

`borrow_*` shares memory and is valid as long as its owner leaves it alone; `copy_*` owns what it returns.
"""

import ctypes
import functools
import os
import warnings
from typing import Any, TypeAlias

import jax
import ml_dtypes
import numpy as np
import torch

from funcopt._rows import ABSENT, RowSparse

Device: TypeAlias = Any
"""A `jax.Device`, which type checkers take for a variable."""


@functools.cache
def jax_device(device: torch.device) -> Device:
    """The JAX device that shares memory with a torch device; starts JAX's client for it, without preallocation.

    Raises:
        RuntimeError: if JAX has none; names both.
    """
    if device.type not in ("cpu", "cuda"):
        raise RuntimeError(
            f"TorchBridge: parameters must be on the CPU or a CUDA device, got {device}; move the model first"
        )
    if device.type == "cuda":
        # JAX would take 75 % of the card when its client starts, beside what torch needs. Whoever wants that says so.
        os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    try:
        found = jax.devices(device.type)[device.index or 0]
    except (RuntimeError, IndexError) as error:
        raise RuntimeError(
            f"TorchBridge: parameters are on {device}, and JAX has no such device (it has {jax.devices()}); install "
            "JAX with CUDA support, pip install 'jax[cuda12]', or move the model to the CPU"
        ) from error
    warn_if_memory_is_held(found)
    return found


def has_jax_device(device: torch.device) -> bool:
    """Whether JAX has a device that shares memory with one of torch's."""
    if device.type == "cpu":
        return True
    try:
        return device.type == "cuda" and (device.index or 0) < len(jax.devices("cuda"))
    except RuntimeError:
        return False


def warn_if_memory_is_held(device: Device) -> None:
    """Warns if JAX's client took most of a GPU before the bridge could ask it not to."""
    stats = (device.memory_stats() or {}) if device.platform != "cpu" else {}
    if stats.get("pool_bytes", 0) > stats.get("bytes_limit", 0) / 2 > 0:
        warnings.warn(
            f"TorchBridge: JAX already holds {stats['pool_bytes'] / 2**30:.1f} GiB of {device}, which torch then "
            "lacks; make the optimizer before JAX's first computation, or set XLA_PYTHON_CLIENT_PREALLOCATE=false",
            stacklevel=2,
        )


def borrow_as_jax(tensor: torch.Tensor) -> Any:
    """An array over a tensor's memory, read only: what a jitted function takes without a copy where it can.

    On the CPU this is a NumPy view, the cheapest argument (5 us less than dlpack); on a GPU a JAX array.
    """
    if tensor.is_cuda:
        return jax.dlpack.from_dlpack(tensor.detach().resolve_conj().resolve_neg().contiguous())
    tensor = tensor.detach().cpu().resolve_conj().resolve_neg()
    if not tensor.numel() or tensor.layout != torch.strided:
        return np.empty(tuple(tensor.shape), jax_dtype(tensor.dtype))
    # Not `tensor.numpy()`, after which the storage's size could not change any more.
    size = tensor.element_size()
    strides = [size * stride for stride in tensor.stride()]
    length = size + sum(stride * (n - 1) for stride, n in zip(strides, tensor.shape, strict=True))
    buffer = (ctypes.c_char * length).from_address(tensor.data_ptr())
    vars(buffer)["owner"] = tensor
    return np.ndarray(tuple(tensor.shape), jax_dtype(tensor.dtype), buffer, strides=strides)  # pyright: ignore[reportArgumentType]


def borrow_flat(tensor: torch.Tensor) -> np.ndarray:
    """An array over the elements of a tensor on the CPU that has no gaps, as they lie."""
    buffer = (ctypes.c_char * (tensor.numel() * tensor.element_size())).from_address(tensor.data_ptr())
    vars(buffer)["owner"] = tensor
    return np.frombuffer(buffer, jax_dtype(tensor.dtype))  # pyright: ignore[reportCallIssue, reportArgumentType]


@functools.cache
def torch_dtype(dtype: Any) -> torch.dtype:
    """The dtype of torch that holds JAX's; signed integers for unsigned ones, which torch cannot pickle."""
    if dtype == ml_dtypes.bfloat16:
        return torch.bfloat16
    if dtype == np.uint32:
        return torch.int32
    return torch.from_numpy(np.empty(0, dtype)).dtype


@functools.cache
def jax_dtype(dtype: torch.dtype) -> Any:
    """The dtype of JAX that holds torch's."""
    return np.dtype(ml_dtypes.bfloat16) if dtype == torch.bfloat16 else torch.empty(0, dtype=dtype).numpy().dtype


def copy_to_jax(tensor: torch.Tensor, device: Device) -> jax.Array:
    """A JAX array of its own with a tensor's values; the tensor may change at once.

    With x64 disabled, 64-bit values would lose half their bits.
    """
    # What is put on a device may still be borrowed, which XLA could not overwrite; a copy of that is XLA's own. Made
    # like this it needs no program, where `.copy()` compiles one for each shape.
    borrowed = jax.device_put(borrow_as_jax(tensor.to("cpu") if device.platform == "cpu" else tensor), device)
    return jax.block_until_ready(jax.device_put(borrowed, device, may_alias=False))


def borrow_as_torch(array: jax.Array) -> torch.Tensor:
    """A tensor over an array's memory. JAX does not reuse that memory while the tensor lives.

    On a GPU it may as soon as the tensor is gone, though torch's stream has still to read it: see `wait_for_torch`.
    """
    return torch.from_dlpack(array)


def copy_borrowed(tensor: torch.Tensor, dtype: torch.dtype | None = None) -> torch.Tensor:
    """A borrowed tensor's values, or those of a part of it, in memory of torch's own."""
    copied = tensor.to(dtype, copy=True)
    wait_for_torch(tensor.device)
    return copied


def wait_for_torch(device: torch.device) -> None:
    """Waits until torch has read what it borrowed: JAX knows nothing of torch's streams, and may overwrite it then."""
    if device.type == "cuda":
        torch.cuda.current_stream(device).synchronize()


def pad_rows(rows: torch.Tensor, values: torch.Tensor) -> RowSparse:
    """Values (n, *row) of n different rows, padded to a power of two: few sizes are ever compiled."""
    size = 1 << max(len(rows) - 1, 0).bit_length()
    indices = torch.full((size,), ABSENT, dtype=torch.int32, device=rows.device)
    indices[: len(rows)] = rows
    padded = values.new_zeros((size, *values.shape[1:]))
    padded[: len(rows)] = values
    return RowSparse(indices, padded)  # pyright: ignore[reportArgumentType]  # of torch
