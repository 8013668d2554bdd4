"""What a hyperparameter may be, said once where it is declared: `lr: NonNegative = 1e-3`.

A kind is the metadata of an `Annotated` type. It checks what a user gives (one value, a schedule, or a prefix of them),
says which values may change with the step, and is what `help` shows of the argument.
"""

from collections.abc import Callable
from typing import Annotated, Any, NamedTuple, TypeAlias

from funcopt import _checks
from funcopt._checks import Range as Range

Schedule: TypeAlias = Callable[[Any], Any]
"""A pure function of the step: `schedule(0)` is the value of the first update. Vectorised over arrays of steps."""

Hyperparameter: TypeAlias = Any
"""A number, a `Schedule`, or a prefix of the parameters' tree with such values; for a flag booleans, no numbers."""


class Kind(NamedTuple):
    """What an argument may be."""

    text: str  # as messages and `help` show it
    check: Callable[[str, str, Any], None]  # of (owner, argument, value); raises ValueError or TypeError
    scheduled: bool = False  # whether a value may be a function of the step, and is traced then
    is_tuple: bool = False  # whether one value is a tuple, such as `betas`

    def __repr__(self) -> str:
        return self.text


def number(*allowed: Range) -> Kind:
    """A number in a range; with several ranges a tuple of numbers, one in each.

    Example:
        >>> from funcopt.kinds import Range, number
        >>> number(Range("in (0, 1)", lambda x: 0.0 < x < 1.0))
        in (0, 1)
    """
    own = allowed[0] if len(allowed) == 1 else allowed
    text = ", ".join(each.text for each in allowed)

    def check(owner: str, argument: str, value: Any) -> None:
        _checks.check_hyperparam(owner, argument, value, own)

    several = len(allowed) > 1
    return Kind(f"({text})" if several else text, check, scheduled=True, is_tuple=several)


def fixed(allowed: Range) -> Kind:
    """A number that is the same at every update: no schedule."""

    def check(owner: str, argument: str, value: Any) -> None:
        _checks.check_not_scheduled(owner, argument, value)
        _checks.check_hyperparam(owner, argument, value, allowed)

    return Kind(allowed.text, check)


def integer(allowed: Range) -> Kind:
    """An integer, which decides what is traced or how often a loop runs; no schedule.

    Example:
        >>> from funcopt.kinds import Range, integer
        >>> integer(Range(">= 1", lambda x: x >= 1))
        an integer >= 1
    """

    def check(owner: str, argument: str, value: Any) -> None:
        _checks.check_not_scheduled(owner, argument, value)
        _checks.check_integer(owner, argument, value, allowed)

    return Kind(f"an integer {allowed.text}", check)


def choice(*names: str) -> Kind:
    """One of some names, or None for the default.

    Example:
        >>> from funcopt.kinds import choice
        >>> choice("rows", "columns")
        None | 'rows' | 'columns'
    """

    def check(owner: str, argument: str, value: Any) -> None:
        _checks.check_not_scheduled(owner, argument, value)
        _checks.check_choice(owner, argument, value, names)

    return Kind("None | " + " | ".join(map(repr, names)), check)


AnyNumber: TypeAlias = Annotated[Hyperparameter, number(_checks.ANY_NUMBER)]
NonNegative: TypeAlias = Annotated[Hyperparameter, number(_checks.NON_NEGATIVE)]
Positive: TypeAlias = Annotated[Hyperparameter, number(_checks.POSITIVE)]
PositiveOrNone: TypeAlias = Annotated[Hyperparameter, number(_checks.POSITIVE_OR_NONE)]
NonPositive: TypeAlias = Annotated[Hyperparameter, number(_checks.NON_POSITIVE)]
AtLeastOne: TypeAlias = Annotated[Hyperparameter, number(_checks.AT_LEAST_ONE)]
Unit: TypeAlias = Annotated[Hyperparameter, number(_checks.UNIT)]
Beta: TypeAlias = Annotated[Hyperparameter, number(_checks.UNIT_HALF_OPEN)]
Betas: TypeAlias = Annotated[Hyperparameter, number(_checks.UNIT_HALF_OPEN, _checks.UNIT_HALF_OPEN)]
Betas3: TypeAlias = Annotated[Hyperparameter, number(*[_checks.UNIT_HALF_OPEN] * 3)]
FloatBetas: TypeAlias = Annotated[Hyperparameter, number(_checks.BETA, _checks.BETA)]
Flag: TypeAlias = Annotated[Hyperparameter, Kind("a flag", _checks.check_flag)]
