"""Metrics of an update, from numbers that stay where they were computed until somebody asks."""

from collections.abc import Iterable
from typing import Any, NamedTuple

import jax
import numpy as np
import torch

from funcopt.transforms._metrics import Measured, summary

_SUMS_BY_GROUP = ("grad", "update", "param")
_SUMS = ("unclipped", "clipped")


class Reading(NamedTuple):
    """Numbers that say what an update was like: those of a field of `Measured`."""

    field: str
    groups: np.ndarray  # int (n,), of parameter groups; -1 of what had no gradient
    values: Any  # tensor or array (n,)


def summarize(readings: Iterable[Reading], groups: int) -> dict[str, Any]:
    """The metrics as Python's numbers, and lists of one for each group. Waits for the device."""
    sums = {field: np.zeros(groups) for field in _SUMS_BY_GROUP} | {field: np.zeros(1) for field in _SUMS}
    lr, d = np.full(groups, np.nan), None
    for field, own, values in readings:
        known = values.detach().cpu().double().numpy() if isinstance(values, torch.Tensor) else np.asarray(values)
        which, known = own[own >= 0], known[own >= 0]
        if field == "lr":
            lr[which] = known
        elif field == "d":
            d = float(known[0])
        else:
            np.add.at(sums[field], which if field in _SUMS_BY_GROUP else np.zeros_like(which), known)
    by_group = {field: [*sums[field]] for field in _SUMS_BY_GROUP}
    once = {field: sums[field][0] for field in _SUMS}
    with np.errstate(all="ignore"):
        return jax.tree.map(float, summary(Measured(**by_group, **once, lr=[*lr], d=d)))
