"""Wrappers, and algorithms that are made of one."""

from typing import Any

import specs
from harness import Row

import funcopt

SCHEDULE_FREE = {"warmup_steps": 4, "r": 0.5, "weight_lr_power": 1.5}
SPEC_SCHEDULE_FREE = {"warmup": 4, "r": 0.5, "power": 1.5}


def wrapped_sgd(p: Any, g: Any, s: Any, t: Any, lr: Any, wd: float = 0.0, b: float = 0.8) -> Any:
    """Schedule-Free around SGD with an L2 penalty, as the paper says it: x is stored, and the penalty is z's."""
    if t == 1:
        s.update(z=p.copy(), x=p.copy(), W=0.0, top=0.0)
    s["top"] = max(s["top"], lr)
    s["W"] += s["top"] ** 2
    s["z"] = s["z"] - lr * (g + wd * s["z"])
    s["x"] = s["x"] + s["top"] ** 2 / s["W"] * (s["z"] - s["x"])
    return b * s["x"] + (1 - b) * s["z"]


def cautious_lion(p: Any, g: Any, s: Any, t: Any, lr: Any, wd: float = 0.0, floor: float = 1e-3) -> Any:
    after = specs.lion(p * 0, g, s, t, 1.0)
    return p * (1 - lr * wd) - lr * specs.caution(-after, g, floor)


def cautious_adopt(p: Any, g: Any, s: Any, t: Any, lr: Any, wd: float = 0.0) -> Any:
    after = specs.adopt(p * 0, g, s, t, 1.0)
    return p if t == 1 else p * (1 - lr * wd) - lr * specs.caution(-after, g)


def cautious_laprop(p: Any, g: Any, s: Any, t: Any, lr: Any, wd: float = 0.0) -> Any:
    after = specs.laprop(p * 0, g, s, t, lr)
    return (p - specs.caution(-after, g)) * (1 - lr * wd)


def lookahead_adamax(p: Any, g: Any, s: Any, t: Any, lr: Any, alpha: float = 0.3, k: int = 4) -> Any:
    return specs.lookahead(lambda q: adamax(q, g, s, t, lr), p, s, t, alpha=alpha, k=k)


def adamax(p: Any, g: Any, s: Any, t: Any, lr: Any) -> Any:
    """torch's, with its defaults."""
    s["m"] = s.get("m", 0) + 0.1 * (g - s.get("m", 0))
    s["n"] = specs.np.maximum(0.999 * s.get("n", 0), abs(g) + 1e-8)
    return p - lr / (1 - 0.9**t) * s["m"] / s["n"]


def lookahead_late(p: Any, g: Any, s: Any, t: Any, lr: Any) -> Any:
    """timm's: the slow weights begin at the first synchronisation."""
    fast = adamax(p, g, s, t, lr)
    if t % 4:
        return fast
    s["slow"] = fast if t == 4 else s["slow"] + 0.3 * (fast - s["slow"])
    return s["slow"]


ROWS = [
    Row(
        "schedule_free_adamw",
        specs.sf_adamw,
        SCHEDULE_FREE,
        SPEC_SCHEDULE_FREE,
        wrong=(
            ("wd * p", 'wd * s["z"]'),
            ("+ eps) + wd", "+ 2 * eps) + wd"),
            ('max(s["lr_max"], lr)', "lr"),
            ("b1 * (1 - c) - 1", "b1 * c - 1"),
        ),
        lr=0.5,
    ),
    Row(
        "schedule_free_adamw",
        specs.sf_adamw,
        {"betas": (0.95, 0.9), "eps": 1e-3},
        {"b1": 0.95, "b2": 0.9, "eps": 1e-3},
        name="betas",
    ),
    Row(
        "schedule_free_sgd",
        specs.sf_sgd,
        {"momentum": 0.8, **SCHEDULE_FREE},
        {"b1": 0.8, **SPEC_SCHEDULE_FREE},
        lr=0.2,
        wrong=(("g + wd * p", "g"),),
    ),
    Row(
        "schedule_free_radam",
        specs.sf_radam,
        {"r": 0.5},
        {"r": 0.5},
        lr=0.5,
        wrong=(("rho > 4 else g", "rho > 5 else g"),),
    ),
    Row("schedule_free_radam", specs.sf_radam, {"silent_sgd_phase": False}, {"silent": False}, lr=0.2, name="loud"),
    Row(
        "schedule_free(sgd)",
        wrapped_sgd,
        {"beta": 0.8},
        factory=funcopt.schedule_free(funcopt.sgd),
        lr=0.2,
        wrong=(('wd * s["z"]', "wd * p"),),
    ),
    Row("cautious(lion)", cautious_lion, factory=funcopt.cautious(funcopt.lion)),
    Row(
        "cautious(lion)",
        cautious_lion,
        {"floor": 0.9},
        {"floor": 0.9},
        factory=funcopt.cautious(funcopt.lion),
        name="floor",
    ),
    Row(
        "cautious(adopt)",
        cautious_adopt,
        {"decouple": True},
        factory=funcopt.cautious(funcopt.adopt),
        wrong=(("p if t == 1 else", ""),),
    ),
    Row("cautious(laprop)", cautious_laprop, factory=funcopt.cautious(funcopt.laprop)),
    Row(
        "lookahead(adamax)",
        lookahead_adamax,
        {"sync_period": 4, "slow_step_size": 0.3},
        factory=funcopt.lookahead(funcopt.adamax),
        weight_decay=None,
    ),
    Row(
        "lookahead(adamax)",
        lookahead_late,
        {"sync_period": 4, "slow_step_size": 0.3, "slow_from": "first_sync"},
        factory=funcopt.lookahead(funcopt.adamax),
        weight_decay=None,
        name="timm's",
    ),
    Row(
        "mars(adamw)",
        specs.mars_adamw,
        {"gamma": 0.05, "betas": (0.95, 0.99)},
        {"gamma": 0.05, "all_dims": True},
        factory=funcopt.mars(funcopt.adamw),
        wrong=(("gamma * b1 / (1 - b1)", "gamma"), ("max(1.0, norm(c))", "max(2.0, norm(c))")),
    ),
]
