"""Functions of tensors that several of torch's operations make up."""

from collections.abc import Sequence

import torch


def take(array: torch.Tensor, indices: torch.Tensor, axis: int, filled: bool, fill: float) -> torch.Tensor:
    """What is at indices (..., 1) of an axis, which they take the place of; where there is nothing, a number."""
    flat, size = indices[..., 0].to(torch.int64), array.shape[axis]
    found = array[(slice(None),) * axis + (flat.clamp(0, max(size - 1, 0)),)]
    if not filled:
        return found
    inside = ((flat >= 0) & (flat < size)).reshape(*flat.shape, *[1] * (array.dim() - axis - 1))
    return torch.where(inside, found, torch.full((), fill, dtype=array.dtype, device=array.device))


def put(array: torch.Tensor, indices: torch.Tensor, rows: torch.Tensor, how: str) -> torch.Tensor:
    """An array with rows at indices (n, 1) replaced, or added to; those outside of it are dropped."""
    flat = indices[:, 0].to(torch.int64)
    # One row more takes what is dropped.
    flat = torch.where((flat >= 0) & (flat < array.shape[0]), flat, array.shape[0])
    longer = torch.cat([array, array.new_zeros((1, *array.shape[1:]))])
    found = longer.index_add(0, flat, rows) if how == "add" else longer.index_copy(0, flat, rows)
    return found[:-1]


def quotient(x: torch.Tensor, y: torch.Tensor, none: int) -> torch.Tensor:
    """Integers divided, towards 0; where there is no quotient, a number, -1 of those with a sign."""
    is_none, is_minus_one = y == 0, (y == none) & (none < 0)
    found = torch.div(x, torch.where(is_none | is_minus_one, 1, y), rounding_mode="trunc")
    return torch.where(is_none, none, torch.where(is_minus_one, -x, found))


def remainder(x: torch.Tensor, y: torch.Tensor, none: int) -> torch.Tensor:
    """What `quotient` leaves; all where there is none."""
    is_none, is_minus_one = y == 0, (y == none) & (none < 0)
    return torch.where(is_none, x, torch.fmod(x, torch.where(is_none | is_minus_one, 1, y)))


def shift(x: torch.Tensor, by: torch.Tensor, bits: int, how: str) -> torch.Tensor:
    """Integers shifted; by all their bits or more, nothing is left but, of an arithmetic shift, the sign."""
    inside = (by >= 0) & (by < bits)
    if how == "arithmetic":
        return torch.bitwise_right_shift(x, torch.where(inside, by, bits - 1))
    by = torch.where(inside, by, 0)
    if how == "left":
        found = torch.bitwise_left_shift(x, by)
    else:
        sign = torch.bitwise_left_shift(torch.full_like(x, -2), bits - 1 - by)
        found = torch.bitwise_right_shift(x, by) & ~sign
    return torch.where(inside, found, 0)


def to_integer(x: torch.Tensor, dtype: torch.dtype, lowest: int, highest: int) -> torch.Tensor:
    """Towards 0, and to the nearest of the dtype; 0 of NaN."""
    found = torch.where(x >= highest, highest, torch.where(x <= lowest, lowest, x.to(dtype)))
    return torch.where(torch.isnan(x), 0, found)


def sort(operands: Sequence[torch.Tensor], dimension: int, keys: int) -> list[torch.Tensor]:
    """Operands in the order of the first ones."""
    view = [-1 if i == dimension else 1 for i in range(operands[0].dim())]
    order = torch.arange(operands[0].shape[dimension], device=operands[0].device).view(view).expand_as(operands[0])
    for key in reversed(operands[:keys]):
        again = torch.argsort(torch.gather(key, dimension, order), dim=dimension, stable=True)
        order = torch.gather(order, dimension, again)
    return [torch.gather(operand, dimension, order) for operand in operands]


def eigh(x: torch.Tensor, triangle: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Eigenvectors and eigenvalues, which rise; of a matrix with NaN or inf NaN, where torch raises an error."""
    finite = _is_finite(x)
    values, vectors = torch.linalg.eigh(torch.where(finite, x, 0.0), UPLO=triangle)
    return torch.where(finite, vectors, torch.nan), torch.where(finite[..., 0], values, torch.nan)


def svd(x: torch.Tensor, vectors: bool, full: bool) -> tuple[torch.Tensor, ...]:
    """Singular values, which fall, and vectors; of a matrix with NaN or inf NaN, where torch raises an error."""
    finite = _is_finite(x)
    x = torch.where(finite, x, 0.0)
    if not vectors:
        return (torch.where(finite[..., 0], torch.linalg.svdvals(x), torch.nan),)
    left, values, right = torch.linalg.svd(x, full_matrices=full)
    values = torch.where(finite[..., 0], values, torch.nan)
    return values, torch.where(finite, left, torch.nan), torch.where(finite, right, torch.nan)


def _is_finite(x: torch.Tensor) -> torch.Tensor:
    """Of each matrix (..., 1, 1)."""
    return torch.isfinite(x).all(-1, keepdim=True).all(-2, keepdim=True)


def threefry2x32(
    key_0: torch.Tensor, key_1: torch.Tensor, x_0: torch.Tensor, x_1: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Threefry-2x32 with 20 rounds (Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3").

    Args:
        key_0: uint32 in int64, as all are; spread over each other.
        key_1: the same.
        x_0: what to encrypt.
        x_1: the same.
    """
    shape = torch.broadcast_shapes(key_0.shape, key_1.shape, x_0.shape, x_1.shape)
    # In 32 bits, which wrap by themselves.
    key_0, key_1 = key_0.to(torch.int32), key_1.to(torch.int32)
    keys = key_0, key_1, key_0 ^ key_1 ^ 0x1BD11BDA
    a, b = ((x.to(torch.int32) + key).expand(shape).contiguous() for x, key in ((x_0, key_0), (x_1, key_1)))
    for i in range(5):
        for rotation in _ROTATIONS[i % 2]:
            a += b
            low = (b >> (32 - rotation)).bitwise_and_(2**rotation - 1)
            b = (b << rotation).bitwise_or_(low).bitwise_xor_(a)
        a += keys[(i + 1) % 3]
        b += keys[(i + 2) % 3] + (i + 1)
    return a.to(torch.int64).bitwise_and_(2**32 - 1), b.to(torch.int64).bitwise_and_(2**32 - 1)


_ROTATIONS = (13, 15, 26, 6), (17, 29, 16, 24)
