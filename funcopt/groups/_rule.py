"""A rule: which parameters, and what they get."""

import re
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from funcopt import _checks
from funcopt._names import nearest
from funcopt.groups._algorithms import Algorithm, find_algorithm, name_of
from funcopt.groups._kinds import KINDS
from funcopt.groups._params import Param
from funcopt.kinds import Hyperparameter


class Rule:
    r"""Selects parameters, by everything that is given together, and sets what they get.

    A path pattern is a glob from the start of the name, segment by segment: `*` is any one segment or part of it, `**`
    any number of them. It selects what it names and all that lies below: "backbone", "**.norm?", "layers.*.attn". A
    regex is searched for, from the start of a segment to the end of one: r"layers\.[0-3]".

    Args:
        path: glob, or several of which one must match.
        regex: regular expression, or several.
        kind: one of `KINDS`, or several.
        ndim: number of dimensions, or a predicate on it.
        shape: shape, with None for any size, or a predicate on it.
        where: any predicate on the `Param`.
        lr_mult: factor on the learning rate, >= 0.
        decay_mult: factor on the weight decay, >= 0.
        freeze: whether they stay as they are: no update, no decay, no state.
        algorithm: name of one of funcopt's optimizers, or a function that returns a transformation.
        group: name of the parameter group they go to; groups with different names are not joined.
        name: what `explain` calls the rule.
        optional: whether the patterns may match nothing.
        **hyperparams: any other hyperparameter: a number, a flag, a schedule.

    Raises:
        ValueError: for a kind, an algorithm or a regex that is none, or a negative multiplier.

    Example:
        >>> rules = [Rule(kind=("bias", "norm"), decay_mult=0.0), Rule(path="backbone", lr_mult=0.1)]
        >>> rules[1]
        Rule(path='backbone', lr_mult=0.1)
    """

    def __init__(
        self,
        *,
        path: str | Sequence[str] | None = None,
        regex: str | Sequence[str] | None = None,
        kind: str | Sequence[str] | None = None,
        ndim: int | Callable[[int], bool] | None = None,
        shape: Sequence[int | None] | Callable[[tuple[int, ...]], bool] | None = None,
        where: Callable[[Param], bool] | None = None,
        lr_mult: float | None = None,
        decay_mult: float | None = None,
        freeze: bool | None = None,
        algorithm: Algorithm | None = None,
        group: str | None = None,
        name: str | None = None,
        optional: bool = False,
        **hyperparams: Hyperparameter,
    ) -> None:
        self.optional = optional
        self.hyperparams = hyperparams
        self._globs, self._regexes = _as_tuple(path), _as_tuple(regex)
        self._kinds, self._ndim, self._shape, self._where = _as_tuple(kind), ndim, shape, where
        for kind_name in self._kinds:
            if kind_name not in KINDS:
                _checks.fail("Rule", "kind", f"one of {', '.join(KINDS)}", kind_name, nearest(kind_name, KINDS))
        for field, value in (("lr_mult", lr_mult), ("decay_mult", decay_mult)):
            if value is not None:
                _checks.check_real("Rule", field, value, _checks.NON_NEGATIVE)
        if freeze is not None:
            _checks.check_flag("Rule", "freeze", freeze)
        self.patterns = {glob: _compile(_translate(glob)) for glob in self._globs}
        self.patterns |= {text: _compile(rf"(?:^|(?<=\.))(?:{text})(?=\.|$)", text) for text in self._regexes}
        factory = None if algorithm is None else find_algorithm(algorithm)
        settings = {
            "lr_mult": lr_mult,
            "decay_mult": decay_mult,
            "freeze": freeze,
            "algorithm": factory,
            "group": group,
        }
        self.settings: dict[str, Any] = {k: v for k, v in settings.items() if v is not None} | hyperparams
        selection = {"path": path, "regex": regex, "kind": kind, "ndim": ndim, "shape": shape, "where": where}
        self._selection = {field: value for field, value in selection.items() if value is not None}
        self.name = name or ", ".join(f"{k}={_short(v)}" for k, v in self._selection.items()) or "all"

    def __repr__(self) -> str:
        shown = self.settings | ({"algorithm": name_of(self.settings["algorithm"])} if self.changes_algorithm else {})
        return f"Rule({', '.join(f'{k}={v!r}' for k, v in (self._selection | shown).items())})"

    @property
    def changes_algorithm(self) -> bool:
        return "algorithm" in self.settings

    def matches(self, param: Param) -> bool:
        """Whether the rule selects a parameter."""
        return (
            self._fits(self._globs, param)
            and self._fits(self._regexes, param)
            and (not self._kinds or not param.kinds.isdisjoint(self._kinds))
            and _accepts(self._ndim, param.ndim)
            and (self._shape is None or _accepts_shape(self._shape, param.shape))
            and (self._where is None or bool(self._where(param)))
        )

    def unmatched(self, names: Iterable[str]) -> list[str]:
        """The patterns that match none of the names."""
        names = list(names)
        return [text for text, pattern in self.patterns.items() if not any(map(pattern.search, names))]

    def _fits(self, texts: tuple[str, ...], param: Param) -> bool:
        return not texts or any(self.patterns[text].search(param.name) for text in texts)


def _as_tuple(value: str | Sequence[str] | None) -> tuple[str, ...]:
    return () if value is None else (value,) if isinstance(value, str) else tuple(value)


def _translate(glob: str) -> str:
    """A glob as a regular expression that matches a name from its start to the end of a segment."""
    parts: list[str] = []
    for segment in glob.split("."):
        if segment == "**":
            parts.append(r"(?:[^.]+\.)*")
        else:
            text = "".join({"*": "[^.]*", "?": "[^.]"}.get(c, re.escape(c)) for c in segment)
            parts.append(text + r"\.")
    return (
        "^" + "".join(parts).removesuffix(r"\.") + r"(?=\.|$)" if glob.split(".")[-1] != "**" else "^" + "".join(parts)
    )


def _compile(pattern: str, shown: str = "") -> re.Pattern[str]:
    try:
        return re.compile(pattern)
    except re.error as error:
        raise ValueError(f"Rule: regex must be a regular expression, got {shown!r} ({error})") from error


def _accepts(wanted: Any, value: Any) -> bool:
    return wanted is None or (bool(wanted(value)) if callable(wanted) else wanted == value)


def _accepts_shape(wanted: Any, shape: tuple[int, ...]) -> bool:
    if callable(wanted):
        return bool(wanted(shape))
    sizes = tuple(wanted)
    return len(sizes) == len(shape) and all(a is None or a == b for a, b in zip(sizes, shape, strict=True))


def _short(value: Any) -> str:
    if callable(value):
        return getattr(value, "__name__", "...")
    text = value if isinstance(value, str) else "|".join(map(str, value)) if isinstance(value, tuple | list) else value
    text = str(text)
    return text if len(text) <= 30 else text[:27] + "..."
