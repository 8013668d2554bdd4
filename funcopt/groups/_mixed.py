"""Several algorithms as one: a factory with the arguments of all, which a label per part of the model tells apart.

The label is itself an argument, `algorithm`: a group field in the torch bridge, a prefix of the parameters in JAX.
"""

import inspect
from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

import jax
import optax

from funcopt._tree import with_step_per_leaf
from funcopt.groups._algorithms import Factory, arguments_of, bind, name_of
from funcopt.rule import GradientTransformation, GradientTransformationExtraArgs, PyTree
from funcopt.transforms import partition

FROZEN = "frozen"

Wrap: TypeAlias = Callable[[GradientTransformation], GradientTransformation]


class Mixed:
    """A factory that gives each part of the tree the algorithm of its label.

    Args:
        factories: algorithm by label; the first one's defaults are those of arguments that several have.
    """

    def __init__(self, factories: Mapping[str, Factory]) -> None:
        self._factories = dict(factories)
        self.__name__ = "+".join(factories)
        arguments: dict[str, inspect.Parameter] = {}
        for factory in self._factories.values():
            for name, argument in arguments_of(factory).items():
                arguments.setdefault(name, argument.replace(name=name, kind=argument.KEYWORD_ONLY))
        label = inspect.Parameter("algorithm", inspect.Parameter.KEYWORD_ONLY, default=next(iter(factories)))
        self.__signature__ = inspect.Signature([label, *arguments.values()])

    def __call__(self, *, algorithm: PyTree, **hyperparams: Any) -> GradientTransformationExtraArgs:
        """The transformation.

        Args:
            algorithm: one label, or a prefix of labels.
            **hyperparams: one value each, or prefixes of the same structure. An algorithm sees those of its own parts.
        """
        labels, treedef = jax.tree.flatten(algorithm)
        columns = {name: treedef.flatten_up_to(value) for name, value in hyperparams.items()}
        parts = {}
        for label in dict.fromkeys(labels):
            if label == FROZEN:
                parts[label] = optax.set_to_zero()
                continue
            factory = self._factories[label]
            own = [i for i, other in enumerate(labels) if other == label]
            values = {}
            for name in columns.keys() & arguments_of(factory).keys():
                column = columns[name]
                # What stands in the places of others is never used, but must pass this algorithm's checks.
                values[name] = treedef.unflatten(
                    [column[i] if i in own else column[own[0]] for i in range(len(labels))]
                )
            parts[label] = bind(factory, values)
        tx = partition(parts, algorithm)
        # With a count per leaf, each parameter's state holds only what its own algorithm keeps.
        return GradientTransformationExtraArgs(lambda params: with_step_per_leaf(tx.init(params)), tx.update)


class Wrapped:
    """A factory whose transformation is put into another one, with the arguments as they were."""

    def __init__(self, factory: Factory, wrap: Wrap) -> None:
        self._factory, self._wrap = factory, wrap
        self.__name__, self.__module__ = name_of(factory), getattr(factory, "__module__", __name__)
        self.__signature__ = inspect.signature(factory)

    def __call__(self, **hyperparams: Any) -> GradientTransformation:
        return self._wrap(optax.with_extra_args_support(self._factory(**hyperparams)))
