"""LightningCLI with an optimizer of funcopt by its class path, and its numbers from the command line or a file.

The classes of torch's names are there already; a recipe of one's own is a class of a few lines.

python examples/integrations/lightning_cli.py
python examples/integrations/lightning_cli.py --optimizer funcopt.torch_bridge.optim.NAdam --optimizer.lr 3e-3
"""

import sys
from collections.abc import Iterable

import lightning
import torch
from _digits import digits
from lightning.pytorch.cli import LightningCLI

import funcopt

DEFAULTS = ["--optimizer", "ClippedLion", "--optimizer.lr", "1e-3", "--optimizer.weight_decay", "0.1"]


def clipped_lion(lr: float, weight_decay: float) -> funcopt.GradientTransformation:
    return funcopt.chain(funcopt.clip_by_global_norm(1.0), funcopt.lion(lr, weight_decay=weight_decay))


class ClippedLion(funcopt.TorchBridge):
    """What the command line may set are the arguments of the constructor."""

    def __init__(self, params: Iterable[torch.nn.Parameter], lr: float = 1e-3, weight_decay: float = 0.0) -> None:
        super().__init__(params, clipped_lion, lr=lr, weight_decay=weight_decay)


class Classifier(lightning.LightningModule):
    """One hidden layer; LightningCLI adds `configure_optimizers`."""

    def __init__(self, width: int = 64) -> None:
        super().__init__()
        self.model = torch.nn.Sequential(torch.nn.Linear(64, width), torch.nn.ReLU(), torch.nn.Linear(width, 10))

    def training_step(self, batch: list[torch.Tensor], index: int) -> torch.Tensor:
        x, y = batch
        loss = torch.nn.functional.cross_entropy(self.model(x), y)
        self.log("loss", loss, prog_bar=True)
        return loss


class DigitsData(lightning.LightningDataModule):
    """The training set in batches."""

    def train_dataloader(self) -> torch.utils.data.DataLoader:
        data = digits()
        dataset = torch.utils.data.TensorDataset(torch.from_numpy(data.train_x), torch.from_numpy(data.train_y))
        return torch.utils.data.DataLoader(dataset, batch_size=64, shuffle=True)


def main() -> None:
    quiet = {"logger": False, "enable_checkpointing": False, "enable_model_summary": False}
    cli = LightningCLI(
        Classifier,
        DigitsData,
        args=["fit", *(sys.argv[1:] or DEFAULTS)],
        trainer_defaults={"max_epochs": 10, "accelerator": "cpu", **quiet},
        seed_everything_default=0,
        save_config_callback=None,
    )
    data = digits()
    with torch.no_grad():
        logits = cli.model.model(torch.from_numpy(data.test_x)).numpy()
    name = type(cli.trainer.optimizers[0]).__name__
    loss = cli.trainer.callback_metrics["loss"]
    print(f"lightning cli, {name}: loss {loss:.4f}, test accuracy {data.accuracy(logits):.4f}")


if __name__ == "__main__":
    main()
