"""Adam-mini: Adam with one second moment for each block of a parameter (Zhang et al., 2024).

    m = lerp(m, g, 1 - beta1)
    v = beta2 * v + (1 - beta2) * mean of g * g over the block
    u = m / (1 - beta1**t) / (sqrt(v) / sqrt(1 - beta2**t) + eps)
    p = p - lr * (u + weight_decay * p)

A block is a number of rows: entries of the first axis, with all that belongs to them. The reference tells by a
parameter's name what its blocks are; here `block_rows` says it, and may be a tree: 1 for embeddings, values,
projections and MLPs (a token or neuron each) and for biases (Adam); a head's rows for queries and keys; 0 for norms
(one block).
"""

from typing import Annotated, Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp

from funcopt import _checks
from funcopt._numerics import lerp
from funcopt._tree import refuse_unless_real
from funcopt.algorithms._adam import corrected
from funcopt.frame import descend
from funcopt.kinds import Betas, Hyperparameter, NonNegative, integer
from funcopt.rule import Keys, Rule, direction, transformation

BlockRows: TypeAlias = Annotated[Hyperparameter, integer(_checks.NON_NEGATIVE)]


class AdamMiniState(NamedTuple):
    step: Any  # int32 (), or a tree of them: applied updates so far
    m: Any  # tree like the parameters
    v: Any  # tree like the parameters; None for those whose blocks have several elements
    vmean: Any  # tree of (blocks, 1), or () of one block that is the whole; None for the others


@transformation(elementwise=False, refuse_param=refuse_unless_real, keys=Keys(step=int, torch_class="Adam_mini"))
def adam_mini(
    lr: NonNegative = 1e-3,
    betas: Betas = (0.9, 0.999),
    eps: NonNegative = 1e-8,
    weight_decay: NonNegative = 0.0,
    block_rows: BlockRows = 1,
) -> Rule:
    """`adam_mini.Adam_mini`, told the blocks: half of AdamW's state.

    The reference finds blocks by name and does not decay parameters with "norm", "ln" or "bias" in theirs; give
    `block_rows` and `weight_decay` as trees for that, or in groups. Of a query or key matrix for h heads, with rows of
    its outputs, a block has rows / h rows.

    Args:
        lr: learning rate, >= 0.
        betas: decay rates of the two moments, each in [0, 1).
        eps: added to the denominator, >= 0.
        weight_decay: decoupled decay of the parameters, by `lr * weight_decay`, >= 0.
        block_rows: rows of a block, an integer or a prefix of integers, >= 0, which divides the parameter's; 0 makes
            the parameter one block. With 1 a vector is updated as by `adamw`.

    Returns:
        The optimizer; state keys `step`, `m`, and `vmean`, or `v` for vectors with one row per block. Its `init` raises
        ValueError for complex parameters, and for those that cannot be divided so.

    Example:
        >>> import funcopt
        >>> rows = {"query": 64, "key": 64, "value": 1, "norm": 0}
        >>> tx = funcopt.adam_mini(lr=1e-3, block_rows=rows, weight_decay={**dict.fromkeys(rows, 0.1), "norm": 0.0})
    """
    beta1, beta2 = betas
    quotient = corrected(betas, eps)
    rows: Any = None if block_rows is None else int(block_rows)  # optax.inject_hyperparams makes an array of a number

    def blocks(x: jax.Array) -> jax.Array:
        return x.reshape(x.shape[0] // rows, rows, *x.shape[1:])

    def means(x: jax.Array) -> jax.Array:
        return jnp.mean(blocks(x), axis=tuple(range(1, x.ndim + 1))).reshape(-1, 1)

    def init(p: jax.Array) -> AdamMiniState:
        m = jnp.zeros_like(p)
        if rows == 0 or p.ndim == 0:
            return AdamMiniState(0, m, None, jnp.zeros((), p.dtype))
        if p.shape[0] % rows:
            _checks.fail("adam_mini", "block_rows", f"0 or divide the parameter's rows, {p.shape[0]}", rows)
        if rows == 1 and p.ndim == 1:
            return AdamMiniState(0, m, jnp.zeros_like(p), None)
        return AdamMiniState(0, m, None, means(m))

    def update(g: jax.Array, s: AdamMiniState) -> tuple[jax.Array, AdamMiniState]:
        m = lerp(s.m, g, 1 - beta1)
        if s.vmean is None:
            v = beta2 * s.v + (1 - beta2) * g * g
            return quotient(m, v, s.step), AdamMiniState(s.step, m, v, None)
        if s.vmean.ndim == 0:
            vmean = beta2 * s.vmean + (1 - beta2) * jnp.mean(g * g)
            return quotient(m, vmean, s.step), AdamMiniState(s.step, m, None, vmean)
        vmean = beta2 * s.vmean + (1 - beta2) * means(g * g)
        of_blocks = vmean.reshape(len(vmean), *[1] * g.ndim)
        return quotient(blocks(m), of_blocks, s.step).reshape(g.shape), AdamMiniState(s.step, m, None, vmean)

    return descend(Rule(update, init), lr, weight_decay=weight_decay, decoupled=True)


scale_by_adam_mini = direction(
    "scale_by_adam_mini", adam_mini, "Rescales updates as `adam_mini` does, without decay and learning rate."
)
