"""SOAP: Adam in the eigenbasis of Shampoo's factors (Vyas et al., 2024, algorithm 3).

The first update only fills the factors and takes their eigenvectors; nothing moves. From the second on, k = t - 1:

    x     = g turned into the bases Q                                      along each axis
    m     = beta1 * m + (1 - beta1) * x
    v     = beta2 * v + (1 - beta2) * x * x
    u     = sqrt(1 - beta2**k) / (1 - beta1**k) * m / (sqrt(v) + eps), turned back
    p     = p - lr * u
    p     = p - lr * weight_decay * p                                      of the new p
    GG_i  = lerp(GG_i, g g^T along axis i, 1 - shampoo_beta)
    Q_i   = qr(GG_i Q_i)                                                   every precondition_frequency updates

Before that QR the columns of Q_i, and v with them, are put in the order of falling diagonals of Q_i^T GG_i Q_i; m is
turned from the old into the new basis. The author's code turns m back and forth at every update, and has a `step` that
is smaller by 1. Where the first gradient has a lower rank than a side is long the basis is not unique, and results
depend on the library that computes eigenvectors.
"""

from typing import Annotated, Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
from jax import lax

from funcopt._checks import Range
from funcopt._numerics import lerp, rms, root, undivided
from funcopt._tree import refuse_unless_real
from funcopt.algorithms._adam import step_correction
from funcopt.algorithms._galore import Count
from funcopt.frame import descend
from funcopt.kinds import Betas, Flag, NonNegative, fixed
from funcopt.rule import Keys, Rule, direction, transformation

ShampooBeta: TypeAlias = Annotated[Any, fixed(Range("< 1", lambda x: x < 1.0))]
Bases: TypeAlias = tuple[jax.Array | None, ...]


class SoapState(NamedTuple):
    step: Any  # int32 (), or a tree of them: applied updates so far, the first one among them
    exp_avg: Any  # tree like the parameters, in the bases
    exp_avg_sq: Any  # the same
    GG: Any  # tree of tuples of (n, n) for each axis; None for those that are not preconditioned
    Q: Any  # the same


def _turn(x: jax.Array, bases: Bases, *, back: bool = False) -> jax.Array:
    """An array in other bases: each axis is the first one once, and then the last."""
    for basis in bases:
        x = jnp.moveaxis(x, 0, -1) if basis is None else jnp.tensordot(x, basis, ((0,), (1 if back else 0,)))
    return x


def outer_product(x: jax.Array, axis: int) -> jax.Array:
    """The products of an array's slices along an axis with each other."""
    others = [i for i in range(x.ndim) if i != axis]
    return jnp.tensordot(x, x, (others, others))


def _merged(shape: tuple[int, ...], limit: int) -> tuple[int, ...]:
    """A shape whose dimensions are joined, from the first one on, as long as they stay within a limit."""
    merged, current = [], 1
    for size in shape:
        if current * size <= limit:
            current *= size
        elif current > 1:
            merged.append(current)
            current = size
        else:
            merged.append(size)
    return (*merged, current) if current > 1 or not merged else tuple(merged)


@transformation(elementwise=False, refuse_param=refuse_unless_real, keys=Keys(torch_class="SOAP"))
def soap(
    lr: NonNegative = 3e-3,
    betas: Betas = (0.95, 0.95),
    shampoo_beta: ShampooBeta = -1,
    eps: NonNegative = 1e-8,
    weight_decay: NonNegative = 0.01,
    precondition_frequency: Count = 10,
    max_precond_dim: Count = 10000,
    merge_dims: Flag = False,
    precondition_1d: Flag = False,
    normalize_grads: Flag = False,
    correct_bias: Flag = True,
) -> Rule:
    """`SOAP` of nikhilvyas/SOAP, without its `data_format`.

    Args:
        lr: learning rate, >= 0.
        betas: decay rates of the two moments, each in [0, 1).
        shampoo_beta: decay rate of the factors, < 1; below 0 it is `betas[1]`.
        eps: added to the root of the second moment before the correction of its bias, >= 0.
        weight_decay: decay of the new parameters, by `lr * weight_decay`, >= 0.
        precondition_frequency: updates from one change of the bases to the next, an integer >= 1.
        max_precond_dim: longest axis that is preconditioned, an integer >= 1.
        merge_dims: flag: join neighbouring axes as long as they do not become longer than that.
        precondition_1d: flag: precondition vectors, too.
        normalize_grads: flag: divide each update by its root mean square.
        correct_bias: flag: correct the moments for their start at 0.

    Returns:
        The optimizer; state keys `step`, `exp_avg`, `exp_avg_sq`, `GG`, `Q`.

    Raises:
        ValueError: in `init`, for complex parameters.

    Example:
        >>> import funcopt
        >>> tx = funcopt.soap(lr=3e-3, precondition_frequency=10)
    """
    beta1, beta2 = betas
    factor_beta = beta2 if shampoo_beta < 0 else shampoo_beta
    correction = step_correction(betas, correct_bias)

    def shape_of(p: jax.Array) -> tuple[int, ...]:
        return _merged(p.shape, max_precond_dim) if merge_dims and p.ndim != 1 else p.shape

    def init(p: jax.Array) -> SoapState:
        used = [n <= max_precond_dim and (p.ndim != 1 or precondition_1d) for n in shape_of(p)]
        zeros = lambda: tuple(  # noqa: E731
            jnp.zeros((n, n), p.dtype) if is_used else None for n, is_used in zip(shape_of(p), used, strict=True)
        )
        return SoapState(0, jnp.zeros_like(p), jnp.zeros_like(p), zeros(), zeros())

    def accumulated(g: jax.Array, factors: Bases) -> Bases:
        return tuple(
            None if factor is None else lerp(factor, outer_product(g, i), 1 - factor_beta)
            for i, factor in enumerate(factors)
        )

    def start(g: jax.Array, s: SoapState) -> tuple[jax.Array, SoapState]:
        factors = accumulated(g, s.GG)
        bases = tuple(None if x is None else jnp.linalg.eigh(x)[1][:, ::-1] for x in factors)
        return jnp.zeros_like(g), s._replace(GG=factors, Q=bases)

    def refresh(s: SoapState) -> SoapState:
        v, bases = s.exp_avg_sq, []
        for i, (factor, basis) in enumerate(zip(s.GG, s.Q, strict=True)):
            if factor is not None:
                order = jnp.argsort(-jnp.sum(basis * (factor @ basis), axis=0))
                v, basis = jnp.take(v, order, axis=i), jnp.linalg.qr(factor @ jnp.take(basis, order, axis=1))[0]
            bases.append(basis)
        return s._replace(exp_avg=_turn(_turn(s.exp_avg, s.Q, back=True), tuple(bases)), exp_avg_sq=v, Q=tuple(bases))

    def go_on(g: jax.Array, s: SoapState) -> tuple[jax.Array, SoapState]:
        x = _turn(g, s.Q)
        m = beta1 * s.exp_avg + (1 - beta1) * x
        v = beta2 * s.exp_avg_sq + (1 - beta2) * x * x
        u = _turn(m / (root(v) + eps), s.Q, back=True)
        u = u / (1e-30 + rms(u)) if normalize_grads else u
        s = s._replace(exp_avg=m, exp_avg_sq=v, GG=accumulated(g, s.GG))
        return u, lax.cond((s.step - 1) % precondition_frequency == 0, refresh, lambda s: s, s)

    def update(g: jax.Array, s: SoapState) -> tuple[jax.Array, SoapState]:
        shape = shape_of(g)
        merged = s._replace(exp_avg=s.exp_avg.reshape(shape), exp_avg_sq=s.exp_avg_sq.reshape(shape))
        u, new = lax.cond(s.step == 1, start, go_on, g.reshape(shape), merged)
        new = new._replace(exp_avg=new.exp_avg.reshape(g.shape), exp_avg_sq=new.exp_avg_sq.reshape(g.shape))
        # The decay is of the new parameter, and so of this update, too.
        factor = correction(jnp.maximum(s.step - 1, 1)) * (1 - lr * weight_decay)
        return factor * u.reshape(g.shape), new

    return descend(Rule(undivided(update), init), lr, weight_decay=weight_decay, decoupled=True, late=True)


scale_by_soap = direction("scale_by_soap", soap, "Rescales updates as `soap` does, without decay and learning rate.")
