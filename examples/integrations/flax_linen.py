"""A recipe of funcopt in flax linen's `TrainState`, with `tx.update` inside of `apply_gradients`.

python examples/integrations/flax_linen.py
"""

import jax
import numpy as np
import optax
from _digits import digits
from flax import linen
from flax.training.train_state import TrainState
from jax.typing import ArrayLike
from tqdm import tqdm

import funcopt
from funcopt.groups import Rule, group_params

EPOCHS = 10


class Network(linen.Module):
    """One hidden layer, with normalisation."""

    @linen.compact
    def __call__(self, x: ArrayLike) -> jax.Array:
        x = linen.LayerNorm()(linen.Dense(64)(x))
        return linen.Dense(10)(linen.relu(x))


@jax.jit
def step(state: TrainState, x: ArrayLike, y: ArrayLike) -> tuple[TrainState, jax.Array]:
    def loss_of(params: optax.Params) -> jax.Array:
        return optax.softmax_cross_entropy_with_integer_labels(state.apply_fn({"params": params}, x), y).mean()

    loss, grads = jax.value_and_grad(loss_of)(state.params)
    return state.apply_gradients(grads=grads), loss


def main() -> None:
    data = digits()
    per_epoch = len(data.batches(0))
    total = EPOCHS * per_epoch
    schedule = funcopt.schedules.warmup_cosine(1e-2, warmup_steps=total // 10, total_steps=total)

    model = Network()
    params = model.init(jax.random.key(0), data.train_x[:1])["params"]
    groups = group_params(params, [Rule(kind=("bias", "norm"), decay_mult=0.0)], "adamw")
    state = TrainState.create(apply_fn=model.apply, params=params, tx=groups.optimizer(lr=schedule, weight_decay=0.05))
    losses = []
    for epoch in tqdm(range(EPOCHS), unit="epoch"):
        for x, y in data.batches(epoch):
            state, loss = step(state, x, y)
            losses.append(loss)
    logits = model.apply({"params": state.params}, data.test_x)
    print(f"flax linen: loss {np.mean(losses[-per_epoch:]):.4f}, test accuracy {data.accuracy(logits):.4f}")


if __name__ == "__main__":
    main()
