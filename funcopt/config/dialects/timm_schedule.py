"""timm's `create_scheduler_v2` and its argparse names, in closed form.

    warm-up     warmup_lr + t * (base - warmup_lr) / warmup_t                     for t < warmup_t
    t           t - warmup_t with warmup_prefix (always for wsd and rsqrt), else t
    cosine      cycles from base * cycle_decay**i down to min_lr
    tanh, poly  the same by a tanh from -7 to 3, and by (1 - x)**decay_rate
    step        base * decay_rate**(t // decay_t)
    multistep   a milestone m takes effect at t = m - 1, timm's own convention
    wsd, rsqrt  base, or base / sqrt(1 + t / timescale), then down to min_lr over the last decay_t

At t = 0 without warm-up the value is the base, whatever the formula says: timm's schedulers act on what comes after.
t counts complete epochs; without `step_on_epochs` updates, and all lengths are multiplied by the updates per epoch.
"""

from collections.abc import Mapping
from typing import Any

from funcopt import _checks
from funcopt.config._read import check_keys
from funcopt.kinds import Schedule
from funcopt.schedules import by_epoch, cycles
from funcopt.schedules._formula import as_schedule, count_reached, formula, power

_DEFAULTS: dict[str, Any] = {
    "num_epochs": 300,
    "decay_epochs": None,
    "decay_milestones": (90, 180, 270),
    "decay_rate": 0.1,
    "min_lr": 0.0,
    "warmup_lr": 1e-5,
    "warmup_epochs": 0,
    "warmup_prefix": False,
    "cycle_mul": 1.0,
    "cycle_decay": 0.1,
    "cycle_limit": 1,
    "k_decay": 1.0,
    "decay_fn": None,
    "stable_timescale": None,
    "step_on_epochs": True,
    "updates_per_epoch": 0,
}
# What its training script calls otherwise.
_ARGPARSE = {
    "epochs": "num_epochs",
    "lr_cycle_mul": "cycle_mul",
    "lr_cycle_decay": "cycle_decay",
    "lr_cycle_limit": "cycle_limit",
    "lr_k_decay": "k_decay",
    "lr_decay_fn": "decay_fn",
    "lr_stable_timescale": "stable_timescale",
}
_NOISE = ("noise", "lr_noise")
# They change no value: the length of the run, what concerns a metric, and how much noise there would be.
_UNUSED = ("cooldown_epochs", "patience_epochs", "plateau_mode", *(f"{n}_{x}" for n in _NOISE for x in ("pct", "std")))
_UNUSED += ("noise_seed",)
KEYS = ("sched", *_DEFAULTS, *_ARGPARSE, "sched_on_updates", *_NOISE, *_UNUSED)
"""All that the schedule may be told, by either kind of name."""
_LENGTHS = ("num_epochs", "warmup_epochs", "decay_epochs", "stable_timescale")
_STABLE = ("wsd", "rsqrt")
_KINDS = ("cosine", "tanh", "step", "constant", "multistep", "poly", *_STABLE, "none")
_DECAYS = {
    "linear": lambda xp, x: 1.0 - x,
    "1-sqrt": lambda xp, x: 1.0 - xp.sqrt(x),
    "cosine": lambda xp, x: 0.5 * (1.0 + xp.cos(xp.pi * x)),
    "power": lambda xp, x: 1.0 - xp.sqrt(x),
    "exp": lambda xp, x: (power(xp, 0.1, x) - 0.1) / 0.9,
}


def matches(cfg: Any) -> bool:
    return isinstance(cfg, Mapping) and "sched" in cfg


def read_schedule(cfg: Mapping[str, Any], base_lr: float, steps_per_epoch: int) -> Schedule:
    """The schedule of `create_scheduler_v2(optimizer, **cfg)`, by the update.

    Args:
        cfg: `sched` and its other arguments, by the names of the function or of timm's training script.
        base_lr: the learning rate.
        steps_per_epoch: updates per epoch, where the config has no `updates_per_epoch`.

    Raises:
        ValueError: for an unknown key or value, or noise.
    """
    check_keys("timm", cfg, KEYS)
    given = {_ARGPARSE.get(key, key): value for key, value in cfg.items() if value is not None}
    if "sched_on_updates" in given:
        given["step_on_epochs"] = not given.pop("sched_on_updates")
    for name in _NOISE:
        if given.pop(name, None) is not None:
            _checks.fail(
                "timm", name, "None", cfg[name], "its noise is torch's random numbers, no function of the step"
            )
    kind = given["sched"]
    if kind not in _KINDS:
        fix = "it follows a metric: see funcopt.reduce_lr_on_plateau" if kind == "plateau" else ""
        _checks.fail("timm", "sched", f"one of {', '.join(_KINDS)}", kind, fix)
    own = _DEFAULTS | given
    if own["decay_epochs"] is None:
        own["decay_epochs"] = 0.2 if kind in _STABLE else 90
    share = own["decay_epochs"] if kind in _STABLE and 0 < own["decay_epochs"] < 1 else None
    per_epoch = own["updates_per_epoch"] or steps_per_epoch
    if not own["step_on_epochs"]:
        own |= {name: own[name] * per_epoch for name in _LENGTHS if own[name] is not None}
        own["decay_milestones"] = [milestone * per_epoch for milestone in own["decay_milestones"]]
    if share is not None:
        own["decay_epochs"] = share * _stable_length(own)
    schedule = _with_warmup(kind, own, base_lr) if kind != "none" else as_schedule("timm", "lr", base_lr)
    return by_epoch(schedule, per_epoch) if own["step_on_epochs"] else schedule


def _stable_length(own: Mapping[str, Any]) -> float:
    return own["num_epochs"] - (0 if own["warmup_prefix"] else own["warmup_epochs"])


def _with_warmup(kind: str, own: Mapping[str, Any], base: float) -> Schedule:
    first, start = own["warmup_epochs"], own["warmup_lr"]
    prefix = own["warmup_prefix"] or kind in _STABLE
    main = _main(kind, own, base)
    # Its tanh, which begins a little below the base value, is met where it is.
    top = float(main(first)) if kind == "tanh" and not prefix else base

    def body(xp: Any, t: Any) -> Any:
        rise = start + t * ((top - start) / (first or 1))
        then = main(xp.maximum(t - first, 0) if prefix else t)
        return xp.where(t < first, rise, xp.where(t == 0, base, then))

    return formula(body)


def _main(kind: str, own: Mapping[str, Any], base: float) -> Schedule:
    if kind in ("cosine", "tanh", "poly"):
        return _cycled(kind, own, base)
    if kind in _STABLE:
        return _stable(kind, own, base)
    rate, interval, milestones = own["decay_rate"], own["decay_epochs"], sorted(own["decay_milestones"])
    if kind == "step":
        return formula(lambda xp, t: base * power(xp, rate, t // interval))
    if kind == "multistep":
        return formula(lambda xp, t: base * power(xp, rate, count_reached(xp, t + 1, milestones)))
    return as_schedule("timm", "lr", base)


def _cycled(kind: str, own: Mapping[str, Any], base: float) -> Schedule:
    options = {name: own[name] for name in ("cycle_mul", "cycle_decay", "cycle_limit")}
    exponent = own["decay_rate"]
    shape: Any = "cosine"
    if kind == "poly":
        shape = lambda x: 1.0 - (1.0 - x) ** exponent  # noqa: E731
    if kind == "tanh":
        # 0.5 * (1 + tanh(y)) as the logistic function, which is made of operators only
        shape = lambda x: 1.0 / (1.0 + 2.718281828459045 ** (-2.0 * (-7.0 * (1.0 - x) + 3.0 * x)))  # noqa: E731
    else:
        options["k_decay"] = own["k_decay"]
    return cycles(base, own["num_epochs"], own["min_lr"], shape=shape, **options)


def _stable(kind: str, own: Mapping[str, Any], base: float) -> Schedule:
    total, length, floor = _stable_length(own), round(own["decay_epochs"]), own["min_lr"]
    timescale = own["warmup_epochs"] if own["stable_timescale"] is None else own["stable_timescale"]
    name = own["decay_fn"] or ("linear" if kind == "rsqrt" else "1-sqrt")
    if not 0 < length <= total:
        _checks.fail(kind, "decay_epochs", f"in (0, {total}], the length without the warm-up", own["decay_epochs"])
    if kind == "rsqrt" and timescale <= 0:
        _checks.fail(kind, "stable_timescale", "> 0, or warmup_epochs", timescale)
    if name not in _DECAYS:
        _checks.fail(kind, "decay_fn", f"one of {', '.join(_DECAYS)}", name)

    def body(xp: Any, t: Any) -> Any:
        value = base * (1.0 + t / timescale) ** -0.5 if kind == "rsqrt" else base
        value = xp.maximum(value, floor)
        share = xp.clip((t - (total - length)) / length, 0.0, 1.0)
        return floor + (value - floor) * _DECAYS[name](xp, share)

    return formula(body)
