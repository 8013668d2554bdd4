"""Paths over two test surfaces
===============================

Two functions of two numbers, on which optimizers show their habits. Rosenbrock's function has a curved valley with an
almost flat floor; Beale's has steep walls around a plain. A transformation is a pair of pure functions, so a path is a
``jax.lax.scan`` over it: ``funcopt.plot.paths`` does that for each optimizer and draws where it went.
"""

import jax.numpy as jnp
import numpy as np

import funcopt
from funcopt import plot


def rosenbrock(x, y):
    return (1 - x) ** 2 + 100 * (y - x**2) ** 2


def beale(x, y):
    return (1.5 - x + x * y) ** 2 + (2.25 - x + x * y**2) ** 2 + (2.625 - x + x * y**3) ** 2


# %%
# Into the valley
# ---------------
#
# All optimizers start at the same place and make 300 updates. The lowest point is at (1, 1).

optimizers = {
    "sgd, momentum": funcopt.sgd(1e-3, momentum=0.9),
    "adam": funcopt.adam(0.2),
    "rmsprop": funcopt.rmsprop(0.02),
    "adan": funcopt.adan(0.1),
    "lion": funcopt.lion(0.02),
}
valley = plot.paths(rosenbrock, optimizers, start=(-1.5, 2.0), steps=300, xlim=(-2, 2), ylim=(-1, 3))

# %%
# The lines of the figure are the paths, so what they reached can be read from it. Steps of a fixed length, such as
# Lion's, get to the floor of the valley at once, and then jump from wall to wall.


def print_ends(function, figure, names):
    for line in figure.axes[0].lines:
        if line.get_label() in names:
            x, y = np.asarray(line.get_data())[:, -1]
            print(f"{line.get_label():20} ends at ({x:5.2f}, {y:5.2f}), height {float(function(x, y)):.1e}")


print_ends(rosenbrock, valley, optimizers)

# %%
# Over the plain
# --------------
#
# From (3, 1.5) the walls are so steep that a plain gradient step would leave the picture; clipping is part of a chain.
# The lowest point is at (3, 0.5).

optimizers = {
    "clip, sgd, momentum": funcopt.chain(funcopt.clip_by_global_norm(1.0), funcopt.sgd(0.02, momentum=0.9)),
    "adam": funcopt.adam(0.05),
    "rmsprop": funcopt.rmsprop(0.01),
    "adan": funcopt.adan(0.03),
    "lion": funcopt.lion(0.005),
}
plain = plot.paths(beale, optimizers, start=(3.0, 1.5), steps=300, xlim=(0, 4.5), ylim=(-1, 2))
print_ends(beale, plain, optimizers)

# %%
# In motion
# ---------
#
# ``animated=True`` gives a ``FuncAnimation``, for a notebook or ``animation.save("paths.gif", writer="pillow")``.

animation = plot.paths(beale, optimizers, start=(3.0, 1.5), steps=100, xlim=(0, 4.5), ylim=(-1, 2), animated=True)

# %%
# A surface is any function of ``jax.numpy``'s operations: here a bowl with ripples, in which small steps get caught.


def ripples(x, y):
    return x**2 + y**2 + 1.5 * jnp.sin(3 * x) ** 2 + 1.5 * jnp.sin(3 * y) ** 2


caught = plot.paths(
    ripples, {"small steps": funcopt.adam(0.03), "large steps": funcopt.adam(0.4)}, start=(2.4, 1.7), steps=200
)
