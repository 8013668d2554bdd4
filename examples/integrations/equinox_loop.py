"""A recipe of funcopt in Equinox's loop: parameters are the model's arrays, and what is no array is None.

python examples/integrations/equinox_loop.py
"""

from typing import Any

import equinox as eqx
import jax
import numpy as np
import optax
from _digits import digits
from jax.typing import ArrayLike
from tqdm import tqdm

import funcopt

EPOCHS = 10


@eqx.filter_jit
def step(
    tx: funcopt.GradientTransformation, model: eqx.nn.MLP, state: Any, x: ArrayLike, y: ArrayLike
) -> tuple[eqx.nn.MLP, Any, jax.Array]:
    @eqx.filter_value_and_grad
    def loss_of(model: eqx.nn.MLP) -> jax.Array:
        return optax.softmax_cross_entropy_with_integer_labels(jax.vmap(model)(x), y).mean()

    loss, grads = loss_of(model)
    updates, state = tx.update(grads, state, eqx.filter(model, eqx.is_inexact_array))
    return eqx.apply_updates(model, updates), state, loss


def main() -> None:
    data = digits()
    per_epoch = len(data.batches(0))
    total = EPOCHS * per_epoch
    schedule = funcopt.schedules.warmup_cosine(1e-2, warmup_steps=total // 10, total_steps=total)
    tx = funcopt.chain(funcopt.clip_by_global_norm(1.0), funcopt.cautious(funcopt.adamw)(schedule, weight_decay=0.05))

    model = eqx.nn.MLP(64, 10, 64, 1, key=jax.random.key(0))
    state = tx.init(eqx.filter(model, eqx.is_inexact_array))
    losses = []
    for epoch in tqdm(range(EPOCHS), unit="epoch"):
        for x, y in data.batches(epoch):
            model, state, loss = step(tx, model, state, x, y)
            losses.append(loss)
    logits = jax.vmap(model)(data.test_x)
    print(f"equinox: loss {np.mean(losses[-per_epoch:]):.4f}, test accuracy {data.accuracy(logits):.4f}")


if __name__ == "__main__":
    main()
