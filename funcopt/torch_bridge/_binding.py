"""What `TorchBridge` is told to run: a factory whose arguments are group hyperparameters, or a ready transformation.

A binding knows the hyperparameters' names and defaults, sorts a group's values into numbers (traced: they may change at
any step) and the rest (its class), and builds the transformation from one dict of values per group.
"""

import difflib
import functools
import inspect
import numbers
import warnings
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

import jax
import numpy as np
import optax

from funcopt import _checks
from funcopt._tree import has_schedule
from funcopt.rule import GradientTransformation, GradientTransformationExtraArgs, PyTree, Rule, chain
from funcopt.torch_bridge._groups import PerGroup
from funcopt.transforms import scale_by_multipliers

MULTIPLIERS = {"lr_mult": "lr", "decay_mult": "weight_decay"}
"""Group fields that multiply a hyperparameter where it is used, so that they survive every scheduler."""

_MULTIPLIER_OF = {target: field for field, target in MULTIPLIERS.items()}

# optax's spelling of what torch and funcopt call otherwise.
_ALIASES = {"learning_rate": "lr"}


class Number(NamedTuple):
    """The place of a number, or of a tuple of numbers, among those of a group."""

    start: int
    stop: int | None  # None: a number and not a tuple


class ProgramClass(NamedTuple):
    """What is known of a group's values while tracing; hashable, it keys the compiled programs."""

    values: tuple[tuple[str, Any], ...]  # name, and the static value or a `Number`

    def fill(self, numbers: Sequence[Any]) -> dict[str, Any]:
        """A group's values, with numbers in their places."""
        return {name: _fill(value, numbers) for name, value in self.values}

    @property
    def size(self) -> int:
        """How many numbers there are."""
        return sum(
            (value.stop or value.start + 1) - value.start for _, value in self.values if isinstance(value, Number)
        )

    def has_number(self, name: str) -> bool:
        """Whether a hyperparameter is a number that may change."""
        return any(own == name and isinstance(value, Number) for own, value in self.values)


def _fill(value: Any, numbers: Sequence[Any]) -> Any:
    if not isinstance(value, Number):
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
        multiplied: whether a group's `lr_mult` and `decay_mult` mean something; otherwise they are the user's own.

    Raises:
        TypeError: for a `transform` that is neither, an argument that the factory lacks or that it needs and does not
            get.
    """

    def __init__(
        self, transform: Any, hyperparams: Mapping[str, Any] = MappingProxyType({}), *, multiplied: bool = True
    ) -> None:
        self.multiplied = multiplied
        self._multiplier_of = _MULTIPLIER_OF if multiplied else {}
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

    @functools.cached_property
    def key(self) -> Any:
        """Two bindings with equal keys run the same."""
        if self._ready is not None:
            return Same(self._ready)
        fixed = tuple((name, _hashable(value)) for name, value in self._fixed.items())
        # What stands in groups is in their classes.
        return _factory_key(self._factory), fixed, tuple(self.defaults), self.multiplied

    def check_group(self, group: Mapping[str, Any], where: str) -> None:
        """Checks the fields that mean something to the bridge, and warns of what looks like a misspelt one.

        Raises:
            ValueError: for a multiplier that nothing can use.
        """
        known = [*self.defaults, *(MULTIPLIERS if self.multiplied else ())]
        for name in group:
            if name in known or name in _TORCHS_OWN:
                continue
            near = difflib.get_close_matches(str(name), known, n=1, cutoff=0.8)
            if near:
                _warn_once(f"TorchBridge: {where} has a field {name!r}; did you mean {near[0]!r}?")
            elif name in self._fixed:
                _warn_once(f"TorchBridge: {where} has a field {name!r}, which {self.name} takes once for all groups")
        if not self.multiplied:
            return
        for name in MULTIPLIERS:
            _checks.check_number(f"TorchBridge: {where}", name, group.get(name, 1.0), _checks.NON_NEGATIVE)
        if "weight_decay" not in self.defaults and group.get("decay_mult", 1.0) != 1.0:
            raise ValueError(
                f"TorchBridge: {where} sets decay_mult={group['decay_mult']!r}, but {self.name} has no weight_decay to "
                "multiply; pass a function that takes weight_decay"
            )

    def check_values(self, group: Mapping[str, Any]) -> None:
        """Builds the transformation from a group's plain numbers, so that the factory checks them."""
        found, numbers = self.split(group, new=True)
        self.build([found.fill(numbers)])

    def rule_of(self, group: Mapping[str, Any]) -> Rule | None:
        """What a group does to one parameter, as far as its algorithm's definition tells; None for other recipes."""
        rule = getattr(self._factory, "rule", None) if self._ready is None else None
        if rule is None:
            return None
        found, numbers = self.split(group)
        values = {**found.fill(numbers), **self._fixed}
        # A factor of one's own, which scales what the rule yields, is no argument of it.
        return rule(**{self._spelling[name]: _plain(value) for name, value in values.items() if name in self._spelling})

    def refuse_param(self, shape: Sequence[int], dtype: Any) -> str:
        """What a parameter must be that the algorithm refuses, "" for others, and where the factory does not say."""
        refuse = getattr(self._factory, "refuse_param", None) if self._ready is None else None
        return "" if refuse is None else refuse(jax.ShapeDtypeStruct(tuple(shape), dtype))

    @functools.cached_property
    def read(self) -> tuple[str, ...]:
        """The fields of a group that are read."""
        names = self.defaults if "lr" in self.defaults else {**self.defaults, "lr_mult": 1.0}
        return (*names, *(name for name in self._multiplier_of.values() if name not in names))

    def split(
        self,
        group: Mapping[str, Any],
        before: ProgramClass | None = None,
        *,
        new: bool = False,
        read: Callable[[Any], Any] = float,
    ) -> tuple[ProgramClass, tuple[Any, ...]]:
        """Sorts a group's values into what is static and float64 numbers.

        Args:
            group: the group.
            before: its class at the last step: what passes through 0 keeps its buffer and its program.
            new: whether the values are to be checked as they stand. Later torch takes Nesterov's momentum of 0, from
                which it may warm up, for none.
            read: what becomes of each number. If not a float, none that is a tensor is asked for its value.
        """
        packed: list[Any] = []
        fields: list[tuple[str, Any]] = []
        # Where there is no rate to multiply, or one that the algorithm finds by itself, the update is.
        no_rate = "lr" not in self.defaults or group.get("lr", self.defaults["lr"]) is None
        own_factor = self.multiplied and no_rate
        names = {**self.defaults, "lr_mult": 1.0} if own_factor else self.defaults
        for name, default in names.items():
            value = group.get(name, default)
            items: Any = value if isinstance(value, tuple | list) and value else (value,)
            # Known while tracing: without momentum there is no buffer, without decay nothing to read. A decay that a
            # schedule changes may pass through 0.
            zero = name == "momentum" or (name == "weight_decay" and "schedule_step" not in group)
            known = read is float or not hasattr(value, "item")
            switched_off = zero and known and _is_zero(value) and not (before and before.has_number(name))
            static = self._static.get(name)
            is_static = static is not None and isinstance(value, static)
            if is_static or switched_off or not all(map(_is_number, items)):
                fields.append((name, _hashable(value)))
                continue
            multiplier = float(group.get(self._multiplier_of[name], 1.0)) if name in self._multiplier_of else 1.0
            stop = len(packed) + len(items) if items is value else None
            fields.append((name, Number(len(packed), stop)))
            packed.extend(read(item) * multiplier for item in items)
        if ("momentum", 0.0) in fields and not new:
            fields = [(name, False if name == "nesterov" else value) for name, value in fields]
        return ProgramClass(tuple(fields)), tuple(packed)

    def build(self, groups: Sequence[Mapping[str, Any]]) -> GradientTransformationExtraArgs:
        """The transformation of all groups.

        Args:
            groups: values by name for each group: numbers, traced or not, and flags.
        """
        groups = [{name: _plain(value) for name, value in group.items()} for group in groups]
        multipliers = [group.pop("lr_mult", None) for group in groups]
        if self._ready is not None:
            tx = optax.with_extra_args_support(self._ready)
        elif _takes_no_prefixes(self._factory):  # also of one group: the others may only have no gradients now
            tx = _one_per_group([self._make(group) for group in groups])
        else:
            tx = self._make({name: _per_group([group[name] for group in groups]) for name in self.defaults})
        if all(multiplier is None for multiplier in multipliers):
            return tx
        return chain(tx, scale_by_multipliers(_per_group([1.0 if m is None else m for m in multipliers])))

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


def _is_zero(value: Any) -> bool:
    return _is_number(value) and float(value) == 0.0  # pyright: ignore[reportArgumentType]


class Same:
    """A value that cannot be hashed, or that is only ever equal to itself, as a key."""

    def __init__(self, value: Any) -> None:
        self.value = value

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Same) and self.value is other.value

    def __hash__(self) -> int:
        return id(self.value)

    def __repr__(self) -> str:
        return repr(self.value)


def _hashable(value: Any) -> Any:
    try:
        hash(value)
    except TypeError:
        return Same(value)
    return value


def _plain(value: Any) -> Any:
    return value.value if isinstance(value, Same) else value


def _factory_key(factory: Any) -> Any:
    if isinstance(factory, functools.partial):
        named = tuple((name, _hashable(value)) for name, value in sorted(factory.keywords.items()))
        return _factory_key(factory.func), tuple(map(_hashable, factory.args)), named
    return _hashable(factory)


_TORCHS_OWN = frozenset({"params", "param_names", "initial_lr", "foreach", "fused", "capturable", "differentiable"})


@functools.cache
def _warn_once(text: str) -> None:
    warnings.warn(text, stacklevel=6)


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
