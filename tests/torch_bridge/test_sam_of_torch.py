"""SAM around torch's optimizers and the bridge: the specification, and what must hold when something goes wrong."""

import copy
import io
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from oracles import specs
from twins import batch, make_model, make_parameters

import funcopt
from funcopt import TorchBridge
from funcopt.torch_bridge import SAM

SHAPES = ((4, 3), (5,), ())

BASES: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "torch": lambda params: torch.optim.SGD(params, lr=0.1, momentum=0.9),
    "bridge": lambda params: TorchBridge(params, funcopt.sgd, lr=0.1, momentum=0.9),
}
EACH_BASE = pytest.mark.parametrize("base", BASES.values(), ids=BASES)


def loss_of(params: Any, shift: float) -> torch.Tensor:
    return sum((torch.sin(p + shift) * p).sum() for p in params)  # pyright: ignore[reportReturnType]


def gradient(x: np.ndarray, shift: float) -> np.ndarray:
    return np.cos(x + shift) * x + np.sin(x + shift)


def values(params: Any) -> list[np.ndarray]:
    return [p.detach().double().numpy().copy() for p in params]


def closure_of(optimizer: Any, params: Any, shift: float) -> Callable[[], torch.Tensor]:
    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        loss = loss_of(params, shift)
        loss.backward()
        return loss

    return closure


def assert_equal(ours: Any, theirs: Any) -> None:
    for a, b in zip(ours, theirs, strict=True):
        np.testing.assert_array_equal(a, b)


@EACH_BASE
@pytest.mark.parametrize("by_hand", [False, True])
@pytest.mark.parametrize(("rho", "adaptive"), [(0.05, False), (0.7, False), (2.0, True)])
def test_against_the_specification(base: Any, by_hand: bool, rho: float, adaptive: bool) -> None:
    params = make_parameters(SHAPES)
    groups = [{"params": params[:1]}, {"params": params[1:]}]
    optimizer = SAM(base(groups), rho, adaptive)
    theirs = values(params)
    momentum = [np.zeros_like(p) for p in theirs]
    for i in range(8):
        shift = 0.5 + 0.1 * i
        closure = closure_of(optimizer, params, shift)
        if by_hand:
            closure()
            optimizer.first_step(zero_grad=True)
            assert all(p.grad is None for p in params)
            loss_of(params, shift).backward()
            optimizer.second_step(zero_grad=True)
            assert all(p.grad is None for p in params)
        else:
            loss = optimizer.step(closure)
            np.testing.assert_allclose(loss.item(), sum((np.sin(p + shift) * p).sum() for p in theirs), rtol=1e-12)
        point = specs.sam_point(theirs, [gradient(p, shift) for p in theirs], rho, adaptive)
        momentum = [0.9 * m + gradient(q, shift) for m, q in zip(momentum, point, strict=True)]
        theirs = [p - 0.1 * m for p, m in zip(theirs, momentum, strict=True)]
        for p, q in zip(values(params), theirs, strict=True):
            np.testing.assert_allclose(p, q, rtol=1e-12, atol=1e-13)


@EACH_BASE
def test_groups_have_their_own_radius_and_one_norm(base: Any) -> None:
    params = make_parameters(SHAPES)
    before = values(params)
    optimizer = SAM(base([{"params": params[:2], "rho": 0.3}, {"params": params[2:], "adaptive": True}]), rho=0.0)
    assert [(g["rho"], g["adaptive"]) for g in optimizer.param_groups] == [(0.3, False), (0.0, True)]
    closure_of(optimizer, params, 0.5)()
    optimizer.first_step()
    grads = [gradient(p, 0.5) for p in before]
    weights = [1.0, 1.0, np.abs(before[2])]
    norm = np.sqrt(sum((w * w * g * g).sum() for w, g in zip(weights, grads, strict=True)))
    expected = [*(p + 0.3 * g / (norm + 1e-12) for p, g in zip(before[:2], grads[:2], strict=True)), before[2]]
    for p, q in zip(values(params), expected, strict=True):
        np.testing.assert_allclose(p, q, rtol=1e-12, atol=1e-14)


@EACH_BASE
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_the_parameters_come_back_to_the_last_bit(base: Any, dtype: torch.dtype) -> None:
    params = make_parameters(SHAPES, dtype)
    optimizer = SAM(base(params), rho=100.0)
    optimizer.step(closure_of(optimizer, params, 0.5))
    before = values(params)
    closure_of(optimizer, params, 0.5)()
    optimizer.first_step()
    at_point = values(params)
    assert all((a != b).all() for a, b in zip(at_point, before, strict=True))
    optimizer.restore()
    assert_equal(values(params), before)
    optimizer.restore()
    assert_equal(values(params), before)


@EACH_BASE
@pytest.mark.parametrize("failing", [1, 2])
def test_after_an_error_in_the_closure_nothing_has_changed(base: Any, failing: int) -> None:
    params = make_parameters(SHAPES)
    optimizer = SAM(base(params))
    optimizer.step(closure_of(optimizer, params, 0.5))
    before, saved = values(params), copy.deepcopy(optimizer.state_dict())
    calls = 0

    def closure() -> torch.Tensor:
        nonlocal calls
        calls += 1
        if calls == failing:
            raise KeyboardInterrupt
        return closure_of(optimizer, params, 0.5)()

    with pytest.raises(KeyboardInterrupt):
        optimizer.step(closure)
    assert_equal(values(params), before)
    for a, b in zip(saved["state"].values(), optimizer.state_dict()["state"].values(), strict=True):
        assert all(torch.equal(torch.as_tensor(a[name]), torch.as_tensor(b[name])) for name in a)
    optimizer.step(closure_of(optimizer, params, 0.5))  # and it goes on


def test_half_a_first_step_is_undone(monkeypatch: Any) -> None:
    params = make_parameters(SHAPES)
    optimizer = SAM(BASES["torch"](params))
    before = values(params)
    add_, calls = torch.Tensor.add_, []

    def failing(self: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        if any(self is p for p in params):
            calls.append(self)
            if len(calls) == 2:
                raise RuntimeError("out of memory")
        return add_(self, *args, **kwargs)

    monkeypatch.setattr(torch.Tensor, "add_", failing)
    with pytest.raises(RuntimeError, match="out of memory"):
        optimizer.step(closure_of(optimizer, params, 0.5))
    assert_equal(values(params), before)


@EACH_BASE
def test_a_parameter_without_a_gradient_stays(base: Any) -> None:
    params = make_parameters(SHAPES)
    before = values(params)
    optimizer = SAM(base(params), rho=0.3)

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        loss = loss_of(params[1:], 0.5)
        loss.backward()
        return loss

    closure()
    optimizer.first_step()
    grads = [gradient(p, 0.5) for p in before[1:]]
    for p, q in zip(values(params)[1:], specs.sam_point(before[1:], grads, 0.3), strict=True):
        np.testing.assert_allclose(p, q, rtol=1e-12)
    optimizer.restore()
    optimizer.step(closure)
    assert_equal(values(params)[:1], before[:1])
    assert params[0] not in optimizer.state
    optimizer.zero_grad()
    optimizer.first_step()  # with no gradient at all
    optimizer.second_step()


@pytest.mark.one_engine
def test_gradients_of_rows() -> None:
    table = torch.nn.Embedding(6, 3, sparse=True)
    dense = copy.deepcopy(table)
    dense.sparse = False
    for adaptive in (False, True):
        optimizers = [SAM(torch.optim.SGD(m.parameters(), lr=0.1), 0.5, adaptive) for m in (table, dense)]
        for model, optimizer in zip((table, dense), optimizers, strict=True):
            optimizer.zero_grad()
            model(torch.tensor([1, 4, 1])).square().sum().backward()
            optimizer.first_step()
        torch.testing.assert_close(table.weight, dense.weight)
        for optimizer in optimizers:
            optimizer.restore()


def train(model: Any, optimizer: Any, steps: Any) -> None:
    for step in steps:
        x, y = batch(step)

        def closure(x: Any = x, y: Any = y) -> torch.Tensor:
            optimizer.zero_grad()
            loss = torch.nn.functional.mse_loss(model(x), y)
            loss.backward()
            return loss

        optimizer.step(closure)


def adamw(params: Any) -> TorchBridge:
    return TorchBridge(params, funcopt.adamw, lr=0.01)


@pytest.mark.parametrize("base", [adamw, lambda params: torch.optim.AdamW(params, lr=0.01)])
def test_checkpoints_are_those_of_the_optimizer_inside(base: Any) -> None:
    model = make_model()
    optimizer = SAM(base(model.parameters()), rho=0.2)
    train(model, optimizer, range(3))
    file = io.BytesIO()
    torch.save((model.state_dict(), optimizer.state_dict()), file)
    file.seek(0)
    weights, saved = torch.load(file)
    resumed = make_model(seed=1)
    other = SAM(base(resumed.parameters()))
    resumed.load_state_dict(weights)
    other.load_state_dict(saved)
    assert other.param_groups[0]["rho"] == 0.2
    for own in ((model, optimizer), (resumed, other)):
        train(*own, range(3, 6))
    assert_equal(values(model.parameters()), values(resumed.parameters()))
    # from a run without
    plain = base(make_model().parameters())
    saved = {**plain.state_dict(), "param_groups": [{"params": [0, 1, 2, 3], "lr": 0.5}]}
    other.load_state_dict(saved)
    assert (other.param_groups[0]["lr"], other.param_groups[0]["adaptive"]) == (0.5, False)
    assert "rho" in other.param_groups[0]


def test_copies_and_schedulers() -> None:
    model = make_model()
    optimizer = SAM(adamw(model.parameters()), rho=0.2)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1, 0.5)
    train(model, optimizer, range(2))
    scheduler.step()
    assert optimizer.base_optimizer.param_groups[0]["lr"] == 0.005
    both = copy.deepcopy((model, optimizer))
    for own in ((model, optimizer), both):
        train(*own, range(2, 4))
    assert_equal(values(model.parameters()), values(both[0].parameters()))
    closure = torch.nn.functional.mse_loss(both[0](batch(0)[0]), batch(0)[1])
    both[1].zero_grad()
    closure.backward()
    before = values(both[0].parameters())
    both[1].first_step()
    again = copy.deepcopy(both)  # at a point
    again[1].restore()
    assert_equal(values(again[0].parameters()), before)
    assert "rho: 0.2" in repr(optimizer)


def test_further_groups() -> None:
    params = make_parameters(SHAPES)
    optimizer = SAM(TorchBridge(params[:1], funcopt.sgd, lr=0.1), rho=0.2)
    optimizer.add_param_group({"params": params[1:], "rho": 0.4})
    assert [group["rho"] for group in optimizer.param_groups] == [0.2, 0.4]
    optimizer.step(closure_of(optimizer, params, 0.5))
    with pytest.raises(ValueError, match="SAM: rho must be >= 0, got -1"):
        optimizer.add_param_group({"params": [torch.nn.Parameter(torch.ones(2))], "rho": -1})


@pytest.mark.one_engine
def test_with_a_scaler_of_the_loss() -> None:
    models = [make_model(dtype=torch.float32) for _ in range(2)]
    plain, scaled = (SAM(adamw(model.parameters()), rho=0.2) for model in models)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
    for step in range(4):
        x, y = batch(step, dtype=torch.float32)

        def loss(model: Any, x: Any = x, y: Any = y) -> torch.Tensor:
            return torch.nn.functional.mse_loss(model(x), y)

        for model, optimizer, scale in ((models[0], plain, lambda x: x), (models[1], scaled, scaler.scale)):
            optimizer.zero_grad()
            scale(loss(model)).backward()
            optimizer.first_step(zero_grad=True)
            scale(loss(model)).backward()
        plain.second_step()
        scaled.restore()
        scaler.step(scaled.base_optimizer)
        scaler.update()
    for p, q in zip(models[0].parameters(), models[1].parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-5, atol=1e-6)


@pytest.mark.one_engine
def test_errors() -> None:
    params = make_parameters(SHAPES)
    with pytest.raises(TypeError, match="SAM: base_optimizer must be a torch optimizer, got SGD; make it with its"):
        SAM(torch.optim.SGD)  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match=r"SAM: rho must be >= 0, got -0\.1"):
        SAM(torch.optim.SGD(params), rho=-0.1)
    with pytest.raises(ValueError, match="SAM: groups must have room for rho, which Adadelta has itself"):
        SAM(torch.optim.Adadelta(params))
    optimizer = SAM(torch.optim.SGD(params))
    with pytest.raises(RuntimeError, match="SAM: step needs a closure"):
        optimizer.step()
    closure_of(optimizer, params, 0.5)()
    optimizer.first_step()
    with pytest.raises(RuntimeError, match="SAM: first_step must start from the parameters; call second_step or"):
        optimizer.first_step()
    with pytest.raises(RuntimeError, match="SAM: step must start from the parameters"):
        optimizer.step(closure_of(optimizer, params, 0.5))
