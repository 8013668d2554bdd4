"""What runs updates: the protocol of engines, and what goes in and comes out."""

import contextlib
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol

import jax
import numpy as np
import torch

from funcopt.torch_bridge._units import Form
from funcopt.torch_bridge.engines._memory import Memory
from funcopt.torch_bridge.engines._recipes import Recipe, Whole

Reduce = Callable[[torch.Tensor, str], torch.Tensor]
"""Makes a total that of all processes; takes it, and how totals are joined: "sum", "amax" or "amin"."""


class Part(NamedTuple):
    """Parameters that one recipe updates, and what it takes."""

    recipe: Recipe
    arrangement: Any  # what can be hashed, of the shapes and dtypes of what follows; the recipe may tell some of them
    donated: Any  # a tree of arrays that results take the place of
    given: Any  # a tree of arrays
    own: np.ndarray  # float64 (segments, n), the segments' numbers
    returned: int  # how many numbers come back
    reduce: Reduce | None = None  # makes a total that of all processes
    measured: int = 0  # how many numbers say what the update was like
    groups: np.ndarray | None = None  # int (segments,), what sums of these numbers are not to cross


class Measurement(NamedTuple):
    """Numbers that say what an update was like, which nothing waits for."""

    segments: np.ndarray  # int (n,); a sum may be of others of the same group, too, which are then not among them
    columns: list[Any]  # arrays or tensors (n,), one for each number
    sums: Sequence[int] = ()  # those of them that are sums over this process's elements


class Updated(NamedTuple):
    """What became of a part."""

    arrays: Any  # a tree of arrays
    numbers: np.ndarray  # float64, flat
    measured: Measurement | None = None


class Engine(Protocol):
    """Runs recipes. Arrays are whatever an engine computes with; tensors are made such by `lend` and `memory`."""

    name: str
    takes_any_memory: bool  # whether an update may overwrite any tensor, and not only what `memory` gives
    used: set[Any]  # what decides a program, of those that ran

    def precision(self) -> contextlib.AbstractContextManager[None]:
        """The context in which recipes are traced, and arrays made and used."""
        ...

    def memory(self, shape: Sequence[int], dtype: torch.dtype, device: torch.device) -> Memory:
        """Zeros that an update may overwrite."""
        ...

    def rows(self, segment: np.ndarray, filled: np.ndarray, width: int) -> Any:
        """Where the parameters of a block are.

        Args:
            segment: int32 (rows,), the parameter that a row belongs to.
            filled: int32 (rows,), elements of a row that are a parameter's.
            width: elements of a row.
        """
        ...

    def lend(self, tensor: torch.Tensor) -> Any:
        """A tensor as an array over its memory, for as long as the update runs."""
        ...

    def tensor(self, array: Any) -> torch.Tensor:
        """An array of a result as a tensor."""
        ...

    def load(self, value: Any, like: Any, device: torch.device) -> Any:
        """A value of a state as an array like that of a new one: random keys, and integers that torch has not."""
        ...

    def update(self, parts: Sequence[Part], shared: np.ndarray) -> list[Updated]:
        """One update of all parts, in which a total of one is that of all.

        Args:
            parts: what to update.
            shared: float64 (n,), numbers for all.

        Returns:
            What became of each part.

        Raises:
            NotByRows: if a recipe needs more of a parameter than its elements.
        """
        ...

    def init(self, recipe: Whole, numbers: np.ndarray, params: Sequence[Any]) -> list[Any]:
        """The leaves of a new state of parameters in their own shapes, in arrays of its own."""
        ...

    def form(self, recipe: Whole, numbers: np.ndarray, params: Sequence[jax.ShapeDtypeStruct]) -> Form:
        """What the state of parameters in their own shapes consists of."""
        ...
