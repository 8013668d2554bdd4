"""What the definitions say of each optimizer: `funcopt.algorithms()`."""

import inspect
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from funcopt._tree import refuse_unless_floating
from funcopt.algorithms import lbfgs
from funcopt.algorithms._lbfgs import KINDS as LBFGS_KINDS
from funcopt.kinds import Kind
from funcopt.rule import DEFINITIONS, ElementwiseTransformation, GradientTransformationExtraArgs, Keys


class Algorithm(NamedTuple):
    """An optimizer and what is known of it without running it."""

    name: str
    factory: Callable[..., GradientTransformationExtraArgs]
    kinds: Mapping[str, Kind]  # by argument: what it may be
    defaults: Mapping[str, Any]  # by argument
    state_keys: tuple[str, ...]  # what torch's checkpoints have of each parameter, some with some options only
    elementwise: bool  # whether each element's update depends on that element and on totals only
    matrices_only: bool  # whether it refuses parameters that are no matrices
    complex_numbers: bool  # whether it takes complex parameters


def factories() -> dict[str, Any]:
    """The complete optimizers by name: what has a learning rate and is no part of one."""
    found: dict[str, Any] = {
        name: factory
        for name, factory in DEFINITIONS.items()
        if factory.__module__.startswith("funcopt.algorithms.")
        and "lr" in factory.kinds
        and not name.startswith("scale_by_")
    }
    return dict(sorted({**found, "lbfgs": lbfgs}.items()))


def algorithms() -> dict[str, Algorithm]:
    """The complete optimizers by name, each with the kinds and defaults of its arguments and its state keys.

    Example:
        >>> import funcopt
        >>> found = funcopt.algorithms()["adamw"]
        >>> found.kinds["betas"], found.defaults["betas"], found.state_keys
        ((a float in [0, 1), a float in [0, 1)), (0.9, 0.999), ('step', 'exp_avg', 'exp_avg_sq', 'max_exp_avg_sq'))
    """
    return {name: read(name, factory) for name, factory in factories().items()}


def read(name: str, factory: Any) -> Algorithm:
    """What is known of an optimizer."""
    keys, refuse_param = getattr(factory, "keys", Keys()), getattr(factory, "refuse_param", refuse_unless_floating)
    state = jax.eval_shape(factory().init, jax.ShapeDtypeStruct((2, 2), jnp.float32))

    def accepts(shape: tuple[int, ...], dtype: Any) -> bool:
        return not refuse_param(jax.ShapeDtypeStruct(shape, dtype))

    return Algorithm(
        name,
        factory,
        kinds=factory.kinds if name in DEFINITIONS else LBFGS_KINDS,
        defaults={argument: p.default for argument, p in inspect.signature(factory).parameters.items()},
        state_keys=tuple(field for field in state._fields if field != "step" or keys.step is not None or keys.group),
        elementwise=isinstance(factory(), ElementwiseTransformation),
        matrices_only=not accepts((2,), jnp.float32),
        complex_numbers=accepts((2, 2), jnp.complex64),
    )
