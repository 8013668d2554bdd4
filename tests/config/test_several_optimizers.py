"""MMEngine's several optimizers for several submodules, its constructors, and what follows a metric."""

import copy
import json
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

import funcopt
from funcopt.config import CONSTRUCTORS, SCHEDULES, Optimizers, build_optimizer, to_config


class Gan(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.generator = torch.nn.Sequential(torch.nn.Linear(2, 4), torch.nn.LayerNorm(4), torch.nn.Linear(4, 2))
        self.critics = torch.nn.ModuleDict({"main": torch.nn.Linear(2, 1)})
        self.double()


GAN: dict[str, Any] = {
    "generator": {
        "type": "OptimWrapper",
        "optimizer": {"type": "Adam", "lr": 0.01, "betas": [0.5, 0.99], "weight_decay": 0.1},
        "paramwise_cfg": {"custom_keys": {"1": {"decay_mult": 0.0}}},
    },
    "critics.main": {"optimizer": {"type": "SGD", "lr": 0.1, "momentum": 0.9}, "clip_grad": {"max_norm": 0.5}},
}


def set_grads(model: torch.nn.Module, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    for p in model.parameters():
        p.grad = torch.randn(p.shape, generator=generator, dtype=p.dtype)


def as_tree(model: torch.nn.Module, field: str) -> dict[str, Any]:
    """Tensors as nested dicts."""
    tree: dict[str, Any] = {}
    for name, p in model.named_parameters():
        *above, leaf = name.split(".")
        node = tree
        for segment in above:
            node = node.setdefault(segment, {})
        node[leaf] = jnp.asarray(getattr(p, field).numpy())
    return tree


@pytest.mark.parametrize(
    "cfg", [GAN, {"optim_wrapper": GAN}, {"optim_wrapper": {**GAN, "constructor": "MultiOptimWrapperConstructor"}}]
)
def test_one_optimizer_for_each_submodule_by_name(cfg: dict[str, Any]) -> None:
    ours, theirs = Gan(), Gan()
    optimizers = build_optimizer(cfg, ours)
    assert list(optimizers) == ["generator", "critics.main"]
    norm, rest = (
        [*theirs.generator[1].parameters()],
        [*theirs.generator[0].parameters(), *theirs.generator[2].parameters()],
    )
    adam = torch.optim.Adam(
        [{"params": rest}, {"params": norm, "weight_decay": 0}], 0.01, (0.5, 0.99), weight_decay=0.1
    )
    sgd = torch.optim.SGD(theirs.critics.parameters(), 0.1, momentum=0.9)
    for seed in range(6):
        set_grads(ours, seed)
        set_grads(theirs, seed)
        torch.nn.utils.clip_grad_norm_(theirs.critics.parameters(), 0.5)
        if seed % 2:
            optimizers["generator"].step()
            adam.step()
        optimizers["critics.main"].step()
        sgd.step()
    for p, q in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-11, atol=1e-14)


def test_to_config_of_several_builds_them_again() -> None:
    cfg = {"optim_wrapper": GAN, "param_scheduler": {name: [{"type": "StepLR", "step_size": 1}] for name in GAN}}
    model = Gan()
    optimizers = build_optimizer(cfg, model, steps_per_epoch=2)
    again = build_optimizer(json.loads(json.dumps(to_config(optimizers))), Gan())
    assert isinstance(again, Optimizers)
    assert to_config(again) == to_config(optimizers)
    assert {name: repr(o) for name, o in again.items()} == {name: repr(o) for name, o in optimizers.items()}
    for seed in range(3):
        set_grads(model, seed)
        optimizers["generator"].step()
    assert optimizers["generator"].param_groups[0]["lr"] == pytest.approx(1e-3)
    again.load_state_dict(optimizers.state_dict())
    assert again["generator"].state_dict()["param_groups"] == optimizers["generator"].state_dict()["param_groups"]
    optimizers.zero_grad()
    assert all(p.grad is None for p in model.parameters())
    with pytest.raises(ValueError, match=r"Optimizers: state_dict must be of generator, critics.main, got \['g'\]"):
        again.load_state_dict({"g": {}})


def test_schedulers_of_all_or_of_each() -> None:
    step, cosine = [{"type": "StepLR", "step_size": 1}], [{"type": "CosineAnnealingLR", "T_max": 2}]
    for schedulers, expected in ((step, [1e-3, 1e-2]), ({"generator": step, "critics.main": cosine}, [1e-3, 0.05])):
        model = Gan()
        optimizers = build_optimizer({"optim_wrapper": GAN, "param_scheduler": schedulers}, model, steps_per_epoch=1)
        for seed in range(2):
            set_grads(model, seed)
            for optimizer in optimizers.values():
                optimizer.step()
        assert [o.param_groups[0]["lr"] for o in optimizers.values()] == pytest.approx(expected)


def test_pytree_has_a_transformation_for_each_subtree() -> None:
    model = Gan()
    with jax.enable_x64(True):
        params = as_tree(model, "data")
        txs = build_optimizer(GAN, params)
        bridges = build_optimizer(GAN, model)
        own = {"generator": params["generator"], "critics.main": params["critics"]["main"]}
        states = {name: tx.init(own[name]) for name, tx in txs.items()}
        for seed in range(3):
            set_grads(model, seed)
            grads = as_tree(model, "grad")
            grads = {"generator": grads["generator"], "critics.main": grads["critics"]["main"]}
            for name, tx in txs.items():
                updates, states[name] = tx.update(grads[name], states[name], own[name])
                own[name] = funcopt.apply_updates(own[name], updates)
                bridges[name].step()
        expected = as_tree(model, "data")
        for name, value in (("generator", expected["generator"]), ("critics.main", expected["critics"]["main"])):
            jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-11, atol=1e-14), own[name], value)


@pytest.mark.parametrize(
    ("cfg", "message"),
    [
        (
            {"generatr": GAN["generator"]},
            "'generatr' must be a part of the model, but the model has generator, critics; did",
        ),
        ({"critics.main2": GAN["generator"]}, "but critics has main; did you mean 'main'?"),
        ({"optim_wrapper": {"generator": 3}}, "optim_wrapper: generator must be a config with an optimizer, got 3"),
        (
            {"optim_wrapper": GAN, "param_scheduler": {"generator": []}},
            "param_scheduler: its keys must be those of optim_wrapper, 'critics.main' too, got ['generator']",
        ),
    ],
)
def test_errors_of_several(cfg: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match="must") as error:
        build_optimizer(cfg, Gan())
    assert message in str(error.value)


class TwiceAsFast:
    """A constructor in MMEngine's manner."""

    def __init__(self, optim_wrapper_cfg: Any, paramwise_cfg: Any = None) -> None:
        optimizer = optim_wrapper_cfg["optimizer"]
        factor = (paramwise_cfg or {}).get("factor", 2)
        self.cfg = {**optim_wrapper_cfg, "optimizer": {**optimizer, "lr": factor * optimizer["lr"]}}

    def __call__(self, model: Any) -> Any:
        return CONSTRUCTORS.get("DefaultOptimWrapperConstructor")(self.cfg, {"bias_lr_mult": 3.0})(model)


@pytest.fixture
def constructor() -> Iterator[Any]:
    CONSTRUCTORS.register("TwiceAsFast")(TwiceAsFast)
    yield TwiceAsFast
    del CONSTRUCTORS._entries["twiceasfast"]


@pytest.mark.parametrize("by_name", [True, False])
def test_constructor_of_one_s_own(constructor: Any, by_name: bool) -> None:
    kind = "TwiceAsFast" if by_name else constructor
    cfg = {"optimizer": {"type": "SGD", "lr": 0.1}, "constructor": kind, "paramwise_cfg": {"factor": 5}}
    model = torch.nn.Linear(2, 2)
    optimizer = build_optimizer({"optim_wrapper": cfg}, model)
    assert [(g["lr"], g.get("lr_mult", 1.0)) for g in optimizer.param_groups] == [(0.5, 1.0), (0.5, 3.0)]
    assert to_config(optimizer)["optim_wrapper"] == cfg
    again = build_optimizer(to_config(optimizer), torch.nn.Linear(2, 2))
    assert repr(again) == repr(optimizer)
    with pytest.raises(
        ValueError, match="steps_per_epoch must be None with a constructor of one's own, got 3; drive its"
    ):
        build_optimizer({"optim_wrapper": cfg}, model, steps_per_epoch=3)
    typo = {**cfg, "constructor": "TwiceAsFats"}
    with pytest.raises(
        ValueError, match="'TwiceAsFats' must be one of the registered constructors; did you mean 'Twice"
    ):
        build_optimizer(typo, model)


def test_default_constructor_may_be_named() -> None:
    cfg = {"optimizer": {"type": "SGD", "lr": 0.1}, "constructor": "DefaultOptimWrapperConstructor"}
    assert isinstance(build_optimizer(cfg, torch.nn.Linear(2, 2)), funcopt.TorchBridge)


PLATEAU = {
    "type": "ReduceOnPlateauLR",
    "monitor": "loss",
    "factor": 0.5,
    "patience": 1,
    "cooldown": 1,
    "min_value": 0.03,
    "threshold": 0.1,
    "threshold_rule": "abs",
}
METRICS = [1.0, 0.5, 0.45, 0.44, 0.43, 0.42, 0.41, 0.2, 0.2, 0.2, 0.2, 0.2]


def test_plateau_in_jax_equals_torch_s_scheduler() -> None:
    cfg = {"optimizer": {"type": "SGD", "lr": 0.1}, "accumulative_counts": 2}
    with jax.enable_x64(True):
        tx = build_optimizer(
            {"optim_wrapper": cfg, "param_scheduler": [PLATEAU]}, {"w": jnp.ones(2)}, steps_per_epoch=2
        )
        optimizer = torch.optim.SGD([torch.nn.Parameter(torch.ones(1))], 0.1)
        scheduler = SCHEDULES.build([PLATEAU], optimizer=optimizer)
        assert isinstance(scheduler, torch.optim.lr_scheduler.ReduceLROnPlateau)
        params, state, grads = {"w": jnp.ones(2)}, None, {"w": jnp.ones(2)}
        state = tx.init(params)
        seen = []
        for metric in METRICS:
            scheduler.step(metric)
            # A metric per epoch of two micro-steps, given with the first, which does not update.
            _, state = tx.update(grads, state, params, value=metric)
            updates, state = tx.update(grads, state, params, value=None)
            seen.append(float(-updates["w"][0]))
            assert seen[-1] == pytest.approx(optimizer.param_groups[0]["lr"])
        assert sorted(set(np.round(seen, 9))) == [0.03, 0.05, 0.1]


def test_plateau_behind_a_warm_up() -> None:
    schedulers = [
        {"type": "LinearLR", "start_factor": 0.5, "end": 2, "by_epoch": False},
        {"type": "ReduceOnPlateauLR", "factor": 0.1, "patience": 0, "rule": "greater"},
    ]
    cfg = {"optim_wrapper": {"optimizer": {"type": "SGD", "lr": 1.0}}, "param_scheduler": schedulers}
    params = {"w": jnp.ones(2)}
    tx = build_optimizer(cfg, params, steps_per_epoch=1)
    state, seen = tx.init(params), []
    for metric in (1.0, 2.0, 2.0, 3.0):
        updates, state = tx.update({"w": jnp.ones(2)}, state, params, value=metric)
        seen.append(float(-updates["w"][0]))
    assert seen == pytest.approx([0.5, 1.0, 0.1, 0.1])
    assert to_config(tx) == {**cfg, "steps_per_epoch": 1}


PLATEAU_ERRORS: list[tuple[Any, str]] = [
    ([PLATEAU | {"patiance": 3}], "got 'patiance'; did you mean 'patience'?"),
    ([PLATEAU | {"rule": "min"}], "ReduceOnPlateauLR: rule must be 'less' or 'greater', got 'min'"),
    ([PLATEAU | {"begin": 3}], "ReduceOnPlateauLR: begin must be 0, got 3"),
    ([PLATEAU | {"by_epoch": False}], "ReduceOnPlateauLR: by_epoch must be True, got False"),
    ([PLATEAU | {"end": 3}], "ReduceOnPlateauLR: end must be left out, got 3; give metrics as long as it shall act"),
    ([PLATEAU, PLATEAU], "param_scheduler: ReduceOnPlateauLR must be given once, got 2"),
    ([{"type": "ReduceOnPlateauMomentum"}], "what follows a metric is the learning rate, by ReduceOnPlateauLR"),
]


@pytest.mark.parametrize(("schedulers", "message"), PLATEAU_ERRORS, ids=range(len(PLATEAU_ERRORS)))
def test_errors_of_a_plateau(schedulers: Any, message: str) -> None:
    cfg = {"optim_wrapper": {"optimizer": {"type": "SGD", "lr": 0.1}}, "param_scheduler": schedulers}
    with pytest.raises(ValueError, match="must") as error:
        build_optimizer(cfg, {"w": jnp.ones(2)}, steps_per_epoch=1)
    assert message in str(error.value)


def test_plateau_for_torch_is_a_scheduler_of_its_own() -> None:
    cfg = {"optim_wrapper": {"optimizer": {"type": "SGD", "lr": 0.1}}, "param_scheduler": [PLATEAU]}
    model = torch.nn.Linear(2, 2)
    with pytest.raises(ValueError, match=r"got ReduceOnPlateauLR in the list; leave it out and use SCHEDULES.build"):
        build_optimizer(cfg, model, steps_per_epoch=1)
    bridge = build_optimizer(cfg, model)
    scheduler = SCHEDULES.build(copy.deepcopy(PLATEAU), optimizer=bridge)
    for _ in range(4):
        scheduler.step(1.0)
    assert bridge.param_groups[0]["lr"] == 0.05
    warm = {"type": "LinearLR", "end": 3}
    with pytest.raises(
        ValueError, match="ReduceOnPlateauLR must be alone for torch, got '1 more'; two schedulers of one"
    ):
        SCHEDULES.build([PLATEAU, warm], optimizer=bridge)
