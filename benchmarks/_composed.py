"""Everything that a training recipe is made of: clip, schedule, rate and decay by group, AdamW, average of the weights.

With torch these are four objects and four passes over memory; on the bridge and in JAX, one program.
"""

import math
from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
import optax
import torch
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

import funcopt
from benchmarks._case import BenchmarkCase, Implementation, Params, Run
from benchmarks._workloads import Shape
from funcopt import TorchBridge
from funcopt.schedules import warmup_cosine

LR, WARMUP, TOTAL, DECAY, MAX_NORM, EMA, EARLY_MULT = 1e-3, 5, 1000, 0.05, 1.0, 0.999, 0.5
SCHEDULE = warmup_cosine(LR, WARMUP, TOTAL)


def composed(lr: Any, weight_decay: Any) -> Any:
    """The recipe of everything at once, for the bridge."""
    return funcopt.chain(
        funcopt.clip_by_global_norm(MAX_NORM),
        funcopt.adamw(lr, weight_decay=weight_decay),
        funcopt.params_ema(EMA),
    )


def _multipliers(shapes: Sequence[Shape]) -> list[tuple[float, float]]:
    """Rate and decay of each parameter: vectors do not decay, the first half learns slower."""
    half = len(shapes) // 2
    return [(EARLY_MULT if i < half else 1.0, float(len(shape) > 1)) for i, shape in enumerate(shapes)]


def _groups(params: Params) -> list[tuple[list[torch.nn.Parameter], float, float]]:
    """Parameters of the same multipliers together, with the multipliers."""
    groups: dict[tuple[float, float], list[torch.nn.Parameter]] = {}
    for p, multipliers in zip(params, _multipliers([tuple(p.shape) for p in params]), strict=True):
        groups.setdefault(multipliers, []).append(p)
    return [(group, *multipliers) for multipliers, group in groups.items()]


def _composed_in_torch(params: Params, implementation: Implementation) -> Run:
    groups = [
        {"params": group, "lr": LR * lr_mult, "weight_decay": DECAY * decay_mult}
        for group, lr_mult, decay_mult in _groups(params)
    ]
    optimizer = torch.optim.AdamW(groups, **implementation)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, _factor)
    model = torch.nn.ParameterList(params)
    averaged = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(EMA))

    def step() -> None:
        torch.nn.utils.clip_grad_norm_(params, MAX_NORM)
        optimizer.step()
        scheduler.step()
        averaged.update_parameters(model)

    return Run(step, lambda: [*params, *averaged.module.parameters()])


def _factor(step: int) -> float:
    """`SCHEDULE` as torch users write it."""
    if step < WARMUP:
        return step / WARMUP
    return 0.5 * (1 + math.cos(math.pi * min(1.0, (step - WARMUP) / (TOTAL - WARMUP))))


def _composed_on_bridge(params: Params, bridge: type[TorchBridge]) -> Run:
    groups = [
        {"params": group, "lr_mult": lr_mult, "decay_mult": decay_mult}
        for group, lr_mult, decay_mult in _groups(params)
    ]
    optimizer = bridge(groups, composed, lr=SCHEDULE, weight_decay=DECAY)

    def results() -> list[torch.Tensor]:
        state = optimizer.state
        return [*params, *(state[p]["ema"] for p in params)]

    return Run(optimizer.step, results)


def _composed_in_jax(shapes: Sequence[Shape]) -> Any:
    lr_mult, decay_mult = map(list, zip(*_multipliers(shapes), strict=True))
    return funcopt.chain(
        funcopt.clip_by_global_norm(MAX_NORM),
        funcopt.adamw(SCHEDULE, weight_decay=[DECAY * mult for mult in decay_mult]),
        funcopt.scale_by_multipliers(lr_mult),
        funcopt.params_ema(EMA),
    )


def _composed_in_optax(shapes: Sequence[Shape]) -> Any:
    multipliers = _multipliers(shapes)
    return optax.chain(
        optax.clip_by_global_norm(MAX_NORM),
        optax.scale_by_adam(),
        optax.add_decayed_weights(DECAY, mask=[decay > 0 for _, decay in multipliers]),
        optax.masked(optax.scale(EARLY_MULT), mask=[rate < 1 for rate, _ in multipliers]),
        optax.scale_by_learning_rate(SCHEDULE),
        _params_ema_in_optax(),
    )


def _params_ema_in_optax() -> optax.GradientTransformation:
    """The average that an optax user keeps beside the parameters, as a part of the chain."""

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        return updates, optax.incremental_update(optax.apply_updates(params, updates), state, 1 - EMA)

    return optax.GradientTransformation(lambda params: [jnp.array(p) for p in params], update)


COMPOSED = BenchmarkCase(
    "recipe",
    40,
    4,
    _composed_in_torch,
    _composed_on_bridge,
    _composed_in_jax,
    _composed_in_optax,
    joinable=False,  # neighbours have hyperparameters of their own
    torch_peers=("default", "foreach", "fused"),
    workloads=("resnet50", "gpt2-small", "vit-b16", "1000x32x32"),
)
