"""What timm has and torch has not, where funcopt's and optax's parts give the same numbers.

    sgdw        SGD with decoupled decay
    lion        Chen et al., 2023
    adabelief   Zhuang et al., 2020, with decoupled decay, without rectification
    rmsproptf   TensorFlow's RMSprop: squares from 1, eps under the root, the learning rate inside the momentum
    lookahead   Zhang et al., 2019

optax's parts take `betas`, `alpha` and `eps` once for all groups.
"""

import inspect
from typing import Annotated, Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import optax

from funcopt import _checks
from funcopt._numerics import choose
from funcopt.algorithms import trace
from funcopt.kinds import Hyperparameter, Unit, integer
from funcopt.rule import ElementwiseTransformation, GradientTransformationExtraArgs, PyTree, Rule, chain, transformation
from funcopt.transforms import add_decayed_weights, scale_by_learning_rate


def sgdw(
    lr: Hyperparameter = 1e-3,
    momentum: Hyperparameter = 0.0,
    dampening: Hyperparameter = 0.0,
    weight_decay: Hyperparameter = 0.0,
    nesterov: Hyperparameter = False,
) -> GradientTransformationExtraArgs:
    return chain(trace(momentum, dampening, nesterov), add_decayed_weights(weight_decay), scale_by_learning_rate(lr))


def lion(
    lr: Hyperparameter = 1e-4, weight_decay: Hyperparameter = 0.0, *, betas: tuple[float, float] = (0.9, 0.99)
) -> GradientTransformationExtraArgs:
    return chain(
        ElementwiseTransformation(*optax.scale_by_lion(*betas)),
        add_decayed_weights(weight_decay),
        scale_by_learning_rate(lr),
    )


def adabelief(
    lr: Hyperparameter = 1e-3,
    weight_decay: Hyperparameter = 0.0,
    *,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-16,
) -> GradientTransformationExtraArgs:
    direction = ElementwiseTransformation(*optax.scale_by_belief(*betas, eps=eps, eps_root=eps))
    return chain(direction, add_decayed_weights(weight_decay), scale_by_learning_rate(lr))


def rmsproptf(
    lr: Hyperparameter = 1e-2,
    weight_decay: Hyperparameter = 0.0,
    momentum: Hyperparameter = 0.0,
    *,
    alpha: float = 0.9,
    eps: float = 1e-10,
) -> GradientTransformationExtraArgs:
    direction = ElementwiseTransformation(*optax.scale_by_rms(decay=alpha, eps=eps, initial_scale=1.0))
    return chain(add_decayed_weights(weight_decay), direction, scale_by_learning_rate(lr), trace(momentum))


Updates: TypeAlias = Annotated[Hyperparameter, integer(_checks.AT_LEAST_ONE)]


class LookaheadState(NamedTuple):
    step: PyTree  # int32 (), or a prefix of them
    lookahead_slow_buff: PyTree  # the parameter's shape and dtype: slow weights, from the first synchronisation on


@transformation()
def lookahead(alpha: Unit = 0.5, k: Updates = 6) -> Rule:
    """The `Lookahead` of timm, behind a complete optimizer: every `k` updates the weights go part of the way back.

    `optax.lookahead` evaluates at the slow weights, and its slow weights begin as the initial ones.
    """

    def init(p: jax.Array) -> LookaheadState:
        return LookaheadState(0, jnp.array(p, p.dtype))

    def update(u: jax.Array, s: LookaheadState, *, param: jax.Array) -> tuple[jax.Array, LookaheadState]:
        fast = param + u
        # As in timm, the slow weights begin where the fast ones are at the first synchronisation.
        slow = s.lookahead_slow_buff
        met = choose(s.step <= k, fast, slow + alpha * (fast - slow))
        due = s.step % k == 0
        return choose(due, met - param, u), LookaheadState(s.step, choose(due, met, slow))

    return Rule(update, init)


def takes_once(factory: Any) -> tuple[str, ...]:
    """Arguments that hold for all groups: those that are handed to optax's parts."""
    if factory not in (lion, adabelief, rmsproptf):
        return ()
    return tuple(name for name, p in inspect.signature(factory).parameters.items() if p.kind is p.KEYWORD_ONLY)


class Once:
    """A factory with its arguments for all groups given.

    Args:
        factory: the factory.
        values: those of its `takes_once` that are not as by default.
    """

    def __init__(self, factory: Any, values: dict[str, Any]) -> None:
        self._factory, self._values = factory, values
        self.__name__, self.__module__ = factory.__name__, factory.__module__
        signature = inspect.signature(factory)
        free = [p for name, p in signature.parameters.items() if name not in takes_once(factory)]
        self.__signature__ = signature.replace(parameters=free)

    def __call__(self, **hyperparams: Any) -> GradientTransformationExtraArgs:
        return self._factory(**hyperparams, **self._values)
