"""Parameter groups as pytrees.

The parameters that a transformation sees in the bridge are `PerGroup((GroupLeaves((p, q)), GroupLeaves((r,))))`. A
hyperparameter with one value per group is then the prefix `PerGroup((1e-3, 1e-4))`, and whatever state is kept per
parameter is recognised by its `GroupLeaves`, whoever wrote the transformation.
"""

import operator
from collections.abc import Callable, Iterable
from typing import Any

import jax
from jax.tree_util import DictKey, SequenceKey


class GroupLeaves:
    """One value per parameter of a group; keys are the parameters' names, or their places in the group."""

    def __init__(self, group: int, keys: tuple[str | int, ...], values: Iterable[Any]) -> None:
        self.group = group
        self.keys = keys
        self.values = tuple(values)

    def items(self) -> Iterable[tuple[str | int, Any]]:
        return zip(self.keys, self.values, strict=True)

    def take(self, keys: tuple[str | int, ...]) -> "GroupLeaves":
        """The values of some parameters only: of those that are here."""
        by_key = dict(self.items())
        own = tuple(key for key in keys if key in by_key)
        return GroupLeaves(self.group, own, (by_key[key] for key in own))

    def put(self, part: "GroupLeaves") -> "GroupLeaves":
        """These values, with those of some parameters replaced."""
        replaced = dict(part.items())
        return GroupLeaves(self.group, self.keys, (replaced.get(key, value) for key, value in self.items()))

    def __repr__(self) -> str:
        return f"GroupLeaves({dict(self.items())})"


class PerGroup:
    """One value per parameter group. Numbers support arithmetic, so that a recipe may compute with them."""

    def __init__(self, values: Iterable[Any]) -> None:
        self.values = tuple(values)

    def _combine(self, other: Any, op: Callable[[Any, Any], Any]) -> "PerGroup":
        if isinstance(other, PerGroup):
            return PerGroup(op(a, b) for a, b in zip(self.values, other.values, strict=True))
        if getattr(other, "ndim", 0):
            raise TypeError(
                "a hyperparameter with one value per parameter group met an array; hand it on to one of funcopt's "
                "transformations (funcopt.scale instead of optax.scale), which give each parameter its group's value"
            )
        return PerGroup(op(value, other) for value in self.values)

    def __add__(self, other: Any) -> "PerGroup":
        return self._combine(other, operator.add)

    def __radd__(self, other: Any) -> "PerGroup":
        return self._combine(other, lambda a, b: b + a)

    def __sub__(self, other: Any) -> "PerGroup":
        return self._combine(other, operator.sub)

    def __rsub__(self, other: Any) -> "PerGroup":
        return self._combine(other, lambda a, b: b - a)

    def __mul__(self, other: Any) -> "PerGroup":
        return self._combine(other, operator.mul)

    def __rmul__(self, other: Any) -> "PerGroup":
        return self._combine(other, lambda a, b: b * a)

    def __truediv__(self, other: Any) -> "PerGroup":
        return self._combine(other, operator.truediv)

    def __rtruediv__(self, other: Any) -> "PerGroup":
        return self._combine(other, lambda a, b: b / a)

    def __pow__(self, other: Any) -> "PerGroup":
        return self._combine(other, operator.pow)

    def __rpow__(self, other: Any) -> "PerGroup":
        return self._combine(other, lambda a, b: b**a)

    def __neg__(self) -> "PerGroup":
        return PerGroup(-value for value in self.values)

    def __getitem__(self, index: int) -> "PerGroup":
        """The same entry of each group's tuple: `betas[0]`."""
        return PerGroup(value[index] for value in self.values)

    def __iter__(self) -> Any:
        raise TypeError("a hyperparameter with one value per parameter group is not a sequence; index it: betas[0]")

    def __bool__(self) -> bool:
        raise TypeError("a hyperparameter with one value per parameter group is neither true nor false")

    def __repr__(self) -> str:
        return f"PerGroup{self.values}"


def _key_entry(key: str | int) -> Any:
    return SequenceKey(key) if isinstance(key, int) else DictKey(key)


jax.tree_util.register_pytree_with_keys(
    GroupLeaves,
    lambda node: ([(_key_entry(key), value) for key, value in node.items()], (node.group, node.keys)),
    lambda aux, values: GroupLeaves(*aux, values),
    lambda node: (node.values, (node.group, node.keys)),
)
jax.tree_util.register_pytree_with_keys(
    PerGroup,
    lambda node: ([(SequenceKey(i), value) for i, value in enumerate(node.values)], None),
    lambda _, values: PerGroup(values),
    lambda node: (node.values, None),
)


def is_group_leaves(node: object) -> bool:
    return isinstance(node, GroupLeaves)
