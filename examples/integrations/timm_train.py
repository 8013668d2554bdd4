"""The pieces of timm's training script with an optimizer of funcopt from timm's own registry.

A model of timm's, `create_optimizer_v2` with layer decay and no decay for norms, and `create_scheduler_v2`: what a run
of `train.py --opt funcopt-adan` would do.

python examples/integrations/timm_train.py
python examples/integrations/timm_train.py --opt funcopt-lion --lr 5e-4
"""

import argparse

import numpy as np
import timm
import torch
from _digits import digits
from timm.optim import create_optimizer_v2, optimizer_kwargs
from timm.scheduler import create_scheduler_v2
from tqdm import tqdm

from funcopt.integrations.timm import register


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", default="test_resnet")
    parser.add_argument("--opt", default="funcopt-adan")
    parser.add_argument("--lr", type=float, default=5e-3)
    parser.add_argument("--weight-decay", type=float, default=0.02)
    parser.add_argument("--momentum", type=float, default=0.9)
    parser.add_argument("--layer-decay", type=float, default=0.9)
    parser.add_argument("--epochs", type=int, default=5)
    args = parser.parse_args()

    register()
    torch.manual_seed(0)
    data = digits()
    model = timm.create_model(args.model, in_chans=1, num_classes=10)
    optimizer = create_optimizer_v2(model, **optimizer_kwargs(cfg=args))
    per_epoch = len(data.batches(0))
    scheduler, epochs = create_scheduler_v2(
        optimizer,
        "cosine",
        num_epochs=args.epochs,
        warmup_epochs=1,
        warmup_prefix=True,
        warmup_lr=1e-5,
        step_on_epochs=False,
        updates_per_epoch=per_epoch,
    )
    losses = []
    for epoch in tqdm(range(epochs), unit="epoch"):
        for i, (x, y) in enumerate(data.batches(epoch)):
            loss = torch.nn.functional.cross_entropy(model(torch.from_numpy(x).view(-1, 1, 8, 8)), torch.from_numpy(y))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            scheduler.step_update(epoch * per_epoch + i + 1)
            losses.append(loss.item())
    model.eval()
    with torch.no_grad():
        logits = model(torch.from_numpy(data.test_x).view(-1, 1, 8, 8)).numpy()
    name = f"timm, {args.opt}, {len(optimizer.param_groups)} groups"
    print(f"{name}: loss {np.mean(losses[-per_epoch:]):.4f}, test accuracy {data.accuracy(logits):.4f}")


if __name__ == "__main__":
    main()
