"""Sophia-G: momentum divided by an estimate of the Hessian's diagonal, and clipped (Liu et al., 2023, algorithm 3).

    m = beta1 * m + (1 - beta1) * g
    u = clip(m / (rho * bs * h + 1e-15), -1, 1)
    p = p - lr * (u + weight_decay * p)

    h = beta2 * h + (1 - beta2) * g^ * g^                                  every 10 updates or so, by `update_hessian`

g^ is the gradient of the loss with labels that were drawn from the model's own distribution. While h is 0, u is the
sign of m. optax's sophia estimates h otherwise, with Hutchinson's method.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from funcopt import _checks
from funcopt._tree import from_compute, to_compute
from funcopt.frame import descend
from funcopt.kinds import Betas, Flag, NonNegative, Positive
from funcopt.rule import Keys, PyTree, Rule, direction, transformation


class SophiaGState(NamedTuple):
    step: Any  # int32 (), or a tree of them: applied updates so far
    exp_avg: Any  # tree like the parameters
    hessian: Any  # tree like the parameters: written by `update_hessian` only


@transformation(keys=Keys(torch_class="SophiaG"))
def sophia_g(
    lr: NonNegative = 1e-4,
    betas: Betas = (0.965, 0.99),
    rho: NonNegative = 0.04,
    weight_decay: NonNegative = 0.1,
    bs: Positive = 5120,
    *,
    maximize: Flag = False,
) -> Rule:
    """The authors' `SophiaG`; `update_hessian` belongs to it.

    Args:
        lr: learning rate, >= 0: the most that an element moves.
        betas: decay rates of the momentum and of the Hessian's estimate, each in [0, 1); the second is what
            `update_hessian` is to be given, and nothing is read of it here.
        rho: how much of the estimate enters, >= 0: the smaller, the more elements are clipped.
        weight_decay: decoupled decay of the parameters, by `lr * weight_decay`, >= 0.
        bs: tokens, or examples, that a gradient is the mean of, > 0: an argument of `step` in the authors' class.
        maximize: flag: ascend the objective; decay still shrinks the parameters.

    Returns:
        The optimizer; state keys `step`, `exp_avg`, `hessian`.

    Example:
        >>> import funcopt
        >>> tx = funcopt.sophia_g(lr=1e-4, bs=480 * 1024)
    """
    beta1, _ = betas

    def init(p: jax.Array) -> SophiaGState:
        return SophiaGState(0, jnp.zeros_like(p), jnp.zeros_like(p))

    def update(g: jax.Array, s: SophiaGState) -> tuple[jax.Array, SophiaGState]:
        m = beta1 * s.exp_avg + (1 - beta1) * g
        u = jnp.clip(m / (rho * bs * s.hessian + 1e-15), -1.0, 1.0)
        return u, SophiaGState(s.step, m, s.hessian)

    return descend(Rule(update, init), lr, weight_decay=weight_decay, decoupled=True, maximize=maximize)


scale_by_sophia_g = direction(
    "scale_by_sophia_g", sophia_g, "`sophia_g`'s clipped quotient, without its learning rate."
)


def update_hessian(state: PyTree, sampled_grads: PyTree, beta2: Any = 0.99) -> PyTree:
    """A state with a new estimate of the Hessian for `sophia_g`, from gradients with sampled labels.

    In torch the same is `state["hessian"].lerp_(p.grad**2, 1 - beta2)` of each parameter's state.

    Args:
        state: state of `sophia_g`, or of anything that contains it, such as a chain; for all parameters.
        sampled_grads: gradients of the mean loss with labels that were drawn from the model's own distribution, like
            the parameters; None where there is none.
        beta2: decay rate of the estimate, in [0, 1).

    Returns:
        The state; its other parts are as they were.

    Raises:
        ValueError: if there is no such state.

    Example:
        >>> import funcopt
        >>> params = {"w": 1.0}
        >>> state = funcopt.sophia_g().init(params)
        >>> funcopt.update_hessian(state, {"w": 2.0}).hessian
        {'w': Array(0.04, dtype=float32)}
    """
    _checks.check_number("update_hessian", "beta2", beta2, _checks.UNIT_HALF_OPEN)
    if not any(map(_is_state, jax.tree.leaves(state, is_leaf=_is_state))):
        raise ValueError("update_hessian: state must contain the state of funcopt.sophia_g")

    def averaged(g: Any, h: Any) -> Any:
        if g is None:
            return h
        g = to_compute(jnp.asarray(g))
        return from_compute(beta2 * to_compute(h) + (1 - beta2) * g * g, h.dtype)

    def visit(node: Any) -> Any:
        if not _is_state(node):
            return node
        hessian = jax.tree.map(averaged, sampled_grads, node.hessian, is_leaf=lambda x: x is None)
        return node._replace(hessian=hessian)

    return jax.tree.map(visit, state, is_leaf=_is_state)


def _is_state(node: object) -> bool:
    return isinstance(node, SophiaGState)
