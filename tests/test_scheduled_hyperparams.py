"""Any hyperparameter, per group, as a schedule: in JAX as a prefix, on the bridge in the groups, beside torch.

torch's side has each value written into its groups by hand before each step.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from parity import Problem, make_problem, worst_error

import funcopt
from funcopt import TorchBridge
from funcopt.schedules import cosine_annealing_lr, cyclic_lr, one_cycle_lr

STEPS = 12
CYCLE = cyclic_lr(0.02, 0.1, 5)
ONE_CYCLE = one_cycle_lr(0.1, STEPS)
Clip = Callable[[list[torch.Tensor], float, torch.Tensor], Any]


def by_value(lr: Any, clip_value: Any = 1.0) -> funcopt.GradientTransformation:
    return funcopt.chain(funcopt.clip_by_value(clip_value), funcopt.sgd(lr))


def by_norm(lr: Any, max_norm: Any = 1.0) -> funcopt.GradientTransformation:
    return funcopt.chain(funcopt.clip_by_global_norm(max_norm), funcopt.sgd(lr))


def clamp(grads: list[torch.Tensor], clip_value: float, norm: torch.Tensor) -> None:
    for grad in grads:
        grad.clamp_(-clip_value, clip_value)


def shrink(grads: list[torch.Tensor], max_norm: float, norm: torch.Tensor) -> None:
    for grad in grads:
        grad.mul_(torch.clamp(max_norm / (norm + 1e-6), max=1.0))


class Case(NamedTuple):
    factory: Callable[..., funcopt.GradientTransformation]
    torch_class: Callable[..., torch.optim.Optimizer]
    name: str
    schedules: tuple[Any, Any]  # one per group
    options: dict[str, Any] = {}  # noqa: RUF012
    clip: Clip | None = None  # what torch's side does with the value, where it is no field of its groups


def line(start: float, slope: float) -> Callable[[Any], Any]:
    return lambda step: start + slope * step


CASES = [
    Case(funcopt.adamw, torch.optim.AdamW, "lr", (CYCLE, cosine_annealing_lr(0.1, 10, 1e-3))),
    Case(funcopt.adamw, torch.optim.AdamW, "weight_decay", (line(0.0, 0.1), line(1.0, -0.05))),
    Case(funcopt.adamw, torch.optim.AdamW, "eps", (line(0.01, 0.02), line(1.0, 0.0))),
    Case(
        funcopt.adamw,
        torch.optim.AdamW,
        "betas",
        ((ONE_CYCLE.momentum, line(0.9, 0.002)), lambda step: (0.8 + 0.01 * step, 0.9 + 0.005 * step)),
    ),
    Case(funcopt.sgd, torch.optim.SGD, "momentum", (CYCLE.momentum, line(0.9, -0.05)), {"weight_decay": 0.1}),
    Case(funcopt.sgd, torch.optim.SGD, "dampening", (line(0.0, 0.05), line(0.5, -0.02)), {"momentum": 0.9}),
    Case(funcopt.sgd, torch.optim.SGD, "weight_decay", (line(0.1, 0.1), 0.3), {"momentum": 0.9, "nesterov": True}),
    Case(funcopt.rmsprop, torch.optim.RMSprop, "alpha", (line(0.5, 0.03), line(0.99, -0.01)), {"momentum": 0.5}),
    Case(by_value, torch.optim.SGD, "clip_value", (line(1.5, -0.1), line(0.1, 0.1)), clip=clamp),
    Case(by_norm, torch.optim.SGD, "max_norm", (line(3.0, -0.2), line(0.1, 0.4)), clip=shrink),
]
LR = 0.05


def at(value: Any, step: int) -> Any:
    if isinstance(value, tuple):
        return tuple(at(item, step) for item in value)
    value = value(step) if callable(value) else value
    return tuple(map(float, value)) if isinstance(value, tuple) else float(value)


def tensors_of(problem: Problem) -> list[torch.nn.Parameter]:
    return [torch.nn.Parameter(torch.from_numpy(p.copy())) for p in problem.params]


def set_gradients(tensors: list[torch.nn.Parameter], grads: list[Any]) -> None:
    for tensor, grad in zip(tensors, grads, strict=True):
        tensor.grad = torch.from_numpy(grad.copy())


def run_torch_by_hand(case: Case, problem: Problem) -> list[np.ndarray]:
    tensors = tensors_of(problem)
    optimizer = case.torch_class([{"params": tensors[:2]}, {"params": tensors[2:]}], **{"lr": LR, **case.options})
    for step, grads in enumerate(problem.grads):
        set_gradients(tensors, grads)
        norm = torch.sqrt(sum(p.grad.square().sum() for p in tensors))
        for group, schedule in zip(optimizer.param_groups, case.schedules, strict=True):
            if case.clip:
                case.clip([p.grad for p in group["params"]], at(schedule, step), norm)
            else:
                group[case.name] = at(schedule, step)
        optimizer.step()
    return [t.detach().numpy() for t in tensors]


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.factory.__name__}-{case.name}")
def test_a_schedule_per_group_equals_values_set_by_hand(case: Case) -> None:
    problem = make_problem("float64", steps=STEPS)
    expected = run_torch_by_hand(case, problem)
    last = [at(schedule, STEPS - 1) for schedule in case.schedules]

    with jax.enable_x64(True):
        tx = case.factory(**{"lr": LR, **case.options, case.name: list(case.schedules)})
        nest = lambda leaves: [leaves[:2], leaves[2:]]  # noqa: E731
        params = nest([jnp.asarray(p) for p in problem.params])
        state, update = tx.init(params), jax.jit(tx.update)
        for grads in problem.grads:
            updates, state = update(nest(grads), state, params)
            params = funcopt.apply_updates(params, updates)
        used = funcopt.current_hyperparams(state)[case.name]
        assert worst_error([np.asarray(p) for p in jax.tree.leaves(params)], expected) <= 1e-12
        np.testing.assert_allclose(jax.tree.leaves(used), jax.tree.leaves(last), rtol=1e-14)

    tensors = tensors_of(problem)
    groups = [
        {"params": tensors[:2], case.name: case.schedules[0]},
        {"params": tensors[2:], case.name: case.schedules[1]},
    ]
    bridge = TorchBridge(groups, case.factory, **{"lr": LR, **case.options})
    for grads in problem.grads:
        set_gradients(tensors, grads)
        bridge.step()
    assert worst_error([t.detach().numpy() for t in tensors], expected) <= 1e-12
    assert [group[case.name] for group in bridge.param_groups] == last
    assert bridge.compilations == 1


def test_a_cycle_for_all_groups_at_once() -> None:
    """The schedules of one call, given to the constructor."""
    problem = make_problem("float64", steps=STEPS)
    runs = []
    for options in (
        {"lr": CYCLE, "betas": (CYCLE.momentum, 0.999)},
        {"lr": CYCLE.lr, "betas": lambda step: (at(CYCLE.momentum, step), 0.999)},
    ):
        tensors = tensors_of(problem)
        bridge = TorchBridge(
            [{"params": tensors[:2]}, {"params": tensors[2:], "lr_mult": 0.5}], funcopt.adam, **options
        )
        for grads in problem.grads:
            set_gradients(tensors, grads)
            bridge.step()
        runs.append([t.detach().numpy() for t in tensors])
        assert bridge.param_groups[1]["betas"] == (at(CYCLE.momentum, STEPS - 1), 0.999)
        assert bridge.param_groups[1]["lr"] == float(CYCLE(STEPS - 1))
    assert worst_error(*runs) == 0.0
