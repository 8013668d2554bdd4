"""A sharded state
==================

State is made like the parameters: where a parameter is divided over the devices of a mesh, so are its averages, and
nobody has to say so. This needs no accelerators: JAX makes several devices out of one CPU.
"""

import contextlib
import re

import jax
import jax.numpy as jnp
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as Spec

import funcopt
from funcopt import plot

with contextlib.suppress(RuntimeError):  # JAX is at work already, with the devices that it has
    jax.config.update("jax_num_cpu_devices", 8)

# %%
# Eight devices as a mesh of four by two: rows of a matrix go over ``data``, as in FSDP, columns over ``model``, as in
# tensor parallelism.

mesh = jax.make_mesh((4, 2), ("data", "model"), axis_types=(AxisType.Explicit,) * 2)
layout = {
    "embed": Spec("data", None),
    "up": Spec("data", "model"),
    "down": Spec("model", "data"),
    "bias": Spec("model"),
}
shapes = {"embed": (64, 16), "up": (16, 64), "down": (64, 16), "bias": (64,)}
params = {name: jax.device_put(jnp.ones(shapes[name]), NamedSharding(mesh, spec)) for name, spec in layout.items()}
parameters = plot.sharding(params)

# %%
# The state
# ---------
#
# The numbers are those of the devices that hold a part.

tx = funcopt.chain(funcopt.clip_by_global_norm(1.0), funcopt.adamw(1e-3), funcopt.params_ema(0.99))
state = tx.init(params)
averages = plot.sharding({"exp_avg": state[1].exp_avg, "exp_avg_sq": state[1].exp_avg_sq})


# %%
# An update
# ---------
#
# Everything stays where it is. Of this recipe, only the norm that it clips by crosses devices: a number for each way
# in which parameters are divided.


@jax.jit
def step(params, state):
    grads = jax.tree.map(lambda p: 0.1 * p, params)
    return funcopt.step(tx, grads, state, params)


params, state = step(params, state)
for name, p in params.items():
    moved = state[1].exp_avg[name].sharding.is_equivalent_to(p.sharding, p.ndim)
    print(f"{name:6} {p.sharding.spec!s:36} its average lies the same way: {moved}")
program = step.lower(params, state).compile().as_text()
print("what crosses devices:", re.findall(r"all-reduce\S* = (.+?) all-reduce\(", program))

# %%
# What Adafactor keeps of a matrix is a column and a row, each divided as that axis of the matrix is.

factored = funcopt.adafactor(1e-2).init(params)
rows_and_columns = plot.sharding({"row_var": factored.row_var, "col_var": factored.col_var})
