"""One recipe in two frameworks
===============================

A network is trained on handwritten digits twice: in a jit-compiled JAX loop, and in PyTorch with ``TorchBridge``. Both
use the same recipe, start from the same weights and see the same batches. What differs is who computes the gradients.
"""

import jax
import jax.numpy as jnp
import numpy as np
import torch
from sklearn.datasets import load_digits

import funcopt
from funcopt import plot

STEPS, BATCH, HIDDEN = 300, 64, 64


def recipe(lr, weight_decay):
    return funcopt.chain(funcopt.clip_by_global_norm(1.0), funcopt.adamw(lr, weight_decay=weight_decay))


schedule = funcopt.schedules.warmup_cosine(1e-2, warmup_steps=30, total_steps=STEPS)

rng = np.random.default_rng(0)
images, labels = load_digits(return_X_y=True)
images = (images / 16).astype(np.float32)
start = {
    "hidden": rng.normal(size=(64, HIDDEN)).astype(np.float32) / 8,
    "output": rng.normal(size=(HIDDEN, 10)).astype(np.float32) / 8,
}
batches = rng.integers(len(images), size=(STEPS, BATCH))

# %%
# In JAX
# ------

tx = recipe(schedule, weight_decay=0.05)


def loss_of(params, x, y):
    logits = jax.nn.log_softmax(jnp.tanh(x @ params["hidden"]) @ params["output"])
    return -jnp.take_along_axis(logits, y[:, None], 1).mean()


@jax.jit
def step(params, state, x, y):
    loss, grads = jax.value_and_grad(loss_of)(params, x, y)
    params, state = funcopt.step(tx, grads, state, params)
    return params, state, loss


params = jax.tree.map(jnp.asarray, start)
state = tx.init(params)
in_jax = []
for rows in batches:
    params, state, loss = step(params, state, images[rows], labels[rows])
    in_jax.append(float(loss))

# %%
# In PyTorch
# ----------
#
# The bridge takes the recipe itself, and makes its arguments the hyperparameters of the parameter groups.

weights = {name: torch.nn.Parameter(torch.tensor(value)) for name, value in start.items()}
optimizer = funcopt.TorchBridge(weights.values(), recipe, lr=schedule, weight_decay=0.05)
x, y = torch.tensor(images), torch.tensor(labels)
in_torch = []
for rows in batches:
    logits = torch.tanh(x[rows] @ weights["hidden"]) @ weights["output"]
    loss = torch.nn.functional.cross_entropy(logits, y[rows])
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    in_torch.append(loss.item())

# %%
# On top of each other
# --------------------
#
# The curves cannot be told apart: the wide line is JAX's, the thin one in it is torch's.

both = plot.curves({"jax": in_jax, "torch": in_torch}, label="training loss")

apart = max(float(np.abs(params[name] - w.detach().numpy()).max()) for name, w in weights.items())
print(f"loss after {STEPS} steps: {in_jax[-1]:.6f} in JAX, {in_torch[-1]:.6f} in torch")
print(f"largest difference between weights: {apart:.1e}")

# %%
# What is left are roundings of float32: the two frameworks add the terms of a matrix product in another order.

gaps = np.abs(np.array(in_jax) - np.array(in_torch))
difference = plot.curves({"|jax - torch|": gaps}, label="difference of the losses", log=False)
