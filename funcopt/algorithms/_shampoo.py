"""Shampoo (Gupta et al., 2018) with the length of Adam's update, as Meta's Distributed Shampoo (Shi et al., 2023).

    L_i   = beta2 * L_i + (1 - beta2) * g g^T along axis i                 of each block; for beta2 = 1 the plain sum
    v     = grafting_beta2 * v + (1 - grafting_beta2) * g * g
    m     = lerp(m, g, 1 - beta1)
    X_i   = (L_i / (1 - beta2**t) + epsilon * I)**(-1 / (2 * axes))        every precondition_frequency updates
    a     = m / (1 - beta1**t) / (sqrt(v) / sqrt(1 - grafting_beta2**t) + grafting_epsilon)
    u     = m / (1 - beta1**t) turned by X_i along each axis
    u     = norm(a) / (norm(u) + 1e-16) * u                                of each block
    u     = a                                                              before start_preconditioning_step
    p     = p - lr * (u + weight_decay * p)

Before that neighbouring axes are joined, from the last one on, as long as they do not become longer than
max_preconditioner_dim, and what is longer is cut into blocks of that size. Eigenvalues below epsilon raise all, so that
the least one is epsilon. Meta's code keeps the factors in float32, by default half of each; here they are whole.
"""

from collections.abc import Sequence
from typing import Annotated, Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
from jax import lax

from funcopt import _checks
from funcopt._numerics import bias_correction, lerp, norm, root, undivided
from funcopt._tree import is_static, refuse_unless_real
from funcopt.algorithms._galore import Count
from funcopt.algorithms._soap import outer_product
from funcopt.frame import descend
from funcopt.kinds import Flag, Hyperparameter, NonNegative, Positive, integer, number
from funcopt.rule import Keys, Refused, Rule, direction, transformation

ShampooBetas: TypeAlias = Annotated[Hyperparameter, number(_checks.UNIT_HALF_OPEN, _checks.UNIT)]
Decay: TypeAlias = Annotated[Hyperparameter, number(_checks.UNIT_HALF_OPEN)]
FirstStep: TypeAlias = Annotated[Any, integer(_checks.Range(">= -1", lambda x: x >= -1))]
Blocks: TypeAlias = tuple[tuple[jax.Array, ...], ...]


class ShampooState(NamedTuple):
    step: Any  # int32 (), or a tree of them: applied updates so far
    filtered_grad: Any  # tree like the parameters
    exp_avg_sq: Any  # tree like the parameters; None without grafting
    factor_matrices: Any  # tree of tuples for each block of tuples of (n, n) for each axis
    inv_factor_matrices: Any  # the same


def _merged(shape: tuple[int, ...], limit: int) -> tuple[int, ...]:
    """A shape without sides of 1, whose dimensions are joined from the last one on while they stay within a limit."""
    merged: list[int] = []
    for size in reversed([n for n in shape if n != 1] or [1]):
        if merged and merged[-1] * size <= limit:
            merged[-1] *= size
        else:
            merged.append(size)
    return tuple(reversed(merged))


def _cut(x: jax.Array, size: int) -> list[jax.Array]:
    """The blocks of an array."""
    blocks = [x]
    for axis, length in enumerate(x.shape):
        blocks = [part for block in blocks for part in jnp.split(block, list(range(size, length, size)), axis)]
    return blocks


def _joined(blocks: Sequence[jax.Array], shape: tuple[int, ...], size: int) -> jax.Array:
    """The inverse of `_cut`."""
    for axis in reversed(range(len(shape))):
        count = max(-(-shape[axis] // size), 1)
        blocks = [jnp.concatenate(blocks[i : i + count], axis) for i in range(0, len(blocks), count)]
    return blocks[0]


def _inverse_root(factor: jax.Array, exponent: int, epsilon: Any) -> jax.Array:
    """A symmetric matrix to the power of `-1 / exponent`."""
    values, vectors = jnp.linalg.eigh(factor + epsilon * jnp.eye(len(factor), dtype=factor.dtype))
    values = values - jnp.minimum(values[0] - epsilon, 0.0)
    return (vectors * values ** (-1 / exponent)) @ vectors.T


def _turned(x: jax.Array, matrices: Sequence[jax.Array]) -> jax.Array:
    for matrix in matrices:
        x = jnp.tensordot(x, matrix, ((0,), (0,)))
    return x


def _unless_one(beta: Any, value: Any) -> Any:
    """A number; 1 where a decay rate is 1, and what it weighs is summed."""
    if is_static(beta):
        return 1.0 if beta == 1 else value
    return jnp.where(beta == 1, 1.0, value)


@transformation(elementwise=False, refuse_param=refuse_unless_real, keys=Keys(torch_class="DistributedShampoo"))
def shampoo(
    lr: NonNegative = 1e-2,
    betas: ShampooBetas = (0.9, 1.0),
    epsilon: Positive = 1e-12,
    weight_decay: NonNegative = 0.0,
    max_preconditioner_dim: Count = 1024,
    precondition_frequency: Count = 1,
    start_preconditioning_step: FirstStep = -1,
    use_bias_correction: Flag = True,
    *,
    grafting: Flag = True,
    grafting_beta2: Decay = 0.999,
    grafting_epsilon: NonNegative = 1e-10,
) -> Rule:
    """`DistributedShampoo` of facebookresearch/optimizers, with an `AdamPreconditionerConfig` for grafting.

    Args:
        lr: learning rate, >= 0.
        betas: decay rates of the momentum, in [0, 1), and of the factors, in [0, 1]; with 1 they are sums.
        epsilon: least eigenvalue of the factors, > 0.
        weight_decay: decoupled decay of the parameters, by `lr * weight_decay`, >= 0.
        max_preconditioner_dim: longest axis of a block, an integer >= 1.
        precondition_frequency: updates from one computation of the roots to the next, an integer >= 1.
        start_preconditioning_step: number of the first update with roots, an integer >= `precondition_frequency`, or
            -1 for that; before it updates are Adam's.
        use_bias_correction: flag: correct momentum and factors for their start at 0.
        grafting: flag: give each block's update the length of Adam's; Meta's default is not to.
        grafting_beta2: decay rate of Adam's second moment, in [0, 1).
        grafting_epsilon: added to Adam's denominator, >= 0.

    Returns:
        The optimizer; state keys `step`, `filtered_grad`, `factor_matrices`, `inv_factor_matrices`, and `exp_avg_sq`
        with grafting.

    Raises:
        ValueError: in `init`, for complex parameters.

    Example:
        >>> import funcopt
        >>> tx = funcopt.shampoo(betas=(0.9, 0.999), epsilon=1e-8, precondition_frequency=50)
    """
    beta1, beta2 = betas
    first = precondition_frequency if start_preconditioning_step == -1 else start_preconditioning_step
    if first < precondition_frequency:
        allowed = f"-1 or >= precondition_frequency, {precondition_frequency}"
        raise Refused("start_preconditioning_step", allowed, start_preconditioning_step)

    def cut(x: jax.Array) -> list[jax.Array]:
        return _cut(x.reshape(_merged(x.shape, max_preconditioner_dim)), max_preconditioner_dim)

    def join(blocks: Sequence[jax.Array], like: jax.Array) -> jax.Array:
        shape = _merged(like.shape, max_preconditioner_dim)
        return _joined(blocks, shape, max_preconditioner_dim).reshape(like.shape)

    def init(p: jax.Array) -> ShampooState:
        shapes = [block.shape for block in jax.eval_shape(cut, p)]
        factors = tuple(tuple(jnp.zeros((n, n), p.dtype) for n in shape) for shape in shapes)
        roots = tuple(tuple(jnp.eye(n, dtype=p.dtype) for n in shape) for shape in shapes)
        return ShampooState(0, jnp.zeros_like(p), jnp.zeros_like(p) if grafting else None, factors, roots)

    def correction(beta: Any, t: Any) -> Any:
        return _unless_one(beta, bias_correction(beta, t)) if use_bias_correction else 1.0

    def computed(factors: Blocks, t: Any) -> Blocks:
        c = correction(beta2, t)
        return tuple(tuple(_inverse_root(x / c, 2 * len(own), epsilon) for x in own) for own in factors)

    def update(g: jax.Array, s: ShampooState) -> tuple[jax.Array, ShampooState]:
        t, weight = s.step, _unless_one(beta2, 1 - beta2)
        factors = tuple(
            tuple(beta2 * x + weight * outer_product(block, i) for i, x in enumerate(own))
            for block, own in zip(cut(g), s.factor_matrices, strict=True)
        )
        due = ((t % precondition_frequency == 0) & (t > first)) | (t == first)
        roots = lax.cond(due, lambda: computed(factors, t), lambda: s.inv_factor_matrices)
        m, v = lerp(s.filtered_grad, g, 1 - beta1), s.exp_avg_sq
        u = m / correction(beta1, t)
        turned = [_turned(x, own) for x, own in zip(cut(u), roots, strict=True)]
        if v is not None:
            v = grafting_beta2 * v + (1 - grafting_beta2) * g * g
            adam = u / (root(v) / jnp.sqrt(bias_correction(grafting_beta2, t)) + grafting_epsilon)
            turned = [x * (norm(a) / (norm(x) + 1e-16)) for x, a in zip(turned, cut(adam), strict=True)]
            u = lax.cond(t < first, lambda: adam, lambda: join(turned, g))
        else:
            u = join(turned, g)
        return u, ShampooState(t, m, v, factors, roots)

    return descend(Rule(undivided(update), init), lr, weight_decay=weight_decay, decoupled=True)


scale_by_shampoo = direction(
    "scale_by_shampoo", shampoo, "Rescales updates as `shampoo` does, without decay and learning rate."
)
