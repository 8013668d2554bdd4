"""Hugging Face accelerate around the bridge: the same weights as around torch.optim."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch.optim import lr_scheduler
from twins import EACH_TWIN, ROUNDING, TWINS, Twin, batch, difference, make_model

accelerate = pytest.importorskip("accelerate", reason="needs the extra: pip install 'funcopt[clients]'")

pytestmark = pytest.mark.clients


def run(build: Any, lr: float, steps: range, folder: Path | None = None, model: Any = None) -> Any:
    """Accumulates two batches per update, clips, schedules; saves and loads the whole state in the folder's name."""
    accelerate.state.AcceleratorState._reset_state(reset_partial_state=True)
    accelerate.state.GradientState._reset_state()
    accelerator = accelerate.Accelerator(cpu=True, gradient_accumulation_steps=2)
    model = make_model() if model is None else model
    optimizer = build(model.parameters(), lr=lr)
    scheduler = lr_scheduler.StepLR(optimizer, 2, 0.5)
    model, optimizer, scheduler = accelerator.prepare(model, optimizer, scheduler)
    if folder is not None and folder.exists():
        accelerator.load_state(str(folder))
    for step in steps:
        with accelerator.accumulate(model):
            x, y = batch(step)
            accelerator.backward(torch.nn.functional.mse_loss(model(x), y))
            if accelerator.sync_gradients:
                accelerator.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            scheduler.step()
            optimizer.zero_grad()
    if folder is not None:
        accelerator.save_state(str(folder))
    return accelerator.unwrap_model(model)


@EACH_TWIN
def test_loop_and_resume(twin: Twin, tmp_path: Path) -> None:
    theirs = run(twin.theirs, 0.05, range(16))
    run(twin.ours, 0.05, range(8), tmp_path / "half")
    resumed = run(twin.ours, 0.7, range(8, 16), tmp_path / "half", make_model(seed=9))
    assert difference(resumed, theirs) <= ROUNDING
    assert difference(resumed, make_model()) > 1e-2


@pytest.mark.parametrize("name", ["AdamW", "SGD"])
def test_state_of_torchs_optimizer(name: str, tmp_path: Path) -> None:
    """A run begun with torch.optim goes on with the bridge."""
    theirs = run(TWINS[name].theirs, 0.05, range(16))
    run(TWINS[name].theirs, 0.05, range(8), tmp_path / "half")
    resumed = run(TWINS[name].ours, 0.7, range(8, 16), tmp_path / "half", make_model(seed=9))
    assert difference(resumed, theirs) <= ROUNDING
