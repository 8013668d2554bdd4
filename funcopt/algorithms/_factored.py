"""A second moment of an array, kept as its means along two of its axes (Shazeer and Stern, 2018).

    R = lerp(R, mean of g * g along the columns, w)
    C = lerp(C, mean of g * g along the rows, w)
    V = R * C / mean of R

Both means have one element along the axis that is averaged, and all other axes of the array. The references of some
algorithms keep them without that axis, of the last two axes.
"""

from typing import TypeAlias

import jax
import jax.numpy as jnp

from funcopt._numerics import lerp, zeros_along

Axes: TypeAlias = tuple[int, int]  # along the rows, along the columns
Means: TypeAlias = tuple[jax.Array, jax.Array]


def no_means(param: jax.Array, axes: Axes = (-2, -1)) -> Means:
    """The means at the start, 0."""
    rows, columns = axes
    return zeros_along(param, columns), zeros_along(param, rows)


def moved_means(means: Means, square: jax.Array, weight: jax.Array, axes: Axes = (-2, -1)) -> Means:
    """The means after squares that enter with a weight."""
    (r, c), (rows, columns) = means, axes
    new_r, new_c = (jnp.mean(square, axis=axis, keepdims=True) for axis in (columns, rows))
    return lerp(r, new_r, weight), lerp(c, new_c, weight)


def over_root(x: jax.Array, means: Means, axes: Axes = (-2, -1)) -> jax.Array:
    """An array divided by the root of the moment."""
    r, c = means
    return x / jnp.sqrt(r / jnp.mean(r, axis=axes[0], keepdims=True)) / jnp.sqrt(c)


def squeezed(means: Means) -> Means:
    """The means of the last two axes without the axes that they were averaged along."""
    r, c = means
    return jnp.squeeze(r, -1), jnp.squeeze(c, -2)


def expanded(means: Means) -> Means:
    """The same as `squeezed` was given."""
    r, c = means
    return jnp.expand_dims(r, -1), jnp.expand_dims(c, -2)
