"""Values per parameter, and as prefixes of a pytree."""

import inspect
from collections.abc import Mapping, Sequence
from typing import Any

import jax

from funcopt import _checks
from funcopt._checks import is_schedule
from funcopt.groups._algorithms import Factory, arguments_of, name_of
from funcopt.groups._resolve import Settings
from funcopt.rule import PyTree
from funcopt.schedules import scale

NOT_GIVEN = inspect.Parameter.empty

MULTIPLIER_OF = {"lr": "lr_mult", "weight_decay": "decay_mult"}


def columns_of(
    settings: Sequence[Settings], own: Sequence[Settings], factory: Factory | None, base: Mapping[str, Any]
) -> dict[str, list[Any]]:
    """One value per parameter, for each hyperparameter in `base` and each that a rule sets or multiplies.

    Args:
        settings: those of all parameters.
        own: those of the parameters that have the algorithm.
        factory: the algorithm, for its defaults, if it is known.
        base: values where no rule sets another; what the algorithm lacks is left out.

    Raises:
        ValueError: for a value that is neither given nor has a default, or a rule for what the algorithm lacks.
    """
    arguments = None if factory is None else arguments_of(factory)
    names = dict.fromkeys([*base, *(name for name, field in MULTIPLIER_OF.items() for s in own if field in s)])
    names |= dict.fromkeys(name for s in own for name in s)
    columns: dict[str, list[Any]] = {}
    for name in names:
        if name in ("algorithm", "group", *MULTIPLIER_OF.values()):
            continue
        if factory is not None and arguments is not None and name not in arguments:
            if name in base:
                continue
            field = MULTIPLIER_OF.get(name, name)
            raise ValueError(f"hyperparams: a rule sets {field}, but {name_of(factory)} has no {name}")
        default = base.get(name, NOT_GIVEN if arguments is None else arguments[name].default)
        columns[name] = _values(name, settings, default)
    return columns


def shortest_prefix(model: PyTree, values: Sequence[Any]) -> PyTree:
    """Values of a model's arrays as a prefix of it: one for a subtree where they are equal, None for no array."""
    remaining = iter(values)

    def visit(node: Any) -> tuple[Any, list[Any]]:
        if jax.tree_util.all_leaves([node]):
            own = [next(remaining)] if hasattr(node, "shape") and hasattr(node, "dtype") else []
            return (own[0] if own else None), own
        children, treedef = jax.tree.flatten(node, is_leaf=lambda x: x is not node)
        results = [visit(child) for child in children]
        below = [value for _, members in results for value in members]
        if below and all(value is below[0] or _equal(value, below[0]) for value in below):
            return below[0], below
        return treedef.unflatten([child for child, _ in results]), below

    return visit(model)[0]


def joint_prefixes(
    model: PyTree, labels: Sequence[str], columns: Mapping[str, Mapping[str, Sequence[Any]]]
) -> dict[str, PyTree]:
    """Labels (as `algorithm`) and hyperparameters as prefixes of one and the same structure.

    Args:
        model: the model.
        labels: one per parameter.
        columns: for each label its hyperparameters, one value per parameter each.
    """
    names = list(dict.fromkeys(name for own in columns.values() for name in own))
    rows: list[list[Any]] = []
    for i, label in enumerate(labels):
        own = columns.get(label, {})
        row = [label, *(own[name][i] if name in own else None for name in names)]
        rows.append(next((known for known in rows if known == row), row))
    prefix = shortest_prefix(model, [_Box(row) for row in rows])
    return {name: jax.tree.map(lambda box, k=k: box.row[k], prefix) for k, name in enumerate(["algorithm", *names])}


class _Box:
    """All values of a parameter as one leaf."""

    def __init__(self, row: list[Any]) -> None:
        self.row = row

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Box) and self.row == other.row

    __hash__ = None  # pyright: ignore[reportAssignmentType]


def _equal(a: Any, b: Any) -> bool:
    return not callable(a) and not callable(b) and bool(a == b)


def _values(name: str, settings: Sequence[Settings], default: Any) -> list[Any]:
    field = MULTIPLIER_OF.get(name)
    scaled: dict[tuple[int, float], Any] = {}
    column = []
    for own in settings:
        if name not in own and default is NOT_GIVEN:
            why = f"since a rule sets {field or name}"
            raise ValueError(f"hyperparams: {name} must be given, {why}; pass {name}=...")
        value, factor = own.get(name, default), own.get(field, 1.0) if field else 1.0
        # Equal values are one object, so that a schedule is evaluated once for all leaves that share it.
        column.append(scaled.setdefault((id(value), factor), _multiply(name, value, factor)))
    return column


def _multiply(name: str, value: Any, factor: float) -> Any:
    if factor == 1.0:
        return value
    if is_schedule(value):
        return scale(value, factor)
    _checks.check_number("hyperparams", name, value, _checks.ANY_NUMBER)
    return value * factor
