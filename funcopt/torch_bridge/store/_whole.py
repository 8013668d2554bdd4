"""Parameters that are updated in their own shapes: by recipes that are not elementwise, and with gradients of rows.

Their state is torch's own tensors, which are borrowed for the update and written after it.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
import torch

from funcopt._rows import RowSparse
from funcopt.torch_bridge._binding import Binding, ProgramClass
from funcopt.torch_bridge._buffers import jax_dtype, pad_rows, torch_dtype
from funcopt.torch_bridge._metrics import Reading
from funcopt.torch_bridge._shards import local, local_like, sharding_of
from funcopt.torch_bridge._units import Entry, Form, Unit, value_of
from funcopt.torch_bridge.engines._engine import Engine, Part, Updated
from funcopt.torch_bridge.engines._recipes import Given, Whole


class Member(NamedTuple):
    """A parameter, its group and what it is called there."""

    param: torch.Tensor
    grad: torch.Tensor | None
    group: int
    key: str | int


class WholePart:
    """One update of some parameters in their own shapes.

    Args:
        binding: what to run.
        members: the parameters, in the order of their groups; without gradient where it comes to nothing.
        classes: of all groups.
        numbers: of all groups.
        given: what goes beside.
        engine: what updates them.
        device: where.
    """

    def __init__(
        self,
        binding: Binding,
        members: Sequence[Member],
        classes: Sequence[ProgramClass],
        numbers: Sequence[tuple[float, ...]],
        given: Given,
        engine: Engine,
        device: torch.device,
    ) -> None:
        groups = sorted({member.group for member in members})
        self.members = [member for group in groups for member in members if member.group == group]
        keys = [tuple(member.key for member in self.members if member.group == group) for group in groups]
        self._groups = groups
        self.recipe = Whole(binding, [classes[group] for group in groups], keys, given)
        self._numbers = np.array([number for group in groups for number in numbers[group]], np.float64)
        self._engine, self._device = engine, device
        self._index = {
            (i, member.key): j
            for i, group in enumerate(groups)
            for j, member in enumerate(self.members)
            if member.group == group
        }
        self._rows: list[_SparseRows | None] = [
            None if m.grad is None or m.grad.layout == torch.strided else _SparseRows(m.param, m.grad)
            for m in self.members
        ]
        self._first: Any = None
        self._is_taken: Callable[[torch.Tensor], bool] = lambda tensor: False
        for member in self.members:
            sharding = sharding_of(member.param)
            if sharding is not None and sharding.is_divided:
                raise RuntimeError(
                    f"TorchBridge: {binding.name} needs all of a parameter, and parameter {member.key!r} of group "
                    f"{member.group} is divided ({sharding}); replicate it, or give it an elementwise algorithm"
                )
        shapes = [
            jax.ShapeDtypeStruct(self._shape(j), jax_dtype(member.param.dtype)) for j, member in enumerate(self.members)
        ]
        self.form: Form = engine.form(self.recipe, self._numbers, shapes)

    def _shape(self, j: int) -> tuple[int, ...]:
        rows = self._rows[j]
        return tuple(self.members[j].param.shape) if rows is None else rows.shape

    def lend(
        self,
        state: Any,
        shared: dict[str, torch.Tensor],
        describe: Callable[[torch.Tensor], str],
        is_taken: Callable[[torch.Tensor], bool],
    ) -> Part:
        """What the update takes.

        Args:
            state: the optimizer's.
            shared: what is kept once for all.
            describe: names a parameter in messages.
            is_taken: whether a tensor lies in memory that the same update may overwrite; it is copied then.

        Raises:
            RuntimeError: for state that does not fit; nothing has been changed then.
        """
        self._is_taken = is_taken
        entries: list[Entry | None] = [state.get(member.param) for member in self.members]
        names: list[set[str]] = [set() for _ in self.members]
        for unit in self.form.units:
            if unit.place is not None and not unit.hidden:
                names[self._index[unit.place]].add(unit.name)
        self.fresh = [
            not entry or all(entry.get(name) is None for name in own) for entry, own in zip(entries, names, strict=True)
        ]
        leaves = [self._leaf(unit, entries, shared, describe) for unit in self.form.units]
        lent = [self._lend(j) for j in range(len(self.members))]
        all_due = all(member.grad is not None for member in self.members)
        due = [] if all_due else [float(member.grad is not None) for member in self.members]
        with self._engine.precision():
            tree = jax.tree.unflatten(self.form.treedef, leaves)
            given = (self._numbers, np.array(due), [g for g, _ in lent], [p for _, p in lent], tree)
        arrays, treedef = jax.tree.flatten(given)
        arrangement = treedef, *((array.shape, array.dtype) for array in arrays)
        return Part(self.recipe, arrangement, (), given, np.zeros((0, 0)), 0)

    def _lend(self, j: int) -> tuple[Any, Any]:
        """Gradient and parameter: of both the same rows, where the gradient has only some."""
        member, rows = self.members[j], self._rows[j]
        param = local(member.param).detach()
        if rows is not None:
            return rows.lend(self._engine, self._device)
        if member.grad is None:
            param = param.to(self._device)
            return self._engine.lend(torch.zeros_like(param)), self._lend_apart(param)
        grad = local_like(member.grad, sharding_of(member.param)).to(self._device)
        if grad.shape != param.shape:
            raise RuntimeError(
                f"TorchBridge: a gradient must have its parameter's shape {tuple(param.shape)}, got {tuple(grad.shape)}"
            )
        return self._engine.lend(grad), self._lend_apart(param.to(self._device))

    def _leaf(
        self,
        unit: Unit,
        entries: Sequence[Entry | None],
        shared: dict[str, torch.Tensor],
        describe: Callable[[torch.Tensor], str],
    ) -> Any:
        if unit.measures is not None:
            return np.zeros((), unit.dtype)
        if unit.place is None:
            known = shared.get(self._once(unit))
            for member, entry in zip(self.members, entries, strict=True):
                value = (entry or {}).get(unit.name)
                if value is not None and value is not known and unit.group in (None, self._groups.index(member.group)):
                    known = value
            return self.first(unit) if known is None else self._array(unit, known)
        j = self._index[unit.place]
        entry = entries[j]
        if self.fresh[j] or entry is None:
            return self.first(unit)
        rows, p = self._rows[j], self.members[j].param
        own = unit
        if rows is not None and unit.shape == rows.shape:
            own = dataclasses.replace(unit, shape=tuple(p.shape))
        value = value_of(own, entry, describe(p), "TorchBridge: step", RuntimeError)
        if value is None:
            return self.first(unit)
        if own is not unit:
            value = torch.as_tensor(value).reshape(unit.shape)
        return self._array(unit, value)

    def _once(self, unit: Unit) -> str:
        """What is kept once is known by its name, and by its group if it is one's own."""
        return unit.name if unit.group is None else f"{unit.name}@{self._groups[unit.group]}"

    def _array(self, unit: Unit, value: Any) -> Any:
        """A value of the state as the update takes it."""
        if unit.count is not None:
            return np.asarray(float(value)).astype(unit.dtype)
        if unit.is_key or unit.dtype == np.uint32:
            return self._engine.load(value, self.first(unit), self._device)
        tensor = local(torch.as_tensor(value)).to(device=self._device, dtype=torch_dtype(unit.dtype))
        return self._lend_apart(tensor)

    def _lend_apart(self, tensor: torch.Tensor) -> Any:
        return self._engine.lend(tensor.clone() if self._is_taken(tensor) else tensor)

    def first(self, unit: Unit) -> Any:
        """What a new state has there."""
        if self._first is None:
            params = []
            for j, member in enumerate(self.members):
                param = local(member.param).detach().to(self._device).reshape(self._shape(j))
                params.append(self._engine.lend(param))
            leaves = self._engine.init(self.recipe, self._numbers, params)
            self._first = {
                unit: leaf if unit.count is None else np.asarray(float(leaf)).astype(unit.dtype)
                for unit, leaf in zip(self.form.units, leaves, strict=True)
            }
        return self._first[unit]

    def store(self, result: Updated, state: Any, shared: dict[str, torch.Tensor]) -> list[torch.Tensor]:
        """Takes the update's results over; returns what was written."""
        new_params, new_state = result.arrays
        values = [value for node in new_params.values for value in node.values]
        for j, value in enumerate(values):
            if self.members[j].grad is not None:
                self._write(j, value)
        with self._engine.precision():
            leaves = jax.tree.leaves(new_state)
            own: dict[int, dict[Unit, Any]] = {}
            for unit, leaf in zip(self.form.units, leaves, strict=True):
                if unit.measures is not None:
                    continue
                if unit.place is None:
                    name = self._once(unit)
                    shared[name] = self._written(unit, leaf, shared.get(name), ())
                else:
                    own.setdefault(self._index[unit.place], {})[unit] = leaf
            kept = any(unit.name != "step" for units in own.values() for unit in units)
            for j, member in enumerate(self.members):
                units = {unit: leaf for unit, leaf in own.get(j, {}).items() if not unit.hidden}
                # A count alone is not the state of a parameter, such as one that is masked out, if others have more.
                if member.grad is None or not units or (kept and all(unit.name == "step" for unit in units)):
                    continue
                entry, rows = state[member.param], self._rows[j]
                for unit, leaf in units.items():
                    shape = tuple(member.param.shape) if rows is not None and unit.shape == rows.shape else unit.shape
                    entry[unit.name] = self._written(unit, leaf, entry.get(unit.name), shape)
        return [member.param for member in self.members if member.grad is not None]

    def readings(self, result: Updated) -> list[Reading]:
        """What the last update was like, if that is measured."""
        leaves = zip(self.form.units, jax.tree.leaves(result.arrays[1]), strict=True)
        return [
            Reading(unit.measures, np.array([self._groups[unit.group or 0]]), self._engine.tensor(leaf).reshape(1))
            for unit, leaf in leaves
            if unit.measures is not None
        ]

    def _write(self, j: int, value: Any) -> None:
        param, rows = local(self.members[j].param), self._rows[j]
        if rows is not None:
            rows.store(self._engine, value)
        else:
            param.copy_(self._engine.tensor(value))

    def _written(self, unit: Unit, leaf: Any, old: Any, shape: tuple[int, ...]) -> Any:
        """What an entry has for an array: the tensor that it had, if that fits, with the new values."""
        if unit.count is int:
            return int(leaf)
        if unit.count is float:
            dtype = torch.float64 if torch.get_default_dtype() == torch.float64 else torch.float32
            if isinstance(old, torch.Tensor) and old.shape == () and old.dtype.is_floating_point:
                return old.fill_(float(leaf))
            return torch.tensor(float(leaf), dtype=dtype)
        new = self._engine.tensor(leaf)
        new = new.reshape(shape) if new.numel() == int(np.prod(shape)) else new
        if isinstance(old, torch.Tensor) and old.shape == new.shape and old.dtype == new.dtype:
            return old.copy_(new)
        return new.clone()


class _SparseRows:
    """A sparse gradient as rows of its parameter: all sparse dimensions count as one."""

    def __init__(self, param: torch.Tensor, grad: torch.Tensor) -> None:
        if grad.layout != torch.sparse_coo:
            raise RuntimeError(f"TorchBridge: a sparse gradient must be torch.sparse_coo, got {grad.layout}")
        self._param = param
        sparse = grad.sparse_dim()
        self.shape = (int(np.prod(param.shape[:sparse])), *param.shape[sparse:])
        grad = grad.coalesce()
        values, flat = grad.values(), grad.values().new_zeros(len(grad.values()), dtype=torch.long)
        for axis, indices in enumerate(grad.indices()):
            flat = flat * param.shape[axis] + indices
        self._indices, self._values = flat, values

    def lend(self, engine: Engine, device: torch.device) -> tuple[Any, Any]:
        """The rows of the gradient, and those of the parameter."""
        own = self._view().index_select(0, self._indices.to(self._param.device)).to(device)
        rows = self._indices.to(device)
        found = pad_rows(rows, self._values.to(device)), pad_rows(rows, own)
        return tuple(RowSparse(engine.lend(x.indices), engine.lend(x.values)) for x in found)  # pyright: ignore

    def _view(self) -> torch.Tensor:
        return self._param.detach().reshape(self.shape)

    def store(self, engine: Engine, result: Any) -> None:
        """Writes the new rows; or a dense update of all of them."""
        param = self._param.detach()
        if isinstance(result, RowSparse):
            values = engine.tensor(result.values)[: len(self._indices)]
            view = self._view()
            view.index_copy_(0, self._indices.to(param.device), values.to(param.device))
            if view.data_ptr() != param.data_ptr():
                param.copy_(view.view(param.shape))
        else:
            param.add_(engine.tensor(result).to(param.device).view(param.shape))
