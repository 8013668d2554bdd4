"""Newton and Schulz's iteration: a matrix with its singular values brought to about 1, by matrix products alone.

    x = u / max(|u|, eps)                                                  |u|: the root of the sum of squares
    x = a * x + (b * (x x^T) + c * (x x^T)^2) x                            ns_steps times
    x = u / (1.02 * |u| + eps)                                             the start of "polar_express"

What orthogonalises has it from here: the iteration, how an array with more than two dimensions is a matrix, and the
factors by which the result is multiplied.
"""

import math
from collections.abc import Sequence
from typing import Annotated, Any, TypeAlias

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import NamedSharding, PartitionSpec, reshard

from funcopt import _checks
from funcopt._numerics import lerp, root
from funcopt._tree import is_static, refuse_unless_real, typed_sharding
from funcopt.kinds import Hyperparameter, Kind, choice, integer

JORDAN = (3.4445, -4.7750, 2.0315)
"""Jordan's coefficients, whose slope at 0 is the largest: the singular values end between 0.7 and 1.2."""

_POLAR_EXPRESS = (
    (8.156554524902461, -22.48329292557795, 15.878769915207462),
    (4.042929935166739, -2.808917465908714, 0.5000178451051316),
    (3.8916678022926607, -2.772484153217685, 0.5060648178503393),
    (3.285753657755655, -2.3681294933425376, 0.46449024233003106),
    (2.3465413258596377, -1.7097828382687081, 0.42323551169305323),
)  # Amsel et al., 2025: the best polynomial of each iteration


def _check_coefficients(owner: str, argument: str, value: Any) -> None:
    is_leaf = lambda node: node is None or _checks.is_value(node, True)  # noqa: E731
    for path, own in jax.tree_util.tree_leaves_with_path(value, is_leaf=is_leaf):
        where = argument + jax.tree_util.keystr(path)
        if isinstance(own, str):
            _checks.check_choice(owner, where, own, ("polar_express",))
        else:
            several = len(own) // 3 if isinstance(own, tuple | list) else 1
            _checks.check_hyperparam(owner, where, own, (_checks.ANY_NUMBER,) * 3 * max(1, several))


Coefficients: TypeAlias = Annotated[
    Hyperparameter,
    Kind("'polar_express' | (a, b, c, ...)", _check_coefficients, scheduled=True, is_tuple=True),
]
Iterations: TypeAlias = Annotated[Hyperparameter, integer(_checks.BELOW_HUNDRED)]
Precision: TypeAlias = Annotated[Hyperparameter, choice("bfloat16", "full")]
Adjustment: TypeAlias = Annotated[Hyperparameter, choice("original", "match_rms_adamw", "spectral_unclamped")]


def newton_schulz(
    matrix: jax.Array,
    *,
    ns_coefficients: Any,
    eps: Any,
    ns_steps: int,
    ns_precision: str | None = None,
    add_eps: bool = False,
) -> jax.Array:
    """The matrix with its singular values brought to about 1.

    Args:
        matrix: of any size.
        ns_coefficients: a name, or a flat tuple of three coefficients for each iteration, the last three for all more.
        eps: smallest norm by which it is divided.
        ns_steps: iterations.
        ns_precision: "bfloat16" (or None), with float32 sums and rounded where torch's matrix products round; or
            "full", the matrix's own dtype.
        add_eps: whether `eps` is added to the norm instead, as "polar_express" has it in any case.

    Returns:
        The matrix, in bfloat16 or in its own dtype.
    """
    full = ns_precision == "full"
    wide = matrix.dtype if full else jnp.float32
    named = isinstance(ns_coefficients, str)
    triples = _POLAR_EXPRESS if named else [ns_coefficients[i : i + 3] for i in range(0, len(ns_coefficients), 3)]
    rows, columns = matrix.shape

    def rounded(x: jax.Array) -> jax.Array:
        # XLA drops a cast to bfloat16 and back, which it takes for excess precision; this it keeps.
        return x if full else lax.reduce_precision(x, exponent_bits=8, mantissa_bits=7).astype(jnp.bfloat16)

    def product(x: jax.Array, y: jax.Array) -> jax.Array:
        return jnp.matmul(x, y, precision=lax.Precision.HIGHEST if full else None, preferred_element_type=wide)

    def iterate(i: Any, x: jax.Array) -> jax.Array:
        a, b, c = _at(triples, i)
        gram = rounded(product(x, x.T))
        polynomial = rounded(b * gram.astype(wide) + c * product(gram, gram))
        return rounded(a * x.astype(wide) + product(polynomial, x))

    x = rounded(matrix.T if rows > columns else matrix).astype(wide)
    norm = rounded(root(jnp.sum(x * x))).astype(wide)
    x = rounded(x / (1.02 * norm + eps if named else norm + eps if add_eps else jnp.maximum(norm, eps)))
    x = lax.fori_loop(0, ns_steps if is_static(ns_steps) else jnp.asarray(ns_steps, jnp.int32), iterate, x)
    return x.T if rows > columns else x


def _at(triples: Sequence[Any], i: Any) -> Sequence[Any]:
    """The coefficients of an iteration; the last ones of all that are beyond."""
    found = triples[-1]
    for k, own in reversed(list(enumerate(triples[:-1]))):
        found = [jnp.where(i <= k, x, y) for x, y in zip(own, found, strict=True)]
    return found


def as_matrix(x: jax.Array, outputs_last: bool) -> jax.Array:
    """An array as a matrix, whole on every device: the outputs by all else."""
    # Where types say how it is divided, products of it would not say how theirs is.
    divided = typed_sharding(x)
    x = x if divided is None else reshard(x, NamedSharding(divided.mesh, PartitionSpec()))
    return x.reshape(-1, x.shape[-1]).T if outputs_last else x.reshape(x.shape[0], -1)


def as_array(matrix: jax.Array, like: jax.Array, outputs_last: bool) -> jax.Array:
    """The inverse of `as_matrix`: with an array's shape, dtype and sharding."""
    x = (matrix.T if outputs_last else matrix).reshape(like.shape).astype(like.dtype)
    divided = typed_sharding(like)
    return x if divided is None else reshard(x, divided)


def orthogonalized(u: jax.Array, outputs_last: bool, **iteration: Any) -> jax.Array:
    """`newton_schulz` of an array as a matrix."""
    return as_array(newton_schulz(as_matrix(u, outputs_last), **iteration), u, outputs_last)


def averaged(g: jax.Array, buffer: jax.Array, momentum: Any, nesterov: bool = True) -> tuple[jax.Array, jax.Array]:
    """What is orthogonalised, and the momentum buffer, after a gradient."""
    buffer = lerp(buffer, g, 1 - momentum)
    return (lerp(g, buffer, momentum) if nesterov else buffer), buffer


def matrix_shape(shape: Sequence[int], outputs_last: bool) -> tuple[int, int]:
    """The shape of `as_matrix`."""
    *others, outputs = (shape if outputs_last else shape[::-1]) or (1,)
    return outputs, math.prod(others)


def adjustment(name: str | None, shape: Sequence[int], outputs_last: bool) -> float:
    """The factor of torch's name for an array's shape, whose outputs are its rows."""
    rows, columns = matrix_shape(shape, outputs_last)
    match name:
        case "match_rms_adamw":
            return 0.2 * max(rows, columns) ** 0.5
        case "spectral_unclamped":
            return (rows / columns) ** 0.5
    return max(1.0, rows / columns) ** 0.5


def refuse_unless_matrix(param: Any) -> str:
    """What a parameter must be that can be no matrix; "" for the others."""
    if jnp.ndim(param) < 2:
        return (
            f"a matrix, got shape {jnp.shape(param)}; give it another algorithm with funcopt.partition, "
            "or in torch an optimizer of its own"
        )
    return refuse_unless_real(param)
