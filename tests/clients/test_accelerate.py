"""Hugging Face accelerate around the bridge: the same weights as around torch.optim."""

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.optim import lr_scheduler
from twins import EACH_TWIN, ROUNDING, TWINS, Twin, batch, difference, make_model

from funcopt.torch_bridge import optim

accelerate = pytest.importorskip("accelerate", reason="needs the extra: pip install 'funcopt[clients]'")

pytestmark = pytest.mark.clients


def make_accelerator(**options: Any) -> Any:
    accelerate.state.AcceleratorState._reset_state(reset_partial_state=True)
    accelerate.state.GradientState._reset_state()
    return accelerate.Accelerator(cpu=True, **options)


def run(build: Any, lr: float, steps: range, folder: Path | None = None, model: Any = None) -> Any:
    """Accumulates two batches per update, clips, schedules; saves and loads the whole state in the folder's name."""
    accelerator = make_accelerator(gradient_accumulation_steps=2)
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


def run_mixed(build: Any, precision: str) -> tuple[torch.nn.Module, list[bool], list[bool]]:
    """Clips and schedules; the model, at which steps gradients overflowed, and which ones were reported as skipped.

    The loss is linear in the weights that are trained, so that no gradient depends on them: half precision would make
    of an ulp between two runs a thousand.
    """
    accelerator = make_accelerator(mixed_precision=precision)
    if precision == "fp16":  # on a CPU accelerate leaves both out, and computes in float32
        accelerator.native_amp = True
        accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**12, growth_interval=1)
    model = make_model(dtype=torch.float32)
    model[0].requires_grad_(False)
    trained = list(model[2].parameters())
    optimizer = build(model.parameters(), lr=0.05)
    scheduler = lr_scheduler.StepLR(optimizer, 2, 0.5)
    model, optimizer, scheduler = accelerator.prepare(model, optimizer, scheduler)
    overflows, skipped = [], []
    for step in range(12):
        x, y = batch(step, dtype=torch.float32)
        accelerator.backward((model(x) * y).mean())
        overflows.append(not all(p.grad.isfinite().all() for p in trained))
        accelerator.clip_grad_norm_(model.parameters(), 0.1)
        optimizer.step()
        skipped.append(optimizer.step_was_skipped)
        scheduler.step()
        optimizer.zero_grad()
    return accelerator.unwrap_model(model), overflows, skipped


FUSED = Twin(partial(optim.AdamW, fused=True), partial(torch.optim.AdamW, fused=True))


@pytest.mark.parametrize(("precision", "expected"), [("fp16", {True, False}), ("bf16", {False})])
@pytest.mark.parametrize(
    ("twin", "reports"),
    [(TWINS["AdamW"], True), (TWINS["SGD"], True), (FUSED, False)],
    ids=["AdamW", "SGD", "fused"],
)
def test_mixed_precision(twin: Twin, reports: bool, precision: str, expected: set[bool]) -> None:
    """A step is reported as skipped if GradScaler did not call it; those of fused optimizers are called, and skip."""
    (ours, overflows, skipped), theirs = (run_mixed(build, precision) for build in twin)
    assert (overflows, skipped) == theirs[1:]
    assert set(overflows) == expected
    assert skipped == [reports and overflow for overflow in overflows]
    # A few ulp of float32 after a dozen updates.
    ulps = 8 * 2.0**-23
    torch.testing.assert_close(ours.state_dict(), theirs[0].state_dict(), rtol=ulps, atol=ulps)
    assert difference(ours, make_model(dtype=torch.float32)) > 1e-2
