"""AdamP and SGDP: updates without the part that only lets a parameter's norm grow (Heo et al., 2021, algorithms 1, 2).

    u     = m / (1 - beta1**t) / (sqrt(v) / sqrt(1 - beta2**t) + eps)      AdamP; nesterov: beta1 * m + (1 - beta1) * g
    buf   = momentum * buf + (1 - dampening) * g                           SGDP: u = buf; nesterov: g + momentum * buf
    k     = sum(p * u) / (|p| + eps)**2
    u     = u - k * p                                                      if p is invariant to its scale; otherwise
    ratio = wd_ratio                                                       ratio is 1, and u stays as it is
    p     = p - lr * (u + ratio * weight_decay * p)                        SGDP: weight_decay / (1 - momentum)

A parameter is taken to be invariant to its scale if its gradient is nearly at right angles to it: each channel (first
axis) by itself, or, if any of these is not, the array as a whole. That is, if |cos(p, g)| < delta / sqrt(elements of a
channel, or of the array). Vectors never are. adamp's own SGDP writes the projected update back into its momentum by
mistake; timm's does not.
"""

import math
from typing import Annotated, Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp

from funcopt import _checks
from funcopt._numerics import root
from funcopt._tree import refuse_unless_real
from funcopt.algorithms._adam import corrected
from funcopt.frame import decayed, descend, is_zero
from funcopt.kinds import AnyNumber, Betas, Flag, Hyperparameter, NonNegative, number
from funcopt.rule import Keys, Rule, transformation

Momentum: TypeAlias = Annotated[Hyperparameter, number(_checks.UNIT_HALF_OPEN)]


def projected(
    u: jax.Array, g: jax.Array, p: jax.Array, *, weight_decay: Any, wd_ratio: Any, delta: Any, eps: Any
) -> jax.Array:
    """An update without its part along the parameter, where that is invariant to its scale, and with the decay."""
    if p.ndim < 2:
        return decayed(u, p, weight_decay)

    def seen_as(axes: tuple[int, ...]) -> tuple[jax.Array, jax.Array]:
        def dot(x: jax.Array, y: jax.Array) -> jax.Array:
            return jnp.sum(x * y, axis=axes, keepdims=True)

        size = root(dot(p, p))
        cosine = jnp.abs(dot(p, g)) / (jnp.maximum(size, eps) * jnp.maximum(root(dot(g, g)), eps))
        invariant = jnp.max(cosine) < delta / math.prod(p.shape[axis] for axis in axes) ** 0.5
        return invariant, dot(p, u) / ((size + eps) * (size + eps))

    by_channel, channels = seen_as(tuple(range(1, p.ndim)))
    as_whole, whole = seen_as(tuple(range(p.ndim)))
    part = jnp.where(by_channel, channels, jnp.where(as_whole, whole, 0.0))
    decay = 0.0 if is_zero(weight_decay) else jnp.where(by_channel | as_whole, wd_ratio, 1.0) * weight_decay
    return decayed(u - part * p, p, decay)


class AdampState(NamedTuple):
    step: Any  # int32 (), or a tree of them: applied updates so far
    exp_avg: Any  # tree like the parameters
    exp_avg_sq: Any  # tree like the parameters


@transformation(elementwise=False, refuse_param=refuse_unless_real, keys=Keys(step=int, torch_class="AdamP"))
def adamp(
    lr: NonNegative = 1e-3,
    betas: Betas = (0.9, 0.999),
    eps: NonNegative = 1e-8,
    weight_decay: NonNegative = 0.0,
    delta: NonNegative = 0.1,
    wd_ratio: NonNegative = 0.1,
    nesterov: Flag = False,
) -> Rule:
    """`adamp.AdamP` and timm's: Adam for networks with normalisation.

    Args:
        lr: learning rate, >= 0.
        betas: decay rates of the two moments, each in [0, 1).
        eps: added to denominators and norms, >= 0.
        weight_decay: decoupled decay of the parameters, by `lr * weight_decay`, >= 0.
        delta: how near to a right angle a gradient has to be, >= 0; 0 makes this AdamW.
        wd_ratio: factor of the decay of what is invariant to its scale, >= 0.
        nesterov: flag: look ahead by one update.

    Returns:
        The optimizer; state keys `step`, `exp_avg`, `exp_avg_sq`. Its `init` raises ValueError for complex parameters.

    Example:
        >>> import funcopt
        >>> tx = funcopt.adamp(lr=1e-3, weight_decay=1e-2)
    """
    beta1, beta2 = betas
    quotient = corrected(betas, eps)

    def init(p: jax.Array) -> AdampState:
        return AdampState(0, jnp.zeros_like(p), jnp.zeros_like(p))

    def update(g: jax.Array, s: AdampState, *, param: jax.Array) -> tuple[jax.Array, AdampState]:
        m = beta1 * s.exp_avg + (1 - beta1) * g
        v = beta2 * s.exp_avg_sq + (1 - beta2) * g * g
        u = quotient(beta1 * m + (1 - beta1) * g if nesterov else m, v, s.step)
        u = projected(u, g, param, weight_decay=weight_decay, wd_ratio=wd_ratio, delta=delta, eps=eps)
        return u, AdampState(s.step, m, v)

    return descend(Rule(update, init), lr)


class SgdpState(NamedTuple):
    momentum: Any  # tree like the parameters


@transformation(elementwise=False, refuse_param=refuse_unless_real, keys=Keys(torch_class="SGDP"))
def sgdp(
    lr: NonNegative = 1e-3,
    momentum: Momentum = 0.0,
    dampening: AnyNumber = 0.0,
    weight_decay: NonNegative = 0.0,
    nesterov: Flag = False,
    eps: NonNegative = 1e-8,
    delta: NonNegative = 0.1,
    wd_ratio: NonNegative = 0.1,
) -> Rule:
    """`timm.optim.SGDP`: momentum for networks with normalisation.

    Args:
        lr: learning rate, >= 0; the reference has no default.
        momentum: in [0, 1).
        dampening: part of the gradient that is left out of the buffer, at the first update, too.
        weight_decay: decoupled decay of the parameters, by `lr * weight_decay / (1 - momentum)`, >= 0.
        nesterov: flag: look ahead by one update.
        eps: added to norms, >= 0.
        delta: how near to a right angle a gradient has to be, >= 0.
        wd_ratio: factor of the decay of what is invariant to its scale, >= 0.

    Returns:
        The optimizer; state key `momentum`. Its `init` raises ValueError for complex parameters.

    Example:
        >>> import funcopt
        >>> tx = funcopt.sgdp(lr=0.1, momentum=0.9, weight_decay=1e-5, nesterov=True)
    """

    def init(p: jax.Array) -> SgdpState:
        return SgdpState(jnp.zeros_like(p))

    def update(g: jax.Array, s: SgdpState, *, param: jax.Array) -> tuple[jax.Array, SgdpState]:
        buffer = momentum * s.momentum + (1 - dampening) * g
        u = g + momentum * buffer if nesterov else buffer
        decay = weight_decay if is_zero(weight_decay) else weight_decay / (1 - momentum)
        return projected(u, g, param, weight_decay=decay, wd_ratio=wd_ratio, delta=delta, eps=eps), SgdpState(buffer)

    return descend(Rule(update, init), lr)
