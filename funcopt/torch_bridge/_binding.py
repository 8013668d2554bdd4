"""What `TorchBridge` is told to run: a factory whose arguments are group hyperparameters, or a ready transformation.

A binding knows the hyperparameters' names and defaults, sorts a group's values into numbers (traced: they may change at
any step) and the rest (static), and builds the transformation from one dict of values per group.
"""

import difflib
import functools
import inspect
import numbers
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

import jax
import numpy as np
import optax

from funcopt import _checks
from funcopt._tree import has_schedule
from funcopt.rule import GradientTransformation, GradientTransformationExtraArgs, PyTree, chain
from funcopt.torch_bridge._groups import PerGroup
from funcopt.transforms import scale_by_multipliers

MULTIPLIERS = {"lr_mult": "lr", "decay_mult": "weight_decay"}
"""Group fields that multiply a hyperparameter where it is used, so that they survive every scheduler."""

_MULTIPLIER_OF = {target: field for field, target in MULTIPLIERS.items()}

# optax's spelling of what torch and funcopt call otherwise.
_ALIASES = {"learning_rate": "lr"}


class Layout(NamedTuple):
    """The static part of all groups' values: hashable, so that it keys the compiled programs."""

    groups: tuple[tuple[tuple[str, Any], ...], ...]  # (name, static value | Slot) per group
    size: int  # how many numbers there are

    def fill(self, numbers: Sequence[Any]) -> list[dict[str, Any]]:
        """The groups' values, with numbers in their places."""
        return [{name: _fill(value, numbers) for name, value in group} for group in self.groups]


class Slot(NamedTuple):
    """The place of a number, or of a tuple of numbers, in the packed vector."""

    start: int
    stop: int | None  # None: a number and not a tuple


def _fill(value: Any, numbers: Sequence[Any]) -> Any:
    if not isinstance(value, Slot):
        return value
    return numbers[value.start] if value.stop is None else tuple(numbers[value.start : value.stop])


def _is_number(value: object) -> bool:
    if isinstance(value, bool | np.bool_):
        return False
    # torch tensors and arrays count: `lr` may be a tensor, which torch's schedulers fill in place.
    return isinstance(value, numbers.Real) or (hasattr(value, "item") and getattr(value, "size", None) is not None)


class Binding:
    """A factory, or a ready transformation, with the values that all groups share.

    Args:
        transform: see `TorchBridge`.
        hyperparams: values given for the factory's arguments.

    Raises:
        TypeError: for a `transform` that is neither, an argument that the factory lacks or that it needs and does not
            get.
    """

    def __init__(self, transform: Any, hyperparams: Mapping[str, Any] = MappingProxyType({})) -> None:
        self._ready = transform if isinstance(transform, GradientTransformation) else None
        self.name = "a ready transformation" if self._ready else _name_of(transform)
        self.defaults: dict[str, Any] = {}
        self._fixed: dict[str, Any] = {}
        self._static: dict[str, type] = {}  # by argument: the class of values that are known while tracing
        self._spelling: dict[str, str] = {}
        if self._ready is not None:
            if hyperparams:
                raise TypeError(
                    f"TorchBridge: {', '.join(hyperparams)} cannot be set on a ready transformation; pass a function "
                    "that takes it and returns the transformation, such as funcopt.adamw instead of funcopt.adamw(1e-3)"
                )
            return
        if not callable(transform):
            raise TypeError(
                "TorchBridge: transform must be a gradient transformation or a function that returns one, got "
                f"{transform!r}"
            )
        self._factory: Callable[..., Any] = transform
        given = dict(hyperparams)
        for parameter in inspect.signature(transform).parameters.values():
            self._add_argument(parameter, given)
        if given:
            self._unknown(next(iter(given)))

    def _add_argument(self, parameter: inspect.Parameter, given: dict[str, Any]) -> None:
        if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
            return
        name = _ALIASES.get(parameter.name, parameter.name)
        self._spelling[name] = parameter.name
        if parameter.name in given and name not in given:
            given[name] = given.pop(parameter.name)
        value = given.pop(name, parameter.default)
        if value is parameter.empty:
            raise TypeError(
                f"TorchBridge: {self.name} needs {name}; pass it as TorchBridge(params, {self.name}, {name}=...)"
            )
        static = self._static_of(parameter)
        if static is not None:
            self._static[name] = static
        # A function is a schedule where the factory expects a number; for an argument such as optax's mask it is just
        # a value, which no group can change.
        if _belongs_in_groups(value) or (has_schedule(value) and _belongs_in_groups(parameter.default, True)):
            self.defaults[name] = value
        else:
            self._fixed[name] = value

    def _static_of(self, parameter: inspect.Parameter) -> type | None:
        """The values of an argument that cannot be traced: a definition says so; otherwise sizes and seeds are ints."""
        kinds = getattr(self._factory, "kinds", {})
        if parameter.name in kinds:
            return None if kinds[parameter.name].scheduled else object
        default = parameter.default
        return int if default is None or (isinstance(default, int) and not isinstance(default, bool)) else None

    def _unknown(self, name: str) -> None:
        known = [*self.defaults, *self._fixed]
        near = difflib.get_close_matches(name, known, n=1)
        hint = f"; did you mean {near[0]}?" if near else ""
        raise TypeError(f"TorchBridge: {self.name} has no argument {name}{hint} It takes {', '.join(known)}")

    def check_group(self, group: Mapping[str, Any], where: str) -> None:
        """Checks a group's own fields.

        Raises:
            ValueError: for a field that looks like a misspelt hyperparameter, or a multiplier that nothing can use.
        """
        known = [*self.defaults, *MULTIPLIERS, "params", "param_names", "initial_lr"]
        for name, value in group.items():
            if name in self.defaults or name in known:
                continue
            near = difflib.get_close_matches(str(name), [*self.defaults, *MULTIPLIERS], n=1, cutoff=0.8)
            if near:
                raise ValueError(f"TorchBridge: {where} has a field {name!r}; did you mean {near[0]!r}?")
            if name in self._fixed:
                raise ValueError(
                    f"TorchBridge: {where} sets {name}, which {self.name} takes once for all groups, got {value!r}"
                )
        for name in MULTIPLIERS:
            _checks.check_number(f"TorchBridge: {where}", name, group.get(name, 1.0), _checks.NON_NEGATIVE)
        if "weight_decay" not in self.defaults and group.get("decay_mult", 1.0) != 1.0:
            raise ValueError(
                f"TorchBridge: {where} sets decay_mult={group['decay_mult']!r}, but {self.name} has no weight_decay to "
                "multiply; pass a function that takes weight_decay"
            )

    def split(self, groups: Sequence[Mapping[str, Any]]) -> tuple[Layout, np.ndarray]:
        """Sorts the groups' values into a static layout and a float64 vector of numbers."""
        packed: list[float] = []
        layout = []
        names = self.defaults if "lr" in self.defaults else {**self.defaults, "lr_mult": 1.0}
        for group in groups:
            fields: list[tuple[str, Any]] = []
            for name, default in names.items():
                value = group.get(name, default)
                if isinstance(value, self._static.get(name, ())) or _is_switched_off(name, value, group):
                    fields.append((name, value))
                elif _is_number(value):
                    multiplier = group.get(_MULTIPLIER_OF[name], 1.0) if name in _MULTIPLIER_OF else 1.0
                    fields.append((name, Slot(len(packed), None)))
                    packed.append(float(value) * float(multiplier))
                elif isinstance(value, tuple | list) and value and all(map(_is_number, value)):
                    fields.append((name, Slot(len(packed), len(packed) + len(value))))
                    packed.extend(float(item) for item in value)
                else:
                    fields.append((name, value))
            layout.append(tuple(fields))
        return Layout(tuple(layout), len(packed)), np.array(packed, np.float64)

    def build(self, groups: Sequence[dict[str, Any]]) -> GradientTransformationExtraArgs:
        """The transformation of all groups.

        Args:
            groups: values by name for each group: numbers, traced or not, and flags.
        """
        groups = [dict(group) for group in groups]
        multipliers = [group.pop("lr_mult", None) for group in groups]
        if self._ready is not None:
            tx = optax.with_extra_args_support(self._ready)
        elif len(groups) > 1 and _takes_no_prefixes(self._factory):
            tx = _one_per_group([self._make(group) for group in groups])
        else:
            tx = self._make({name: _per_group([group[name] for group in groups]) for name in self.defaults})
        return tx if None in multipliers else chain(tx, scale_by_multipliers(_per_group(multipliers)))

    def _make(self, values: Mapping[str, Any]) -> GradientTransformationExtraArgs:
        arguments = {**values, **self._fixed}
        try:
            tx = self._factory(**{self._spelling[name]: value for name, value in arguments.items()})
        except jax.errors.ConcretizationTypeError as error:
            raise TypeError(
                f"TorchBridge: {self.name} needs one of {', '.join(values)} as a plain number; fix it with a function "
                "that takes the others"
            ) from error
        if not isinstance(tx, GradientTransformation):
            raise TypeError(f"TorchBridge: {self.name} must return a gradient transformation, got {tx!r}")
        return optax.with_extra_args_support(tx)


def _is_switched_off(name: str, value: Any, group: Mapping[str, Any]) -> bool:
    """Whether a zero is to be known while tracing: without momentum there is no buffer, without decay nothing to read.

    A decay that schedules change may pass through 0, which must not compile anew.
    """
    return (name == "momentum" or (name == "weight_decay" and "schedule_step" not in group)) and value == 0


def _name_of(transform: Any) -> str:
    return getattr(_unwrapped(transform), "__name__", None) or repr(transform)


def _belongs_in_groups(value: Any, number: bool = False) -> bool:
    """Whether a value is one that torch would put in a group: a number, a tuple of numbers, a flag, a name, nothing."""
    if _is_number(value) or (isinstance(value, tuple | list) and any(map(_is_number, value))):
        return True
    if number:
        return value is inspect.Parameter.empty
    return value is None or isinstance(value, bool | str)


def _per_group(values: Sequence[Any]) -> Any:
    """A prefix with one value per group; with one group the value itself, which any factory takes."""
    return values[0] if len(values) == 1 else PerGroup(values)


def _takes_no_prefixes(factory: Callable[..., Any]) -> bool:
    """Optax's own factories take one number for the whole tree."""
    return getattr(_unwrapped(factory), "__module__", "").split(".")[0] == "optax"


def _unwrapped(factory: Any) -> Any:
    while isinstance(factory, functools.partial):
        factory = factory.func
    return factory


def _one_per_group(parts: Sequence[GradientTransformationExtraArgs]) -> GradientTransformationExtraArgs:
    """Each group's own transformation on its own parameters; nothing is shared between groups."""

    def init(params: Any) -> Any:
        return PerGroup(part.init(leaves) for part, leaves in zip(parts, params.values, strict=True))

    def update(updates: Any, state: Any, params: Any = None, **extra: Any) -> tuple[PyTree, PyTree]:
        results = [
            part.update(leaves, inner, own, **extra) if leaves.values else (leaves, inner)
            for part, leaves, inner, own in zip(parts, updates.values, state.values, params.values, strict=True)
        ]
        return PerGroup(leaves for leaves, _ in results), PerGroup(inner for _, inner in results)

    return GradientTransformationExtraArgs(init, update)
