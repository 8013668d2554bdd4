"""Adam (Kingma and Ba, 2015, algorithm 1), AMSGrad (Reddi et al., 2018) and AdamW (Loshchilov and Hutter, 2019).

    m    = lerp(m, g, 1 - beta1)
    v    = beta2 * v + (1 - beta2) * g * g
    vmax = max(vmax, v)                                             amsgrad: v^ = vmax, otherwise v^ = v
    u    = m / (1 - beta1**t) / (sqrt(v^) / sqrt(1 - beta2**t) + eps)
    p    = p - lr * u

As in torch, AMSGrad takes the maximum of the raw second moment and corrects its bias afterwards; the paper has no
correction and optax takes the maximum of the corrected one.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from funcopt._numerics import bias_correction, lerp, once, root
from funcopt.frame import descend
from funcopt.kinds import Flag, FloatBetas, NonNegative
from funcopt.rule import Keys, Rule, direction, transformation


class AdamState(NamedTuple):
    step: Any  # int32 (), or a tree of them: applied updates so far
    exp_avg: Any  # tree like the parameters
    exp_avg_sq: Any  # tree like the parameters
    max_exp_avg_sq: Any  # tree like the parameters; None where amsgrad is False


def corrected(betas: tuple[Any, Any], eps: Any) -> Callable[[jax.Array, jax.Array, Any], jax.Array]:
    """A function of two moments and the count, their quotient: both are corrected for their start at 0."""
    beta1, beta2 = betas

    @once
    def scalars(t: Any) -> tuple[Any, Any]:
        # Both corrections and eps meet as scalars: one multiplication and addition for each element.
        correction1, correction2 = bias_correction(beta1, t), bias_correction(beta2, t)
        return correction1 / jnp.sqrt(correction2), correction1 * eps

    def quotient(m: jax.Array, v: jax.Array, t: Any) -> jax.Array:
        correction, scaled_eps = scalars(t)
        return m / (root(v) * correction + scaled_eps)

    return quotient


def step_correction(betas: tuple[Any, Any], corrects: bool = True) -> Callable[[Any], Any]:
    """A function of the count: what the update is multiplied with where eps comes before the moments' correction."""
    beta1, beta2 = betas
    return once(lambda t: jnp.sqrt(bias_correction(beta2, t)) / bias_correction(beta1, t) if corrects else 1.0)


_OPTAX = (optax.ScaleByAdamState, {"count": "step", "mu": "exp_avg", "nu": "exp_avg_sq"})


@transformation(keys=Keys(optax=_OPTAX))
def adam(
    lr: NonNegative = 1e-3,
    betas: FloatBetas = (0.9, 0.999),
    eps: NonNegative = 1e-8,
    weight_decay: NonNegative = 0.0,
    amsgrad: Flag = False,
    *,
    maximize: Flag = False,
    decoupled_weight_decay: Flag = False,
) -> Rule:
    """`torch.optim.Adam`.

    Args:
        lr: learning rate, >= 0.
        betas: decay rates of the two moments, each in [0, 1).
        eps: added to the denominator, >= 0.
        weight_decay: >= 0; an L2 penalty unless `decoupled_weight_decay`.
        amsgrad: flag: divide by the largest second moment seen so far.
        maximize: flag: ascend the objective; decay still shrinks the parameters.
        decoupled_weight_decay: flag: decay the parameters directly, which makes this AdamW.

    Returns:
        The optimizer; state keys `step`, `exp_avg`, `exp_avg_sq`, and `max_exp_avg_sq` with amsgrad.

    Example:
        >>> import funcopt
        >>> tx = funcopt.chain(funcopt.add_decayed_weights(1e-4), funcopt.adam(1e-3))
    """
    beta1, beta2 = betas

    def init(p: jax.Array) -> AdamState:
        return AdamState(0, jnp.zeros_like(p), jnp.zeros_like(p), jnp.zeros_like(p) if amsgrad else None)

    quotient = corrected(betas, eps)

    def update(g: jax.Array, s: AdamState) -> tuple[jax.Array, AdamState]:
        m = lerp(s.exp_avg, g, 1 - beta1)
        v = beta2 * s.exp_avg_sq + (1 - beta2) * g * g
        largest = jnp.maximum(s.max_exp_avg_sq, v) if amsgrad else None
        return quotient(m, v if largest is None else largest, s.step), AdamState(s.step, m, v, largest)

    rule = Rule(update, init)
    return descend(rule, lr, weight_decay=weight_decay, decoupled=decoupled_weight_decay, maximize=maximize)


@transformation()
def adamw(
    lr: NonNegative = 1e-3,
    betas: FloatBetas = (0.9, 0.999),
    eps: NonNegative = 1e-8,
    weight_decay: NonNegative = 1e-2,
    amsgrad: Flag = False,
    *,
    maximize: Flag = False,
) -> Rule:
    """`torch.optim.AdamW`: `adam` with decoupled weight decay, by default 0.01.

    The decay per update is `lr * weight_decay`, as in torch and optax; the paper's is `weight_decay` alone.

    Example:
        >>> import funcopt
        >>> tx = funcopt.adamw(lr={"backbone": 1e-4, "head": 1e-3}, weight_decay=0.05)
    """
    return adam.rule(lr, betas, eps, weight_decay, amsgrad, maximize=maximize, decoupled_weight_decay=True)


scale_by_adam = direction("scale_by_adam", adam, "Rescales updates as `adam` does, without its learning rate.")
