"""Lightning's Trainer and Fabric: the same weights as with torch.optim."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch.optim import lr_scheduler
from twins import EACH_TWIN, ROUNDING, TWINS, Twin, batch, difference, make_model

lightning = pytest.importorskip("lightning", reason="needs the extra: pip install 'funcopt[clients]'")

pytestmark = [
    pytest.mark.clients,
    # Lightning's own: a deprecated check of torch's, and advice on worker processes for loading data.
    pytest.mark.filterwarnings("ignore:`isinstance.treespec, LeafSpec.` is deprecated:FutureWarning"),
    pytest.mark.filterwarnings("ignore:The 'train_dataloader' does not have many workers"),
]


class Regression(lightning.LightningModule):
    """Trains a model with whatever optimizer it is given, one scheduler step per batch."""

    def __init__(self, build: Any, lr: float) -> None:
        super().__init__()
        self.model = make_model()
        self.build = build
        self.lr = lr

    def training_step(self, data: Any, index: int) -> torch.Tensor:
        x, y = data
        return torch.nn.functional.mse_loss(self.model(x), y)

    def configure_optimizers(self) -> Any:
        optimizer = self.build(self.model.parameters(), lr=self.lr)
        scheduler = lr_scheduler.OneCycleLR(optimizer, 0.05, total_steps=12, cycle_momentum=False)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}


def loader() -> Any:
    data = torch.utils.data.TensorDataset(*(torch.cat(part) for part in zip(*map(batch, range(6)), strict=True)))
    return torch.utils.data.DataLoader(data, batch_size=16)


def fit(module: Any, folder: Path, epochs: int, checkpoint: Path | None = None, **options: Any) -> Any:
    trainer = lightning.Trainer(
        max_epochs=epochs,
        accelerator="cpu",
        default_root_dir=folder,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        **options,
    )
    trainer.fit(module, loader(), ckpt_path=checkpoint)
    return trainer


@EACH_TWIN
def test_trainer(twin: Twin, tmp_path: Path) -> None:
    """Clipping by norm, a schedule, and a checkpoint after the first of two epochs, from which another run goes on."""
    ours, theirs = Regression(twin.ours, 0.05), Regression(twin.theirs, 0.05)
    trainer = fit(ours, tmp_path, 1, gradient_clip_val=1.0)
    trainer.save_checkpoint(tmp_path / "half.ckpt")
    fit(theirs, tmp_path, 2, gradient_clip_val=1.0)
    resumed = Regression(twin.ours, 0.7)
    trainer = fit(resumed, tmp_path, 2, tmp_path / "half.ckpt", gradient_clip_val=1.0)
    assert trainer.global_step == 12
    assert difference(resumed.model, theirs.model) <= ROUNDING


def test_trainer_accumulates_gradients(tmp_path: Path) -> None:
    ours, theirs = Regression(TWINS["recipe"].ours, 0.05), Regression(TWINS["recipe"].theirs, 0.05)
    for module in (ours, theirs):
        trainer = fit(module, tmp_path, 2, accumulate_grad_batches=2)
        assert trainer.global_step == 6
    assert difference(ours.model, theirs.model) <= ROUNDING


def test_checkpoints_of_torchs_optimizer(tmp_path: Path) -> None:
    """A run begun with torch.optim goes on with the bridge."""
    begun, resumed, theirs = (Regression(build, 0.05) for build in (*TWINS["SGD"][::-1], TWINS["SGD"].theirs))
    fit(begun, tmp_path, 1).save_checkpoint(tmp_path / "half.ckpt")
    fit(resumed, tmp_path, 2, tmp_path / "half.ckpt")
    fit(theirs, tmp_path, 2)
    assert difference(resumed.model, theirs.model) <= ROUNDING


def test_fabric(tmp_path: Path) -> None:
    results = []
    for build in TWINS["recipe"]:
        fabric = lightning.Fabric(accelerator="cpu", devices=1)
        model = make_model()
        plain = model
        model, optimizer = fabric.setup(model, build(model.parameters(), lr=0.05))
        for step in range(8):
            if step == 4:
                fabric.save(tmp_path / "half.ckpt", {"model": model, "optimizer": optimizer})
                plain = make_model(seed=9)
                model, optimizer = fabric.setup(plain, build(plain.parameters(), lr=0.7))
                fabric.load(tmp_path / "half.ckpt", {"model": model, "optimizer": optimizer})
            x, y = batch(step)
            optimizer.zero_grad()
            fabric.backward(torch.nn.functional.mse_loss(model(x), y))
            fabric.clip_gradients(model, optimizer, max_norm=1.0)
            optimizer.step()
        results.append(plain)
    assert difference(*results) <= ROUNDING
