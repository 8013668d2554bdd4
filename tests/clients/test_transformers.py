"""transformers.Trainer trains a small GPT-2 to the same weights as with torch.optim."""

from pathlib import Path
from typing import Any

import optax
import pytest
import torch
from twins import ROUNDING, TWINS, difference

import funcopt
from funcopt import TorchBridge
from funcopt.torch_bridge import optim

transformers = pytest.importorskip("transformers", reason="needs the extra: pip install 'funcopt[clients]'")

pytestmark = pytest.mark.clients


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("TRANSFORMERS_OFFLINE", "1")


def tiny_model() -> Any:
    """Two layers of width 16, made from a configuration, in float64."""
    transformers.set_seed(0)
    options = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0, "bos_token_id": 0, "eos_token_id": 0}
    config = transformers.GPT2Config(vocab_size=23, n_positions=12, n_embd=16, n_layer=2, n_head=2, **options)
    return transformers.GPT2LMHeadModel(config).double()


def sentences() -> list[dict[str, torch.Tensor]]:
    generator = torch.Generator().manual_seed(5)
    rows = torch.randint(0, 23, (48, 12), generator=generator)
    return [{"input_ids": row, "labels": row} for row in rows]


def fit(
    folder: Path,
    cls_and_options: Any = None,
    resume: str | None = None,
    optimizers: Any = (None, None),
    model: Any = None,
) -> Any:
    """Two epochs of six steps: accumulation, clipping, warm-up and cosine; saves after each epoch."""
    options = {
        "per_device_train_batch_size": 4,
        "gradient_accumulation_steps": 2,
        "num_train_epochs": 2,
        "learning_rate": 0.01,
        "weight_decay": 0.1,
        "warmup_steps": 2,
        "lr_scheduler_type": "cosine",
        "max_grad_norm": 1.0,
        "save_strategy": "epoch",
        "report_to": [],
        "use_cpu": True,
        "disable_tqdm": True,
        "dataloader_pin_memory": False,
    }
    trainer = transformers.Trainer(
        model=tiny_model() if model is None else model,
        args=transformers.TrainingArguments(output_dir=str(folder), **options),
        train_dataset=sentences(),
        optimizers=optimizers,
        optimizer_cls_and_kwargs=cls_and_options,
    )
    trainer.train(resume_from_checkpoint=resume)
    assert trainer.state.global_step == 12
    return trainer


ADAMW = (torch.optim.AdamW, {"lr": 0.01})
OURS = {
    "class": (optim.AdamW, {"lr": 0.01}),
    "recipe": (TorchBridge, {"transform": funcopt.adamw, "lr": 0.01}),
    "optax": (TorchBridge, {"transform": optax.adamw, "lr": 0.01}),
}


@pytest.mark.parametrize("ours", [pytest.param(ours, id=name) for name, ours in OURS.items()])
def test_trainer_and_resume(ours: Any, tmp_path: Path) -> None:
    """The Trainer makes the optimizer, with decay and no-decay groups; another goes on from the first epoch's end."""
    theirs = fit(tmp_path / "theirs", ADAMW)
    straight = fit(tmp_path / "ours", ours)
    resumed = fit(tmp_path / "resumed", ours, str(tmp_path / "ours" / "checkpoint-6"))
    assert [len(group["params"]) for group in straight.optimizer.param_groups] == [10, 18]
    assert difference(straight.model, theirs.model) <= ROUNDING
    assert difference(resumed.model, theirs.model) <= ROUNDING
    assert difference(resumed.model, tiny_model()) > 1e-2


def test_checkpoint_of_torchs_optimizer(tmp_path: Path) -> None:
    theirs = fit(tmp_path / "theirs", ADAMW)
    resumed = fit(tmp_path / "resumed", OURS["recipe"], str(tmp_path / "theirs" / "checkpoint-6"))
    assert difference(resumed.model, theirs.model) <= ROUNDING


def test_optimizer_made_by_hand(tmp_path: Path) -> None:
    results = []
    for build in TWINS["SGD"]:
        model = tiny_model()
        results.append(fit(tmp_path, optimizers=(build(model.parameters()), None), model=model).model)
    assert difference(*results) <= ROUNDING
