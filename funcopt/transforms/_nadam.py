"""NAdam: Adam with Nesterov momentum (Dozat, 2016), with the momentum schedule of the report's section on it.

    mu_t       = beta1 * (1 - 0.5 * 0.96**(t * momentum_decay))
    mu_product = mu_product * mu_t
    m          = lerp(m, g, 1 - beta1)
    v          = beta2 * v + (1 - beta2) * g * g
    u          = (1 - mu_t) / (1 - mu_product) * g  +  mu_{t+1} / (1 - mu_product * mu_{t+1}) * m
    p          = p - lr * u / (sqrt(v / (1 - beta2**t)) + eps)

As in torch `mu_product` is float32 whatever the parameters are: its rounding is part of the trajectory (5e-10 with the
defaults). optax keeps mu at beta1.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from funcopt import _checks
from funcopt._base import GradientTransformationExtraArgs, Hyperparameter, chain, leafwise, scheduled
from funcopt._numerics import bias_correction, filled, lerp
from funcopt._tree import map_prefix, weak
from funcopt.transforms._decay import add_decayed_weights
from funcopt.transforms._scale import ascend_where, scale_by_learning_rate


class ScaleByNadamState(NamedTuple):
    step: Any  # int32 (), or a tree of them: applied updates so far
    mu_product: Any  # tree of float32 (): product of the momenta so far
    exp_avg: Any  # tree like the parameters
    exp_avg_sq: Any  # tree like the parameters


def nadam_rule(
    g: jax.Array,
    mu_product: jax.Array,
    exp_avg: jax.Array,
    exp_avg_sq: jax.Array,
    *,
    step: jax.Array,
    betas: tuple[Any, Any],
    eps: Any,
    momentum_decay: Any,
) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
    """NAdam's direction: the rule of the module's head, before the learning rate."""
    beta1, beta2 = betas
    t = weak(step)
    mu = beta1 * (1 - 0.5 * 0.96 ** (t * momentum_decay))
    mu_next = beta1 * (1 - 0.5 * 0.96 ** ((t + 1) * momentum_decay))
    mu_product = mu_product * mu
    product = weak(mu_product)
    exp_avg = lerp(exp_avg, g, 1 - beta1)
    exp_avg_sq = beta2 * exp_avg_sq + (1 - beta2) * g * g
    denom = jnp.sqrt(exp_avg_sq / bias_correction(beta2, step)) + eps
    update = (1 - mu) / (1 - product) * g + mu_next / (1 - product * mu_next) * exp_avg
    return update / denom, mu_product, exp_avg, exp_avg_sq


def _init_nadam(param: jax.Array, **hyperparams: Any) -> tuple[jax.Array, jax.Array, jax.Array]:
    del hyperparams
    return jnp.ones((), jnp.float32), filled(param), filled(param)


def _check_nadam(owner: str, betas: Hyperparameter, eps: Hyperparameter, momentum_decay: Hyperparameter) -> None:
    _checks.check_hyperparam(owner, "betas", betas, (_checks.UNIT_HALF_OPEN, _checks.UNIT_HALF_OPEN))
    _checks.check_hyperparam(owner, "eps", eps, _checks.NON_NEGATIVE)
    _checks.check_hyperparam(owner, "momentum_decay", momentum_decay, _checks.NON_NEGATIVE)


def scale_by_nadam(
    betas: Hyperparameter = (0.9, 0.999), eps: Hyperparameter = 1e-8, momentum_decay: Hyperparameter = 4e-3
) -> GradientTransformationExtraArgs:
    """Rescales updates as NAdam does: the direction of `torch.optim.NAdam`, without its learning rate.

    Args:
        betas: decay rates of the two moments, each in [0, 1).
        eps: added to the denominator after the bias correction, >= 0.
        momentum_decay: how fast the momentum rises from half of `betas[0]` to it, per update, >= 0.

    Returns:
        The transformation, with a `ScaleByNadamState`.
    """
    owner = "scale_by_nadam"
    _check_nadam(owner, betas, eps, momentum_decay)

    def make(**hyperparams: Hyperparameter) -> GradientTransformationExtraArgs:
        return leafwise(
            owner, nadam_rule, hyperparams, state=ScaleByNadamState, init_leaf=_init_nadam, tuples=("betas",)
        )

    return scheduled(make, {"betas": betas, "eps": eps, "momentum_decay": momentum_decay}, tuples=("betas",))


def nadam(
    lr: Hyperparameter = 2e-3,
    betas: Hyperparameter = (0.9, 0.999),
    eps: Hyperparameter = 1e-8,
    weight_decay: Hyperparameter = 0.0,
    momentum_decay: Hyperparameter = 4e-3,
    decoupled_weight_decay: Hyperparameter = False,
    *,
    maximize: Hyperparameter = False,
) -> GradientTransformationExtraArgs:
    """`torch.optim.NAdam`.

    Args:
        lr: learning rate, >= 0.
        betas: decay rates of the two moments, each in [0, 1).
        eps: added to the denominator, >= 0.
        weight_decay: >= 0; an L2 penalty unless `decoupled_weight_decay`.
        momentum_decay: how fast the momentum rises from half of `betas[0]` to it, per update, >= 0.
        decoupled_weight_decay: flag: decay the parameters directly, by `lr * weight_decay`.
        maximize: flag: ascend the objective; decay still shrinks the parameters.

    Returns:
        The optimizer; state keys `step`, `mu_product`, `exp_avg`, `exp_avg_sq`.

    Example:
        >>> import funcopt
        >>> tx = funcopt.nadam(weight_decay=0.01, decoupled_weight_decay=True)
    """
    _checks.check_hyperparam("nadam", "lr", lr, _checks.NON_NEGATIVE)
    _checks.check_hyperparam("nadam", "weight_decay", weight_decay, _checks.NON_NEGATIVE)
    _checks.check_flag("nadam", "decoupled_weight_decay", decoupled_weight_decay)
    _checks.check_flag("nadam", "maximize", maximize)
    _check_nadam("nadam", betas, eps, momentum_decay)
    return chain(
        ascend_where(maximize),
        add_decayed_weights(weight_decay, mask=map_prefix(lambda flag: not flag, decoupled_weight_decay)),
        scale_by_nadam(betas, eps, momentum_decay),
        add_decayed_weights(weight_decay, mask=decoupled_weight_decay),
        scale_by_learning_rate(lr),
    )
