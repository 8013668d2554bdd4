"""MMEngine's Runner with an optimizer and a schedule of funcopt, by name in the config.

`OptimWrapper`, `paramwise_cfg`, `clip_grad` and the hooks are MMEngine's own.

python examples/integrations/mmengine_runner.py
"""

import tempfile

import torch
from _digits import digits
from mmengine.evaluator import BaseMetric
from mmengine.model import BaseModel
from mmengine.runner import Runner

from funcopt.integrations.mmengine import register

EPOCHS = 6


class Classifier(BaseModel):
    """One hidden layer, with normalisation."""

    def __init__(self) -> None:
        super().__init__()
        self.body = torch.nn.Sequential(torch.nn.Linear(64, 64), torch.nn.LayerNorm(64), torch.nn.ReLU())
        self.head = torch.nn.Linear(64, 10)

    def forward(self, x: torch.Tensor, y: torch.Tensor, mode: str) -> dict | list:
        logits = self.head(self.body(x))
        if mode == "loss":
            return {"loss": torch.nn.functional.cross_entropy(logits, y)}
        return [logits, y]


class Accuracy(BaseMetric):
    """The part of the images whose class was found."""

    def process(self, data_batch: object, data_samples: list[torch.Tensor]) -> None:
        logits, y = data_samples
        self.results.append((logits.argmax(1) == y).double().mean(0, keepdim=True).repeat(len(y)))

    def compute_metrics(self, results: list[torch.Tensor]) -> dict[str, float]:
        return {"accuracy": torch.cat(results).mean().item()}


def loader(x: torch.Tensor, y: torch.Tensor, shuffle: bool) -> dict:
    dataset = torch.utils.data.TensorDataset(x, y)
    sampler = {"type": "DefaultSampler", "shuffle": shuffle}
    return {"dataset": dataset, "sampler": sampler, "batch_size": 64, "collate_fn": {"type": "default_collate"}}


def main() -> None:
    register()
    train_x, train_y, test_x, test_y = map(torch.from_numpy, digits())
    with tempfile.TemporaryDirectory() as folder:
        runner = Runner(
            model=Classifier(),
            work_dir=folder,
            train_dataloader=loader(train_x, train_y, shuffle=True),
            val_dataloader=loader(test_x, test_y, shuffle=False),
            val_evaluator={"type": Accuracy},
            train_cfg={"by_epoch": True, "max_epochs": EPOCHS, "val_interval": EPOCHS},
            val_cfg={},
            optim_wrapper={
                "optimizer": {"type": "funcopt-ademamix", "lr": 5e-3, "weight_decay": 0.05},
                "paramwise_cfg": {"norm_decay_mult": 0.0, "custom_keys": {"head": {"lr_mult": 0.5}}},
                "clip_grad": {"max_norm": 1.0},
            },
            param_scheduler={
                "type": "funcopt-schedule",
                "schedule": {"type": "warmup_cosine", "warmup_steps": 10, "total_steps": 23 * EPOCHS},
                "by_epoch": False,
            },
            randomness={"seed": 0},
            log_level="WARNING",
            default_hooks={"checkpoint": {"type": "CheckpointHook", "interval": EPOCHS}},
        )
        runner.train()
    name = type(runner.optim_wrapper.optimizer).__name__
    rates = {f"{group['initial_lr']:.4f}" for group in runner.optim_wrapper.param_groups}
    accuracy = runner.message_hub.get_scalar("val/accuracy").current()
    print(f"mmengine, {name}: test accuracy {accuracy:.4f}, rates from {' and '.join(sorted(rates))}")


if __name__ == "__main__":
    main()
