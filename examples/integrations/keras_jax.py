"""A Keras 3 model on the JAX backend in a jit-compiled loop: `stateless_call` gives the gradients, funcopt the update.

python examples/integrations/keras_jax.py
"""

import os

os.environ["KERAS_BACKEND"] = "jax"

import jax
import keras
import numpy as np
import optax
from _digits import digits
from tqdm import tqdm

import funcopt

EPOCHS = 10


def main() -> None:
    data = digits()
    per_epoch = len(data.batches(0))
    total = EPOCHS * per_epoch
    schedule = funcopt.schedules.warmup_cosine(1e-2, warmup_steps=total // 10, total_steps=total)

    keras.utils.set_random_seed(0)
    layers = [keras.layers.Dense(64), keras.layers.BatchNormalization(), keras.layers.ReLU(), keras.layers.Dense(10)]
    model = keras.Sequential([keras.Input((64,)), *layers])

    # Values by the variables' paths, in the order of the model.
    names = [variable.path for variable in model.trainable_variables]
    params = {variable.path: variable.value for variable in model.trainable_variables}
    buffers = [variable.value for variable in model.non_trainable_variables]
    decay = {name: 0.05 if name.endswith("kernel") else 0.0 for name in names}
    tx = funcopt.chain(
        funcopt.clip_by_global_norm(1.0), funcopt.nadam(schedule, weight_decay=decay, decoupled_weight_decay=True)
    )
    state = tx.init(params)

    @jax.jit
    def step(params: dict, buffers: list, state: optax.OptState, x: jax.Array, y: jax.Array) -> tuple:
        def loss_of(params: dict) -> tuple[jax.Array, list]:
            logits, moved = model.stateless_call([params[name] for name in names], buffers, x, training=True)
            return optax.softmax_cross_entropy_with_integer_labels(logits, y).mean(), moved

        (loss, buffers), grads = jax.value_and_grad(loss_of, has_aux=True)(params)
        return *funcopt.step(tx, grads, state, params), buffers, loss

    losses = []
    for epoch in tqdm(range(EPOCHS), unit="epoch"):
        for x, y in data.batches(epoch):
            params, state, buffers, loss = step(params, buffers, state, x, y)
            losses.append(loss)
    for variable in model.trainable_variables:
        variable.assign(params[variable.path])
    for variable, value in zip(model.non_trainable_variables, buffers, strict=True):
        variable.assign(value)
    logits = model.predict(data.test_x, verbose=0)
    print(f"keras: loss {np.mean(losses[-per_epoch:]):.4f}, test accuracy {data.accuracy(logits):.4f}")


if __name__ == "__main__":
    main()
