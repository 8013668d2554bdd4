"""What `optimizer.state` is: a mapping that reads a parameter's entry when it is asked for, and no other.

torch's checkpoint tools ask for `optimizer.state[p]` once for each parameter: an answer that copied everything, or only
looked for everything, would make that quadratic. So `Holdings` remembers where everything is until the next update.
"""

import collections
from collections.abc import Iterator, MutableMapping, Sequence
from typing import Any

import torch

from funcopt.torch_bridge._holdings import Group, Holdings
from funcopt.torch_bridge._state_dict import Entry, Leaves


class StateView(MutableMapping[torch.Tensor, Entry]):
    """Each parameter's state as it is now, under torch's names.

    As in torch, a parameter without state has an empty entry and is not among the keys. An entry is a dict of its own
    with tensors of its own. Assigning or deleting an entry changes the optimizer; changing an entry does not.
    """

    def __init__(self, holdings: Holdings, groups: Sequence[Group]) -> None:
        self._holdings = holdings
        self._groups = groups

    def __getitem__(self, p: torch.Tensor) -> Entry:
        leaves = self._leaves()
        return self._holdings.entry(leaves[p]) if p in leaves else {}

    def __setitem__(self, p: torch.Tensor, entry: Entry) -> None:
        self._holdings.rebuild(self._groups, {**self, p: entry})

    def __delitem__(self, p: torch.Tensor) -> None:
        if p not in self:
            raise KeyError(p)
        self._holdings.rebuild(self._groups, {q: entry for q, entry in self.items() if q is not p})

    def _leaves(self) -> dict[torch.Tensor, Leaves]:
        return self._holdings.leaves(self._groups)

    def __iter__(self) -> Iterator[torch.Tensor]:
        return iter(self._leaves())

    def __len__(self) -> int:
        return len(self._leaves())

    def __contains__(self, p: object) -> bool:
        return p in self._leaves()

    # The inherited ones take an entry that `__getitem__` returns for one that is there.
    def get(self, p: torch.Tensor, default: Any = None) -> Any:
        return super().get(p, default) if p in self else default

    def pop(self, p: torch.Tensor, *default: Any) -> Any:
        if p not in self and default:
            return default[0]
        entry = self[p]
        del self[p]
        return entry

    def clear(self) -> None:
        self._holdings.rebuild(self._groups, {})

    def __repr__(self) -> str:
        return repr(dict(self))

    def __reduce__(self) -> tuple[Any, ...]:
        """Copies and pickles are what torch has there."""
        return collections.defaultdict, (dict, dict(self))
