"""TorchBridge as a torch optimizer: groups, schedulers, factories, state, and what it refuses."""

import copy
import io
import pickle
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
import optax
import pytest
import torch
from parity import make_problem, run_torch, worst_error
from torch.distributed.checkpoint.state_dict import get_optimizer_state_dict

import funcopt
from funcopt import TorchBridge
from funcopt.torch_bridge.store import _store


def parameters(seed: int = 0, dtype: torch.dtype = torch.float64) -> list[torch.nn.Parameter]:
    generator = torch.Generator().manual_seed(seed)
    shapes = [(4, 3), (5,), (), (2, 3, 2)]
    return [torch.nn.Parameter(torch.randn(shape, generator=generator, dtype=dtype)) for shape in shapes]


def set_gradients(params: list[torch.nn.Parameter], step: int) -> None:
    generator = torch.Generator().manual_seed(100 + step)
    for p in params:
        p.grad = torch.randn(p.shape, generator=generator, dtype=p.dtype)


def train(optimizer: torch.optim.Optimizer, steps: range, each: Callable[[], Any] = lambda: None) -> None:
    params = [p for group in optimizer.param_groups for p in group["params"]]
    for step in steps:
        set_gradients(params, step)
        optimizer.step()
        each()


def assert_equal(
    actual: list[torch.nn.Parameter], expected: list[torch.nn.Parameter], tolerance: float = 1e-12
) -> None:
    error = worst_error([p.detach().numpy() for p in actual], [p.detach().numpy() for p in expected])
    assert error <= tolerance


def two_groups(params: list[torch.nn.Parameter], **second: Any) -> list[dict[str, Any]]:
    return [{"params": params[:2]}, {"params": params[2:], **second}]


# What may be run


def clipped(lr: Any, weight_decay: Any = 0.05, max_norm: Any = 1.0) -> funcopt.GradientTransformation:
    return funcopt.chain(funcopt.clip_by_global_norm(max_norm), funcopt.adamw(lr, weight_decay=weight_decay))


def test_own_function_clips_all_groups_by_one_norm() -> None:
    ours, theirs = parameters(), parameters()
    bridge = TorchBridge(two_groups(ours, lr=0.02), clipped, lr=0.1, max_norm=0.3)
    reference = torch.optim.AdamW(two_groups(theirs, lr=0.02), lr=0.1, weight_decay=0.05)
    for step in range(20):
        set_gradients(ours, step)
        set_gradients(theirs, step)
        torch.nn.utils.clip_grad_norm_(theirs, 0.3)
        bridge.step()
        reference.step()
    assert_equal(ours, theirs)


def test_arithmetic_on_group_values_in_own_function() -> None:
    def recipe(lr: Any, betas: Any = (0.9, 0.999)) -> funcopt.GradientTransformation:
        return funcopt.chain(funcopt.trace(betas[0]), funcopt.scale(-(2.0 * lr) / 4.0))

    ours, theirs = parameters(), parameters()
    train(TorchBridge(two_groups(ours, lr=0.02, betas=(0.5, 0.9)), recipe, lr=0.1), range(5))
    train(torch.optim.SGD(two_groups(theirs, lr=0.01, momentum=0.5), lr=0.05, momentum=0.9), range(5))
    assert_equal(ours, theirs)


def test_group_values_that_meet_an_array_are_refused() -> None:
    bridge = TorchBridge(two_groups(parameters(), lr=0.1), lambda lr: optax.scale(lr), lr=0.2)
    with pytest.raises(TypeError, match="one value per parameter group met an array"):
        train(bridge, range(1))


@pytest.mark.parametrize("second", [{}, {"lr": 0.02}])
def test_optax_factory(second: dict[str, Any]) -> None:
    ours, theirs = parameters(), parameters()
    bridge = TorchBridge(two_groups(ours, **second), optax.adamw, lr=0.1, weight_decay=0.01)
    train(bridge, range(10))
    train(torch.optim.AdamW(two_groups(theirs, **second), lr=0.1), range(10))
    assert_equal(ours, theirs)
    assert set(bridge.state[ours[0]]) == {"count", "mu", "nu"}


def test_optax_lion_by_either_name_of_its_learning_rate() -> None:
    ours, theirs = parameters(), parameters()
    train(TorchBridge(ours, optax.lion, lr=0.1), range(5))
    train(TorchBridge(theirs, optax.lion, learning_rate=0.1), range(5))
    assert_equal(ours, theirs, 0.0)


def test_ready_transformation() -> None:
    ours, theirs = parameters(), parameters()
    tx = optax.chain(optax.add_decayed_weights(0.1), funcopt.adam(0.1))
    train(TorchBridge(two_groups(ours, lr_mult=0.5), tx), range(10))
    train(torch.optim.Adam(two_groups(theirs, lr=0.05), lr=0.1, weight_decay=0.1), range(10))
    assert_equal(ours, theirs)


def test_one_recipe_in_both_frameworks() -> None:
    problem = make_problem("float64")
    bridged, _ = run_torch(problem, lambda groups: TorchBridge(groups, clipped, lr=0.1))
    with jax.enable_x64(True):
        lr = [lambda step, i=i: jax.numpy.asarray(problem.lrs)[step, i] for i in (0, 0, 1, 1)]
        tx = clipped(lr=lr)
        params = [jax.numpy.asarray(p) for p in problem.params]
        state = tx.init(params)
        update = jax.jit(tx.update)
        for grads in problem.grads:
            updates, state = update(grads, state, params)
            params = funcopt.apply_updates(params, updates)
    assert worst_error([np.asarray(p) for p in params], bridged) <= 1e-13


# Groups, multipliers, schedules


@pytest.mark.parametrize("transform", [funcopt.scale_by_adam, funcopt.scale_by_apollo, funcopt.adafactor_hf])
def test_a_multiplier_where_there_is_no_lr(transform: Callable[..., Any]) -> None:
    before, plain, ours = parameters(), parameters(), parameters()
    train(TorchBridge(plain, transform), range(1))
    train(TorchBridge(two_groups(ours, lr_mult=0.5), transform), range(1))
    expected = [q + (1.0 if i < 2 else 0.5) * (p - q) for i, (p, q) in enumerate(zip(plain, before, strict=True))]
    assert_equal(ours, expected)


def test_multipliers_survive_a_scheduler() -> None:
    ours, theirs = parameters(), parameters()
    bridge = TorchBridge(two_groups(ours, lr_mult=0.1, decay_mult=0.0), funcopt.adamw, lr=0.1, weight_decay=0.5)
    reference = torch.optim.AdamW(two_groups(theirs, lr=0.01, weight_decay=0.0), lr=0.1, weight_decay=0.5)
    schedulers = [torch.optim.lr_scheduler.LinearLR(o, 0.1, 1.0, total_iters=10) for o in (bridge, reference)]
    train(bridge, range(20), schedulers[0].step)
    train(reference, range(20), schedulers[1].step)
    assert_equal(ours, theirs)
    assert bridge.param_groups[1]["lr"] == pytest.approx(0.1)


@pytest.mark.parametrize(
    "make",
    [
        lambda o: torch.optim.lr_scheduler.StepLR(o, 7),
        lambda o: torch.optim.lr_scheduler.OneCycleLR(o, 0.1, total_steps=60),
        lambda o: torch.optim.lr_scheduler.CyclicLR(o, 0.01, 0.1, step_size_up=7),
        lambda o: torch.optim.lr_scheduler.CosineAnnealingWarmRestarts(o, 13),
    ],
    ids=["StepLR", "OneCycleLR", "CyclicLR", "CosineAnnealingWarmRestarts"],
)
@pytest.mark.parametrize(
    ("factory", "torch_class", "options"),
    [(funcopt.sgd, torch.optim.SGD, {"momentum": 0.9}), (funcopt.adam, torch.optim.Adam, {})],
    ids=["sgd", "adam"],
)
def test_torch_schedulers_drive_it_without_recompiling(make: Any, factory: Any, torch_class: Any, options: Any) -> None:
    """Momentum and betas are cycled too."""
    ours, theirs = parameters(), parameters()
    bridge = TorchBridge(ours, factory, lr=0.1, **options)
    reference = torch_class(theirs, lr=0.1, **options)
    train(bridge, range(50), make(bridge).step)
    train(reference, range(50), make(reference).step)
    assert_equal(ours, theirs)
    assert bridge.compilations == 1


def test_schedule_shows_the_value_in_use() -> None:
    ours, theirs = parameters(), parameters()

    def schedule(step: int) -> float:
        return 0.1 / (1 + step)

    bridge = TorchBridge(two_groups(ours, lr_mult=0.5), funcopt.sgd, lr=schedule, weight_decay=lambda step: 0.01 * step)
    reference = torch.optim.SGD(two_groups(theirs), lr=0.1)
    assert bridge.param_groups[0]["lr"] == schedule(0)
    for step in range(10):
        for group, mult in zip(reference.param_groups, (1.0, 0.5), strict=True):
            group.update(lr=mult * schedule(step), weight_decay=0.01 * step)
        train(bridge, range(step, step + 1))
        train(reference, range(step, step + 1))
        assert [group["lr"] for group in bridge.param_groups] == [schedule(step)] * 2
    assert_equal(ours, theirs)
    assert bridge.compilations == 1


def test_a_value_written_into_a_group_takes_the_schedules_place() -> None:
    """Until the schedule's own is back, as when torch's checkpoint tools step once with lr 0 to make the state."""
    params = parameters()
    bridge = TorchBridge(params, funcopt.sgd, lr=lambda step: 0.5 / (1 + step), weight_decay=0.1)
    before = [p.detach().clone() for p in params]
    model = torch.nn.ParameterList(params)
    get_optimizer_state_dict(model, bridge)
    assert all(torch.equal(p, q) for p, q in zip(params, before, strict=True))
    train(bridge, range(2))
    assert bridge.param_groups[0]["lr"] == 0.25
    bridge.param_groups[0]["lr"] = 0.0
    before = [p.detach().clone() for p in params]
    train(bridge, range(2, 4))
    assert all(torch.equal(p, q) for p, q in zip(params, before, strict=True))
    bridge.param_groups[0]["lr"] = 0.25
    train(bridge, range(4, 5))
    assert bridge.param_groups[0]["lr"] == pytest.approx(0.5 / 3)


def test_schedule_resumes_from_a_checkpoint() -> None:
    schedule = optax.cosine_decay_schedule(0.1, 20)
    straight, resumed = parameters(), parameters()
    train(TorchBridge(straight, funcopt.adam, lr=schedule), range(10))
    first = TorchBridge(resumed, funcopt.adam, lr=schedule)
    train(first, range(4))
    second = TorchBridge(resumed, funcopt.adam, lr=schedule)
    second.load_state_dict(first.state_dict())
    train(second, range(4, 10))
    assert_equal(resumed, straight, 0.0)


def test_lr_as_a_tensor_that_is_filled_in_place() -> None:
    ours, theirs = parameters(), parameters()
    lr = torch.tensor(0.1, dtype=torch.float64)
    bridge = TorchBridge(ours, funcopt.sgd, lr=lr)
    reference = torch.optim.SGD(theirs, lr=0.1)
    for step in range(3):
        lr.fill_(0.1 * (step + 1))
        reference.param_groups[0]["lr"] = 0.1 * (step + 1)
        train(bridge, range(step, step + 1))
        train(reference, range(step, step + 1))
    assert_equal(ours, theirs)


def test_momentum_switched_on_later() -> None:
    ours, theirs = parameters(), parameters()
    bridge, reference = TorchBridge(ours, funcopt.sgd, lr=0.1), torch.optim.SGD(theirs, lr=0.1)
    for optimizer in (bridge, reference):
        train(optimizer, range(3))
        optimizer.param_groups[0]["momentum"] = 0.9
        train(optimizer, range(3, 6))
    assert_equal(ours, theirs)


# The rest of the optimizer's surface


def test_closure_runs_once_with_gradients() -> None:
    p = torch.nn.Parameter(torch.tensor([1.0]))
    bridge = TorchBridge([p], funcopt.sgd, lr=0.5)
    calls = []

    def closure() -> torch.Tensor:
        bridge.zero_grad()
        loss = (p**2).sum()
        loss.backward()
        calls.append(loss.item())
        return loss

    assert bridge.step(closure).item() == 1.0
    assert calls == [1.0]
    assert p.item() == 0.0


def test_zero_grad() -> None:
    params = parameters()
    bridge = TorchBridge(params, funcopt.sgd)
    set_gradients(params, 0)
    bridge.zero_grad(set_to_none=False)
    assert all(p.grad is not None and not p.grad.any() for p in params)
    bridge.zero_grad()
    assert all(p.grad is None for p in params)


def test_step_without_any_gradient_changes_nothing() -> None:
    params = parameters()
    bridge = TorchBridge(params, funcopt.adamw, lr=lambda step: 0.1)
    before = [p.detach().clone() for p in params]
    bridge.step()
    assert all(torch.equal(p, b) for p, b in zip(params, before, strict=True))
    assert bridge.param_groups[0]["schedule_step"] == 0
    assert not bridge.state


def test_unusual_tensors() -> None:
    base = torch.arange(24.0, dtype=torch.float64).reshape(2, 3, 4)
    tensors = [
        base.clone().transpose(0, 2),
        base.clone().reshape(1, 2, 3, 4).contiguous(memory_format=torch.channels_last),
        torch.empty(0, 3, dtype=torch.float64),
        base.clone()[:, ::2],
    ]
    ours = [torch.nn.Parameter(t.clone(memory_format=torch.preserve_format)) for t in tensors]
    theirs = [torch.nn.Parameter(t.clone(memory_format=torch.preserve_format)) for t in tensors]
    bridge, reference = TorchBridge(ours, funcopt.adam, lr=0.1), torch.optim.Adam(theirs, lr=0.1)
    for step in range(3):
        for params in (ours, theirs):
            set_gradients(params, step)
            params[0].grad = torch.ones(1, dtype=torch.float64).expand(params[0].shape)
        bridge.step()
        reference.step()
    assert all(torch.allclose(a, b, rtol=1e-12, atol=0) for a, b in zip(ours, theirs, strict=True))
    assert [p.stride() for p in ours] == [p.stride() for p in theirs]


def test_views_see_the_update() -> None:
    p = torch.nn.Parameter(torch.ones(4))
    view = p.detach()[:2]
    bridge = TorchBridge([p], funcopt.sgd, lr=1.0)
    p.grad = torch.ones(4)
    bridge.step()
    assert view.tolist() == [0.0, 0.0]
    p.data = torch.full((4,), 5.0)
    bridge.step()
    assert p.tolist() == [4.0] * 4


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_low_precision_takes_one_step_as_torch(dtype: torch.dtype) -> None:
    ours, theirs = parameters(dtype=dtype), parameters(dtype=dtype)
    bridge = TorchBridge(ours, funcopt.adamw, lr=0.1)
    train(bridge, range(1))
    train(torch.optim.AdamW(theirs, lr=0.1), range(1))
    for a, b in zip(ours, theirs, strict=True):
        # One rounding of the parameter: torch rounds after the decay and after the update, the bridge once.
        assert (a - b).abs().max() <= torch.finfo(dtype).eps * b.abs().max()
        assert bridge.state[a]["exp_avg"].dtype == dtype


def test_hooks_run() -> None:
    seen = []
    bridge = TorchBridge(parameters(), funcopt.sgd)
    bridge.register_step_pre_hook(lambda *_: seen.append("pre"))
    bridge.register_step_post_hook(lambda *_: seen.append("post"))
    bridge.register_state_dict_post_hook(lambda *_: seen.append("state_dict"))
    bridge.register_load_state_dict_pre_hook(lambda *_: seen.append("load"))
    bridge.register_load_state_dict_post_hook(lambda *_: seen.append("loaded"))
    bridge.step()
    bridge.load_state_dict(bridge.state_dict())
    assert seen == ["pre", "post", "state_dict", "load", "loaded"]


# State


ALGORITHMS = pytest.mark.parametrize(
    ("factory", "torch_class", "options"),
    [
        (funcopt.sgd, torch.optim.SGD, {}),
        (funcopt.sgd, torch.optim.SGD, {"momentum": 0.9, "dampening": 0.3}),
        (funcopt.adam, torch.optim.Adam, {"amsgrad": True}),
        (funcopt.adamw, torch.optim.AdamW, {}),
    ],
    ids=["sgd", "sgd, momentum", "adam, amsgrad", "adamw"],
)


@ALGORITHMS
@pytest.mark.parametrize("missing", [False, True])
def test_checkpoints_move_both_ways(factory: Any, torch_class: Any, options: Any, missing: bool) -> None:
    """Half a run on one side, its state loaded by the other, the other half there: equal to the run on torch alone."""

    def groups(params: list[torch.nn.Parameter]) -> list[dict[str, Any]]:
        for p in params[1:3]:
            p.requires_grad_(not missing)
        return two_groups(params, lr=0.03)

    def half(optimizer: torch.optim.Optimizer, steps: range) -> None:
        for step in steps:
            params = [p for group in optimizer.param_groups for p in group["params"]]
            set_gradients(params, step)
            for p in params:
                p.grad = p.grad if p.requires_grad else None
            optimizer.step()

    expected = parameters()
    reference = torch_class(groups(expected), lr=0.1, **options)
    half(reference, range(12))

    to_torch, to_bridge = parameters(), parameters()
    first, second = (
        TorchBridge(groups(to_torch), factory, lr=0.1, **options),
        torch_class(groups(to_torch), lr=0.9, **options),
    )
    half(first, range(5))
    state = copy.deepcopy(first.state_dict())
    second.load_state_dict(state)
    half(second, range(5, 12))
    assert_equal(to_torch, expected)

    first, second = (
        torch_class(groups(to_bridge), lr=0.1, **options),
        TorchBridge(groups(to_bridge), factory, lr=0.9, **options),
    )
    half(first, range(5))
    torch_keys = {index: set(entry) for index, entry in first.state_dict()["state"].items() if entry}
    second.load_state_dict(first.state_dict())
    half(second, range(5, 12))
    assert_equal(to_bridge, expected)
    # torch keeps nothing for parameters without a gradient; the bridge keeps what it has made ready.
    ours = second.state_dict()["state"]
    assert {index: set(ours[index]) for index in torch_keys} == torch_keys


def test_state_begins_with_the_first_update_and_saving_early_changes_nothing() -> None:
    ours, theirs = parameters(), parameters()
    bridge = TorchBridge(ours, funcopt.sgd, lr=0.1, momentum=0.9, dampening=0.3)
    bridge.load_state_dict(bridge.state_dict())
    train(bridge, range(5))
    train(torch.optim.SGD(theirs, lr=0.1, momentum=0.9, dampening=0.3), range(5))
    assert_equal(ours, theirs)
    assert not TorchBridge(ours, funcopt.adam).state


def test_state_dict_shares_its_memory_with_the_state() -> None:
    """As torch's; a copy is made by whoever wants one."""
    params = parameters()
    bridge = TorchBridge(params, funcopt.adam, lr=0.1)
    train(bridge, range(2))
    saved = bridge.state_dict()
    copied = copy.deepcopy(saved)
    train(bridge, range(2, 5))
    assert saved["state"][0]["exp_avg"] is bridge.state[params[0]]["exp_avg"]
    assert not torch.equal(saved["state"][0]["exp_avg"], copied["state"][0]["exp_avg"])


def test_refused_load_changes_nothing() -> None:
    bridge = TorchBridge(two_groups(parameters()), funcopt.adam, lr=0.1)
    train(bridge, range(2))
    before = copy.deepcopy(bridge.state_dict())

    def broken(change: Callable[[dict[str, Any]], Any]) -> dict[str, Any]:
        state = copy.deepcopy(before)
        state["param_groups"][0]["lr"] = 9.0
        change(state)
        return state

    cases = {
        "exp_avg of parameter 1 of group 0 must have shape": lambda s: s["state"][1].update(exp_avg=torch.zeros(7)),
        "parameter 0 of group 1 must have the state 'exp_avg_sq'": lambda s: s["state"][2].pop("exp_avg_sq"),
        "there must be 2 parameter groups, got 1": lambda s: s["param_groups"].pop(),
        "parameter group 0 must have 2 parameters, got 3": lambda s: s["param_groups"][0]["params"].append(9),
    }
    for message, change in cases.items():
        with pytest.raises(ValueError, match=message):
            bridge.load_state_dict(broken(change))
        after = bridge.state_dict()
        assert after["param_groups"] == before["param_groups"]
        assert all(
            torch.equal(after["state"][i][name], value) for i, e in before["state"].items() for name, value in e.items()
        )


@pytest.mark.parametrize(
    "duplicate",
    [
        copy.deepcopy,
        lambda pair: pickle.loads(pickle.dumps(pair)),
        lambda pair: torch.load(_saved(pair), weights_only=False),
    ],
    ids=["deepcopy", "pickle", "torch.save"],
)
def test_copies_go_on_with_their_own_parameters(duplicate: Callable[[Any], Any]) -> None:
    params = parameters()
    bridge = TorchBridge(two_groups(params), funcopt.adam, lr=0.1)
    train(bridge, range(3))
    other_params, other = duplicate((params, bridge))
    train(bridge, range(3, 6))
    train(other, range(3, 6))
    assert other_params[0] is not params[0]
    assert_equal(other_params, params, 0.0)


def _saved(value: Any) -> io.BytesIO:
    file = io.BytesIO()
    torch.save(value, file)
    file.seek(0)
    return file


def test_added_group_starts_at_its_own_step() -> None:
    ours, theirs = parameters(), parameters()
    bridge, reference = TorchBridge(ours[:2], funcopt.adam, lr=0.1), torch.optim.Adam(theirs[:2], lr=0.1)
    for optimizer, params in ((bridge, ours), (reference, theirs)):
        train(optimizer, range(3))
        optimizer.add_param_group({"params": params[2:], "lr": 0.02})
        train(optimizer, range(3, 6))
    assert_equal(ours, theirs)
    assert [bridge.state[p]["step"].item() for p in ours] == [6, 6, 3, 3]


def test_named_parameters() -> None:
    model = torch.nn.Linear(3, 2)
    bridge = TorchBridge(model.named_parameters(), funcopt.adam)
    assert bridge.param_groups[0]["param_names"] == ["weight", "bias"]
    model(torch.ones(1, 3)).sum().backward()
    bridge.step()
    state = bridge.state_dict()
    state["state"][1] = {**state["state"][1], "exp_avg": torch.zeros(5)}
    with pytest.raises(ValueError, match="exp_avg of parameter 'bias' of group 0"):
        bridge.load_state_dict(state)


# What is refused


def test_clear_errors() -> None:
    params = parameters()
    cases: list[tuple[type[Exception], str, Callable[[], Any]]] = [
        (ValueError, r"adamw: betas\[1\] must be a float in \[0, 1\), got 1.0",
         lambda: TorchBridge(params, funcopt.adamw, betas=(0.9, 1.0))),
        (ValueError, "parameter group 1: adamw: lr must be >= 0, got -1.0",
         lambda: TorchBridge(two_groups(params, lr=-1.0), funcopt.adamw)),
        (TypeError, "adamw has no argument weigth_decay; did you mean weight_decay?",
         lambda: TorchBridge(params, funcopt.adamw, weigth_decay=0.1)),
        (ValueError, "parameter group 1: lr_mult must be >= 0, got -1",
         lambda: TorchBridge(two_groups(params, lr_mult=-1), funcopt.adamw)),
        (TypeError, "clipped needs lr", lambda: TorchBridge(params, clipped)),
        (TypeError, "lr cannot be set on a ready transformation", lambda: TorchBridge(params, funcopt.adam(), lr=1.0)),
        (TypeError, "transform must be a gradient transformation or a function", lambda: TorchBridge(params, 3)),  # pyright: ignore[reportArgumentType]
        (TypeError, "must return a gradient transformation, got 1.0",
         lambda: TorchBridge(params, lambda lr: lr, lr=1.0)),
        (ValueError, "decay_mult=0.0, but a ready transformation has no weight_decay",
         lambda: TorchBridge(two_groups(params, decay_mult=0.0), funcopt.adamw())),
        (ValueError, "optimizer got an empty parameter list", lambda: TorchBridge([], funcopt.sgd)),
    ]  # fmt: skip
    for error, message, make in cases:
        with pytest.raises(error, match=message):
            make()


@pytest.mark.one_engine
def test_what_looks_like_a_misspelt_hyperparameter_is_the_users_own() -> None:
    params = parameters()
    with pytest.warns(UserWarning, match="parameter group 1 has a field 'weigth_decay'; did you mean 'weight_decay'?"):
        bridge = TorchBridge(two_groups(params, weigth_decay=0.1), funcopt.adamw)
    train(bridge, range(2))
    assert bridge.state_dict()["param_groups"][1]["weigth_decay"] == 0.1


def test_refused_group_is_not_added() -> None:
    params = parameters()
    bridge = TorchBridge(params[:2], funcopt.adam)
    train(bridge, range(1))
    with pytest.raises(ValueError, match="parameter group 1: adam: lr must be >= 0"):
        bridge.add_param_group({"params": params[2:], "lr": -1.0})
    assert len(bridge.param_groups) == 1
    train(bridge, range(2))


def test_sparse_gradients_are_refused() -> None:
    embedding = torch.nn.Embedding(5, 2, sparse=True)
    bridge = TorchBridge(embedding.parameters(), funcopt.adam)
    embedding(torch.tensor([1, 3])).sum().backward()
    with pytest.raises(RuntimeError, match="adam does not support sparse gradients"):
        bridge.step()


def test_a_step_that_raises_leaves_everything_as_it_was() -> None:
    params = parameters()
    bridge = TorchBridge(params, lambda lr, fail=False: _failing(lr) if fail else funcopt.adam(lr), lr=0.1)
    train(bridge, range(2))
    before = [p.detach().clone() for p in params], copy.deepcopy(bridge.state_dict())
    bridge.param_groups[0]["fail"] = True
    with pytest.raises(RuntimeError, match="on purpose"):
        train(bridge, range(2, 3))
    assert all(torch.equal(p, b) for p, b in zip(params, before[0], strict=True))
    bridge.param_groups[0]["fail"] = False
    assert torch.equal(bridge.state_dict()["state"][0]["exp_avg"], before[1]["state"][0]["exp_avg"])
    train(bridge, range(2, 4))


def _failing(lr: Any) -> funcopt.GradientTransformation:
    def update(*_: Any) -> Any:
        raise RuntimeError("on purpose")

    return optax.GradientTransformation(funcopt.adam(lr).init, update)


@pytest.mark.parametrize(
    ("factory", "torch_class", "options"),
    [
        (funcopt.adamw, torch.optim.AdamW, {}),
        (funcopt.sgd, torch.optim.SGD, {"momentum": 0.9, "dampening": 0.2}),
        (lambda lr: clipped(lr, weight_decay=0.0, max_norm=1e9), torch.optim.Adam, {}),
    ],
    ids=["adamw", "sgd", "clipped"],
)
def test_ever_new_patterns_of_missing_gradients_compile_a_bounded_number_of_programs(
    factory: Any, torch_class: Any, options: dict[str, Any]
) -> None:
    """As with experts that are chosen anew for each batch: 2**8 patterns of eight parameters."""

    def train_with_gaps(optimizer: torch.optim.Optimizer) -> list[torch.nn.Parameter]:
        rng = np.random.default_rng(0)
        params = [p for group in optimizer.param_groups for p in group["params"]]
        for _ in range(60):
            for p in params:
                grad = torch.from_numpy(np.asarray(rng.normal(size=tuple(p.shape))))
                p.grad = grad if rng.random() < 0.5 else None
            optimizer.step()
        return params

    bridge = TorchBridge(two_groups(parameters(0) + parameters(1), lr=0.03), factory, lr=0.1, **options)
    reference = torch_class(two_groups(parameters(0) + parameters(1), lr=0.03), lr=0.1, **options)
    assert_equal(train_with_gaps(bridge), train_with_gaps(reference))
    # Before each of at most 7 divisions of joined parameters one; then some patterns, all others, and no missing one.
    assert bridge.compilations <= 7 + _store.MAX_PATTERNS + 2
    ours, theirs = bridge.state_dict()["state"], reference.state_dict()["state"]
    assert {i: int(e.get("step", 0)) for i, e in ours.items()} == {i: int(e.get("step", 0)) for i, e in theirs.items()}
