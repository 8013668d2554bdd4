"""Small updates in bfloat16
============================

bfloat16 has 8 significant bits: next to 1 the closest number is 1.0078. An update that is smaller than half of that
distance is rounded away, at every step, and the weights stand still. Two parts of a chain mend that: ``kahan_sum``
keeps what was rounded away and adds it to the next update, and ``stochastic_rounding`` rounds up or down by chance, so
that the mean is right.
"""

import jax
import jax.numpy as jnp
import numpy as np

import funcopt
from funcopt import plot

# %%
# One weight
# ----------
#
# 300 updates of -0.001 each should bring 1.0 to 0.7. By chance a single weight is a little ahead or behind; over many
# weights that evens out.


def fall(*parts):
    tx = funcopt.chain(funcopt.sgd(1e-3), *parts)
    one = jnp.ones((), jnp.bfloat16)

    def advance(carry, _):
        weight, state = funcopt.step(tx, one, carry[1], carry[0])
        return (weight, state), weight

    _, way = jax.lax.scan(advance, (one, tx.init(one)), length=300)
    return [1.0, *np.asarray(way, np.float32).tolist()]


ways = {
    "float32": list(1 - 1e-3 * np.arange(301)),
    "bfloat16": fall(),
    "kahan_sum": fall(funcopt.kahan_sum()),
    "stochastic_rounding": fall(funcopt.stochastic_rounding(seed=0)),
}
one_weight = plot.curves(ways, label="weight", log=False)
for name, way in ways.items():
    print(f"{name:20} {way[-1]:.4f}")

# %%
# A network
# ---------
#
# With a learning rate that is right in float32, a small network stops learning early in plain bfloat16. Both remedies
# bring it back, although Adam's averages are in bfloat16, too.

rng = np.random.default_rng(0)
inputs = rng.uniform(-2, 2, size=(256, 8)).astype(np.float32)
targets = np.sin(inputs @ rng.normal(size=(8, 1))).astype(np.float32)


def loss_of(params, x, y):
    hidden = jnp.tanh(x @ params["hidden"] + params["bias"])
    return jnp.mean((hidden @ params["output"] - y) ** 2)


def train(tx, dtype):
    """The loss of all data after each update, computed in float32 from the weights as they are stored."""
    generator = np.random.default_rng(1)
    values = {"hidden": generator.normal(size=(8, 32)), "bias": np.zeros(32), "output": generator.normal(size=(32, 1))}
    params = {name: jnp.asarray(value / 4, dtype) for name, value in values.items()}

    def update(carry, _):
        params, state = carry
        wide = jax.tree.map(lambda p: p.astype(jnp.float32), params)
        loss, grads = jax.value_and_grad(loss_of)(wide, inputs, targets)
        grads = jax.tree.map(lambda g, p: g.astype(p.dtype), grads, params)
        return funcopt.step(tx, grads, state, params), loss

    _, losses = jax.lax.scan(update, (params, tx.init(params)), length=1000)
    return np.asarray(losses)


def recipe(*parts):
    return funcopt.chain(funcopt.adamw(3e-4), *parts)


losses = {
    "float32": train(recipe(), jnp.float32),
    "bfloat16": train(recipe(), jnp.bfloat16),
    "kahan_sum": train(recipe(funcopt.kahan_sum()), jnp.bfloat16),
    "stochastic_rounding": train(recipe(funcopt.stochastic_rounding(seed=0)), jnp.bfloat16),
}
network = plot.curves(losses, label="loss")
for name, own in losses.items():
    print(f"{name:20} last loss {np.mean(own[-20:]):.4f}")

# %%
# What each costs: ``kahan_sum`` two bytes per parameter; ``stochastic_rounding`` a count, and random bits at each step.

for name, tx in {"kahan_sum": recipe(funcopt.kahan_sum()), "stochastic": recipe(funcopt.stochastic_rounding())}.items():
    print(f"{name:12} {funcopt.memory(tx, {'w': jnp.ones((512, 512), jnp.bfloat16)}).bytes_per_element:.3g} bytes")
