"""Schedule-Free learning (Defazio et al., 2024): an average of the parameters in the place of a schedule.

    y   the parameters: where gradients are taken;   z   what the optimizer moves;   x   the average: what to evaluate

    e   = lr * min(1, t / warmup_steps)                                    the learning rate of this update
    w   = t**r * (largest e so far)**weight_lr_power
    W   = W + w
    c   = w / W
    z'  = z - e * (direction + weight_decay * y)
    x'  = (1 - c) * x + c * z'
    y'  = beta * x' + (1 - beta) * z'

x is not stored: x = y + (1 - 1 / beta) * (z - y), and y' comes from y, z and the update. The directions are

    schedule_free_sgd    g
    schedule_free_adamw  g / (sqrt(v) / sqrt(1 - beta2**t) + eps),   v = beta2 * v + (1 - beta2) * g * g
    schedule_free_radam  the same with RAdam's rectification in e; g, with e 0 unless silent_sgd_phase is False, before

`schedule_free` wraps any optimizer, which sees z as its parameter and the gradient at y.

Each array counts its own updates and has its own weights, as every optimizer here; schedulefree has one count for a
group, so that an array whose first gradient comes late enters the average with the small weight of a late update.
optax's schedule_free takes the weight from the next update's learning rate, and has neither r nor warmup.
"""

from collections.abc import Callable
from typing import Annotated, Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp

from funcopt import _checks
from funcopt._numerics import bias_correction, number_of, root
from funcopt._tree import weak
from funcopt.algorithms._radam import rectification
from funcopt.frame import is_zero
from funcopt.kinds import Flag, Hyperparameter, NonNegative, number
from funcopt.rule import Frame, Given, Keys, Refused, Rule, around, transformation, wrapper

Interpolation: TypeAlias = Annotated[Hyperparameter, number(_checks.UNIT_HALF_OPEN_LEFT)]
Betas: TypeAlias = Annotated[Hyperparameter, number(_checks.UNIT_OPEN, _checks.UNIT_HALF_OPEN)]


class ScheduleFreeState(NamedTuple):
    step: Any  # int32 (), or a tree of them: applied updates so far
    z: Any  # tree like the parameters: what the optimizer moves
    weight_sum: Any  # tree of (): W
    lr_max: Any  # tree of (): the largest learning rate so far
    beta: Any  # tree of (): of the last update, with which x is read off

    def evaluated(self, param: jax.Array) -> jax.Array:
        """x, from y."""
        return param + (1 - 1 / self.beta) * (self.z - param)

    def trained(self, param: jax.Array) -> jax.Array:
        """y, from x."""
        return param + (1 - self.beta) * (self.z - param)


class SecondMomentState(NamedTuple):
    step: Any  # int32 (), or a tree of them: applied updates so far
    exp_avg_sq: Any  # tree like the parameters


_GROUP = {"k": "step", "weight_sum": "weight_sum", "lr_max": "lr_max"}


def _averaged(
    inner: Rule,
    beta: Any,
    r: Any,
    weight_lr_power: Any,
    weight_decay: Any,
    factor: Callable[[Any], Any],
) -> Rule:
    """`inner` around an average.

    Args:
        inner: the rule that moves z.
        beta: where y is between z and x.
        r: see above.
        weight_lr_power: see above.
        weight_decay: decay at y.
        factor: of the learning rate, by the count of updates.
    """
    frame = inner.frame
    if frame is None or not frame.is_multiple:
        raise Refused("inner", "an optimizer whose update is a multiple of its learning rate", "one that is not")

    def init(p: jax.Array) -> ScheduleFreeState:
        return ScheduleFreeState(0, jnp.array(p, p.dtype), number_of(p), number_of(p), number_of(p, beta))

    def before(g: jax.Array, own: ScheduleFreeState, given: Given) -> tuple[jax.Array, Given]:
        return g, {**given, "param": own.z}

    def after(u: jax.Array, g: jax.Array, own: ScheduleFreeState, given: Given) -> tuple[jax.Array, ScheduleFreeState]:
        y, scale = given["param"], factor(own.step)
        rate = frame.lr * scale
        lr_max = jnp.maximum(weak(own.lr_max), rate)
        weight = own.step**r * lr_max**weight_lr_power
        weight_sum = weak(own.weight_sum) + weight
        c = weight / jnp.where(weight_sum > 0, weight_sum, 1.0)
        u = scale * u if is_zero(weight_decay) else scale * u - rate * weight_decay * y
        moved = c * (own.z - y) + (1 - beta * (1 - c)) * u
        return moved, ScheduleFreeState(own.step, own.z + u, weight_sum, lr_max, jnp.asarray(beta, float))

    return around(inner, init, before, after, "param")._replace(final=True)


def _warmup(warmup_steps: Any) -> Callable[[Any], Any]:
    if is_zero(warmup_steps):
        return lambda t: 1.0
    return lambda t: jnp.minimum(1.0, t / jnp.maximum(warmup_steps, 1.0))


@wrapper()
def schedule_free(
    inner: Rule,
    *,
    beta: Interpolation = 0.9,
    warmup_steps: NonNegative = 0,
    r: NonNegative = 0.0,
    weight_lr_power: NonNegative = 2.0,
    weight_decay_at_y: NonNegative = 0.0,
) -> Rule:
    """Schedule-Free around an optimizer, best one without momentum: `schedulefree.ScheduleFreeWrapper`.

    The optimizer keeps its learning rate, without a schedule; `eval_params`, or the bridge's `eval`, gives the weights
    to evaluate.

    Args:
        inner: a factory or what it returned.
        beta: where gradients are taken, between the optimizer's own point (0) and the average (1), in (0, 1].
        warmup_steps: updates in which the learning rate rises linearly, >= 0.
        r: exponent of the update's number in its weight, >= 0.
        weight_lr_power: exponent of the largest learning rate in the weight, >= 0; 0 is a plain mean.
        weight_decay_at_y: decoupled decay at the point where gradients are taken, >= 0; the optimizer's own is at its
            own point.

    Returns:
        A factory or a transformation, as `inner`; state keys `step`, `z`, `weight_sum`, `lr_max`, `beta`, and those of
        the optimizer.

    Example:
        >>> import funcopt
        >>> tx = funcopt.schedule_free(funcopt.sgd(lr=0.1), warmup_steps=100)
        >>> state = tx.init({"w": 1.0})
        >>> funcopt.eval_params(state, {"w": 1.0})
        {'w': Array(1., dtype=float32)}
    """
    return _averaged(inner, beta, r, weight_lr_power, weight_decay_at_y, _warmup(warmup_steps))


@transformation(keys=Keys(step=None, torch_class="SGDScheduleFree", group=_GROUP, own=("beta",)))
def schedule_free_sgd(
    lr: NonNegative = 1.0,
    momentum: Interpolation = 0.9,
    weight_decay: NonNegative = 0.0,
    warmup_steps: NonNegative = 0,
    r: NonNegative = 0.0,
    weight_lr_power: NonNegative = 2.0,
) -> Rule:
    """`schedulefree.SGDScheduleFree`.

    Args:
        lr: learning rate, >= 0; ten to fifty times one with a schedule.
        momentum: where gradients are taken, between z and the average, in (0, 1].
        weight_decay: decoupled, at the point where gradients are taken, >= 0.
        warmup_steps: updates in which the learning rate rises linearly, >= 0.
        r: exponent of the update's number in its weight, >= 0.
        weight_lr_power: exponent of the largest learning rate in the weight, >= 0.

    Returns:
        The optimizer; state keys `step`, `z`, `weight_sum`, `lr_max`, `beta`.

    Example:
        >>> import funcopt
        >>> tx = funcopt.schedule_free_sgd(lr=1.0, warmup_steps=100)
    """
    plain = Rule(lambda g: -lr * g, frame=Frame(lr))
    return _averaged(plain, momentum, r, weight_lr_power, weight_decay, _warmup(warmup_steps))


@transformation(keys=Keys(step=None, torch_class="AdamWScheduleFree", group=_GROUP, own=("beta",)))
def schedule_free_adamw(
    lr: NonNegative = 0.0025,
    betas: Betas = (0.9, 0.999),
    eps: NonNegative = 1e-8,
    weight_decay: NonNegative = 0.0,
    warmup_steps: NonNegative = 0,
    r: NonNegative = 0.0,
    weight_lr_power: NonNegative = 2.0,
) -> Rule:
    """`schedulefree.AdamWScheduleFree`.

    Args:
        lr: learning rate, >= 0; one to ten times one with a schedule.
        betas: where gradients are taken, between z and the average, in (0, 1); and the decay rate of the second
            moment, in [0, 1).
        eps: added to the denominator, >= 0.
        weight_decay: decoupled, at the point where gradients are taken, >= 0.
        warmup_steps: updates in which the learning rate rises linearly, >= 0.
        r: exponent of the update's number in its weight, >= 0.
        weight_lr_power: exponent of the largest learning rate in the weight, >= 0.

    Returns:
        The optimizer; state keys `step`, `z`, `weight_sum`, `lr_max`, `beta`, `exp_avg_sq`.

    Example:
        >>> import funcopt
        >>> tx = funcopt.schedule_free_adamw(lr=0.0025, weight_decay=0.1, warmup_steps=100)
    """
    beta1, beta2 = betas

    def direction(g: jax.Array, v: jax.Array, t: Any) -> jax.Array:
        return g / (root(v) / jnp.sqrt(bias_correction(beta2, t)) + eps)

    inner = _by_second_moment(direction, lr, beta2)
    return _averaged(inner, beta1, r, weight_lr_power, weight_decay, _warmup(warmup_steps))


@transformation(keys=Keys(step=None, torch_class="RAdamScheduleFree", group=_GROUP, own=("beta",)))
def schedule_free_radam(
    lr: NonNegative = 0.0025,
    betas: Betas = (0.9, 0.999),
    eps: NonNegative = 1e-8,
    weight_decay: NonNegative = 0.0,
    r: NonNegative = 0.0,
    weight_lr_power: NonNegative = 2.0,
    silent_sgd_phase: Flag = True,
) -> Rule:
    """`schedulefree.RAdamScheduleFree`, which needs no warmup.

    Args:
        lr: learning rate, >= 0.
        betas: where gradients are taken, between z and the average, in (0, 1); and the decay rate of the second
            moment, in [0, 1).
        eps: added to the denominator, >= 0.
        weight_decay: decoupled, at the point where gradients are taken, >= 0.
        r: exponent of the update's number in its weight, >= 0.
        weight_lr_power: exponent of the largest learning rate in the weight, >= 0.
        silent_sgd_phase: flag: leave the parameters where they are while the second moment is known too little, for 4
            updates with the default betas; otherwise these are SGD's.

    Returns:
        The optimizer; state keys `step`, `z`, `weight_sum`, `lr_max`, `beta`, `exp_avg_sq`.

    Example:
        >>> import funcopt
        >>> tx = funcopt.schedule_free_radam(lr=0.0025, weight_decay=0.1)
    """
    beta1, beta2 = betas

    def direction(g: jax.Array, v: jax.Array, t: Any) -> jax.Array:
        rectified, _ = rectification(beta2, t, 4.0)
        return jnp.where(rectified, 1 / (root(v) / jnp.sqrt(bias_correction(beta2, t)) + eps), 1.0) * g

    def factor(t: Any) -> Any:
        rectified, ratio = rectification(beta2, t, 4.0)
        return jnp.where(rectified, jnp.sqrt(ratio), 0.0 if silent_sgd_phase else 1.0)

    return _averaged(_by_second_moment(direction, lr, beta2), beta1, r, weight_lr_power, weight_decay, factor)


def _by_second_moment(direction: Callable[[jax.Array, jax.Array, Any], jax.Array], lr: Any, beta2: Any) -> Rule:
    """An optimizer without momentum, of `direction(g, v, t)`."""

    def init(p: jax.Array) -> SecondMomentState:
        return SecondMomentState(0, jnp.zeros_like(p))

    def update(g: jax.Array, s: SecondMomentState) -> tuple[jax.Array, SecondMomentState]:
        v = beta2 * s.exp_avg_sq + (1 - beta2) * g * g
        return -lr * direction(g, v, s.step), SecondMomentState(s.step, v)

    return Rule(update, init, frame=Frame(lr))
