"""LARS: momentum of gradients that are scaled to each array's norm (You et al., 2017).

    q   = trust_coeff * |p| / (|g| + weight_decay * |p| + eps)             1 where |p| or |g| is 0
    q   = min(q / lr, 1)                                                   trust_clip: LARC
    g   = q * (g + weight_decay * p)
    buf = momentum * buf + (1 - dampening) * g        first update: buf = g, undampened
    g   = g + momentum * buf   if nesterov else   buf
    p   = p - lr * g

Where the decay is 0, as of biases, q is 1, unless `always_adapt`. optax's lars divides by |g + weight_decay * p|, and
its learning rate is inside the momentum.
"""

from typing import Any

import jax
import jax.numpy as jnp

from funcopt._numerics import norm
from funcopt._tree import is_static
from funcopt.algorithms._sgd import TraceState, sgd
from funcopt.frame import decayed
from funcopt.kinds import AnyNumber, Flag, NonNegative, Positive
from funcopt.rule import Keys, Rule, transformation


def adapts(weight_decay: Any, always_adapt: bool) -> Any:
    """Whether an array's updates are scaled to its norm: a flag, or a traced one where the decay is traced."""
    return always_adapt or weight_decay != 0


def trust_ratio(x: Any, y: Any, denominator: Any) -> Any:
    """`x / denominator`, but 1 where one of the norms `x` and `y` is 0."""
    positive = (x > 0) & (y > 0)
    return jnp.where(positive, x / jnp.where(positive, denominator, 1.0), 1.0)


def scaled(update: jax.Array, ratio: Any, adapt: Any) -> jax.Array:
    """An update times a ratio, if its array adapts."""
    return (ratio if is_static(adapt) else jnp.where(adapt, ratio, 1.0)) * update


@transformation(elementwise=False, keys=Keys(from_first_update=True, step=None, torch_class="Lars"))
def lars(
    lr: NonNegative = 1.0,
    momentum: NonNegative = 0.0,
    dampening: AnyNumber = 0.0,
    weight_decay: NonNegative = 0.0,
    nesterov: Flag = False,
    trust_coeff: Positive = 0.001,
    eps: NonNegative = 1e-8,
    trust_clip: Flag = False,
    always_adapt: Flag = False,
) -> Rule:
    """`timm.optim.Lars`, and with `trust_clip` LARC.

    Args:
        lr: learning rate, >= 0.
        momentum: >= 0; 0 keeps no buffer.
        dampening: part of the gradient that is left out of the buffer, from the second update on.
        weight_decay: L2 penalty, >= 0. Arrays whose own is 0 are updated as by `sgd`.
        nesterov: flag; needs momentum > 0 and dampening 0.
        trust_coeff: size of an update relative to the parameters' norm, before the learning rate, > 0.
        eps: added to the denominator of that ratio, >= 0.
        trust_clip: flag: bound the learning rate from above by the ratio, instead of multiplying it.
        always_adapt: flag: scale the updates of arrays without decay, too.

    Returns:
        The optimizer; state key `momentum_buffer`.

    Example:
        >>> import funcopt
        >>> tx = funcopt.lars(lr=0.3, momentum=0.9, weight_decay={"w": 1e-4, "b": 0.0})
    """
    adapt = adapts(weight_decay, always_adapt)
    inner = sgd.rule(lr, momentum, dampening, nesterov=nesterov)

    def adapted(g: jax.Array, param: jax.Array) -> jax.Array:
        x, y = norm(param), norm(g)
        q = trust_ratio(trust_coeff * x, y, y + weight_decay * x + eps)
        return scaled(decayed(g, param, weight_decay), jnp.minimum(q / lr, 1.0) if trust_clip else q, adapt)

    def update(g: jax.Array, s: TraceState, *, param: jax.Array) -> tuple[jax.Array, TraceState]:
        return inner.update(adapted(g, param), s)

    return inner if adapt is False else inner._replace(update=update, rows="refuse")
