"""AdaBelief: Adam that divides by how far gradients are from their average (Zhuang et al., 2020, algorithm 2).

    m    = lerp(m, g, 1 - beta1)
    v    = beta2 * v + (1 - beta2) * (g - m)**2 + eps                      eps stays in v, at each update
    vmax = max(vmax, v)                                                    amsgrad: v^ = vmax, otherwise v^ = v
    u    = m / (1 - beta1**t) / (sqrt(v^) / sqrt(1 - beta2**t) + eps)
    p    = p - lr * (u + weight_decay * p)

With `rectify` u is RAdam's, with this v and eps; while the second moment is not to be trusted, u is
m / (1 - beta1**t), or 0 without `degenerated_to_sgd`. optax's adabelief is the one without rectification, with
`eps_root` for the eps in v.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from funcopt._numerics import lerp
from funcopt.algorithms._adam import corrected
from funcopt.algorithms._radam import rectified
from funcopt.frame import descend
from funcopt.kinds import Betas, Flag, NonNegative
from funcopt.rule import Keys, Rule, direction, transformation


class AdabeliefState(NamedTuple):
    step: Any  # int32 (), or a tree of them: applied updates so far
    exp_avg: Any  # tree like the parameters
    exp_avg_var: Any  # tree like the parameters
    max_exp_avg_var: Any  # tree like the parameters; None where amsgrad is False


_OPTAX = (optax.ScaleByBeliefState, {"count": "step", "mu": "exp_avg", "nu": "exp_avg_var"})


@transformation(keys=Keys(step=int, optax=_OPTAX, torch_class="AdaBelief"))
def adabelief(
    lr: NonNegative = 1e-3,
    betas: Betas = (0.9, 0.999),
    eps: NonNegative = 1e-16,
    weight_decay: NonNegative = 0.0,
    amsgrad: Flag = False,
    weight_decouple: Flag = True,
    rectify: Flag = True,
    degenerated_to_sgd: Flag = True,
    *,
    maximize: Flag = False,
) -> Rule:
    """`adabelief_pytorch.AdaBelief`.

    Args:
        lr: learning rate, >= 0.
        betas: decay rates of the average and of the squared distances from it, each in [0, 1).
        eps: added to the second moment, where it adds up, and to the denominator, >= 0.
        weight_decay: >= 0; an L2 penalty unless `weight_decouple`.
        amsgrad: flag: divide by the largest second moment seen so far. As in the reference it changes no update with
            `rectify`.
        weight_decouple: flag: decay the parameters directly, by `lr * weight_decay`.
        rectify: flag: take RAdam's steps, which are short until the second moment can be trusted.
        degenerated_to_sgd: flag: before that follow the average; otherwise nothing but decay moves the parameters.
        maximize: flag: ascend the objective; decay still shrinks the parameters.

    Returns:
        The optimizer; state keys `step`, `exp_avg`, `exp_avg_var`, and `max_exp_avg_var` with amsgrad.

    Example:
        >>> import funcopt
        >>> tx = funcopt.adabelief(lr=1e-3, weight_decay=1e-2, rectify=False)
    """
    beta1, beta2 = betas
    quotient = rectified(betas, eps, 1.0 if degenerated_to_sgd else 0.0) if rectify else corrected(betas, eps)

    def init(p: jax.Array) -> AdabeliefState:
        return AdabeliefState(0, jnp.zeros_like(p), jnp.zeros_like(p), jnp.zeros_like(p) if amsgrad else None)

    def update(g: jax.Array, s: AdabeliefState) -> tuple[jax.Array, AdabeliefState]:
        m = lerp(s.exp_avg, g, 1 - beta1)
        v = beta2 * s.exp_avg_var + (1 - beta2) * (g - m) * (g - m) + eps
        largest = jnp.maximum(s.max_exp_avg_var, v) if amsgrad else None
        u = quotient(m, v if rectify or largest is None else largest, s.step)
        return u, AdabeliefState(s.step, m, v, largest)

    return descend(Rule(update, init), lr, weight_decay=weight_decay, decoupled=weight_decouple, maximize=maximize)


scale_by_adabelief = direction(
    "scale_by_adabelief",
    adabelief,
    "Rescales updates as `adabelief` does, without its learning rate.",
    without=("weight_decouple",),
)
