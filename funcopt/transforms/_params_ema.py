"""Averages of the parameters, as `torch.optim.swa_utils.AveragedModel` keeps them: in the same program as the update,
so that they cost no pass of their own over the parameters.

    p'  = p + u                                 in the parameter's dtype; u goes through unchanged

    params_ema, with `get_ema_multi_avg_fn`:
    ema = p'                                    at the first update
    ema = lerp(ema, p', 1 - decay)              at the others

    params_swa, by default, n = (t - start_step) / every:
    swa = p'                                    until n is 1
    swa = swa + (p' - swa) / n                  at the updates where n is a whole number

Both start as the parameter, so that they are right before the first update, too.
"""

from typing import Annotated, Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp

from funcopt import _checks
from funcopt._numerics import choose, lerp
from funcopt._tree import from_compute, to_compute
from funcopt.kinds import Hyperparameter, Unit, integer
from funcopt.rule import Rule, transformation


class ParamsEmaState(NamedTuple):
    average = "ema"

    step: Any  # int32 (), or a tree of them: applied updates so far
    ema: Any  # tree like the parameters: their average

    def evaluated(self, param: jax.Array) -> jax.Array:
        """The average."""
        del param
        return self.ema


class ParamsSwaState(NamedTuple):
    average = "swa"

    step: Any  # int32 (), or a tree of them: applied updates so far
    swa: Any  # tree like the parameters: their mean

    def evaluated(self, param: jax.Array) -> jax.Array:
        """The mean."""
        del param
        return self.swa


Updates: TypeAlias = Annotated[Hyperparameter, integer(_checks.NON_NEGATIVE)]
Period: TypeAlias = Annotated[Hyperparameter, integer(_checks.AT_LEAST_ONE)]


@transformation()
def params_ema(decay: Unit = 0.999) -> Rule:
    """Keeps an exponential moving average of the parameters and leaves the updates as they are; place it last.

    `averaged_params` gives it: that of `AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(decay))`, updated
    after each step.

    Args:
        decay: how much of the average stays at each update, in [0, 1].

    Returns:
        The transformation; state keys `step`, `ema`.

    Example:
        >>> import funcopt
        >>> tx = funcopt.chain(funcopt.adamw(1e-3), funcopt.params_ema(0.9999))
        >>> funcopt.averaged_params(tx.init({"w": 1.0}))
        {'w': Array(1., dtype=float32)}
    """

    def init(p: jax.Array) -> ParamsEmaState:
        return ParamsEmaState(0, jnp.array(p, p.dtype))

    def update(
        u: jax.Array, s: ParamsEmaState, *, param: jax.Array, dtype: Any, update_dtype: Any
    ) -> tuple[jax.Array, ParamsEmaState]:
        new = _stored(param, u, dtype, update_dtype)
        return u, ParamsEmaState(s.step, choose(s.step == 1, new, lerp(s.ema, new, 1 - decay)))

    return Rule(update, init, rows="dense")


@transformation()
def params_swa(start_step: Updates = 0, every: Period = 1) -> Rule:
    """Keeps the mean of the parameters (Izmailov et al., 2018) and leaves the updates as they are; place it last.

    `averaged_params` gives it: that of `AveragedModel(model)`, updated after the steps that count.

    Args:
        start_step: updates after which averaging starts, >= 0.
        every: updates from one that counts to the next, >= 1, such as those of an epoch.

    Returns:
        The transformation; state keys `step`, `swa`.

    Example:
        >>> import funcopt
        >>> tx = funcopt.chain(funcopt.sgd(0.05, momentum=0.9), funcopt.params_swa(start_step=7500, every=100))
    """

    def init(p: jax.Array) -> ParamsSwaState:
        return ParamsSwaState(0, jnp.array(p, p.dtype))

    def update(
        u: jax.Array, s: ParamsSwaState, *, param: jax.Array, dtype: Any, update_dtype: Any
    ) -> tuple[jax.Array, ParamsSwaState]:
        new = _stored(param, u, dtype, update_dtype)
        count = jnp.floor((s.step - start_step) / every)
        weight = jnp.where(count * every == s.step - start_step, 1 / jnp.maximum(count, 1.0), 0.0)
        first = (count < 1) | (weight == 1)
        return u, ParamsSwaState(s.step, choose(first, new, s.swa + weight * (new - s.swa)))

    return Rule(update, init, rows="dense")


def _stored(param: jax.Array, u: jax.Array, dtype: Any, update_dtype: Any) -> jax.Array:
    """The parameter as it will be stored, after the update is rounded on its way."""
    return to_compute(from_compute(param + to_compute(from_compute(u, update_dtype)), dtype))
