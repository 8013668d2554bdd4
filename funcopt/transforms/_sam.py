"""Sharpness-aware minimization (Foret et al., 2020; adaptive: Kwon et al., 2021): a gradient from a worse point nearby.

point = p + rho * g / (|g| + 1e-12)                    |g|: the norm over all parameters
point = p + rho * p * p * g / (|p * g| + 1e-12)        adaptive
g     = gradient at the point, with which p is updated
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from funcopt import _checks, _tree
from funcopt._program import apply_updates, widened
from funcopt.rule import PyTree
from funcopt.transforms._clip import global_norm


def sam(
    grad_fn: Callable[..., Any],
    rho: PyTree = 0.05,
    adaptive: bool = False,
    *,
    has_value: bool = False,
    has_aux: bool = False,
) -> Callable[..., Any]:
    """A gradient function whose gradients are taken where the loss is near its largest nearby; davda54's `SAM`.

    It calls `grad_fn` twice, with the same further arguments. What comes beside the gradients, the value and what is
    auxiliary, is that of the first call, at the parameters themselves.

    Args:
        grad_fn: `(params, *args, **kwargs) -> grads`, such as `jax.grad` returns; where `grads` has None the parameter
            stays where it is.
        rho: how far the point is, >= 0; as a prefix of the parameters, by part. There is one norm for all parts.
        adaptive: whether the distance of each element is in proportion to its magnitude; `rho` is then larger, such as
            2.
        has_value: whether `grad_fn` returns `(value, grads)`, as `jax.value_and_grad` does.
        has_aux: whether it was made with `has_aux=True`, and returns `(grads, aux)`, or `((value, aux), grads)`.

    Returns:
        The function, which returns what `grad_fn` does.

    Example:
        >>> import funcopt, jax, jax.numpy as jnp
        >>> loss = lambda params: jnp.sum(params["w"] ** 4)
        >>> value_and_grad = funcopt.sam(jax.value_and_grad(loss), rho=0.5, has_value=True)
        >>> value_and_grad({"w": jnp.array([1.0, 0.0])})
        (Array(1., dtype=float32), {'w': Array([13.5,  0. ], dtype=float32)})
    """
    for value in jax.tree.leaves(rho):
        _checks.check_number("sam", "rho", value, _checks.NON_NEGATIVE)

    def gradients(result: Any) -> PyTree:
        return result[1] if has_value else result[0] if has_aux else result

    def at_point(params: PyTree, *args: Any, **kwargs: Any) -> Any:
        first = grad_fn(params, *args, **kwargs)
        second = grad_fn(_point(params, gradients(first), rho, adaptive), *args, **kwargs)
        if has_value:
            return first[0], second[1]
        return (second[0], first[1]) if has_aux else second

    return at_point


def _point(params: PyTree, grads: PyTree, rho: PyTree, adaptive: bool) -> PyTree:
    """Where the loss is largest nearby, as far as its gradient tells."""
    leaves, treedef = _tree.flatten(widened(grads))
    leaves = [None if getattr(g, "dtype", None) == jax.dtypes.float0 else g for g in leaves]
    own = treedef.flatten_up_to(params)
    sizes: list[Any] = [
        None if g is None else jnp.abs(p.astype(g.dtype)) if adaptive else 1.0 for g, p in zip(leaves, own, strict=True)
    ]
    norm = _tree.weak(global_norm([None if g is None else a * g for a, g in zip(sizes, leaves, strict=True)]))
    rhos = map(_tree.weak, _tree.broadcast_prefix(rho, treedef, owner="sam", name="rho"))
    updates = [
        None if g is None else a * a * g * (r / (norm + 1e-12)) for a, g, r in zip(sizes, leaves, rhos, strict=True)
    ]
    return apply_updates(params, treedef.unflatten(updates))
