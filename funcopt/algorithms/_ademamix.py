"""AdEMAMix: Adam with a second, slow momentum (Pagliardini, Ablin and Grangier, 2024, algorithm 1).

    a  = alpha * min(1, t / t_alpha)
    b  = exp(1 / ((1 - x) / log(beta1) + x / log(beta3)))                  x = min(1, t / t_beta3)
    m1 = beta1 * m1 + (1 - beta1) * g
    m2 = b * m2 + (1 - b) * g                                              without bias correction
    v  = beta2 * v + (1 - beta2) * g * g
    u  = (m1 / (1 - beta1**t) + a * m2) / (sqrt(v) / sqrt(1 - beta2**t) + eps)
    p  = p - lr * (u + weight_decay * p)

b goes from beta1 to beta3 so that its half-life grows linearly; as in the authors' code, which calls the warm-ups
`alpha_warmup` and `beta3_warmup`, 1e-8 is added to both in the logarithms. optax's ademamix has the warm-ups as
schedules, pytorch-optimizer's interpolates in logarithms.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from funcopt._numerics import bias_correction, log, once
from funcopt.algorithms._adam import corrected
from funcopt.frame import descend, is_zero
from funcopt.kinds import Betas3, Flag, NonNegative, PositiveOrNone
from funcopt.rule import Keys, Rule, direction, transformation


class AdemamixState(NamedTuple):
    step: Any  # int32 (), or a tree of them: applied updates so far
    exp_avg_fast: Any  # tree like the parameters; None where betas[0] is 0
    exp_avg_slow: Any  # tree like the parameters
    exp_avg_sq: Any  # tree like the parameters


@transformation(keys=Keys(torch_class="AdEMAMix"))
def ademamix(
    lr: NonNegative = 1e-3,
    betas: Betas3 = (0.9, 0.999, 0.9999),
    alpha: NonNegative = 2.0,
    t_beta3: PositiveOrNone = None,
    t_alpha: PositiveOrNone = None,
    eps: NonNegative = 1e-8,
    weight_decay: NonNegative = 0.0,
    *,
    maximize: Flag = False,
) -> Rule:
    """The authors' `AdEMAMix`.

    Args:
        lr: learning rate, >= 0.
        betas: decay rates of the fast momentum, of the second moment and of the slow momentum, each in [0, 1). With
            `betas[0]` 0 the gradient is in the fast momentum's place, and nothing is kept of it.
        alpha: weight of the slow momentum, >= 0; the paper takes 5 to 10.
        t_beta3: updates in which the slow momentum's decay rate rises from `betas[0]` to `betas[2]`, > 0; None: it is
            `betas[2]` from the start. The paper takes the length of the run, for both.
        t_alpha: updates in which its weight rises from 0 to `alpha`, > 0; None: it is `alpha` from the start.
        eps: added to the denominator, >= 0.
        weight_decay: decoupled decay of the parameters, by `lr * weight_decay`, >= 0.
        maximize: flag: ascend the objective; decay still shrinks the parameters.

    Returns:
        The optimizer; state keys `step`, `exp_avg_fast`, `exp_avg_slow`, `exp_avg_sq`.

    Example:
        >>> import funcopt
        >>> tx = funcopt.ademamix(lr=1e-3, alpha=8.0, t_alpha=10_000, t_beta3=10_000, weight_decay=0.1)
    """
    beta1, beta2, beta3 = betas
    quotient = corrected((beta1, beta2), eps)

    def init(p: jax.Array) -> AdemamixState:
        return AdemamixState(0, None if is_zero(beta1) else jnp.zeros_like(p), jnp.zeros_like(p), jnp.zeros_like(p))

    @once
    def scalars(t: Any) -> tuple[Any, Any, Any]:
        weight = alpha if t_alpha is None else alpha * jnp.minimum(1.0, t / t_alpha)
        kept, new = beta3, 1 - beta3
        if t_beta3 is not None:
            # As a logarithm, out of which 1 - b comes with all digits where b is nearly 1.
            x = t / t_beta3
            rising = 1 / ((1 - x) / log(beta1 + 1e-8) + x / log(beta3 + 1e-8))
            decay = jnp.where(x < 1, rising, log(beta3))
            kept, new = jnp.exp(decay), -jnp.expm1(decay)
        return weight * bias_correction(beta1, t), kept, new

    def update(g: jax.Array, s: AdemamixState) -> tuple[jax.Array, AdemamixState]:
        weight, kept, new = scalars(s.step)
        fast = None if s.exp_avg_fast is None else beta1 * s.exp_avg_fast + (1 - beta1) * g
        slow = kept * s.exp_avg_slow + new * g
        v = beta2 * s.exp_avg_sq + (1 - beta2) * g * g
        u = quotient((g if fast is None else fast) + weight * slow, v, s.step)
        return u, AdemamixState(s.step, fast, slow, v)

    return descend(Rule(update, init), lr, weight_decay=weight_decay, decoupled=True, maximize=maximize)


scale_by_ademamix = direction(
    "scale_by_ademamix", ademamix, "Rescales updates as `ademamix` does, without its learning rate."
)
