"""`lbfgs`: L-BFGS on trees of parameters; the algorithm is in `_lbfgs_machine.py`.

All parameters are one vector, complex ones as real and imaginary parts. optax's lbfgs is another algorithm: one
iteration per update, another first step, line search and memory.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.flatten_util import ravel_pytree

from funcopt import _checks, _tree
from funcopt._base import GradientTransformationExtraArgs, Hyperparameter, PyTree, scheduled
from funcopt.transforms._lbfgs_machine import LbfgsState, Machine, Options, initial_state, start, transition


def _ravel(tree: PyTree) -> tuple[jax.Array, Callable[[jax.Array], PyTree]]:
    """A tree as one real vector in the compute form, and the way back to its shapes."""
    return ravel_pytree(jax.tree.map(lambda leaf: _tree.to_compute(jnp.asarray(leaf)), tree))


def _fill_missing(updates: PyTree, params: PyTree) -> PyTree:
    """Zeros for missing gradients."""
    return jax.tree.map(
        lambda g, p: jax.tree.map(jnp.zeros_like, p) if g is None else g, updates, params, is_leaf=_tree.is_none
    )


def lbfgs(
    lr: Hyperparameter = 1.0,
    max_iter: int = 20,
    max_eval: int | None = None,
    tolerance_grad: float = 1e-7,
    tolerance_change: float = 1e-9,
    history_size: int = 100,
    line_search_fn: str | None = None,
) -> GradientTransformationExtraArgs:
    """`torch.optim.LBFGS`: one update is one `step(closure)`, up to `max_iter` iterations.

    `update(updates, state, params, value=..., value_fn=...)` takes the gradients at the parameters, the loss there
    (evaluated anew if not given) and the loss as a function of the parameters alone, which it evaluates as often as
    torch calls the closure. Gradients of complex parameters are torch's: the conjugates of `jax.grad`'s. A parameter
    whose gradient is `None` is held where it is.

    Call it under `jax.jit`: elsewhere each update compiles its loop anew. Forward-mode differentiation goes through an
    update; reverse mode does not, as the loop's length is unknown.

    Args:
        lr: the step size, or with a line search the first step that is tried; one number or schedule, >= 0.
        max_iter: iterations per update, >= 0.
        max_eval: evaluations per update after which no iteration begins, >= 0; None: `max_iter * 5 // 4`.
        tolerance_grad: stop where no entry of the gradient is larger.
        tolerance_change: stop where the loss, or else every parameter, changes by no more.
        history_size: pairs of steps and gradient differences that are kept, >= 1; each takes two copies of the
            parameters.
        line_search_fn: None or "strong_wolfe".

    Returns:
        The optimizer, with an `LbfgsState`.

    Example:
        >>> import funcopt, jax, jax.numpy as jnp
        >>> loss = lambda x: jnp.sum((x - 3.0) ** 2)
        >>> tx, x = funcopt.lbfgs(line_search_fn="strong_wolfe"), jnp.zeros(2)
        >>> value, grads = jax.value_and_grad(loss)(x)
        >>> updates, state = tx.update(grads, tx.init(x), x, value=value, value_fn=loss)
        >>> funcopt.apply_updates(x, updates)
        Array([3., 3.], dtype=float32)
    """
    owner = "lbfgs"
    if not _tree.is_array(lr):
        _checks.fail(owner, "lr", "one number or schedule for all parameters", lr)
    _checks.check_number(owner, "lr", lr, _checks.NON_NEGATIVE)
    _checks.check_integer(owner, "max_iter", max_iter, _checks.NON_NEGATIVE)
    max_eval = max_iter * 5 // 4 if max_eval is None else max_eval
    _checks.check_integer(owner, "max_eval", max_eval, _checks.NON_NEGATIVE)
    _checks.check_number(owner, "tolerance_grad", tolerance_grad, _checks.ANY_NUMBER)
    _checks.check_number(owner, "tolerance_change", tolerance_change, _checks.ANY_NUMBER)
    _checks.check_integer(owner, "history_size", history_size, _checks.AT_LEAST_ONE)
    _checks.check_choice(owner, "line_search_fn", line_search_fn, ("strong_wolfe",))

    def init(params: PyTree) -> LbfgsState:
        leaves, treedef = _tree.flatten(params)
        _tree.check_params(leaves, treedef, owner, _tree.complaint_unless_floating)
        return initial_state(_ravel(params)[0], history_size)

    def make(lr: Hyperparameter) -> GradientTransformationExtraArgs:
        options = Options(_tree.weak(lr), max_iter, max_eval, tolerance_grad, tolerance_change)

        def update(
            updates: PyTree,
            state: PyTree,
            params: PyTree = None,
            *,
            value: Any = None,
            value_fn: Callable[[PyTree], Any] | None = None,
            **extra: Any,
        ) -> tuple[PyTree, LbfgsState]:
            del extra
            if params is None or value_fn is None:
                raise ValueError(
                    f"{owner}: update needs the parameters and the loss as a function of them; "
                    "call update(updates, state, params, value=..., value_fn=...)"
                )
            if not jax.tree.leaves(updates):
                return updates, state
            flat_params, unravel = _ravel(params)
            flat_grad = _ravel(_fill_missing(updates, params))[0].astype(flat_params.dtype)

            def place(flat: jax.Array) -> PyTree:
                """Parameters at a point; those without a gradient stay."""
                return jax.tree.map(
                    lambda g, p, new: p if g is None else _tree.from_compute(new, jnp.result_type(p)),
                    updates,
                    params,
                    unravel(flat),
                    is_leaf=_tree.is_none,
                )

            def evaluate(flat: jax.Array) -> tuple[jax.Array, jax.Array]:
                loss, grad = jax.value_and_grad(lambda x: value_fn(place(x)))(flat)
                return loss.astype(state.prev_loss.dtype), grad

            def go_on(carry: tuple[Machine, jax.Array, jax.Array]) -> tuple[Machine, jax.Array, jax.Array]:
                machine = transition(*carry, options)
                loss, grad = lax.cond(machine.done, lambda _: carry[1:], evaluate, machine.point)
                return machine, loss, grad

            value = value_fn(params) if value is None else value
            loss = jnp.asarray(value, state.prev_loss.dtype)
            machine = start(state, flat_params, line_search_fn)
            machine, _, _ = lax.while_loop(lambda carry: ~carry[0].done, go_on, (machine, loss, flat_grad))
            moves = unravel(machine.point - flat_params)
            new_updates = jax.tree.map(
                lambda g, move: None if g is None else _tree.from_compute(move, jnp.result_type(g)),
                updates,
                moves,
                is_leaf=_tree.is_none,
            )
            return new_updates, machine.state

        return GradientTransformationExtraArgs(init, update)

    return scheduled(make, {"lr": lr}, elementwise=False)
