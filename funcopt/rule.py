"""How an algorithm is written, and how transformations are composed.

A *rule* is an algorithm for one array, with plain numbers for hyperparameters. `transformation` makes of a function
from hyperparameters to a rule what users call: it checks what they give, follows schedules, gives each array its own
numbers, counts updates, computes half precision in float32, and passes missing gradients by. `chain` runs several rules
one after the other without rounding in between, `step` without rounding before the parameter.
"""

import functools
import inspect
import typing
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, ParamSpec, Protocol

import jax
import jax.numpy as jnp
from optax import EmptyState as EmptyState
from optax import GradientTransformation as GradientTransformation
from optax import GradientTransformationExtraArgs as GradientTransformationExtraArgs

from funcopt import _tree
from funcopt._flax import unboxed
from funcopt._lift import Refused as Refused
from funcopt._lift import Rule as Rule
from funcopt._lift import ScheduledState as ScheduledState
from funcopt._lift import asked_for as asked_for
from funcopt._lift import asking as asking
from funcopt._lift import call_rule, lift
from funcopt._lift import follow_schedules as follow_schedules
from funcopt._names import nearest
from funcopt._program import ElementwiseTransformation as ElementwiseTransformation
from funcopt._program import Leaves as Leaves
from funcopt._program import Program as Program
from funcopt._program import PyTree as PyTree
from funcopt._program import apply_updates as apply_updates
from funcopt._program import chain as chain
from funcopt._program import named_chain as named_chain
from funcopt._program import program as program
from funcopt._program import step as step
from funcopt.kinds import Kind

P = ParamSpec("P")


P_call = ParamSpec("P_call")


class Keys(NamedTuple):
    """Where checkpoints of torch and states of optax differ from the fields of a state."""

    from_first_update: bool = False  # nothing is kept of a parameter before it
    step: Any = float  # what torch's count is: float, int, or None for none at all
    optax: tuple[type, Mapping[str, str]] | None = None  # the class that keeps the same, and its fields' names here


class Factory(Protocol[P_call]):
    """What `transformation` makes: the public function, and the rule that it lifts."""

    __name__: str
    __doc__: str | None
    kinds: Mapping[str, Kind]
    rule: Callable[..., Rule]
    elementwise: bool
    refuse_param: Callable[[Any], str]
    keys: Keys

    def __call__(self, *args: P_call.args, **kwargs: P_call.kwargs) -> GradientTransformationExtraArgs: ...


class _Text(str):
    """An annotation that `help` shows as it is."""

    __slots__ = ()
    __repr__ = str.__str__


DEFINITIONS: dict[str, Factory[...]] = {}
"""What has been defined, by name."""


def transformation(
    *,
    elementwise: bool = True,
    refuse_param: Callable[[Any], str] = _tree.refuse_unless_floating,
    keys: Keys = Keys(),  # noqa: B008  # a constant
) -> Callable[[Callable[P, Rule]], Factory[P]]:
    """A decorator: makes of a function from hyperparameters to a `Rule` one that returns a transformation.

    Each argument's annotation says what it may be (`funcopt.kinds`). Inside, arguments are one array's own numbers:
    Python's where the user gave such, otherwise weakly typed scalars, which take the dtype of what they meet.

    Args:
        elementwise: whether the rule treats each element alone, but for totals.
        refuse_param: says what a parameter must be that the algorithm has to refuse, "" for the others.
        keys: where torch's checkpoints differ from the fields of the state.

    Example:
        >>> import funcopt
        >>> from funcopt.kinds import NonNegative
        >>> from funcopt.rule import Rule, transformation
        >>> @transformation()
        ... def shrink(by: NonNegative = 0.1) -> Rule:
        ...     return Rule(lambda g, *, param: g - by * param)
        >>> tx = funcopt.chain(shrink(by={"w": 0.1, "b": 0.0}), funcopt.sgd(0.1))
    """

    def decorate(rule: Callable[P, Rule]) -> Factory[P]:
        made = _make(
            rule.__name__, rule, rule.__doc__, inspect.signature(rule), _kinds(rule), elementwise, refuse_param, keys
        )
        made.__module__ = rule.__module__
        return made

    return decorate


def direction(name: str, factory: Any, doc: str, **defaults: Any) -> Factory[...]:
    """An optimizer without learning rate, decay and sign: what it does to a gradient.

    Args:
        name: of what is made.
        factory: the optimizer, made by `transformation`.
        doc: the docstring.
        **defaults: where they are others than the optimizer's.
    """
    frame = {"lr": -1.0, "weight_decay": 0.0, "maximize": False, "decoupled_weight_decay": False}
    signature = inspect.signature(factory)
    kept = [
        p.replace(default=defaults.get(p.name, p.default)) for p in signature.parameters.values() if p.name not in frame
    ]
    doc = _with_arguments(doc, factory.__doc__ or "", [p.name for p in kept])
    rule = functools.partial(factory.rule, **{n: v for n, v in frame.items() if n in signature.parameters})
    kinds = {p.name: factory.kinds[p.name] for p in kept}
    own = signature.replace(parameters=kept)
    made = _make(name, rule, doc, own, kinds, factory.elementwise, factory.refuse_param, factory.keys)
    made.__module__ = factory.__module__
    return made


def _with_arguments(doc: str, source: str, names: Sequence[str]) -> str:
    """A docstring with what another one says of some arguments."""
    told: dict[str, list[str]] = {}
    argument = ""
    for line in inspect.cleandoc(source).partition("Args:\n")[2].partition("\n\n")[0].splitlines():
        if not line.startswith(" " * 8):
            argument = line.partition(":")[0].strip()
        told.setdefault(argument, []).append(line)
    lines = [line for name in names for line in told.get(name, ())]
    return "\n".join([doc, "", "Args:", *lines]) if lines else doc


@functools.cache
def state_class(factory: Factory[...]) -> type | None:
    """The class of a definition's state for one array; None where it keeps nothing."""
    given = {n: p.default for n, p in inspect.signature(factory).parameters.items()}
    rule = factory.rule(**{n: 1.0 if value is inspect.Parameter.empty else value for n, value in given.items()})
    return None if rule.init is None else type(jax.eval_shape(rule.init, jax.ShapeDtypeStruct((2, 2), jnp.float32)))


def keys_of(state: object) -> Keys | None:
    """How torch's checkpoints differ from a state; None if they do not, or it is none of a definition's."""
    if not hasattr(state, "_fields"):
        return None
    special = (factory for factory in DEFINITIONS.values() if factory.keys._replace(optax=None) != Keys())
    return next((factory.keys for factory in special if state_class(factory) is type(state)), None)


_SPELLINGS = {
    "learning_rate": "lr",
    "step_size": "lr",
    "b1": "betas",
    "b2": "betas",
    "decay": "alpha",
    "count": "step",
}


def _make(
    name: str,
    rule: Callable[..., Rule],
    doc: str | None,
    signature: inspect.Signature,
    kinds: Mapping[str, Kind],
    elementwise: bool,
    refuse_param: Callable[[Any], str],
    keys: Keys,
) -> Any:
    def factory(*args: Any, **kwargs: Any) -> GradientTransformationExtraArgs:
        for argument in kwargs:
            if argument not in kinds:
                raise TypeError(_unknown_argument(name, argument, kinds))
        try:
            bound = signature.bind(*args, **kwargs)
        except TypeError as error:
            raise TypeError(f"{name}: {error}; it takes {', '.join(kinds)}") from None
        bound.apply_defaults()
        for argument, value in bound.arguments.items():
            bound.arguments[argument] = plain = unboxed(value)
            kinds[argument].check(name, argument, plain)
        if all(map(_is_plain, bound.arguments.values())):
            call_rule(name, rule, bound.arguments)  # its own checks, where the user called
        return lift(name, rule, bound.arguments, kinds, elementwise, refuse_param)

    shown = [p.replace(annotation=_Text(kinds[p.name].text)) for p in signature.parameters.values()]
    made: Any = factory
    made.__name__ = made.__qualname__ = name
    made.__doc__ = doc
    made.__signature__ = signature.replace(parameters=shown, return_annotation=GradientTransformationExtraArgs)
    made.kinds, made.rule, made.elementwise, made.refuse_param, made.keys = kinds, rule, elementwise, refuse_param, keys
    DEFINITIONS[name] = made
    return made


def _unknown_argument(owner: str, argument: str, known: Mapping[str, Any]) -> str:
    fix = ""
    if argument == "mask":
        fix = "; put what decays into funcopt.masked, or give weight_decay as a tree"
    elif _SPELLINGS.get(argument) in known:
        fix = f"; it is called {_SPELLINGS[argument]} here, as in torch"
    elif nearest(argument, known):
        fix = f"; {nearest(argument, known)}"
    return f"{owner}: unknown argument {argument}, it takes {', '.join(known)}{fix}"


def _is_plain(value: Any) -> bool:
    items = value if isinstance(value, tuple | list) else [value]
    return all(item is None or _tree.is_static(item) for item in items)


def _kinds(rule: Callable[..., Any]) -> dict[str, Kind]:
    hints = typing.get_type_hints(rule, include_extras=True)
    kinds = {}
    for name in inspect.signature(rule).parameters:
        found = [item for item in typing.get_args(hints.get(name)) if isinstance(item, Kind)]
        if not found:
            raise TypeError(
                f"transformation: {name} of {rule.__name__} must be annotated with a kind, such as "
                "funcopt.kinds.NonNegative"
            )
        kinds[name] = found[0]
    return kinds
