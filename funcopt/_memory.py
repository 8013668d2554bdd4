"""How many bytes a state takes, by key."""

import dataclasses
import math
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import jax

from funcopt._names import align
from funcopt._parts import names_of, parts
from funcopt.rule import GradientTransformation, PyTree


class StateKey(NamedTuple):
    """One state key: how much of it there is."""

    key: str
    dtype: str
    arrays: int
    elements: int
    bytes: int


@dataclasses.dataclass(frozen=True)
class Memory:
    """What a state takes; printing it shows the table.

    Attributes:
        rows: by state key and dtype, in the state's order.
        params: number of the parameters' elements.
        params_bytes: bytes of the parameters themselves.
    """

    rows: tuple[StateKey, ...]
    params: int
    params_bytes: int

    @property
    def bytes(self) -> int:
        """Bytes of the state, without the parameters."""
        return sum(row.bytes for row in self.rows)

    @property
    def bytes_per_element(self) -> float:
        """Bytes of state for each element of the parameters."""
        return self.bytes / max(self.params, 1)

    def __str__(self) -> str:
        shown = [(row.key, row.dtype, f"{row.arrays:,}", f"{row.elements:,}", f"{row.bytes:,}") for row in self.rows]
        table = [("key", "dtype", "arrays", "elements", "bytes"), *shown, ("state", "", "", "", f"{self.bytes:,}")]
        lines = align(table, right=(2, 3, 4))
        summary = f"{self.bytes_per_element:.4g} bytes for each of {self.params:,} elements, "
        return "\n".join([*lines, f"{summary}which take {self.params_bytes:,} bytes themselves"])


def memory(optimizer: Any, params: PyTree = None) -> Memory:
    """What the state of an optimizer takes, without making it: nothing is computed or allocated.

    Args:
        optimizer: a transformation, funcopt's or optax's; or a torch optimizer, whose state is counted as it is.
        params: parameters that the transformation is for: a pytree of arrays or of `jax.ShapeDtypeStruct`. Not with a
            torch optimizer, which has them.

    Returns:
        Bytes by state key.

    Raises:
        ValueError: if `params` is missing.

    Example:
        >>> import funcopt, jax, jax.numpy as jnp
        >>> params = {"w": jax.ShapeDtypeStruct((4096, 4096), jnp.bfloat16)}
        >>> print(f"{funcopt.memory(funcopt.adamw(1e-3), params).bytes_per_element:.2f}")
        4.00
    """
    if hasattr(optimizer, "param_groups"):
        return _memory([*_of_torch(optimizer)], [p for group in optimizer.param_groups for p in group["params"]])
    if not isinstance(optimizer, GradientTransformation):
        raise TypeError(f"memory: optimizer must be a transformation or a torch optimizer, got {optimizer!r}")
    if params is None:
        raise ValueError("memory: params must be given with a transformation, got None; shapes are enough")
    return memory_of_parts([(optimizer, params)])


def _memory(found: list[tuple[str, Any]], params: list[Any]) -> Memory:
    sizes = [(math.prod(p.shape), p.dtype.itemsize) for p in params]
    return Memory(_rows(found), sum(size for size, _ in sizes), sum(size * width for size, width in sizes))


def memory_of_parts(parts_of_model: Iterable[tuple[GradientTransformation, PyTree]]) -> Memory:
    """The same for a model in several parts, each with its transformation and its shapes."""
    found: list[tuple[str, Any]] = []
    params: list[Any] = []
    for tx, own in parts_of_model:
        found += _of_state(jax.eval_shape(tx.init, own), names_of(own)[1])
        params += jax.tree.leaves(own)
    return _memory(found, params)


def _of_state(state: PyTree, treedef: Any) -> Iterator[tuple[str, Any]]:
    for key, each, common in parts(state, treedef):
        yield from ((key, value) for value in (each or [common]) if hasattr(value, "dtype"))


def _of_torch(optimizer: Any) -> Iterator[tuple[str, Any]]:
    for entry in optimizer.state.values():
        yield from ((key, value) for key, value in entry.items() if hasattr(value, "dtype"))


def _rows(found: list[tuple[str, Any]]) -> tuple[StateKey, ...]:
    rows: dict[tuple[str, str], StateKey] = {}
    for key, value in found:
        dtype = str(value.dtype).removeprefix("torch.")
        before = rows.get((key, dtype), StateKey(key, dtype, 0, 0, 0))
        size = math.prod(value.shape)
        rows[key, dtype] = StateKey(
            key, dtype, before.arrays + 1, before.elements + size, before.bytes + size * value.dtype.itemsize
        )
    return tuple(rows.values())
