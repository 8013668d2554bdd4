"""NovoGrad: momentum of gradients, each array's divided by a mean of its norm (Ginsburg et al., 2019, algorithm 1).

    v    = beta2 * v + (1 - beta2) * sum(g * g)                 one number for each array; v = sum(g * g) where it is 0
    vmax = max(vmax, v)                                         amsgrad: v^ = vmax, otherwise v^ = v
    u    = g / (sqrt(v^) + eps) + weight_decay * p
    m    = beta1 * m + u                                        grad_averaging: (1 - beta1) * u
    p    = p - lr * m

Neither moment is corrected. optax's novograd has no `amsgrad`, and `eps` inside the root as an option.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from funcopt._numerics import number_of, root
from funcopt.frame import decayed, descend, is_zero
from funcopt.kinds import Betas, Flag, NonNegative
from funcopt.rule import Keys, Rule, asking, transformation


class NovogradState(NamedTuple):
    step: Any  # int32 (), or a tree of them: applied updates so far
    exp_avg: Any  # tree like the parameters
    exp_avg_sq: Any  # tree of ()
    max_exp_avg_sq: Any  # tree of (); None where amsgrad is False


@transformation(elementwise=False, keys=Keys(step=int, torch_class="NvNovoGrad"))
def novograd(
    lr: NonNegative = 1e-3,
    betas: Betas = (0.95, 0.98),
    eps: NonNegative = 1e-8,
    weight_decay: NonNegative = 0.0,
    grad_averaging: Flag = False,
    amsgrad: Flag = False,
    decoupled_decay: Flag = False,
) -> Rule:
    """`timm.optim.NvNovoGrad`, which is NVIDIA's: half of Adam's state.

    Args:
        lr: learning rate, >= 0.
        betas: decay rates of the momentum and of the norms' second moment, each in [0, 1).
        eps: added to the denominator, >= 0.
        weight_decay: what is added to the divided gradient as a multiple of the parameters, >= 0.
        grad_averaging: flag: new gradients enter the momentum with weight `1 - betas[0]`, otherwise with 1.
        amsgrad: flag: divide by the largest second moment seen so far.
        decoupled_decay: flag: decay the parameters directly, by `lr * weight_decay`.

    Returns:
        The optimizer; state keys `step`, `exp_avg`, `exp_avg_sq`, and `max_exp_avg_sq` with amsgrad.

    Example:
        >>> import funcopt
        >>> tx = funcopt.novograd(lr=1e-2, weight_decay=1e-3)
    """
    beta1, beta2 = betas
    penalty, decay = (0.0, weight_decay) if decoupled_decay else (weight_decay, 0.0)

    def init(p: jax.Array) -> NovogradState:
        return NovogradState(0, jnp.zeros_like(p), number_of(p), number_of(p) if amsgrad else None)

    def update(g: jax.Array, s: NovogradState, *, param: Any = None) -> tuple[jax.Array, NovogradState]:
        v = beta2 * s.exp_avg_sq + jnp.where(s.exp_avg_sq == 0, 1.0, 1 - beta2) * jnp.sum(g * g)
        largest = jnp.maximum(s.max_exp_avg_sq, v) if amsgrad else None
        u = decayed(g / (root(v if largest is None else largest) + eps), param, penalty)
        m = beta1 * s.exp_avg + ((1 - beta1) * u if grad_averaging else u)
        return m, NovogradState(s.step, m, v, largest)

    rule = Rule(asking(update, *(() if is_zero(penalty) else ["param"])), init)
    return descend(rule, lr, weight_decay=decay, decoupled=True)
