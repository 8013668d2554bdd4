"""Metrics of updates in torch: their values, what they leave as it is, and that nothing waits for them."""

import functools
import io
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import optax
import pytest
import torch
from twins import make_parameters, set_gradients, take_steps

import funcopt
from funcopt import TorchBridge
from funcopt.torch_bridge import functional
from funcopt.torch_bridge.store import _store

SHAPES = ((4, 3), (300, 301), (), (70, 3), (0, 2), (5,))
STEPS = 4


def clipped(lr: Any = 0.1, weight_decay: Any = 0.01) -> Any:
    return funcopt.chain(funcopt.clip_by_global_norm(3.0), funcopt.adamw(lr, weight_decay=weight_decay))


def bounded(lr: Any = 0.1) -> Any:
    return funcopt.chain(funcopt.clip_by_value(0.5), funcopt.sgd(lr, momentum=0.9))


RECIPES: dict[str, Callable[..., Any]] = {
    "adamw": funcopt.adamw,
    "clipped": clipped,
    "bounded": bounded,
    "prodigy": functools.partial(funcopt.prodigy, d0=1e-2),
    "lamb": funcopt.lamb,
    "ema": lambda lr=0.1: funcopt.chain(funcopt.adamw(lr), funcopt.params_ema(0.7)),
    "lookahead": funcopt.lookahead(funcopt.lion, sync_period=2),
    "optax": optax.adamw,
}
EVERY_RUN = {"clipped", "prodigy"}
EACH = pytest.mark.parametrize(
    "recipe",
    [
        pytest.param(recipe, id=name, marks=[] if name in EVERY_RUN else [pytest.mark.thorough])
        for name, recipe in RECIPES.items()
    ],
)


def groups(params: Sequence[Any]) -> list[dict[str, Any]]:
    return [{"params": params[:2]}, {"params": params[2:5]}, {"params": params[5:]}]


def missing(params: Sequence[Any], step: int) -> None:
    """In the second step some have no gradient, and in the third a whole group has none."""
    for i in {1: (1, 2), 2: (5,)}.get(step, ()):
        params[i].grad = None


def norm(tensors: Any) -> float:
    return float(sum(x.detach().double().abs().square().sum() for x in tensors) ** 0.5)


def compared(params: Any, optimizer: Any, step: int, edit: Any = missing) -> tuple[dict[str, Any], dict[str, Any]]:
    """The metrics of a step, and what they are to be, from the parameters before and after it."""
    before = [p.detach().clone() for p in params]
    take_steps(params, optimizer, [step], edit)
    due = [i for i, p in enumerate(params) if p.grad is not None]
    moved = {i: params[i].detach() - before[i] for i in due}
    ratios = []
    for group in optimizer.param_groups:
        own = [i for i in due if any(params[i] is p for p in group["params"])]
        ratios.append(norm(moved[i] for i in own) / norm(before[i] for i in own) if own else np.nan)
    expected = {
        "grad_norm": norm(params[i].grad for i in due),
        "update_norm": norm(moved.values()),
        "param_norm": norm(before[i] for i in due),
        "update_ratio": ratios,
    }
    return optimizer.metrics(), expected


@EACH
def test_values(each_path: str, recipe: Any) -> None:
    params = make_parameters(SHAPES)
    optimizer = TorchBridge(groups(params), funcopt.with_metrics(recipe), lr=0.1)
    for step in range(STEPS):
        found, expected = compared(params, optimizer, step)
        for name, value in expected.items():
            np.testing.assert_allclose(found[name], value, rtol=1e-10, err_msg=name)  # of a difference
        assert {type(x) for value in found.values() for x in np.ravel(value).tolist()} == {float}


@pytest.mark.thorough
@pytest.mark.parametrize("recipe", [RECIPES[name] for name in sorted(EVERY_RUN)], ids=sorted(EVERY_RUN))
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_not_a_bit_of_the_trajectory_changes(each_path: str, recipe: Any, dtype: torch.dtype) -> None:
    ours, theirs = make_parameters(SHAPES, dtype), make_parameters(SHAPES, dtype)
    measured = TorchBridge(groups(ours), funcopt.with_metrics(recipe), lr=0.1)
    plain = TorchBridge(groups(theirs), recipe, lr=0.1)
    for params, optimizer in ((ours, measured), (theirs, plain)):
        take_steps(params, optimizer, range(STEPS), missing)
    for p, q in zip(ours, theirs, strict=True):
        assert torch.equal(p, q)
        assert [*measured.state[p]] == [*plain.state[q]]
        for name, value in plain.state[q].items():
            assert torch.equal(torch.as_tensor(measured.state[p][name]), torch.as_tensor(value)), name


def test_half_precision_before_rounding(each_path: str) -> None:
    """An update that is lost in a parameter of half precision was made all the same."""
    p = torch.nn.Parameter(torch.full((300,), 256.0, dtype=torch.bfloat16))
    optimizer = TorchBridge([p], funcopt.with_metrics(funcopt.sgd), lr=1e-3)
    p.grad = torch.ones_like(p)
    optimizer.step()
    assert bool((p == 256).all())
    np.testing.assert_allclose(optimizer.metrics()["update_norm"], 1e-3 * 300**0.5, rtol=1e-5)


def test_what_clipping_took_away(each_path: str) -> None:
    for recipe, kept in (
        (clipped, lambda g, norm: g * min(1, 3 / (norm + 1e-6))),
        (bounded, lambda g, norm: np.clip(g, -0.5, 0.5)),
    ):
        params = make_parameters(SHAPES)
        optimizer = TorchBridge(groups(params), funcopt.with_metrics(recipe))
        for scale in (1.0, 1e-6, 3.0):
            set_gradients(params, 0)
            for p in params:
                assert p.grad is not None
                p.grad *= scale
            optimizer.step()
            g = np.concatenate([p.grad.numpy().ravel() for p in params])  # pyright: ignore[reportOptionalMemberAccess]
            size = np.linalg.norm(g)
            found = optimizer.metrics()["clipped_fraction"]
            np.testing.assert_allclose(found, 1 - np.linalg.norm(kept(g, size)) / size, rtol=1e-12, atol=1e-16)
            assert (found == 0.0) is (scale == 1e-6)


def test_the_learning_rate_in_use(each_path: str) -> None:
    params = make_parameters(SHAPES)
    given = groups(params)
    given[0] |= {"lr": 0.3, "lr_mult": 0.5}
    given[2] |= {"lr": lambda step: 0.2 / (step + 1)}
    optimizer = TorchBridge(given, funcopt.with_metrics(clipped), lr=0.1)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1, 0.5)
    set_gradients(params, 0)
    optimizer.step()
    scheduler.step()
    np.testing.assert_allclose(optimizer.metrics()["lr"], [0.15, 0.1, 0.2], rtol=1e-15)
    params[0].grad = params[1].grad = None
    optimizer.step()
    np.testing.assert_allclose(optimizer.metrics()["lr"], [np.nan, 0.05, 0.1], rtol=1e-15)


def test_a_learning_rate_of_the_recipe(each_path: str) -> None:
    params = make_parameters(SHAPES)
    tx = funcopt.with_metrics(clipped(lambda step: 0.5 / (step + 1)))
    optimizer = TorchBridge(groups(params), tx)
    take_steps(params, optimizer, range(2))
    np.testing.assert_allclose(optimizer.metrics()["lr"], [0.25] * 3, rtol=1e-7)


def test_the_estimate(each_path: str) -> None:
    params = make_parameters(SHAPES)
    optimizer = TorchBridge(groups(params), funcopt.with_metrics(RECIPES["prodigy"]))
    take_steps(params, optimizer, [0] * 5)  # in one direction, so that it grows
    assert optimizer.metrics()["d"] == float(optimizer.state[params[0]]["d"]) > 1e-2
    assert optimizer.metrics()["lr"] == [1.0] * 3


def test_before_the_first_step_and_without_gradients() -> None:
    params = make_parameters(SHAPES)
    optimizer = TorchBridge(groups(params), funcopt.with_metrics(funcopt.adamw))
    assert optimizer.metrics()["grad_norm"] == 0.0
    np.testing.assert_array_equal(optimizer.metrics()["lr"], [np.nan] * 3)
    take_steps(params, optimizer, [0])
    before = optimizer.metrics()
    for p in params:
        p.grad = None
    optimizer.step()
    assert optimizer.metrics() == before  # of the last update that there was


def test_an_optimizer_that_does_not_measure() -> None:
    optimizer = TorchBridge(make_parameters(SHAPES), funcopt.adamw)
    with pytest.raises(RuntimeError, match=r"TorchBridge: metrics must be of a recipe that measures its updates; pass"):
        optimizer.metrics()


@pytest.mark.parametrize("saving", [True, False])
@pytest.mark.parametrize("recipe", [clipped, funcopt.prodigy, funcopt.lamb])
def test_checkpoints_have_no_metrics(recipe: Any, saving: bool) -> None:
    """One of an optimizer that measures goes on in one that does not, and the other way round."""

    def make(params: Any, measures: bool) -> TorchBridge:
        return TorchBridge(groups(params), funcopt.with_metrics(recipe) if measures else recipe)

    params, others = make_parameters(SHAPES), make_parameters(SHAPES)
    optimizer = make(params, saving)
    take_steps(params, optimizer, range(2))
    file = io.BytesIO()
    torch.save((optimizer.state_dict(), [p.detach() for p in params]), file)
    file.seek(0)
    saved, weights = torch.load(file)
    resumed = make(others, not saving)
    assert resumed.load_state_dict(saved) == make(make_parameters(SHAPES), saving).load_state_dict(saved)
    with torch.no_grad():
        for p, value in zip(others, weights, strict=True):
            p.copy_(value)
    for own, steps in ((params, optimizer), (others, resumed)):
        take_steps(own, steps, range(2, 4))
    assert all(torch.equal(p, q) for p, q in zip(params, others, strict=True))
    assert (resumed if not saving else optimizer).metrics()["grad_norm"] > 0


@pytest.mark.one_engine
def test_nothing_waits_for_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """No tensor is asked for its value within a step of the torch engine."""
    params = make_parameters(SHAPES)
    optimizer = TorchBridge(groups(params), funcopt.with_metrics(clipped), engine="torch")
    take_steps(params, optimizer, range(2))
    set_gradients(params, 2)

    def refuse(*args: Any, **kwargs: Any) -> Any:
        raise AssertionError("waits")

    with monkeypatch.context() as patched:
        for name in ("item", "tolist", "numpy", "cpu", "__float__", "__bool__", "__int__"):
            patched.setattr(torch.Tensor, name, refuse)
        optimizer.step()
        with pytest.raises(AssertionError, match="waits"):
            optimizer.metrics()
    np.testing.assert_allclose(optimizer.metrics()["grad_norm"], norm(p.grad for p in params), rtol=1e-12)


def test_gradients_that_are_scaled() -> None:
    params = make_parameters(SHAPES, torch.float32)
    optimizer = TorchBridge(params, funcopt.with_metrics(clipped), fused=True)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**7)
    loss = sum((p * p).sum() for p in params)
    scaler.scale(loss).backward()
    scaler.step(optimizer)
    np.testing.assert_allclose(optimizer.metrics()["grad_norm"], 2 * optimizer.metrics()["param_norm"], rtol=1e-5)


def test_gradients_of_rows() -> None:
    model = torch.nn.Sequential(torch.nn.Embedding(6, 3, sparse=True), torch.nn.Linear(3, 2)).double()
    for own in (funcopt.sgd, clipped):
        extra = {"weight_decay": 0.0} if own is clipped else {}
        optimizer = TorchBridge(model.parameters(), funcopt.with_metrics(own), lr=0.1, **extra)
        optimizer.zero_grad()
        model(torch.tensor([1, 4, 1])).square().sum().backward()
        if own is clipped:  # Adam refuses rows
            model[0].weight.grad = model[0].weight.grad.to_dense()  # pyright: ignore
        grads = [p.grad.coalesce().values() if p.grad.is_sparse else p.grad for p in model.parameters()]  # pyright: ignore
        optimizer.step()
        np.testing.assert_allclose(optimizer.metrics()["grad_norm"], norm(grads), rtol=1e-12)


def test_ever_new_patterns_of_missing_gradients() -> None:
    """Of recipes that see each parameter in its own shape."""
    params = make_parameters(((3, 2), (2,), (4,), (2, 2), (5,)))
    optimizer = TorchBridge(params, funcopt.with_metrics(funcopt.lamb), lr=0.1)
    for step in range(1, _store.MAX_PATTERNS + 5):

        def edit(params: Any, step: int) -> None:
            for i, p in enumerate(params):
                if not step >> i & 1:
                    p.grad = None

        found, expected = compared(params, optimizer, step, edit)
        for name, value in expected.items():
            np.testing.assert_allclose(found[name], value, rtol=1e-10, err_msg=name)


def test_steps_that_are_differentiated() -> None:
    leaves = make_parameters(((4, 3), (5,)))
    params = [p * 1.0 for p in leaves]
    optimizer = TorchBridge(
        [{"params": params[:1]}, {"params": params[1:], "lr": 0.2}],
        funcopt.with_metrics(clipped),
        lr=0.1,
        differentiable=True,
    )
    before = [p.detach().clone() for p in params]
    for p in params:
        p.grad = 2 * p
    size = norm(p.grad for p in params)
    optimizer.step()
    found = optimizer.metrics()
    np.testing.assert_allclose(found["grad_norm"], size, rtol=1e-12)
    np.testing.assert_allclose(found["param_norm"], norm(before), rtol=1e-12)
    assert found["lr"] == [0.1, 0.2]
    torch.autograd.grad(sum(p.sum() for p in params), leaves)  # pyright: ignore[reportArgumentType]


def test_pure_functions_have_the_same_state() -> None:
    measured, plain = (functional(f, lr=0.1) for f in (funcopt.with_metrics(funcopt.adamw), funcopt.adamw))
    (a,), (b,) = ([tx.init([torch.ones(2)])[0]] for tx in (measured, plain))
    assert [*a] == [*b]
    new = [tx.update([torch.ones(2)], tx.init([torch.ones(2)]), [torch.ones(2)])[0][0] for tx in (measured, plain)]
    assert torch.equal(*new)


@pytest.mark.one_engine
@pytest.mark.parametrize("recipe", [funcopt.adamw, clipped])
def test_compiled_blocks(recipe: Any) -> None:
    params = make_parameters(SHAPES)
    optimizer = TorchBridge(groups(params), funcopt.with_metrics(recipe), lr=0.1, engine="torch", compiled=True)
    for step in range(STEPS):
        found, expected = compared(params, optimizer, step)
        for name, value in expected.items():
            np.testing.assert_allclose(found[name], value, rtol=1e-10, err_msg=name)


def test_weights_to_evaluate() -> None:
    params = make_parameters(SHAPES)
    optimizer = TorchBridge(groups(params), funcopt.with_metrics(funcopt.schedule_free_adamw))
    take_steps(params, optimizer, range(2))
    before = [p.detach().clone() for p in params]
    with optimizer.eval_params():
        assert any(not torch.equal(p, q) for p, q in zip(params, before, strict=True))
    assert all(torch.equal(p, q) for p, q in zip(params, before, strict=True))
