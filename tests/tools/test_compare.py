"""Where two optimizers part, and whether the reason is found: one for each that is told apart."""

import functools
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch

import funcopt
from funcopt.torch_bridge import optim

PARAMS = {"w": np.ones((2, 3)), "b": np.ones(3)}
partial = functools.partial


def clip_and_decay(*parts: str) -> Any:
    known = {"clip": optax.clip_by_global_norm(1.0), "decay": optax.add_decayed_weights(0.1), "sgd": optax.sgd(0.1)}
    return optax.chain(*(known[part] for part in parts))


def without_correction(rms: float = 0.999) -> Any:
    return optax.chain(optax.scale_by_rms(rms, eps=1e-8), optax.scale(-0.1))


def step_lr(params: Any) -> Any:
    optimizer = torch.optim.SGD(params, lr=0.1)
    return optimizer, torch.optim.lr_scheduler.StepLR(optimizer, 2)


sgd, adamw = partial(funcopt.sgd, lr=0.1), partial(funcopt.adamw, lr=0.1)
torch_sgd, torch_adamw = partial(torch.optim.SGD, lr=0.1), partial(torch.optim.AdamW, lr=0.1)

EQUAL = {
    "torch and JAX": (torch_adamw, adamw),
    "torch and the bridge": (torch_adamw, partial(optim.AdamW, lr=0.1)),
    "optax and JAX": (optax.adam(0.1), funcopt.adam(0.1)),
    "a transformation and a function of none": (funcopt.lion(0.1), lambda: funcopt.lion(0.1)),
    "a scheduler and a schedule": (step_lr, funcopt.sgd(funcopt.schedules.step_lr(0.1, 2))),
}
PARTED = {
    "one option": (torch_adamw, partial(adamw, betas=(0.9, 0.95)), "with betas=(0.9, 0.999) in b, as in a,"),
    "two options": (torch_adamw, partial(adamw, betas=(0.8, 0.9), eps=0.1), "with betas=(0.9, 0.999), eps=1e-08 in b"),
    "a flag": (partial(torch_sgd, momentum=0.9, nesterov=True), sgd(momentum=0.9), "with nesterov=False in a"),
    "weight decay": (funcopt.adamw(0.1), optax.adamw(0.1), "weight decay, its size or its place"),
    "clip before decay": (
        clip_and_decay("clip", "decay", "sgd"),
        clip_and_decay("decay", "clip", "sgd"),
        "the order of",
    ),
    "clip": (clip_and_decay("clip", "sgd"), clip_and_decay("sgd"), "clipping: "),
    "sign": (sgd(maximize=True), sgd(), "the sign"),
    "learning rate": (funcopt.sgd(0.2), optax.sgd(0.1), "the learning rate: each of b's steps is 0.5 times a's"),
    "schedule": (sgd(lr=lambda t: 0.1 / (t + 1)), sgd(lr=lambda t: 0.1 / (t + 2)), "the schedule of the learning rate"),
    "eps": (optax.adam(0.1), optax.adam(0.1, eps=0.0, eps_root=1e-8), "eps, its size or its place"),
    "bias correction": (without_correction(), optax.rmsprop(0.1, 0.999, bias_correction=True), "bias correction"),
}


@pytest.mark.parametrize(("a", "b"), EQUAL.values(), ids=EQUAL)
def test_equal(a: Any, b: Any) -> None:
    found = funcopt.compare(a, b, PARAMS)
    assert found
    assert found.equal
    assert found.reasons == ()
    assert found.difference < 1e-14
    assert str(found).startswith("a and b are equal")


@pytest.mark.parametrize(("a", "b", "reason"), PARTED.values(), ids=PARTED)
def test_the_reason_is_found(a: Any, b: Any, reason: str) -> None:
    found = funcopt.compare(a, b, PARAMS)
    assert not found
    (text,) = found.reasons
    assert text.startswith(reason)


def test_the_first_difference_of_each_kind() -> None:
    """A learning rate that falls after two steps is read after the second, and moves the parameters in the third."""
    found = funcopt.compare(step_lr, torch_sgd, PARAMS)
    assert [(d.step, d.kind, d.key or d.param) for d in found.differences] == [
        (2, "hyperparameter", "lr"),
        (3, "parameter", "b"),
        (3, "parameter", "w"),
    ]
    rate = found.differences[0]
    np.testing.assert_allclose([rate.a, rate.b, rate.relative], [0.01, 0.1, 0.9])


def test_state_is_compared_under_torch_s_names() -> None:
    found = funcopt.compare(optax.adam(0.1, b2=0.9), torch.optim.Adam, PARAMS, 2)
    assert {d.key for d in found.differences if d.kind == "state"} == {"exp_avg_sq"}


def test_missing_gradients_and_gradients_of_one_s_own() -> None:
    grads = [{"w": np.ones((2, 3)), "b": None}, {"w": None, "b": np.ones(3)}]
    assert funcopt.compare(torch_adamw, adamw, PARAMS, grads)
    assert funcopt.compare(torch_adamw, adamw, PARAMS, [{"b": np.ones(3)}])
    different = funcopt.compare(optax.adamw(0.1, weight_decay=0.01), adamw, {"w": np.ones(2)}, [{"w": np.ones(2)}] * 3)
    assert different.equal
    assert different.steps == 3


def test_a_live_optimizer_is_copied() -> None:
    model = torch.nn.Linear(3, 2).double()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    model(torch.ones(1, 3, dtype=torch.float64)).sum().backward()
    optimizer.step()
    before = [p.detach().clone() for p in model.parameters()]
    resumed = optim.AdamW(model.parameters(), lr=0.1)
    resumed.load_state_dict(optimizer.state_dict())
    assert funcopt.compare(optimizer, resumed, model)
    fresh = funcopt.compare(optimizer, torch_adamw, model)
    assert not fresh
    assert fresh.differences[0].kind == "state"
    for p, old in zip(model.parameters(), before, strict=True):
        assert torch.equal(p, old)


def test_trees_and_prefixes_keep_their_structure() -> None:
    params = {"layer": {"w": jnp.ones((2, 2)), "b": jnp.ones(2)}, "head": jnp.ones(2)}
    decay = {"layer": {"w": 0.1, "b": 0.0}, "head": 0.0}
    found = funcopt.compare(funcopt.adamw(0.1, weight_decay=decay), funcopt.adamw(0.1, weight_decay=0.0), params)
    assert {d.param for d in found.differences} == {"layer.w"}


def test_float32_has_its_own_tolerance() -> None:
    assert funcopt.compare(torch_adamw, adamw, PARAMS, dtype="float32").difference > 0


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ((1.0, sgd, PARAMS), TypeError, "compare: a must be a transformation, a torch optimizer, or a function"),
        ((sgd, lambda params: params, PARAMS), TypeError, "compare: b must return a torch optimizer"),
        ((sgd, sgd, PARAMS, 0), ValueError, "compare: grads must be .*>= 1, got 0"),
        ((sgd, sgd, PARAMS, [{"v": np.ones(3)}]), ValueError, "compare: grads.'v'. must be of a parameter's name"),
        (
            (sgd, sgd, PARAMS, [{"w": np.ones(3), "b": None}]),
            ValueError,
            r"compare: grads.'w'. .* got \(3,\) for \(2, 3\)",
        ),
    ],
)
def test_bad_input(arguments: tuple[Any, ...], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        funcopt.compare(*arguments)
    with pytest.raises(ValueError, match="compare: dtype must be float64 or float32, got 'float16'"):
        funcopt.compare(sgd, sgd, PARAMS, dtype="float16")


def test_every_algorithm_that_torch_has_is_a_contender() -> None:
    makers: dict[str, Callable[..., Any]] = {"Adagrad": torch.optim.Adagrad, "NAdam": torch.optim.NAdam}
    for name, maker in makers.items():
        assert funcopt.compare(maker, getattr(funcopt, name.lower()), PARAMS), name
