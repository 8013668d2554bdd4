"""The weights to evaluate, where an optimizer keeps others than the ones that it trains."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from funcopt import _tree
from funcopt.rule import PyTree


def eval_params(state: PyTree, params: PyTree) -> PyTree:
    """The parameters to evaluate and to publish: what an optimizer with an average, or slow weights, keeps them for.

    Args:
        state: state of `schedule_free`, `lookahead`, `params_ema`, `params_swa` or `asgd`, or of anything that contains
            one of these once, such as a chain.
        params: tree of arrays: the parameters that are trained.

    Returns:
        Tree like the parameters, in their dtypes; until averaging starts the parameters themselves.

    Raises:
        ValueError: if nothing in the state keeps such weights, or several do.

    Example:
        >>> import funcopt, jax.numpy as jnp
        >>> tx = funcopt.chain(funcopt.sgd(0.5), funcopt.params_ema(0.5))
        >>> params = {"w": jnp.ones(2)}
        >>> params, state = funcopt.step(tx, {"w": jnp.ones(2)}, tx.init(params), params)
        >>> params, state = funcopt.step(tx, {"w": jnp.ones(2)}, state, params)
        >>> funcopt.eval_params(state, params)["w"]
        Array([0.25, 0.25], dtype=float32)
    """
    found = _keeper(state, "eval_params")
    return _map(type(found).evaluated, found, params)


def train_params(state: PyTree, params: PyTree) -> PyTree:
    """The parameters to train, from those to evaluate: the inverse of `eval_params`, up to rounding.

    For a run that goes on from published weights; a loop that kept its parameters does not need it.

    Args:
        state: state of `schedule_free`, or of anything that contains one.
        params: tree of arrays, as `eval_params` returned them.

    Returns:
        Tree like the parameters.

    Raises:
        ValueError: if nothing in the state tells them, as an average that the training does not read.

    Example:
        >>> import funcopt, jax.numpy as jnp
        >>> tx, params = funcopt.schedule_free_sgd(0.1), {"w": jnp.ones(2)}
        >>> params, state = funcopt.step(tx, params, tx.init(params), params)
        >>> again = funcopt.train_params(state, funcopt.eval_params(state, params))
    """
    found = _keeper(state, "train_params")
    if getattr(type(found), "trained", None) is None:
        raise ValueError(
            f"train_params: state must tell the parameters from their average, got a {type(found).__name__}; keep the "
            "parameters that are trained"
        )
    return _map(type(found).trained, found, params)


def averaged_params(state: PyTree) -> PyTree:
    """The average of the parameters that `asgd`, `params_ema` or `params_swa` keeps: `eval_params` without the
    parameters.

    Args:
        state: state of one of them, or of anything that contains it once, such as a chain.

    Returns:
        Tree like the parameters; the parameters themselves until averaging starts.

    Raises:
        ValueError: if there is no such state, or several.
    """
    found = _keeper(state, "averaged_params")
    average = getattr(type(found), "average", None)
    if average is None:
        raise ValueError(
            f"averaged_params: state must keep an average as it is, got a {type(found).__name__}; call "
            "eval_params(state, params)"
        )
    return getattr(found, average)


def keepers(state: PyTree) -> list[Any]:
    """The states, inside of a state, that keep weights to evaluate."""
    return [node for node in jax.tree.leaves(state, is_leaf=_keeps) if _keeps(node)]


def _keeps(node: object) -> bool:
    return hasattr(type(node), "evaluated")


def _keeper(state: PyTree, owner: str) -> Any:
    found = keepers(state)
    if len(found) != 1:
        raise ValueError(
            f"{owner}: state must contain the state of one funcopt.schedule_free, lookahead, params_ema, params_swa or "
            f"asgd, got {len(found)}"
        )
    return found[0]


def _map(fn: Callable[[Any, jax.Array], jax.Array], state: Any, params: PyTree) -> PyTree:
    """Maps over the arrays, in the precision that is computed in."""
    leaves, treedef = _tree.flatten(params)
    leaves = [None if x is None else jnp.asarray(x) for x in leaves]
    once = ("step", *_tree.shared_fields(state))
    columns = {
        n: [getattr(state, n)] * len(leaves) if n in once else treedef.flatten_up_to(getattr(state, n))
        for n in state._fields
    }

    def of_leaf(i: int, param: Any) -> Any:
        own = {n: column[i] for n, column in columns.items()}
        if param is None or all(x is None for n, x in own.items() if n not in once):
            return param
        wide = {n: jax.tree.map(_tree.to_compute, x) if n not in once else x for n, x in own.items()}
        return _tree.from_compute(fn(type(state)(**wide), _tree.to_compute(param)), param.dtype)

    return treedef.unflatten([of_leaf(i, param) for i, param in enumerate(leaves)])
