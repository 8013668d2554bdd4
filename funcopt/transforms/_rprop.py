"""Rprop: resilient backpropagation (Riedmiller and Braun, 1993), in the variant Rprop- (Igel and Huesken, 2000).

    step_size = clip(step_size * (eta+ if g * prev > 0, eta- if g * prev < 0, 1 otherwise), low, high)
    g         = 0 where g * prev < 0
    p         = p - sign(g) * step_size
    prev      = g

`step_size` is lr at a parameter's first update, and lr is not read again. As in torch the step is clipped at every
update, the first included. optax's rprop applies the step of the update before.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from funcopt import _checks
from funcopt._base import GradientTransformationExtraArgs, Hyperparameter, chain, leafwise, scheduled
from funcopt._numerics import filled
from funcopt.transforms._scale import ascend_where


class RpropState(NamedTuple):
    step: Any  # int32 (), or a tree of them: applied updates so far
    prev: Any  # tree like the parameters: last gradients, 0 where their sign had changed
    step_size: Any  # tree like the parameters


def rprop_rule(
    g: jax.Array,
    prev: jax.Array,
    step_size: jax.Array,
    *,
    step: jax.Array,
    lr: Any,
    etas: tuple[Any, Any],
    step_sizes: tuple[Any, Any],
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Rprop's finished update: the rule of the module's head."""
    eta_minus, eta_plus = etas
    # The rate that counts is that of a parameter's own first update, which `init` cannot know.
    step_size = jnp.where(step == 1, lr, step_size)
    agreement = g * prev
    turned = agreement < 0
    step_size = jnp.where(agreement > 0, eta_plus * step_size, jnp.where(turned, eta_minus * step_size, step_size))
    step_size = jnp.clip(step_size, *step_sizes)
    g = jnp.where(turned, 0.0, g)
    return -jnp.sign(g) * step_size, g, step_size


def _init_rprop(param: jax.Array, *, lr: Any, **hyperparams: Any) -> tuple[jax.Array, jax.Array]:
    del hyperparams
    return filled(param), filled(param, lr)


def rprop(
    lr: Hyperparameter = 1e-2,
    etas: Hyperparameter = (0.5, 1.2),
    step_sizes: Hyperparameter = (1e-6, 50.0),
    *,
    maximize: Hyperparameter = False,
) -> GradientTransformationExtraArgs:
    """`torch.optim.Rprop`, for gradients of the whole data set.

    Args:
        lr: the first step size, >= 0. A later change of it has no effect.
        etas: factors for a step whose gradient changed its sign, in (0, 1), and for one that kept it, > 1.
        step_sizes: smallest and largest step.
        maximize: flag: ascend the objective.

    Returns:
        The optimizer; state keys `step`, `prev`, `step_size`.

    Example:
        >>> import funcopt
        >>> tx = funcopt.rprop(lr=1e-3, step_sizes=(1e-8, 1.0))
    """
    owner = "rprop"
    _checks.check_hyperparam(owner, "lr", lr, _checks.NON_NEGATIVE)
    _checks.check_hyperparam(owner, "etas", etas, (_checks.UNIT_OPEN, _checks.ABOVE_ONE))
    _checks.check_hyperparam(owner, "step_sizes", step_sizes, (_checks.ANY_NUMBER, _checks.ANY_NUMBER))
    _checks.check_flag(owner, "maximize", maximize)
    tuples = ("etas", "step_sizes")

    def make(**hyperparams: Hyperparameter) -> GradientTransformationExtraArgs:
        return leafwise(owner, rprop_rule, hyperparams, state=RpropState, init_leaf=_init_rprop, tuples=tuples)

    return chain(
        ascend_where(maximize), scheduled(make, {"lr": lr, "etas": etas, "step_sizes": step_sizes}, tuples=tuples)
    )
