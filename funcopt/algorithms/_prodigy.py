"""Prodigy: Adam whose learning rate is estimated from the distance to where it started (Mishchenko and Defazio, 2023).

    e   = d * lr                                             use_bias_correction: * sqrt(1 - beta2**t) / (1 - beta1**t)
    r   = beta3 * r + d / d0 * e * sum(g * (p0 - p))                       the sum over all parameters
    s   = beta3 * s + d / d0 * e * g                                       safeguard_warmup: d in place of e
    m   = beta1 * m + (1 - beta1) * d * g
    v   = beta2 * v + (1 - beta2) * d**2 * g * g
    d^  = d_coef * r / sum(|s|)                                            the sum over all parameters
    d'  = min(max(d, d^), growth_rate * d)
    p   = p - e * (m / (sqrt(v) + eps * d') + weight_decay * p)

The step is made with the old d, and eps with the new one. While every s is 0 nothing moves. beta3, by default
sqrt(beta2), d_coef, growth_rate and the flags are one number for all parameters, as r and d are.

optax's prodigy always corrects the bias, and has no growth_rate.
"""

from typing import Annotated, Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp

from funcopt import _checks
from funcopt._numerics import bias_correction, capped, number_of, once, root
from funcopt._tree import weak
from funcopt.frame import decayed
from funcopt.kinds import AtLeastOne, Betas, Flag, Hyperparameter, NonNegative, Positive, number
from funcopt.rule import Keys, Rule, transformation

Beta3: TypeAlias = Annotated[Hyperparameter, number(_checks.UNIT_HALF_OPEN_OR_NONE)]


class ProdigyState(NamedTuple):
    shared = ("d", "d_max", "d_numerator")

    step: Any  # int32 (), or a tree of them: applied updates so far
    s: Any  # tree like the parameters: weighted sum of the gradients
    p0: Any  # tree like the parameters: where they started
    exp_avg: Any  # tree like the parameters
    exp_avg_sq: Any  # tree like the parameters
    d: Any  # (): the estimate
    d_max: Any  # (): the largest one so far, before `growth_rate`
    d_numerator: Any  # (): r


_GROUP = {"k": "step", "d": "d", "d_max": "d_max", "d_numerator": "d_numerator"}


@transformation(keys=Keys(step=int, torch_class="Prodigy", group=_GROUP, flat=("s", "p0")))
def prodigy(
    lr: NonNegative = 1.0,
    betas: Betas = (0.9, 0.999),
    beta3: Beta3 = None,
    eps: NonNegative = 1e-8,
    weight_decay: NonNegative = 0.0,
    decouple: Flag = True,
    use_bias_correction: Flag = False,
    safeguard_warmup: Flag = False,
    d0: Positive = 1e-6,
    d_coef: Positive = 1.0,
    growth_rate: AtLeastOne = float("inf"),
) -> Rule:
    """`prodigyopt.Prodigy`: leave `lr` at 1 and give the shape of a schedule only.

    The estimate is one number for all parameters and groups; learning rates that differ would be summed up as if they
    did not.

    Args:
        lr: factor of the estimated learning rate, >= 0.
        betas: decay rates of the two moments, each in [0, 1).
        beta3: decay rate of the estimate's sums, in [0, 1); None for sqrt(betas[1]).
        eps: added to the denominator, as a multiple of the estimate, >= 0.
        weight_decay: decay of the parameters by the estimated learning rate, >= 0; an L2 penalty unless `decouple`.
        decouple: flag: decay the parameters directly, as AdamW.
        use_bias_correction: flag: correct the moments' bias, in the learning rate.
        safeguard_warmup: flag: leave the learning rate out of the denominator's sum, for long warmups.
        d0: the first estimate, > 0.
        d_coef: factor of the estimate, > 0.
        growth_rate: largest factor by which the estimate grows in an update, >= 1.

    Returns:
        The optimizer; state keys `step`, `s`, `p0`, `exp_avg`, `exp_avg_sq`, and `d`, `d_max`, `d_numerator` once for
        all parameters.

    Example:
        >>> import funcopt
        >>> tx = funcopt.prodigy(weight_decay=0.01, use_bias_correction=True, safeguard_warmup=True)
    """
    beta1, beta2 = betas
    beta3 = beta2**0.5 if beta3 is None else beta3

    def init(p: jax.Array) -> ProdigyState:
        s, m, v = (jnp.zeros_like(p) for _ in range(3))
        return ProdigyState(0, s, jnp.array(p), m, v, number_of(p, d0), number_of(p, d0), number_of(p))

    @once
    def correction(t: Any) -> Any:
        return jnp.sqrt(bias_correction(beta2, t)) / bias_correction(beta1, t)

    def penalised(g: jax.Array, param: jax.Array) -> jax.Array:
        return g if decouple else decayed(g, param, weight_decay)

    def rate(s: ProdigyState) -> Any:
        return weak(s.d) * lr * (correction(s.step) if use_bias_correction else 1.0)

    def summed(g: jax.Array, s: ProdigyState) -> jax.Array:
        return beta3 * s.s + weak(s.d) / d0 * (weak(s.d) if safeguard_warmup else rate(s)) * g

    def total(g: jax.Array, s: ProdigyState, *, param: jax.Array) -> tuple[jax.Array, jax.Array]:
        g = penalised(g, param)
        gained = jnp.sum(weak(s.d) / d0 * rate(s) * (g * (s.p0 - param)))
        return gained, jnp.sum(jnp.abs(summed(g, s)))

    def update(g: jax.Array, s: ProdigyState, *, param: jax.Array, total: Any) -> tuple[jax.Array, ProdigyState]:
        g = penalised(g, param)
        d, (gained, denominator) = weak(s.d), map(weak, total)
        numerator = beta3 * weak(s.d_numerator) + gained
        moves = denominator > 0
        estimate = d_coef * numerator / jnp.where(moves, denominator, 1.0)
        start = d <= d0 * (1 + 2.0**-20)  # equal, but for the rounding of the number that is kept
        grown = jnp.where(start, jnp.maximum(d, estimate), d)
        d_max = jnp.maximum(weak(s.d_max), estimate)
        new_d = capped(d_max, grown, growth_rate)
        m = beta1 * s.exp_avg + d * (1 - beta1) * g
        v = beta2 * s.exp_avg_sq + d * d * (1 - beta2) * g * g
        u = -rate(s) * decayed(m / (root(v) + new_d * eps), param, weight_decay if decouple else 0.0)
        new = (new_d, d_max, numerator)
        kept = (jnp.where(moves, x, weak(old)) for x, old in zip(new, (s.d, s.d_max, s.d_numerator), strict=True))
        return jnp.where(moves, 1.0, 0.0) * u, ProdigyState(s.step, summed(g, s), s.p0, m, v, *kept)

    return Rule(update, init, total)
