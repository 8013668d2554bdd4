"""Hugging Face's Trainer with funcopt's optimizers, without a subclass: `optimizer_cls_and_kwargs`.

A small GPT-2 learns to count on by 1, 3 or 7. The Trainer makes the groups with and without decay, clips, schedules and
writes checkpoints as ever.

python examples/integrations/huggingface_trainer.py
"""

import tempfile
from typing import Any

import torch
import transformers

import funcopt
from funcopt.torch_bridge import optim

STEPS = 100


def recipe(lr: float, weight_decay: float = 0.0) -> funcopt.GradientTransformation:
    """Any function that returns a transformation; the Trainer's `weight_decay` arrives through the groups."""
    return funcopt.chain(funcopt.clip_by_value(1.0), funcopt.cautious(funcopt.adamw)(lr, weight_decay=weight_decay))


def train(name: str, optimizer_cls: type, options: dict[str, Any]) -> None:
    transformers.set_seed(0)
    sizes: dict[str, Any] = {"vocab_size": 10, "n_positions": 16, "n_embd": 32, "n_layer": 2, "n_head": 2}
    model = transformers.GPT2LMHeadModel(transformers.GPT2Config(**sizes, bos_token_id=0, eos_token_id=0))
    rows = [(torch.arange(16) * stride + start) % 10 for stride in (1, 3, 7) for start in range(10)]
    with tempfile.TemporaryDirectory() as folder:
        args = transformers.TrainingArguments(
            output_dir=folder,
            max_steps=STEPS,
            per_device_train_batch_size=30,
            weight_decay=0.1,
            warmup_steps=10,
            lr_scheduler_type="cosine",
            logging_strategy="no",
            save_strategy="no",
            report_to=[],
            use_cpu=True,
            dataloader_pin_memory=False,
        )
        trainer = transformers.Trainer(
            model=model,
            args=args,
            train_dataset=[{"input_ids": row, "labels": row} for row in rows],
            optimizer_cls_and_kwargs=(optimizer_cls, options),
        )
        loss = trainer.train().training_loss
    model.eval()
    with torch.no_grad():
        guesses = model(torch.stack(rows)).logits[:, 1:-1].argmax(-1)
    accuracy = (guesses == torch.stack(rows)[:, 2:]).double().mean()
    print(f"{name}: mean loss {loss:.4f}, next digits right {accuracy:.4f}")


def main() -> None:
    train("optim.AdamW", optim.AdamW, {"lr": 1e-2})
    train("own recipe", funcopt.TorchBridge, {"transform": recipe, "lr": 1e-2})


if __name__ == "__main__":
    main()
