"""FTRL-Proximal: parameters that a closed form gives, many of them exactly 0 (McMahan et al., 2013, algorithm 1).

    n' = n + g * g
    z  = z + g - (n'**-lr_power - n**-lr_power) / lr * p
    p  = 0                                                                 where |z| <= lambda_1
    p  = (lambda_1 * sign(z) - z) / ((beta + sqrt(n')) / lr + lambda_2)    elsewhere

A parameter whose gradients have all been 0 becomes 0 at the first update. As in pytorch-optimizer `lr_power` is in z
alone, and the denominator has a root; n begins at 0, in TensorFlow at 0.1.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from funcopt._numerics import root
from funcopt._tree import is_static
from funcopt.frame import ascend
from funcopt.kinds import Flag, NonNegative, NonPositive, Positive
from funcopt.rule import Keys, Rule, transformation


class FtrlState(NamedTuple):
    z: Any  # tree like the parameters
    n: Any  # tree like the parameters: sum of the squared gradients


@transformation(keys=Keys(torch_class="FTRL"))
def ftrl(
    lr: Positive = 1e-3,
    lr_power: NonPositive = -0.5,
    beta: NonNegative = 0.0,
    lambda_1: NonNegative = 0.0,
    lambda_2: NonNegative = 0.0,
    *,
    maximize: Flag = False,
) -> Rule:
    """pytorch-optimizer's `FTRL`.

    Args:
        lr: learning rate, > 0; schedules must not reach 0, which is divided by.
        lr_power: exponent of the learning rate's decay, <= 0.
        beta: added to the root of the sum of squares, >= 0.
        lambda_1: L1 penalty, >= 0, which makes parameters exactly 0.
        lambda_2: L2 penalty, >= 0.
        maximize: flag: ascend the objective; penalties still shrink the parameters.

    Returns:
        The optimizer; state keys `z`, `n`.

    Example:
        >>> import funcopt
        >>> tx = funcopt.ftrl(lr=0.1, lambda_1=1e-3)
    """

    def power(n: jax.Array) -> jax.Array:
        return root(n) if is_static(lr_power) and lr_power == -0.5 else n**-lr_power

    def init(p: jax.Array) -> FtrlState:
        return FtrlState(jnp.zeros_like(p), jnp.zeros_like(p))

    def update(g: jax.Array, s: FtrlState, *, param: jax.Array) -> tuple[jax.Array, FtrlState]:
        g = ascend(g, maximize)
        n = s.n + g * g
        z = s.z + g - (power(n) - power(s.n)) / lr * param
        active = jnp.abs(z) > lambda_1
        denominator = (beta + root(n)) / lr + lambda_2
        new = (lambda_1 * jnp.sign(z) - z) / jnp.where(active, denominator, 1.0)
        return jnp.where(active, new, 0.0) - param, FtrlState(z, n)

    return Rule(update, init)
