"""Different transformations for different parts of the tree: optax's, made to cope with missing gradients.

optax calls a mask or label function on the *updates*, where a missing gradient leaves no place to label; here it is
called on the parameters.
"""

from collections.abc import Callable, Hashable, Mapping
from typing import Any

import jax
import optax

from funcopt._base import GradientTransformation, GradientTransformationExtraArgs, PyTree
from funcopt._checks import is_schedule


def _on_params(
    owner: str,
    wrap: Callable[[PyTree], GradientTransformationExtraArgs],
    tree_or_fn: PyTree | Callable[[PyTree], PyTree],
) -> GradientTransformationExtraArgs:
    """Builds `wrap(tree)` at once, or from the parameters at each call where the tree is given as a function."""
    if not is_schedule(tree_or_fn):
        return wrap(tree_or_fn)

    def update(updates: PyTree, state: PyTree, params: PyTree = None, **extra: Any) -> tuple[PyTree, PyTree]:
        if params is None:
            raise ValueError(f"{owner}: a function of the parameters needs them; call update(updates, state, params)")
        return wrap(tree_or_fn(params)).update(updates, state, params, **extra)

    return GradientTransformationExtraArgs(lambda params: wrap(tree_or_fn(params)).init(params), update)


def masked(inner: GradientTransformation, mask: PyTree | Callable[[PyTree], PyTree]) -> GradientTransformationExtraArgs:
    """Applies `inner` where the mask is True and passes the other updates through unchanged: `optax.masked`.

    To stop a part of the tree from moving use `freeze` or `partition`: what passes here is the gradient itself.

    Args:
        inner: any transformation; it keeps state only for what it sees.
        mask: prefix of booleans, or a function from the parameters to one.

    Returns:
        The transformation.

    Example:
        >>> import funcopt, jax
        >>> matrices = lambda params: jax.tree.map(lambda p: p.ndim > 1, params)
        >>> tx = funcopt.chain(funcopt.masked(funcopt.add_decayed_weights(0.01), matrices), funcopt.sgd(0.1))
    """
    return _on_params("masked", lambda tree: optax.masked(inner, tree), mask)


def partition(
    transforms: Mapping[Hashable, GradientTransformation], labels: PyTree | Callable[[PyTree], PyTree]
) -> GradientTransformationExtraArgs:
    """Applies to each part of the tree the transformation that its label names: `optax.partition`.

    Args:
        transforms: transformation by label.
        labels: prefix of labels, or a function from the parameters to one.

    Returns:
        The transformation.

    Raises:
        ValueError: for a label without a transformation.

    Example:
        >>> import funcopt, optax
        >>> parts = {"slow": funcopt.sgd(0.01), "fast": funcopt.adamw(1e-3), "fixed": optax.set_to_zero()}
        >>> tx = funcopt.partition(parts, {"stem": "fixed", "body": "slow", "head": "fast"})
    """

    def wrap(tree: PyTree) -> GradientTransformationExtraArgs:
        unknown = sorted({str(label) for label in jax.tree.leaves(tree) if label not in transforms})
        if unknown:
            known = ", ".join(map(repr, transforms))
            raise ValueError(f"partition: labels must be among {known}, got {', '.join(map(repr, unknown))}")
        return optax.partition(transforms, tree)

    return _on_params("partition", wrap, labels)
