"""reduce_lr_on_plateau against torch's ReduceLROnPlateau, in JAX and on the bridge."""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from parity import make_problem, worst_error

import funcopt

METRICS = 200
OPTIONS: list[dict[str, Any]] = [
    {},
    {"factor": 0.5, "patience": 0, "min_lr": 1e-3},
    {"factor": 0.3, "patience": 3, "cooldown": 4, "threshold": 0.05},
    {"factor": 0.7, "patience": 2, "cooldown": 1, "threshold": 0.0, "eps": 5e-3},
    {"factor": 0.9, "patience": 1.5, "cooldown": 2, "threshold": 1.0, "min_lr": 0.02},
    {"factor": -0.5, "patience": 15, "threshold": -0.01, "min_lr": -1.0},
]


def sequences() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    noise = rng.normal(size=METRICS)
    falling = np.exp(-np.arange(METRICS) / 30)
    gaps = falling + 0.1 * noise
    gaps[::7] = math.nan
    return {
        "falling": falling + 0.05 * np.abs(noise),
        "rising": 1 - falling + 0.02 * noise,
        "noise around 0": noise,
        "steps": np.repeat([3.0, 1.0, 1.0, -2.0, 0.0], METRICS // 5),
        "NaN": gaps,
        "infinite": np.where(noise > 1.5, np.inf, np.where(noise < -1.5, -np.inf, noise)),
    }


def expected_lrs(config: dict[str, Any]) -> np.ndarray:
    return np.stack([torch_lrs(sequence, [0.1], **config)[:, 0] for sequence in sequences().values()])


def torch_lrs(metrics: np.ndarray, base_lrs: list[float], **config: Any) -> np.ndarray:
    groups = [{"params": [torch.nn.Parameter(torch.zeros(1))], "lr": lr} for lr in base_lrs]
    optimizer = torch.optim.SGD(groups)
    scheduler = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, **config)
    lrs = []
    for metric in metrics:
        scheduler.step(float(metric))
        lrs.append([group["lr"] for group in optimizer.param_groups])
    return np.array(lrs)


def scanned(tx: Any, metrics: np.ndarray, params: Any) -> tuple[Any, Any]:
    """The updates of ones, and the learning rates in use, after each metric."""

    def step(state: Any, metric: Any) -> tuple[Any, Any]:
        updates, state = tx.update(jax.tree.map(jnp.ones_like, params), state, params, value=metric)
        return state, (updates, funcopt.current_hyperparams(state)["lr"])

    return jax.jit(lambda state: jax.lax.scan(step, state, jnp.asarray(metrics)))(tx.init(params))[1]


@pytest.mark.parametrize("threshold_mode", ["rel", "abs"])
@pytest.mark.parametrize("mode", ["min", "max"])
def test_learning_rates_are_torchs(mode: str, threshold_mode: str) -> None:
    metrics = np.stack(list(sequences().values()))
    configs = [{"mode": mode, "threshold_mode": threshold_mode, **options} for options in OPTIONS]
    with jax.enable_x64(True):
        transforms = [funcopt.reduce_lr_on_plateau(0.1, **config) for config in configs]
        run = jax.vmap(lambda xs: [scanned(tx, xs, jnp.ones(())) for tx in transforms])
        results = jax.jit(run)(metrics)
    for config, (updates, lrs) in zip(configs, results, strict=True):
        expected = expected_lrs(config)
        np.testing.assert_array_equal(lrs, expected, err_msg=str(config))
        np.testing.assert_allclose(updates, expected / 0.1, rtol=1e-15)
        # What is compared is not one constant.
        assert len(np.unique(expected)) > 1


def test_one_learning_rate_and_floor_per_part() -> None:
    metrics = sequences()["noise around 0"]
    with jax.enable_x64(True):
        base, floors = {"a": 0.1, "b": 0.02, "frozen": 0.0}, {"a": 1e-3, "b": 5e-3, "frozen": 0.1}
        tx = funcopt.reduce_lr_on_plateau(base, patience=4, factor=0.5, min_lr=floors)
        updates, lrs = scanned(tx, metrics, {"a": jnp.ones(2), "b": [jnp.ones(()), jnp.ones(3)], "frozen": jnp.ones(2)})
    expected = torch_lrs(metrics, list(base.values()), patience=4, factor=0.5, min_lr=list(floors.values()))
    np.testing.assert_array_equal(np.stack([lrs["a"], lrs["b"], lrs["frozen"]], axis=1), expected)
    np.testing.assert_allclose(updates["b"][1], np.repeat(expected[:, 1:2] / 0.02, 3, axis=1), rtol=1e-15)
    np.testing.assert_array_equal(updates["frozen"], np.zeros((METRICS, 2)))


@pytest.mark.parametrize(
    ("make", "torch_class", "options"),
    [
        (funcopt.adamw, torch.optim.AdamW, {"weight_decay": 0.1}),
        (funcopt.sgd, torch.optim.SGD, {"momentum": 0.9, "weight_decay": 0.1}),
    ],
    ids=["adamw", "sgd"],
)
def test_training_with_a_metric_per_epoch_equals_torch(
    make: Callable[..., Any], torch_class: Any, options: Any
) -> None:
    problem = make_problem("float64")
    losses = 1 + 0.1 * np.random.default_rng(3).normal(size=10)
    with jax.enable_x64(True):
        tx = funcopt.chain(make(0.1, **options), funcopt.reduce_lr_on_plateau(0.1, factor=0.5, patience=1))
        params = [jnp.asarray(p) for p in problem.params]
        state = tx.init(params)
        update = jax.jit(tx.update)
        for i, grads in enumerate(problem.grads):
            loss = losses[i // 5 - 1] if i and i % 5 == 0 else None
            updates, state = update(grads, state, params, value=loss)
            params = funcopt.apply_updates(params, updates)
    tensors = [torch.nn.Parameter(torch.from_numpy(p.copy())) for p in problem.params]
    optimizer = torch_class(tensors, lr=0.1, **options)
    scheduler = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, factor=0.5, patience=1)
    for i, grads in enumerate(problem.grads):
        for tensor, grad in zip(tensors, grads, strict=True):
            tensor.grad = None if grad is None else torch.from_numpy(grad)
        optimizer.step()
        if i % 5 == 4:
            scheduler.step(losses[i // 5])
    assert optimizer.param_groups[0]["lr"] < 0.05
    assert worst_error([np.asarray(p) for p in params], [t.detach().numpy() for t in tensors]) <= 1e-12


def test_before_the_first_reduction_updates_pass_bit_for_bit() -> None:
    tx = funcopt.reduce_lr_on_plateau(0.3)
    grads = {"a": jnp.asarray([0.1, 3.0], jnp.bfloat16), "b": None}
    updates, state = tx.update(grads, tx.init({"a": grads["a"], "b": jnp.ones(2)}), value=1.0)
    np.testing.assert_array_equal(updates["a"], grads["a"])
    assert updates["a"].dtype == jnp.bfloat16
    assert updates["b"] is None
    assert state.best == 1.0


def test_no_metric_leaves_the_state_and_no_gradient_does_not() -> None:
    tx = funcopt.reduce_lr_on_plateau(0.1)
    _, state = tx.update(jnp.ones(2), tx.init(jnp.ones(2)), value=jnp.asarray([3.0], jnp.bfloat16))
    _, same = tx.update(jnp.ones(2), state, value=None)
    assert same is state
    _, counted = tx.update(None, state, value=5.0)
    assert counted.num_bad_epochs == 1
    assert jax.tree.map(jnp.result_type, counted) == jax.tree.map(jnp.result_type, tx.init(jnp.ones(2)))


def test_schedule_of_the_recipe_is_multiplied() -> None:
    tx = funcopt.chain(
        funcopt.sgd(lambda step: 0.1 * (step + 1)), funcopt.reduce_lr_on_plateau(1.0, factor=0.5, patience=0)
    )
    state = tx.init(jnp.ones(()))
    seen = []
    for loss in (1.0, 1.0, 0.5):
        updates, state = tx.update(jnp.ones(()), state, jnp.ones(()), value=loss)
        seen.append(float(updates))
    np.testing.assert_allclose(seen, [-0.1, -0.1, -0.15], rtol=1e-6)
    np.testing.assert_allclose(funcopt.current_hyperparams(state)["lr"], (0.3, 0.5), rtol=1e-6)


def test_the_callers_array_is_not_donated() -> None:
    base_lr = jnp.asarray(0.1)
    tx = funcopt.reduce_lr_on_plateau(base_lr)
    jax.jit(lambda state: tx.update(jnp.ones(2), state, value=1.0)[1], donate_argnums=0)(tx.init(jnp.ones(2)))
    assert base_lr == jnp.float32(0.1)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"factor": 1.0}, ValueError, r"factor must be < 1, got 1.0"),
        ({"mode": "most"}, ValueError, r"mode must be one of 'min', 'max', got 'most'"),
        ({"threshold_mode": "both"}, ValueError, r"threshold_mode must be one of 'rel', 'abs', got 'both'"),
        ({"base_lr": -0.1}, ValueError, r"base_lr must be >= 0, got -0.1"),
        ({"base_lr": lambda step: 0.1}, TypeError, r"got a schedule; leave it to the recipe, with base_lr=1.0"),
        ({"min_lr": [0.1, 0.2]}, ValueError, r"min_lr must be one value or have the parameters' structure"),
        ({"patience": "2"}, TypeError, r"patience must be a number, got '2'"),
        ({"cooldown": 0.5}, TypeError, r"cooldown must be an integer, got 0.5"),
    ],
)
def test_bad_arguments(options: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match="reduce_lr_on_plateau: .*" + message):
        funcopt.reduce_lr_on_plateau(**{"base_lr": 0.1, **options})


def test_bad_calls() -> None:
    tx = funcopt.chain(funcopt.sgd(0.1), funcopt.reduce_lr_on_plateau(0.1))
    state = tx.init(jnp.ones(2))
    with pytest.raises(ValueError, match=r"update needs the metric; call update\(updates, state, params, value=metric"):
        tx.update(jnp.ones(2), state, jnp.ones(2))
    with pytest.raises(ValueError, match=r"value must be one number, got shape \(2,\)"):
        tx.update(jnp.ones(2), state, jnp.ones(2), value=jnp.ones(2))
    with pytest.raises(ValueError, match="reduce_lr_on_plateau: base_lr"):
        funcopt.reduce_lr_on_plateau({"a": 0.1}).init({"b": jnp.ones(2)})


def test_torchs_own_class_drives_the_bridge() -> None:
    problem = make_problem("float64")
    metrics = sequences()["noise around 0"]
    results = []
    for make in (funcopt.TorchBridge, None):
        tensors = [torch.nn.Parameter(torch.from_numpy(p.copy())) for p in problem.params]
        groups = [{"params": tensors[:2]}, {"params": tensors[2:], "lr": 0.05}]
        optimizer = make(groups, funcopt.adam, lr=0.1) if make else torch.optim.Adam(groups, lr=0.1)
        scheduler = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, factor=0.7, patience=2, min_lr=[0.0, 0.02])
        lrs = []
        for grads, metric in zip(problem.grads, metrics, strict=False):
            for tensor, grad in zip(tensors, grads, strict=True):
                tensor.grad = None if grad is None else torch.from_numpy(grad)
            optimizer.step()
            scheduler.step(metric)
            lrs.append(scheduler.get_last_lr())
        results.append((lrs, [t.detach().numpy() for t in tensors], getattr(optimizer, "compilations", 1)))
    (ours, params, compilations), (theirs, expected, _) = results
    assert ours == theirs
    assert len(set(map(tuple, ours))) > 5
    assert worst_error(params, expected) <= 1e-12
    assert compilations == 1
