"""Multiplying updates: by a factor, by the learning rate, by each group's multiplier.

update = factor * update        scale, scale_by_multipliers
update = -lr * update           scale_by_learning_rate
"""

from funcopt._tree import is_static
from funcopt.kinds import AnyNumber, NonNegative
from funcopt.rule import Rule, transformation


@transformation()
def scale(factor: AnyNumber) -> Rule:
    """Multiplies updates by a factor.

    Args:
        factor: any number; per leaf by a prefix, in time by a schedule.

    Returns:
        The transformation.

    Example:
        >>> import funcopt
        >>> ascend = funcopt.scale(-1.0)
    """
    return Rule(lambda u: u if is_static(factor) and factor == 1 else factor * u, rows="rows")


@transformation()
def scale_by_multipliers(multipliers: NonNegative) -> Rule:
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
    return Rule(lambda u: multipliers * u, rows="rows")


@transformation()
def scale_by_learning_rate(lr: NonNegative) -> Rule:
    """Turns a direction into a descent step: multiplies by `-lr`.

    Args:
        lr: learning rate, >= 0.

    Returns:
        The transformation.
    """
    return Rule(lambda u: -lr * u, rows="rows")
