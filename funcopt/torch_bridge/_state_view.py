"""What `optimizer.state` is: a mapping that reads a parameter's entry when it is asked for, and no other.

torch's checkpoint tools ask for `optimizer.state[p]` once for each parameter: an answer that copied everything would
make that quadratic.
"""

import collections
from collections.abc import Callable, Iterator, Mapping, MutableMapping
from typing import Any

import torch

from funcopt.torch_bridge._state_dict import Entry, Leaves


class StateView(MutableMapping[torch.Tensor, Entry]):
    """Each parameter's state, as it was when the view was made, under torch's names.

    As in torch, a parameter without state has an empty entry and is not among the keys. An entry is a dict of its own
    with tensors of its own. Assigning or deleting an entry changes the optimizer; changing an entry does not.

    Args:
        read: gives what there is of each parameter that has state.
        convert: makes an entry of it.
        write: takes the entries of all parameters that shall have state.
    """

    def __init__(
        self,
        read: Callable[[], Mapping[torch.Tensor, Leaves]],
        convert: Callable[[Leaves], Entry],
        write: Callable[[Mapping[torch.Tensor, Entry]], None],
    ) -> None:
        self._read = read
        self._convert = convert
        self._write = write
        self._leaves = read()

    def __getitem__(self, p: torch.Tensor) -> Entry:
        return self._convert(self._leaves.get(p, {}))

    def __setitem__(self, p: torch.Tensor, entry: Entry) -> None:
        self._replace({**self, p: entry})

    def __delitem__(self, p: torch.Tensor) -> None:
        if p not in self:
            raise KeyError(p)
        self._replace({q: entry for q, entry in self.items() if q is not p})

    def _replace(self, entries: Mapping[torch.Tensor, Entry]) -> None:
        self._write(entries)
        self._leaves = self._read()

    def __iter__(self) -> Iterator[torch.Tensor]:
        return iter(self._leaves)

    def __len__(self) -> int:
        return len(self._leaves)

    def __contains__(self, p: object) -> bool:
        return p in self._leaves

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
        self._replace({})

    def __repr__(self) -> str:
        return repr(dict(self))

    def __reduce__(self) -> tuple[Any, ...]:
        """Copies and pickles are what torch has there."""
        return collections.defaultdict, (dict, dict(self))
