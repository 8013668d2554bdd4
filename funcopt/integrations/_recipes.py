"""What is registered in another library: for each recipe a function of the parameters that returns the bridge."""

import functools
from collections.abc import Callable, Mapping
from typing import Any

from funcopt._catalogue import factories
from funcopt.groups._algorithms import Factory, find_algorithm
from funcopt.torch_bridge import TorchBridge

PREFIX = "funcopt-"


def recipes_or_own(recipes: Mapping[str, Factory] | None) -> dict[str, Factory]:
    """The recipes that are given, or funcopt's optimizers but LBFGS, for whose closure neither library has a place."""
    if recipes is None:
        return {name: factory for name, factory in factories().items() if name != "lbfgs"}
    return {name: find_algorithm(factory) for name, factory in recipes.items()}


@functools.cache
def maker(factory: Factory) -> Callable[..., TorchBridge]:
    """A function of the parameters and hyperparameters; the same one for the same factory."""

    def make(params: Any, **hyperparams: Any) -> TorchBridge:
        return TorchBridge(params, factory, **hyperparams)

    return make


def refuse_taken(owner: str, name: str) -> None:
    """Raises the error of a name that the library has given to something else."""
    raise ValueError(f"{owner}: {name!r} is taken; give another prefix, or force=True to replace what has the name")
