"""Where two optimizers part: the first step, state key and parameter, and the likely reason, found by trying."""

import contextlib
import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from funcopt import _checks
from funcopt._names import align
from funcopt.kinds import integer
from funcopt.tools._trials import Contender, Start, Trial, contender

# Rounding of one step is 1e-16, and 6e-8 in float32; what differs in the formula is far above these.
_TOLERANCE = {"float64": 1e-9, "float32": 1e-4}
_AVERAGED = 10_000  # steps under one gradient, after which decay rates up to 0.999 have forgotten the start
_SMALL, _LARGE = 1e-6, 1e6  # factors that take gradients out of the reach of a clip, and of an eps
_PROBED = 3  # steps of a probe
_UNIFORM = 1e-6  # within which ratios of updates are one number: they are differences of parameters, which are rounded
_KINDS = ("hyperparameter", "state", "parameter")
_IMPLEMENTATION = ("foreach", "fused", "capturable", "differentiable")
_STEPS = integer(_checks.AT_LEAST_ONE)

Gradients = Mapping[str, np.ndarray | None]


class Difference(NamedTuple):
    """Where two runs part."""

    step: int  # from 1
    kind: str  # "hyperparameter", "state" or "parameter"
    param: str  # "" for a hyperparameter
    key: str  # state key or name of a hyperparameter, "" for a parameter
    a: float  # the values, of an array the one element where they are furthest apart
    b: float
    relative: float  # the largest difference, by the largest value of the array


@dataclasses.dataclass(frozen=True)
class Comparison:
    """What `compare` found; printing it shows the table and the reasons.

    Attributes:
        steps: how many were run.
        difference: the largest one between parameters, by the largest value of the array.
        differences: what differs at the first step at which anything does, of hyperparameters those in use; then the
            first difference between parameters.
        reasons: what makes the difference vanish, a sentence each; none if nothing does that was tried.
    """

    steps: int
    difference: float
    differences: tuple[Difference, ...]
    reasons: tuple[str, ...]

    @property
    def equal(self) -> bool:
        """Whether the parameters never part."""
        return not any(found.kind == "parameter" for found in self.differences)

    def __bool__(self) -> bool:
        return self.equal

    def __str__(self) -> str:
        verdict = "a and b are equal" if self.equal else "a and b part"
        lines = [f"{verdict}: {self.difference:.1e} apart at most in {self.steps} steps"]
        if self.differences:
            cells = [
                (str(d.step), d.kind, d.param, d.key, f"{d.a:.6g}", f"{d.b:.6g}", f"{d.relative:.1e}")
                for d in self.differences
            ]
            lines += align([("step", "what", "parameter", "key", "a", "b", "difference"), *cells])
        return "\n".join([*lines, *(f"likely: {reason}" for reason in self.reasons)])


def compare(
    a: Any, b: Any, params: Any, grads: Any = 10, *, dtype: str = "float64", rtol: float | None = None
) -> Comparison:
    """Runs two optimizers on the same gradients and says where they part, and, if trying can tell, why.

    Args:
        a: a transformation, funcopt's or optax's; a function without required arguments that returns one, such as
            `functools.partial(funcopt.adamw, lr=0.1)`, whose options can then be tried; a torch optimizer, which is
            copied with its state; or a function of a list of parameters that returns a torch optimizer, or a tuple of
            one and its schedulers. Nothing that is given is changed.
        b: the other one.
        params: where both start: a pytree of arrays, a torch module or tensors.
        grads: gradients of each step, like the parameters or as a dict by name, `None` for one that is missing; or a
            number of steps with random gradients.
        dtype: "float64" or "float32", in which both run.
        rtol: what counts as a difference, by the largest value of an array; by default 1e-9, in float32 1e-4.

    Returns:
        The comparison: true if the parameters never part.

    Raises:
        TypeError: if `a` or `b` is not an optimizer and makes none.
        ValueError: for gradients that do not fit the parameters.

    Example:
        >>> import funcopt, jax.numpy as jnp, optax
        >>> params = {"w": jnp.ones((2, 3)), "b": jnp.ones(3)}
        >>> found = funcopt.compare(funcopt.adamw(0.1), optax.adamw(0.1), params)
        >>> found.equal, found.differences[0].step, found.reasons
        (False, 1, ('weight decay, its size or its place: from parameters of zero the first step is equal',))
    """
    if dtype not in _TOLERANCE:
        _checks.fail("compare", "dtype", "float64 or float32", dtype)
    rtol = _TOLERANCE[dtype] if rtol is None else rtol
    with jax.enable_x64(dtype == "float64"):
        pair = contender("compare", "a", a), contender("compare", "b", b)
        start = Start(params, dtype)
        given = _gradients(grads, start)
        differences, largest = _first_differences(pair[0].start(start, {}), pair[1].start(start, {}), given, rtol)
        parted = any(found.kind == "parameter" for found in differences)
        rates = any(found.kind == "hyperparameter" and found.key == "lr" for found in differences)
        reasons = tuple(_reasons(_Experiment(pair, start, given, rtol, rates))) if parted else ()
    return Comparison(len(given), largest, tuple(differences), reasons)


def _gradients(grads: Any, start: Start) -> list[Gradients]:
    if isinstance(grads, int | np.integer):
        _STEPS.check("compare", "grads", grads)
        return _random_gradients(start, int(grads))
    return [start.gradients(tree) for tree in grads]


def _random_gradients(start: Start, steps: int) -> list[Gradients]:
    generator = np.random.default_rng(0)
    return [
        {name: generator.normal(size=value.shape).astype(value.dtype) for name, value in start.values.items()}
        for _ in range(steps)
    ]


def _relative(a: np.ndarray, b: np.ndarray) -> tuple[float, int]:
    """The largest difference by the largest value, and the element where it is; infinite where one is not finite."""
    if a.size == 0:
        return 0.0, 0
    a, b = a.astype(np.float64), b.astype(np.float64)
    gap = np.where(a == b, 0.0, np.abs(a - b))  # equal infinities are
    gap = np.where(np.isnan(a) & np.isnan(b), 0.0, np.where(np.isnan(gap), np.inf, gap))
    scale = max(float(np.abs(x[np.isfinite(x)]).max(initial=0.0)) for x in (a, b))
    where = int(gap.argmax())
    return float(gap.flat[where] / scale) if scale else float(gap.flat[where]), where


def _differ(step: int, kind: str, param: str, key: str, a: Any, b: Any, rtol: float) -> Iterator[Difference]:
    a, b = np.asarray(a), np.asarray(b)
    if a.size != b.size:  # kept in another form
        return
    a, b = a.reshape(-1), b.reshape(-1)
    relative, where = _relative(a, b)
    if relative > rtol:
        yield Difference(step, kind, param, key, float(a[where]), float(b[where]), relative)


def _differences(step: int, a: Trial, b: Trial, rtol: float) -> Iterator[Difference]:
    """What differs after a step: hyperparameters, then state, then parameters."""
    values = a.hyperparams(), b.hyperparams()
    for name in values[0].keys() & values[1].keys():
        yield from _differ(step, "hyperparameter", "", name, values[0][name], values[1][name], 0.0)
    states = a.state(), b.state()
    for place in states[0]:
        if place in states[1]:
            yield from _differ(step, "state", *place, states[0][place], states[1][place], rtol)
    ours, theirs = a.params(), b.params()
    for name, value in ours.items():
        yield from _differ(step, "parameter", name, "", value, theirs[name], rtol)


def _first_differences(a: Trial, b: Trial, grads: Sequence[Gradients], rtol: float) -> tuple[list[Difference], float]:
    """What differs at first, up to the first parameter that does, and the largest difference between parameters."""
    first: dict[str, list[Difference]] = {}
    largest = 0.0
    for step, own in enumerate(grads, 1):
        a.step(own)
        b.step(own)
        if "parameter" not in first:
            found = [*_differences(step, a, b, rtol)]
            for kind in _KINDS:
                new = [difference for difference in found if difference.kind == kind]
                first.update({kind: new} if new and kind not in first else {})
        theirs = b.params()
        largest = max([largest, *(_relative(value, theirs[name])[0] for name, value in a.params().items())])
    return [difference for kind in _KINDS for difference in first.get(kind, [])], largest


class _Experiment(NamedTuple):
    """What was compared, to be run again with something else in it."""

    pair: tuple[Contender, Contender]
    start: Start
    grads: Sequence[Gradients]
    rtol: float
    rates_differ: bool  # whether learning rates were read, and differ

    def equal_with(self, a: Mapping[str, Any], b: Mapping[str, Any]) -> bool:
        """Whether the two are equal with other values of some options."""
        return self._equal(self.pair[0].start(self.start, a), self.pair[1].start(self.start, b), self.grads)

    def equal_under(self, params: float, grads: float, steps: int = _PROBED) -> bool:
        """Whether the two are equal with parameters and gradients multiplied."""
        start = self.start.replaced(lambda x: x * params)
        a, b = (one.start(start, {}) for one in self.pair)
        return self._equal(a, b, [_scaled(own, grads) for own in self.grads[:steps]])

    def _equal(self, a: Trial, b: Trial, grads: Sequence[Gradients]) -> bool:
        for own in grads:
            a.step(own)
            b.step(own)
            theirs = b.params()
            if any(_relative(value, theirs[name])[0] > self.rtol for name, value in a.params().items()):
                return False
        return True

    def ratios(self, grads: Sequence[Gradients]) -> list[float] | None:
        """The second's update by the first's at each step, from zero; None where elements have different ones."""
        start = self.start.replaced(np.zeros_like)
        trials = [one.start(start, {}) for one in self.pair]
        before = [np.concatenate([x.ravel() for x in start.values.values()])] * 2
        found = []
        for own in grads:
            for trial in trials:
                trial.step(own)
            after = [np.concatenate([x.ravel() for x in trial.params().values()]) for trial in trials]
            a, b = (new - old for new, old in zip(after, before, strict=True))
            before = after
            moved = np.abs(a) > 1e-3 * np.abs(a).max()
            ratio = b[moved] / a[moved]
            if not moved.any() or np.ptp(ratio) > _UNIFORM * np.abs(ratio).max():
                return None
            found.append(float(ratio.mean()))
        return found


def _scaled(grads: Gradients, factor: float) -> Gradients:
    return {name: None if grad is None else grad * factor for name, grad in grads.items()}


def _reasons(experiment: _Experiment) -> Iterator[str]:
    """What makes the difference vanish: options first, since they are the user's own words, then other inputs."""
    found = [*_options(experiment)] or [*_flags(experiment)]
    yield from found or _probes(experiment)


def _options(experiment: _Experiment) -> Iterator[str]:
    """Options that have different values: one that is enough, or else all of them together."""
    a, b = (one.options for one in experiment.pair)
    names = [name for name in a if name in b and _are_values(a[name], b[name]) and a[name] != b[name]]
    candidates: list[list[str]] = [[name] for name in names] + ([names] if len(names) > 1 else [])
    for chosen in candidates:
        changes = {name: a[name] for name in chosen}
        if _try(experiment, {}, changes):
            yield f"with {_words(changes)} in b, as in a, they are equal"
            return


def _flags(experiment: _Experiment) -> Iterator[str]:
    """Flags, turned over in one of them."""
    for place, label in enumerate("ab"):
        for name, value in experiment.pair[place].options.items():
            if isinstance(value, bool) and name not in _IMPLEMENTATION:
                changes = {name: not value}
                if _try(experiment, *((changes, {}) if place == 0 else ({}, changes))):
                    yield f"with {_words(changes)} in {label} they are equal"


def _are_values(*values: Any) -> bool:
    return all(isinstance(value, bool | int | float | tuple) for value in values)


def _words(changes: Mapping[str, Any]) -> str:
    return ", ".join(f"{name}={value!r}" for name, value in changes.items())


def _try(experiment: _Experiment, a: Mapping[str, Any], b: Mapping[str, Any]) -> bool:
    """Whether these changes make them equal; options that do not go together do not."""
    with contextlib.suppress(TypeError, ValueError, RuntimeError, KeyError):
        return experiment.equal_with(a, b)
    return False


def _probes(experiment: _Experiment) -> Iterator[str]:
    """What other inputs tell of two optimizers whose insides nobody knows."""
    ratios = experiment.ratios(experiment.grads)
    if experiment.equal_under(params=0.0, grads=1.0, steps=1) and not experiment.equal_under(1.0, 1.0, steps=1):
        order = experiment.equal_under(params=_SMALL, grads=_SMALL)
        yield (
            "the order of clipping and weight decay: from parameters of zero the first step is equal, and it is where "
            "gradients and parameters are too small to be clipped"
            if order
            else "weight decay, its size or its place: from parameters of zero the first step is equal"
        )
    elif ratios is not None and np.ptp(ratios) <= _UNIFORM * abs(ratios[0]) < abs(ratios[0] - 1):
        turned = abs(ratios[0] + 1) < _UNIFORM
        yield (
            "the sign: b's steps are a's in the other direction"
            if turned
            else f"the learning rate: each of b's steps is {ratios[0]:.6g} times a's"
        )
    elif ratios is not None and experiment.rates_differ:
        shown = ", ".join(f"{ratio:.4g}" for ratio in ratios[:5])
        yield f"the schedule of the learning rate: b's steps are {shown} ... times a's"
    elif experiment.equal_under(params=0.0, grads=_LARGE):
        yield "eps, its size or its place: with gradients a million times as large they are equal"
    elif experiment.equal_under(params=0.0, grads=_SMALL):
        yield "clipping: with gradients a millionth as large they are equal"
    elif _meet(experiment):
        yield (
            "bias correction, or what averages start from: under one gradient at all steps they part at the first and "
            "come together"
        )


def _meet(experiment: _Experiment) -> bool:
    """Whether the updates become equal under a gradient that stays the same, on one element."""
    start = Start({"x": np.zeros(1)}, next(iter(experiment.start.values.values())).dtype)
    grads: list[Gradients] = [{"x": np.ones(1, start.values["x"].dtype)}] * _AVERAGED
    with contextlib.suppress(TypeError, ValueError, RuntimeError):  # those that take matrices alone
        trials = [one.start(start, {}) for one in experiment.pair]
        gaps, before = [], [np.zeros(1)] * 2
        for own in grads:
            for trial in trials:
                trial.step(own)
            after = [trial.params()["x"] for trial in trials]
            a, b = (new - old for new, old in zip(after, before, strict=True))
            gaps.append(_relative(a, b)[0])
            before = after
        return max(gaps[:_PROBED]) > experiment.rtol and gaps[-1] < 1e-3 * max(gaps[:_PROBED])
    return False
