"""Tensors that are divided over processes, `torch.distributed.tensor.DTensor`: a process updates its own part."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import torch

_PLAIN = (torch.Tensor, torch.nn.Parameter)


class Sharding(NamedTuple):
    """How a tensor is divided."""

    mesh: Any  # torch.distributed.device_mesh.DeviceMesh
    placements: tuple[Any, ...]  # for each dimension of the mesh

    @property
    def is_divided(self) -> bool:
        """Whether a process has not all of it."""
        return any(not placement.is_replicate() for placement in self.placements)

    def __str__(self) -> str:
        return f"{', '.join(map(str, self.placements))} over {self.mesh}"


def sharding_of(tensor: torch.Tensor) -> Sharding | None:
    """How a tensor is divided; None of a plain one."""
    if type(tensor) in _PLAIN or not _is_divided(tensor):
        return None
    own: Any = tensor
    return Sharding(own.device_mesh, tuple(own.placements))


def _is_divided(tensor: torch.Tensor) -> bool:
    # The module is not imported where nobody else has.
    return hasattr(tensor, "placements") and hasattr(tensor, "device_mesh")


def local(tensor: torch.Tensor) -> torch.Tensor:
    """This process's part of a tensor, in the same memory; a plain tensor is its own part."""
    if type(tensor) in _PLAIN or not _is_divided(tensor):
        return tensor
    own: Any = tensor
    with torch.no_grad():
        part = own.to_local()
    return part.wait() if hasattr(part, "wait") else part  # a collective may still be at work on it


def local_like(tensor: torch.Tensor, sharding: Sharding | None) -> torch.Tensor:
    """This process's part of a tensor, divided as another one is; of a plain tensor, which is the same everywhere, too.

    A DTensor that is divided otherwise is brought into that form, which all processes take part in.
    """
    if sharding is None or sharding_of(tensor) == sharding:
        return local(tensor)
    from torch.distributed.tensor import DTensor, Replicate  # torch may be built without

    own: Any = tensor
    if sharding_of(tensor) is None:
        everywhere = [Replicate()] * len(sharding.placements)
        own = DTensor.from_local(tensor.detach(), sharding.mesh, everywhere, run_check=False)
    return local(own.detach().redistribute(sharding.mesh, sharding.placements))


def as_part_of(like: torch.Tensor, tensor: torch.Tensor) -> torch.Tensor:
    """A part of a tensor as one that is divided like another one of its shape; plain beside a plain one."""
    sharding = sharding_of(like)
    if sharding is None:
        return tensor
    from torch.distributed.tensor import DTensor  # torch may be built without

    return DTensor.from_local(
        tensor, sharding.mesh, sharding.placements, run_check=False, shape=like.shape, stride=like.stride()
    )


@functools.lru_cache(maxsize=64)
def reducer(sharding: Sharding | None) -> Callable[[torch.Tensor, str], torch.Tensor] | None:
    """What makes the total of a process's parts that of all of them; None where it is that already.

    It takes a total and how totals are joined: "sum", "amax" or "amin".
    """
    if sharding is None:
        return None
    divided = [i for i, placement in enumerate(sharding.placements) if not placement.is_replicate()]
    if not divided:
        return None
    import torch.distributed as dist  # torch may be built without

    operations = {"sum": dist.ReduceOp.SUM, "amax": dist.ReduceOp.MAX, "amin": dist.ReduceOp.MIN}

    def reduce(total: torch.Tensor, how: str) -> torch.Tensor:
        total = total.clone()
        for i in divided:
            dist.all_reduce(total, operations[how], group=sharding.mesh.get_group(i))
        return total

    return reduce
