"""Adafactor as in transformers, and in fairseq before (Shazeer and Stern, 2018).

    w    = t**decay_rate
    R, C = lerp((R, C), means of g * g + eps1 along columns and rows, w)                 of the last two axes
    u    = g / sqrt(R * C / mean of R)                                      a vector: v = lerp(v, g * g + eps1, w)
    k    = lr   or, where lr is None,   min(1e-2, 1 / sqrt(t))              warmup_init: 1e-6 * t in place of 1e-2
    k    = k * max(eps2, rms(p))                                            scale_parameter
    u    = k * u / max(1, rms(u) / clip_threshold)
    u    = m = beta1 * m + (1 - beta1) * u                                  unless beta1 is None
    p    = p - u - k * weight_decay * p

The learning rate is inside the momentum, and the decay follows the scaled one. torch's `adafactor` adds no eps1, has no
momentum, and bounds lr by 1 / sqrt(t).
"""

from typing import Annotated, Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp

from funcopt import _checks
from funcopt._numerics import lerp, number_of, rms
from funcopt._tree import refuse_unless_real, to_compute
from funcopt.algorithms._came import TwoEpsilons
from funcopt.algorithms._factored import expanded, moved_means, no_means, over_root, squeezed
from funcopt.frame import is_zero
from funcopt.kinds import Flag, Hyperparameter, Kind, NonNegative, NonPositive, Positive, number
from funcopt.rule import Keys, Refused, Rule, transformation

Rate: TypeAlias = Annotated[Hyperparameter, number(_checks.NON_NEGATIVE_OR_NONE)]
Beta1: TypeAlias = Annotated[Hyperparameter, number(_checks.UNIT_HALF_OPEN_OR_NONE)]


def _check(owner: str, argument: str, value: Any) -> None:
    if value is not None:
        _checks.check_flag(owner, argument, value)


FlagOrNone: TypeAlias = Annotated[Hyperparameter, Kind("None or a flag", _check)]


class AdafactorHfState(NamedTuple):
    step: Any  # int32 (), or a tree of them: applied updates so far
    exp_avg_sq_row: Any  # tree of (..., rows), float32 at least, as all below; None for less than two axes
    exp_avg_sq_col: Any  # tree of (..., columns); None for parameters of less than two axes
    exp_avg_sq: Any  # tree like the parameters; None for those of two axes or more
    exp_avg: Any  # tree like the parameters; None where beta1 is None
    RMS: Any  # tree of (): the parameters' root mean square before the last update; None without scale_parameter


@transformation(elementwise=False, refuse_param=refuse_unless_real, keys=Keys(step=int, torch_class="AdafactorHF"))
def adafactor_hf(
    lr: Rate = None,
    eps: TwoEpsilons = (1e-30, 1e-3),
    clip_threshold: Positive = 1.0,
    decay_rate: NonPositive = -0.8,
    beta1: Beta1 = None,
    weight_decay: NonNegative = 0.0,
    scale_parameter: Flag = True,
    relative_step: FlagOrNone = None,
    warmup_init: Flag = False,
) -> Rule:
    """`transformers.Adafactor`, which T5 is trained with.

    Args:
        lr: learning rate, >= 0; None for a relative step, `min(1e-2, 1 / sqrt(step))`.
        eps: added to squared gradients, and the least root mean square of a parameter, each >= 0.
        clip_threshold: largest root mean square of an update before scaling, > 0.
        decay_rate: the second moment's new weight at update number t is `t**decay_rate`, <= 0.
        beta1: decay rate of the momentum, in [0, 1); None for none.
        weight_decay: decoupled decay of the parameters, by the scaled learning rate times it, >= 0.
        scale_parameter: flag: multiply the learning rate, also a given one, by the parameter's root mean square.
        relative_step: flag: whether there is no `lr`, which None leaves to it.
        warmup_init: flag: let a relative step grow from 1e-6, by as much per update.

    Returns:
        The optimizer; state keys `step`, and `exp_avg_sq_row`, `exp_avg_sq_col` for two axes or more, `exp_avg_sq` for
        fewer, `exp_avg` with beta1, `RMS` with scale_parameter. Its `init` raises ValueError for complex parameters.

    Example:
        >>> import funcopt
        >>> tx = funcopt.adafactor_hf(lr=1e-3, scale_parameter=False, relative_step=False)
    """
    if relative_step and lr is not None:
        raise Refused("relative_step", "False where lr is given", relative_step)
    if warmup_init and lr is not None:
        raise Refused("warmup_init", "False where lr is given", warmup_init)

    def init(p: jax.Array) -> AdafactorHfState:
        if lr is None and relative_step is False:  # where there is no parameter, there need not be a learning rate
            _checks.fail("adafactor_hf", "relative_step", "True where no lr is given", relative_step)
        wide = to_compute(p)
        means = squeezed(no_means(wide)) if p.ndim >= 2 else (None, None)
        moment = jnp.zeros_like(wide) if p.ndim < 2 else None
        momentum = None if beta1 is None else jnp.zeros_like(wide)
        return AdafactorHfState(0, *means, moment, momentum, number_of(p) if scale_parameter else None)

    def update(g: jax.Array, s: AdafactorHfState, *, param: jax.Array) -> tuple[jax.Array, AdafactorHfState]:
        weight, square = s.step**decay_rate, g * g + eps[0]
        means, v, m = (s.exp_avg_sq_row, s.exp_avg_sq_col), s.exp_avg_sq, s.exp_avg
        if v is None:
            wide = moved_means(expanded(means), square, weight)
            u, means = over_root(g, wide), squeezed(wide)
        else:
            v = lerp(v, square, weight)
            u = g / jnp.sqrt(v)
        size = rms(param) if scale_parameter else None
        rate = relative(s.step) if lr is None else lr
        rate = rate if size is None else rate * jnp.maximum(eps[1], size)
        u = rate / jnp.maximum(1.0, rms(u) / clip_threshold) * u
        if beta1 is not None:
            u = m = beta1 * m + (1 - beta1) * u
        u = -u if is_zero(weight_decay) else -u - rate * weight_decay * param
        return u, AdafactorHfState(s.step, *means, v, m, size)

    def relative(t: Any) -> Any:
        return jnp.minimum(1e-6 * t if warmup_init else 1e-2, 1 / jnp.sqrt(t))

    return Rule(update, init)
