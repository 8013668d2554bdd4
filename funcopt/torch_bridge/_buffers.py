"""Tensors as arrays and back; who owns the memory is in the names.

`borrow_*` shares memory and is valid as long as its owner leaves it alone; `copy_*` owns what it returns; `write` is
the only function that changes a tensor.
"""

import os
import warnings
from collections.abc import Sequence
from typing import Any, NamedTuple, TypeAlias

import jax
import ml_dtypes
import numpy as np
import torch

from funcopt._rows import ABSENT, RowSparse

Device: TypeAlias = Any
"""A `jax.Device`, which type checkers take for a variable."""


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


def copy_rows_to_jax(gradient: torch.Tensor) -> RowSparse:
    """A sparse gradient's rows, each once, padded to a power of two: few sizes are ever compiled.

    Raises:
        RuntimeError: for a sparse tensor that is not made of rows.
    """
    if gradient.layout != torch.sparse_coo or gradient.sparse_dim() != 1:
        raise RuntimeError(
            "TorchBridge: a sparse gradient must consist of rows (torch.sparse_coo with one sparse dimension, as that "
            f"of torch.nn.Embedding), got {gradient.layout} with {gradient.sparse_dim()} sparse dimensions"
        )
    gradient = gradient.coalesce()
    indices, values = gradient.indices()[0].to(torch.int32), gradient.values()
    size = 1 << max(len(indices) - 1, 0).bit_length()
    padded = torch.full((size,), ABSENT, dtype=torch.int32, device=gradient.device)
    padded[: len(indices)] = indices
    return RowSparse(borrow_as_jax(padded), borrow_as_jax(_pad(values, size)))


def copy_same_rows_to_jax(tensor: torch.Tensor, gradient: torch.Tensor) -> RowSparse:
    """The rows of a parameter that its sparse gradient has, padded alike."""
    rows = copy_rows_to_jax(gradient)
    values = tensor.detach().index_select(0, gradient.coalesce().indices()[0])
    return RowSparse(rows.indices, borrow_as_jax(_pad(values, len(rows.indices))))


def _pad(values: torch.Tensor, size: int) -> torch.Tensor:
    padded = values.new_zeros((size, *values.shape[1:]))
    padded[: len(values)] = values
    return padded


class Writes(NamedTuple):
    """What is to be written: whole tensors, and rows of tensors. Writing it twice is writing it once."""

    tensors: list[torch.Tensor]
    values: list[torch.Tensor]
    rows: list[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]  # tensor, indices, values


def plan_writes(tensors: Sequence[torch.Tensor], before: Sequence[Any], after: Sequence[Any]) -> Writes:
    """Prepares to write an update's results into tensors; changes nothing.

    Args:
        tensors: the parameters.
        before: what the update was given of them: arrays, or `RowSparse` of some rows.
        after: what came back, ready, so that nothing that reads the tensors still runs. For a parameter that was given
            by rows: new values of these rows, or an array to be added to all of it.
    """
    writes = Writes([], [], [])
    for tensor, given, result in zip(tensors, before, after, strict=True):
        if isinstance(result, RowSparse):
            indices, rows = borrow_as_torch(result.indices), borrow_as_torch(result.values)
            present = int((indices < len(tensor)).sum())
            writes.rows.append((tensor, indices[:present].long(), rows[:present]))
        else:
            value = borrow_as_torch(result)
            writes.tensors.append(tensor)
            writes.values.append(tensor.detach() + value if isinstance(given, RowSparse) else value)
    return writes


def write(writes: Writes) -> None:
    """Carries out what is planned."""
    if writes.tensors:
        # One call, as in torch.optim, which no interrupt can split.
        torch._foreach_copy_(writes.tensors, writes.values)  # pyright: ignore[reportPrivateImportUsage]
    for tensor, indices, values in writes.rows:
        tensor.index_copy_(0, indices, values)
