"""Bad hyperparameters raise for the same inputs as in torch, with messages that name owner, argument, set and value."""

import math
import re
from typing import Any

import jax.numpy as jnp
import pytest
import torch

import funcopt

# (factory, torch class, bad hyperparameters, message)
BAD = [
    (funcopt.sgd, torch.optim.SGD, {"lr": -1.0}, "sgd: lr must be >= 0, got -1.0"),
    (funcopt.sgd, torch.optim.SGD, {"momentum": -0.5}, "sgd: momentum must be >= 0, got -0.5"),
    (funcopt.sgd, torch.optim.SGD, {"weight_decay": -1.0}, "sgd: weight_decay must be >= 0, got -1.0"),
    (funcopt.sgd, torch.optim.SGD, {"nesterov": True}, "sgd: momentum must be > 0 with nesterov=True, got 0.0"),
    (
        funcopt.sgd,
        torch.optim.SGD,
        {"nesterov": True, "momentum": 0.9, "dampening": 0.1},
        "sgd: dampening must be 0 with nesterov=True, got 0.1",
    ),
    *(
        (factory, torch_class, bad, f"{factory.__name__}: {message}")
        for factory, torch_class in ((funcopt.adam, torch.optim.Adam), (funcopt.adamw, torch.optim.AdamW))
        for bad, message in (
            ({"lr": -1.0}, "lr must be >= 0, got -1.0"),
            ({"lr": math.nan}, "lr must be >= 0, got nan"),
            ({"eps": -1.0}, "eps must be >= 0, got -1.0"),
            ({"eps": math.nan}, "eps must be >= 0, got nan"),
            ({"weight_decay": -1.0}, "weight_decay must be >= 0, got -1.0"),
            ({"weight_decay": math.nan}, "weight_decay must be >= 0, got nan"),
            ({"betas": (-0.1, 0.9)}, "betas[0] must be a float in [0, 1), got -0.1"),
            ({"betas": (1.0, 0.9)}, "betas[0] must be a float in [0, 1), got 1.0"),
            ({"betas": (0.9, -0.1)}, "betas[1] must be a float in [0, 1), got -0.1"),
            ({"betas": (0.9, 1.0)}, "betas[1] must be a float in [0, 1), got 1.0"),
            ({"betas": (0, 0.9)}, "betas[0] must be a float in [0, 1), got 0"),
            ({"betas": (math.nan, 0.9)}, "betas[0] must be a float in [0, 1), got nan"),
        )
    ),
]


@pytest.mark.parametrize(("factory", "torch_class", "bad", "message"), BAD, ids=[row[-1] for row in BAD])
def test_raises_where_torch_does(factory: Any, torch_class: Any, bad: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=r"nvalid|Nesterov|betas"):
        torch_class([torch.nn.Parameter(torch.ones(1))], **bad)
    with pytest.raises(ValueError, match=re.escape(message)):
        factory(**bad)


@pytest.mark.parametrize(
    ("factory", "good"),
    [
        (funcopt.sgd, {"lr": 0, "momentum": 0, "dampening": -1.0}),
        (funcopt.sgd, {"lr": 1, "dampening": 2.0}),
        (funcopt.adam, {"lr": 0.0, "eps": 0.0, "betas": [0.9, 0.99]}),
        (funcopt.adam, {"lr": jnp.float32(0.1), "betas": (lambda step: 0.9, 0.99)}),
        (funcopt.adamw, {"lr": {"a": [0.1, lambda step: 0.1]}, "betas": {"a": (0.9, 0.99), "b": (0.8, 0.99)}}),
    ],
)
def test_accepts(factory: Any, good: dict[str, Any]) -> None:
    factory(**good)


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: funcopt.adam(lr="x"), TypeError, "adam: lr must be a number, a schedule"),
        (lambda: funcopt.adam(lr=True), TypeError, "adam: lr must be a number, a schedule"),
        (lambda: funcopt.adam(lr=jnp.ones(2)), ValueError, "adam: lr must be one number"),
        (lambda: funcopt.adam(betas=(0.9,)), ValueError, "adam: betas must be a tuple of 2 numbers, got (0.9,)"),
        (lambda: funcopt.adam(betas=0.9), TypeError, "adam: betas must be a tuple of 2 numbers, got 0.9"),
        (lambda: funcopt.adam(lr=None), TypeError, "adam: lr must be a number, a schedule"),
        (lambda: funcopt.adam(betas=None), TypeError, "adam: betas must be a tuple of 2 numbers, got None"),
        (lambda: funcopt.adam(amsgrad=1.0), TypeError, "adam: amsgrad must be True or False, got 1.0"),
        (lambda: funcopt.adam(lr={"a": [0.1, -0.1]}), ValueError, "adam: lr['a'][1] must be >= 0, got -0.1"),
        (lambda: funcopt.sgd(maximize=None), TypeError, "sgd: maximize must be True or False, got None"),
        (lambda: funcopt.clip_by_global_norm(-1.0), ValueError, "clip_by_global_norm: max_norm must be >= 0"),
        (lambda: funcopt.clip_by_global_norm(1.0, 0.0), ValueError, "clip_by_global_norm: norm_type must be > 0"),
        (lambda: funcopt.clip_by_value(-1.0), ValueError, "clip_by_value: clip_value must be >= 0"),
        (lambda: funcopt.scale_by_multipliers(-1.0), ValueError, "scale_by_multipliers: multipliers must be >= 0"),
        (lambda: funcopt.add_decayed_weights(0.1, lambda p: True), TypeError, "add_decayed_weights: mask must be"),
    ],
)
def test_messages(make: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=re.escape(message)):
        make()


def test_tree_errors_name_the_path_and_both_structures() -> None:
    params = {"a": jnp.ones(2), "b": {"c": jnp.ones(2)}}
    with pytest.raises(ValueError, match=r"scale: factor\['b'\] must be one value or have .*'c'.*, got .*'d'"):
        funcopt.scale({"a": 1.0, "b": {"d": 1.0}}).init(params)
    with pytest.raises(ValueError, match=r"trace: dampening must be 0 with nesterov=True, got 0.5"):
        funcopt.trace(nesterov=True, dampening={"a": 0.0, "b": 0.5}).init(params)


def test_update_without_parameters_says_what_is_missing() -> None:
    tx = funcopt.adamw()
    params = {"a": jnp.ones(2)}
    with pytest.raises(ValueError, match=r"adamw: update needs the parameters; call update\(updates"):
        tx.update(params, tx.init(params))
