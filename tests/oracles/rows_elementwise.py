"""Algorithms that treat each element alone."""

from collections.abc import Callable
from typing import Any

import specs
from harness import Row


def decayed_before(spec: Callable[..., Any]) -> Callable[..., Any]:
    """A specification without decay, behind a decoupled one."""
    return lambda p, g, s, t, lr, wd, **options: spec(p * (1 - lr * wd), g, s, t, lr, **options)


def laprop_timm(p: Any, g: Any, s: Any, t: int, lr: float, wd: float, **options: Any) -> Any:
    return specs.laprop(p, g, s, t, lr, wd=lr * wd, **options)


ROWS = [
    Row(
        "lion",
        specs.lion,
        wrong=(('b2 * s["m"] + (1 - b2) * g', 'b1 * s["m"] + (1 - b1) * g'), ("(1 - lr * wd)", "(1 - wd)")),
    ),
    Row(
        "lion",
        specs.lion,
        {"betas": (0.5, 0.8)},
        {"b1": 0.5, "b2": 0.8},
        name="options",
    ),
    Row(
        "adan",
        specs.adan,
        wrong=(
            ("last=g)", "last=zeros(p))"),
            ("(g + b2 * q) ** 2", "(g + (1 - b2) * q) ** 2"),
            ("lr * b2 / (1 - b2**t)", "lr * (1 - b2) / (1 - b2**t)"),
            ("p / (1 + lr * wd)", "p * (1 - lr * wd)"),
        ),
    ),
    Row(
        "adan",
        specs.adan,
        {"betas": (0.8, 0.7, 0.9), "eps": 0.1, "no_prox": True},
        {"b1": 0.8, "b2": 0.7, "b3": 0.9, "eps": 0.1, "prox": False},
        wrong=(
            ("sqrt(1 - b3**t) + eps", "sqrt(1 - b3**t)"),
            ('sqrt(s["n"]) / sqrt(1 - b3**t) + eps', '(sqrt(s["n"]) + eps) / sqrt(1 - b3**t)'),
            ("p * (1 - lr * wd)", "p / (1 + lr * wd)"),
        ),
        name="options",
    ),
    Row(
        "ademamix",
        specs.ademamix,
        wrong=(
            ('a * s["m2"]', 'a * s["m2"] / (1 - b3**t)'),
            ("(u + wd * p)", "(u + p * wd / lr)"),
        ),
    ),
    Row(
        "ademamix",
        specs.ademamix,
        {"betas": (0.8, 0.9, 0.99), "alpha": 5.0, "t_alpha": 20, "t_beta3": 17, "eps": 0.1},
        {"b1": 0.8, "b2": 0.9, "b3": 0.99, "alpha": 5.0, "T_alpha": 20, "T_b3": 17, "eps": 0.1},
        wrong=(
            ("min(1, t / T_alpha)", "min(1, (t - 1) / T_alpha)"),
            ("b + 1e-8", "b"),
            ("(1 - x) * half(b1) + x * half(b3)", "half((1 - x) * b1 + x * b3)"),
            ("/ sqrt(1 - b2**t) + eps", "/ sqrt(1 - b2**t) + eps / (1 - b1**t)"),
        ),
        name="warm-up",
    ),
    Row(
        "ademamix",
        specs.ademamix,
        {"betas": (0.0, 0.9, 0.99), "t_beta3": 100},
        {"b1": 0.0, "b2": 0.9, "b3": 0.99, "T_b3": 100},
        name="no fast momentum",
    ),
    Row(
        "adopt",
        specs.adopt,
        wrong=(
            ("clip(t - 1)", "clip(t)"),
            ("return p  #", "return p - lr * wd * p  #"),
            ("v=g * g", "v=(1 - b2) * g * g"),
        ),
    ),
    Row(
        "adopt",
        specs.adopt,
        {"betas": (0.8, 0.9), "eps": 0.5, "clip_exp": 0.333, "decouple": True},
        {"b1": 0.8, "b2": 0.9, "eps": 0.5, "clip": lambda k: k**0.333, "decouple": True},
        wrong=(
            ('np.maximum(sqrt(s["v"]), eps)', '(sqrt(s["v"]) + eps)'),
            ("return p  #", "return p - lr * wd * p  #"),
        ),
        name="decoupled",
    ),
    Row(
        "adopt",
        specs.adopt,
        {"clip_exp": None},
        {"clip": None},
        name="unclipped",
    ),
    Row(
        "adabelief",
        specs.adabelief,
        {"rectify": False},
        wrong=(
            (
                's["m"] = b1 * s["m"] + (1 - b1) * g\n    s["v"] = b2 * s["v"] + (1 - b2) * (g - s["m"]) ** 2 + eps',
                's["v"] = b2 * s["v"] + (1 - b2) * (g - s["m"]) ** 2 + eps\n    s["m"] = b1 * s["m"] + (1 - b1) * g',
            ),
        ),
        name="unrectified",
    ),
    Row(
        "adabelief",
        specs.adabelief,
        {"betas": (0.8, 0.9), "eps": 1e-2, "rectify": False},
        {"b1": 0.8, "b2": 0.9, "eps": 1e-2},
        wrong=(
            ('(g - s["m"]) ** 2 + eps', '(g - s["m"]) ** 2'),
            ("sqrt(1 - b2**t) + eps", "sqrt(1 - b2**t)"),
        ),
        name="large eps",
    ),
    Row(
        "adabelief",
        specs.adabelief_all,
        wrong=(
            ("if n < 5", "if n < 4"),
            ("(n - 4) / (n_max - 4)", "(n - 2) / (n_max - 4)"),
        ),
    ),
    Row(
        "adabelief",
        specs.adabelief_all,
        {"betas": (0.8, 0.9), "eps": 1e-2, "amsgrad": True, "degenerated_to_sgd": False, "weight_decouple": False},
        {"b1": 0.8, "b2": 0.9, "eps": 1e-2, "amsgrad": True, "sgd": False, "decouple": False},
        wrong=(
            ('sqrt(s["v"]) + eps)  #', 'sqrt(s["x"]) + eps)  #'),
            ("if sgd else p", ""),
        ),
        name="options",
    ),
    Row(
        "adabelief",
        specs.adabelief_all,
        {"betas": (0.9, 0.7), "eps": 1e-4, "amsgrad": True, "rectify": False},
        {"b2": 0.7, "eps": 1e-4, "amsgrad": True, "rectify": False},
        wrong=(('"x" if amsgrad else "v"', '"v"'),),
        name="amsgrad",
    ),
    Row(
        "yogi",
        specs.yogi,
        weight_decay=None,
        wrong=(
            ('- (1 - b2) * sign(s["v"] - g * g) * g * g', '- (1 - b2) * (s["v"] - g * g)'),
            ("m=zeros(p) + m0", "m=zeros(p)"),
        ),
    ),
    Row(
        "yogi",
        decayed_before(specs.yogi),
        {"betas": (0.8, 0.9), "eps": 0.1, "initial_accumulator": 0.1},
        {"b1": 0.8, "b2": 0.9, "eps": 0.1, "init": 0.1, "m0": 0.1},
        name="options",
    ),
    Row(
        "laprop",
        specs.laprop,
        {"fixed_decay": True},
        wrong=(
            ("(1 - b1) * lr * g", "(1 - b1) * g"),
            ("p - wd * p", "p - lr * wd * p"),
        ),
        name="fixed decay",
    ),
    Row("laprop", laprop_timm),
    Row(
        "laprop",
        specs.laprop,
        {"betas": (0.8, 0.9), "eps": 0.1, "fixed_decay": True},
        {"b1": 0.8, "b2": 0.9, "eps": 0.1},
        wrong=(
            ('sqrt(s["v"] / s["l2"]) + eps', 'sqrt((s["v"] + eps) / s["l2"])'),
            ('s["l1"] / lr', "1 - b1**t"),
        ),
        name="options",
    ),
    Row(
        "signum",
        specs.signum,
        wrong=(
            ('lr * sign(s["m"])', 'lr * sign(s["m"] + g)'),
            ("(1 - lr * wd)", "(1 - wd)"),
        ),
    ),
    Row("signum", specs.signum, {"momentum": 0.0}, {"beta": 0.0}, name="no momentum"),
    Row("tiger", specs.signum, spec_options={"beta": 0.965}),
    Row("tiger", specs.signum, {"beta": 0.5}, {"beta": 0.5}, name="options"),
    Row(
        "ftrl",
        specs.ftrl,
        weight_decay=None,
        wrong=(('+ g - (s["n"] ** -power - old) / lr * p', '+ g - s["n"] ** -power / lr * p'),),
    ),
    Row(
        "ftrl",
        specs.ftrl,
        {"lr_power": -0.4, "beta": 0.5, "lambda_1": 2.0, "lambda_2": 0.5},
        {"power": -0.4, "beta": 0.5, "l1": 2.0, "l2": 0.5},
        weight_decay=None,
        wrong=(
            ("(beta + sqrt(s", "(beta + (lambda n: n**-power)(s"),
            ("<= l1", "<= 0"),
            ("/ lr + l2)", "/ lr)"),
        ),
        name="options",
    ),
    Row("sophia_g", specs.sophia_g, name="signs"),
    Row(
        "grams",
        specs.grams,
        wrong=(
            ("sign(g)", 'sign(s["m"])'),
            ("p - lr * wd * p", "p - wd * p"),
        ),
    ),
    Row(
        "grams",
        specs.grams,
        {"betas": (0.8, 0.9), "eps": 0.1},
        {"b1": 0.8, "b2": 0.9, "eps": 0.1},
        wrong=(('(sqrt(s["v"]) + eps)', '(sqrt(s["v"]) + eps * sqrt(1 - b2**t))'),),
        name="options",
    ),
]
