"""Weights to evaluate: `eval`, `train` and `eval_params` of the bridge, and `funcopt.eval_params` in JAX."""

import copy
import functools
import io
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from twins import make_parameters, set_gradients

import funcopt
from funcopt import TorchBridge

SHAPES = ((4, 3), (5,), ())


def clipped_schedule_free(lr: Any) -> Any:
    return funcopt.chain(funcopt.clip_by_global_norm(1.0), funcopt.schedule_free_adamw(lr, warmup_steps=2))


def with_ema(lr: Any) -> Any:
    return funcopt.chain(funcopt.adamw(lr), funcopt.params_ema(0.7))


def with_swa(lr: Any) -> Any:
    return funcopt.chain(funcopt.sgd(lr), funcopt.params_swa(start_step=2, every=2))


RECIPES: dict[str, Callable[..., Any]] = {
    "schedule_free_sgd": funcopt.schedule_free_sgd,
    "schedule_free_adamw": funcopt.schedule_free_adamw,
    "schedule_free_radam": functools.partial(funcopt.schedule_free_radam, silent_sgd_phase=False),
    "schedule_free(lion)": funcopt.schedule_free(funcopt.lion),
    "clip, schedule_free": clipped_schedule_free,
    "ema": with_ema,
    "swa": with_swa,
    "lookahead": funcopt.lookahead(funcopt.radam, sync_period=3),
    "asgd": functools.partial(funcopt.asgd, t0=2.0),
}
EACH = pytest.mark.parametrize("recipe", RECIPES.values(), ids=RECIPES.keys())


def trained(recipe: Any, steps: int = 7, dtype: torch.dtype = torch.float64) -> tuple[list[Any], TorchBridge]:
    params = make_parameters(SHAPES, dtype)
    optimizer = TorchBridge(params, recipe, lr=0.1)
    take(params, optimizer, range(steps))
    return params, optimizer


def take(params: Any, optimizer: Any, steps: Any) -> None:
    for step in steps:
        set_gradients(params, step)
        optimizer.step()


def values(params: Any) -> list[np.ndarray]:
    return [p.detach().to(torch.float64).numpy().copy() for p in params]


def assert_same(ours: Any, theirs: Any) -> None:
    for a, b in zip(ours, theirs, strict=True):
        np.testing.assert_array_equal(a, b)


@EACH
def test_the_weights_are_those_of_jax(recipe: Any) -> None:
    params, optimizer = trained(recipe)
    with jax.enable_x64(True):
        tx = recipe(lr=0.1)
        now: Any = [jnp.asarray(p.detach().numpy()) for p in make_parameters(SHAPES)]
        state = tx.init(now)
        for step in range(7):
            probes = make_parameters(SHAPES)
            set_gradients(probes, step)
            now, state = funcopt.step(tx, [jnp.asarray(p.grad.numpy()) for p in probes], state, now)
        expected = funcopt.eval_params(state, now)
    with optimizer.eval_params():
        for p, q in zip(values(params), expected, strict=True):
            np.testing.assert_allclose(p, q, rtol=1e-12, atol=1e-14)


@EACH
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_there_and_back_loses_no_bit(recipe: Any, dtype: torch.dtype) -> None:
    params, optimizer = trained(recipe, dtype=dtype)
    before, state = values(params), copy.deepcopy(optimizer.state_dict()["state"])
    optimizer.eval()
    evaluated = values(params)
    assert any((a != b).any() for a, b in zip(before, evaluated, strict=True))
    optimizer.eval()
    assert_same(values(params), evaluated)
    optimizer.train()
    optimizer.train()
    assert_same(values(params), before)
    after = optimizer.state_dict()["state"]
    assert {i: set(entry) for i, entry in after.items()} == {i: set(entry) for i, entry in state.items()}
    # and training goes on as if nothing had been
    others, undisturbed = trained(recipe, dtype=dtype)
    take(params, optimizer, range(7, 9))
    take(others, undisturbed, range(7, 9))
    assert_same(values(params), values(others))


@EACH
def test_a_checkpoint_of_either_mode_goes_on(recipe: Any) -> None:
    params, optimizer = trained(recipe)
    optimizer.eval()
    file = io.BytesIO()
    torch.save((optimizer.state_dict(), [p.detach() for p in params]), file)
    file.seek(0)
    saved, weights = torch.load(file)
    others = make_parameters(SHAPES, seed=1)
    resumed = TorchBridge(others, recipe, lr=0.1)
    resumed.load_state_dict(saved)
    with torch.no_grad():
        for p, value in zip(others, weights, strict=True):
            p.copy_(value)
    with pytest.raises(RuntimeError, match=r"step must be of the weights that are trained; call train\(\) after eval"):
        resumed.step()
    for own in (optimizer, resumed):
        own.train()
    take(params, optimizer, range(7, 10))
    take(others, resumed, range(7, 10))
    assert_same(values(params), values(others))


def test_a_step_of_weights_to_evaluate_changes_nothing() -> None:
    params, optimizer = trained(funcopt.schedule_free_adamw)
    optimizer.eval()
    before = values(params)
    with pytest.raises(RuntimeError, match="TorchBridge: step must be of the weights that are trained"):
        optimizer.step()
    assert_same(values(params), before)


def test_what_breaks_inside_is_put_back() -> None:
    params, optimizer = trained(with_ema)
    before = values(params)
    with pytest.raises(KeyboardInterrupt), optimizer.eval_params():
        raise KeyboardInterrupt
    assert_same(values(params), before)
    optimizer.eval()
    with optimizer.eval_params():
        pass
    with pytest.raises(RuntimeError, match="call train"):  # what was on before the block is on behind it
        optimizer.step()


def test_half_a_change_can_be_done_again(monkeypatch: Any) -> None:
    params, optimizer = trained(funcopt.schedule_free_adamw)
    before = values(params)
    copied = []
    copy_ = torch.Tensor.copy_

    def failing(self: torch.Tensor, *args: Any) -> Any:
        copied.append(self)
        if len(copied) == 2:
            raise RuntimeError("out of memory")
        return copy_(self, *args)

    with monkeypatch.context() as patched:
        patched.setattr(torch.Tensor, "copy_", failing)
        with pytest.raises(RuntimeError, match="out of memory"):
            optimizer.eval()
    optimizer.train()
    assert_same(values(params), before)


def test_weights_that_are_written_meanwhile_are_weights_to_evaluate() -> None:
    params, optimizer = trained(funcopt.schedule_free_sgd)
    optimizer.eval()
    state = optimizer.state[params[0]]
    with torch.no_grad():
        params[0].fill_(2.0)
    optimizer.train()
    torch.testing.assert_close(params[0].detach(), 2.0 + 0.1 * (state["z"] - 2.0), rtol=1e-15, atol=0)
    params, optimizer = trained(with_ema)
    optimizer.eval()
    with torch.no_grad():
        params[0].fill_(2.0)
    optimizer.train()
    assert bool((params[0] == 2.0).all())


def test_an_optimizer_without_such_weights_does_nothing() -> None:
    params, optimizer = trained(funcopt.adamw)
    before, groups = values(params), [dict(group) for group in optimizer.param_groups]
    optimizer.eval()
    optimizer.step()
    optimizer.train()
    with optimizer.eval_params():
        pass
    assert [set(group) for group in optimizer.param_groups] == [set(group) for group in groups]
    assert any((a != b).any() for a, b in zip(before, values(params), strict=True))


def test_a_parameter_without_an_update_is_itself() -> None:
    params = make_parameters(SHAPES)
    optimizer = TorchBridge(params, funcopt.schedule_free_sgd, lr=0.1)
    before = values(params)
    with optimizer.eval_params():
        assert_same(values(params), before)
    set_gradients(params, 0)
    params[1].grad = None
    optimizer.step()
    with optimizer.eval_params():
        assert_same(values(params)[1:2], before[1:2])


def test_several_averages_are_refused() -> None:
    def twice(lr: Any) -> Any:
        return funcopt.chain(funcopt.sgd(lr), funcopt.params_ema(0.7), funcopt.params_ema(0.9))

    _, optimizer = trained(twice)
    with pytest.raises(RuntimeError, match="TorchBridge: eval must be of one state that keeps weights to evaluate"):
        optimizer.eval()
    params = {"w": jnp.ones(2)}
    for read in (funcopt.eval_params, funcopt.train_params):
        with pytest.raises(ValueError, match=f"{read.__name__}: state must contain the state of one .*, got 2"):
            read(twice(0.1).init(params), params)
    with pytest.raises(ValueError, match="train_params: state must tell the parameters from their average"):
        funcopt.train_params(with_ema(0.1).init(params), params)
    with pytest.raises(ValueError, match=r"averaged_params: .* call eval_params\(state, params\)"):
        funcopt.averaged_params(funcopt.schedule_free_sgd().init(params))


def test_from_published_weights_back_to_training() -> None:
    tx = funcopt.schedule_free_sgd(0.5, warmup_steps=2)
    with jax.enable_x64(True):
        params: Any = {"w": jnp.asarray([1.0, -2.0]), "none": None}
        state = tx.init(params)
        for value in (0.3, -0.7, 1.1):
            params, state = funcopt.step(tx, {"w": value * params["w"] + 1, "none": None}, state, params)
        evaluated = funcopt.eval_params(state, params)
        assert evaluated["none"] is None
        assert bool((evaluated["w"] != params["w"]).all())
        np.testing.assert_allclose(funcopt.train_params(state, evaluated)["w"], params["w"], rtol=1e-15)
