"""Adagrad (Duchi et al., 2011), with torch's decay of the learning rate.

    sum = sum + g * g
    u   = g / (sqrt(sum) + eps) / (1 + (t - 1) * lr_decay)
    p   = p - lr * u

As in torch eps joins the root; optax puts it inside and starts from 0.1. Each part of a model may have its own
`initial_accumulator_value`, where torch reads the constructor's argument alone.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from funcopt import _checks
from funcopt._base import GradientTransformationExtraArgs, Hyperparameter, chain, leafwise, scheduled
from funcopt._numerics import filled
from funcopt._rows import on_rows
from funcopt.transforms._decay import add_decayed_weights
from funcopt.transforms._scale import ascend_where, scale_by_learning_rate


class ScaleByAdagradState(NamedTuple):
    step: Any  # int32 (), or a tree of them: applied updates so far
    sum: Any  # tree like the parameters


def adagrad_rule(
    g: jax.Array, sum_: jax.Array, *, step: jax.Array, lr_decay: Any, eps: Any, initial_accumulator_value: Any
) -> tuple[jax.Array, jax.Array]:
    """Adagrad's direction: the rule of the module's head, before the learning rate."""
    del initial_accumulator_value  # what the sum starts from
    sum_ = sum_ + g * g
    return g / ((1 + (step - 1) * lr_decay) * (jnp.sqrt(sum_) + eps)), sum_


def _init_adagrad(param: jax.Array, *, initial_accumulator_value: Any, **hyperparams: Any) -> tuple[jax.Array]:
    del hyperparams
    return (filled(param, initial_accumulator_value),)


def _check_adagrad(
    owner: str, lr_decay: Hyperparameter, initial_accumulator_value: Hyperparameter, eps: Hyperparameter
) -> None:
    _checks.check_hyperparam(owner, "lr_decay", lr_decay, _checks.NON_NEGATIVE)
    _checks.check_hyperparam(owner, "initial_accumulator_value", initial_accumulator_value, _checks.NON_NEGATIVE)
    _checks.check_hyperparam(owner, "eps", eps, _checks.NON_NEGATIVE)


def scale_by_adagrad(
    lr_decay: Hyperparameter = 0.0, initial_accumulator_value: Hyperparameter = 0.0, eps: Hyperparameter = 1e-10
) -> GradientTransformationExtraArgs:
    """Divides updates by the root of the sum of all squares: `torch.optim.Adagrad` without its learning rate.

    Args:
        lr_decay: the update number t, from 1, is divided by `1 + (t - 1) * lr_decay`, >= 0.
        initial_accumulator_value: what the sum of squares starts from, >= 0.
        eps: added to the root, >= 0.

    Returns:
        The transformation, with a `ScaleByAdagradState`.
    """
    owner = "scale_by_adagrad"
    _check_adagrad(owner, lr_decay, initial_accumulator_value, eps)

    def make(**hyperparams: Hyperparameter) -> GradientTransformationExtraArgs:
        return leafwise(
            owner, adagrad_rule, hyperparams, state=ScaleByAdagradState, init_leaf=_init_adagrad, rows=on_rows
        )

    return scheduled(make, {"lr_decay": lr_decay, "initial_accumulator_value": initial_accumulator_value, "eps": eps})


def adagrad(
    lr: Hyperparameter = 1e-2,
    lr_decay: Hyperparameter = 0.0,
    weight_decay: Hyperparameter = 0.0,
    initial_accumulator_value: Hyperparameter = 0.0,
    eps: Hyperparameter = 1e-10,
    *,
    maximize: Hyperparameter = False,
) -> GradientTransformationExtraArgs:
    """`torch.optim.Adagrad`.

    Args:
        lr: learning rate, >= 0.
        lr_decay: the rate of update number t, from 1, is `lr / (1 + (t - 1) * lr_decay)`, >= 0.
        weight_decay: L2 penalty, >= 0.
        initial_accumulator_value: what the sum of squares starts from, >= 0.
        eps: added to the root, >= 0.
        maximize: flag: ascend the objective; the penalty still shrinks the parameters.

    Returns:
        The optimizer; state keys `step`, `sum`.

    Example:
        >>> import funcopt
        >>> tx = funcopt.adagrad(lr=0.1, initial_accumulator_value={"w": 0.1, "b": 0.0})
    """
    _checks.check_hyperparam("adagrad", "lr", lr, _checks.NON_NEGATIVE)
    _checks.check_hyperparam("adagrad", "weight_decay", weight_decay, _checks.NON_NEGATIVE)
    _checks.check_flag("adagrad", "maximize", maximize)
    _check_adagrad("adagrad", lr_decay, initial_accumulator_value, eps)
    return chain(
        ascend_where(maximize),
        add_decayed_weights(weight_decay),
        scale_by_adagrad(lr_decay, initial_accumulator_value, eps),
        scale_by_learning_rate(lr),
    )
