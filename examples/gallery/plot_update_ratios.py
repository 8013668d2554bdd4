"""Update-to-weight ratios
==========================

How large is an update, compared with the weights that it changes? A ratio around 1e-3 is a usual sign of a healthy
learning rate: far above, and layers are thrown about; far below, and they hardly learn. ``funcopt.with_metrics`` goes
around a recipe and measures its updates in the same program.
"""

import jax
import jax.numpy as jnp
import numpy as np
from sklearn.datasets import load_digits

import funcopt
from funcopt import plot

rng = np.random.default_rng(0)
images, labels = load_digits(return_X_y=True)
images = (images / 16).astype(np.float32)
batches = rng.integers(len(images), size=(200, 64))


def make_params():
    sizes = {"first": (64, 64), "second": (64, 64), "head": (64, 10)}
    generator = np.random.default_rng(1)
    return {name: jnp.asarray(generator.normal(size=size) / 8, jnp.float32) for name, size in sizes.items()}


def loss_of(params, x, y):
    hidden = jnp.tanh(jnp.tanh(x @ params["first"]) @ params["second"])
    logits = jax.nn.log_softmax(hidden @ params["head"])
    return -jnp.take_along_axis(logits, y[:, None], 1).mean()


def train(tx):
    """The metrics of each update, and the last loss."""

    @jax.jit
    def step(params, state, x, y):
        loss, grads = jax.value_and_grad(loss_of)(params, x, y)
        params, state = funcopt.step(tx, grads, state, params)
        return params, state, loss

    params = make_params()
    state = tx.init(params)
    history, loss = [], jnp.nan
    for rows in batches:
        params, state, loss = step(params, state, images[rows], labels[rows])
        history.append(funcopt.metrics(state))
    return history, float(loss)


# %%
# A learning rate that is too large, and one with a warm-up
# ---------------------------------------------------------
#
# The dotted line is at 1e-3. A group is what stands at the top of the parameters' tree.

constant, loss = train(funcopt.with_metrics(funcopt.adamw(3e-2)))
print(f"constant 3e-2: last loss {loss:.4f}, first ratio of the head {float(constant[0]['update_ratio']['head']):.1e}")
too_large = plot.update_ratios(constant)

# %%
# The first updates of Adam are as long as the learning rate, in each element. A warm-up keeps them small, and cosine
# lets them fade.

schedule = funcopt.schedules.warmup_cosine(3e-3, warmup_steps=20, total_steps=200)
recipe = funcopt.chain(funcopt.clip_by_global_norm(0.5), funcopt.adamw(schedule))
warmed, loss = train(funcopt.with_metrics(recipe))
print(f"warm-up to 3e-3: last loss {loss:.4f}")
warmed_up = plot.update_ratios(warmed)

# %%
# The other metrics
# -----------------
#
# Gradient norms before clipping, and what clipping took away:

for at in (0, 20, 100, 199):
    found = warmed[at]
    print(
        f"step {at:3}: gradient {float(found['grad_norm']):.3f}, clipped away {float(found['clipped_fraction']):.0%}, "
        f"lr {float(found['lr']['head']):.1e}"
    )
norms = plot.curves(
    {"gradient norm": [float(found["grad_norm"]) for found in warmed]}, label="gradient norm", log=False
)
