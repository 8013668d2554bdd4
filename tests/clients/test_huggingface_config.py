"""Hugging Face's TrainingArguments against build_optimizer: what the Trainer makes of them, and what it steps to."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from clients.test_transformers import tiny_model
from twins import ROUNDING, difference

from funcopt.config import build_optimizer, build_schedule

transformers = pytest.importorskip("transformers", reason="needs the extra: pip install 'funcopt[clients]'")

pytestmark = pytest.mark.clients

STEPS = 12


def arguments(folder: Path, **fields: Any) -> Any:
    own = {"learning_rate": 0.01, "weight_decay": 0.1, "max_steps": STEPS, "report_to": [], "use_cpu": True}
    return transformers.TrainingArguments(output_dir=str(folder), **{**own, **fields})


# What needs bitsandbytes, torch_xla, torch_npu, galore_torch or apollo_torch is left to the tests of the config.
OPTIMS: list[dict[str, Any]] = [
    {"optim": "adamw_torch", "adam_beta1": 0.8, "adam_beta2": 0.99, "adam_epsilon": 1e-4},
    {"optim": "adamw_torch_fused", "warmup_steps": 3, "lr_scheduler_type": "cosine"},
    {"optim": "adafactor"},
    {"optim": "sgd", "optim_args": "momentum=0.9, nesterov=True, weight_decay=0.5"},
    {"optim": "adagrad", "optim_args": "lr_decay=0.1,eps=1e-6"},
    {"optim": "rmsprop", "optim_args": "momentum=0.9,alpha=0.9,centered=true"},
    {"optim": "schedule_free_adamw", "warmup_steps": 3, "lr_scheduler_type": "constant"},
    {"optim": "schedule_free_sgd", "optim_args": "r=0.5,weight_lr_power=1.0", "lr_scheduler_type": "constant"},
    {"optim": "schedule_free_radam", "lr_scheduler_type": "constant"},
    {"optim": "stable_adamw", "adam_epsilon": 1e-6},
]


def run(model: torch.nn.Module, optimizer: Any, scheduler: Any = None) -> None:
    if hasattr(optimizer, "train"):
        optimizer.train()
    for step in range(STEPS):
        generator = torch.Generator().manual_seed(step)
        for p in model.parameters():
            p.grad = torch.randn(p.shape, generator=generator, dtype=p.dtype) + 0.1 * p.detach()
        optimizer.step()
        if scheduler is not None:
            scheduler.step()


@pytest.mark.parametrize("fields", OPTIMS, ids=[fields["optim"] for fields in OPTIMS])
def test_the_trainers_optimizer(fields: dict[str, Any], tmp_path: Path) -> None:
    args = arguments(tmp_path, **fields)
    theirs = tiny_model()
    ours = copy.deepcopy(theirs)
    start = copy.deepcopy(theirs)
    trainer = transformers.Trainer(model=theirs, args=args)
    trainer.create_optimizer_and_scheduler(STEPS)
    optimizer = build_optimizer(args, ours, steps_per_epoch=6)
    shapes = [[tuple(p.shape) for p in group["params"]] for group in trainer.optimizer.param_groups]
    decay = [group["weight_decay"] for group in trainer.optimizer.param_groups]
    own = {
        g["weight_decay"] * g.get("decay_mult", 1.0): [tuple(p.shape) for p in g["params"]]
        for g in optimizer.param_groups
    }
    assert own == dict(zip(decay, shapes, strict=True))
    run(theirs, trainer.optimizer, trainer.lr_scheduler)
    run(ours, optimizer)
    assert difference(ours, theirs) <= ROUNDING
    assert difference(theirs, start) > 1e-3


def test_every_name_is_read_or_says_what_to_use(tmp_path: Path) -> None:
    model = tiny_model()
    for name in transformers.training_args.OptimizerNames:
        fields = {"learning_rate": 0.01, "optim": name.value, "optim_target_modules": "all-linear"}
        try:
            optimizer = build_optimizer(fields, model)
        except ValueError as error:
            assert f"got '{name.value}'; it " in str(error)  # noqa: PT017
            instead = str(error).rpartition("use ")[2].strip("'")
            optimizer = build_optimizer({**fields, "optim": instead}, model)
        assert optimizer.param_groups


SCHEDULES: list[tuple[str, dict[str, Any]]] = [
    ("linear", {}),
    ("cosine", {}),
    ("cosine", {"num_cycles": 1.5}),
    ("cosine_with_restarts", {"num_cycles": 3}),
    ("polynomial", {}),
    ("polynomial", {"lr_end": 1e-3, "power": 2.0}),
    ("constant", {}),
    ("constant_with_warmup", {}),
    ("inverse_sqrt", {}),
    ("inverse_sqrt", {"timescale": 7}),
    ("cosine_with_min_lr", {"min_lr": 1e-3}),
    ("cosine_with_min_lr", {"min_lr_rate": 0.2}),
    ("cosine_warmup_with_min_lr", {"min_lr_rate": 0.2}),
    ("cosine_warmup_with_min_lr", {"min_lr": 1e-3, "warmup_lr_rate": 0.1}),
    ("warmup_stable_decay", {"num_decay_steps": 8}),
    *(
        ("warmup_stable_decay", {"num_decay_steps": 8, "warmup_type": up, "decay_type": down, "min_lr_ratio": 0.1})
        for up, down in (("linear", "linear"), ("cosine", "1-sqrt"), ("1-sqrt", "cosine"))
    ),
]


@pytest.mark.parametrize("warmup", [0, 5, 0.2])
@pytest.mark.parametrize(("kind", "options"), SCHEDULES)
def test_schedules(kind: str, options: dict[str, Any], warmup: float, tmp_path: Path) -> None:
    args = arguments(tmp_path, max_steps=30, warmup_steps=warmup, lr_scheduler_type=kind, lr_scheduler_kwargs=options)
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=args.learning_rate)
    first = args.get_warmup_steps(30)
    scheduler = transformers.get_scheduler(kind, optimizer, first, 30, scheduler_specific_kwargs=options)
    schedule = build_schedule(args)
    for step in range(34):
        assert schedule(step) == pytest.approx(scheduler.get_last_lr()[0], rel=1e-12, abs=1e-18), step
        optimizer.step()
        scheduler.step()


def test_every_schedule_is_here() -> None:
    known = {kind for kind, _ in SCHEDULES} | {"reduce_lr_on_plateau", "greedy"}
    assert known == {kind.value for kind in transformers.trainer_utils.SchedulerType}
