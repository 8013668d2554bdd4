"""How an algorithm is written, and how transformations are composed.

A *rule* is an algorithm for one array, with plain numbers for hyperparameters. `transformation` makes of a function
from hyperparameters to a rule what users call: it checks what they give, follows schedules, gives each array its own
numbers, counts updates, computes half precision in float32, and passes missing gradients by. `chain` runs several rules
one after the other without rounding in between, `step` without rounding before the parameter.
"""

import collections
import functools
import inspect
import typing
from collections.abc import Callable, Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple, ParamSpec, Protocol, TypeAlias

import jax
import jax.numpy as jnp
from optax import EmptyState as EmptyState
from optax import GradientTransformation as GradientTransformation
from optax import GradientTransformationExtraArgs as GradientTransformationExtraArgs

from funcopt import _tree
from funcopt._flax import unboxed
from funcopt._lift import Definition, call_rule, lift
from funcopt._lift import Frame as Frame
from funcopt._lift import Refused as Refused
from funcopt._lift import Rule as Rule
from funcopt._lift import ScheduledState as ScheduledState
from funcopt._lift import asked_for as asked_for
from funcopt._lift import asking as asking
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
    torch_class: str | None = None  # the reference's class, for `torch_bridge.optim`; None: torch.optim's, if any
    group: Mapping[str, str] = MappingProxyType({})  # by field of the reference's groups: the field of the state
    flat: tuple[str, ...] = ()  # fields that the reference keeps as vectors
    own: tuple[str, ...] = ()  # fields that the reference lacks: where a checkpoint does, they are as in a new state

    @property
    def are_special(self) -> bool:
        """Whether torch's entries are not simply the fields."""
        return self._replace(optax=None, torch_class=None) != Keys()


class Factory(Protocol[P_call]):
    """What `transformation` makes: the public function, and the rule that it lifts.

    Example:
        >>> import funcopt
        >>> from funcopt.rule import Factory
        >>> factory: Factory = funcopt.lion
        >>> factory.kinds["lr"], factory.elementwise
        (>= 0, True)
    """

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


def direction(name: str, factory: Any, doc: str, *, without: Sequence[str] = (), **defaults: Any) -> Factory[...]:
    """An optimizer without learning rate, decay and sign: what it does to a gradient.

    Args:
        name: of what is made.
        factory: the optimizer, made by `transformation`.
        doc: the docstring.
        without: further arguments that are about learning rate, decay and sign only; they are left out.
        **defaults: where they are others than the optimizer's.
    """
    frame = {"lr": -1.0, "weight_decay": 0.0, "maximize": False, "decoupled_weight_decay": False, "unconstrained": True}
    signature = inspect.signature(factory)
    left = [p for p in signature.parameters.values() if p.name not in frame and p.name not in without]
    kept = [p.replace(default=defaults.get(p.name, p.default)) for p in left]
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
    """The class of a definition's state for one array; None where it keeps nothing.

    Example:
        >>> import funcopt
        >>> from funcopt.rule import state_class
        >>> state_class(funcopt.adamw).__name__
        'AdamState'
    """
    given = {n: p.default for n, p in inspect.signature(factory).parameters.items()}
    rule = factory.rule(**{n: 1.0 if value is inspect.Parameter.empty else value for n, value in given.items()})
    return None if rule.init is None else type(jax.eval_shape(rule.init, jax.ShapeDtypeStruct((2, 2), jnp.float32)))


def keys_of(state: object) -> Keys | None:
    """How torch's checkpoints differ from a state; None if they do not, or it is none of a definition's.

    Example:
        >>> import funcopt, jax.numpy as jnp
        >>> from funcopt.rule import keys_of
        >>> keys_of(funcopt.sgd(0.1, momentum=0.9).init(jnp.ones(2))) is None
        False
    """
    return _keys_of_class(type(state)) if hasattr(state, "_fields") else None


def _keys_of_class(kind: type) -> Keys | None:
    special = (factory for factory in DEFINITIONS.values() if factory.keys.are_special)
    found = next((factory.keys for factory in special if state_class(factory) is kind), None)
    if found is not None or not hasattr(kind, "classes"):
        return found
    own, inner = (_keys_of_class(part) or Keys() for part in kind.classes)
    counts = own.step if "step" in kind.classes[0]._fields else inner.step
    group = {**inner.group, **own.group}
    joined = inner._replace(step=counts, group=group, flat=inner.flat + own.flat, own=inner.own + own.own)
    return joined if joined.are_special else None


def wrapper(*, elementwise: bool = True) -> Callable[[Callable[..., Rule]], Callable[..., Any]]:
    """A decorator: makes of a function from an optimizer's rule to another rule one that wraps optimizers.

    What it makes takes a factory, such as `funcopt.lion`, and returns one with the same arguments and the wrapper's
    options behind them; or a transformation that a factory returned, and returns a transformation.

    Args:
        elementwise: whether the rule around an elementwise one is elementwise, too.

    Example:
        >>> import funcopt
        >>> from funcopt.kinds import NonNegative
        >>> from funcopt.rule import Rule, wrapper
        >>> @wrapper()
        ... def damped(inner: Rule, *, by: NonNegative = 0.5) -> Rule:
        ...     return inner._replace(update=lambda g, s: (by * inner.update(g, s)[0], inner.update(g, s)[1]))
        >>> tx = damped(funcopt.rmsprop(lr=0.1))
        >>> factory = damped(funcopt.rmsprop, by=0.1)
        >>> factory(lr=0.1, by=0.2).init({"w": 1.0}).step
        Array(0, dtype=int32)
    """

    def decorate(wrap: Callable[..., Rule]) -> Callable[..., Any]:
        name = wrap.__name__
        options = {n: p for n, p in inspect.signature(wrap).parameters.items() if p.kind is p.KEYWORD_ONLY}
        kinds = _kinds(wrap, options)
        asks_arguments = "arguments" in inspect.signature(wrap).parameters

        def around(make: Callable[..., Rule], owner: str) -> Callable[..., Rule]:
            def rule(*args: Any, **values: Any) -> Rule:
                own = {n: values.pop(n) for n in options if n in values}
                inner = make(*args, **values)
                return wrap(inner, **({"arguments": values} if asks_arguments else {}), **own)

            return rule

        @functools.cache
        def made_of(factory: Any, given: tuple[tuple[str, Any], ...]) -> Any:
            signature = inspect.signature(factory)
            _refuse_same_names(name, factory.__name__, options, signature.parameters)
            own = [p.replace(default=dict(given).get(n, p.default), annotation=p.empty) for n, p in options.items()]
            signature = signature.replace(parameters=[*signature.parameters.values(), *own])
            rule = around(factory.rule, factory.__name__)
            doc = f"`{factory.__name__}` in `{name}`."
            return _make(
                f"{name}({factory.__name__})",
                rule,
                doc,
                signature,
                {**factory.kinds, **kinds},
                factory.elementwise and elementwise,
                factory.refuse_param,
                factory.keys._replace(torch_class=None, optax=None),
                defined=False,
            )

        def public(inner: Any, **given: Any) -> Any:
            for argument, value in given.items():
                if argument not in options:
                    raise TypeError(_unknown_argument(name, argument, options))
                kinds[argument].check(name, argument, value)
            if isinstance(inner, GradientTransformation):
                found: Definition | None = getattr(inner, "definition", None)
                if found is None:
                    raise TypeError(_not_one_rule(name, inner))
                _refuse_same_names(name, found.owner, options, found.kinds)
                values = {n: given.get(n, p.default) for n, p in options.items()}
                rule = around(found.make, found.owner)
                hyperparams = {**found.hyperparams, **values}
                if all(map(_is_plain, hyperparams.values())):
                    call_rule(name, rule, hyperparams)
                both = {**found.kinds, **kinds}
                return lift(name, rule, hyperparams, both, found.elementwise and elementwise, found.refuse_param)
            if not hasattr(inner, "rule"):
                raise TypeError(_not_one_rule(name, inner))
            return made_of(inner, tuple(given.items()))

        public.__name__ = public.__qualname__ = name
        public.__doc__, public.__module__ = wrap.__doc__, wrap.__module__
        shown = [p.replace(annotation=_Text(kinds[n].text)) for n, p in options.items()]
        inner_shown = inspect.Parameter("inner", inspect.Parameter.POSITIONAL_ONLY)
        vars(public)["__signature__"] = inspect.Signature([inner_shown, *shown])
        return public

    return decorate


def _refuse_same_names(owner: str, inner: str, options: Mapping[str, Any], known: Mapping[str, Any]) -> None:
    both = [n for n in options if n in known]
    if both:
        raise TypeError(f"{owner}: {inner} has {', '.join(both)} already, and cannot be wrapped in it")


def _not_one_rule(owner: str, inner: Any) -> str:
    got = getattr(inner, "__name__", None) or type(inner).__name__
    return (
        f"{owner}: inner must be an optimizer that is defined by one rule, such as funcopt.adamw or "
        f"funcopt.adamw(1e-3), got {got}; in a chain wrap the optimizer alone: chain(clip, {owner}(adamw(1e-3)))"
    )


Given: TypeAlias = dict[str, Any]
"""What a rule asked for, by name."""


def around(
    inner: Rule,
    init: Callable[[jax.Array], Any],
    before: Callable[[jax.Array, Any, Given], tuple[jax.Array, Given]],
    after: Callable[[jax.Array, jax.Array, Any, Given], tuple[jax.Array, Any]],
    *asks: str,
) -> Rule:
    """A rule that has a state beside that of the rule that it wraps, as one state with the fields of both.

    Args:
        inner: the wrapped rule.
        init: `param -> own`, a NamedTuple; a `step` is the same as the wrapped rule's.
        before: `(g, own, given) -> (g, given)`: the gradient, and what else the wrapped rule sees.
        after: `(update, g, own, given) -> (update, own)`: from the wrapped rule's update, and from the gradient and
            what else came from outside.
        *asks: what `before` and `after` ask for beside what the wrapped rule does.

    Raises:
        Refused: if both states have a field of the same name, or both keep weights to evaluate.
    """
    asked = asked_for(inner.update) | (asked_for(inner.total) if inner.total is not None else frozenset())

    def init_both(p: jax.Array) -> Any:
        own, rest = init(p), None if inner.init is None else inner.init(p)
        return own if rest is None else _joined_class(type(own), type(rest))(**{**rest._asdict(), **own._asdict()})

    def run(fn: Callable[..., Any], g: jax.Array, own: Any, rest: Any, given: Given) -> Any:
        g, given = before(g, own, given)
        return fn(g, *([] if rest is None else [rest]), **{n: given[n] for n in asked_for(fn)})

    def update(g: jax.Array, s: Any, **given: Any) -> tuple[jax.Array, Any]:
        own, rest = _parts(s)
        result = run(inner.update, g, own, rest, given)
        u, rest = (result, None) if rest is None else result
        u, own = after(u, g, own, given)
        return u, own if rest is None else s._replace(**{**rest._asdict(), **own._asdict()})

    def total(g: jax.Array, s: Any, **given: Any) -> Any:
        assert inner.total is not None
        return run(inner.total, g, *_parts(s), given)

    every = {*asked, *asks}
    joined = None if inner.total is None else asking(total, *every - {"total"})
    return Rule(asking(update, *every), init_both, joined, inner.join, final=inner.final)


def _parts(state: Any) -> tuple[Any, Any]:
    """A wrapper's own state, and that of what it wraps."""
    classes = getattr(type(state), "classes", None)
    if classes is None:
        return state, None
    own, inner = (kind(*(getattr(state, n) for n in kind._fields)) for kind in classes)
    return own, inner


@functools.cache
def _joined_class(own: Any, inner: Any) -> Any:
    twice = [n for n in own._fields if n in inner._fields and n != "step"]
    if twice or (hasattr(own, "evaluated") and hasattr(inner, "evaluated")):
        raise Refused("inner", f"one that does not keep {', '.join(twice) or 'weights to evaluate'}", inner.__name__)
    fields = dict.fromkeys((*own._fields, *inner._fields))
    joined: Any = collections.namedtuple(f"{own.__name__.removesuffix('State')}{inner.__name__}", fields)
    joined.classes = own, inner
    joined.shared = _tree.shared_fields(own) + _tree.shared_fields(inner)
    for kind in (inner, own):
        if hasattr(kind, "evaluated"):
            joined.evaluated, joined.trained = kind.evaluated, getattr(kind, "trained", None)
    return joined


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
    *,
    defined: bool = True,
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
    if defined:
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


def _kinds(rule: Callable[..., Any], names: Iterable[str] | None = None) -> dict[str, Kind]:
    hints = typing.get_type_hints(rule, include_extras=True)
    kinds = {}
    for name in inspect.signature(rule).parameters if names is None else names:
        found = [item for item in typing.get_args(hints.get(name)) if isinstance(item, Kind)]
        if not found:
            raise TypeError(
                f"transformation: {name} of {rule.__name__} must be annotated with a kind, such as "
                "funcopt.kinds.NonNegative"
            )
        kinds[name] = found[0]
    return kinds
