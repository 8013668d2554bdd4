"""timm's create_optimizer_v2 against build_optimizer: groups, and runs of 100 steps."""

import copy
from typing import Any

import pytest
import torch
from groups.client_models import MODELS, cached, import_timm, values_by_name

from funcopt.config import build_optimizer

pytestmark = pytest.mark.clients

OPTIONS: list[tuple[str, dict[str, Any]]] = [
    ("adamw", {"lr": 0.1, "weight_decay": 0.05}),
    ("adamw", {"lr": 0.1, "weight_decay": 0.05, "filter_bias_and_bn": False}),
    ("adam", {"lr": 0.1}),
    ("sgd", {"lr": 0.1, "weight_decay": 1e-4, "momentum": 0.8}),
    ("adamw", {"lr": 0.1, "weight_decay": 0.05, "layer_decay": 0.7}),
    ("adamw", {"lr": 0.1, "weight_decay": 0.05, "layer_decay": 0.5, "layer_decay_min_scale": 0.2}),
    ("adamw", {"lr": 0.1, "weight_decay": 0.05, "layer_decay": 0.5, "layer_decay_no_opt_scale": 0.3}),
]


def in_use(optimizer: torch.optim.Optimizer) -> list[dict[str, Any]]:
    """The bridge's groups with their multipliers applied."""
    return [
        {
            "params": g["params"],
            "lr": g["lr"] * g.get("lr_mult", 1.0),
            "weight_decay": g["weight_decay"] * g.get("decay_mult", 1.0),
        }
        for g in optimizer.param_groups
    ]


@pytest.mark.parametrize(("name", "options"), OPTIONS, ids=range(len(OPTIONS)))
@pytest.mark.parametrize("model_name", MODELS)
def test_equal_values(model_name: str, name: str, options: dict[str, Any]) -> None:
    model = copy.deepcopy(cached(model_name))
    ours = values_by_name(model, in_use(build_optimizer(name, model, **options)))
    theirs = import_timm().optim.create_optimizer_v2(model, name, **options)
    assert ours == values_by_name(model, theirs.param_groups)


RUNS: list[tuple[str, dict[str, Any]]] = [
    ("adamw", {"lr": 2e-3, "weight_decay": 0.05, "layer_decay": 0.7, "betas": (0.9, 0.95)}),
    ("sgd", {"lr": 0.05, "weight_decay": 1e-4, "layer_decay": 0.9}),
    ("momentum", {"lr": 0.05, "momentum": 0.8}),
    ("rmsprop", {"lr": 1e-3, "weight_decay": 1e-4}),
    ("radamw", {"lr": 1e-3, "weight_decay": 0.05}),
    ("adagrad", {"lr": 1e-2}),
]


@pytest.mark.parametrize(("name", "options"), RUNS, ids=[name for name, _ in RUNS])
def test_a_run_of_100_steps_is_the_same(name: str, options: dict[str, Any]) -> None:
    timm = import_timm()
    cosine = pytest.importorskip("timm.scheduler").CosineLRScheduler
    torch.manual_seed(0)
    ours = MODELS["vit"]().double()
    theirs = copy.deepcopy(ours)
    images, labels = torch.randn(4, 3, 16, 16, dtype=torch.float64), torch.tensor([0, 1, 2, 0])
    optimizers = build_optimizer(name, ours, **options), timm.optim.create_optimizer_v2(theirs, name, **options)
    schedulers = [cosine(o, t_initial=100, warmup_t=10, warmup_lr_init=1e-5) for o in optimizers]
    start = copy.deepcopy(theirs.state_dict())
    for update in range(100):
        for model, optimizer, scheduler in zip((ours, theirs), optimizers, schedulers, strict=True):
            optimizer.zero_grad()
            torch.nn.functional.cross_entropy(model(images + 0.01 * update), labels).backward()
            optimizer.step()
            scheduler.step(update + 1)
    for (key, p), q in zip(ours.named_parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-6, atol=1e-9, msg=lambda text, key=key: f"{key}: {text}")
        assert not torch.equal(q, start[key])
