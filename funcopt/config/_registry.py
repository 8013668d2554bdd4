"""Optimizers and schedules by name: funcopt's own, and what users register."""

import inspect
from collections.abc import Callable, Iterator, Mapping
from types import MappingProxyType
from typing import Any, TypeVar

from funcopt import schedules
from funcopt._catalogue import factories
from funcopt._names import nearest, simplify
from funcopt.kinds import Schedule
from funcopt.schedules import CycledSchedule

T = TypeVar("T", bound=Callable[..., Any])


class Registry:
    """Builders by name. Case and underscores do not count: "AdamW", "adamw", "StepLR" and "step_lr" are found.

    Args:
        kind: what is registered, for messages.
        own: funcopt's own by name.
        aliases: further names of these.
        build: builds from a config, called as `build(cfg, **arguments)`; None: `builder` tells it later.
    """

    def __init__(
        self,
        kind: str,
        own: Mapping[str, Callable[..., Any]],
        build: Callable[..., Any] | None = None,
        aliases: Mapping[str, str] = MappingProxyType({}),
    ) -> None:
        self._kind = kind
        self._entries: dict[str, tuple[str, Callable[..., Any]]] = {}
        self._build = build
        for name, builder in own.items():
            self._entries[simplify(name)] = name, builder
        self._aliases = {simplify(alias): simplify(name) for alias, name in aliases.items()}

    def register(self, name: str | Callable[..., Any] | None = None, *, force: bool = False) -> Any:
        """A decorator that registers a function or class, by its own name or another.

        Args:
            name: the name; without it, and without parentheses, the decorated object's own.
            force: whether to replace what has the name.

        Returns:
            The decorator; what it decorates is unchanged.

        Raises:
            ValueError: if the name is taken.

        Example:
            >>> from funcopt.config import SCHEDULES
            >>> @SCHEDULES.register("halve", force=True)
            ... def halve(base_lr):
            ...     return lambda step: base_lr * 0.5**step
        """
        if callable(name):
            return self.register(None, force=force)(name)

        def decorate(builder: T) -> T:
            own = name or builder.__name__
            if simplify(own) in self._entries and not force:
                raise ValueError(f"{own!r} is registered as {self._kind} already; force=True replaces it")
            self._entries[simplify(own)] = own, builder
            return builder

        return decorate

    def register_class(self, name: str | None = None, *, force: bool = True) -> Callable[[T], T]:
        """SCEPTER's `register_class()`: as `register`; a name that is taken is replaced."""
        return self.register(name, force=force)

    def get(self, name: str) -> Callable[..., Any]:
        """What is registered under a name.

        Raises:
            ValueError: with the nearest name, if there is none.
        """
        entry = self._entry(str(name))
        if entry is None:
            fix = nearest(str(name), list(self)) or f"there are {', '.join(self)}"
            raise ValueError(f"{name!r} must be one of the registered {self._kind}s; {fix}")
        return entry[1]

    def _entry(self, name: str) -> tuple[str, Callable[..., Any]] | None:
        simple = simplify(name)
        return self._entries.get(simple) or self._entries.get(self._aliases.get(simple, ""))

    def builder(self, build: T) -> T:
        """A decorator of what builds from a config, for where that is defined later than the registry."""
        self._build = build
        return build

    def build(self, cfg: Any, **arguments: Any) -> Any:
        """As `build_optimizer` or `build_schedule`, with SCEPTER's arguments: `parameters`, `optimizer`, `logger`.

        Raises:
            TypeError: for a registry that was given nothing to build with.
        """
        if self._build is None:
            raise TypeError(f"Registry of {self._kind}s: build must be given, to the registry or to its builder()")
        return self._build(cfg, **arguments)

    def __contains__(self, name: object) -> bool:
        return isinstance(name, str) and self._entry(name) is not None

    def __iter__(self) -> Iterator[str]:
        return iter(sorted(name for name, _ in self._entries.values()))

    def __len__(self) -> int:
        return len(self._entries)

    def __repr__(self) -> str:
        return f"Registry of {self._kind}s: {', '.join(self)}"


def _own_schedules() -> dict[str, Callable[..., Any]]:
    """The functions of `funcopt.schedules` that are annotated as returning a schedule."""
    return {
        name: value
        for name, value in vars(schedules).items()
        if inspect.isfunction(value) and inspect.signature(value).return_annotation in (Schedule, CycledSchedule)
    }


def _class_names() -> dict[str, str]:
    """The names that optimizers have in the packages they come from, and in MMEngine."""
    keys = {name: getattr(factory, "keys", None) for name, factory in factories().items()}
    own = {found.torch_class: name for name, found in keys.items() if found is not None and found.torch_class}
    return {**own, "TorchAdafactor": "adafactor"}


OPTIMIZERS = Registry("optimizer", factories(), aliases=_class_names())
"""funcopt's optimizers, also by the names of their references' classes, and those that users register: functions that
return a transformation, torch optimizers, or classes in SCEPTER's manner, made from `(cfg, logger)` and called with the
parameters."""

SCHEDULES = Registry("schedule", _own_schedules())
"""funcopt's schedules, and those that users register: functions of a base value and further arguments."""

CONSTRUCTORS = Registry("constructor", {})
"""What an `optim_wrapper` may name as its `constructor`: MMEngine's own, and those that users register, in its manner:
`constructor(optim_wrapper_cfg, paramwise_cfg)` gives a function of the model that returns the optimizer."""
