"""Multiplying updates: by a factor, by the learning rate, by each group's multiplier.

update = factor * update        scale, scale_by_multipliers
update = -lr * update           scale_by_learning_rate
"""

import jax

from funcopt import _checks
from funcopt._base import GradientTransformationExtraArgs, Hyperparameter, leafwise, scheduled
from funcopt._rows import on_rows
from funcopt._tree import is_static, map_prefix


def _scale_rule(update: jax.Array, *, factor: jax.Array | float) -> jax.Array:
    return update if is_static(factor) and factor == 1 else factor * update


def _descend_rule(update: jax.Array, *, lr: jax.Array | float) -> jax.Array:
    return -lr * update


def scale(factor: Hyperparameter) -> GradientTransformationExtraArgs:
    """Multiplies updates by a factor.

    Args:
        factor: any number; per leaf by a prefix, in time by a schedule.

    Returns:
        The transformation.

    Example:
        >>> import funcopt
        >>> ascend = funcopt.scale(-1.0)
    """
    _checks.check_hyperparam("scale", "factor", factor, _checks.ANY_NUMBER)
    return scheduled(
        lambda factor: leafwise("scale", _scale_rule, {"factor": factor}, rows=on_rows), {"factor": factor}
    )


def scale_by_multipliers(multipliers: Hyperparameter) -> GradientTransformationExtraArgs:
    """Multiplies finished updates by a factor per part of the model; place it last.

    A smaller rate for the backbone is such a factor. It has to act on the update: a scaled *gradient* leaves Adam's
    update as it was.

    Args:
        multipliers: non-negative factors, a prefix of the parameters; 0 stops a part from moving.

    Returns:
        The transformation.

    Example:
        >>> import funcopt
        >>> multipliers = {"backbone": 0.1, "head": 1.0}
        >>> tx = funcopt.chain(funcopt.adamw(1e-3), funcopt.scale_by_multipliers(multipliers))
    """
    owner = "scale_by_multipliers"
    _checks.check_hyperparam(owner, "multipliers", multipliers, _checks.NON_NEGATIVE)
    return scheduled(
        lambda multipliers: leafwise(
            owner, lambda u, multipliers: multipliers * u, {"multipliers": multipliers}, rows=on_rows
        ),
        {"multipliers": multipliers},
    )


def scale_by_learning_rate(lr: Hyperparameter) -> GradientTransformationExtraArgs:
    """Turns a direction into a descent step: multiplies by `-lr`.

    Args:
        lr: learning rate, >= 0.

    Returns:
        The transformation.
    """
    owner = "scale_by_learning_rate"
    _checks.check_hyperparam(owner, "lr", lr, _checks.NON_NEGATIVE)
    return scheduled(lambda lr: leafwise(owner, _descend_rule, {"lr": lr}, rows=on_rows), {"lr": lr})


def ascend_where(maximize: Hyperparameter) -> GradientTransformationExtraArgs:
    """Negates gradients where the flag `maximize` (or prefix of flags) is set, as torch does before all else."""
    return scale(map_prefix(lambda flag: -1.0 if flag else 1.0, maximize))
