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

from funcopt._numerics import choose, lerp
from funcopt._tree import from_compute, to_compute
from funcopt.kinds import Unit
from funcopt.rule import Rule, transformation


class ParamsEmaState(NamedTuple):
    step: Any  # int32 (), or a tree of them: applied updates so far
    ema: Any  # tree like the parameters: their average


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
        # The parameter as it will be stored, after the update is rounded on its way.
        new = to_compute(from_compute(param + to_compute(from_compute(u, update_dtype)), dtype))
        return u, ParamsEmaState(s.step, choose(s.step == 1, new, lerp(s.ema, new, 1 - decay)))

    return Rule(update, init, rows="dense")
