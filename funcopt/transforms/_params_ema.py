"""The exponential moving average of the parameters, as `torch.optim.swa_utils.AveragedModel` keeps it with
`get_ema_multi_avg_fn`: in the same program as the update, so that it costs no pass of its own over the parameters.

    p'  = p + u                                 in the parameter's dtype; u goes through unchanged
    ema = p'                                    at the first update
    ema = lerp(ema, p', 1 - decay)              at the others

`ema` starts as the parameter, so that `averaged_params` is right before the first update, too.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from funcopt import _checks
from funcopt._base import GradientTransformationExtraArgs, Hyperparameter, leafwise, scheduled
from funcopt._numerics import lerp
from funcopt._tree import from_compute, to_compute


class ParamsEmaState(NamedTuple):
    step: Any  # int32 (), or a tree of them: applied updates so far
    ema: Any  # tree like the parameters: their average


def params_ema_rule(
    update: jax.Array, ema: jax.Array, *, param: jax.Array, dtype: Any, step: jax.Array, decay: Any
) -> tuple[jax.Array, jax.Array]:
    """The rule of the module's head."""
    new_param = to_compute(from_compute(param + update, dtype))
    return update, jnp.where(step == 1, new_param, lerp(ema, new_param, 1 - decay))


def _init_params_ema(param: jax.Array, **hyperparams: Any) -> tuple[jax.Array]:
    del hyperparams
    return (jnp.array(param, param.dtype),)


def params_ema(decay: Hyperparameter = 0.999) -> GradientTransformationExtraArgs:
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
    owner = "params_ema"
    _checks.check_hyperparam(owner, "decay", decay, _checks.UNIT)

    def make(decay: Hyperparameter) -> GradientTransformationExtraArgs:
        return leafwise(
            owner,
            params_ema_rule,
            {"decay": decay},
            state=ParamsEmaState,
            init_leaf=_init_params_ema,
            needs_params=True,
            needs_dtype=True,
            rows=lambda **values: "dense",
        )

    return scheduled(make, {"decay": decay})
