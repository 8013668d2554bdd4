"""Optimizers of funcopt beside the ones of torch.optim that they must agree with, and a small model to train."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import jax
import optax
import pytest
import torch
from parity import worst_error

import funcopt
from funcopt import TorchBridge
from funcopt.torch_bridge import optim

# float64, nothing but rounding: measured 3e-14 in transformers, 3e-15 elsewhere.
ROUNDING = 1e-12


class Twin(NamedTuple):
    """The same algorithm twice; both take parameters (or groups) and `lr`."""

    ours: Callable[..., torch.optim.Optimizer]
    theirs: Callable[..., torch.optim.Optimizer]


def clipped_adamw(lr: Any, betas: Any = (0.9, 0.999), weight_decay: Any = 0.01) -> funcopt.GradientTransformation:
    """A chain of one's own; the bound is never reached, so that it equals AdamW."""
    return funcopt.chain(funcopt.clip_by_global_norm(1e9), funcopt.adamw(lr, betas=betas, weight_decay=weight_decay))


def sgd(make: Any) -> Callable[..., torch.optim.Optimizer]:
    return lambda params, lr=0.1: make(params, lr=lr, momentum=0.9, weight_decay=0.01)


TWINS = {
    "AdamW": Twin(optim.AdamW, torch.optim.AdamW),
    "SGD": Twin(sgd(optim.SGD), sgd(torch.optim.SGD)),
    "recipe": Twin(lambda params, lr=1e-3: TorchBridge(params, clipped_adamw, lr=lr), torch.optim.AdamW),
    "optax": Twin(
        lambda params, lr=1e-3: TorchBridge(params, optax.adamw, lr=lr, weight_decay=0.01), torch.optim.AdamW
    ),
}
EACH_TWIN = pytest.mark.parametrize("twin", [pytest.param(twin, id=name) for name, twin in TWINS.items()])


def make_model(seed: int = 0, dtype: torch.dtype = torch.float64) -> torch.nn.Sequential:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return torch.nn.Sequential(torch.nn.Linear(6, 8), torch.nn.Tanh(), torch.nn.Linear(8, 2)).to(dtype)


def batch(step: int, size: int = 16, dtype: torch.dtype = torch.float64) -> tuple[torch.Tensor, torch.Tensor]:
    """Inputs and targets of one step."""
    generator = torch.Generator().manual_seed(1000 + step)
    x = torch.randn(size, 6, generator=generator, dtype=torch.float64)
    return x.to(dtype), torch.stack([x.sum(1), (x**2).sum(1)], 1).to(dtype)


def train(
    model: torch.nn.Module,
    optimizer: torch.optim.Optimizer,
    steps: Iterable[int],
    each: Callable[[float], Any] = lambda loss: None,
) -> None:
    """One step on each batch; `each` gets the loss."""
    for step in steps:
        x, y = batch(step)
        optimizer.zero_grad()
        loss = torch.nn.functional.mse_loss(model(x), y)
        loss.backward()
        optimizer.step()
        each(loss.item())


def difference(ours: torch.nn.Module, theirs: torch.nn.Module) -> float:
    """The largest difference of two models' parameters and buffers, relative to the largest value."""
    a, b = ([t.detach().numpy() for t in model.state_dict().values()] for model in (ours, theirs))
    return worst_error(a, b)


# For a matrix of inputs, of which both engines run others on every run.
TORCH_THOROUGHLY = pytest.mark.parametrize(
    "engine", ["xla", pytest.param("torch", marks=pytest.mark.thorough)], indirect=True
)


def make_parameters(
    shapes: Sequence[tuple[int, ...]], dtype: torch.dtype = torch.float64, seed: int = 0
) -> list[torch.nn.Parameter]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.nn.Parameter(torch.randn(shape, generator=generator, dtype=dtype)) for shape in shapes]


def set_gradients(params: Iterable[torch.Tensor], step: int) -> None:
    """Gradients that depend on the step and on a parameter's place."""
    generator = torch.Generator().manual_seed(5000 + step)
    for p in params:
        p.grad = torch.randn(p.shape, generator=generator, dtype=torch.float64).to(p.dtype)


def take_steps(
    params: Sequence[torch.Tensor],
    optimizer: torch.optim.Optimizer,
    steps: Iterable[int],
    edit: Callable[[Sequence[torch.Tensor], int], Any] = lambda params, step: None,
) -> None:
    """One step on each of the gradients of `set_gradients`, which `edit` may change before."""
    for step in steps:
        set_gradients(params, step)
        edit(params, step)
        optimizer.step()


def largest_difference(ours: Iterable[torch.Tensor], theirs: Iterable[torch.Tensor]) -> float:
    """The largest difference of two lists of tensors, relative to the largest value."""
    pairs = [pair for pair in zip(ours, theirs, strict=True) if pair[1].numel()]
    if not pairs:
        return 0.0
    a, b = ([t.detach().numpy() for t in tensors] for tensors in zip(*pairs, strict=True))
    return worst_error(a, b)


def program_of(optimizer: TorchBridge) -> jax.stages.Compiled:
    """What an optimizer ran at its last step."""
    engine = optimizer._store._engine
    assert engine is not None
    return engine.program
