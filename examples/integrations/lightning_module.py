"""Lightning's Trainer with a recipe of funcopt in `configure_optimizers`; the Trainer clips and schedules.

python examples/integrations/lightning_module.py
"""

import lightning
import torch
from _digits import digits

import funcopt


class Classifier(lightning.LightningModule):
    """One hidden layer."""

    def __init__(self) -> None:
        super().__init__()
        self.model = torch.nn.Sequential(torch.nn.Linear(64, 64), torch.nn.ReLU(), torch.nn.Linear(64, 10))

    def training_step(self, batch: list[torch.Tensor], index: int) -> torch.Tensor:
        x, y = batch
        loss = torch.nn.functional.cross_entropy(self.model(x), y)
        self.log("loss", loss, prog_bar=True)
        return loss

    def configure_optimizers(self) -> dict:
        optimizer = funcopt.TorchBridge(self.named_parameters(), funcopt.adan, lr=1e-2, weight_decay=0.02)
        total = int(self.trainer.estimated_stepping_batches)
        schedule = funcopt.schedules.warmup_cosine(1e-2, warmup_steps=total // 10, total_steps=total)
        scheduler = funcopt.torch_bridge.LRScheduler(optimizer, schedule)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}


def main() -> None:
    data = digits()
    lightning.seed_everything(0, verbose=False)
    dataset = torch.utils.data.TensorDataset(torch.from_numpy(data.train_x), torch.from_numpy(data.train_y))
    trainer = lightning.Trainer(
        max_epochs=10,
        gradient_clip_val=1.0,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_model_summary=False,
    )
    module = Classifier()
    trainer.fit(module, torch.utils.data.DataLoader(dataset, batch_size=64, shuffle=True))
    loss = trainer.callback_metrics["loss"]
    with torch.no_grad():
        logits = module.model(torch.from_numpy(data.test_x)).numpy()
    print(f"lightning: loss {loss:.4f}, test accuracy {data.accuracy(logits):.4f}")


if __name__ == "__main__":
    main()
