"""What the definitions say of each optimizer: `funcopt.algorithms()`."""

import inspect
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from funcopt.algorithms import lbfgs
from funcopt.algorithms._lbfgs import KINDS as LBFGS_KINDS
from funcopt.kinds import Kind
from funcopt.rule import DEFINITIONS, Factory, GradientTransformationExtraArgs, Keys


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


def algorithms() -> dict[str, Algorithm]:
    """The complete optimizers by name, each with the kinds and defaults of its arguments and its state keys.

    Example:
        >>> import funcopt
        >>> found = funcopt.algorithms()["adamw"]
        >>> found.kinds["betas"], found.defaults["betas"], found.state_keys
        ((a float in [0, 1), a float in [0, 1)), (0.9, 0.999), ('step', 'exp_avg', 'exp_avg_sq', 'max_exp_avg_sq'))
    """
    made = {name: _read(factory) for name, factory in DEFINITIONS.items() if _is_complete(name, factory)}
    made["lbfgs"] = _entry("lbfgs", lbfgs, LBFGS_KINDS, Keys(), False, lambda param: "")
    return dict(sorted(made.items()))


def _is_complete(name: str, factory: Factory[...]) -> bool:
    """Whether it is an optimizer of funcopt's own, and not a part of one."""
    own = factory.__module__.startswith("funcopt.algorithms.")
    return own and "lr" in factory.kinds and not name.startswith("scale_by_")


def _read(factory: Factory[...]) -> Algorithm:
    return _entry(factory.__name__, factory, factory.kinds, factory.keys, factory.elementwise, factory.refuse_param)


def _entry(
    name: str,
    factory: Any,
    kinds: Mapping[str, Kind],
    keys: Keys,
    elementwise: bool,
    refuse_param: Callable[[Any], str],
) -> Algorithm:
    defaults = {name: p.default for name, p in inspect.signature(factory).parameters.items()}
    state = jax.eval_shape(factory().init, jax.ShapeDtypeStruct((2, 2), jnp.float32))
    fields = tuple(name for name in state._fields if name != "step" or keys.step is not None)
    accepts = lambda shape, dtype: not refuse_param(jax.ShapeDtypeStruct(shape, dtype))  # noqa: E731
    return Algorithm(
        name,
        factory,
        kinds,
        defaults,
        fields,
        elementwise,
        matrices_only=not accepts((2,), jnp.float32),
        complex_numbers=accepts((2, 2), jnp.complex64),
    )
