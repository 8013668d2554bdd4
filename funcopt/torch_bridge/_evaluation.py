"""The weights to evaluate, in the place of those that are trained, and back.

`eval` puts a copy of what is trained into each parameter's state, under `train_params`, then says in the groups that
these are weights to evaluate (`train_mode` False), and then changes the parameters; `train` does the same backwards. In
this order whatever is interrupted can be done again, and a checkpoint of either mode has everything.
"""

from collections.abc import Callable, Iterable, MutableMapping, Sequence
from typing import Any, NamedTuple

import torch

from funcopt.torch_bridge._units import Entry, Unit

MODE, BACKUP = "train_mode", "train_params"

State = MutableMapping[torch.Tensor, Entry]


class Keeper(NamedTuple):
    """A state that tells weights to evaluate, as a parameter's entry has it."""

    kind: Any  # its class, with `evaluated(param)` and perhaps `trained(param)`, of one array
    names: dict[str, str]  # of its fields in the entry

    def of(self, entry: Entry, p: torch.Tensor) -> Any:
        """One parameter's state, in the precision that is computed in; None if it has none yet."""
        if any(name not in entry for name in self.names.values()):
            return None
        fields = {field: _as_computed(entry[name], p) for field, name in self.names.items()}
        return self.kind(**{**dict.fromkeys(self.kind._fields), **fields})


def keeper_of(units: Iterable[Unit]) -> Keeper | None:
    """What of a state tells weights to evaluate.

    Raises:
        RuntimeError: if several do.
    """
    found: dict[str, list[Unit]] = {}
    for unit in units:
        if unit.keeper is not None and not unit.hidden:
            found.setdefault(unit.keeper[1], []).append(unit)
    if not found:
        return None
    if any(len(own) > 1 for own in found.values()):
        names = ", ".join(sorted({unit.keeper[0].__name__ for own in found.values() for unit in own if unit.keeper}))
        raise RuntimeError(f"TorchBridge: eval must be of one state that keeps weights to evaluate, got {names}")
    (kind,) = {unit.keeper[0] for own in found.values() for unit in own if unit.keeper is not None}
    return Keeper(kind, {field: own[0].name for field, own in found.items()})


def is_evaluating(groups: Sequence[dict[str, Any]]) -> bool:
    """Whether the parameters are those to evaluate."""
    return any(not group.get(MODE, True) for group in groups)


@torch.no_grad()
def to_evaluation(groups: Sequence[dict[str, Any]], state: State, keeper: Keeper) -> dict[torch.Tensor, int]:
    """Puts the weights to evaluate into the parameters.

    Returns:
        The version of each changed parameter, by which it is known whether somebody writes it later.
    """
    weights = {}
    for p in _all(groups):
        own = keeper.of(state.get(p, {}), p)
        if own is not None:
            weights[p] = keeper.kind.evaluated(own, _wide(p)).to(p.dtype)
    for p in weights:
        state[p][BACKUP] = p.detach().clone(memory_format=torch.preserve_format)
    for group in groups:
        group[MODE] = False
    for p, value in weights.items():
        p.copy_(value)
    return {p: p._version for p in weights}


@torch.no_grad()
def to_training(
    groups: Sequence[dict[str, Any]], state: State, keeper: Keeper | None, versions: dict[torch.Tensor, int]
) -> None:
    """Puts the weights that are trained back.

    A parameter that somebody has written to meanwhile is taken as weights to evaluate, and what is trained is computed
    from it, where the state tells how; so is one without a copy, as in schedulefree's checkpoints.
    """
    for p in _all(groups):
        entry = state.get(p, {})
        written = p in versions and versions[p] != p._version
        if BACKUP in entry and not written:
            p.copy_(entry[BACKUP])
            continue
        trained: Callable[..., torch.Tensor] | None = getattr(keeper.kind, "trained", None) if keeper else None
        own = keeper.of(entry, p) if keeper else None
        if trained is not None and own is not None:
            p.copy_(trained(own, _wide(p)))
    for group in groups:
        group[MODE] = True
    for p in _all(groups):
        state.get(p, {}).pop(BACKUP, None)


def _all(groups: Sequence[dict[str, Any]]) -> list[torch.Tensor]:
    return [p for group in groups for p in group["params"]]


def _wide(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


def _as_computed(value: Any, p: torch.Tensor) -> Any:
    tensor = torch.as_tensor(value)
    if tensor.ndim == 0 and p.ndim:
        return tensor.item()
    return _wide(tensor).to(p.device) if tensor.is_floating_point() or tensor.is_complex() else tensor
