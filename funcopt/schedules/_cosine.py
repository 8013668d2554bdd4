"""Cosine annealing: one period that repeats, and cycles that restart."""

import math

from funcopt import _checks
from funcopt.kinds import Schedule
from funcopt.schedules._arguments import Value, as_length, as_value
from funcopt.schedules._formula import formula, lerp


def cosine_annealing_lr(base_lr: Value, T_max: int, eta_min: Value = 0.0) -> Schedule:
    """Half a cosine down to `eta_min` in `T_max` steps, half a cosine back up, and so on.

    `eta_min + (base_lr - eta_min) * (1 + cos(pi * step / T_max)) / 2`; as in torch the value climbs back after `T_max`.
    For one that stays at its minimum see `warmup_cosine` (with `warmup_steps=0`) or `ramp`.

    Args:
        base_lr: value at step 0, 2 T_max, 4 T_max ...
        T_max: steps from the maximum to the minimum, > 0.
        eta_min: minimum, torch's default.

    Returns:
        The schedule of `torch.optim.lr_scheduler.CosineAnnealingLR`, by its closed form (torch's recursive form drifts
        by 1e-13 in some thousand steps).

    Raises:
        ValueError: if `T_max` is not positive.

    Example:
        >>> cosine_annealing_lr(1.0, T_max=4, eta_min=0.5)([0, 2, 4, 6, 8]).round(9).tolist()
        [1.0, 0.75, 0.5, 0.75, 1.0]
    """
    base_lr = as_value("cosine_annealing_lr", "base_lr", base_lr)
    T_max = as_length("cosine_annealing_lr", "T_max", T_max, _checks.POSITIVE)
    eta_min = as_value("cosine_annealing_lr", "eta_min", eta_min)
    return formula(
        lambda xp, step: lerp(eta_min, base_lr, (1.0 + xp.cos(math.pi * (step % (2 * T_max) / T_max))) / 2.0)
    )
