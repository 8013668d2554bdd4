"""Which engine updates parameters, and why."""

from collections.abc import Iterable
from typing import Any, Literal, NamedTuple, get_args

import torch

from funcopt import _checks
from funcopt.torch_bridge import _buffers

Wanted = Literal["auto", "xla", "torch"]


PREFERRED: Literal["xla", "torch"] = "xla"
"""The engine where both can be had."""


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


def choose(wanted: Wanted, params: Iterable[torch.Tensor]) -> Choice:
    """The engine for some parameters.

    Args:
        wanted: what the user said.
        params: the parameters.
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
    return Choice(PREFERRED, f"JAX has the parameters' devices, on which {PREFERRED} is the faster one")
