"""Adafactor: Adam's second moment from row and column means (Shazeer and Stern, 2018, algorithms 4 and 5).

    w     = t**beta2_decay
    R     = lerp(R, mean over columns of g * g, w)                         a matrix, or a stack of them (last two axes)
    C     = lerp(C, mean over rows of g * g, w)
    V     = R * C / max(mean of R, eps1)                                   a vector or number: V = lerp(V, g * g, w)
    u     = g / sqrt(max(V, eps1**2))
    u     = u / max(1, rms(u) / d)
    p     = (1 - lr * weight_decay) * p - max(eps2, rms(p)) * min(lr, 1 / sqrt(t)) * u

As in torch eps1 acts on V and u, where the paper adds it to g * g; always the last two axes are factored, where optax
takes the two largest; and weight decay follows lr. eps1 None is the machine epsilon of each parameter's own dtype; in
torch that of the group's first parameter goes for all of them.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from funcopt import _checks
from funcopt._base import GradientTransformationExtraArgs, Hyperparameter, chain, leafwise, scheduled
from funcopt._numerics import filled, lerp
from funcopt._tree import complaint_unless_real, is_static, weak
from funcopt.transforms._scale import ascend_where


class AdafactorState(NamedTuple):
    step: Any  # int32 (), or a tree of them: applied updates so far
    row_var: Any  # tree of (..., rows, 1); None for parameters of less than two axes
    col_var: Any  # tree of (..., 1, columns); None for parameters of less than two axes
    variance: Any  # tree like the parameters; None for those of two axes or more


def adafactor_rule(
    g: jax.Array,
    row_var: jax.Array | None,
    col_var: jax.Array | None,
    variance: jax.Array | None,
    *,
    param: jax.Array,
    dtype: Any,
    step: jax.Array,
    lr: Any,
    beta2_decay: Any,
    eps: tuple[Any, Any],
    d: Any,
    weight_decay: Any,
) -> tuple[jax.Array, jax.Array | None, jax.Array | None, jax.Array | None]:
    """Adafactor's finished update: the rule of the module's head."""
    eps1 = float(jnp.finfo(dtype).eps) if eps[0] is None else eps[0]
    t = weak(step)
    weight = t**beta2_decay
    if variance is None:
        assert row_var is not None
        assert col_var is not None
        row_var = lerp(row_var, jnp.mean(g * g, axis=-1, keepdims=True), weight)
        col_var = lerp(col_var, jnp.mean(g * g, axis=-2, keepdims=True), weight)
        estimate = row_var * col_var / jnp.maximum(jnp.mean(row_var, axis=-2, keepdims=True), eps1)
    else:
        estimate = variance = lerp(variance, g * g, weight)
    update = g / jnp.sqrt(jnp.maximum(estimate, eps1 * eps1))
    clipping = jnp.maximum(1.0, _rms(update) / d)
    rate = jnp.maximum(eps[1], _rms(param)) * jnp.minimum(lr, 1 / jnp.sqrt(t))
    update = -(rate / clipping) * update
    if not (is_static(weight_decay) and weight_decay == 0):
        update = update - lr * weight_decay * param
    return update, row_var, col_var, variance


def _rms(x: jax.Array) -> jax.Array:
    return weak(jnp.sqrt(jnp.sum(x * x))) / x.size**0.5


def _init_adafactor(param: jax.Array, **hyperparams: Any) -> tuple[jax.Array | None, ...]:
    del hyperparams
    if param.ndim < 2:
        return None, None, filled(param)
    return filled(param[..., :1]), filled(param[..., :1, :]), None


def adafactor(
    lr: Hyperparameter = 1e-2,
    beta2_decay: Hyperparameter = -0.8,
    eps: Hyperparameter = (None, 1e-3),
    d: Hyperparameter = 1.0,
    weight_decay: Hyperparameter = 0.0,
    *,
    maximize: Hyperparameter = False,
) -> GradientTransformationExtraArgs:
    """`torch.optim.Adafactor`: memory for the second moment grows with the sides of a matrix, not with its area.

    Args:
        lr: largest relative step size, and the decay's learning rate, >= 0.
        beta2_decay: the second moment's new weight at update number t is `t**beta2_decay`, <= 0.
        eps: floor of the second moment's root, >= 0 or None for the dtype's machine epsilon, and of the parameter's
            root mean square, which the step is relative to, >= 0.
        d: largest root mean square of an update before scaling, >= 1.
        weight_decay: decoupled decay of the parameters, by `lr * weight_decay`, >= 0.
        maximize: flag: ascend the objective; decay still shrinks the parameters.

    Returns:
        The optimizer; state keys `step`, and `row_var`, `col_var` for two axes or more, `variance` for fewer.

    Raises:
        ValueError: in `init`, for complex parameters.

    Example:
        >>> import funcopt
        >>> tx = funcopt.adafactor(lr=1e-2, weight_decay=0.01)
    """
    owner = "adafactor"
    _checks.check_hyperparam(owner, "lr", lr, _checks.NON_NEGATIVE)
    _checks.check_hyperparam(owner, "beta2_decay", beta2_decay, _checks.NON_POSITIVE)
    _checks.check_hyperparam(owner, "eps", eps, (_checks.NON_NEGATIVE_OR_NONE, _checks.NON_NEGATIVE))
    _checks.check_hyperparam(owner, "d", d, _checks.AT_LEAST_ONE)
    _checks.check_hyperparam(owner, "weight_decay", weight_decay, _checks.NON_NEGATIVE)
    _checks.check_flag(owner, "maximize", maximize)
    numbers = {"lr": lr, "beta2_decay": beta2_decay, "eps": eps, "d": d, "weight_decay": weight_decay}

    def make(**hyperparams: Hyperparameter) -> GradientTransformationExtraArgs:
        return leafwise(
            owner,
            adafactor_rule,
            hyperparams,
            state=AdafactorState,
            init_leaf=_init_adafactor,
            needs_params=True,
            needs_dtype=True,
            complaint=complaint_unless_real,
            elementwise=False,
            tuples=("eps",),
        )

    return chain(ascend_where(maximize), scheduled(make, numbers, elementwise=False, tuples=("eps",)))
