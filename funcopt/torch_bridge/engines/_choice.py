"""Which engine updates parameters, and why."""

from collections.abc import Callable, Collection
from typing import Any, Literal, NamedTuple, get_args

import torch

from funcopt import _checks
from funcopt.torch_bridge import _buffers

Wanted = Literal["auto", "xla", "torch"]


PREFERRED: Literal["xla", "torch"] = "xla"
"""The engine where both can be had."""

LARGE = 256 * 256
"""Elements of a matrix from which on torch multiplies faster than XLA on a CPU; measured, by factors of 1.1 to 2."""

_PLAIN: Any = torch.Tensor


class Choice(NamedTuple):
    """An engine and the reason for it."""

    name: Literal["xla", "torch"]
    reason: str


def check(owner: str, wanted: object) -> None:
    """Refuses what is no engine.

    Raises:
        ValueError: for any other name.
    """
    if wanted not in get_args(Wanted):
        _checks.fail(owner, "engine", " or ".join(map(repr, get_args(Wanted))), wanted)


def choose(
    wanted: Wanted, params: Collection[torch.Tensor], multiplies: Callable[[torch.Tensor], bool] | None = None
) -> Choice:
    """The engine for some parameters.

    Args:
        wanted: what the user said.
        params: the parameters.
        multiplies: tells whether a parameter's update multiplies matrices, by operations that torch's engine has.
    """
    if wanted != "auto":
        return Choice(wanted, f"engine={wanted!r}")
    for p in params:
        dispatch: Any = type(p)
        if dispatch.__torch_dispatch__ is not _PLAIN.__torch_dispatch__:
            return Choice("torch", f"XLA cannot take a {type(p).__name__}")
    for device in {p.device for p in params}:
        if not _buffers.has_jax_device(device):
            return Choice("torch", f"JAX has no device for {device}")
    if (
        multiplies is not None
        and all(p.device.type == "cpu" for p in params)
        and any(p.dim() > 1 and p.numel() >= LARGE and multiplies(p) for p in params)
    ):
        return Choice("torch", "the update multiplies large matrices, at which torch is the faster one on the CPU")
    return Choice(PREFERRED, f"JAX has the parameters' devices, on which {PREFERRED} is the faster one")
