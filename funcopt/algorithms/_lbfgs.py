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
from funcopt.algorithms._lbfgs_machine import LbfgsState, Machine, Options, initial_state, start, transition
from funcopt.kinds import Hyperparameter, choice, fixed, integer, number
from funcopt.rule import GradientTransformationExtraArgs, Leaves, PyTree, follow_schedules

KINDS = {
    "lr": number(_checks.NON_NEGATIVE),
    "max_iter": integer(_checks.NON_NEGATIVE),
    "max_eval": integer(_checks.NON_NEGATIVE),
    "tolerance_grad": fixed(_checks.ANY_NUMBER),
    "tolerance_change": fixed(_checks.ANY_NUMBER),
    "history_size": integer(_checks.AT_LEAST_ONE),
    "line_search_fn": choice("strong_wolfe"),
}


def _ravel(leaves: list[Any]) -> tuple[jax.Array, Callable[[jax.Array], list[Any]]]:
    """Arrays as one real vector in the compute form, and the way back to their shapes; None is no array."""
    fix = "replicate the parameters, or jit with shardings that are no types (AxisType.Auto)"
    _tree.refuse_sharded_types("lbfgs", [leaf for leaf in leaves if leaf is not None], fix)
    return ravel_pytree(leaves)


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
    max_eval = max_iter * 5 // 4 if max_eval is None else max_eval
    given = {
        "lr": lr,
        "max_iter": max_iter,
        "max_eval": max_eval,
        "tolerance_grad": tolerance_grad,
        "tolerance_change": tolerance_change,
        "history_size": history_size,
        "line_search_fn": line_search_fn,
    }
    for name, value in given.items():
        KINDS[name].check(owner, name, value)

    def init(params: PyTree, values: dict[str, Any]) -> LbfgsState:
        del values
        leaves, treedef = _tree.flatten(params)
        _tree.check_params(leaves, treedef, owner, _tree.refuse_unless_floating)
        flat, _ = _ravel([None if x is None else _tree.to_compute(jnp.asarray(x)) for x in leaves])
        return initial_state(_tree.beside(leaves[0], flat), history_size)

    def run(leaves: Leaves, state: Any, extra: dict[str, Any], values: dict[str, Any]) -> tuple[list[Any], LbfgsState]:
        options = Options(_tree.weak(values["lr"]), max_iter, max_eval, tolerance_grad, tolerance_change)
        value_fn = extra.get("value_fn")
        if leaves.params is None or value_fn is None:
            raise ValueError(
                f"{owner}: update needs the parameters and the loss as a function of them; "
                "call update(updates, state, params, value=..., value_fn=...)"
            )
        if not isinstance(state, LbfgsState):
            raise ValueError(
                f"{owner}: the state must be an LbfgsState, which init(params) returns, got {type(state).__name__}"
            )
        grads = leaves.updates
        if all(g is None for g in grads):
            return grads, state
        wide = [
            _tree.to_compute(jnp.asarray(p)) if g is None and p is not None else p
            for g, p in zip(grads, leaves.params, strict=True)
        ]
        flat_params, unravel = _ravel(wide)
        filled = [jnp.zeros_like(p) if g is None and p is not None else g for g, p in zip(grads, wide, strict=True)]
        flat_grad = _ravel(filled)[0].astype(flat_params.dtype)

        def place(flat: jax.Array) -> PyTree:
            """Parameters at a point; those without a gradient stay."""
            own = zip(grads, leaves.params or [], unravel(flat), leaves.dtypes, strict=True)
            return leaves.treedef.unflatten(
                [p if g is None else _tree.from_compute(new, dtype) for g, p, new, dtype in own]
            )

        def evaluate(flat: jax.Array) -> tuple[jax.Array, jax.Array]:
            loss, grad = jax.value_and_grad(lambda x: value_fn(place(x)))(flat)
            return loss.astype(state.prev_loss.dtype), grad

        def go_on(carry: tuple[Machine, jax.Array, jax.Array]) -> tuple[Machine, jax.Array, jax.Array]:
            machine = transition(*carry, options)
            loss, grad = lax.cond(machine.done, lambda _: carry[1:], evaluate, machine.point)
            return machine, loss, grad

        value = extra.get("value")
        loss = jnp.asarray(value_fn(place(flat_params)) if value is None else value, state.prev_loss.dtype)
        machine = start(state, flat_params, line_search_fn)
        machine, _, _ = lax.while_loop(lambda carry: ~carry[0].done, go_on, (machine, loss, flat_grad))
        moves = unravel(machine.point - flat_params)
        return [None if g is None else move for g, move in zip(grads, moves, strict=True)], machine.state

    return follow_schedules(owner, {"lr": lr}, KINDS, init, run, elementwise=False)
