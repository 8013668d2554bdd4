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

from typing import Annotated, Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp

from funcopt import _checks
from funcopt._numerics import filled, lerp, rms
from funcopt._tree import refuse_unless_real
from funcopt.algorithms._factored import moved_means, no_means
from funcopt.frame import ascend, is_zero
from funcopt.kinds import AtLeastOne, Flag, Hyperparameter, NonNegative, NonPositive, number
from funcopt.rule import Rule, transformation

Epsilons: TypeAlias = Annotated[Hyperparameter, number(_checks.NON_NEGATIVE_OR_NONE, _checks.NON_NEGATIVE)]


class AdafactorState(NamedTuple):
    step: Any  # int32 (), or a tree of them: applied updates so far
    row_var: Any  # tree of (..., rows, 1); None for parameters of less than two axes
    col_var: Any  # tree of (..., 1, columns); None for parameters of less than two axes
    variance: Any  # tree like the parameters; None for those of two axes or more


@transformation(elementwise=False, refuse_param=refuse_unless_real)
def adafactor(
    lr: NonNegative = 1e-2,
    beta2_decay: NonPositive = -0.8,
    eps: Epsilons = (None, 1e-3),
    d: AtLeastOne = 1.0,
    weight_decay: NonNegative = 0.0,
    *,
    maximize: Flag = False,
) -> Rule:
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

    def init(p: jax.Array) -> AdafactorState:
        if p.ndim < 2:
            return AdafactorState(0, None, None, filled(p))
        return AdafactorState(0, *no_means(p), None)

    def update(g: jax.Array, s: AdafactorState, *, param: jax.Array, dtype: Any) -> tuple[jax.Array, AdafactorState]:
        g = ascend(g, maximize)
        eps1 = float(jnp.finfo(dtype).eps) if eps[0] is None else eps[0]
        weight = s.step**beta2_decay
        row_var, col_var, variance = s.row_var, s.col_var, s.variance
        if variance is None:
            row_var, col_var = moved_means((row_var, col_var), g * g, weight)
            estimate = row_var * col_var / jnp.maximum(jnp.mean(row_var, axis=-2, keepdims=True), eps1)
        else:
            estimate = variance = lerp(variance, g * g, weight)
        u = g / jnp.sqrt(jnp.maximum(estimate, eps1 * eps1))
        rate = jnp.maximum(eps[1], rms(param)) * jnp.minimum(lr, 1 / jnp.sqrt(s.step))
        u = -(rate / jnp.maximum(1.0, rms(u) / d)) * u
        u = u if is_zero(weight_decay) else u - lr * weight_decay * param
        return u, AdafactorState(s.step, row_var, col_var, variance)

    return Rule(update, init)
