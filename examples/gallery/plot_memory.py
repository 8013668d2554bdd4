"""Memory of recipes
====================

An optimizer's state can take more memory than the model. ``funcopt.memory`` counts it by state key, without computing
or allocating anything: the shapes of the parameters are enough, so the model may be larger than this machine.
"""

import jax
import jax.numpy as jnp

import funcopt
from funcopt import plot

# %%
# A transformer of 1.2 billion parameters, as shapes:


def shapes(width=2048, layers=24, vocabulary=32_000, dtype=jnp.float32):
    def make(*size):
        return jax.ShapeDtypeStruct(size, dtype)

    block = {
        "attention": make(width, 4 * width),
        "mlp_in": make(width, 4 * width),
        "mlp_out": make(4 * width, width),
        "norm": make(width),
    }
    return {"embed": make(vocabulary, width), "blocks": [block] * layers}


params = shapes()
print(funcopt.memory(funcopt.adamw(1e-3), params))

# %%
# Algorithms
# ----------
#
# From two averages to none: Adafactor and CAME keep sums of rows and columns, GaLore's averages lie in a subspace, and
# SOAP has two square matrices for each one.

names = ("sgd", "adafactor", "galore", "lion", "adam_mini", "came", "adamw", "ademamix", "soap")
algorithms = funcopt.algorithms()
own = {name: funcopt.memory(algorithms[name].factory(), params) for name in names}
by_algorithm = plot.memory(own)

for name, found in sorted(own.items(), key=lambda item: item[1].bytes):
    print(f"{name:10} {found.bytes_per_element:7.3f} bytes per parameter, {found.bytes / 2**30:6.2f} GiB")

# %%
# Recipes
# -------
#
# Parts of a chain add up, and state is as wide as the parameters: in bfloat16 it takes half.

half = shapes(dtype=jnp.bfloat16)
averaged = funcopt.chain(funcopt.adamw(1e-3), funcopt.params_ema(0.999))
compensated = funcopt.chain(funcopt.adamw(1e-3), funcopt.kahan_sum())
recipes = {
    "adamw": funcopt.memory(funcopt.adamw(1e-3), params),
    "adamw, average": funcopt.memory(averaged, params),
    "lookahead(adamw)": funcopt.memory(funcopt.lookahead(funcopt.adamw(1e-3)), params),
    "adamw, bfloat16": funcopt.memory(funcopt.adamw(1e-3), half),
    "adamw, kahan_sum, bfloat16": funcopt.memory(compensated, half),
}
by_recipe = plot.memory(recipes)
