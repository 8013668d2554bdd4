"""Names: funcopt's own, users', and those that are almost right."""

import inspect
from typing import Any

import jax.numpy as jnp
import pytest
import torch

import funcopt
from funcopt import schedules
from funcopt.config import OPTIMIZERS, SCHEDULES, Registry, build_optimizer, build_schedule, to_config

PARAMS = {"w": jnp.ones((2, 2))}


def test_registries_have_everything() -> None:
    complete = {
        name
        for name in dir(funcopt)
        if inspect.isfunction(getattr(funcopt, name))
        and next(iter(inspect.signature(getattr(funcopt, name)).parameters), "") == "lr"
        and not name.startswith("scale_by")
    }
    assert set(OPTIMIZERS) >= complete - {"lbfgs"}
    assert {"sgd", "adam", "adamw", "rmsprop", "muon"} <= set(OPTIMIZERS)
    not_schedules = {"describe"}
    functions = {name for name in dir(schedules) if inspect.isfunction(getattr(schedules, name))}
    assert set(SCHEDULES) >= functions - not_schedules
    assert not_schedules.isdisjoint(SCHEDULES)


@pytest.mark.parametrize("name", ["AdamW", "adamw", "ADAMW", "Adam_W"])
def test_spelling_does_not_count(name: str) -> None:
    assert OPTIMIZERS.get(name) is funcopt.adamw
    assert name in OPTIMIZERS


def test_names_of_the_references_classes() -> None:
    """Among them those that MMEngine registers; they are no further entries."""
    for name, factory in {
        "AdamWScheduleFree": funcopt.schedule_free_adamw,
        "DAdaptAdam": funcopt.dadapt_adam,
        "GaLoreAdamW": funcopt.galore,
        "Lion": funcopt.lion,
        "SophiaG": funcopt.sophia_g,
        "StableAdamW": funcopt.stable_adamw,
        "TorchAdafactor": funcopt.adafactor,
    }.items():
        assert OPTIMIZERS.get(name) is factory
        assert name in OPTIMIZERS
    assert len(OPTIMIZERS) == len(set(OPTIMIZERS)) == len({OPTIMIZERS.get(name) for name in OPTIMIZERS})
    own = Registry("optimizer", {"adamw": funcopt.adamw}, aliases={"Mine": "adamw"})
    own.register("Mine")(funcopt.sgd)
    assert own.get("mine") is funcopt.sgd


def test_a_live_optimizer_of_another_packages_class_is_refused() -> None:
    class Lion(torch.optim.SGD): ...

    with pytest.raises(ValueError, match="live optimizer must be of one of torch's classes, got 'Lion'; build it by n"):
        build_optimizer(Lion([torch.nn.Parameter(torch.ones(2))], lr=0.1))


def test_schedule_names_are_torch_s_too() -> None:
    for name in ("CosineAnnealingLR", "cosine_annealing_lr", "cosineannealinglr"):
        assert SCHEDULES.get(name) is schedules.cosine_annealing_lr
    assert "nothing" not in SCHEDULES
    assert 3 not in SCHEDULES
    assert len(SCHEDULES) == len(list(SCHEDULES))
    assert repr(OPTIMIZERS).startswith("Registry of optimizers: adabelief, adadelta, ")


def registry() -> Registry:
    return Registry("optimizer", {"adamw": funcopt.adamw}, lambda cfg, **options: (cfg, options))


def test_register() -> None:
    own = registry()

    @own.register
    def first() -> None: ...

    @own.register("Other")
    def second() -> None: ...

    @own.register_class()
    class Third: ...

    assert (own.get("FIRST"), own.get("other"), own.get("third")) == (first, second, Third)
    with pytest.raises(ValueError, match="'AdamW' is registered as optimizer already; force=True replaces it"):
        own.register("AdamW")(first)
    own.register("AdamW", force=True)(first)
    assert own.get("adamw") is first
    assert own.build({"a": 1}, b=2) == ({"a": 1}, {"b": 2})


def test_what_builds_may_come_later() -> None:
    own = Registry("optimizer", {"adamw": funcopt.adamw})
    with pytest.raises(TypeError, match="Registry of optimizers: build must be given"):
        own.build({})

    @own.builder
    def build(cfg: Any) -> Any:
        return own.get(cfg)

    assert own.build("AdamW") is funcopt.adamw
    assert build("AdamW") is funcopt.adamw


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: OPTIMIZERS.get("AdmW"), "'AdmW' must be one of the registered optimizers; did you mean 'adamw'?"),
        (lambda: SCHEDULES.get("StpLR"), "'StpLR' must be one of the registered schedules; did you mean 'step_lr'?"),
        (lambda: OPTIMIZERS.get("qqqqq"), "'qqqqq' must be one of the registered optimizers"),
        (
            lambda: build_optimizer({"type": "SGD", "lr": 0.1, "momentun": 0.9}, PARAMS),
            "momentum, nesterov, weight_decay, got 'momentun'; did you mean 'momentum'?",
        ),
        (
            lambda: build_schedule({"type": "StepLR", "stepsize": 3}, 0.1),
            "StepLR: each key must be one of base_lr, step_size, gamma, got 'stepsize'; did you mean 'step_size'?",
        ),
        (
            lambda: build_schedule({"type": "StepLR", "step_size": 3}),
            "StepLR: base_lr must be given, in the config or as",
        ),
        (lambda: build_schedule({"step_size": 3}, 0.1), "build_schedule: cfg must be a mapping with a type"),
        (lambda: build_schedule({"type": "StepLR", "step_size": 3}, 0.1, gamma=2), "gamma must be given in the config"),
    ],
)
def test_errors(call: Any, message: str) -> None:
    with pytest.raises(ValueError, match="must") as error:
        call()
    assert message in str(error.value)


def test_wrong_types() -> None:
    with pytest.raises(TypeError, match="a ready transformation is no config; give the function that made it"):
        build_optimizer(funcopt.sgd(0.1), PARAMS)
    with pytest.raises(TypeError, match="cfg must be a config, a name or an optimizer, got 3"):
        build_optimizer(3, PARAMS)
    with pytest.raises(TypeError, match="cfg must be a config, a name or a schedule, got 3"):
        build_schedule(3, 0.1)


def test_user_s_function_builds_for_both() -> None:
    @OPTIMIZERS.register("clipped_sgd", force=True)
    def clipped_sgd(lr: float, max_norm: float = 1.0) -> Any:
        return funcopt.chain(funcopt.clip_by_global_norm(max_norm), funcopt.sgd(lr))

    cfg = {"type": "clipped_sgd", "lr": 1.0, "max_norm": 0.5}
    tx = build_optimizer(cfg, PARAMS)
    updates, _ = tx.update({"w": jnp.ones((2, 2))}, tx.init(PARAMS), PARAMS)
    assert jnp.allclose(updates["w"], -0.25, rtol=1e-4)
    p = torch.nn.Parameter(torch.zeros(2, 2))
    p.grad = torch.ones(2, 2)
    build_optimizer(cfg, [("w", p)]).step()
    torch.testing.assert_close(p.detach(), torch.full((2, 2), -0.25), rtol=1e-4, atol=0)


def test_user_s_torch_optimizer_is_built_as_it_is() -> None:
    @OPTIMIZERS.register("MyTorchSGD", force=True)
    class MyTorchSGD(torch.optim.SGD): ...

    model = torch.nn.Linear(2, 2)
    cfg = {"type": "MyTorchSGD", "lr": 0.1, "weight_decay": 0.2, "paramwise_cfg": {"bias_decay_mult": 0.0}}
    optimizer = build_optimizer(cfg, model)
    assert type(optimizer) is MyTorchSGD
    assert [(g["lr"], g["weight_decay"], g["param_names"]) for g in optimizer.param_groups] == [
        (0.1, 0.2, ["weight"]),
        (0.1, 0.0, ["bias"]),
    ]


def test_class_in_scepter_s_manner() -> None:
    @OPTIMIZERS.register_class()
    class Doubling:
        def __init__(self, cfg: Any, logger: Any = None) -> None:
            self.lr = 2 * cfg["LEARNING_RATE"]

        def __call__(self, parameters: Any) -> Any:
            return torch.optim.SGD(parameters, lr=self.lr)

    cfg = {"NAME": "Doubling", "LEARNING_RATE": 0.1}
    optimizer = OPTIMIZERS.build(cfg, logger=None, parameters=torch.nn.Linear(2, 2).parameters())
    assert type(optimizer) is torch.optim.SGD
    assert optimizer.param_groups[0]["lr"] == 0.2
    assert to_config(optimizer) == cfg


def test_user_s_schedule() -> None:
    @SCHEDULES.register("doubling", force=True)
    def doubling(base_lr: float, period: int = 1) -> Any:
        return lambda step: base_lr * 2.0 ** (step // period)

    assert SCHEDULES.build({"type": "doubling", "period": 2}, base_lr=1.0)(4) == 4.0
