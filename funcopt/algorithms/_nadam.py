"""NAdam: Adam with Nesterov momentum (Dozat, 2016), with the momentum schedule of the report's section on it.

    mu_t       = beta1 * (1 - 0.5 * 0.96**(t * momentum_decay))
    mu_product = mu_product * mu_t
    m          = lerp(m, g, 1 - beta1)
    v          = beta2 * v + (1 - beta2) * g * g
    u          = (1 - mu_t) / (1 - mu_product) * g  +  mu_{t+1} / (1 - mu_product * mu_{t+1}) * m
    p          = p - lr * u / (sqrt(v / (1 - beta2**t)) + eps)

As in torch `mu_product` is float32 whatever the parameters are: its rounding is part of the trajectory (5e-10 with the
defaults). optax keeps mu at beta1.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from funcopt._numerics import bias_correction, filled, lerp, root
from funcopt._tree import weak
from funcopt.frame import descend
from funcopt.kinds import Betas, Flag, NonNegative
from funcopt.rule import Rule, direction, transformation


class NadamState(NamedTuple):
    step: Any  # int32 (), or a tree of them: applied updates so far
    mu_product: Any  # tree of float32 (): product of the momenta so far
    exp_avg: Any  # tree like the parameters
    exp_avg_sq: Any  # tree like the parameters


@transformation()
def nadam(
    lr: NonNegative = 2e-3,
    betas: Betas = (0.9, 0.999),
    eps: NonNegative = 1e-8,
    weight_decay: NonNegative = 0.0,
    momentum_decay: NonNegative = 4e-3,
    decoupled_weight_decay: Flag = False,
    *,
    maximize: Flag = False,
) -> Rule:
    """`torch.optim.NAdam`.

    Args:
        lr: learning rate, >= 0.
        betas: decay rates of the two moments, each in [0, 1).
        eps: added to the denominator, >= 0.
        weight_decay: >= 0; an L2 penalty unless `decoupled_weight_decay`.
        momentum_decay: how fast the momentum rises from half of `betas[0]` to it, per update, >= 0.
        decoupled_weight_decay: flag: decay the parameters directly, by `lr * weight_decay`.
        maximize: flag: ascend the objective; decay still shrinks the parameters.

    Returns:
        The optimizer; state keys `step`, `mu_product`, `exp_avg`, `exp_avg_sq`.

    Example:
        >>> import funcopt
        >>> tx = funcopt.nadam(weight_decay=0.01, decoupled_weight_decay=True)
    """
    beta1, beta2 = betas

    def init(p: jax.Array) -> NadamState:
        return NadamState(0, jnp.float32(1.0), filled(p), filled(p))

    def update(g: jax.Array, s: NadamState) -> tuple[jax.Array, NadamState]:
        t = s.step
        mu = beta1 * (1 - 0.5 * 0.96 ** (t * momentum_decay))
        mu_next = beta1 * (1 - 0.5 * 0.96 ** ((t + 1) * momentum_decay))
        mu_product = s.mu_product * mu
        product = weak(mu_product)
        m = lerp(s.exp_avg, g, 1 - beta1)
        v = beta2 * s.exp_avg_sq + (1 - beta2) * g * g
        denom = root(v / bias_correction(beta2, t)) + eps
        u = (1 - mu) / (1 - product) * g + mu_next / (1 - product * mu_next) * m
        return u / denom, NadamState(t, mu_product, m, v)

    rule = Rule(update, init)
    return descend(rule, lr, weight_decay=weight_decay, decoupled=decoupled_weight_decay, maximize=maximize)


scale_by_nadam = direction("scale_by_nadam", nadam, "Rescales updates as `nadam` does, without its learning rate.")
