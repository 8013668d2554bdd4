"""The same recipe continues a torch run in JAX, and a JAX run in torch, with the numbers of a run that stayed."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch

import funcopt
from funcopt import TorchBridge
from funcopt.torch_bridge import from_torch_state_dict, to_torch_state_dict

pytestmark = pytest.mark.one_engine

NAMES = ("stem.weight", "stem.bias", "head.weight")


def gradient(name: str, step: int) -> np.ndarray:
    shape = (3,) if name.endswith("bias") else (3, 2)
    return np.random.default_rng([step, NAMES.index(name)]).normal(size=shape)


class InTorch:
    def __init__(self, make: Any, names: tuple[str, ...] = NAMES) -> None:
        self.params = {
            name: torch.nn.Parameter(torch.zeros(gradient(name, 0).shape, dtype=torch.float64)) for name in names
        }
        self.optimizer = make(self.params.items())

    def train(self, steps: range) -> None:
        for step in steps:
            for name, p in self.params.items():
                p.grad = torch.from_numpy(gradient(name, step))
            self.optimizer.step()

    def values(self) -> dict[str, np.ndarray]:
        return {name: p.detach().numpy() for name, p in self.params.items()}


class InJax:
    """Parameters in a nested tree, whose keys are in another order than torch's."""

    def __init__(self, tx: Any) -> None:
        self.tx = tx
        self.params: Any = {
            "head": {"weight": jnp.zeros((3, 2))},
            "stem": {"bias": jnp.zeros(3), "weight": jnp.zeros((3, 2))},
        }
        self.state = tx.init(self.params)

    def train(self, steps: range) -> None:
        for step in steps:
            grads = {
                part: {kind: jnp.asarray(gradient(f"{part}.{kind}", step)) for kind in tree}
                for part, tree in self.params.items()
            }
            updates, self.state = jax.jit(self.tx.update)(grads, self.state, self.params)
            self.params = funcopt.apply_updates(self.params, updates)

    def values(self) -> dict[str, np.ndarray]:
        return {f"{part}.{kind}": np.asarray(x) for part, tree in self.params.items() for kind, x in tree.items()}

    def set(self, values: dict[str, np.ndarray]) -> None:
        self.params = {
            part: {kind: jnp.asarray(values[f"{part}.{kind}"]) for kind in tree} for part, tree in self.params.items()
        }


def recipe(lr: Any, weight_decay: Any = 0.1) -> funcopt.GradientTransformation:
    return funcopt.chain(funcopt.clip_by_global_norm(1.0), funcopt.adamw(lr, weight_decay=weight_decay))


def schedule(step: Any) -> Any:
    return 0.1 / (1.0 + step)


CASES = [
    pytest.param(lambda p: torch.optim.AdamW(p, lr=0.1), lambda: funcopt.adamw(0.1), id="adamw, torch.optim"),
    pytest.param(
        lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, dampening=0.3),
        lambda: funcopt.sgd(0.1, 0.9, 0.3),
        id="sgd, torch.optim",
    ),
    pytest.param(lambda p: torch.optim.RMSprop(p, lr=0.1), lambda: funcopt.rmsprop(0.1), id="rmsprop, torch.optim"),
    pytest.param(lambda p: TorchBridge(p, recipe, lr=0.1), lambda: recipe(0.1), id="chain, bridge"),
    pytest.param(lambda p: TorchBridge(p, recipe, lr=schedule), lambda: recipe(schedule), id="schedule, bridge"),
    pytest.param(lambda p: TorchBridge(p, optax.lion, lr=0.1), lambda: optax.lion(0.1), id="optax, bridge"),
]


@pytest.mark.parametrize(("make_torch", "make_jax"), CASES)
def test_a_run_moves_both_ways(make_torch: Any, make_jax: Any) -> None:
    with jax.enable_x64(True):
        reference = InTorch(make_torch)
        reference.train(range(8))

        first, second = InTorch(make_torch), InJax(make_jax())
        first.train(range(4))
        second.set(first.values())
        second.state = from_torch_state_dict(first.optimizer.state_dict(), second.state, second.params)
        second.train(range(4, 8))
        for name, value in second.values().items():
            np.testing.assert_allclose(value, reference.values()[name], rtol=1e-12, atol=1e-14)

        first, second = InJax(make_jax()), InTorch(make_torch)
        first.train(range(4))
        for name, p in second.params.items():
            p.data = torch.tensor(first.values()[name])
        groups = second.optimizer.state_dict()["param_groups"]
        for group in groups:
            group.update({"schedule_step": 4} if "schedule_step" in group else {})
        second.optimizer.load_state_dict(to_torch_state_dict(first.state, first.params, groups))
        second.train(range(4, 8))
        for name, value in second.values().items():
            np.testing.assert_allclose(value, reference.values()[name], rtol=1e-12, atol=1e-14)


def test_names_may_be_given_and_masks_leave_gaps() -> None:
    loop = InJax(funcopt.masked(funcopt.adam(0.1), {"head": True, "stem": {"weight": True, "bias": False}}))
    loop.train(range(2))
    reference = InTorch(lambda p: torch.optim.Adam([q for _, q in p]))
    groups = reference.optimizer.state_dict()["param_groups"]
    state_dict = to_torch_state_dict(loop.state, loop.params, groups, NAMES)
    assert set(state_dict["state"]) == {0, 2}
    np.testing.assert_array_equal(
        state_dict["state"][2]["exp_avg"].numpy(), loop.state.inner_state.exp_avg["head"]["weight"]
    )
    restored = from_torch_state_dict(state_dict, loop.tx.init(loop.params), loop.params, NAMES)
    assert jax.tree.all(jax.tree.map(lambda a, b: bool((a == b).all()), restored, loop.state))


def test_errors() -> None:
    loop = InJax(funcopt.adam(0.1))
    named = InTorch(torch.optim.Adam)
    named.train(range(1))
    good = named.optimizer.state_dict()
    unnamed = torch.optim.Adam(list(named.params.values())).state_dict()
    other = InTorch(torch.optim.SGD).optimizer.state_dict()
    other["state"] = {0: {"momentum_buffer": torch.zeros(3, 2)}}
    cases = [
        (unnamed, None, "names must be given, as the groups have no param_names"),
        (unnamed, ["a"], "names must be 3 names, one per parameter"),
        (unnamed, ["a", "b", "c"], "names must be among the parameters head.weight, stem.bias, stem.weight, got 'a'"),
        (other, None, "parameter 'stem.weight' must have the state 'step', got momentum_buffer"),
    ]
    for state_dict, names, message in cases:
        with pytest.raises(ValueError, match=message):
            from_torch_state_dict(state_dict, loop.state, loop.params, names)
    with pytest.raises(ValueError, match="names must be given"):
        to_torch_state_dict(loop.state, loop.params, unnamed["param_groups"])
    assert set(to_torch_state_dict(loop.state, loop.params, good["param_groups"])) == {"state", "param_groups"}
