"""A recipe of funcopt as the transformation of `flax.nnx.Optimizer`.

python examples/integrations/flax_nnx.py
"""

import jax
import numpy as np
import optax
from _digits import digits
from flax import nnx
from jax.typing import ArrayLike
from tqdm import tqdm

import funcopt

EPOCHS = 10


class Network(nnx.Module):
    """One hidden layer, with normalisation."""

    def __init__(self, rngs: nnx.Rngs) -> None:
        self.hidden = nnx.Linear(64, 64, rngs=rngs)
        self.norm = nnx.BatchNorm(64, rngs=rngs)
        self.head = nnx.Linear(64, 10, rngs=rngs)

    def __call__(self, x: ArrayLike) -> jax.Array:
        return self.head(nnx.relu(self.norm(self.hidden(x))))


@nnx.jit
def step(model: Network, optimizer: nnx.Optimizer, x: ArrayLike, y: ArrayLike) -> jax.Array:
    def loss_of(model: Network) -> jax.Array:
        return optax.softmax_cross_entropy_with_integer_labels(model(x), y).mean()

    loss, grads = nnx.value_and_grad(loss_of)(model)
    optimizer.update(model, grads)
    return loss


def main() -> None:
    data = digits()
    per_epoch = len(data.batches(0))
    total = EPOCHS * per_epoch
    schedule = funcopt.schedules.warmup_cosine(1e-2, warmup_steps=total // 10, total_steps=total)
    tx = funcopt.chain(funcopt.clip_by_global_norm(1.0), funcopt.adamw(schedule, weight_decay=0.05))

    model = Network(nnx.Rngs(0))
    optimizer = nnx.Optimizer(model, tx, wrt=nnx.Param)
    losses = []
    for epoch in tqdm(range(EPOCHS), unit="epoch"):
        model.train()
        losses += [step(model, optimizer, x, y) for x, y in data.batches(epoch)]
    model.eval()
    print(f"flax nnx: loss {np.mean(losses[-per_epoch:]):.4f}, test accuracy {data.accuracy(model(data.test_x)):.4f}")


if __name__ == "__main__":
    main()
