"""Muon: momentum orthogonalised by Newton and Schulz's iteration (Jordan et al., 2024), for matrices.

    buf = lerp(buf, g, 1 - momentum)
    u   = lerp(g, buf, momentum)   if nesterov else   buf
    O   = newton_schulz(u)                                                 all singular values to about 1, in bfloat16
    k   = sqrt(max(1, rows / columns))   or   0.2 * sqrt(max(rows, columns))
    p   = p - lr * (k * O + weight_decay * p)

As in torch the iteration is in bfloat16 with float32 sums, rounded where torch's matrix products round: O agrees with
torch's to bfloat16's resolution, and not to the last digit, since the order of a sum of products is the device's.
torch's momentum buffer is normalised in place by mistake where it is bfloat16 and nesterov is False; this one is not.
optax's muon iterates in the parameters' dtype and corrects the momentum's bias.
"""

from typing import Annotated, Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import NamedSharding, PartitionSpec, reshard

from funcopt import _checks
from funcopt._numerics import filled, lerp
from funcopt._tree import is_static, refuse_unless_real, typed_sharding
from funcopt.frame import descend
from funcopt.kinds import AnyNumber, Flag, Hyperparameter, NonNegative, choice, integer, number
from funcopt.rule import Rule, direction, transformation

Coefficients: TypeAlias = Annotated[Hyperparameter, number(*(_checks.ANY_NUMBER,) * 3)]
Iterations: TypeAlias = Annotated[Hyperparameter, integer(_checks.BELOW_HUNDRED)]
Adjustment: TypeAlias = Annotated[Hyperparameter, choice("original", "match_rms_adamw", "spectral_unclamped")]


class MuonState(NamedTuple):
    momentum_buffer: Any  # tree like the parameters


def newton_schulz(matrix: jax.Array, *, ns_coefficients: tuple[Any, Any, Any], eps: Any, ns_steps: int) -> jax.Array:
    """The matrix with its singular values brought to about 1, in float32 with bfloat16's digits."""
    a, b, c = ns_coefficients
    rows, columns = matrix.shape
    x = _round(matrix.T if rows > columns else matrix).astype(jnp.float32)
    x = _round(x / jnp.maximum(_round(jnp.sqrt(jnp.sum(x * x))), eps))

    def iterate(_: Any, x: jax.Array) -> jax.Array:
        gram = _round(_product(x, x.T))
        polynomial = _round(b * gram + c * _product(gram, gram))
        return _round(a * x + _product(polynomial, x))

    x = lax.fori_loop(0, ns_steps if is_static(ns_steps) else jnp.asarray(ns_steps, jnp.int32), iterate, x)
    return x.T if rows > columns else x


def _round(x: jax.Array) -> jax.Array:
    # XLA drops a cast to bfloat16 and back, which it takes for excess precision; this it keeps.
    return lax.reduce_precision(x, exponent_bits=8, mantissa_bits=7)


def _product(x: jax.Array, y: jax.Array) -> jax.Array:
    return jnp.matmul(x.astype(jnp.bfloat16), y.astype(jnp.bfloat16), preferred_element_type=jnp.float32)


def _refuse_unless_matrix(param: Any) -> str:
    if jnp.ndim(param) != 2:
        return f"a matrix, got shape {jnp.shape(param)}; give it another algorithm with funcopt.partition"
    return refuse_unless_real(param)


@transformation(elementwise=False, refuse_param=_refuse_unless_matrix)
def muon(
    lr: NonNegative = 1e-3,
    weight_decay: NonNegative = 0.1,
    momentum: NonNegative = 0.95,
    nesterov: Flag = True,
    ns_coefficients: Coefficients = (3.4445, -4.7750, 2.0315),
    eps: AnyNumber = 1e-7,
    ns_steps: Iterations = 5,
    adjust_lr_fn: Adjustment = None,
) -> Rule:
    """`torch.optim.Muon`, for the matrices of hidden layers.

    Args:
        lr: learning rate, >= 0.
        weight_decay: decoupled decay of the parameters, by `lr * weight_decay`, >= 0.
        momentum: decay rate of the momentum buffer, >= 0.
        nesterov: flag: look ahead by one update.
        ns_coefficients: coefficients of x, x**3 and x**5 in the iteration's polynomial.
        eps: smallest norm by which an update is divided before the iteration.
        ns_steps: iterations, an integer or a prefix of integers, < 100.
        adjust_lr_fn: name of the factor on the learning rate: "original" (or None), sqrt(max(1, rows / columns));
            "match_rms_adamw", 0.2 * sqrt(max(rows, columns)), which lets AdamW's lr and weight decay be used; or
            "spectral_unclamped", sqrt(rows / columns), which torch has since 2.14.

    Returns:
        The optimizer; state key `momentum_buffer`. Its `init` raises ValueError for parameters that are no real
        matrices.

    Example:
        >>> import funcopt
        >>> parts = {"hidden": funcopt.muon(lr=0.02), "rest": funcopt.adamw(lr=3e-4)}
        >>> tx = funcopt.partition(parts, {"embed": "rest", "layers": "hidden", "head": "rest"})
    """

    def init(p: jax.Array) -> MuonState:
        return MuonState(filled(p))

    def update(g: jax.Array, s: MuonState) -> tuple[jax.Array, MuonState]:
        buffer = lerp(s.momentum_buffer, g, 1 - momentum)
        u = lerp(g, buffer, momentum) if nesterov else buffer
        # Where types say how the matrix is divided, products of it would not say how theirs is.
        divided = typed_sharding(u)
        u = u if divided is None else reshard(u, NamedSharding(divided.mesh, PartitionSpec()))
        u = newton_schulz(u, ns_coefficients=ns_coefficients, eps=eps, ns_steps=ns_steps)
        u = u if divided is None else reshard(u, divided)
        return _adjustment(adjust_lr_fn, *g.shape) * u.astype(g.dtype), MuonState(buffer)

    return descend(Rule(update, init), lr, weight_decay=weight_decay, decoupled=True)


def _adjustment(name: str | None, rows: int, columns: int) -> float:
    match name:
        case "match_rms_adamw":
            return 0.2 * max(rows, columns) ** 0.5
        case "spectral_unclamped":
            return (rows / columns) ** 0.5
    return max(1.0, rows / columns) ** 0.5


scale_by_muon = direction(
    "scale_by_muon", muon, "Orthogonalises updates as `muon` does, without decay and learning rate."
)
