"""Gradients of some rows only, such as an embedding's: `RowSparse` takes the place of a dense leaf in the updates.

A transformation that treats each element alone, and leaves the rows without a gradient as they are, runs on the given
rows of gradient, state and parameter. Its cost is that of the rows, whatever the size of the table.
"""

from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

ABSENT = int(np.iinfo(np.int32).max)
"""The index of a row that is only there to fill a fixed size: it lies outside of every table, and is dropped."""


class RowSparse(NamedTuple):
    """Values for some rows of an array; rows that occur several times add up, as in a sparse tensor of torch.

    Args:
        indices: integers (n,), rows of the parameter; those at or beyond its end are ignored, so that a batch with
            fewer rows can be padded to a size that is compiled already.
        values: (n, *shape of a row).

    Example:
        >>> import jax.numpy as jnp
        >>> import funcopt
        >>> grads = {"table": funcopt.RowSparse(jnp.array([2, 0]), jnp.ones((2, 3)))}
        >>> tx = funcopt.sparse_adam(1e-2)
        >>> updates, state = tx.update(grads, tx.init({"table": jnp.zeros((4, 3))}))
    """

    indices: jax.Array  # integer (n,)
    values: jax.Array  # (n, *row)


Handling = Literal["rows", "dense", "refuse"]
"""What a transformation does with a `RowSparse` update: run on the rows, make it dense first, or refuse it."""


def is_rows(node: object) -> bool:
    return isinstance(node, RowSparse)


def coalesce(update: RowSparse) -> RowSparse:
    """The same with each row once, in increasing order, and fillers at the end; the size stays."""
    indices, inverse = jnp.unique(update.indices, return_inverse=True, size=update.indices.shape[0], fill_value=ABSENT)
    return RowSparse(indices, jnp.zeros_like(update.values).at[inverse.reshape(-1)].add(update.values))


def take_rows(array: Any, indices: jax.Array) -> Any:
    """The given rows of an array; of a `RowSparse`, whose rows must be those; nothing of nothing."""
    if array is None:
        return None
    if isinstance(array, RowSparse):
        return array.values
    return jnp.asarray(array).at[indices].get(mode="fill", fill_value=0)


def put_rows(array: Any, indices: jax.Array, rows: Any) -> Any:
    """An array with the given rows replaced; nothing stays nothing."""
    return None if array is None else array.at[indices].set(rows, mode="drop")


def to_dense(update: RowSparse, like: jax.Array) -> jax.Array:
    """The update as an array of the shape of `like`."""
    dense = jnp.zeros(like.shape, update.values.dtype)
    return dense.at[update.indices].add(update.values, mode="drop")


def add_rows(param: Any, update: Any) -> Any:
    """`param + update` where the update has rows only; a parameter that is given as these rows stays so."""
    if isinstance(param, RowSparse):
        return RowSparse(param.indices, (param.values + update.values).astype(param.values.dtype))
    rows = take_rows(param, update.indices)
    return put_rows(param, update.indices, (rows + update.values).astype(rows.dtype))
