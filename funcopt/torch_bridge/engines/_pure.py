"""A recipe as a pure function of torch's tensors, hyperparameters and counts among them.

Nothing is written and nothing leaves the device: autograd goes through it, `torch.func.vmap` over it, and a CUDA graph
can hold it.
"""

import contextlib
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
import torch

from funcopt.torch_bridge._binding import Binding, ProgramClass
from funcopt.torch_bridge._buffers import jax_dtype, torch_dtype
from funcopt.torch_bridge._units import Entry, Form, Unit, form_of, value_of
from funcopt.torch_bridge.engines import _kept
from funcopt.torch_bridge.engines._code import Functional, functional
from funcopt.torch_bridge.engines._lowering import Operand, lower
from funcopt.torch_bridge.engines._operations import NotCovered, Op
from funcopt.torch_bridge.engines._recipes import Given, Whole, class_form
from funcopt.torch_bridge.engines._segments import NotByRows


class _Code(NamedTuple):
    """Code, and what its results consist of."""

    code: Functional
    outputs: list[Operand]
    structure: Any
    multiplies: bool = False  # whether an update has products of matrices


class Pure:
    """What one update does to some parameters.

    Args:
        binding: the recipe.
        classes: of the groups.
        keys: of each group's parameters.
        valued: whether there is a loss.
        params: the parameters, in the order of the keys; their shapes and dtypes.
    """

    def __init__(
        self,
        binding: Binding,
        classes: Sequence[ProgramClass],
        keys: Sequence[tuple[str | int, ...]],
        valued: bool,
        params: Sequence[torch.Tensor],
    ) -> None:
        self._recipe = Whole(binding, classes, keys, Given(False, valued))
        self._valued = valued
        self._shapes = [jax.ShapeDtypeStruct(tuple(p.shape), jax_dtype(p.dtype)) for p in params]
        self._places = [(i, key) for i, own in enumerate(keys) for key in own]
        self._size = sum(found.size for found in classes)
        # torch keeps numbers in its default dtype where that is wider.
        self._wide = torch.get_default_dtype() == torch.float64
        self._key = self._recipe, self._wide, *((x.shape, x.dtype) for x in self._shapes)
        self.form: Form = _kept.kept((*self._key, "form"), self._find_form)

    @property
    def shown(self) -> set[str]:
        """The names that torch's entries have."""
        return {unit.name for unit in self.form.units if not unit.hidden}

    def _find_form(self) -> Form:
        with jax.enable_x64(True):
            return form_of(jax.eval_shape(self._recipe.init, np.zeros(self._size), list(self._shapes)))

    def check_covered(self) -> None:
        """Writes the code.

        Raises:
            NotCovered: for what torch has no operation for.
        """
        self._update()

    @property
    def multiplies(self) -> bool:
        """Whether the update multiplies matrices; raises what `check_covered` does."""
        return self._update().multiplies

    def _update(self) -> _Code:
        return _kept.kept((*self._key, "pure update"), self._write)

    def init(self, numbers: Sequence[torch.Tensor], params: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """The leaves of a new state."""

        def make() -> _Code:
            def init(numbers: list[Any], params: list[Any]) -> Any:
                return jax.tree.leaves(self._recipe.init(jax.numpy.asarray(numbers), params))

            own = [jax.ShapeDtypeStruct((), np.dtype(np.float64))] * self._size
            with jax.enable_x64(True):
                lowered = lower(jax.make_jaxpr(init)(own, list(self._shapes)))
            return _Code(functional(lowered.ops, lowered.inputs, [], lowered.outputs, {}), lowered.outputs, None)

        return _run(_kept.kept((*self._key, "pure init"), make), [*numbers, *params], params[0].device)

    def update(
        self,
        numbers: Sequence[torch.Tensor],
        grads: Sequence[torch.Tensor],
        params: Sequence[torch.Tensor],
        entries: Sequence[Entry],
        loss: torch.Tensor | None,
        where: Sequence[str],
        error: type[Exception],
    ) -> tuple[list[torch.Tensor], list[Entry], list[tuple[Unit, torch.Tensor]]]:
        """New parameters, new entries of their state, and what the update was like, if that is measured.

        Args:
            numbers: float64 scalars, the groups' hyperparameters.
            grads: the gradients.
            params: the parameters.
            entries: their state; empty at first.
            loss: what the closure returned, if it was said that there is one.
            where: what to call the parameters in messages.
            error: what to raise for entries that do not fit.
        """
        first: list[torch.Tensor] = []
        device = params[0].device

        def leaf(i: int, unit: Unit) -> torch.Tensor:
            if unit.measures is not None:
                return torch.zeros(unit.shape, dtype=torch_dtype(self._dtype(unit)), device=device)
            index = 0 if unit.place is None else self._places.index(unit.place)
            owners = [index] if unit.place is not None else self._owners(unit)
            entry = next((entries[j] for j in owners if entries[j]), {})
            value = None
            if entry:
                kept = entry.get(unit.name) if unit.hidden else None
                value = value_of(unit, entry, where[index], "TorchBridge: step", error) if kept is None else kept
            if value is None:
                if not first:
                    first.extend(self.init(numbers, params))
                value = first[i]
            if unit.is_key:  # computed with in int64, without a sign
                return torch.as_tensor(value, device=device).to(torch.int64) & 0xFFFFFFFF
            return torch.as_tensor(value, device=device).to(torch_dtype(self._dtype(unit))).reshape(unit.shape)

        leaves = [leaf(i, unit) for i, unit in enumerate(self.form.units)]
        extra = [] if loss is None else [loss.to(device, torch.float64)]
        arrays = [*extra, *(x.to(device) for x in numbers), *grads, *params, *leaves]
        results = _run(self._update(), arrays, device)
        new_params, new_leaves = results[: len(params)], results[len(params) :]
        measured = [(u, x) for u, x in zip(self.form.units, new_leaves, strict=True) if u.measures is not None]
        return new_params, self.entries(new_leaves), measured

    def entries(self, leaves: Sequence[torch.Tensor]) -> list[Entry]:
        """The parameters' entries, of the leaves of a state; with what torch has not, too."""
        found: list[Entry] = [{} for _ in self._places]
        for unit, value in zip(self.form.units, leaves, strict=True):
            if unit.measures is not None:
                continue
            value = value.to(torch.float64 if self._wide else torch.float32) if unit.count is float else value
            value = value.to(torch.int32) if unit.is_key else value
            for j in [self._places.index(unit.place)] if unit.place is not None else self._owners(unit):
                found[j][unit.name] = value
        return found

    def _dtype(self, unit: Unit) -> Any:
        number = self._wide and unit.shape == () and unit.dtype == np.float32
        return np.dtype(np.float64) if number else unit.dtype

    def _owners(self, unit: Unit) -> list[int]:
        return [j for j, (group, _) in enumerate(self._places) if unit.group in (None, group)]

    def _write(self) -> _Code:
        tree = jax.tree.unflatten(self.form.treedef, [np.zeros(0)] * len(self.form.units))
        counts = (int(self._valued), self._size, 0)
        treedef = jax.tree.structure([list(self._shapes), list(self._shapes), tree])
        state = [jax.ShapeDtypeStruct(unit.shape, self._dtype(unit)) for unit in self.form.units]
        with jax.enable_x64(True):
            traced, structure = self._recipe.trace(counts, treedef, [*self._shapes * 2, *state], totals=False)
            lowered = lower(traced.closed)
        code = functional(lowered.ops, lowered.inputs, [], lowered.outputs, {})
        return _Code(code, lowered.outputs, structure, _multiplies(lowered.ops))


def multiplies(binding: Binding, found: ProgramClass, p: torch.Tensor) -> bool:
    """Whether a recipe multiplies matrices of a parameter, by operations that torch has."""
    # Otherwise the step finds another way, or says what is wrong.
    with jax.enable_x64(True), contextlib.suppress(NotCovered, TypeError, ValueError):
        try:
            class_form(binding, found, jax_dtype(p.dtype))
        except NotByRows:
            return Pure(binding, [found], [(0,)], False, [p]).multiplies
    return False


def _multiplies(ops: Sequence[Op]) -> bool:
    return any(op.name == "dot_general" and all(len(x.shape) > 1 for x in op.inputs) for op in ops)


def _run(own: _Code, arrays: Sequence[torch.Tensor], device: torch.device) -> list[torch.Tensor]:
    results = own.code.run(list(arrays), [], device)
    return [
        x if isinstance(x, torch.Tensor) else torch.full(like.shape, x, dtype=torch_dtype(like.dtype), device=device)
        for x, like in zip(results, own.outputs, strict=True)
    ]
