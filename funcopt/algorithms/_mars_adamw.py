"""MARS-AdamW: AdamW of gradients whose variance is lowered by the last ones (Yuan et al., 2024, algorithm 2).

    c = g + gamma * beta1 / (1 - beta1) * (g - last)                        last = 0 at first
    c = c / max(1, |c|)                                                     one norm for each array
    m, v and p as in AdamW, with c for the gradient
    last = g

That is for matrices; other arrays are updated by AdamW with hyperparameters of their own, unless `optimize_1d`. As in
the authors' code, with one gradient per update; timm's takes c = g at the first one. The authors keep the gradient's
tensor in place of a copy, so that a gradient that is written in place is compared with itself; this does not.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from funcopt._numerics import norm
from funcopt._tree import refuse_unless_real
from funcopt.algorithms._adam import AdamState, adamw
from funcopt.kinds import Flag, FloatBetas, NonNegative
from funcopt.rule import Keys, Rule, transformation


class MarsAdamwState(NamedTuple):
    step: Any  # int32 (), or a tree of them: applied updates so far
    exp_avg: Any  # tree like the parameters
    exp_avg_sq: Any  # tree like the parameters
    last_grad: Any  # tree like the parameters; None for what AdamW updates


@transformation(elementwise=False, refuse_param=refuse_unless_real, keys=Keys(step=int, torch_class="MARS"))
def mars_adamw(
    lr: NonNegative = 3e-3,
    betas: FloatBetas = (0.95, 0.99),
    eps: NonNegative = 1e-8,
    weight_decay: NonNegative = 0.0,
    gamma: NonNegative = 0.025,
    optimize_1d: Flag = False,
    lr_1d_factor: NonNegative = 1.0,
    betas_1d: FloatBetas = (0.9, 0.95),
    weight_decay_1d: NonNegative = 0.1,
) -> Rule:
    """AGI-Arena's `MARS(mars_type="mars-adamw")`, in its approximate form.

    Args:
        lr: learning rate, >= 0.
        betas: decay rates of the two moments, each in [0, 1).
        eps: added to the denominator, >= 0.
        weight_decay: decoupled decay of the parameters, by `lr * weight_decay`, >= 0.
        gamma: how much of the difference to the last gradient is added, >= 0.
        optimize_1d: flag: treat all arrays as matrices.
        lr_1d_factor: the learning rate of arrays that are no matrices is `lr` times it, >= 0. The authors' `lr_1d` is
            that of the start, and the factor `lr_1d / lr`.
        betas_1d: decay rates of these arrays.
        weight_decay_1d: decay of these arrays, >= 0.

    Returns:
        The optimizer; state keys `step`, `exp_avg`, `exp_avg_sq`, and `last_grad` where gradients are compared. Its
        `init` raises ValueError for complex parameters.

    Example:
        >>> import funcopt
        >>> tx = funcopt.mars_adamw(lr=3e-3, weight_decay=0.01, weight_decay_1d=0.0)
    """
    beta1, _ = betas

    def init(p: jax.Array) -> MarsAdamwState:
        last = jnp.zeros_like(p) if optimize_1d or p.ndim == 2 else None
        return MarsAdamwState(0, jnp.zeros_like(p), jnp.zeros_like(p), last)

    def update(g: jax.Array, s: MarsAdamwState, *, param: jax.Array) -> tuple[jax.Array, MarsAdamwState]:
        moments = AdamState(s.step, s.exp_avg, s.exp_avg_sq, None)
        if s.last_grad is None:
            plain = adamw.rule(lr * lr_1d_factor, betas_1d, eps, weight_decay_1d)
            u, new = plain.update(g, moments, param=param)
            return u, MarsAdamwState(s.step, new.exp_avg, new.exp_avg_sq, None)
        c = g + gamma * beta1 / (1 - beta1) * (g - s.last_grad)
        mixed = adamw.rule(lr, betas, eps, weight_decay)
        u, new = mixed.update(c / jnp.maximum(1.0, norm(c)), moments, param=param)
        return u, MarsAdamwState(s.step, new.exp_avg, new.exp_avg_sq, g)

    return Rule(update, init)
