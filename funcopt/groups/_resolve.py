"""From rules to one set of values per parameter: merging, and everything that can be wrong with rules."""

import dataclasses
from collections.abc import Iterable, Sequence
from typing import Any, Literal

from funcopt._catalogue import factories
from funcopt._names import nearest
from funcopt.groups._algorithms import Factory, arguments_of, name_of
from funcopt.groups._params import Param
from funcopt.groups._rule import Rule

Settings = dict[str, Any]

_FIELDS = ("lr_mult", "decay_mult", "freeze", "algorithm", "group")
_SELECTORS = ("path", "regex", "kind", "ndim", "shape", "where", "name", "optional")


@dataclasses.dataclass(frozen=True)
class Assignment:
    """What the rules give one parameter."""

    param: Param
    settings: Settings  # without freeze, and without multipliers of 1
    rules: tuple[str, ...]  # names of the rules that set something, in their order
    frozen: bool


def resolve(
    params: Sequence[Param], rules: Sequence[Rule], algorithm: Factory | None, tied: Literal["error", "first"]
) -> list[Assignment]:
    """Merges the rules for each parameter, field by field; later rules win.

    Raises:
        ValueError: for a hyperparameter that no algorithm has, a pattern that matches nothing, two algorithms for one
            parameter, or tied parameters that get different values.
    """
    _check_hyperparams(rules, algorithm)
    _check_patterns(params, rules)
    assignments = []
    for param in params:
        chosen = _assign(param, rules)
        for alias in param.aliases if tied == "error" else ():
            other = _assign(alias, rules)
            if (other.settings, other.frozen) != (chosen.settings, chosen.frozen):
                raise ValueError(
                    f"group_params: {param.name!r} and {alias.name!r} are one tied parameter and must get the same "
                    f"values, got {_show(chosen)} from {chosen.rules or 'no rule'} and {_show(other)} from "
                    f"{other.rules or 'no rule'}"
                )
        assignments.append(chosen)
    return assignments


def _assign(param: Param, rules: Iterable[Rule]) -> Assignment:
    matching = [rule for rule in rules if rule.matches(param)]
    choosing = [rule for rule in matching if rule.changes_algorithm]
    for rule in choosing[1:]:
        if rule.settings["algorithm"] is not choosing[0].settings["algorithm"]:
            raise ValueError(
                f"group_params: {param.name!r} must have one algorithm, got "
                f"{name_of(choosing[0].settings['algorithm'])!r} from {choosing[0]!r} and "
                f"{name_of(rule.settings['algorithm'])!r} from {rule!r}"
            )
    settings: Settings = {}
    for rule in matching:
        settings |= rule.settings
    frozen: bool = settings.pop("freeze", False) or not param.trainable
    settings = {k: v for k, v in settings.items() if not (k in ("lr_mult", "decay_mult") and v == 1.0)}
    names = [rule.name for rule in matching if rule.settings]
    return Assignment(param, settings, tuple(names if param.trainable else ["not trainable"]), bool(frozen))


def _show(assignment: Assignment) -> str:
    shown: Settings = dict(assignment.settings) | ({"freeze": True} if assignment.frozen else {})
    if "algorithm" in shown:
        shown["algorithm"] = name_of(shown["algorithm"])
    return ", ".join(f"{name}={value!r}" for name, value in shown.items()) or "nothing"


def _check_hyperparams(rules: Sequence[Rule], algorithm: Factory | None) -> None:
    """Refuses what no algorithm that the rules can mean has for a hyperparameter."""
    own = [rule.settings["algorithm"] for rule in rules if rule.changes_algorithm]
    possible = [algorithm, *own] if algorithm is not None else [*factories().values(), *own]
    known = {name for factory in possible for name in arguments_of(factory)}
    for rule in rules:
        for name in rule.hyperparams:
            if name not in known:
                whose = f"a hyperparameter of {name_of(algorithm)}" if algorithm is not None else "a hyperparameter"
                fix = nearest(name, [*_SELECTORS, *_FIELDS, *sorted(known)])
                raise ValueError(f"{rule!r}: {name} must be {whose}, which it is not{fix and '; ' + fix}")


def _check_patterns(params: Sequence[Param], rules: Sequence[Rule]) -> None:
    everything = [record for param in params for record in (param, *param.aliases)]
    names = [record.name for record in everything]
    places = {".".join(name.split(".")[:i]) for name in names for i in range(1, len(name.split(".")) + 1)}
    for rule in rules:
        if rule.optional or not rule.patterns:
            continue
        for pattern in rule.unmatched(names):
            bare = pattern.replace("**.", "")
            fix = nearest(bare, sorted(places) if bare == pattern else sorted({name.split(".")[-1] for name in places}))
            raise ValueError(
                f"{rule!r}: the pattern {pattern!r} must match a parameter, but matches none"
                f"{fix and '; ' + fix} (optional=True allows it)"
            )
        if not any(map(rule.matches, everything)):
            raise ValueError(f"{rule!r}: the rule must match a parameter, but matches none (optional=True allows it)")
