"""accelerate around a loop with a recipe of funcopt: accumulation, and a whole state that is saved and loaded.

accelerate gives the batches to the processes and the gradients to the optimizer; clipping and the schedule are parts of
the recipe, so an update has both wherever it runs.

python examples/integrations/accelerate_loop.py
"""

import tempfile

import accelerate
import numpy as np
import torch
from _digits import Digits, digits
from tqdm import tqdm

import funcopt

EPOCHS = 10


def recipe(lr: funcopt.Hyperparameter, weight_decay: float) -> funcopt.GradientTransformation:
    return funcopt.chain(funcopt.clip_by_global_norm(1.0), funcopt.lion(lr, weight_decay=weight_decay))


def train(data: Digits, epochs: range, folder: str | None = None) -> tuple[torch.nn.Module, float]:
    """Trains on from the state in a folder, if one is given and has one, and leaves its own there."""
    torch.manual_seed(0)
    accelerator = accelerate.Accelerator(cpu=True, gradient_accumulation_steps=2)
    per_epoch = len(data.batches(0))
    total = EPOCHS * per_epoch // 2
    schedule = funcopt.schedules.warmup_cosine(5e-3, warmup_steps=total // 10, total_steps=total)
    model = torch.nn.Sequential(torch.nn.Linear(64, 64), torch.nn.ReLU(), torch.nn.Linear(64, 10))
    optimizer = funcopt.TorchBridge(model.named_parameters(), recipe, lr=schedule, weight_decay=0.1)
    model, optimizer = accelerator.prepare(model, optimizer)
    if folder is not None and epochs.start > 0:
        accelerator.load_state(folder)
    losses = []
    for epoch in tqdm(epochs, unit="epoch"):
        for x, y in data.batches(epoch):
            with accelerator.accumulate(model):
                loss = torch.nn.functional.cross_entropy(model(torch.from_numpy(x)), torch.from_numpy(y))
                accelerator.backward(loss)
                optimizer.step()
                optimizer.zero_grad()
                losses.append(loss.item())
    if folder is not None:
        accelerator.save_state(folder)
    return accelerator.unwrap_model(model), float(np.mean(losses[-per_epoch:]))


def main() -> None:
    data = digits()
    straight, _ = train(data, range(EPOCHS))
    with tempfile.TemporaryDirectory() as folder:
        train(data, range(EPOCHS // 2), folder)
        model, loss = train(data, range(EPOCHS // 2, EPOCHS), folder)
    same = all(map(torch.equal, model.parameters(), straight.parameters()))
    with torch.no_grad():
        logits = model(torch.from_numpy(data.test_x)).numpy()
    print(f"accelerate: loss {loss:.4f}, test accuracy {data.accuracy(logits):.4f}, as without the stop: {same}")


if __name__ == "__main__":
    main()
