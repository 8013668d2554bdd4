"""Lion: the sign of an interpolated momentum (Chen et al., 2023, algorithm 2).

    u = sign(beta1 * m + (1 - beta1) * g)
    m = beta2 * m + (1 - beta2) * g                                        after the update, by the other rate
    p = p - lr * (u + weight_decay * p)

The sign of 0 is 0. lion-pytorch's `decoupled_weight_decay=True` divides the decay by the first learning rate.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from funcopt.frame import descend
from funcopt.kinds import Betas, Flag, NonNegative
from funcopt.rule import Keys, Rule, direction, transformation


class LionState(NamedTuple):
    exp_avg: Any  # tree like the parameters


@transformation(keys=Keys(optax=(optax.ScaleByLionState, {"mu": "exp_avg"}), torch_class="Lion"))
def lion(
    lr: NonNegative = 1e-4,
    betas: Betas = (0.9, 0.99),
    weight_decay: NonNegative = 0.0,
    *,
    maximize: Flag = False,
) -> Rule:
    """`lion_pytorch.Lion`, timm's and optax's lion: half of AdamW's state.

    Args:
        lr: learning rate, >= 0; a third to a tenth of AdamW's.
        betas: decay rates in the update and of the momentum, each in [0, 1).
        weight_decay: decoupled decay of the parameters, by `lr * weight_decay`, >= 0; three to ten times AdamW's.
        maximize: flag: ascend the objective; decay still shrinks the parameters.

    Returns:
        The optimizer; state key `exp_avg`.

    Example:
        >>> import funcopt
        >>> tx = funcopt.lion(lr=1e-4, weight_decay=0.1)
    """
    beta1, beta2 = betas

    def init(p: jax.Array) -> LionState:
        return LionState(jnp.zeros_like(p))

    def update(g: jax.Array, s: LionState) -> tuple[jax.Array, LionState]:
        u = jnp.sign(beta1 * s.exp_avg + (1 - beta1) * g)
        return u, LionState(beta2 * s.exp_avg + (1 - beta2) * g)

    return descend(Rule(update, init), lr, weight_decay=weight_decay, decoupled=True, maximize=maximize)


scale_by_lion = direction("scale_by_lion", lion, "The sign of `lion`'s momentum, without decay and learning rate.")
