"""MARS: an optimizer on gradients with less variance (Yuan et al., 2024, algorithm 1, with the last step's gradient).

c    = g + gamma * beta1 / (1 - beta1) * (g - last)
c    = c / max(1, norm(c))                                             the norm of each array
last = g
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from funcopt._numerics import root
from funcopt._tree import weak
from funcopt.frame import redirected
from funcopt.kinds import NonNegative
from funcopt.rule import Given, Refused, Rule, around, wrapper


class MarsState(NamedTuple):
    last_grad: Any  # tree like the parameters: the gradient before; 0 at first


@wrapper(elementwise=False)
def mars(inner: Rule, arguments: Mapping[str, Any], *, gamma: NonNegative = 0.025) -> Rule:  # noqa: D417
    """An optimizer on gradients that are corrected by their change since the last update: `MARS`, with AdamW, Lion, ...

    Args:
        inner: a factory or what it returned; with `betas` or `momentum`, whose first decay rate scales the correction.
        gamma: how much of the change is added, >= 0; 0 leaves the clipping of each array's gradient to norm 1.

    Returns:
        A factory or a transformation, as `inner`; state keys `last_grad` and those of the optimizer.

    Raises:
        ValueError: for an optimizer without a momentum.

    Example:
        >>> import funcopt
        >>> tx = funcopt.mars(funcopt.adamw(lr=3e-3, betas=(0.95, 0.99)))
    """
    betas = arguments.get("betas", (arguments.get("momentum"),))
    beta1 = betas[0]
    if beta1 is None:
        raise Refused("inner", "an optimizer with betas or momentum", "one without")

    def init(p: jax.Array) -> MarsState:
        return MarsState(jnp.zeros_like(p))

    def before(g: jax.Array, own: MarsState, given: Given) -> tuple[jax.Array, Given]:
        c = g + gamma * beta1 / (1 - beta1) * (g - own.last_grad)
        return c / jnp.maximum(1.0, weak(root(jnp.sum(c * c)))), given

    def after(u: jax.Array, g: jax.Array, own: MarsState, given: Given) -> tuple[jax.Array, MarsState]:
        return u, MarsState(g)

    return redirected(inner, lambda rule: around(rule, init, before, after))
