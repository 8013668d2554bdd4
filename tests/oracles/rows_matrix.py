"""Algorithms that orthogonalise matrices: their iterations in the precision of the parameters."""

import functools

import jax
import numpy as np
import specs
from harness import Row

MATRICES = ((6, 4), (5, 5), (4, 7), (2, 3), (4, 3, 2, 2))
FULL = {"ns_precision": "full"}

# Jordan adds eps to the norm, and torch takes the larger one: without it they are the same.
JORDAN = functools.partial(specs.newton_schulz, eps=0.0)
POLAR_EXPRESS = (
    (8.156554524902461, -22.48329292557795, 15.878769915207462),
    (4.042929935166739, -2.808917465908714, 0.5000178451051316),
    (3.8916678022926607, -2.772484153217685, 0.5060648178503393),
    (3.285753657755655, -2.3681294933425376, 0.46449024233003106),
    (2.3465413258596377, -1.7097828382687081, 0.42323551169305323),
)
POLAR = functools.partial(specs.newton_schulz, steps=7, abc=POLAR_EXPRESS, eps=1e-6, safety=1.02)
TWO = functools.partial(specs.newton_schulz, steps=3, abc=((3.0, -3.2, 1.2), (1.5, -0.5, 0.0)), eps=0.0)


def muon_with_adamw(p, g, s, t, lr, wd=0.0, b1=0.9, b2=0.95, eps=1e-10, **options):
    if p.ndim > 1:
        return specs.muon(p, g, s, t, lr, wd, **options)
    return specs.aux_adamw(p, g, s, t, lr, wd, b1, b2, eps)


def columns_out(p, g, s, t, lr, spec, **options):
    """A specification of an algorithm whose arrays have their outputs last."""
    turned = (-1, *range(p.ndim - 1))
    return np.moveaxis(spec(np.transpose(p, turned), np.transpose(g, turned), s, t, lr, **options), 0, -1)


def first_q(columns, rank, seed=0):
    """As funcopt draws it."""
    normal = jax.random.normal(jax.random.key(seed), (columns, rank), np.float32)
    return np.asarray(normal.astype(jax.numpy.bfloat16), np.float64)


WRONG_MUON = (
    ("(1 - beta) * (g - s", "(1 - beta) * g * (s"),
    ('u = g + beta * (s["m"] - g)', 'u = s["m"] + beta * (g - s["m"])'),
    ("max(1, R / C)", "max(1, C / R)"),
    ("(1 - lr * wd)", "(1 - wd)"),
)
WRONG_NORMUON = (
    ("(1 - b2) * ((o * o)", "b2 * ((o * o)"),
    (".mean(-1, keepdims=True)", ".mean()"),
    ("o = o * (n0 /", "o = o * (1.0 /"),
    ('+ beta * (s["m"] - g))', '* 0 + s["m"])'),
)

ROWS = [
    Row("muon", specs.muon, {"eps": 0.0, **FULL}, {"ns": JORDAN}, WRONG_MUON[1:], shapes=MATRICES),
    Row(
        "muon",
        specs.muon,
        {"eps": 1e-6, "ns_coefficients": "polar_express", "ns_steps": 7, "momentum": 0.8, **FULL},
        {"ns": POLAR, "beta": 0.8},
        shapes=MATRICES,
        name="polar express",
    ),
    Row(
        "muon",
        specs.muon,
        {
            "eps": 0.0,
            "ns_coefficients": (3.0, -3.2, 1.2, 1.5, -0.5, 0.0),
            "ns_steps": 3,
            "nesterov": False,
            "adjust_lr_fn": "match_rms_adamw",
            **FULL,
        },
        {"ns": TWO, "nesterov": False, "scale": "moonlight"},
        shapes=MATRICES,
        name="two triples, moonlight",
    ),
    Row(
        "muon",
        columns_out,
        {"eps": 0.0, "adjust_lr_fn": "spectral_unclamped", "outputs_last": True, **FULL},
        {"ns": JORDAN, "scale": "spectral", "spec": specs.muon},
        shapes=(*MATRICES, (2, 2, 3, 5)),
        name="columns out",
    ),
    Row("muon_with_adamw", muon_with_adamw, FULL),
    Row(
        "muon_with_adamw",
        specs.aux_adamw,
        {"use_muon": False, "betas": (0.8, 0.97), "eps": 1e-3},
        {"b1": 0.8, "b2": 0.97, "eps": 1e-3},
        wrong=(("b2**t)) + eps", "b2**t) + eps)"), ("(1 - lr * wd)", "(1 - wd)")),
        name="adamw alone",
    ),
    Row("normuon", specs.normuon, FULL, wrong=WRONG_NORMUON, shapes=MATRICES[:4]),
    Row(
        "normuon",
        columns_out,
        {"momentum": 0.8, "beta2": 0.7, "outputs_last": True, **FULL},
        {"beta": 0.8, "b2": 0.7, "spec": specs.normuon},
        shapes=MATRICES[:4],
        name="columns out",
    ),
    Row(
        "scion",
        specs.scion,
        {"momentum": 0.1, **FULL},
        wrong=(
            ('(1 - mom) * s["m"] + mom * g', 'mom * s["m"] + (1 - mom) * g'),
            ("(p.shape[0] / p.shape[1]) ** 0.5  # Spectral", "(p.shape[1] / p.shape[0]) ** 0.5"),
            ("/ p.shape[2] ** (p.ndim - 2)", ""),
            ("else 1 - lr)", "else 1 - 0.1 * lr)"),
        ),
        weight_decay=None,
    ),
    Row(
        "scion",
        specs.scion,
        {"scale": 3.0, "unconstrained": True, **FULL},
        {"mom": 1.0, "scale": 3.0, "unconstrained": True},
        weight_decay=None,
        name="unconstrained, no momentum",
    ),
    Row(
        "scion",
        specs.scion_sign,
        {"momentum": 0.2, "scale": 3.0, "norm": "Sign"},
        {"mom": 0.2, "scale": 3.0},
        wrong=(("/ p.shape[1]", "/ p.shape[0]"),),
        shapes=((6, 4), (4, 7), (2, 3)),
        weight_decay=None,
        name="sign",
    ),
    *(
        Row(
            "dion",
            specs.dion,
            {"rank": rank},
            {"Q0": first_q(shape[1], rank)},
            wrong=wrong,
            shapes=(shape, shape),
            name=f"{shape}, rank {rank}",
        )
        for shape, rank, wrong in (
            ((6, 4), 3, (("(1 - mu) * P", "mu * P"), ("(p.shape[0] / p.shape[1])", "(p.shape[1] / p.shape[0])"))),
            ((4, 7), 2, (('P @ s["Q"].T', "P @ Rr.T"),)),
            ((5, 5), 5, ()),
        )
    ),
]
