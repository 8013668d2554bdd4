"""Weight decay as an added multiple of the parameter.

    update = update + weight_decay * param

In front of an algorithm this is the L2 penalty's gradient; behind it, in front of the learning rate, it is decoupled
weight decay (Loshchilov and Hutter, 2019).
"""

from typing import Any

import jax

from funcopt import _checks
from funcopt._base import GradientTransformationExtraArgs, Hyperparameter, leafwise, scheduled
from funcopt._rows import Handling
from funcopt._tree import is_static


def _off(weight_decay: Any, mask: bool) -> bool:
    return not mask or (is_static(weight_decay) and weight_decay == 0)


def decay_rule(update: jax.Array, *, param: jax.Array, weight_decay: jax.Array | float, mask: bool = True) -> jax.Array:
    """The rule of the module's head."""
    # As in torch, a plain 0 leaves the update alone, where 0 * inf would make it NaN.
    return update if _off(weight_decay, mask) else update + weight_decay * param


def decay_rows(*, weight_decay: Any, mask: bool = True) -> Handling:
    """Decay would change all rows. A traced number is let through: the bridge checks that it is 0, as torch does."""
    return "refuse" if is_static(weight_decay) and not _off(weight_decay, mask) else "rows"


def add_decayed_weights(
    weight_decay: Hyperparameter = 0.0, mask: Hyperparameter = True
) -> GradientTransformationExtraArgs:
    """Adds `weight_decay` times the parameter to the update.

    Args:
        weight_decay: >= 0.
        mask: boolean, or prefix of booleans: where to decay. A function of the parameters goes through
            `funcopt.masked` instead.

    Returns:
        The transformation; its update needs the parameters.

    Example:
        >>> import funcopt
        >>> tx = funcopt.chain(funcopt.add_decayed_weights({"w": 1e-4, "b": 0.0}), funcopt.adam(1e-3))
    """
    owner = "add_decayed_weights"
    _checks.check_hyperparam(owner, "weight_decay", weight_decay, _checks.NON_NEGATIVE)
    _checks.check_flag(owner, "mask", mask)
    if isinstance(mask, bool) and not mask:
        weight_decay = 0.0  # a schedule of what is used nowhere would be state that reports it

    def make(weight_decay: Hyperparameter) -> GradientTransformationExtraArgs:
        hyperparams = {"weight_decay": weight_decay, "mask": mask}
        return leafwise(owner, decay_rule, hyperparams, needs_params=True, rows=decay_rows)

    return scheduled(make, {"weight_decay": weight_decay})
