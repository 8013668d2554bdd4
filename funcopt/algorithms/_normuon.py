"""NorMuon: Muon, whose orthogonalised momentum is divided by each output's second moment (Li et al., 2025).

    buf = lerp(buf, g, 1 - momentum)
    O   = newton_schulz(lerp(g, buf, momentum))                            as in `muon`
    v   = lerp(v, mean(O^2 of each row), 1 - beta2)                        one number for each output, not corrected
    N   = O / (sqrt(v) + 1e-10)
    N   = N * |O| / (|N| + 1e-10)                                          the norm as before
    p   = p - lr * (sqrt(max(1, rows / columns)) * N + weight_decay * p)

A kernel is the matrix of its outputs by all else throughout; the authors' code takes the means over a kernel's last
dimension alone, and the norms of each of its planes. microsoft/dion's and modded-nanogpt's versions look ahead, scale
and decay in other ways.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from funcopt._numerics import lerp, root, zeros_along
from funcopt.algorithms._newton_schulz import (
    JORDAN,
    Coefficients,
    Iterations,
    Precision,
    adjustment,
    averaged,
    orthogonalized,
    refuse_unless_matrix,
)
from funcopt.frame import descend
from funcopt.kinds import Flag, NonNegative, Unit
from funcopt.rule import Keys, Rule, direction, transformation


class NormuonState(NamedTuple):
    momentum_buffer: Any  # tree like the parameters
    second_momentum_buffer: Any  # tree like the parameters, with one element along all axes but the outputs'


@transformation(elementwise=False, refuse_param=refuse_unless_matrix, keys=Keys(torch_class="NorMuon"))
def normuon(
    lr: NonNegative = 0.02,
    weight_decay: NonNegative = 0.0,
    momentum: NonNegative = 0.95,
    beta2: Unit = 0.95,
    *,
    ns_coefficients: Coefficients = JORDAN,
    ns_steps: Iterations = 5,
    ns_precision: Precision = None,
    outputs_last: Flag = False,
) -> Rule:
    """The authors' `NorMuon`, for the matrices of hidden layers, and for kernels.

    Args:
        lr: learning rate, >= 0.
        weight_decay: decoupled decay of the parameters, by `lr * weight_decay`, >= 0.
        momentum: decay rate of the momentum buffer, >= 0.
        beta2: decay rate of the outputs' second moments, in [0, 1].
        ns_coefficients: of the iteration, see `muon`, as for all that follows.
        ns_steps: iterations.
        ns_precision: of the iteration.
        outputs_last: flag: as flax has them.

    Returns:
        The optimizer; state keys `momentum_buffer`, `second_momentum_buffer`.

    Example:
        >>> import funcopt
        >>> parts = {"hidden": funcopt.normuon(lr=0.02, outputs_last=True), "rest": funcopt.adamw(lr=3e-4)}
        >>> tx = funcopt.partition(parts, {"embed": "rest", "layers": "hidden", "head": "rest"})
    """
    iteration = {"ns_coefficients": ns_coefficients, "ns_steps": ns_steps, "ns_precision": ns_precision}

    def of_each_output(x: jax.Array) -> tuple[int, ...]:
        """The axes that are one output's."""
        return tuple(range(x.ndim - 1) if outputs_last else range(1, x.ndim))

    def init(p: jax.Array) -> NormuonState:
        return NormuonState(jnp.zeros_like(p), functools.reduce(zeros_along, of_each_output(p), p))

    def update(g: jax.Array, s: NormuonState) -> tuple[jax.Array, NormuonState]:
        u, buffer = averaged(g, s.momentum_buffer, momentum)
        u = orthogonalized(u, outputs_last, eps=1e-7, add_eps=True, **iteration)
        means = jnp.mean(u * u, axis=of_each_output(u), keepdims=True)
        v = lerp(s.second_momentum_buffer, means, 1 - beta2)
        normed = u / (root(v) + 1e-10)
        normed = normed * (_norm(u) / (_norm(normed) + 1e-10))
        return adjustment(None, g.shape, outputs_last) * normed, NormuonState(buffer, v)

    return descend(Rule(update, init), lr, weight_decay=weight_decay, decoupled=True)


def _norm(x: jax.Array) -> jax.Array:
    return root(jnp.sum(x * x))


scale_by_normuon = direction(
    "scale_by_normuon", normuon, "Orthogonalises and normalises as `normuon` does, without decay and learning rate."
)
