"""D-Adapt Adam: Adam whose learning rate is estimated from the gradients (Defazio and Mishchenko, 2023, algorithm 5).

    e   = d * lr                                             use_bias_correction: * sqrt(1 - beta2**t) / (1 - beta1**t)
    r   = sqrt(beta2) * r + (1 - sqrt(beta2)) * e * sum(g * s / (sqrt(v) + eps))         s and v before this update
    m   = beta1 * m + (1 - beta1) * e * g
    v   = beta2 * v + (1 - beta2) * g * g
    s   = sqrt(beta2) * s + (1 - sqrt(beta2)) * e * g
    d'  = max(d, min(r / ((1 - sqrt(beta2)) * sum(|s|)), growth_rate * d))               sums over all parameters
    p   = p - (e * weight_decay * p + m / (sqrt(v) + eps))

The momentum holds the learning rates that its gradients came with. While every s is 0 nothing moves. optax's
dadapt_adamw always corrects the bias and decouples the decay.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from funcopt._numerics import bias_correction, capped, number_of, once, root
from funcopt._tree import weak
from funcopt.frame import decayed
from funcopt.kinds import AtLeastOne, Betas, Flag, NonNegative, Positive
from funcopt.rule import Keys, Rule, transformation


class DadaptAdamState(NamedTuple):
    shared = ("d", "numerator_weighted")

    step: Any  # int32 (), or a tree of them: applied updates so far
    s: Any  # tree like the parameters: weighted sum of the gradients
    exp_avg: Any  # tree like the parameters
    exp_avg_sq: Any  # tree like the parameters
    d: Any  # (): the estimate
    numerator_weighted: Any  # (): r


_GROUP = {"k": "step", "d": "d", "numerator_weighted": "numerator_weighted"}


@transformation(keys=Keys(step=int, torch_class="DAdaptAdam", group=_GROUP))
def dadapt_adam(
    lr: NonNegative = 1.0,
    betas: Betas = (0.9, 0.999),
    eps: NonNegative = 1e-8,
    weight_decay: NonNegative = 0.0,
    decouple: Flag = False,
    use_bias_correction: Flag = False,
    d0: Positive = 1e-6,
    growth_rate: AtLeastOne = float("inf"),
) -> Rule:
    """`dadaptation.DAdaptAdam`: leave `lr` at 1 and give the shape of a schedule only.

    The estimate is one number for all parameters and groups.

    Args:
        lr: factor of the estimated learning rate, >= 0.
        betas: decay rates of the two moments, each in [0, 1).
        eps: added to the denominator, >= 0.
        weight_decay: decay of the parameters by the estimated learning rate, >= 0; an L2 penalty unless `decouple`.
        decouple: flag: decay the parameters directly, as AdamW.
        use_bias_correction: flag: correct the moments' bias, in the learning rate.
        d0: the first estimate, > 0.
        growth_rate: largest factor by which the estimate grows in an update, >= 1.

    Returns:
        The optimizer; state keys `step`, `s`, `exp_avg`, `exp_avg_sq`, and `d`, `numerator_weighted` once for all
        parameters.

    Example:
        >>> import funcopt
        >>> tx = funcopt.dadapt_adam(weight_decay=0.01, decouple=True)
    """
    beta1, beta2 = betas
    beta3 = beta2**0.5

    def init(p: jax.Array) -> DadaptAdamState:
        s, m, v = (jnp.zeros_like(p) for _ in range(3))
        return DadaptAdamState(0, s, m, v, number_of(p, d0), number_of(p))

    @once
    def correction(t: Any) -> Any:
        return jnp.sqrt(bias_correction(beta2, t)) / bias_correction(beta1, t)

    def penalised(g: jax.Array, param: Any) -> jax.Array:
        return g if decouple else decayed(g, param, weight_decay)

    def rate(s: DadaptAdamState) -> Any:
        return weak(s.d) * lr * (correction(s.step) if use_bias_correction else 1.0)

    def summed(g: jax.Array, s: DadaptAdamState) -> jax.Array:
        return beta3 * s.s + (1 - beta3) * rate(s) * g

    def total(g: jax.Array, s: DadaptAdamState, *, param: jax.Array) -> tuple[jax.Array, jax.Array]:
        g = penalised(g, param)
        gained = jnp.sum(rate(s) * (g * (s.s / (root(s.exp_avg_sq) + eps))))
        return gained, jnp.sum(jnp.abs(summed(g, s)))

    def update(g: jax.Array, s: DadaptAdamState, *, param: jax.Array, total: Any) -> tuple[jax.Array, DadaptAdamState]:
        g = penalised(g, param)
        d, old, (gained, norm) = weak(s.d), weak(s.numerator_weighted), map(weak, total)
        numerator = beta3 * old + (1 - beta3) * gained
        moves = norm > 0
        estimate = numerator / ((1 - beta3) * jnp.where(moves, norm, 1.0))
        new_d = jnp.maximum(d, capped(estimate, d, growth_rate))
        m = beta1 * s.exp_avg + rate(s) * (1 - beta1) * g
        v = beta2 * s.exp_avg_sq + (1 - beta2) * g * g
        u = decayed(m / (root(v) + eps), param, rate(s) * weight_decay if decouple else 0.0)
        kept = jnp.where(moves, new_d, d), jnp.where(moves, numerator, old)
        return -jnp.where(moves, 1.0, 0.0) * u, DadaptAdamState(s.step, summed(g, s), m, v, *kept)

    return Rule(update, init, total)
