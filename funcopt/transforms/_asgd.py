"""ASGD: averaged stochastic gradient descent (Polyak and Juditsky, 1992; schedules of Bottou's sgd, 2010).

    p   = (1 - lambd * eta) * p - eta * g
    ax  = p   if mu == 1 else   ax + mu * (p - ax)
    eta = lr / (1 + lambd * lr * t)**alpha                                 for the next update
    mu  = 1 / max(1, t - t0)                                               for the next update

`eta` is lr at a parameter's first update, so a changed lr acts one update later. As in torch `eta` and `mu` are float32
whatever the parameters are: their rounding is part of the trajectory (1e-8). `ax` starts as the parameter, where torch
has zeros that nothing reads, so that `averaged_params` is right before the first update, too.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from funcopt import _checks
from funcopt._base import GradientTransformationExtraArgs, Hyperparameter, chain, leafwise, scheduled
from funcopt._tree import weak
from funcopt.transforms._decay import add_decayed_weights
from funcopt.transforms._scale import ascend_where


class AsgdState(NamedTuple):
    step: Any  # int32 (), or a tree of them: applied updates so far
    eta: Any  # tree of float32 (): the next update's learning rate
    mu: Any  # tree of float32 (): the next update's weight in the average
    ax: Any  # tree like the parameters: their average


def asgd_rule(
    g: jax.Array,
    eta: jax.Array,
    mu: jax.Array,
    ax: jax.Array,
    *,
    param: jax.Array,
    step: jax.Array,
    lr: Any,
    lambd: Any,
    alpha: Any,
    t0: Any,
) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
    """ASGD's finished update: the rule of the module's head."""
    # The rate that counts is that of a parameter's own first update, which `init` cannot know.
    rate = weak(jnp.where(step == 1, lr, eta))
    update = -(lambd * rate * param + rate * g)
    new_param = param + update
    ax = jnp.where(mu == 1, new_param, ax + (new_param - ax) * weak(mu))
    t = weak(step)
    return update, lr / (1 + lambd * lr * t) ** alpha, 1 / jnp.maximum(1, t - t0), ax


def _init_asgd(param: jax.Array, *, lr: Any, **hyperparams: Any) -> tuple[jax.Array, jax.Array, jax.Array]:
    del hyperparams
    return jnp.full((), lr, jnp.float32), jnp.ones((), jnp.float32), jnp.array(param, param.dtype)


def asgd(
    lr: Hyperparameter = 1e-2,
    lambd: Hyperparameter = 1e-4,
    alpha: Hyperparameter = 0.75,
    t0: Hyperparameter = 1e6,
    weight_decay: Hyperparameter = 0.0,
    maximize: Hyperparameter = False,
) -> GradientTransformationExtraArgs:
    """`torch.optim.ASGD`; `averaged_params` gives the average.

    The average is of the parameters with this optimizer's updates added, so nothing may come behind it in a chain.

    Args:
        lr: learning rate of the first update, >= 0.
        lambd: decay of the parameters, and of the learning rate.
        alpha: exponent of the learning rate's decay.
        t0: update after which averaging starts.
        weight_decay: L2 penalty, >= 0.
        maximize: flag: ascend the objective; decay still shrinks the parameters.

    Returns:
        The optimizer; state keys `step`, `eta`, `mu`, `ax`.

    Example:
        >>> import funcopt
        >>> tx = funcopt.asgd(lr=0.1, t0=1000)
        >>> funcopt.averaged_params(tx.init({"w": 1.0}))
        {'w': Array(1., dtype=float32)}
    """
    owner = "asgd"
    _checks.check_hyperparam(owner, "lr", lr, _checks.NON_NEGATIVE)
    _checks.check_hyperparam(owner, "lambd", lambd, _checks.ANY_NUMBER)
    _checks.check_hyperparam(owner, "alpha", alpha, _checks.ANY_NUMBER)
    _checks.check_hyperparam(owner, "t0", t0, _checks.ANY_NUMBER)
    _checks.check_hyperparam(owner, "weight_decay", weight_decay, _checks.NON_NEGATIVE)
    _checks.check_flag(owner, "maximize", maximize)

    def make(**hyperparams: Hyperparameter) -> GradientTransformationExtraArgs:
        return leafwise(owner, asgd_rule, hyperparams, state=AsgdState, init_leaf=_init_asgd, needs_params=True)

    return chain(
        ascend_where(maximize),
        add_decayed_weights(weight_decay),
        scheduled(make, {"lr": lr, "lambd": lambd, "alpha": alpha, "t0": t0}),
    )
