"""Algorithms with norms or means of each array."""

# pyright: basic

import numpy as np
import specs
from harness import Row
from specs import adam_mini_rows, lamb, mars_adamw, stable_adamw

MATRICES = ((6, 4), (4, 7), (8, 3))
# With axes of equal length, and the largest ones in different places.
KERNELS = ((6, 4), (5,), (4, 7), (3,), (4, 2, 4, 3), (2, 5, 4))


def lamb_decoupled(P, G, S, D, t, lr, wd, **options):
    return lamb([p * (1 - lr * wd) for p in P], G, S, D, t, lr, 0.0, always=True, **options)


def stable_adamw_decoupled(p, g, s, t, lr, wd, max_lr, **options):
    return stable_adamw(p, g, s, t, lr, wd / max_lr, **options)


def novograd_of_timm(p, g, s, t, lr, wd, b1=0.95, b2=0.98, eps=1e-8, averaging=False, amsgrad=False, decoupled=False):
    n = (g * g).sum()
    s["v"] = n if t == 1 else b2 * s["v"] + (1 - b2) * n
    s["x"] = max(s.get("x", 0.0), s["v"])
    u = g / (np.sqrt(s["x"] if amsgrad else s["v"]) + eps)
    u = u if decoupled else u + wd * p
    s["m"] = b1 * s.get("m", 0.0) + ((1 - b1) if averaging else 1.0) * u
    p = p * (1 - lr * wd) if decoupled else p
    return p - lr * s["m"]


def adam_mini_blocks(p, g, s, t, lr, wd, rows, **options):
    blocks = (len(p) // rows if rows else 1, -1)
    return adam_mini_rows(p.reshape(blocks), g.reshape(blocks), s, t, lr, wd, **options).reshape(p.shape)


def mars_adamw_with_ratio(p, g, s, t, lr, wd, ratio, **options):
    return mars_adamw(p, g, s, t, lr, wd, lr1=lr * ratio, **options)


ROWS = [
    Row(
        "lamb",
        specs.lamb,
        whole=True,
        one_lr=True,
        wrong=(
            ("sum((g * g).sum() for g in G)", "(G[0] * G[0]).sum()"),
            ('sqrt(s["v"]) / sqrt(c2) + eps', '(sqrt(s["v"]) + eps) / sqrt(c2)'),
            ("np_ / nu", "norm(p - lr * wd * p) / nu"),
        ),
    ),
    Row(
        "lamb",
        specs.lamb,
        {
            "bias_correction": False,
            "grad_averaging": False,
            "max_grad_norm": None,
            "trust_clip": True,
            "betas": (0.8, 0.95),
            "eps": 1e-2,
        },
        {
            "correct": False,
            "averaging": False,
            "max_norm": None,
            "trust_clip": True,
            "b1": 0.8,
            "b2": 0.95,
            "eps": 1e-2,
        },
        whole=True,
        one_lr=True,
        lr=0.3,
        wrong=(("min(q, 1.0)", "q"),),
        name="clipped ratio",
    ),
    Row("lamb", specs.lamb, whole=True, one_lr=True, weight_decay=(0.0, 0.0), name="no decay"),
    Row(
        "lamb",
        specs.lamb,
        {"always_adapt": True},
        {"always": True},
        whole=True,
        one_lr=True,
        weight_decay=(0.0, 0.0),
        wrong=(("or always", ""),),
        name="always",
    ),
    Row(
        "lamb",
        lamb_decoupled,
        {"decoupled_decay": True, "max_grad_norm": 3.0},
        {"max_norm": 3.0},
        whole=True,
        one_lr=True,
        wrong=(("1 - lr * wd", "1 - wd"),),
        name="decoupled",
    ),
    Row(
        "lars",
        specs.lars,
        {"momentum": 0.9},
        lr=5.0,
        weight_decay=(0.1, 0.0),
        wrong=(
            ("b + wd * a + eps", "norm(g + wd * p) + eps"),
            ("(g + wd * p) * q", "g * q + wd * p"),
            ("if wd != 0 or always", "if True"),
        ),
    ),
    Row("lars", specs.lars, {}, {"mom": 0.0}, lr=5.0, name="no momentum"),
    Row(
        "lars",
        specs.lars,
        {"momentum": 0.8, "nesterov": True, "trust_clip": True, "trust_coeff": 0.05, "eps": 0.1},
        {"mom": 0.8, "nesterov": True, "trust_clip": True, "coeff": 0.05, "eps": 0.1},
        wrong=(("min(q / lr, 1.0)", "min(q, 1.0)"), ("g + mom * s", "mom * s")),
        name="larc",
    ),
    Row(
        "lars",
        specs.lars,
        {"momentum": 0.8, "dampening": 0.3, "always_adapt": True, "trust_coeff": 0.05},
        {"mom": 0.8, "damp": 0.3, "always": True, "coeff": 0.05},
        weight_decay=(0.1, 0.0),
        wrong=(("g.copy() if t == 1", "(1 - damp) * g if t == 1"),),
        name="dampened",
    ),
    Row(
        "stable_adamw",
        specs.stable_adamw,
        wrong=(
            ('s["m"] = h1', 's["m"] = b1'),
            ("lr = lr / max(1.0, r)", "lr = lr / max(1.0, r); wd = wd * max(1.0, r)"),
        ),
    ),
    Row(
        "stable_adamw",
        specs.stable_adamw,
        {"betas": (0.8, 0.9), "eps": 0.5},
        {"b1": 0.8, "b2": 0.9, "eps": 0.5},
        wrong=(('np.maximum(s["v"], eps * eps)', 'np.maximum(s["v"], eps)'),),
        name="eps",
    ),
    Row(
        "stable_adamw",
        stable_adamw_decoupled,
        {"decouple_lr": True, "max_lr": 0.2, "betas": (0.8, 0.9), "eps": 0.1},
        {"max_lr": 0.2, "b1": 0.8, "b2": 0.9, "eps": 0.1},
        wrong=(("wd / max_lr", "wd"),),
        name="decoupled",
    ),
    Row(
        "novograd",
        specs.novograd,
        wrong=(
            ("(g * g).sum() if t == 1 else", "(1 - b2) * (g * g).sum() if t == 1 else"),
            ("(1 - b2) * (g * g).sum()", "(1 - b2) * (g * g).mean()"),
            ("+ wd * p", ""),
        ),
    ),
    Row(
        "novograd",
        novograd_of_timm,
        {"grad_averaging": True, "amsgrad": True, "betas": (0.8, 0.7), "eps": 0.1},
        {"averaging": True, "amsgrad": True, "b1": 0.8, "b2": 0.7, "eps": 0.1},
        wrong=(('max(s.get("x", 0.0), s["v"])', 's["v"]'), ("(1 - b1) if averaging else 1.0", "1.0")),
        name="amsgrad",
    ),
    Row(
        "novograd",
        novograd_of_timm,
        {"decoupled_decay": True},
        {"decoupled": True},
        wrong=(("1 - lr * wd", "1 - wd"),),
        name="decoupled",
    ),
    Row(
        "adamp",
        specs.adamp,
        wrong=(('sqrt(s["v"]) / sqrt(1 - b2**t) + eps', '(sqrt(s["v"]) + eps) / sqrt(1 - b2**t)'),),
    ),
    Row(
        "adamp",
        specs.adamp,
        {"delta": 1.0, "wd_ratio": 0.3, "nesterov": True, "betas": (0.8, 0.95), "eps": 1e-3},
        {"delta": 1.0, "ratio": 0.3, "nesterov": True, "b1": 0.8, "b2": 0.95, "eps": 1e-3},
        wrong=(
            ("lr * wd * r", "lr * wd"),
            ("project_scale_invariant(p, g, u,", "project_scale_invariant(p, u, u,"),
            ('if nesterov else s["m"]', 'if False else s["m"]'),
        ),
        name="projected",
    ),
    Row("sgdp", specs.sgdp, {"momentum": 0.9}, wrong=(("/ (1 - mom)", ""),)),
    Row("sgdp", specs.sgdp, {}, {"mom": 0.0}, name="no momentum"),
    Row(
        "sgdp",
        specs.sgdp,
        {"momentum": 0.8, "dampening": 0.3, "nesterov": True, "delta": 1.5, "wd_ratio": 0.3, "eps": 0.1},
        {"mom": 0.8, "damp": 0.3, "nesterov": True, "delta": 1.5, "ratio": 0.3, "eps": 0.1},
        wrong=(("lr * wd * r", "lr * wd"), ("(1 - damp) * g", "g"), ("ratio, eps)", "ratio, 1e-8)")),
        name="projected",
    ),
    Row(
        "adam_mini",
        specs.adam_mini_rows,
        shapes=MATRICES,
        wrong=(("mean(\n        1, keepdims=True\n    )", "mean()"), ("+ eps", "* sqrt(1 - b2**t) + eps")),
    ),
    Row(
        "adam_mini",
        adam_mini_blocks,
        {"betas": (0.8, 0.95), "eps": 1e-2},
        {"rows": 1, "b1": 0.8, "b2": 0.95, "eps": 1e-2},
        name="vectors and kernels",
    ),
    Row(
        "adam_mini",
        adam_mini_blocks,
        {"block_rows": 2},
        {"rows": 2},
        shapes=((6, 4), (4,), (4, 7), (2,), (4, 3, 2, 2)),
        wrong=(("len(p) // rows", "len(p)"),),
        name="heads",
    ),
    Row("adam_mini", adam_mini_blocks, {"block_rows": 0}, {"rows": 0}, name="one block"),
    Row(
        "came",
        specs.came,
        wrong=(
            ('(u - s["m"]) ** 2', "(u - g) ** 2"),
            ("u = u / max(1.0, rms(u) / clip)", "u = u"),
            ("q.mean(-2)", "(q - eps1).mean(-2)[::-1]"),
        ),
    ),
    Row(
        "came",
        specs.came,
        {"betas": (0.8, 0.9, 0.7), "clip_threshold": 0.5, "eps": (1e-2, 1e-3)},
        {"b1": 0.8, "b2": 0.9, "b3": 0.7, "clip": 0.5, "eps1": 1e-2, "eps2": 1e-3},
        wrong=(("+ eps2", ""), ("+ eps1", ""), ("lr * p", "p")),
        name="options",
    ),
    Row(
        "adafactor_hf",
        specs.adafactor_hf,
        {"scale_parameter": False, "relative_step": False},
        {"scale_param": False, "relative": False},
        wrong=(("wd * lr * p", "wd * p"), ("1 - t**decay", "1 - (t + 1) ** decay")),
    ),
    Row(
        "adafactor_hf",
        specs.adafactor_hf,
        {"beta1": 0.9, "clip_threshold": 0.5, "decay_rate": -0.5, "eps": (1e-2, 0.8)},
        {"relative": False, "b1": 0.9, "clip": 0.5, "decay": -0.5, "eps1": 1e-2, "eps2": 0.8},
        wrong=(("max(eps2, rms(p))", "rms(p)"), ("lr * u / max", "u / max"), ('u = b1 * s["m"]', 'u = 0 * s["m"]')),
        name="momentum",
    ),
    Row(
        "adafactor_bv",
        specs.adafactor_bv,
        {"momentum_dtype": None},
        wrong=(("1 - t**-decay", "1 - (t + 1) ** -decay"),),
    ),
    Row(
        "adafactor_bv",
        specs.adafactor_bv,
        {"momentum_dtype": None, "min_dim_size_to_factor": 3, "clipping_threshold": 0.5, "beta2_cap": 0.7, "eps": 1e-2},
        {"min_dim": 3, "clip": 0.5, "cap": 0.7, "eps": 1e-2},
        shapes=KERNELS,
        wrong=(
            ('np.argsort(p.shape, kind="stable")', "np.arange(p.ndim)"),
            ("min(cap, 1 - t**-decay)", "1 - t**-decay"),
        ),
        name="factored",
    ),
    Row(
        "adafactor_bv",
        specs.adafactor_bv,
        {"momentum": None, "unscaled_wd": True, "decay_rate": 0.5},
        {"mom": None, "scaled_wd": False, "decay": 0.5},
        weight_decay=(0.01, 0.002),
        wrong=(("1 - (lr if scaled_wd else 1) * wd", "1 - lr * wd"),),
        name="unscaled decay",
    ),
    Row(
        "mars_adamw",
        specs.mars_adamw,
        wrong=(
            ("c / max(1.0, norm(c))", "c"),
            ('s["last"] = g', 's["last"] = c'),
            ("c, b1, b2, wd, lr = g, *b1d, wd1,", "c, b1, b2, wd, lr = g, *b1d, wd,"),
        ),
    ),
    Row(
        "mars_adamw",
        mars_adamw_with_ratio,
        {"gamma": 0.1, "lr_1d_factor": 0.5, "betas_1d": (0.7, 0.8), "weight_decay_1d": 0.3, "betas": (0.8, 0.9)},
        {"gamma": 0.1, "ratio": 0.5, "b1d": (0.7, 0.8), "wd1": 0.3, "b1": 0.8, "b2": 0.9},
        wrong=(("lr * ratio", "lr"),),
        name="vectors",
    ),
    Row(
        "mars_adamw",
        specs.mars_adamw,
        {"optimize_1d": True, "eps": 1e-2},
        {"all_dims": True, "eps": 1e-2},
        name="all",
    ),
    Row(
        "mars_adamw",
        specs.mars_adamw,
        shapes=((1, 1), (2, 1), (1, 2)),
        wrong=(("last=zeros(p)", "last=g"),),
        name="norms below 1",
    ),
]
