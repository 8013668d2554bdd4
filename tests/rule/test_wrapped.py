"""Wrappers of optimizers: what they take, how they compose, and what they refuse."""

import copy
import inspect
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import funcopt
from funcopt.kinds import NonNegative
from funcopt.rule import Rule, around, wrapper

PARAMS = {"w": jnp.asarray([[0.5, -1.0], [2.0, 0.25]]), "b": jnp.asarray([1.0, -0.5])}


def train(tx: Any, params: Any = PARAMS, steps: int = 5) -> Any:
    state = tx.init(params)
    step = jax.jit(lambda grads, state, params: funcopt.step(tx, grads, state, params))
    for t in range(steps):
        rng = np.random.default_rng(t)
        grads = jax.tree.map(lambda p, rng=rng: p + jnp.asarray(rng.normal(size=p.shape), p.dtype), params)
        params, state = step(grads, state, params)
    return params, state


def assert_same(ours: Any, theirs: Any) -> None:
    jax.tree.map(np.testing.assert_array_equal, ours, theirs)


COMPOSED = {
    "cautious(lion)": lambda lr: funcopt.cautious(funcopt.lion(lr)),
    "cautious(sgd)": lambda lr: funcopt.cautious(funcopt.sgd(lr, momentum=0.9, weight_decay=0.1)),
    "cautious(adafactor)": lambda lr: funcopt.cautious(funcopt.adafactor(lr)),
    "cautious(mars(adamw))": lambda lr: funcopt.cautious(funcopt.mars(funcopt.adamw(lr))),
    "mars(lion)": lambda lr: funcopt.mars(funcopt.lion(lr, weight_decay=0.1)),
    "mars(sgd)": lambda lr: funcopt.mars(funcopt.sgd(lr, momentum=0.9)),
    "schedule_free(sgd)": lambda lr: funcopt.schedule_free(funcopt.sgd(lr)),
    "schedule_free(cautious(rmsprop))": lambda lr: funcopt.schedule_free(funcopt.cautious(funcopt.rmsprop(lr))),
    "lookahead(radam)": lambda lr: funcopt.lookahead(funcopt.radam(lr), sync_period=2),
    "lookahead(prodigy)": lambda lr: funcopt.lookahead(funcopt.prodigy(lr, d0=0.1)),
    "mars(schedule_free_adamw)": lambda lr: funcopt.mars(funcopt.schedule_free_adamw(lr)),
}
EACH = pytest.mark.parametrize("make", COMPOSED.values(), ids=COMPOSED.keys())


@EACH
def test_with_clip_schedule_groups_and_half_precision(make: Any) -> None:
    """In a chain, under a schedule that differs by group, in bfloat16, with a missing gradient, as a carry of scan."""
    lr = {"w": funcopt.schedules.warmup_cosine(0.1, 2, 10), "b": 0.01}
    tx = funcopt.chain(funcopt.clip_by_global_norm(1.0), make(lr), funcopt.params_ema(0.9))
    params = jax.tree.map(lambda p: p.astype(jnp.bfloat16), PARAMS)
    state = tx.init(params)
    forms = jax.tree.map(lambda x: (x.shape, x.dtype), state)
    updates, new = tx.update({"w": params["w"], "b": params["b"]}, state, params)
    assert jax.tree.map(lambda x: (x.shape, x.dtype), new) == forms
    assert jax.tree.map(lambda x: x.dtype, updates) == jax.tree.map(lambda x: x.dtype, params)
    assert all(bool(jnp.isfinite(x).all()) for x in jax.tree.leaves((updates, new)))
    updates, _ = tx.update({"w": params["w"], "b": None}, state, params)
    assert updates["b"] is None
    trained, _ = train(tx, params)
    assert all(bool((a != b).any()) for a, b in zip(jax.tree.leaves(trained), jax.tree.leaves(params), strict=True))


def test_a_factory_is_wrapped_as_what_it_returns() -> None:
    for wrap in (funcopt.cautious, funcopt.mars, funcopt.schedule_free, funcopt.lookahead):
        factory = wrap(funcopt.adamw)
        assert factory is wrap(funcopt.adamw)  # so that optimizers share their programs
        assert_same(train(factory(0.1, weight_decay=0.2)), train(wrap(funcopt.adamw(0.1, weight_decay=0.2))))


def test_options_are_arguments_of_the_factory() -> None:
    factory = funcopt.cautious(funcopt.lion, floor=0.5)
    signature = inspect.signature(factory)
    assert list(signature.parameters) == [*inspect.signature(funcopt.lion).parameters, "floor"]
    assert signature.parameters["floor"].default == 0.5
    assert_same(train(factory(0.1)), train(funcopt.cautious(funcopt.lion(0.1), floor=0.5)))
    assert_same(train(factory(0.1, floor=1e-3)), train(funcopt.cautious(funcopt.lion(0.1))))
    assert "floor" in str(inspect.signature(funcopt.cautious))


def test_state_has_the_fields_of_both() -> None:
    state = funcopt.schedule_free(funcopt.adam(0.1)).init(PARAMS)
    assert state._fields == (
        "step", "z", "weight_sum", "lr_max", "beta", "exp_avg", "exp_avg_sq", "max_exp_avg_sq"
    )  # fmt: skip
    torch = pytest.importorskip("torch")
    p = torch.nn.Parameter(torch.ones(2))
    optimizer = funcopt.TorchBridge([p], funcopt.lookahead(funcopt.lion), lr=0.1)
    p.grad = torch.ones(2)
    optimizer.step()
    assert set(optimizer.state[p]) == {"step", "lookahead_slow_buff", "exp_avg"}


def test_groups_of_the_bridge_have_the_options() -> None:
    torch = pytest.importorskip("torch")
    p, q = (torch.nn.Parameter(torch.ones(2)) for _ in range(2))
    factory = funcopt.schedule_free(funcopt.sgd)
    optimizer = funcopt.TorchBridge([{"params": [p]}, {"params": [q], "beta": 0.5}], factory, lr=0.1, momentum=0.0)
    for _ in range(2):
        p.grad, q.grad = torch.ones(2), torch.ones(2)
        optimizer.step()
    assert (p != q).all()
    again = copy.deepcopy(optimizer)
    assert again.param_groups[1]["beta"] == 0.5


@wrapper()
def mars_twice(inner: Rule, arguments: Any, *, more: NonNegative = 0.5) -> Rule:
    """MARS by another name."""
    return around(
        inner,
        lambda p: funcopt.MarsState(jnp.zeros_like(p)),
        lambda g, own, given: (more * g, given),
        lambda u, g, own, given: (u, own),
    )


def test_refused() -> None:
    chain = funcopt.chain(funcopt.clip_by_global_norm(1.0), funcopt.adamw(0.1))
    with pytest.raises(TypeError, match=r"cautious: inner must be an optimizer .* chain\(clip, cautious\(adamw"):
        funcopt.cautious(chain)
    with pytest.raises(TypeError, match=r"mars: inner must be an optimizer that is defined by one rule.* got lbfgs"):
        funcopt.mars(funcopt.lbfgs)
    with pytest.raises(TypeError, match=r"lookahead: .* has sync_period, slow_step_size, slow_from already"):
        funcopt.lookahead(funcopt.lookahead(funcopt.radam))
    with pytest.raises(TypeError, match="cautious: unknown argument flor, it takes floor; did you mean 'floor'"):
        funcopt.cautious(funcopt.lion, flor=0.1)
    with pytest.raises(ValueError, match=r"cautious: floor must be in \(0, 1\], got 0"):
        funcopt.cautious(funcopt.lion, floor=0.0)
    with pytest.raises(ValueError, match=r"mars.*: inner must be an optimizer with betas or momentum"):
        funcopt.mars(funcopt.adagrad(0.1))
    with pytest.raises(ValueError, match=r"schedule_free.*: inner must be an optimizer whose update is a multiple of"):
        funcopt.schedule_free(funcopt.prodigy())
    for final in (funcopt.schedule_free_sgd(), funcopt.asgd(0.1), funcopt.lookahead(funcopt.sgd(0.1))):
        with pytest.raises(ValueError, match=r"cautious.*: inner must be an optimizer whose update may be changed"):
            funcopt.cautious(final)
    with pytest.raises(ValueError, match=r"lookahead.*: inner must be an optimizer whose update may be changed"):
        funcopt.lookahead(funcopt.asgd(0.1))
    with pytest.raises(
        ValueError, match=r"mars_twice.*: inner must be one that does not keep last_grad, got 'MarsAdamState"
    ):
        mars_twice(funcopt.mars(funcopt.adam(0.1))).init(PARAMS)


def test_one_of_ones_own() -> None:
    @wrapper()
    def damped(inner: Rule, *, by: NonNegative = 0.5) -> Rule:
        return inner._replace(update=lambda g, s: (by * inner.update(g, s)[0], inner.update(g, s)[1]))

    half, _ = train(damped(funcopt.rmsprop(0.1)), steps=1)
    whole, _ = train(funcopt.rmsprop(0.05), steps=1)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), half, whole)
