"""Schedules made of the user's own function of the step: as the factor itself, or as the ratio of two steps."""

import itertools
import operator
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from funcopt import _checks
from funcopt._checks import is_traced
from funcopt.kinds import Schedule
from funcopt.schedules._adjust import scale
from funcopt.schedules._arguments import Value, as_length, as_value
from funcopt.schedules._formula import as_array, as_steps, call_each, formula, namespace, to_value


def lambda_lr(base_lr: Value, lr_lambda: Callable[[Any], Any]) -> Schedule:
    """Multiplies by the user's function of the step: `base_lr * lr_lambda(step)`.

    Args:
        base_lr: value that the factor multiplies.
        lr_lambda: function from one step to a factor. A Python or numpy integer reaches it as a Python int, an array
            of steps element by element; under `jax.jit` it gets a traced scalar and must be written with `jax.numpy`.

    Returns:
        The schedule of `torch.optim.lr_scheduler.LambdaLR`.

    Raises:
        TypeError: if `lr_lambda` is not one function; for groups, make one schedule per group.

    Example:
        >>> lambda_lr(1.0, lambda step: 0.5 ** (step // 2))([0, 1, 2, 3, 4]).tolist()
        [1.0, 1.0, 0.5, 0.5, 0.25]
    """
    base_lr = as_value("lambda_lr", "base_lr", base_lr)
    check_function("lambda_lr", "lr_lambda", lr_lambda)
    return lambda step: to_value(base_lr * call_each(lr_lambda, as_steps(step)), step)


def multiplicative_lr(base_lr: Value, lr_lambda: Callable[[Any], Any], total_iters: int | None = None) -> Schedule:
    """Multiplies by the user's function at every step but the first: `base_lr * lr_lambda(1) * ... * lr_lambda(step)`.

    Args:
        base_lr: value at step 0.
        lr_lambda: function from one step to the ratio of its value to the one before, a Python int or, under
            `jax.jit`, a traced one.
        total_iters: number of steps after which the value stays, >= 0; torch has no such argument. With it the
            products are computed once, here. Without it a traced step multiplies all of them anew at every call, a
            loop of `step` rounds; concrete steps are remembered, so each factor is asked for once.

    Returns:
        The schedule of `torch.optim.lr_scheduler.MultiplicativeLR`.

    Raises:
        TypeError: if `lr_lambda` is not one function; for groups, make one schedule per group.
        ValueError: if `total_iters` is negative.

    Example:
        >>> multiplicative_lr(1.0, lambda step: 0.5 if step % 2 == 0 else 1.0)([0, 1, 2, 3, 4]).tolist()
        [1.0, 1.0, 0.5, 0.5, 0.25]
    """
    base_lr = as_value("multiplicative_lr", "base_lr", base_lr)
    check_function("multiplicative_lr", "lr_lambda", lr_lambda)
    if is_traced(base_lr):
        return scale(multiplicative_lr(1.0, lr_lambda, total_iters), base_lr)
    # Filled from 0 without gaps and never changed, so that threads may fill it at the same time.
    known = {0: float(base_lr)}

    def ratio(i: int) -> Any:
        value = lr_lambda(i)
        return value if is_traced(value) else float(value)

    def concrete(step: float) -> Any:
        last = len(known) - 1
        value: Any = known[min(last, int(step))]
        for i in range(last + 1, int(step) + 1):
            value = value * ratio(i)
            if not is_traced(value):  # a traced value belongs to its trace
                known[i] = value
        return value

    def traced(step: jax.Array) -> jax.Array:
        return lax.fori_loop(
            1,
            step.astype(int) + 1,
            lambda i, value: jnp.asarray(value * lr_lambda(i), dtype=float),
            jnp.asarray(base_lr, dtype=float),
        )

    if total_iters is not None:
        last = int(as_length("multiplicative_lr", "total_iters", total_iters, _checks.NON_NEGATIVE))
        ratios = map(ratio, range(1, last + 1))
        products = as_array(list(itertools.accumulate(ratios, operator.mul, initial=known[0])))
        return formula(lambda xp, step: namespace(step, products).asarray(products)[xp.minimum(step, last).astype(int)])
    return lambda step: to_value(call_each(traced if isinstance(step, jax.Array) else concrete, as_steps(step)), step)


def check_function(owner: str, argument: str, value: object) -> None:
    """Checks that one function was given."""
    if not callable(value):
        raise TypeError(f"{owner}: {argument} must be a function of the step, got {value!r}")
