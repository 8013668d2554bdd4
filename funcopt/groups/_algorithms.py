"""The optimizers that can be named: every complete one that funcopt has, as `funcopt.algorithms` lists them."""

import inspect
from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

from funcopt import _checks
from funcopt._catalogue import factories
from funcopt._names import nearest, simplify
from funcopt.rule import GradientTransformation

Factory: TypeAlias = Callable[..., GradientTransformation]
Algorithm: TypeAlias = str | Factory


def find_algorithm(algorithm: Algorithm) -> Factory:
    """The factory that is meant.

    Raises:
        ValueError: for a name that funcopt does not have.
        TypeError: for what is neither a name nor a function.
    """
    if isinstance(algorithm, str):
        known = factories()
        by_simple_name = {simplify(name): factory for name, factory in known.items()}
        if simplify(algorithm) not in by_simple_name:
            _checks.fail(
                "Rule", "algorithm", f"one of {', '.join(sorted(known))}", algorithm, nearest(algorithm, known)
            )
        return by_simple_name[simplify(algorithm)]
    if isinstance(algorithm, GradientTransformation) or not callable(algorithm):
        raise TypeError(
            "algorithm must be a name or a function that returns a transformation, such as funcopt.adamw instead of "
            f"funcopt.adamw(1e-3), got {algorithm!r}"
        )
    return algorithm


def name_of(factory: Factory) -> str:
    return getattr(factory, "__name__", None) or repr(factory)


def arguments_of(factory: Factory) -> Mapping[str, inspect.Parameter]:
    """A factory's hyperparameters by funcopt's names: `lr` also for optax's `learning_rate`."""
    return {
        "lr" if name == "learning_rate" else name: parameter
        for name, parameter in inspect.signature(factory).parameters.items()
        if parameter.kind not in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD)
    }


def bind(factory: Factory, hyperparams: Mapping[str, Any]) -> GradientTransformation:
    """Calls a factory with hyperparameters by funcopt's names."""
    spelling = {"lr": "learning_rate"} if "learning_rate" in inspect.signature(factory).parameters else {}
    return factory(**{spelling.get(name, name): value for name, value in hyperparams.items()})
