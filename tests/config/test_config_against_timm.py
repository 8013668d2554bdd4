"""timm's create_optimizer_v2 against build_optimizer: groups, and runs of 100 steps."""

import copy
from collections.abc import Iterator
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


SIZES = {"resnet": 32, "mobilenet": 32, "swin": 32, "vit": 16}

RUNS: list[tuple[str, str, dict[str, Any]]] = [
    ("vit", "adamw", {"lr": 2e-3, "weight_decay": 0.05, "layer_decay": 0.7, "betas": (0.9, 0.95)}),
    ("swin", "adamw", {"lr": 2e-3, "weight_decay": 0.05}),
    ("resnet", "sgd", {"lr": 0.05, "weight_decay": 1e-4, "layer_decay": 0.9}),
    ("vit", "momentum", {"lr": 0.05, "momentum": 0.8}),
    ("resnet", "rmsprop", {"lr": 1e-3, "weight_decay": 1e-4}),
    ("vit", "radamw", {"lr": 1e-3, "weight_decay": 0.05}),
    ("swin", "adagrad", {"lr": 1e-2}),
    ("vit", "sgdw", {"lr": 0.05, "weight_decay": 0.01, "layer_decay": 0.9}),
    ("mobilenet", "nesterovw", {"lr": 0.05, "momentum": 0.8}),
    ("vit", "adamwlegacy", {"lr": 1e-3, "weight_decay": 0.05}),
    ("vit", "nadam", {"lr": 1e-3}),
    ("swin", "adam", {"lr": 1e-3, "weight_decay": 0.01}),
    ("resnet", "adamax", {"lr": 1e-3, "weight_decay": 0.01}),
    ("resnet", "adadelta", {"lr": 0.5}),
    ("vit", "radam", {"lr": 1e-3}),
    # The biases of a ViT's keys have no gradient but rounding, whose sign would be all that Lion sees.
    ("resnet", "lion", {"lr": 1e-3, "weight_decay": 0.05, "betas": (0.8, 0.95), "layer_decay": 0.7}),
    ("resnet", "adabelief", {"lr": 1e-3, "weight_decay": 0.05, "eps": 1e-12}),
    ("resnet", "radabelief", {"lr": 1e-3, "weight_decay": 0.05}),
    ("vit", "adan", {"lr": 1e-3, "weight_decay": 0.05, "betas": (0.9, 0.9, 0.95)}),
    ("resnet", "adanw", {"lr": 1e-3, "weight_decay": 0.05}),
    ("resnet", "adopt", {"lr": 1e-3, "weight_decay": 0.01}),
    ("resnet", "adoptw", {"lr": 1e-3, "weight_decay": 0.05, "eps": 1e-4, "layer_decay": 0.7}),
    ("resnet", "laprop", {"lr": 1e-3, "weight_decay": 0.05}),
    ("vit", "adamp", {"lr": 1e-3, "weight_decay": 0.05}),
    ("vit", "sgdp", {"lr": 0.01, "weight_decay": 0.01}),
    ("vit", "lamb", {"lr": 1e-3, "weight_decay": 0.05}),
    ("resnet", "lambc", {"lr": 1e-3, "weight_decay": 0.05}),
    ("vit", "lambw", {"lr": 1e-3, "weight_decay": 0.05}),
    ("resnet", "lambcw", {"lr": 1e-3, "weight_decay": 0.05}),
    ("resnet", "lars", {"lr": 0.1, "weight_decay": 0.01}),
    ("resnet", "larc", {"lr": 0.1, "weight_decay": 0.01}),
    ("resnet", "nlars", {"lr": 0.1, "weight_decay": 0.01}),
    ("resnet", "nlarc", {"lr": 0.1, "weight_decay": 0.01}),
    ("resnet", "novograd", {"lr": 1e-3, "weight_decay": 0.01}),
    ("resnet", "novogradw", {"lr": 1e-3, "weight_decay": 0.01}),
    # Its momentum is in float32, whose roundings are within the tolerance at this learning rate.
    ("resnet", "adafactorbv", {"lr": 1e-4, "weight_decay": 0.01, "momentum_dtype": "float32"}),
    ("resnet", "cadamw", {"lr": 1e-3, "weight_decay": 0.05}),
    ("resnet", "cadopt", {"lr": 1e-3, "weight_decay": 0.01}),
    ("resnet", "cadoptw", {"lr": 1e-3, "weight_decay": 0.05, "eps": 1e-4}),
    ("resnet", "claprop", {"lr": 1e-3, "weight_decay": 0.05}),
    ("resnet", "clamb", {"lr": 1e-3, "weight_decay": 0.05}),
    ("resnet", "clambw", {"lr": 1e-3, "weight_decay": 0.05}),
    ("resnet", "lambc", {"lr": 1e-3, "weight_decay": 0.05, "caution": True}),
    ("resnet", "clion", {"lr": 1e-3, "weight_decay": 0.05}),
    ("resnet", "lion", {"lr": 1e-3, "weight_decay": 0.05, "caution": True}),
    ("resnet", "rmsproptf", {"lr": 1e-3, "weight_decay": 0.01, "alpha": 0.8}),
    ("vit", "lookahead_adamw", {"lr": 2e-3, "weight_decay": 0.05, "layer_decay": 0.7}),
    ("resnet", "lookahead_sgd", {"lr": 0.05}),
]
RUN_NAMES = {name for _, name, _ in RUNS} | {"nesterov"}


@pytest.fixture
def wide_scalars() -> Iterator[None]:
    """With it timm keeps LaProp's scalars in float64, too."""
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


@pytest.mark.usefixtures("wide_scalars")
@pytest.mark.parametrize(("model_name", "name", "options"), RUNS, ids=[f"{model}-{name}" for model, name, _ in RUNS])
def test_a_run_of_100_steps_is_the_same(model_name: str, name: str, options: dict[str, Any]) -> None:
    timm = import_timm()
    cosine = pytest.importorskip("timm.scheduler").CosineLRScheduler
    torch.manual_seed(0)
    ours = MODELS[model_name]().double().eval()  # a Swin Transformer drops paths at random
    theirs = copy.deepcopy(ours)
    size = SIZES[model_name]
    images, labels = torch.randn(4, 3, size, size, dtype=torch.float64), torch.tensor([0, 1, 2, 0])
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


def test_lookahead_goes_back_every_sixth_step_and_is_in_the_checkpoint() -> None:
    import_timm()
    model = torch.nn.Linear(2, 2).double()
    optimizer = build_optimizer("lookahead_sgd", model, lr=0.1)
    for step in range(1, 13):
        for p in model.parameters():
            p.grad = torch.ones_like(p)
        optimizer.step()
        slow = optimizer.state[model.weight]["lookahead_slow_buff"]
        assert torch.equal(slow, model.weight) is (step % 6 == 0)


def test_every_other_name_of_timm_s_says_what_there_is() -> None:
    names = [name for name in import_timm().optim.list_optimizers() if name not in RUN_NAMES]
    assert len(names) > 55
    for name in names:
        with pytest.raises(ValueError, match=f"timm: opt must be one of adabelief, .*, got '{name}'"):
            build_optimizer(name, torch.nn.Linear(2, 2), lr=0.1)
