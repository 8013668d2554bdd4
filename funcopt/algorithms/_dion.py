"""Dion: orthonormal updates of low rank by one power iteration (Ahn et al., 2025, algorithm 1), for matrices.

    m = m + g                                                              not decayed as a whole
    P = qr(m Q)                                                            orthonormal columns, as many as the rank
    R = m^T P
    m = m - (1 - mu) * P R^T                                               error feedback: what is taken decays
    Q = R / (norm of each column + epsilon)
    p = p - lr * (sqrt(rows / columns) * P Q^T + weight_decay * p)

Q starts as normal random numbers from `seed`, of bfloat16's digits: the same for all arrays of a shape, whatever their
order, dtypes and devices. microsoft/dion draws from torch's generator, and decomposes in float32 also where parameters
are wider.
"""

from typing import Annotated, Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
from jax import lax

from funcopt import _checks
from funcopt._numerics import root, zeros_along
from funcopt._tree import is_static
from funcopt.algorithms._newton_schulz import as_array, as_matrix, matrix_shape, refuse_unless_matrix
from funcopt.frame import descend
from funcopt.kinds import Flag, Hyperparameter, NonNegative, integer
from funcopt.rule import Keys, Rule, direction, transformation

Rank: TypeAlias = Annotated[Hyperparameter, integer(_checks.AT_LEAST_ONE)]
Seed: TypeAlias = Annotated[Hyperparameter, integer(_checks.NON_NEGATIVE)]


class DionState(NamedTuple):
    momentum: Any  # tree like the parameters
    Q: Any  # tree of (columns, rank), where an array has no more columns or rows than the rank its lesser size


@transformation(elementwise=False, refuse_param=refuse_unless_matrix, keys=Keys(torch_class="Dion"))
def dion(
    lr: NonNegative = 0.01,
    mu: NonNegative = 0.95,
    weight_decay: NonNegative = 0.01,
    rank: Rank = 768,
    epsilon: NonNegative = 1e-8,
    *,
    seed: Seed = 0,
    outputs_last: Flag = False,
) -> Rule:
    """microsoft/dion's `Dion`, for the matrices of hidden layers, and for kernels.

    Args:
        lr: learning rate, >= 0.
        mu: decay rate of what an update takes of the momentum, >= 0.
        weight_decay: decoupled decay of the parameters, by `lr * weight_decay`, >= 0.
        rank: largest rank of an update, an integer or a prefix of integers, >= 1.
        epsilon: added to the norms of Q's columns, >= 0.
        seed: of the first Q, an integer or a prefix of integers, >= 0.
        outputs_last: flag: whether a layer's outputs, whose number is `rows`, are the last axis, as of flax's kernels,
            and not the first one, as of torch's weights. An array with more dimensions is the matrix of its outputs by
            all else.

    Returns:
        The optimizer; state keys `momentum`, `Q`. Its `init` raises ValueError for parameters that are not real, or
        have less than two dimensions.

    Example:
        >>> import funcopt
        >>> parts = {"hidden": funcopt.dion(lr=0.01, rank=64), "rest": funcopt.adamw(lr=3e-4)}
        >>> tx = funcopt.partition(parts, {"embed": "rest", "layers": "hidden", "head": "rest"})
    """

    def init(p: jax.Array) -> DionState:
        rows, columns = matrix_shape(p.shape, outputs_last)
        key = jax.random.key(seed if is_static(seed) else jnp.asarray(seed, jnp.uint32))
        first = jax.random.normal(key, (columns, min(rank, rows, columns)), jnp.float32)
        # In bfloat16's digits, of which devices that compute the normal distribution differently have the same.
        first = lax.reduce_precision(first, exponent_bits=8, mantissa_bits=7)
        # Divided over devices as the parameter is along its other axes.
        beside = as_matrix(zeros_along(p, -1 if outputs_last else 0), outputs_last).T
        return DionState(jnp.zeros_like(p), first.astype(p.dtype) + beside)

    def update(g: jax.Array, s: DionState) -> tuple[jax.Array, DionState]:
        m = as_matrix(s.momentum + g, outputs_last)
        p, _ = jnp.linalg.qr(_product(m, s.Q))
        r = _product(m.T, p)
        m = m - (1 - mu) * _product(p, r.T)
        q = r / (root(jnp.sum(r * r, axis=0, keepdims=True)) + epsilon)
        rows, columns = m.shape
        u = as_array((rows / columns) ** 0.5 * _product(p, q.T), g, outputs_last)
        return u, DionState(as_array(m, g, outputs_last), q)

    return descend(Rule(update, init), lr, weight_decay=weight_decay, decoupled=True)


def _product(x: jax.Array, y: jax.Array) -> jax.Array:
    return jnp.matmul(x, y, precision=lax.Precision.HIGHEST)


scale_by_dion = direction("scale_by_dion", dion, "`dion`'s updates, without decay and learning rate.")
