"""The schedules of Hugging Face's `get_scheduler`, in closed form.

    warm-up               t / warmup                                       for t < warmup, but for "constant"
    x                     (t - warmup) / (total - warmup)
    linear                1 - x
    cosine                (1 + cos(2 pi num_cycles x)) / 2
    cosine_with_restarts  (1 + cos(pi (num_cycles x mod 1))) / 2           0 from x = 1 on
    polynomial            from 1 to lr_end / lr by (1 - x)**power
    inverse_sqrt          1 / sqrt((t - warmup + timescale) / timescale)
    cosine_with_min_lr    as cosine, from 1 to min_lr_rate
    cosine_warmup_with_min_lr   the same one step ahead, with a warm-up from warmup_lr_rate
    warmup_stable_decay   up, 1, and down to min_lr_ratio

Each is a factor of the learning rate; t counts updates.
"""

import inspect
from collections.abc import Callable, Mapping
from typing import Any

from funcopt import _checks
from funcopt._names import nearest
from funcopt.config._read import check_called, check_keys
from funcopt.kinds import Schedule
from funcopt.schedules._formula import formula


class _Run:
    """A step of a run: how far it is, and the parts that several schedules have."""

    def __init__(self, xp: Any, step: Any, base: float, warmup: int, total: int) -> None:
        self.xp, self.step, self.base, self.warmup, self.total = xp, step, base, warmup, total
        self.after = step - warmup
        self.share = self.after / max(1, total - warmup)

    def warmed_up(self, factor: Any) -> Any:
        return self.xp.where(self.step < self.warmup, self.step / max(1, self.warmup), factor)

    def cosine(self, num_cycles: float, share: Any, least: float = 0.0) -> Any:
        factor = 0.5 * (1.0 + self.xp.cos(self.xp.pi * num_cycles * 2.0 * share))
        return self.xp.maximum(0.0, factor * (1 - least) + least)


def _constant(run: _Run) -> Any:
    return run.xp.ones_like(run.share)


def _constant_with_warmup(run: _Run) -> Any:
    return run.warmed_up(1.0)


def _linear(run: _Run) -> Any:
    return run.warmed_up(run.xp.maximum(0.0, (run.total - run.step) / max(1, run.total - run.warmup)))


def _cosine(run: _Run, *, num_cycles: float = 0.5) -> Any:
    return run.warmed_up(run.cosine(num_cycles, run.share))


def _cosine_with_restarts(run: _Run, *, num_cycles: int = 1) -> Any:
    factor = 0.5 * (1.0 + run.xp.cos(run.xp.pi * ((num_cycles * run.share) % 1.0)))
    return run.warmed_up(run.xp.where(run.share >= 1.0, 0.0, factor))


def _polynomial(run: _Run, *, lr_end: float = 1e-7, power: float = 1.0) -> Any:
    if not lr_end < run.base:
        _checks.fail("polynomial", "lr_end", f"< the learning rate {run.base}", lr_end)
    left = run.xp.clip(1 - run.after / (run.total - run.warmup or 1), 0.0, None)
    return run.warmed_up(((run.base - lr_end) * left**power + lr_end) / run.base)


def _inverse_sqrt(run: _Run, *, timescale: int | None = None) -> Any:
    scale = timescale or run.warmup or 10_000
    return run.warmed_up(1.0 / run.xp.sqrt(run.xp.maximum(run.after + scale, 1) / scale))


def _least(run: _Run, min_lr: float | None, min_lr_rate: float | None) -> float:
    if (min_lr is None) is (min_lr_rate is None):
        _checks.fail("lr_scheduler_kwargs", "one of min_lr and min_lr_rate", "given", (min_lr, min_lr_rate))
    return min_lr / run.base if min_lr_rate is None else min_lr_rate  # pyright: ignore[reportOptionalOperand]


def _cosine_with_min_lr(
    run: _Run, *, num_cycles: float = 0.5, min_lr: float | None = None, min_lr_rate: float | None = None
) -> Any:
    return run.warmed_up(run.cosine(num_cycles, run.share, _least(run, min_lr, min_lr_rate)))


def _cosine_warmup_with_min_lr(
    run: _Run,
    *,
    num_cycles: float = 0.5,
    min_lr: float | None = None,
    min_lr_rate: float | None = None,
    warmup_lr_rate: float | None = None,
) -> Any:
    share = (run.after + 1.0) / max(1.0, run.total - run.warmup)
    if warmup_lr_rate is None:
        rise = (run.step + 1.0) / max(1.0, run.warmup)
    else:
        rise = warmup_lr_rate + (1.0 - warmup_lr_rate) * run.step / max(1, run.warmup - 1)
    fall = run.cosine(num_cycles, share, _least(run, min_lr, min_lr_rate))
    return run.xp.where(run.step < run.warmup, rise, fall)


def _warmup_stable_decay(
    run: _Run,
    *,
    num_decay_steps: int,
    num_stable_steps: int | None = None,
    warmup_type: str = "linear",
    decay_type: str = "cosine",
    min_lr_ratio: float = 0.0,
    num_cycles: float = 0.5,
) -> Any:
    xp = run.xp
    for argument, value in (("warmup_type", warmup_type), ("decay_type", decay_type)):
        if value not in ("linear", "cosine", "1-sqrt"):
            _checks.fail("warmup_stable_decay", argument, "'linear', 'cosine' or '1-sqrt'", value)
    stable = run.total - run.warmup - num_decay_steps if num_stable_steps is None else num_stable_steps
    up = xp.clip(run.step / max(1, run.warmup), 0.0, 1.0)
    down = xp.clip((run.after - stable) / max(1, num_decay_steps), 0.0, 1.0)
    rises = {
        "linear": lambda: up,
        "cosine": lambda: 0.5 * (1.0 - xp.cos(xp.pi * up)),
        "1-sqrt": lambda: 1.0 - xp.sqrt(1.0 - up),
    }
    falls = {
        "linear": lambda: 1.0 - down,
        "cosine": lambda: 0.5 * (1.0 + xp.cos(xp.pi * num_cycles * 2.0 * down)),
        "1-sqrt": lambda: 1.0 - xp.sqrt(down),
    }

    def above(share: Any) -> Any:
        return xp.maximum(0.0, share * (1.0 - min_lr_ratio) + min_lr_ratio)

    main = xp.where(run.after < stable, 1.0, above(falls[decay_type]()))
    main = xp.where(run.after < stable + num_decay_steps, main, min_lr_ratio)
    return xp.where(run.step < run.warmup, above(rises[warmup_type]()), main)


_KINDS: dict[str, Callable[..., Any]] = {
    "linear": _linear,
    "cosine": _cosine,
    "cosine_with_restarts": _cosine_with_restarts,
    "polynomial": _polynomial,
    "constant": _constant,
    "constant_with_warmup": _constant_with_warmup,
    "inverse_sqrt": _inverse_sqrt,
    "cosine_with_min_lr": _cosine_with_min_lr,
    "cosine_warmup_with_min_lr": _cosine_warmup_with_min_lr,
    "warmup_stable_decay": _warmup_stable_decay,
}
_BY_METRIC = ("reduce_lr_on_plateau", "greedy")


def build(kind: str, base: float, warmup: int, total: int, options: Mapping[str, Any]) -> Schedule:
    """A schedule by its name.

    Args:
        kind: as `lr_scheduler_type` has it.
        base: the learning rate.
        warmup: updates of the warm-up.
        total: updates in all.
        options: `lr_scheduler_kwargs`.

    Raises:
        ValueError: for an unknown name or option, and for what follows a metric.
    """
    if kind not in _KINDS:
        fix = "it follows a metric: see funcopt.reduce_lr_on_plateau" if kind in _BY_METRIC else nearest(kind, _KINDS)
        _checks.fail("TrainingArguments", "lr_scheduler_type", f"one of {', '.join(_KINDS)}", kind, fix)
    function = _KINDS[kind]
    known = [name for name, p in inspect.signature(function).parameters.items() if p.kind is p.KEYWORD_ONLY]
    check_keys(kind, options, known)
    check_called(kind, function, {"run": None, **options})
    schedule = formula(lambda xp, step: base * function(_Run(xp, step, base, warmup, total), **options))
    schedule(0)  # its own checks, where the user called
    return schedule
