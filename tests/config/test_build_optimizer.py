"""One optimizer from every spelling, by tables computed by hand from the documents; and its config back."""

import argparse
import copy
import json
import pickle
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

import funcopt
from funcopt.config import OPTIMIZERS, build_optimizer, to_config


def net() -> torch.nn.Sequential:
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.LayerNorm(4), torch.nn.Linear(4, 2)).double()


NAMES = ["0.weight", "0.bias", "1.weight", "1.bias", "2.weight", "2.bias"]


def set_grads(model: torch.nn.Module, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    for p in model.parameters():
        p.grad = torch.randn(p.shape, generator=generator, dtype=p.dtype)


def table(optimizer: Any, *fields: str) -> dict[str, tuple[Any, ...]]:
    """The fields in use per parameter, multipliers included."""
    mults = {"lr": "lr_mult", "weight_decay": "decay_mult"}
    return {
        name: tuple(g[f] * g.get(mults[f], 1.0) if f in mults else g[f] for f in fields)
        for g in optimizer.param_groups
        for name in g["param_names"]
    }


def train(model: torch.nn.Module, optimizer: Any, steps: int = 5, **loop: Any) -> list[torch.Tensor]:
    for seed in range(steps):
        set_grads(model, seed)
        if "before" in loop:
            loop["before"](seed)
        optimizer.step()
    return [p.detach() for p in model.parameters()]


def assert_same_run(cfg: Any, make: Callable[[torch.nn.Module], Any], **options: Any) -> None:
    ours, theirs = net(), net()
    for p, q in zip(train(ours, build_optimizer(cfg, ours, **options)), train(theirs, make(theirs)), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-12, atol=1e-14)


def decay_groups(model: torch.nn.Module, decay: float) -> list[dict[str, Any]]:
    return [
        {"params": [p for p in model.parameters() if p.ndim > 1], "weight_decay": decay},
        {"params": [p for p in model.parameters() if p.ndim <= 1], "weight_decay": 0.0},
    ]


class Section:
    """Stands for SCEPTER's Config: an object that holds its dict."""

    def __init__(self, **cfg: Any) -> None:
        self.cfg_dict = cfg


SWIN = {
    "TRAIN": {
        "OPTIMIZER": {"NAME": "adamw", "EPS": 1e-6, "BETAS": (0.8, 0.9), "MOMENTUM": 0.7},
        "BASE_LR": 0.01,
        "WEIGHT_DECAY": 0.05,
        "CLIP_GRAD": 5.0,
    },
    "DATA": {"BATCH_SIZE": 8},
}
SWIN_SGD = {"TRAIN": SWIN["TRAIN"] | {"OPTIMIZER": {"NAME": "SGD", "MOMENTUM": 0.7}}}

SAME_RUNS: dict[str, tuple[Any, dict[str, Any], Callable[[torch.nn.Module], Any]]] = {
    "mmengine": (
        {"type": "SGD", "lr": 0.1, "momentum": 0.9, "weight_decay": 0.01},
        {},
        lambda m: torch.optim.SGD(m.parameters(), 0.1, momentum=0.9, weight_decay=0.01),
    ),
    "mmengine, class for type": (
        {"type": torch.optim.AdamW, "lr": 0.01},
        {},
        lambda m: torch.optim.AdamW(m.parameters(), 0.01),
    ),
    "scepter": (
        {"NAME": "SGD", "LEARNING_RATE": 0.1, "MOMENTUM": 0.9, "DAMPENING": 0.1, "WEIGHT_DECAY": 0.01},
        {},
        lambda m: torch.optim.SGD(m.parameters(), 0.1, momentum=0.9, dampening=0.1, weight_decay=0.01),
    ),
    "scepter's own defaults": (
        {"OPTIMIZER": Section(NAME="Adam")},
        {},
        lambda m: torch.optim.Adam(m.parameters(), 1e-2, eps=1e-10),
    ),
    "scepter's AdamW does not decay": (
        Section(NAME="AdamW", LEARNING_RATE=0.01, BETAS=[0.8, 0.9]),
        {},
        lambda m: torch.optim.AdamW(m.parameters(), 0.01, betas=(0.8, 0.9), weight_decay=0.0),
    ),
    "scepter's Adagrad": (
        {"NAME": "Adagrad", "LEARNING_RATE_DECAY": 0.1, "INITIAL_ACCUMULATOR_VALUE": 0.2},
        {},
        lambda m: torch.optim.Adagrad(m.parameters(), lr_decay=0.1, initial_accumulator_value=0.2),
    ),
    "swin": (
        SWIN,
        {},
        lambda m: torch.optim.AdamW(decay_groups(m, 0.05), 0.01, eps=1e-6, betas=(0.8, 0.9)),
    ),
    "swin, SGD is Nesterov's": (
        SWIN_SGD,
        {},
        lambda m: torch.optim.SGD(decay_groups(m, 0.05), 0.01, momentum=0.7, nesterov=True),
    ),
    "timm": (
        "adamw",
        {"lr": 0.01, "weight_decay": 0.05},
        lambda m: torch.optim.AdamW(decay_groups(m, 0.05), 0.01),
    ),
    "timm, sgd is Nesterov's": (
        "sgd",
        {"lr": 0.1},
        lambda m: torch.optim.SGD(m.parameters(), 0.1, momentum=0.9, nesterov=True),
    ),
    "timm by argparse": (
        argparse.Namespace(opt="momentum", lr=0.1, weight_decay=0.05, momentum=0.8, opt_eps=None, opt_betas=None),
        {},
        lambda m: torch.optim.SGD(decay_groups(m, 0.05), 0.1, momentum=0.8),
    ),
    "torch class": (
        torch.optim.RMSprop,
        {"lr": 0.01, "centered": True, "foreach": True},
        lambda m: torch.optim.RMSprop(m.parameters(), 0.01, centered=True),
    ),
    "funcopt function": (funcopt.adam, {"lr": 0.01}, lambda m: torch.optim.Adam(m.parameters(), 0.01)),
}


@pytest.mark.parametrize(("cfg", "options", "make"), SAME_RUNS.values(), ids=SAME_RUNS)
def test_same_run_as_torch_s(cfg: Any, options: dict[str, Any], make: Callable[[torch.nn.Module], Any]) -> None:
    assert_same_run(cfg, make, **options)


@pytest.mark.parametrize(("cfg", "options", "make"), SAME_RUNS.values(), ids=SAME_RUNS)
def test_to_config_builds_the_same_again(cfg: Any, options: dict[str, Any], make: Any) -> None:
    del make
    first, second = net(), net()
    optimizer = build_optimizer(cfg, first, **options)
    config = to_config(optimizer)
    again = build_optimizer(config, second)
    assert to_config(again) == config
    assert repr(again) == repr(optimizer)
    config["lr"] = -1.0
    assert to_config(optimizer) != config


@pytest.mark.parametrize(("cfg", "options", "make"), SAME_RUNS.values(), ids=SAME_RUNS)
def test_to_config_is_plain_data(cfg: Any, options: dict[str, Any], make: Any) -> None:
    del make
    optimizer = build_optimizer(cfg, net(), **options)
    as_json = json.loads(json.dumps(to_config(optimizer)))
    assert repr(build_optimizer(as_json, net())) == repr(optimizer)


@pytest.mark.parametrize(("cfg", "options", "make"), SAME_RUNS.values(), ids=SAME_RUNS)
def test_pytree_gets_the_same_run(cfg: Any, options: dict[str, Any], make: Any) -> None:
    del make
    model = net()
    with jax.enable_x64(True):
        as_tree = lambda field: {n: jnp.asarray(getattr(p, field).numpy()) for n, p in model.named_parameters()}  # noqa: E731
        params = as_tree("data")
        bridge = build_optimizer(cfg, model, **options)
        tx = build_optimizer(cfg, params, **options)
        state = tx.init(params)
        for seed in range(4):
            set_grads(model, seed)
            updates, state = tx.update(as_tree("grad"), state, params)
            params = funcopt.apply_updates(params, updates)
            bridge.step()
        for name, p in model.named_parameters():
            np.testing.assert_allclose(params[name], p.detach().numpy(), rtol=1e-11, atol=1e-14)


def test_paramwise_rules_and_custom_keys_by_hand() -> None:
    cfg = {
        "type": "SGD",
        "lr": 0.1,
        "weight_decay": 0.01,
        "momentum": 0.9,
        "paramwise_cfg": {"norm_decay_mult": 0.0, "bias_lr_mult": 2.0, "custom_keys": {"2": {"lr_mult": 0.1}}},
    }
    optimizer = build_optimizer(cfg, net())
    values = {name: pytest.approx(row) for name, row in table(optimizer, "lr", "weight_decay").items()}
    assert values == {
        "0.weight": (0.1, 0.01),
        "0.bias": (0.2, 0.01),
        "1.weight": (0.1, 0.0),
        "1.bias": (0.1, 0.0),
        "2.weight": (0.01, 0.01),
        "2.bias": (0.01, 0.01),
    }


def test_rules_in_a_config() -> None:
    rules = [{"kind": ["bias", "norm"], "decay_mult": 0.0}, {"path": "0", "freeze": True}, {"path": "2", "lr_mult": 10}]
    optimizer = build_optimizer({"type": "adamw", "lr": 0.1, "weight_decay": 0.5, "rules": rules}, net())
    assert table(optimizer, "lr", "weight_decay") == {
        "1.weight": (0.1, 0.0),
        "1.bias": (0.1, 0.0),
        "2.weight": (1.0, 0.5),
        "2.bias": (1.0, 0.0),
    }


WRAPPED = {
    "type": "OptimWrapper",
    "optimizer": {"type": "SGD", "lr": 0.1, "momentum": 0.9},
    "clip_grad": {"max_norm": 0.7},
    "accumulative_counts": 2,
}


def test_optim_wrapper_clips_and_accumulates() -> None:
    ours, theirs = net(), net()
    train(ours, build_optimizer({"optim_wrapper": WRAPPED}, ours), steps=6)
    optimizer = torch.optim.SGD(theirs.parameters(), 0.1, momentum=0.9)
    for seed in range(0, 6, 2):
        total = [torch.zeros_like(p) for p in theirs.parameters()]
        for micro in (seed, seed + 1):
            set_grads(theirs, micro)
            for t, p in zip(total, theirs.parameters(), strict=True):
                assert p.grad is not None
                t += p.grad / 2
        for t, p in zip(total, theirs.parameters(), strict=True):
            p.grad = t
        torch.nn.utils.clip_grad_norm_(theirs.parameters(), 0.7)
        optimizer.step()
    for p, q in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-11, atol=1e-14)


def test_clip_by_value() -> None:
    model = net()
    before = [p.detach().clone() for p in model.parameters()]
    cfg = WRAPPED | {"clip_grad": {"type": "value", "clip_value": 0.1}, "accumulative_counts": 1}
    after = train(model, build_optimizer(cfg, model), steps=1)
    assert max(float((a - b).abs().max()) for a, b in zip(after, before, strict=True)) == pytest.approx(0.01)


WHOLE = {
    "optim_wrapper": {"optimizer": {"type": "SGD", "lr": 1.0, "momentum": 0.8}},
    "param_scheduler": [
        {"type": "LinearLR", "start_factor": 0.5, "begin": 0, "end": 3, "by_epoch": False},
        {"type": "MultiStepLR", "milestones": [2, 3], "gamma": 0.1, "by_epoch": True},
        {"type": "StepMomentum", "step_size": 1, "gamma": 0.5, "by_epoch": True},
    ],
    "train_cfg": {"max_epochs": 4},
}
# Updates 0 to 7 with two updates per epoch, by hand.
WHOLE_LR = [0.5, 0.75, 1.0, 1.0, 0.1, 0.1, 0.01, 0.01]
WHOLE_MOMENTUM = [0.8, 0.8, 0.4, 0.4, 0.2, 0.2, 0.1, 0.1]


def test_whole_config_has_its_schedules_if_it_is_told_the_length_of_an_epoch() -> None:
    model = net()
    optimizer = build_optimizer(WHOLE, model, steps_per_epoch=2)
    for seed, (lr, momentum) in enumerate(zip(WHOLE_LR, WHOLE_MOMENTUM, strict=True)):
        set_grads(model, seed)
        optimizer.step()
        group = optimizer.param_groups[0]
        assert (group["lr"], group["momentum"]) == (pytest.approx(lr), pytest.approx(momentum))
    assert build_optimizer(WHOLE, model).param_groups[0]["lr"] == 1.0
    assert repr(build_optimizer(to_config(optimizer), net())) == repr(build_optimizer(WHOLE, net(), steps_per_epoch=2))


def test_momentum_schedule_of_adam_is_that_of_beta1() -> None:
    model = net()
    cfg = copy.deepcopy(WHOLE)
    cfg["optim_wrapper"]["optimizer"] = {"type": "Adam", "lr": 1.0, "betas": (0.8, 0.99)}
    optimizer = build_optimizer(cfg, model, steps_per_epoch=1)
    for seed, beta1 in enumerate([0.8, 0.4, 0.2]):
        set_grads(model, seed)
        optimizer.step()
        assert optimizer.param_groups[0]["betas"] == (pytest.approx(beta1), 0.99)


def test_accumulation_counts_micro_steps_in_both_frameworks() -> None:
    cfg = WHOLE | {"optim_wrapper": WHOLE["optim_wrapper"] | {"accumulative_counts": 2}}
    model = net()
    with jax.enable_x64(True):
        as_tree = lambda field: {n: jnp.asarray(getattr(p, field).numpy()) for n, p in model.named_parameters()}  # noqa: E731
        params = as_tree("data")
        bridge = build_optimizer(cfg, model, steps_per_epoch=2)
        tx = build_optimizer(cfg, params, steps_per_epoch=2)
        state = tx.init(params)
        for seed in range(8):
            set_grads(model, seed)
            updates, state = tx.update(as_tree("grad"), state, params)
            params = funcopt.apply_updates(params, updates)
            bridge.step()
        for name, p in model.named_parameters():
            np.testing.assert_allclose(params[name], p.detach().numpy(), rtol=1e-6, atol=1e-8)


def test_scepter_s_sections_with_a_schedule() -> None:
    cfg = {
        "OPTIMIZER": {"NAME": "SGD", "LEARNING_RATE": 1.0},
        "LR_SCHEDULER": {"NAME": "StepLR", "STEP_SIZE": 2, "GAMMA": 0.5},
    }
    model = net()
    optimizer = build_optimizer(cfg, model, steps_per_epoch=1)
    for seed, lr in enumerate([1.0, 1.0, 0.5, 0.5, 0.25]):
        set_grads(model, seed)
        optimizer.step()
        assert optimizer.param_groups[0]["lr"] == lr


def test_scepter_s_build() -> None:
    cfg = {"NAME": "SGD", "LEARNING_RATE": 0.1}
    optimizer = OPTIMIZERS.build(cfg, logger=object(), parameters=net().parameters())
    assert optimizer.param_groups[0]["lr"] == 0.1
    model = net()
    groups = [{"params": [model[0].weight], "lr": 0.5}, {"params": [("b", model[0].bias)], "lr_mult": 0.1}]
    optimizer = OPTIMIZERS.build(cfg, parameters=groups)
    assert table(optimizer, "lr") == {"0.0": (0.5,), "b": (pytest.approx(0.01),)}


@pytest.mark.parametrize("suffix", [".yaml", ".yml", ".json"])
def test_files(suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"config{suffix}"
    text = json.dumps(WHOLE)
    if suffix != ".json":
        pytest.importorskip("yaml")
        text = "type: AdamW\nlr: 1e-3\nbetas: [0.8, 0.9]\n"
    path.write_text(text)
    for given in (path, str(path)):
        optimizer = build_optimizer(given, net())
        group = optimizer.param_groups[0]
        assert (group["lr"], group.get("betas")) == ((1.0, None) if suffix == ".json" else (1e-3, (0.8, 0.9)))
        assert isinstance(to_config(optimizer), Mapping)


def test_texts_of_yaml_stay_texts(tmp_path: Path) -> None:
    pytest.importorskip("yaml")
    path = tmp_path / "config.yaml"
    path.write_text('type: AdamW\nlr: 1e-3\nrules: [{path: "0", lr_mult: 2e+0}]\n')
    optimizer = build_optimizer(path, torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Linear(2, 2)))
    assert [group.get("lr_mult") for group in optimizer.param_groups] == [2.0, None]


def test_yaml_without_its_library(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_text("type: AdamW\n")
    monkeypatch.setitem(sys.modules, "yaml", None)
    with pytest.raises(ImportError, match=r"YAML configs need PyYAML, .* pip install 'funcopt\[config\]'"):
        build_optimizer(path, net())


def test_timm_s_script_has_many_arguments_of_which_these_count() -> None:
    args = argparse.Namespace(
        data="/images", batch_size=8, opt="lookahead_sgd", lr=1.0, weight_decay=0.0, momentum=0.8, opt_eps=None,
        layer_decay=None, sched="cosine", epochs=4, warmup_epochs=2, warmup_lr=0.2, min_lr=0.0, sched_on_updates=False,
        lr_noise=None, lr_cycle_limit=1, seed=42,
    )  # fmt: skip
    model = net()
    optimizer = build_optimizer(args, model, steps_per_epoch=2)
    seen = []
    for seed in range(8):
        set_grads(model, seed)
        optimizer.step()
        seen.append(optimizer.param_groups[0]["lr"])
    assert seen == pytest.approx([0.2, 0.2, 0.6, 0.6, 0.5, 0.5, 0.1464466094, 0.1464466094])
    config = to_config(optimizer)
    assert {"data", "batch_size", "seed"}.isdisjoint(config)
    assert repr(build_optimizer(json.loads(json.dumps(config)), net())) == repr(
        build_optimizer(args, net(), steps_per_epoch=2)
    )


def test_lookahead_by_hand_in_both_frameworks() -> None:
    p = torch.nn.Parameter(torch.zeros(1, dtype=torch.float64))
    bridge = build_optimizer("lookahead_sgd", [("p", p)], lr=1.0, momentum=0.0, nesterov=False)
    with jax.enable_x64(True):
        params = {"p": jnp.zeros(1)}
        tx = build_optimizer("lookahead_sgd", params, lr=1.0, momentum=0.0, nesterov=False)
        state = tx.init(params)
        # At step 6 the slow weights begin; at step 12 they go half of the way from -6 to -12, and the others with them.
        for expected in [-1, -2, -3, -4, -5, -6, -7, -8, -9, -10, -11, -9, -10, -11, -12, -13, -14, -12]:
            p.grad = torch.ones_like(p)
            bridge.step()
            updates, state = tx.update({"p": jnp.ones(1)}, state, params)
            params = funcopt.apply_updates(params, updates)
            assert (p.item(), float(params["p"][0])) == (expected, expected)
    again = pickle.loads(pickle.dumps(bridge))
    assert float(again.state_dict()["state"][0]["lookahead_slow_buff"]) == -12.0


def test_alpha_of_rmsproptf_is_once_for_all_groups() -> None:
    model = net()
    optimizer = build_optimizer("rmsproptf", model, lr=0.1, weight_decay=0.5, alpha=0.75, eps=0.0)
    assert [g.get("decay_mult", 1.0) for g in optimizer.param_groups] == [1.0, 0.0]
    assert all("alpha" not in group for group in optimizer.param_groups)
    before = model[1].bias.detach().clone()
    train(model, optimizer, steps=1)
    g = model[1].bias.grad
    assert torch.allclose(before - model[1].bias, 0.1 * g / (0.75 + 0.25 * g * g).sqrt(), rtol=1e-12)
    again = pickle.loads(pickle.dumps(optimizer))
    assert again.state_dict()["param_groups"] == optimizer.state_dict()["param_groups"]


def test_schedule_nested_in_a_config() -> None:
    model = net()
    inner = {"type": "cosine_annealing_lr", "base_lr": 1.0, "T_max": 4}
    cfg = {"type": "sgd", "lr": {"type": "warmup", "schedule": inner, "warmup_steps": 2}}
    optimizer = build_optimizer(cfg, model)
    for seed, lr in enumerate([0.0, 0.5, 1.0, 0.8535533906, 0.5]):
        set_grads(model, seed)
        optimizer.step()
        assert optimizer.param_groups[0]["lr"] == pytest.approx(lr)
    json.dumps(to_config(optimizer))


def test_adopting_a_live_torch_optimizer_with_its_state() -> None:
    ours, theirs = net(), net()

    def make(m: torch.nn.Sequential) -> torch.optim.Optimizer:
        rest = {"params": [*m[1:].parameters()], "weight_decay": 0.0}
        return torch.optim.AdamW([{"params": [m[0].weight], "lr": 0.05}, rest], lr=0.01)

    live, reference = make(ours), make(theirs)
    train(ours, live)
    train(theirs, reference)
    bridge = build_optimizer(live, ours)
    assert isinstance(bridge, funcopt.TorchBridge)
    for p, q in zip(train(ours, bridge), train(theirs, reference), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-12, atol=1e-14)
    config = to_config(bridge)
    assert config["rules"] == [
        {"path": ["0.weight"], "lr": 0.05},
        {"path": ["1.weight", "1.bias", "2.weight", "2.bias"], "weight_decay": 0.0},
    ]
    again = build_optimizer(config, net())
    assert table(again, "lr", "weight_decay")["2.bias"] == (0.01, 0.0)
    assert build_optimizer(bridge, ours) is bridge


CLASSES: list[tuple[Any, dict[str, Any]]] = [
    (torch.optim.SGD, {"lr": 0.1, "momentum": 0.9, "nesterov": True, "weight_decay": 0.01}),
    (torch.optim.Adam, {"lr": 0.01, "amsgrad": True, "weight_decay": 0.01}),
    (torch.optim.NAdam, {"lr": 0.01, "decoupled_weight_decay": True}),
    (torch.optim.RAdam, {"lr": 0.01}),
    (torch.optim.Adamax, {"lr": 0.01}),
    (torch.optim.Adagrad, {"lr": 0.05, "lr_decay": 0.1}),
    (torch.optim.Adadelta, {"lr": 0.5}),
    (torch.optim.RMSprop, {"lr": 0.01, "momentum": 0.9, "centered": True}),
    (torch.optim.Rprop, {"lr": 0.01}),
    (torch.optim.ASGD, {"lr": 0.01, "t0": 3}),
]


@pytest.mark.parametrize(("kind", "options"), CLASSES, ids=[kind.__name__ for kind, _ in CLASSES])
def test_adopting_each_class_with_its_state_and_scheduler(kind: Any, options: dict[str, Any]) -> None:
    ours, theirs = net(), net()
    live, reference = kind(ours.parameters(), **options), kind(theirs.parameters(), **options)
    schedulers = [torch.optim.lr_scheduler.CosineAnnealingLR(o, 8, 1e-4) for o in (live, reference)]
    for model, optimizer, scheduler in zip((ours, theirs), (live, reference), schedulers, strict=True):
        train(model, optimizer, steps=4, before=lambda seed, s=scheduler: s.step() if seed else None)
    bridge = build_optimizer(live, ours)
    adopted = funcopt.config.SCHEDULES.build(schedulers[0], optimizer=bridge)
    for model, optimizer, scheduler in ((ours, bridge, adopted), (theirs, reference, schedulers[1])):
        train(model, optimizer, steps=4, before=lambda seed, s=scheduler: s.step())
    for p, q in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-11, atol=1e-14)
    again = build_optimizer(json.loads(json.dumps(to_config(bridge))), net())
    kept = {k: v for k, v in reference.defaults.items() if k in again.param_groups[0] and k != "lr"}
    assert {k: again.param_groups[0][k] for k in kept} == kept


def test_adopting_a_live_scheduler() -> None:
    ours, theirs = net(), net()
    pairs = []
    for model in (ours, theirs):
        optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
        warm = torch.optim.lr_scheduler.LinearLR(optimizer, 0.1, total_iters=4)
        step = torch.optim.lr_scheduler.StepLR(optimizer, 2)
        pairs.append((optimizer, torch.optim.lr_scheduler.SequentialLR(optimizer, [warm, step], [4])))
    bridge = scheduler = None
    for seed in range(10):
        if seed == 3:
            bridge = build_optimizer(pairs[0][0], ours)
            scheduler = funcopt.config.SCHEDULES.build(pairs[0][1], optimizer=bridge)
        for model, (optimizer, own) in zip((ours, theirs), pairs, strict=True):
            set_grads(model, seed)
            adopted = bridge is not None and model is ours
            (bridge if adopted else optimizer).step()
            (scheduler if adopted else own).step()
    for p, q in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-12, atol=1e-14)


def test_built_optimizer_is_pickled() -> None:
    model = net()
    optimizer = build_optimizer({"optim_wrapper": WRAPPED}, model)
    train(model, optimizer, steps=3)
    again = pickle.loads(pickle.dumps(optimizer))
    assert again.state_dict()["param_groups"] == optimizer.state_dict()["param_groups"]


ERRORS = [
    ({"lr": 0.1}, "build_optimizer: the config must have one of type, optimizer, optim_wrapper (MMEngine), NAME"),
    ({"type": "SGDD", "lr": 0.1}, "'SGDD' must be one of the registered optimizers; did you mean 'sgd'?"),
    ({"NAME": "SGDD", "LEARNING_RATE": 0.1}, "did you mean 'sgd'?"),
    ({"NAME": "SGD", "LEARNING_RAT": 0.1}, "sgd: each key must be one of dampening, lr, maximize, momentum, nesterov"),
    ({"optimizer": {"lr": 0.1}}, "optimizer: type must be given, got None"),
    ({"OPTIMIZER": {"LEARNING_RATE": 0.1}}, "OPTIMIZER: NAME must be given, got None"),
    ({"TRAIN": {"OPTIMIZER": {"NAME": "sgd"}, "BASE_LR": 0.1}}, "TRAIN: WEIGHT_DECAY must be given, got None"),
    ({"opt": "adamww"}, "got 'adamww'; did you mean 'adamw'?"),
    ({"opt": "adamw", "layer_decy": 0.5}, "adamw: each key must be one of amsgrad, betas, eps, lr, maximize,"),
    ({"opt": "lookahead_sdgw"}, "got 'sdgw'; did you mean 'sgdw'?"),
    ({"opt": "muon"}, "got 'muon'; timm's muon is another algorithm than funcopt's, which is dict(type='muon', ...)"),
    ({"opt": "rmsproptf", "alfa": 0.9}, "rmsproptf: each key must be one of lr, momentum, weight_decay, got 'alfa'"),
    (
        {"type": "SGD", "lr": 0.1, "paramwise_cfg": {"bias_decay_mult": 0.0}},
        "paramwise_cfg: weight_decay must be in the optimizer's config for bias_decay_mult, got None",
    ),
    (
        {"type": "SGD", "weight_decay": 0.1, "paramwise_cfg": {"custom_keys": {"0": {"lr_mult": 0.1}}}},
        "paramwise_cfg: lr must be in the optimizer's config for lr_mult, got None",
    ),
    (WRAPPED | {"clip_grd": {}}, "optim_wrapper: each key must be one of type, optimizer, paramwise_cfg, clip_grad"),
    (WRAPPED | {"type": "OptimWraper"}, "optim_wrapper: type must be one of OptimWrapper, AmpOptimWrapper, got"),
    (WRAPPED | {"constructor": "Other"}, "'Other' must be one of the registered constructors; there are DefaultOptim"),
    (WRAPPED | {"constructor": 3}, "optim_wrapper: constructor must be a name or a constructor, got 3"),
    (
        WRAPPED | {"optimizer": torch.optim.SGD(net().parameters(), 0.1)},
        "optimizer must be a config, got 'SGD'; give a",
    ),
    (
        WRAPPED | {"clip_grad": {"max_nrm": 1}},
        "clip_grad: each key must be one of max_norm, got 'max_nrm'; did you mean",
    ),
    (WRAPPED | {"clip_grad": {"max_norm": 1, "norm_type": 1}}, "clip_grad: norm_type must be 2, got 1"),
    (WRAPPED | {"clip_grad": {"type": "agc"}}, "clip_grad: type must be 'norm' or 'value', got 'agc'"),
    (WRAPPED | {"clip_grad": {"type": "value"}}, "clip_grad: clip_value must be given, got None"),
    (WRAPPED | {"accumulative_counts": 0}, "optim_wrapper: accumulative_counts must be >= 1, got 0"),
    ({"type": "sgd", "lr": 0.1, "rules": [{"knd": "bias", "lr_mult": 2}]}, "did you mean 'kind'?"),
    ({"TRAIN": SWIN["TRAIN"] | {"OPTIMIZER": {"NAME": "lamb"}}}, "TRAIN.OPTIMIZER: NAME must be 'sgd' or 'adamw', got"),
]


@pytest.mark.parametrize(("cfg", "message"), ERRORS, ids=range(len(ERRORS)))
def test_error_says_what_is_wrong(cfg: Any, message: str) -> None:
    with pytest.raises(ValueError, match="must") as error:
        build_optimizer(cfg, net())
    assert message in str(error.value)


def test_live_optimizer_takes_nothing_else() -> None:
    for live in (torch.optim.SGD(net().parameters(), 0.1), build_optimizer("adamw", net(), lr=0.1)):
        with pytest.raises(ValueError, match="build_optimizer: lr must be set in the live optimizer that is given"):
            build_optimizer(live, lr=0.2)


def test_schedules_start_from_the_algorithm_s_own_defaults() -> None:
    scheduler = [{"type": "StepLR", "step_size": 1}, {"type": "StepMomentum", "step_size": 1, "gamma": 0.5}]
    configs = [
        {"optim_wrapper": {"optimizer": {"type": "Adam"}}, "param_scheduler": scheduler},
        {"OPTIMIZER": {"NAME": "RMSprop"}, "LR_SCHEDULER": {"NAME": "StepLR", "STEP_SIZE": 1, "GAMMA": 0.1}},
        {"opt": "adamw", "sched": "step", "decay_epochs": 1},
    ]
    for cfg, lr in zip(configs, (1e-3, 1e-2, 1e-3), strict=True):
        model = net()
        optimizer = build_optimizer(cfg, model, steps_per_epoch=1)
        train(model, optimizer, steps=2)
        group = optimizer.param_groups[0]
        assert group["lr"] == pytest.approx(0.1 * lr)
        assert "StepMomentum" not in str(cfg) or group["betas"] == (0.45, 0.999)


def test_configs_in_python_have_classes_for_types() -> None:
    class OptimWrapper: ...

    class StepLR: ...

    cfg = {
        "optim_wrapper": {"type": OptimWrapper, "optimizer": {"type": torch.optim.AdamW, "lr": 0.1}},
        "param_scheduler": [{"type": StepLR, "step_size": 1, "end": 4}],
    }
    model = net()
    optimizer = build_optimizer(cfg, model, steps_per_epoch=1)
    assert isinstance(optimizer, funcopt.TorchBridge)
    train(model, optimizer, steps=2)
    assert optimizer.param_groups[0]["lr"] == pytest.approx(0.01)


def test_more_errors() -> None:
    with pytest.raises(ValueError, match="lr must be given in the config, which has sections"):
        build_optimizer(SWIN, net(), lr=0.1)
    with pytest.raises(ValueError, match="to_config: the optimizer must have been built by build_optimizer"):
        to_config(funcopt.sgd(0.1))
    with pytest.raises(ValueError, match=r"config: the file's suffix must be one of .json, .yaml, .yml, got '.toml'"):
        build_optimizer(Path("config.toml"), net())
    with pytest.raises(ValueError, match="'LBFGS2' must be one of the registered optimizers"):
        build_optimizer(type("LBFGS2", (torch.optim.SGD,), {})(net().parameters()), net())


SWIN = {"TRAIN": {"BASE_LR": 1e-3, "WEIGHT_DECAY": 0.1, "OPTIMIZER": {"NAME": "adamw"}}}


@pytest.mark.parametrize(
    "config",
    [{"optim": "adamw_torch", "learning_rate": 1e-3, "weight_decay": 0.1}, SWIN],
    ids=["Hugging Face", "Swin"],
)
def test_groups_come_in_the_reference_s_order(config: Any) -> None:
    """First what decays, wherever the model has it, so that the reference's checkpoint loads by position."""
    torch = pytest.importorskip("torch")
    linear = torch.nn.Linear(4, 4, bias=False)
    model = torch.nn.ModuleDict({"first_norm": torch.nn.LayerNorm(4, bias=False), "linear": linear})
    decays, stays = [linear.weight], [model["first_norm"].weight]
    theirs = torch.optim.AdamW([{"params": decays}, {"params": stays, "weight_decay": 0.0}], lr=1e-3)
    for i, p in enumerate([*decays, *stays]):
        p.grad = torch.full_like(p, i + 1.0)
    theirs.step()
    ours = build_optimizer(config, model)
    ours.load_state_dict(theirs.state_dict())
    for p in [*decays, *stays]:
        assert torch.equal(ours.state[p]["exp_avg"], theirs.state[p]["exp_avg"])
