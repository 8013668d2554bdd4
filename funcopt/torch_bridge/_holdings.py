"""What an optimizer holds beside its groups: the memory of its parameters and their state, both divided into parts."""

from collections import Counter
from collections.abc import Hashable, Mapping, Sequence
from operator import attrgetter
from typing import Any

import numpy as np
import torch

from funcopt.rule import ElementwiseTransformation, PyTree
from funcopt.torch_bridge import _buffers, _matching, _state_dict
from funcopt.torch_bridge._binding import Binding, Layout
from funcopt.torch_bridge._engine import Engine, Update
from funcopt.torch_bridge._memory import Blocks
from funcopt.torch_bridge._parts import Candidate, Part, Place, make_parts

MAX_DIVISIONS = 8
"""How often joined parameters are divided by which of them miss gradients. After that, those that differ stay alone."""

Group = Mapping[str, Any]
Gradients = list[list[torch.Tensor] | None]
"""For each block those of its parameters, or None where it has none."""

_ROWS = "rows"
_layout_of = attrgetter("layout")


class Holdings:
    """Memory and state of all parameters, and the engine that updates them.

    Args:
        binding: what to run.
        groups: the optimizer's groups.
        fast: whether an elementwise recipe gets joined parameters.
    """

    layout: Layout
    _repeats: Mapping[torch.Tensor, int]  # how often a parameter is in its group

    def __init__(self, binding: Binding, groups: Sequence[Group], *, fast: bool) -> None:
        self._binding = binding
        self._fast = fast
        sizes = Counter[torch.device]()
        for group in groups:
            for p in group["params"]:
                sizes[p.device] += 1 + p.numel()
        # Parameters on other devices are copied to the one that has the most, and back.
        self._device = max(sizes, key=sizes.__getitem__, default=torch.device("cpu"))
        devices = {device: _buffers.jax_device(device) for device in (*sizes, self._device)}
        self.engine = Engine(binding, devices[self._device])
        self._tree: PyTree = None
        self._found: dict[torch.Tensor, _state_dict.Leaves] | None = None  # where the state is, once someone asked
        self._in_place = False
        self._apart: dict[torch.Tensor, Hashable] = {}  # what keeps a parameter from being joined with others
        self._divisions = 0
        self.blocks = Blocks([], {}, 0, self.engine.device, self._device)
        self.assemble(groups, {}, complete=False)

    @torch.no_grad()
    def assemble(self, groups: Sequence[Group], entries: Mapping[Place, _state_dict.Entry], *, complete: bool) -> None:
        """Makes memory and state anew, with what is known of the state; changes nothing if that does not fit.

        Args:
            groups: as they are to be.
            entries: the state by parameter; an empty entry, or none, is a parameter that was never updated.
            complete: whether an entry must have all that the state consists of.

        Raises:
            ValueError: for an entry that does not fit.
        """
        layout, numbers = self._binding.split(groups)
        tx = self._binding.build(layout.fill(numbers.tolist()))
        flat = self._fast and isinstance(tx, ElementwiseTransformation)
        repeats = Counter(p for group in groups for p in group["params"])
        places = _places(groups)
        histories = _state_dict.histories({place: entries.get(place, {}) for place in places}, places)
        candidates = (
            Candidate(
                place,
                p,
                (p.requires_grad, repeats[p], self._apart.get(p), histories[place]),
                flat and self._apart.get(p) != _ROWS,
            )
            for place, p in places.items()
        )
        parts = make_parts(candidates, even=self._device.type == "cpu")
        with self.engine.precision():
            blocks = self._blocks_of(parts, groups)
            fresh = self.engine.init(layout, numbers, blocks.lend_params())
            tree = _state_dict.write_entries(fresh, entries, parts, self.engine.device, _describe, complete=complete)
        self.layout, self._in_place, self._repeats = layout, flat, repeats
        self.blocks, self._tree, self._found = blocks, tree, None

    def rebuild(self, groups: Sequence[Group], known: Mapping[torch.Tensor, _state_dict.Entry] | None = None) -> None:
        """Makes memory and state anew with what is known of the state, however little; by default all that is here."""
        if known is None:
            known = self.entries(groups)
        self.assemble(groups, {place: known.get(p, {}) for place, p in _places(groups).items()}, complete=False)

    def leaves(self, groups: Sequence[Group]) -> dict[torch.Tensor, _state_dict.Leaves]:
        """What there is of each parameter that has state; valid until the next update."""
        if self._found is None:
            with self.engine.precision():
                leaves = _state_dict.read_leaves(self._tree, self.blocks.parts)
            self._found = {p: leaves[place] for place, p in _places(groups).items() if leaves[place]}
        return self._found

    def entries(self, groups: Sequence[Group]) -> dict[torch.Tensor, _state_dict.Entry]:
        """The state of each parameter that has any."""
        return {p: self.entry(leaves) for p, leaves in self.leaves(groups).items()}

    def entry(self, leaves: _state_dict.Leaves) -> _state_dict.Entry:
        with self.engine.precision():
            return _state_dict.as_entry(leaves)

    def gradients(self, groups: Sequence[Group]) -> Gradients:
        """The gradients that there are; parameters of which some have one and others not are no longer joined."""
        if any(block.has_moved() for block in self.blocks):
            self._settle(groups)
        grads: list[list[Any]] = [[p.grad for p in block.params] for block in self.blocks]
        divided = {
            p: self._reason(p, grad)
            for block, own in zip(self.blocks, grads, strict=True)
            if not block.takes(_kinds_of(own))
            for p, grad in zip(block.params, own, strict=True)
        }
        if not divided:
            return [None if own[0] is None else own for own in grads]
        self._divisions += 1
        self._apart |= divided
        self.rebuild(groups)
        return self.gradients(groups)

    @torch.no_grad()
    def _settle(self, groups: Sequence[Group]) -> None:
        """Makes the memory of parameters anew that someone has moved, and the state, too, where it no longer fits."""
        if all(block.fits() for block in self.blocks):
            with self.engine.precision():
                self.blocks = self._blocks_of(self.blocks.parts, groups)
        else:
            self.rebuild(groups)

    def _blocks_of(self, parts: Sequence[Part], groups: Sequence[Group]) -> Blocks:
        return Blocks(parts, _places(groups), len(groups), self.engine.device, self._device, reuse=self.blocks)

    def _reason(self, p: torch.Tensor, grad: torch.Tensor | None) -> Hashable:
        if grad is not None and grad.layout != torch.strided:
            return _ROWS
        return (self._apart.get(p), grad is None) if self._divisions < MAX_DIVISIONS else id(p)

    def update(self, numbers: np.ndarray, grads: Gradients, amp: tuple[Any, Any] | None, extra: dict[str, Any]) -> None:
        """Updates the parameters that have a gradient; one that its group has several times as often.

        To be called where nothing interrupts it: the update may write over state and parameters.
        """
        self._found = None
        for repeat in range(max(self._repeats.values())):
            due = [
                own if own is not None and self._repeats[block.params[0]] > repeat else None
                for block, own in zip(self.blocks, grads, strict=True)
            ]
            update = Update(*self.blocks.lend(due), self._tree, amp, extra)
            results, self._tree = self.engine.update(self.layout, numbers, update, in_place=self._in_place)
            self.blocks.store(results)


def _kinds_of(grads: Sequence[torch.Tensor | None]) -> set[torch.layout | None]:
    """The layouts of gradients; None for those that are missing."""
    present = [grad for grad in grads if grad is not None]
    kinds: set[torch.layout | None] = set(map(_layout_of, present))
    return kinds if len(present) == len(grads) else kinds | {None}


def _places(groups: Sequence[Group]) -> dict[Place, torch.Tensor]:
    """Each parameter once, at its first place."""
    places: dict[torch.Tensor, Place] = {}
    for i, group in enumerate(groups):
        for key, p in zip(_matching.keys_of(group), group["params"], strict=True):
            places.setdefault(p, (i, key))
    return {place: p for p, place in places.items()}


def _describe(place: Place) -> str:
    group, key = place
    return f"parameter {key!r} of group {group}"
