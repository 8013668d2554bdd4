"""Lightning's Trainer and Fabric: the same weights as with torch.optim."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.optim import lr_scheduler
from twins import EACH_TWIN, ROUNDING, TWINS, Twin, batch, difference, make_model

from funcopt.torch_bridge import optim

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


def make_linear_model() -> torch.nn.Sequential:
    """A float32 model whose first layer stays as it is."""
    model = make_model(dtype=torch.float32)
    model[0].requires_grad_(False)
    return model


def linear_loss(output: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """Its gradients do not depend on the weights: half precision would make of an ulp between two runs a thousand."""
    return (output * y).mean()


class MixedPrecision(Regression):
    """Notes the scale of the loss after each step, where the trainer has one."""

    def __init__(self, build: Any, lr: float) -> None:
        super().__init__(build, lr)
        self.model = make_linear_model()
        self.scales: list[float] = []

    def training_step(self, data: Any, index: int) -> torch.Tensor:
        x, y = data
        return linear_loss(self.model(x.float()), y.float())

    def on_train_batch_end(self, *args: Any) -> None:
        self.scales.append(self.trainer.precision_plugin.state_dict().get("scale", 1.0))


def mixed(plugins: Any, precision: str) -> Any:
    """Lightning's plug-in; of `precision="16-mixed"` alone it makes bf16-mixed on a CPU. The scale grows until the
    gradients overflow, falls, and grows again.
    """
    scalers: dict[str, Callable[[], Any]] = {
        "16-mixed": lambda: torch.amp.GradScaler("cpu", init_scale=2.0**12, growth_interval=1),
        "bf16-mixed": lambda: None,
    }
    return plugins.MixedPrecision(precision, "cpu", scalers[precision]())


# A few ulp of float32 after a dozen updates; measured 2.4.
ULPS = 8 * 2.0**-23
EACH_CLASS = pytest.mark.parametrize("name", ["AdamW", "SGD"])
EACH_PRECISION = pytest.mark.parametrize(("precision", "skips"), [("16-mixed", True), ("bf16-mixed", False)])


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


@EACH_CLASS
@EACH_PRECISION
@pytest.mark.parametrize("algorithm", ["norm", "value"])
def test_trainer_in_mixed_precision(name: str, precision: str, skips: bool, algorithm: str, tmp_path: Path) -> None:
    ours, theirs = (MixedPrecision(build, 0.05) for build in TWINS[name])
    clip = {"gradient_clip_val": 0.1, "gradient_clip_algorithm": algorithm}
    steps = [
        fit(module, tmp_path, 2, plugins=mixed(lightning.pytorch.plugins, precision), **clip).global_step
        for module in (ours, theirs)
    ]
    assert steps == [12, 12]
    assert ours.scales == theirs.scales
    assert (ours.scales != sorted(ours.scales)) == skips
    torch.testing.assert_close(ours.model.state_dict(), theirs.model.state_dict(), rtol=ULPS, atol=ULPS)
    assert difference(ours.model, make_linear_model()) > 1e-2


def fabric_weights(
    build: Any, precision: str, clip: dict[str, Any] | None, overflow_at: int | None = None
) -> list[torch.Tensor]:
    """The trained layer's weights after each step."""
    fabric = lightning.Fabric(accelerator="cpu", devices=1, plugins=mixed(lightning.fabric.plugins, precision))
    plain = make_linear_model()
    model, optimizer = fabric.setup(plain, build(plain.parameters(), lr=0.05))
    weights = []
    for step in range(6):
        x, y = batch(step, dtype=torch.float32)
        optimizer.zero_grad()
        fabric.backward(linear_loss(model(x), y))
        if step == overflow_at:
            plain[2].bias.grad[0] = float("inf")
        if clip is not None:
            fabric.clip_gradients(model, optimizer, **clip)
        optimizer.step()
        weights.append(torch.nn.utils.parameters_to_vector(plain[2].parameters()).detach())
    return weights


@EACH_CLASS
@EACH_PRECISION
@pytest.mark.parametrize("clip", [{"max_norm": 0.1, "error_if_nonfinite": False}, {"clip_val": 0.1}], ids=str)
def test_fabric_in_mixed_precision(name: str, precision: str, skips: bool, clip: dict[str, Any]) -> None:
    """A scaler skips an overflow; without one it is clipped, by value to the bound, by norm to nan."""
    ours, theirs = (fabric_weights(build, precision, clip, overflow_at=3) for build in TWINS[name])
    assert torch.equal(ours[3], ours[2]) == skips
    torch.testing.assert_close(ours, theirs, rtol=ULPS, atol=ULPS, equal_nan=True)


def test_fused_unscales_by_itself_and_refuses_clipping(tmp_path: Path) -> None:
    runs = []
    for module in (optim, torch.optim):
        build = partial(module.AdamW, fused=True)
        with pytest.raises(RuntimeError, match="AdamW, does not allow for gradient clipping"):
            fit(MixedPrecision(build, 0.05), tmp_path, 1, precision="bf16-mixed", gradient_clip_val=1.0)
        with pytest.raises(NotImplementedError, match="Gradient clipping is not implemented"):
            fabric_weights(build, "16-mixed", {"max_norm": 1.0})
        runs.append(fabric_weights(build, "16-mixed", None, overflow_at=3))
        assert torch.equal(runs[-1][3], runs[-1][2])
    torch.testing.assert_close(*runs, rtol=ULPS, atol=ULPS)
