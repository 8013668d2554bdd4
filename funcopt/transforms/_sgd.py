"""Stochastic gradient descent with momentum, as `torch.optim.SGD`.

    g    = g + weight_decay * p
    buf  = momentum * buf + (1 - dampening) * g        first update: buf = g, undampened
    g    = g + momentum * buf   if nesterov else   buf
    p    = p - lr * g

optax's trace has no dampening and is otherwise the same.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from funcopt import _checks
from funcopt._base import GradientTransformationExtraArgs, Hyperparameter, chain, leafwise, scheduled
from funcopt._numerics import again
from funcopt._rows import Handling
from funcopt._tree import is_static
from funcopt.transforms._decay import decay_rows, decay_rule
from funcopt.transforms._scale import ascend_where, scale_by_learning_rate


class TraceState(NamedTuple):
    step: Any  # int32 (), or a tree of them: tells the first update, which is not dampened
    momentum_buffer: Any  # tree like the parameters; None where momentum is 0


def trace_rule(
    g: jax.Array,
    momentum_buffer: jax.Array | None,
    *,
    step: jax.Array,
    momentum: jax.Array | float,
    dampening: jax.Array | float,
    nesterov: bool,
) -> tuple[jax.Array, jax.Array | None]:
    """Momentum: the rule of the module's head, before the learning rate."""
    if momentum_buffer is None:
        return g, None
    fresh = jnp.where(step == 1, 1.0, 1 - dampening)
    momentum_buffer = momentum * momentum_buffer + fresh * g
    return (g + momentum * momentum_buffer if nesterov else momentum_buffer), momentum_buffer


def sgd_rule(
    g: jax.Array,
    momentum_buffer: jax.Array | None,
    *,
    param: jax.Array,
    weight_decay: jax.Array | float,
    nesterov: bool,
    **trace: Any,
) -> tuple[jax.Array, jax.Array | None]:
    """`trace_rule` of the decayed gradient, which is computed for the buffer and, with nesterov, for the direction."""
    decayed = decay_rule(g, param=param, weight_decay=weight_decay)
    direction, momentum_buffer = trace_rule(decayed, momentum_buffer, nesterov=False, **trace)
    if nesterov:
        direction = decay_rule(g, param=param, weight_decay=again(weight_decay)) + trace["momentum"] * direction
    return direction, momentum_buffer


def _init_trace(param: jax.Array, *, momentum: Any, dampening: Any, nesterov: bool) -> tuple[jax.Array | None]:
    _check_nesterov("trace", momentum, dampening, nesterov)
    return (None if is_static(momentum) and momentum == 0 else jnp.zeros(param.shape, param.dtype),)


def _rows(*, momentum: Any, **hyperparams: Any) -> Handling:
    """Momentum moves the rows of earlier gradients, too; torch keeps it in a sparse buffer that grows with them."""
    del hyperparams
    return "rows" if is_static(momentum) and momentum == 0 else "dense"


def _sgd_rows(*, weight_decay: Any, **trace: Any) -> Handling:
    decay = decay_rows(weight_decay=weight_decay)
    return decay if decay == "refuse" else _rows(**trace)


def _check_nesterov(owner: str, momentum: Any, dampening: Any, nesterov: Any) -> None:
    """Torch's rule, for values that are plain numbers; those of a prefix are looked at leaf by leaf in `init`."""
    if isinstance(nesterov, bool) and nesterov:
        if is_static(momentum) and momentum <= 0:
            _checks.fail(owner, "momentum", "> 0 with nesterov=True", momentum)
        if is_static(dampening) and dampening != 0:
            _checks.fail(owner, "dampening", "0 with nesterov=True", dampening)


def _check_trace(owner: str, momentum: Hyperparameter, dampening: Hyperparameter, nesterov: Hyperparameter) -> None:
    _checks.check_hyperparam(owner, "momentum", momentum, _checks.NON_NEGATIVE)
    _checks.check_hyperparam(owner, "dampening", dampening, _checks.ANY_NUMBER)
    _checks.check_flag(owner, "nesterov", nesterov)
    _check_nesterov(owner, momentum, dampening, nesterov)


def trace(
    momentum: Hyperparameter = 0.9, dampening: Hyperparameter = 0.0, nesterov: Hyperparameter = False
) -> GradientTransformationExtraArgs:
    """Accumulates a momentum buffer: the direction of `torch.optim.SGD`, without its learning rate.

    Args:
        momentum: >= 0; where it is the plain number 0 no buffer is kept and the update passes.
        dampening: part of the gradient that is left out of the buffer, from the second update on.
        nesterov: flag; needs momentum > 0 and dampening 0.

    Returns:
        The transformation, with a `TraceState`.
    """
    _check_trace("trace", momentum, dampening, nesterov)

    def make(momentum: Hyperparameter, dampening: Hyperparameter) -> GradientTransformationExtraArgs:
        hyperparams = {"momentum": momentum, "dampening": dampening, "nesterov": nesterov}
        return leafwise("trace", trace_rule, hyperparams, state=TraceState, init_leaf=_init_trace, rows=_rows)

    return scheduled(make, {"momentum": momentum, "dampening": dampening})


def sgd(
    lr: Hyperparameter = 1e-3,
    momentum: Hyperparameter = 0.0,
    dampening: Hyperparameter = 0.0,
    weight_decay: Hyperparameter = 0.0,
    nesterov: Hyperparameter = False,
    *,
    maximize: Hyperparameter = False,
) -> GradientTransformationExtraArgs:
    """`torch.optim.SGD`.

    Args:
        lr: learning rate, >= 0.
        momentum: >= 0; 0 keeps no buffer.
        dampening: dampening of the momentum buffer.
        weight_decay: L2 penalty, >= 0.
        nesterov: flag; needs momentum > 0 and dampening 0.
        maximize: flag: ascend the objective; the penalty still shrinks the parameters.

    Returns:
        The optimizer; state key `momentum_buffer`.

    Example:
        >>> import funcopt
        >>> tx = funcopt.sgd(lr=0.1, momentum=0.9, weight_decay={"w": 5e-4, "b": 0.0})
    """
    _checks.check_hyperparam("sgd", "lr", lr, _checks.NON_NEGATIVE)
    _checks.check_hyperparam("sgd", "weight_decay", weight_decay, _checks.NON_NEGATIVE)
    _checks.check_flag("sgd", "maximize", maximize)
    _check_trace("sgd", momentum, dampening, nesterov)

    def make(**hyperparams: Hyperparameter) -> GradientTransformationExtraArgs:
        return leafwise(
            "sgd",
            sgd_rule,
            {**hyperparams, "nesterov": nesterov},
            state=TraceState,
            init_leaf=lambda param, weight_decay, **trace: _init_trace(param, **trace),
            needs_params=True,
            rows=_sgd_rows,
        )

    return chain(
        ascend_where(maximize),
        scheduled(make, {"weight_decay": weight_decay, "momentum": momentum, "dampening": dampening}),
        scale_by_learning_rate(lr),
    )
