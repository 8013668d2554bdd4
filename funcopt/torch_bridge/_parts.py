"""How parameters enter the compiled update: an elementwise recipe sees flat arrays, small parameters joined into one.

Each array costs microseconds per step and, with its own kernels, milliseconds of compilation, whatever its size. So the
parameters of a group that have the same dtype and the same history form one *part*; a large one is a part of its own.
Any other recipe sees every parameter in its own shape.
"""

import functools
from collections.abc import Hashable, Iterable, Sequence
from typing import NamedTuple

import torch

JOIN_UP_TO = 32_768
"""Elements of the largest parameter that is joined with others: torch copies its gradient in less time than a further
array costs, and without starting threads."""

ALIGNMENT = 16
"""Each joined parameter begins at a multiple of so many elements: with float32 or wider, of a cache line's 64 bytes.
There the whole array ends, too: XLA:GPU takes several elements at once only where their number is a multiple."""

Place = tuple[int, str | int]
"""A parameter: its group and its key there; also a part, which is called after its first parameter."""


class Member(NamedTuple):
    """A parameter's place in a flat array, in the order in which its memory has the elements."""

    place: Place
    start: int
    stop: int
    shape: tuple[int, ...]  # of the dimensions in that order
    order: tuple[int, ...]  # dimensions by falling stride
    inverse: tuple[int, ...]

    @property
    def own_shape(self) -> tuple[int, ...]:
        """The parameter's shape."""
        return tuple(self.shape[i] for i in self.inverse)

    def view(self, flat: torch.Tensor) -> torch.Tensor:
        """The parameter's elements of the whole flat array, in its own shape and strides."""
        return self.arrange(flat[self.start : self.stop])

    def arrange(self, elements: torch.Tensor) -> torch.Tensor:
        """The parameter's own elements in its shape and strides."""
        return elements.view(self.shape).permute(self.inverse)

    def flatten(self, tensor: torch.Tensor) -> torch.Tensor:
        """A tensor of the parameter's shape as the flat array has it; a view where it has the parameter's strides."""
        if self.order != _as_they_are(tensor.dim()):
            tensor = tensor.permute(self.order)
        return tensor.reshape(-1)


class Part(NamedTuple):
    """Parameters that are one array in the compiled update."""

    place: Place
    members: tuple[Member, ...]
    size: int  # elements of the flat array
    flat: bool  # otherwise the one member in its own shape

    @property
    def is_bare(self) -> bool:
        """Whether the flat array is one parameter and nothing else, so that a tensor of its shape can stand for it."""
        return self.flat and len(self.members) == 1 and self.size == self.members[0].stop

    def join(self, values: Iterable[torch.Tensor]) -> torch.Tensor:
        """Tensors of the parameters' shapes as one flat array, with zeros between and after them."""
        values = list(values)
        flat = values[0].new_zeros(self.size)
        for member, value in zip(self.members, values, strict=True):
            member.view(flat).copy_(value)
        return flat


class Candidate(NamedTuple):
    """A parameter, and what it must have in common with others to be joined."""

    place: Place
    param: torch.Tensor
    history: Hashable
    flat: bool


def plain_part(place: Place) -> Part:
    """A parameter whose state has its own shape."""
    return Part(place, (Member(place, 0, 0, (), (), ()),), 0, flat=False)


def make_parts(candidates: Iterable[Candidate], *, even: bool) -> list[Part]:
    """Sorts parameters into parts, in the order of each part's first parameter.

    Args:
        candidates: the parameters.
        even: whether a flat array must have an even number of elements. XLA:CPU divides a loop among the square root
            of the cores, and where an odd number is divided between two it takes single elements: 2 to 5 times as long.
    """
    joined: dict[Hashable, list[Candidate]] = {}
    for candidate in candidates:
        place, param, history, flat = candidate
        # Other dtypes stay alone, so that whoever refuses them can name them.
        joins = flat and param.numel() <= JOIN_UP_TO and (param.is_floating_point() or param.is_complex())
        joined.setdefault((place[0], param.dtype, history) if joins else place, []).append(candidate)
    return [_part(together, even) for together in joined.values()]


def _part(together: Sequence[Candidate], even: bool) -> Part:
    members = []
    stop = 0
    for place, param, *_ in together:
        order = memory_order(param)
        start = _round_up(stop, ALIGNMENT)
        stop = start + param.numel()
        shape = tuple(param.shape[i] for i in order)
        members.append(
            Member(place, start, stop, shape, order, tuple(sorted(range(param.dim()), key=order.__getitem__)))
        )
    multiple = ALIGNMENT if len(together) > 1 else 2 if even else 1
    return Part(together[0].place, tuple(members), _round_up(stop, multiple), together[0].flat)


def _round_up(number: int, multiple: int) -> int:
    return -(-number // multiple) * multiple


@functools.cache
def _as_they_are(dimensions: int) -> tuple[int, ...]:
    return tuple(range(dimensions))


def memory_order(tensor: torch.Tensor) -> tuple[int, ...]:
    """Dimensions by falling stride where the tensor then is contiguous, as one in channels-last is; or as they are."""
    order = tuple(sorted(range(tensor.dim()), key=lambda i: -tensor.stride(i)))
    return order if tensor.permute(order).is_contiguous() else _as_they_are(tensor.dim())
