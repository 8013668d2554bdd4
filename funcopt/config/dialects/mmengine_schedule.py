"""MMEngine's parameter schedulers in closed form.

Each scheduler has a window from `begin` to `end` and moves the value that it finds there: to
`eta_min + (value - eta_min) * factor(steps since begin)`; two kinds set a value of their own instead. After its window
the last value stays. With `total = end - begin`, which in MMEngine is reached one step early by most kinds:

    ConstantLR       factor until step total - 1, then 1
    LinearLR         start_factor to end_factor over total - 1 steps
    StepLR, MultiStepLR, ExponentialLR     torch's
    CosineAnnealingLR     torch's, over T_max (total) steps
    PolyLR           (1 - step / (total - 1))**power
    CosineRestartLR  value = eta_min + (base * weight - eta_min) * cosine, in each of the periods
    OneCycleLR       torch's, with eta_max for the maximum

Schedulers that overlap act on one value in turn, each by what its factor has changed since its own step before. Where
all of them multiply, that is the product of their factors; a floor makes it a recursion, which is run once for a table.
"""

import dataclasses
import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from funcopt import _checks
from funcopt._names import nearest
from funcopt.config._read import check_called, check_given, check_keys, name_of_type
from funcopt.config.dialects.mmengine_plateau import PLATEAU, is_plateau
from funcopt.kinds import Schedule
from funcopt.schedules import (
    constant_lr,
    cosine_annealing_lr,
    exponential_lr,
    multi_step_lr,
    one_cycle_lr,
    polynomial_lr,
    ramp,
    step_lr,
)
from funcopt.schedules._formula import as_steps, namespace, to_value

_INFINITE = int(1e9)
_COMMON = ("type", "begin", "end", "by_epoch", "convert_to_iter_based", "last_step", "verbose", "param_name")
_EPOCH_KEYS = ("begin", "end", "T_max", "milestones", "step_size", "periods", "total_steps")
_WINDOW_KEYS = ("begin", "end", "by_epoch", "convert_to_iter_based")


@dataclasses.dataclass(frozen=True)
class Piece:
    """One scheduler, in updates."""

    name: str
    begin: int
    end: int
    unit: int  # updates per step of the scheduler
    floor: float
    move: Schedule  # the factor, or the value itself, by steps since begin
    sets: bool  # whether `move` is the value itself
    starts: tuple[int, ...] | None  # of a piece that sets: the steps that do not go on from the value before; None: all
    full: float  # what a factor of 1 stands for: the value before any scheduler
    by_epoch: bool

    @property
    def multiplies(self) -> bool:
        return not self.sets and self.floor == 0.0

    def apply(self, xp: Any, value: Any, update: Any) -> Any:
        step = (xp.clip(update, self.begin, self.end - 1) - self.begin) // self.unit
        moved = self.move(step) if self.sets else self.floor + (value - self.floor) * self.move(step)
        return xp.where(update >= self.begin, moved, value)

    def affine(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The updates at which the piece acts, and what it does then: `value = scale * value + shift`."""
        updates = np.arange(self.begin, self.end, self.unit)
        moves = self.move(np.arange(len(updates)))
        full = self.full - self.floor or 1.0
        factors = (moves - self.floor) / full if self.sets else moves
        before = np.concatenate([[1.0], factors[:-1]])
        anew = (
            np.isin(np.arange(len(moves)), self.starts) if self.starts is not None else np.full(len(moves), self.sets)
        )
        # A factor that comes back from 0 starts from the full value again, as in MMEngine's cosine.
        scale = np.divide(factors, before, out=np.ones_like(factors), where=before != 0.0)
        shift = np.where(before != 0.0, self.floor * (1.0 - scale), full * factors)
        return updates, np.where(anew, 0.0, scale), np.where(anew, moves, shift)


@dataclasses.dataclass(frozen=True)
class Table:
    """Schedulers that overlap, as the values from each update at which one of them acts."""

    begin: int
    updates: np.ndarray
    values: np.ndarray

    def apply(self, xp: Any, value: Any, update: Any) -> Any:
        place = xp.searchsorted(xp.asarray(self.updates), xp.asarray(update), side="right") - 1
        return xp.where(update >= self.begin, xp.asarray(self.values)[xp.maximum(place, 0)], value)


def matches(cfg: Any) -> bool:
    """Whether it is a `param_scheduler` list, or one scheduler of such a list."""
    if isinstance(cfg, list):
        return True
    return isinstance(cfg, Mapping) and "type" in cfg and (is_plateau(cfg) or any(key in cfg for key in _WINDOW_KEYS))


def read_param_schedulers(
    configs: Sequence[Mapping[str, Any]],
    base: Mapping[str, float],
    *,
    steps_per_epoch: int = 1,
    max_epochs: int | None = None,
) -> dict[str, Schedule]:
    """The schedules of a `param_scheduler` list.

    Args:
        configs: the list.
        base: hyperparameters' values before any scheduler.
        steps_per_epoch: updates per epoch.
        max_epochs: the end of schedulers that have none.

    Returns:
        One schedule for each hyperparameter that the list moves. All in closed form: nothing is remembered, and groups
        differ by their multipliers, where MMEngine gives each the same `eta_min`.

    Raises:
        ValueError: for an unknown scheduler or key, a hyperparameter without a base value, or schedulers that overlap
            without an end.
    """
    pieces: dict[str, list[Piece]] = {}
    for config in configs:
        kind, name = _kind_of(config)
        if name not in base:
            _checks.fail("param_scheduler", f"the value of {name}", f"given for {config['type']}", None)
        pieces.setdefault(name, []).append(_read(config, kind, base[name], steps_per_epoch, max_epochs))
    return {name: _combine(base[name], own) for name, own in pieces.items()}


def _kind_of(config: Mapping[str, Any]) -> tuple[str, str]:
    """The kind of scheduler, and the hyperparameter that it moves."""
    check_given("param_scheduler", config, "type")
    name = str(name_of_type(config["type"]))
    for suffix, moved in (("ParamScheduler", config.get("param_name")), ("Momentum", "momentum"), ("LR", "lr")):
        kind = name.removesuffix(suffix)
        if kind != name and kind in _KINDS:
            if moved is None:
                _checks.fail(name, "param_name", "given", None)
            return kind, moved
    known = [kind + suffix for kind in _KINDS for suffix in ("LR", "Momentum", "ParamScheduler")]
    if name == PLATEAU:
        fix = "it follows a metric and is no function of the step: use build_optimizer in JAX, SCHEDULES.build in torch"
    elif name in ("ReduceOnPlateauMomentum", "ReduceOnPlateauParamScheduler"):
        fix = f"what follows a metric is the learning rate, by {PLATEAU}"
    else:
        fix = nearest(name, [*known, PLATEAU])
    raise ValueError(f"param_scheduler: type must be one of MMEngine's schedulers, got {name!r}{fix and '; ' + fix}")


def _read(config: Mapping[str, Any], kind: str, base: float, steps_per_epoch: int, max_epochs: int | None) -> Piece:
    name, by_epoch = str(name_of_type(config["type"])), config.get("by_epoch", True)
    make, own_keys = _KINDS[kind]
    check_keys(name, config, (*_COMMON, *own_keys))
    cfg = dict(config)
    if max_epochs is not None:
        cfg.setdefault("end", max_epochs if by_epoch else max_epochs * steps_per_epoch)
    counts_epochs = by_epoch and not cfg.get("convert_to_iter_based")
    if by_epoch and not counts_epochs:
        cfg |= {key: _in_updates(key, cfg[key], steps_per_epoch) for key in _EPOCH_KEYS if cfg.get(key) is not None}
    elif cfg.get("convert_to_iter_based"):
        _checks.fail(name, "by_epoch", "True to be converted", by_epoch)
    unit = steps_per_epoch if counts_epochs else 1
    begin, end = cfg.get("begin", 0), cfg.get("end", _INFINITE)
    if end <= begin:
        _checks.fail(name, "end", f"> begin ({begin})", end)
    own = {key: cfg[key] for key in own_keys if key in cfg}
    if kind in ("CosineAnnealing", "CosineRestart"):
        ratio = own.pop("eta_min_ratio", None)
        own["eta_min"] = base * ratio if ratio is not None else own.get("eta_min") or 0.0
    floor = own["eta_min"] if kind == "CosineRestart" else own.pop("eta_min", 0.0)
    starts = (0, *itertools.accumulate(own.get("periods", ())[:-1])) if kind == "CosineRestart" else None
    sets = kind in ("CosineRestart", "OneCycle")
    check_called(name, make, {"base": base, "total": end - begin, **own})
    move = make(base if sets else 1.0, end - begin, **own)
    last = int(min(end * unit, _INFINITE))
    return Piece(name, int(begin * unit), last, unit, floor, move, sets, starts, base, counts_epochs)


def _in_updates(key: str, value: Any, steps_per_epoch: int) -> Any:
    if isinstance(value, list | tuple):
        return [item * steps_per_epoch for item in value]
    product = value * steps_per_epoch
    return int(product) if key in ("begin", "end") else product


def _combine(base: float, pieces: Sequence[Piece]) -> Schedule:
    parts: list[Piece | Table] = []
    for run in _overlapping(pieces):
        together = len(run) > 1 and not all(piece.multiplies for piece in run)
        parts += [_tabulate(run, parts, base)] if together else run
    return lambda step: to_value(_evaluate(parts, base, step), step)


def _evaluate(parts: Iterable[Piece | Table], base: float, step: Any) -> Any:
    steps, xp = as_steps(step), namespace(step)
    value: Any = base
    for part in parts:
        value = part.apply(xp, value, steps)
    return value


def _overlapping(pieces: Sequence[Piece]) -> list[list[Piece]]:
    """Runs of pieces that overlap, by their begin; in a run the pieces are in the order of the list."""
    runs: list[list[int]] = []
    for i in sorted(range(len(pieces)), key=lambda i: pieces[i].begin):
        if runs and pieces[i].begin < max(pieces[j].end for j in runs[-1]):
            runs[-1].append(i)
        else:
            runs.append([i])
    return [[pieces[i] for i in sorted(run)] for run in runs]


def _tabulate(run: Sequence[Piece], parts: Sequence[Piece | Table], base: float) -> Table:
    """Runs the recursion: in each update, as MMEngine does, first what counts updates and then what counts epochs."""
    for piece in run:
        if piece.end >= _INFINITE:
            _checks.fail(
                piece.name,
                "end",
                "given for schedulers that overlap, or max_epochs",
                None,
                "begin them after each other",
            )
    events = [
        (int(update), piece.by_epoch and update > 0, order, scale, shift)
        for order, piece in enumerate(run)
        for update, scale, shift in zip(*piece.affine(), strict=True)
    ]
    begin = min(piece.begin for piece in run)
    value = float(_evaluate(parts, base, begin))
    values: dict[int, float] = {}
    for update, _, _, scale, shift in sorted(events):
        values[update] = value = scale * value + shift
    return Table(begin, np.array([*values]), np.array([*values.values()]))


def _restarts(
    base: float, total: int, periods: Sequence[int], restart_weights: Sequence[float] = (1,), eta_min: float = 0.0
) -> Schedule:
    del total
    if len(periods) != len(restart_weights):
        _checks.fail("CosineRestartLR", "restart_weights", f"{len(periods)} weights, one per period", restart_weights)
    starts = [0, *itertools.accumulate(periods)]
    cosines = [
        cosine_annealing_lr(base * w, period, eta_min) for w, period in zip(restart_weights, periods, strict=True)
    ]

    def schedule(step: Any) -> Any:
        steps, xp = as_steps(step), namespace(step)
        value: Any = 0.0
        for start, period, cosine in zip(starts, periods, cosines, strict=False):
            value = xp.where(steps >= start, cosine(xp.clip(steps - start, 0, period - 1)), value)
        return to_value(value, step)

    return schedule


def _linear(base: float, total: int, start_factor: float = 1.0 / 3, end_factor: float = 1.0) -> Schedule:
    return ramp(base * start_factor, base * (end_factor if total > 1 else start_factor), total - 1)


def _one_cycle(
    base: float, total: int, eta_max: float = 0.0, total_steps: int | None = None, **options: Any
) -> Schedule:
    del base
    return one_cycle_lr(eta_max, total_steps=total_steps or total, cycle_momentum=False, **options)


_KINDS: dict[str, tuple[Callable[..., Schedule], tuple[str, ...]]] = {
    "Constant": (lambda base, total, factor=1.0 / 3: constant_lr(base, factor, total - 1), ("factor",)),
    "Linear": (_linear, ("start_factor", "end_factor")),
    "Step": (lambda base, total, step_size, gamma=0.1: step_lr(base, step_size, gamma), ("step_size", "gamma")),
    "MultiStep": (
        lambda base, total, milestones, gamma=0.1: multi_step_lr(base, milestones, gamma),
        ("milestones", "gamma"),
    ),
    "Exponential": (lambda base, total, gamma: exponential_lr(base, gamma), ("gamma",)),
    "CosineAnnealing": (
        lambda base, total, T_max=None: cosine_annealing_lr(base, T_max or total),
        ("T_max", "eta_min", "eta_min_ratio"),
    ),
    "Poly": (lambda base, total, power=1.0: polynomial_lr(base, max(total - 1, 1), power), ("eta_min", "power")),
    "CosineRestart": (_restarts, ("periods", "restart_weights", "eta_min", "eta_min_ratio")),
    "OneCycle": (
        _one_cycle,
        ("eta_max", "total_steps", "pct_start", "anneal_strategy", "div_factor", "final_div_factor", "three_phase"),
    ),
}
