"""A recipe of funcopt in Haiku's loop, with groups by the names of Haiku's modules.

python examples/integrations/haiku_loop.py
"""

import haiku as hk
import jax
import numpy as np
import optax
from _digits import digits
from tqdm import tqdm

import funcopt
from funcopt.groups import Rule, group_params

EPOCHS = 10


def network(x: jax.Array) -> jax.Array:
    x = hk.LayerNorm(axis=-1, create_scale=True, create_offset=True)(hk.Linear(64, name="hidden")(x))
    return hk.Linear(10, name="head")(jax.nn.relu(x))


def main() -> None:
    data = digits()
    per_epoch = len(data.batches(0))
    total = EPOCHS * per_epoch
    schedule = funcopt.schedules.warmup_cosine(1e-2, warmup_steps=total // 10, total_steps=total)

    model = hk.without_apply_rng(hk.transform(network))
    params = model.init(jax.random.key(0), data.train_x[:1])
    rules = [Rule(kind=("bias", "norm"), decay_mult=0.0), Rule(path="head", lr_mult=0.5)]
    tx = group_params(params, rules, "adamw").optimizer(lr=schedule, weight_decay=0.05)
    state = tx.init(params)

    @jax.jit
    def step(params: hk.Params, state: optax.OptState, x: jax.Array, y: jax.Array) -> tuple:
        def loss_of(params: hk.Params) -> jax.Array:
            return optax.softmax_cross_entropy_with_integer_labels(model.apply(params, x), y).mean()

        loss, grads = jax.value_and_grad(loss_of)(params)
        return *funcopt.step(tx, grads, state, params), loss

    losses = []
    for epoch in tqdm(range(EPOCHS), unit="epoch"):
        for x, y in data.batches(epoch):
            params, state, loss = step(params, state, x, y)
            losses.append(loss)
    logits = model.apply(params, data.test_x)
    print(f"haiku: loss {np.mean(losses[-per_epoch:]):.4f}, test accuracy {data.accuracy(logits):.4f}")


if __name__ == "__main__":
    main()
