"""RAdam: Adam that waits until its second moment can be trusted (Liu et al., 2020, algorithm 2).

    m       = lerp(m, g, 1 - beta1)
    v       = beta2 * v + (1 - beta2) * g * g
    rho_inf = 2 / (1 - beta2) - 1
    rho_t   = rho_inf - 2 * t * beta2**t / (1 - beta2**t)
    rect    = sqrt((rho_t - 4) * (rho_t - 2) * rho_inf / ((rho_inf - 4) * (rho_inf - 2) * rho_t))
    u       = m / (1 - beta1**t)  *  (rect * sqrt(1 - beta2**t) / (sqrt(v) + eps)   if rho_t > 5 else   1)
    p       = p - lr * u

As in torch eps joins the root before the bias correction; optax adds it afterwards and takes rho_t >= 5.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from funcopt._numerics import bias_correction, filled, lerp, log, once, root
from funcopt.frame import descend
from funcopt.kinds import Betas, Flag, NonNegative
from funcopt.rule import Rule, direction, transformation


class RadamState(NamedTuple):
    step: Any  # int32 (), or a tree of them: applied updates so far
    exp_avg: Any  # tree like the parameters
    exp_avg_sq: Any  # tree like the parameters


def _excess(y: Any) -> jax.Array:
    """`2 / y - 2 / expm1(y)` for y > 0, also where the two nearly cancel: below 1/2 its series, exact to 4e-15."""
    small = jnp.minimum(y, 0.5)
    square = small * small
    tail = 1 / 15120 - square * (1 / 604800 - square * (1 / 23950080 - square * (691 / 653837184000)))
    series = 1 - small * (1 / 6 - square * (1 / 360 - square * tail))
    return jnp.where(y < 0.5, series, 2 / y - 2 / jnp.expm1(y))


def sma_length(beta2: Any, t: Any) -> jax.Array:
    """The rule's `rho_t`, how many gradients the second moment averages over, accurate in float32.

    There `rho_inf` and the term taken from it are both about 2 / (1 - beta2), and float32 leaves an error of 0.04
    (beta2 0.999) in a difference near 5, the threshold. With x = -log(beta2) the same number is
    `1 + t * _excess(t * x) - _excess(x)`, which subtracts nothing larger than 1.
    """
    rate = -log(beta2)
    return 1 + t * _excess(t * rate) - _excess(rate)


def rectification(beta2: Any, t: Any, shortest: float = 5.0) -> tuple[jax.Array, jax.Array]:
    """Whether the second moment averages over more gradients than `shortest`, and the square of r; 1 where not."""
    rho_inf = 2 / (1 - beta2) - 1
    rho = sma_length(beta2, t)
    rectified = rho > shortest
    # Before there are enough gradients the ratio is negative or 0 / 0: no root of it, whose derivative is NaN.
    ratio = (rho - 4) * (rho - 2) * rho_inf / (jnp.where(rectified, (rho_inf - 4) * (rho_inf - 2), 1.0) * rho)
    return rectified, jnp.where(rectified, ratio, 1.0)


def rectified(betas: Any, eps: Any, early: float = 1.0) -> Callable[[jax.Array, jax.Array, Any], jax.Array]:
    """A function of two moments and the count, the rule's u; before the rectification a multiple of the first one."""
    beta1, beta2 = betas

    @once
    def scalars(t: Any) -> tuple[Any, Any, Any]:
        trusted, ratio = rectification(beta2, t)
        return trusted, jnp.sqrt(ratio * bias_correction(beta2, t)), bias_correction(beta1, t)

    def quotient(m: jax.Array, v: jax.Array, t: Any) -> jax.Array:
        trusted, factor, correction = scalars(t)
        return m / correction * jnp.where(trusted, factor / (root(v) + eps), early)

    return quotient


@transformation()
def radam(
    lr: NonNegative = 1e-3,
    betas: Betas = (0.9, 0.999),
    eps: NonNegative = 1e-8,
    weight_decay: NonNegative = 0.0,
    decoupled_weight_decay: Flag = False,
    *,
    maximize: Flag = False,
) -> Rule:
    """`torch.optim.RAdam`.

    Args:
        lr: learning rate, >= 0.
        betas: decay rates of the two moments, each in [0, 1). With `betas[1]` up to 2/3 the second is never used.
        eps: added to the root of the second moment, >= 0.
        weight_decay: >= 0; an L2 penalty unless `decoupled_weight_decay`.
        decoupled_weight_decay: flag: decay the parameters directly, by `lr * weight_decay`.
        maximize: flag: ascend the objective; decay still shrinks the parameters.

    Returns:
        The optimizer; state keys `step`, `exp_avg`, `exp_avg_sq`.

    Example:
        >>> import funcopt
        >>> tx = funcopt.radam(lr=1e-3, weight_decay=0.01, decoupled_weight_decay=True)
    """
    beta1, beta2 = betas

    def init(p: jax.Array) -> RadamState:
        return RadamState(0, filled(p), filled(p))

    quotient = rectified(betas, eps)

    def update(g: jax.Array, s: RadamState) -> tuple[jax.Array, RadamState]:
        m = lerp(s.exp_avg, g, 1 - beta1)
        v = beta2 * s.exp_avg_sq + (1 - beta2) * g * g
        return quotient(m, v, s.step), RadamState(s.step, m, v)

    rule = Rule(update, init)
    return descend(rule, lr, weight_decay=weight_decay, decoupled=decoupled_weight_decay, maximize=maximize)


scale_by_radam = direction("scale_by_radam", radam, "Rescales updates as `radam` does, without its learning rate.")
