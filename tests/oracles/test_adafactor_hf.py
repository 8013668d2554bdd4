"""Adafactor's relative step, which the table cannot have: there is no learning rate to give."""

from typing import Any

import harness
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import specs
import torch

import funcopt

ROW = harness.Row("adafactor_hf", specs.adafactor_hf)
OPTIONS: list[tuple[dict[str, Any], dict[str, Any]]] = [
    ({}, {}),
    ({"beta1": 0.9, "weight_decay": 0.1}, {"b1": 0.9, "wd": 0.1}),
    ({"warmup_init": True, "scale_parameter": False}, {"warmup_init": True, "scale_param": False}),
]


@pytest.mark.parametrize(("options", "spec_options"), OPTIONS, ids=["default", "momentum", "warmup"])
def test_relative_step_agrees_with_the_specification(options: dict[str, Any], spec_options: dict[str, Any]) -> None:
    of = harness.problem(ROW)
    tensors = [torch.nn.Parameter(torch.tensor(p)) for p in of.starts]
    bridge = funcopt.TorchBridge(tensors, funcopt.adafactor_hf, **options)
    expected, states = of.starts, [{} for _ in of.starts]
    with jax.enable_x64(True):
        tx = funcopt.adafactor_hf(**options)
        params = [jnp.asarray(p) for p in of.starts]
        state, update = tx.init(params), jax.jit(tx.update)
        for t in range(harness.STEPS):
            updates, state = update([of.gradient(i, p, t) for i, p in enumerate(params)], state, params)
            params = funcopt.apply_updates(params, updates)
            for i, p in enumerate(tensors):
                p.grad = torch.tensor(of.gradient(i, p.detach().numpy(), t))
            bridge.step()
            expected = [
                specs.adafactor_hf(p, of.gradient(i, p, t), s, t + 1, **spec_options)
                for i, (p, s) in enumerate(zip(expected, states, strict=True))
            ]
    for ours in ([np.asarray(p) for p in params], [p.detach().numpy() for p in tensors]):
        assert harness.difference([ours], [expected], of.starts) <= harness.FLOAT64


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"lr": 0.1, "relative_step": True}, "relative_step must be False where lr is given, got True"),
        ({"relative_step": False}, "relative_step must be True where no lr is given, got False"),
        ({"lr": 0.1, "warmup_init": True}, "warmup_init must be False where lr is given, got True"),
    ],
)
def test_what_contradicts_a_relative_step_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        funcopt.adafactor_hf(**options).init(jnp.ones(3))
