"""Argument checks with one message format: owner, argument, allowed set, value, fix.

`adamw: betas[1] must be in [0, 1), got 1.0`. Checks run where the user called, on concrete values only: a traced value
or a schedule has no value yet and passes.
"""

import math
import numbers
from collections.abc import Callable
from typing import Any, NamedTuple, NoReturn

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer


class Range(NamedTuple):
    """An interval of allowed numbers and how a message writes it."""

    text: str
    contains: Callable[[float], bool]
    optional: bool = False  # None is allowed, too


NON_NEGATIVE = Range(">= 0", lambda x: x >= 0.0)
NON_NEGATIVE_OR_NONE = Range("None or >= 0", lambda x: x >= 0.0, optional=True)
NON_POSITIVE = Range("<= 0", lambda x: x <= 0.0)
POSITIVE = Range("> 0", lambda x: x > 0.0)
POSITIVE_OR_NONE = Range("None or > 0", lambda x: x > 0.0, optional=True)
AT_LEAST_ONE = Range(">= 1", lambda x: x >= 1.0)
UNIT_HALF_OPEN = Range("in [0, 1)", lambda x: 0.0 <= x < 1.0)
UNIT_HALF_OPEN_OR_NONE = Range("None or in [0, 1)", lambda x: 0.0 <= x < 1.0, optional=True)
UNIT_HALF_OPEN_LEFT = Range("in (0, 1]", lambda x: 0.0 < x <= 1.0)
UNIT_OPEN = Range("in (0, 1)", lambda x: 0.0 < x < 1.0)
ABOVE_ONE = Range("> 1", lambda x: x > 1.0)
BELOW_HUNDRED = Range("< 100", lambda x: x < 100)
UNIT = Range("in [0, 1]", lambda x: 0.0 <= x <= 1.0)
FINITE = Range("a finite number", math.isfinite)
BETA = Range("a float in [0, 1)", lambda x: not isinstance(x, int) and 0.0 <= x < 1.0)
ANY_NUMBER = Range("a number", lambda x: True)


def fail(owner: str, argument: str, allowed: str, value: object, fix: str = "") -> NoReturn:
    """Raises the `ValueError` of a value outside its allowed set."""
    raise ValueError(f"{owner}: {argument} must be {allowed}, got {value!r}{fix and '; ' + fix}")


def is_traced(value: object) -> bool:
    """Whether a value will be known only when what is being traced runs."""
    return isinstance(value, Tracer)


def plain_number(value: Any) -> Any:
    """A concrete number of numpy's, or a one-element array of numbers, as Python's own; all else as it is.

    No digit is lost: Python's numbers are as wide as any.
    """
    if is_traced(value) or not isinstance(value, np.generic | np.ndarray | jax.Array) or value.size != 1:
        return value
    for kind, python in ((np.integer, int), (np.floating, float)):
        if jnp.issubdtype(value.dtype, kind):
            return python(value.reshape(()))
    return value


def is_schedule(value: object) -> bool:
    """Whether a hyperparameter is a function of the step: of callable pytrees, such as equinox modules, `Partial`."""
    return callable(value) and (isinstance(value, jax.tree_util.Partial) or jax.tree_util.all_leaves([value]))


def is_tuple_value(value: object) -> bool:
    """Whether a node is one tuple-valued hyperparameter such as `betas`, and not a tree of them."""
    return (
        isinstance(value, tuple | list)
        and not hasattr(value, "_fields")
        and len(value) > 0
        and all(item is None or is_schedule(item) or jax.tree_util.all_leaves([item]) for item in value)
        and any(item is not None for item in value)
    )


def check_number(owner: str, argument: str, value: object, allowed: Range) -> None:
    """Checks one concrete number: Python's, numpy's or a one-element array of any framework."""
    if is_traced(value) or is_schedule(value) or (value is None and allowed.optional):
        return
    if isinstance(value, bool | str | bytes) or not isinstance(value, numbers.Real | np.ndarray | jax.Array):
        raise TypeError(
            f"{owner}: {argument} must be a number, a schedule (a function of the step) or a tree of them, "
            f"got {value!r}"
        )
    if isinstance(value, np.ndarray | jax.Array) and value.size != 1:
        fail(owner, argument, "one number", value, "give a list or dict of numbers to set one per part of the tree")
    number = value if isinstance(value, numbers.Real) else float(value.reshape(()))
    if not allowed.contains(number):  # pyright: ignore[reportArgumentType]  # numbers.Real has no comparison with float
        fail(owner, argument, allowed.text, value)


def is_value(node: object, tuples: bool) -> bool:
    """Whether a node of a prefix is one value, though a pytree could look inside: a tuple such as `betas`, too."""
    return is_schedule(node) or (tuples and is_tuple_value(node))


def _named_leaves(name: str, value: Any, tuples: bool = False) -> list[tuple[str, Any]]:
    """The values of a prefix with the names that messages give them; a missing value is one of them, a hole is none."""
    if value is None:
        return [(name, None)]
    leaves = jax.tree_util.tree_leaves_with_path(value, is_leaf=lambda node: is_value(node, tuples))
    return [(name + jax.tree_util.keystr(path), leaf) for path, leaf in leaves]


def check_hyperparam(owner: str, name: str, value: Any, allowed: Range | tuple[Range, ...]) -> None:
    """Checks a number, schedule or prefix of them; a tuple of ranges stands for a value that is a tuple (`betas`)."""
    for where, leaf in _named_leaves(name, value, not isinstance(allowed, Range)):
        if isinstance(allowed, Range):
            check_number(owner, where, leaf, allowed)
        elif not is_schedule(leaf):
            if not isinstance(leaf, tuple | list):
                raise TypeError(f"{owner}: {where} must be a tuple of {len(allowed)} numbers, got {leaf!r}")
            if len(leaf) != len(allowed):
                fail(owner, where, f"a tuple of {len(allowed)} numbers", leaf)
            for i, (item, item_range) in enumerate(zip(leaf, allowed, strict=True)):
                check_number(owner, f"{where}[{i}]", item, item_range)


def check_flag(owner: str, name: str, value: Any) -> None:
    """Checks a boolean or a prefix tree of booleans; flags are structural, so they are Python values."""
    for where, leaf in _named_leaves(name, value):
        if not isinstance(leaf, bool | np.bool_):
            raise TypeError(f"{owner}: {where} must be True or False, got {leaf!r}")


def check_integer(owner: str, name: str, value: Any, allowed: Range) -> None:
    """Checks an integer or a prefix tree of integers; a traced one passes."""
    for where, leaf in _named_leaves(name, value):
        if is_traced(leaf):
            continue
        leaf = plain_number(leaf)
        if isinstance(leaf, bool) or not isinstance(leaf, numbers.Integral):
            raise TypeError(f"{owner}: {where} must be an integer, got {leaf!r}")
        if not allowed.contains(int(leaf)):
            fail(owner, where, allowed.text, leaf)


def check_not_scheduled(owner: str, name: str, value: Any) -> None:
    """Refuses a function of the step for an argument that is the same at every update."""
    for where, leaf in _named_leaves(name, value):
        if is_schedule(leaf):
            raise TypeError(f"{owner}: {where} must be a plain value, got a schedule; it cannot change with the step")


def check_choice(owner: str, name: str, value: Any, choices: tuple[str, ...]) -> None:
    """Checks a name or a prefix tree of names; None stands for the default and passes."""
    for path, leaf in jax.tree_util.tree_leaves_with_path(value):
        if leaf not in choices:
            fail(owner, name + jax.tree_util.keystr(path), f"None or one of {', '.join(map(repr, choices))}", leaf)


def check_real(owner: str, argument: str, value: object, allowed: Range) -> None:
    """Checks a Python or numpy number; unlike a hyperparameter it cannot be a schedule, an array or a traced value."""
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise TypeError(f"{owner}: {argument} must be a number, got {value!r}")
    if not allowed.contains(float(value)):
        fail(owner, argument, allowed.text, value)
