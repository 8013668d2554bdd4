"""Hugging Face's arguments as plain data; tests/clients compares with the Trainer."""

import argparse
import dataclasses
import enum
import json
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import pytest
import torch

import funcopt
from funcopt.config import build_optimizer, build_schedule, to_config

PARAMS = {"layer": {"weight": jnp.ones((2, 2)), "bias": jnp.ones(2)}, "norm": {"weight": jnp.ones(2)}}


class Name(enum.Enum):
    ADAMW = "adamw_torch"


@dataclasses.dataclass
class Arguments:
    """As a TrainingArguments: an object with many more fields."""

    optim: Any = Name.ADAMW
    learning_rate: float = 0.1
    weight_decay: float = 0.5
    warmup_steps: float = 2
    max_steps: int = 10
    output_dir: str = "anywhere"


def network() -> torch.nn.Module:
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.LayerNorm(4), torch.nn.Linear(4, 2, bias=False))


def step(model: torch.nn.Module, optimizer: Any, steps: int = 1) -> None:
    for _ in range(steps):
        optimizer.zero_grad()
        model(torch.ones(3, 4)).square().sum().backward()
        optimizer.step()


@pytest.mark.parametrize("cfg", [Arguments(), dataclasses.asdict(Arguments(optim="adamw_torch"))])
def test_arguments(cfg: Any) -> None:
    optimizer = build_optimizer(cfg, network(), steps_per_epoch=1)
    decay, rest = (group["param_names"] for group in optimizer.param_groups)
    assert (decay, rest) == (["0.weight", "2.weight"], ["0.bias", "1.weight", "1.bias"])
    assert [g["weight_decay"] * g.get("decay_mult", 1.0) for g in optimizer.param_groups] == [0.5, 0.0]
    assert to_config(optimizer)["optim"] == "adamw_torch"
    step(network(), optimizer)
    assert optimizer.param_groups[0]["lr"] == 0.0


def test_a_pytree_gets_the_same_groups_and_schedule() -> None:
    tx = build_optimizer(Arguments(optim="sgd"), PARAMS, steps_per_epoch=1)
    state, grads = tx.init(PARAMS), {"layer": {"weight": jnp.ones((2, 2)), "bias": jnp.ones(2)}, "norm": {}}
    grads["norm"] = {"weight": jnp.ones(2)}
    _, state = tx.update(grads, state, PARAMS)
    updates, _ = tx.update(grads, state, PARAMS)
    assert float(updates["layer"]["weight"][0, 0]) == pytest.approx(-0.05 * 1.5)
    assert float(updates["layer"]["bias"][0]) == float(updates["norm"]["weight"][0]) == pytest.approx(-0.05)


def test_options_replace_fields_and_files_are_read(tmp_path: Path) -> None:
    (tmp_path / "arguments.json").write_text(json.dumps({"learning_rate": 0.1, "optim": "sgd"}))
    optimizer = build_optimizer(tmp_path / "arguments.json", network(), optim_args="momentum=0.5,nesterov=True")
    assert {name: optimizer.param_groups[0][name] for name in ("lr", "momentum", "nesterov")} == {
        "lr": 0.1,
        "momentum": 0.5,
        "nesterov": True,
    }
    same = build_optimizer(argparse.Namespace(learning_rate=0.1, optim="sgd", seed=3), network())
    assert same.param_groups[0]["lr"] == 0.1


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"optim": "lion_32bit", "adam_beta2": 0.98}, {"betas": (0.9, 0.98)}),
        (
            {"optim": "ademamix", "optim_args": "beta3=0.99,alpha=4,t_alpha=100"},
            {"betas": (0.9, 0.999, 0.99), "alpha": 4.0, "t_alpha": 100, "eps": 1e-8},
        ),
        ({"optim": "ademamix"}, {"betas": (0.9, 0.999, 0.9999), "alpha": 5.0}),
        ({"optim": "adafactor"}, {"scale_parameter": False, "relative_step": False}),
        ({"optim": "stable_adamw", "optim_args": "max_lr=0.5,decouple_lr=true"}, {"max_lr": 0.5, "decouple_lr": True}),
    ],
)
def test_values(fields: dict[str, Any], expected: dict[str, Any]) -> None:
    group = build_optimizer({"learning_rate": 0.1, **fields}, network()).param_groups[0]
    assert {name: group[name] for name in expected} == expected


@pytest.mark.parametrize("modules", ["all-linear", ["0", "2"], r"\d"])
def test_what_is_projected(modules: Any) -> None:
    """The target modules' weights, with the options; the rest as by AdamW, and nothing decays."""
    fields = {"optim": "galore_adamw", "learning_rate": 0.1, "weight_decay": 0.5, "optim_target_modules": modules}
    model = network()
    optimizer = build_optimizer({**fields, "optim_args": "rank=1,scale=0.5"}, model)
    step(model, optimizer, 2)
    first, second = optimizer.param_groups
    assert (first["rank"], first["scale"], first["param_names"]) == (1, 0.5, ["0.weight", "2.weight"])
    assert (second["rank"], second["weight_decay"]) == (0, 0.0)
    assert optimizer.state[model[0].weight]["exp_avg"].shape == (4, 1)


def test_a_matrix_that_is_not_projected_is_adamws() -> None:
    params, grads = {"w": jnp.ones((3, 2))}, {"w": jnp.arange(6.0).reshape(3, 2)}
    for plain in (funcopt.galore(0.1, eps=0.0, rank=0), funcopt.apollo(0.1, eps=0.0, rank=0)):
        expected, _ = funcopt.adamw(0.1, eps=0.0, weight_decay=0.0).update(
            grads, funcopt.adamw(0.1).init(params), params
        )
        found, _ = plain.update(grads, plain.init(params), params)
        assert jnp.allclose(found["w"].ravel()[1:], expected["w"].ravel()[1:], rtol=1e-6)


ERRORS: list[tuple[dict[str, Any], str]] = [
    ({"optim": "adamw_bnb_8bit"}, "got 'adamw_bnb_8bit'; it keeps its state in a few bits: use 'adamw_torch'"),
    ({"optim": "paged_lion_32bit"}, "which changes no number: use 'lion_32bit'"),
    ({"optim": "galore_adamw_layerwise"}, "it updates each layer during the backward pass: use 'galore_adamw'"),
    ({"optim": "adamw_torsh"}, "got 'adamw_torsh'; did you mean 'adamw_torch'?"),
    (
        {"optim": "sgd", "optim_args": "momentun=0.9"},
        "optim_args of sgd: each key must be one of momentum, dampening, n",
    ),
    ({"optim": "apollo_adamw"}, "optim_target_modules must be given for apollo, got None"),
]


@pytest.mark.parametrize(("fields", "message"), ERRORS)
def test_errors(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match="must be") as error:
        build_optimizer({"learning_rate": 0.1, **fields}, network())
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"lr_scheduler_type": "greedy"}, "got 'greedy'; it follows a metric"),
        ({"lr_scheduler_type": "cosin"}, "did you mean 'cosine'?"),
        (
            {"lr_scheduler_type": "cosine", "lr_scheduler_kwargs": {"cycles": 2}},
            "cosine: each key must be one of num_cy",
        ),
        ({"lr_scheduler_type": "cosine_with_min_lr"}, "one of min_lr and min_lr_rate must be given"),
        ({"lr_scheduler_type": "warmup_stable_decay"}, "num_decay_steps must be given"),
        (
            {"lr_scheduler_type": "polynomial", "lr_scheduler_kwargs": '{"lr_end": 1.0}'},
            "lr_end must be < the learning",
        ),
    ],
)
def test_schedule_errors(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match="must be") as error:
        build_schedule({"learning_rate": 0.1, "max_steps": 10, **fields})
    assert message in str(error.value)


def test_schedules_by_epochs() -> None:
    """The length is the epochs' where there is no `max_steps`; a warm-up below 1 is a share of it."""
    cfg = {
        "learning_rate": 1.0,
        "num_train_epochs": 2,
        "warmup_steps": 0.25,
        "lr_scheduler_type": "constant_with_warmup",
    }
    assert build_schedule(cfg, steps_per_epoch=4)([0, 1, 2, 7]).tolist() == [0.0, 0.5, 1.0, 1.0]
    assert build_schedule({**cfg, "warmup_ratio": 0.5}, 2.0, steps_per_epoch=4)([0, 1, 4]).tolist() == [0.0, 0.5, 2.0]
