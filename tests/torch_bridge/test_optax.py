"""optax's own optimizers on the bridge give the numbers that they give in a JAX loop."""

import pickle
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import optax.contrib
import pytest
import torch
from twins import TORCH_THOROUGHLY

import funcopt
from funcopt import TorchBridge
from funcopt.torch_bridge import _binding

FACTORIES = [
    (optax.adabelief, {}),
    (optax.adadelta, {}),
    (optax.adafactor, {"min_dim_size_to_factor": 2}),
    (optax.adagrad, {}),
    (optax.adam, {"nesterov": True}),
    (optax.adamax, {}),
    (optax.adan, {}),
    (optax.amsgrad, {}),
    (optax.fromage, {}),
    (optax.lamb, {"weight_decay": 0.1}),
    (optax.lars, {}),
    (optax.lion, {"mu_dtype": None}),
    (optax.nadamw, {}),
    (optax.novograd, {}),
    (optax.optimistic_gradient_descent, {}),
    (optax.radam, {}),
    (optax.rmsprop, {"momentum": 0.9, "centered": True}),
    (optax.rprop, {}),
    (optax.sgd, {"momentum": 0.9, "nesterov": True}),
    (optax.sign_sgd, {}),
    (optax.sm3, {}),
    (optax.yogi, {}),
    (optax.contrib.muon, {}),
    (optax.contrib.prodigy, {}),
    (optax.contrib.schedule_free_adamw, {}),
]
READY = {
    "MultiSteps": lambda: optax.MultiSteps(optax.adam(0.1), 2).gradient_transformation(),
    "apply_if_finite": lambda: optax.apply_if_finite(optax.sgd(0.1), 3),
    "lookahead-like chain": lambda: optax.chain(
        optax.ema(0.9), optax.scale_by_schedule(lambda count: -0.1 / (1 + count))
    ),
    "funcopt inside optax": lambda: optax.chain(optax.clip(0.5), funcopt.adamw(lambda step: 0.1 / (1 + step))),
}


def gradients(steps: int = 6) -> list[list[np.ndarray]]:
    rng = np.random.default_rng(0)
    return [[rng.normal(size=shape) for shape in ((4, 3), (5,))] for _ in range(steps)]


def in_jax(tx: Any) -> list[np.ndarray]:
    with jax.enable_x64(True):
        params = [jnp.ones((4, 3)), jnp.ones(5)]
        state = tx.init(params)
        update = jax.jit(tx.update)
        for grads in gradients():
            updates, state = update([jnp.asarray(g) for g in grads], state, params)
            params = optax.apply_updates(params, updates)
        return [np.asarray(p) for p in params]


def on_bridge(transform: Any, **hyperparams: Any) -> list[np.ndarray]:
    params = [torch.nn.Parameter(torch.ones(shape, dtype=torch.float64)) for shape in ((4, 3), (5,))]
    bridge = TorchBridge(params, transform, **hyperparams)
    for grads in gradients():
        for p, grad in zip(params, grads, strict=True):
            p.grad = torch.from_numpy(grad)
        bridge.step()
        # what every checkpoint tool does
        bridge.load_state_dict(bridge.state_dict())
    return [p.detach().numpy() for p in params]


@pytest.mark.one_engine
@TORCH_THOROUGHLY
@pytest.mark.parametrize(
    ("factory", "options"), FACTORIES, ids=[_binding._name_of(factory) for factory, _ in FACTORIES]
)
def test_factories(factory: Any, options: dict[str, Any]) -> None:
    for ours, theirs in zip(on_bridge(factory, lr=0.01, **options), in_jax(factory(0.01, **options)), strict=True):
        # Numbers are arguments here and constants there, which XLA folds: rounding. Muon's and Prodigy's scalars are
        # float32 in places.
        np.testing.assert_allclose(ours, theirs, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("name", READY)
def test_ready_transformations(name: str) -> None:
    for ours, theirs in zip(on_bridge(READY[name]()), in_jax(READY[name]()), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-12, atol=1e-14)


def test_transformation_that_needs_the_loss() -> None:
    p = torch.nn.Parameter(torch.ones(3, dtype=torch.float64))
    bridge = TorchBridge([p], optax.polyak_sgd, max_learning_rate=1.0)

    def closure() -> torch.Tensor:
        bridge.zero_grad()
        loss = (p**2).sum()
        loss.backward()
        return loss

    bridge.step(closure)
    # step size f / |f'|^2 = 3 / 12, direction 2
    np.testing.assert_allclose(p.detach().numpy(), 0.5, rtol=1e-6)
    closure()
    with pytest.raises(TypeError, match=r"polyak_sgd needs value, the loss; call step\(closure\)"):
        bridge.step()


def test_argument_that_is_needed_while_tracing() -> None:
    def recipe(lr: Any, limit: Any = 1.0) -> Any:
        return optax.sgd(lr) if limit > 0.5 else optax.adam(lr)

    p = torch.nn.Parameter(torch.ones(3))
    bridge = TorchBridge([p], recipe, lr=0.1)
    p.grad = torch.ones(3)
    with pytest.raises(TypeError, match="recipe needs one of lr, limit as a plain number; fix it with a function"):
        bridge.step()
    fixed = TorchBridge([p], lambda lr: recipe(lr), lr=0.1)
    fixed.step()


@pytest.mark.one_engine
def test_random_keys_in_the_state() -> None:
    """A checkpoint holds them as integers; the run goes on with the same noise."""
    ours, resumed = (torch.nn.Parameter(torch.ones(3)) for _ in range(2))
    bridge = TorchBridge([ours], optax.noisy_sgd, lr=0.1, key=0)
    for p in (ours, resumed):
        p.grad = torch.ones(3)
    bridge.step()
    saved = pickle.loads(pickle.dumps(bridge.state_dict()))
    resumed.data.copy_(ours)
    other = TorchBridge([resumed], optax.noisy_sgd, lr=0.1, key=1)
    other.load_state_dict(saved)
    for optimizer in (bridge, other):
        optimizer.step()
    assert torch.equal(ours, resumed)
    assert saved["state"][0]["rng_key"].dtype == torch.int32
