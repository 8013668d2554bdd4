"""The order in which an update in place is computed: the state waits for the parameters where XLA would copy it."""

from typing import Any

import optax
import pytest
import torch
from twins import ROUNDING, largest_difference, make_parameters, set_gradients

import funcopt
from funcopt.torch_bridge import TorchBridge, _engine

SHAPES = [(100, 400), (7,), (40_000,), (300, 200)]


def lion(lr: Any) -> funcopt.GradientTransformation:
    return funcopt.chain(funcopt.ElementwiseTransformation(*optax.scale_by_lion()), funcopt.scale_by_learning_rate(lr))


def clipped_lion(lr: Any) -> funcopt.GradientTransformation:
    return funcopt.chain(funcopt.clip_by_global_norm(1.0), lion(lr))


RECIPES = {
    "lion": (lion, {"lr": 1e-2}, "state waits"),
    "clipped lion": (clipped_lion, {"lr": 1e-2}, "state waits"),
    "Adadelta": (funcopt.adadelta, {}, "grads wait"),
    "Rprop": (funcopt.rprop, {}, "state waits"),
    "AdamW": (funcopt.adamw, {}, "plain"),
    "NAdam": (funcopt.nadam, {}, "plain"),
    "RMSprop": (funcopt.rmsprop, {"centered": True, "momentum": 0.9}, "plain"),
    "SGD": (funcopt.sgd, {"momentum": 0.9, "nesterov": True, "weight_decay": 0.1}, "plain"),
}


class Run:
    """A recipe on parameters in two groups; in the first two steps one has no gradient, in all of them another."""

    def __init__(self, recipe: str) -> None:
        factory, options, _ = RECIPES[recipe]
        self.params = make_parameters(SHAPES)
        self.optimizer = TorchBridge([{"params": self.params[:2]}, {"params": self.params[2:]}], factory, **options)

    def steps(self) -> list[torch.Tensor]:
        for step in range(4):
            set_gradients(self.params, step)
            self.params[1].grad = None
            if step < 2:
                self.params[3].grad = None
            self.optimizer.step()
        state = [value for p in self.params for value in self.optimizer.state[p].values()]
        return [*(p.detach() for p in self.params), *(value for value in state if isinstance(value, torch.Tensor))]


@pytest.mark.parametrize("recipe", RECIPES)
def test_waiting_changes_no_number(recipe: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_engine, "MIN_TO_ORDER", 1)
    waiting = Run(recipe)
    results = waiting.steps()
    assert list(waiting.optimizer._holdings.engine._forms.values()) == [RECIPES[recipe][2]]
    monkeypatch.setattr(_engine, "MIN_TO_ORDER", 2**62)
    plain = Run(recipe)
    assert largest_difference(results, plain.steps()) <= ROUNDING
    assert waiting.optimizer.compilations == plain.optimizer.compilations


@pytest.mark.filterwarnings("ignore:Sparse invariant checks")
def test_a_first_step_without_any_gradient_in_place(monkeypatch: pytest.MonkeyPatch) -> None:
    """There is nothing to ask for yet."""
    monkeypatch.setattr(_engine, "MIN_TO_ORDER", 1)
    ours, theirs = make_parameters([(100,), (10, 4)]), make_parameters([(100,), (10, 4)])
    optimizers = TorchBridge(ours, funcopt.adagrad), torch.optim.Adagrad(theirs)
    for step in range(3):
        for params, optimizer in zip((ours, theirs), optimizers, strict=True):
            set_gradients(params, step)
            assert params[1].grad is not None
            rows, values = torch.tensor([[1, 7, 3]]), params[1].grad[:3]
            params[1].grad = torch.sparse_coo_tensor(rows, values, params[1].shape, check_invariants=True)
            if step == 0:
                params[0].grad = None
            optimizer.step()
    assert largest_difference([p.detach() for p in ours], [p.detach() for p in theirs]) <= ROUNDING
