"""FSDP2 as in torchtitan: `fully_shard` on each block and on the model, and a recipe of funcopt over the shards.

The script starts two processes, which talk over gloo. Each updates its part of every parameter; the norm that the
recipe clips by is reduced once per step. One process then trains the same model on all of each batch, to compare with.

python examples/integrations/fsdp2.py
"""

import tempfile

import torch
from torch import distributed
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from tqdm import tqdm

import funcopt
from funcopt.groups import Rule, group_params

PROCESSES = 2
STEPS = 40
BATCH = 32
LENGTH = 12


class Model(torch.nn.Module):
    """A small causal transformer over the ten digits."""

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        self.embed = torch.nn.Embedding(10, width)
        self.place = torch.nn.Parameter(0.1 * torch.randn(LENGTH, width))
        block = {"dim_feedforward": 2 * width, "dropout": 0.0, "batch_first": True, "norm_first": True}
        self.blocks = torch.nn.ModuleList(torch.nn.TransformerEncoderLayer(width, 2, **block) for _ in range(2))
        self.head = torch.nn.Linear(width, 10)

    def forward(self, digits: torch.Tensor) -> torch.Tensor:
        x = self.embed(digits) + self.place
        mask = torch.nn.Transformer.generate_square_subsequent_mask(LENGTH, dtype=x.dtype)
        for block in self.blocks:
            x = block(x, src_mask=mask, is_causal=True)
        return self.head(x.flatten(0, 1))


def recipe(lr: funcopt.Hyperparameter, weight_decay: float) -> funcopt.GradientTransformation:
    return funcopt.chain(funcopt.clip_by_global_norm(1.0), funcopt.adamw(lr, weight_decay=weight_decay))


def make_model() -> Model:
    torch.manual_seed(0)
    return Model().double()


def batch(step: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Rows that count on by 1, 3 or 7, and the digits that come next."""
    generator = torch.Generator().manual_seed(step)
    start = torch.randint(10, (BATCH, 1), generator=generator)
    stride = torch.tensor([1, 3, 7])[torch.randint(3, (BATCH, 1), generator=generator)]
    rows = (start + stride * torch.arange(LENGTH + 1)) % 10
    return rows[:, :-1], rows[:, 1:]


def train(model: torch.nn.Module, rank: int, processes: int) -> float:
    """The mean loss of the last five steps, of this process's part of the batches."""
    schedule = funcopt.schedules.warmup_cosine(1e-2, warmup_steps=4, total_steps=STEPS)
    groups = group_params(model, [Rule(kind=("bias", "norm"), decay_mult=0.0)], "adamw")
    optimizer = funcopt.TorchBridge(groups.param_groups(), recipe, lr=schedule, weight_decay=0.1, engine="torch")
    losses = []
    for step in tqdm(range(STEPS), disable=rank > 0, desc=f"{processes} process(es)"):
        x, y = (part[rank::processes] for part in batch(step))
        loss = torch.nn.functional.cross_entropy(model(x), y.flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return sum(losses[-5:]) / 5


def work(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", init_method=f"file://{folder}/init", rank=rank, world_size=PROCESSES)
    model = make_model()
    for block in model.blocks:
        fully_shard(block)
    fully_shard(model)
    loss = torch.tensor(train(model, rank, PROCESSES))
    distributed.all_reduce(loss, distributed.ReduceOp.AVG)
    own = sum(p.to_local().numel() for p in model.parameters() if isinstance(p, DTensor))
    whole = [p.full_tensor() for p in model.parameters() if isinstance(p, DTensor)]
    if rank == 0:
        alone = make_model()
        train(alone, 0, 1)
        apart = max((p - q).abs().max().item() for p, q in zip(whole, alone.parameters(), strict=True))
        print(f"fsdp2: loss {loss:.4f}, {own} of {sum(p.numel() for p in whole)} elements in this process")
        print(f"weights apart from one process's: {apart:.0e}")
    distributed.destroy_process_group()


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        torch.multiprocessing.spawn(work, (folder,), PROCESSES)


if __name__ == "__main__":
    main()
