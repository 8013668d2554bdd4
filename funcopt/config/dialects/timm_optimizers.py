"""What timm has and funcopt's algorithms have not, where funcopt's and optax's parts give the same numbers.

    sgdw        SGD with decoupled decay
    rmsproptf   TensorFlow's RMSprop: squares from 1, eps under the root, the learning rate inside the momentum

optax's part takes `alpha` and `eps` once for all groups.
"""

import inspect
from typing import Any

import optax

from funcopt.algorithms import trace
from funcopt.kinds import Hyperparameter
from funcopt.rule import ElementwiseTransformation, GradientTransformationExtraArgs, chain
from funcopt.transforms import add_decayed_weights, scale_by_learning_rate


def sgdw(
    lr: Hyperparameter = 1e-3,
    momentum: Hyperparameter = 0.0,
    dampening: Hyperparameter = 0.0,
    weight_decay: Hyperparameter = 0.0,
    nesterov: Hyperparameter = False,
) -> GradientTransformationExtraArgs:
    return chain(trace(momentum, dampening, nesterov), add_decayed_weights(weight_decay), scale_by_learning_rate(lr))


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


def takes_once(factory: Any) -> tuple[str, ...]:
    """Arguments that hold for all groups: those that are handed to optax's part."""
    if factory is not rmsproptf:
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
