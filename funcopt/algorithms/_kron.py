"""PSGD Kron: a preconditioner of triangular factors fitted by gradient descent (Li, 2018; Pooladzandi and Li, 2024).

    m     = b1 * m + (1 - b1) * g
    h     = m / (1 - b1**t)
    where an update of the factors is due, with V standard normal:
        h     = h + sqrt(eps of float32) * mean(abs(h)) * V                the step below sees it, too
        A     = Q_1 x Q_2 h,   B = Q_1^-T x Q_2^-T V                       a factor along each axis
        X, Y  = A A^T, B B^T along axis i
        Q_i   = Q_i - precond_lr * triu(X - Y) / lower_bound(norm(X + Y)) Q_i
    u     = Q^T Q h along each axis                                        with the new factors
    u     = min(1, 1.1 / (rms(u) + 1e-12)) * u
    p     = p - lr * (u + weight_decay * p)                                no decay of vectors and numbers

Vectors, sides longer than max_size_triangular and sides of 1 have diagonal factors. Kernels are matrices: the axis that
is left alone is the last or the first one. Factors are updated once `1 / probability` updates have passed since they
were, as in kron-torch. V comes from a seed and the count, where kron-torch takes torch's generator; factors are brought
to a common size every 100 updates, there at random.
"""

import math
from typing import Annotated, Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from funcopt import _checks
from funcopt._numerics import bias_correction, normal, rms, undivided
from funcopt._tree import refuse_unless_real, weak
from funcopt.algorithms._apollo import Seed
from funcopt.algorithms._soap import outer_product
from funcopt.frame import descend
from funcopt.kinds import Flag, Hyperparameter, NonNegative, Positive, choice, integer, number
from funcopt.rule import Frame, Keys, Rule, asked_for, asking, direction, transformation

Probability: TypeAlias = Annotated[
    Hyperparameter, number(_checks.Range("None or in (0, 1]", lambda x: 0.0 < x <= 1.0, optional=True))
]
Decay: TypeAlias = Annotated[Hyperparameter, number(_checks.UNIT_HALF_OPEN)]
Length: TypeAlias = Annotated[Any, integer(_checks.NON_NEGATIVE)]
SaveMode: TypeAlias = Annotated[Any, choice("smart_one_diag", "one_diag", "all_diag")]
Factors: TypeAlias = tuple[jax.Array, ...]


class KronState(NamedTuple):
    step: Any  # int32 (), or a tree of them: applied updates so far
    momentum_buffer: Any  # tree of arrays in the shape that is preconditioned
    Q: Any  # tree of tuples for each axis of (n, n), upper triangular, or of (n,), diagonal
    update_counter: Any  # tree of int32 (): updates since the factors' last one


def precond_update_prob_schedule(count: Any) -> jax.Array:
    """kron-torch's default: 1 for 500 updates, then falling exponentially to 0.03, which it reaches at 4,007."""
    return jnp.clip(jnp.exp(-0.001 * (count - 500)), 0.03, 1.0)


def _merged(shape: tuple[int, ...], merge_dims: bool) -> tuple[int, ...]:
    """The shape that is preconditioned: a number's is a vector's, a kernel's a matrix's."""
    if not merge_dims or len(shape) < 3:
        return shape or (1,)
    last, first = (math.prod(shape[:-1]), shape[-1]), (shape[0], math.prod(shape[1:]))
    return last if last[1] - last[0] <= first[1] - first[0] else first


def _diagonal(shape: tuple[int, ...], mode: str | None, longest: int, min_ndim: int) -> list[bool]:
    """Which axes have a diagonal factor."""
    order = np.argsort(shape)[::-1]
    largest = int(order[0])
    one = mode == "one_diag"
    if mode == "smart_one_diag":
        one = len(shape) > 1 and shape[largest] > shape[int(order[1])]
    few = mode == "all_diag" or len(shape) < min_ndim
    return [few or n == 1 or n > longest or (one and i == largest) for i, n in enumerate(shape)]


def _along(x: jax.Array, factor: jax.Array, axis: int) -> jax.Array:
    """An array multiplied along an axis."""
    if factor.ndim == 1:
        return x * jnp.expand_dims(factor, [i for i in range(x.ndim) if i != axis])
    return jnp.moveaxis(jnp.tensordot(factor, x, ((1,), (axis,))), 0, axis)


def _divided(x: jax.Array, factor: jax.Array, axis: int) -> jax.Array:
    """An array multiplied along an axis with a factor's inverse, transposed."""
    if factor.ndim == 1:
        return x / jnp.expand_dims(factor, [i for i in range(x.ndim) if i != axis])
    rows = jnp.moveaxis(x, axis, -1)
    found = lax.linalg.triangular_solve(factor, rows.reshape(-1, rows.shape[-1]), left_side=False, lower=False)
    return jnp.moveaxis(found.reshape(rows.shape), -1, axis)


def _preconditioned(x: jax.Array, factors: Factors) -> jax.Array:
    for axis, factor in enumerate(factors):
        x = _along(_along(x, factor, axis), factor.T, axis)
    return x


def _balanced(factors: Factors) -> Factors:
    """Factors of the same product with the same largest element."""
    largest = [jnp.max(jnp.abs(factor)) for factor in factors]
    mean = jnp.exp(sum(map(jnp.log, largest)) / len(factors))
    return tuple(factor * (mean / own) for factor, own in zip(factors, largest, strict=True))


def _lower_bound(matrix: jax.Array, largest: jax.Array) -> jax.Array:
    """Of the spectral norm of a symmetric matrix, whose largest element is given."""
    matrix = matrix / largest
    row = jnp.take(matrix, jnp.argmax(jnp.sum(matrix * matrix, axis=0)), axis=0) @ matrix
    return jnp.sqrt(jnp.sum((matrix @ (row / jnp.sqrt(jnp.sum(row * row)))) ** 2)) * largest


def _fitted(factors: Factors, h: jax.Array, noise: jax.Array, precond_lr: Any) -> Factors:
    """Factors after one step towards those that whiten `h`."""
    a, b = h, noise
    for axis, factor in enumerate(factors):
        a, b = _along(a, factor, axis), _divided(b, factor, axis)
    tiny = float(jnp.finfo(h.dtype).tiny)
    new = []
    for axis, factor in enumerate(factors):
        others = [i for i in range(h.ndim) if i != axis]
        product = outer_product if factor.ndim == 2 else lambda x, _, others=others: jnp.sum(x * x, axis=others)
        x, y = product(a, axis), product(b, axis)
        largest = jnp.max(jnp.abs(x + y))
        if factor.ndim == 1:
            new.append(factor - precond_lr * (x - y) * (factor / jnp.maximum(largest, tiny)))
        else:
            bound = jnp.where(largest > 0, _lower_bound(x + y, largest), largest)
            new.append(factor - jnp.triu(precond_lr * (x - y)) / jnp.maximum(bound, tiny) @ factor)
    return tuple(new)


@transformation(elementwise=False, refuse_param=refuse_unless_real, keys=Keys(torch_class="Kron"))
def kron(
    lr: NonNegative = 3e-4,
    b1: Decay = 0.9,
    weight_decay: NonNegative = 0.0,
    preconditioner_update_probability: Probability = None,
    max_size_triangular: Length = 8192,
    min_ndim_triangular: Length = 2,
    memory_save_mode: SaveMode = None,
    momentum_into_precond_update: Flag = True,
    precond_lr: NonNegative = 0.1,
    precond_init_scale: Positive = 1.0,
    merge_dims: Flag = True,
    *,
    seed: Seed = 0,
) -> Rule:
    """`kron_torch.Kron`, with the momentum and the factors in the parameters' dtype.

    Args:
        lr: learning rate, >= 0.
        b1: decay rate of the momentum, in [0, 1).
        weight_decay: decoupled decay of what has two axes or more, by `lr * weight_decay`, >= 0.
        preconditioner_update_probability: share of the updates in which the factors are updated, in (0, 1], or None for
            one that falls from 1 to 0.03.
        max_size_triangular: longest axis with a triangular factor, an integer >= 0.
        min_ndim_triangular: least number of axes of what has triangular factors, an integer >= 0.
        memory_save_mode: further diagonal factors: "one_diag", the longest axis's; "smart_one_diag", the same if it is
            longer than the others; "all_diag"; or None.
        momentum_into_precond_update: flag: fit the factors to the momentum, not to the gradient.
        precond_lr: learning rate of the factors, >= 0.
        precond_init_scale: size of the factors at first, > 0.
        merge_dims: flag: treat what has more than two axes as a matrix.
        seed: of the random numbers, an integer or a prefix of integers. Parameters with the same seed and shape have
            the same ones.

    Returns:
        The optimizer; state keys `step`, `momentum_buffer`, `Q`, `update_counter`.

    Raises:
        ValueError: in `init`, for complex parameters.

    Example:
        >>> import funcopt
        >>> tx = funcopt.kron(lr=3e-4, weight_decay=0.1, memory_save_mode="one_diag")
    """

    def init(p: jax.Array) -> KronState:
        shape = _merged(p.shape, merge_dims)
        scale = precond_init_scale ** (1 / len(shape))
        diagonal = _diagonal(shape, memory_save_mode, max_size_triangular, min_ndim_triangular)
        factors = tuple(
            scale * (jnp.ones(n, p.dtype) if is_diagonal else jnp.eye(n, dtype=p.dtype))
            for n, is_diagonal in zip(shape, diagonal, strict=True)
        )
        return KronState(0, jnp.zeros(shape, p.dtype), factors, jnp.zeros((), jnp.int32))

    def update(g: jax.Array, s: KronState) -> tuple[jax.Array, KronState]:
        g_shape, g = g.shape, g.reshape(s.momentum_buffer.shape)
        buffer = b1 * s.momentum_buffer + (1 - b1) * g
        h, factors, counter = buffer / bias_correction(b1, s.step), s.Q, s.update_counter + 1
        if preconditioner_update_probability is None:
            probability = precond_update_prob_schedule(s.step - 1)
        else:
            probability = preconditioner_update_probability
        due = weak(counter) >= 1 / probability

        def fit() -> tuple[Factors, jax.Array]:
            noise, seen = normal(seed, s.step, g.shape, g.dtype), h if momentum_into_precond_update else g
            seen = seen + (2.0**-11.5 * jnp.mean(jnp.abs(seen))) * noise
            return _fitted(factors, seen, noise, precond_lr), seen if momentum_into_precond_update else h

        if len(factors) > 1:
            factors = lax.cond(s.step % 100 == 0, _balanced, lambda x: x, factors)
        factors, h = lax.cond(due, fit, lambda: (factors, h))
        u = _preconditioned(h, factors)
        u = u * jnp.minimum(1.0, 1.1 / (rms(u) + 1e-12))
        return u.reshape(g_shape), KronState(s.step, buffer, factors, jnp.where(due, 0, counter))

    rule = Rule(undivided(update), init)
    whole, undecayed = descend(rule, lr, weight_decay=weight_decay, decoupled=True), descend(rule, lr)

    def for_shape(g: jax.Array, s: KronState, **given: Any) -> tuple[jax.Array, KronState]:
        return whole.update(g, s, **given) if g.ndim >= 2 else undecayed.update(g, s)

    return whole._replace(update=asking(for_shape, *asked_for(whole.update)), frame=Frame(lr))


scale_by_kron = direction("scale_by_kron", kron, "Rescales updates as `kron` does, without decay and learning rate.")
