"""Adafactor as in big_vision, which vision transformers are scaled up with (Zhai et al., 2022).

    w    = max(1 - beta2_cap, max(t - decay_offset, 1)**-decay_rate)
    R, C = lerp((R, C), means of g * g + eps along either axis, w)         of the two largest axes, if long enough
    u    = g / sqrt(R * C / mean of R)                                     otherwise: v = lerp(v, g * g + eps, w)
    u    = u / max(1, rms(u) / clipping_threshold)
    u    = m = lerp(m, u, 1 - momentum)                                    m in momentum_dtype
    p    = p - lr * (u + weight_decay * p)                                 unscaled_wd: - weight_decay * p, without lr

Of axes of equal length the later ones count as the larger. As in timm u is the momentum as it is kept, with the digits
of momentum_dtype; in optax `scale_by_factored_rms` is the first part of it.
"""

from typing import Annotated, Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp

from funcopt import _checks
from funcopt._numerics import lerp, rms, rounded
from funcopt._tree import refuse_unless_real
from funcopt.algorithms._factored import Axes, moved_means, no_means, over_root
from funcopt.frame import decayed, is_zero
from funcopt.kinds import Flag, Hyperparameter, NonNegative, PositiveOrNone, Unit, choice, integer, number
from funcopt.rule import Keys, Rule, asking, transformation

Count: TypeAlias = Annotated[Hyperparameter, integer(_checks.NON_NEGATIVE)]
EpsOrNone: TypeAlias = Annotated[Hyperparameter, number(_checks.NON_NEGATIVE_OR_NONE)]
MomentumOrNone: TypeAlias = Annotated[Hyperparameter, number(_checks.UNIT_HALF_OPEN_OR_NONE)]
Dtype: TypeAlias = Annotated[Hyperparameter, choice("bfloat16", "float16", "float32")]


class AdafactorBvState(NamedTuple):
    step: Any  # int32 (), or a tree of them: applied updates so far
    exp_avg_sq_r: Any  # tree of the parameters' shapes, but 1 along the largest axis; None where not factored
    exp_avg_sq_c: Any  # tree of the parameters' shapes, but 1 along the second largest axis; None where not factored
    exp_avg_sq: Any  # tree like the parameters; None where factored
    exp_avg: Any  # tree like the parameters, of dtype momentum_dtype; None where momentum is None


def _factored_axes(shape: tuple[int, ...], least: int) -> Axes | None:
    """The two largest axes, the largest of them last; None if there are none as long as `least`."""
    *_, rows, columns = (-1, -1, *sorted(range(len(shape)), key=lambda axis: shape[axis]))
    return (rows, columns) if rows >= 0 and shape[rows] >= least else None


@transformation(elementwise=False, refuse_param=refuse_unless_real, keys=Keys(torch_class="AdafactorBigVision"))
def adafactor_bv(
    lr: NonNegative = 1.0,
    min_dim_size_to_factor: Count = 16,
    decay_rate: NonNegative = 0.8,
    decay_offset: Count = 0,
    beta2_cap: Unit = 0.999,
    momentum: MomentumOrNone = 0.9,
    momentum_dtype: Dtype = "bfloat16",
    eps: EpsOrNone = None,
    weight_decay: NonNegative = 0.0,
    clipping_threshold: PositiveOrNone = None,
    unscaled_wd: Flag = False,
) -> Rule:
    """`timm.optim.AdafactorBigVision`: a momentum in bfloat16 is nearly all that it keeps.

    Args:
        lr: learning rate, >= 0.
        min_dim_size_to_factor: least length of a parameter's second largest axis with which its second moment is kept
            as means along the two, an integer >= 0; 32 in big_vision.
        decay_rate: the second moment's new weight at update number t is `t**-decay_rate`, >= 0.
        decay_offset: updates that are not counted in that t, an integer >= 0.
        beta2_cap: largest decay rate of the second moment, in [0, 1].
        momentum: decay rate of the momentum, in [0, 1); None for none.
        momentum_dtype: "bfloat16", "float16" or "float32"; None for the parameter's own.
        eps: added to squared gradients, >= 0; None for 1e-30, or 1e-7 of float16 parameters.
        weight_decay: decoupled decay of the parameters, by `lr * weight_decay`, >= 0.
        clipping_threshold: largest root mean square of an update before the momentum, > 0; None for no limit.
        unscaled_wd: flag: decay by `weight_decay` alone, as big_vision, which puts it into its schedule.

    Returns:
        The optimizer; state keys `step`, `exp_avg_sq_r` and `exp_avg_sq_c`, or `exp_avg_sq`, and `exp_avg` with
        momentum. Its `init` raises ValueError for complex parameters.

    Example:
        >>> import funcopt
        >>> tx = funcopt.adafactor_bv(lr=1e-3, weight_decay=1e-4, clipping_threshold=1.0)
    """
    least: Any = min_dim_size_to_factor
    least = None if least is None else int(least)  # optax.inject_hyperparams makes an array of a number

    def init(p: jax.Array) -> AdafactorBvState:
        axes = _factored_axes(p.shape, least)
        means = (None, None) if axes is None else no_means(p, axes)
        moment = jnp.zeros_like(p) if axes is None else None
        return AdafactorBvState(
            0, *means, moment, None if momentum is None else jnp.zeros_like(p, dtype=momentum_dtype)
        )

    def update(
        g: jax.Array, s: AdafactorBvState, *, param: Any = None, dtype: Any
    ) -> tuple[jax.Array, AdafactorBvState]:
        small = (1e-7 if dtype == jnp.float16 else 1e-30) if eps is None else eps
        square = g * g + small
        weight = jnp.maximum(1 - beta2_cap, jnp.maximum(s.step - decay_offset, 1) ** -decay_rate)
        means, v, m = (s.exp_avg_sq_r, s.exp_avg_sq_c), s.exp_avg_sq, s.exp_avg
        axes = _factored_axes(g.shape, least)
        if axes is not None:
            means = moved_means(means, square, weight, axes)
            u = over_root(g, means, axes)
        else:
            v = lerp(v, square, weight)
            u = g / jnp.sqrt(v)
        if clipping_threshold is not None:
            u = u / jnp.maximum(1.0, rms(u) / clipping_threshold)
        if momentum is not None:
            kept = dtype if momentum_dtype is None else momentum_dtype
            u = m = rounded(lerp(m.astype(u.dtype), rounded(u, kept), 1 - momentum), kept)
        if unscaled_wd:
            return decayed(-lr * u, param, -weight_decay), AdafactorBvState(s.step, *means, v, m)
        return -lr * decayed(u, param, weight_decay), AdafactorBvState(s.step, *means, v, m)

    return Rule(asking(update, "dtype", *(() if is_zero(weight_decay) else ["param"])), init)
