"""Reading from a state which values of its changing hyperparameters were used.

Two kinds of parts keep them in their states: those whose hyperparameters are schedules, and `reduce_lr_on_plateau`.
Which names there are follows from the state's structure alone, so reading works in a jitted step, too.
"""

from typing import Any

import jax
import optax
from jax.tree_util import DictKey

from funcopt._tree import is_array
from funcopt.rule import PyTree, ScheduledState
from funcopt.transforms import ReduceLrOnPlateauState

_WITH_HYPERPARAMS = (ScheduledState, optax.InjectHyperparamsState, optax.InjectStatefulHyperparamsState)


def current_hyperparams(state: PyTree) -> dict[str, Any]:
    """The values of changing hyperparameters that the last update used; before the first, those that it will use.

    Args:
        state: the state of any transformation, also of a chain, a partition, or optax's `inject_hyperparams`.

    Returns:
        A value for each hyperparameter that is a schedule, and `lr` of `reduce_lr_on_plateau`: a scalar array, a tuple
        of them (`betas`), or a prefix where there is one value per part. Numbers that never change are in no state,
        and so not here. Where a name occurs in several parts of the state: a dict by label (of `partition` or
        `named_chain`), or a tuple in the order of the chain. A schedule with `reduce_lr_on_plateau` behind it is such
        a case: the two are factors.

    Example:
        >>> import funcopt, jax.numpy as jnp
        >>> tx = funcopt.adamw(lr=lambda step: 0.1 / (step + 1))
        >>> state = tx.init(jnp.ones(2))
        >>> for _ in range(2):
        ...     _, state = tx.update(jnp.ones(2), state, jnp.ones(2))
        >>> funcopt.current_hyperparams(state)
        {'lr': Array(0.05, dtype=float32)}
    """
    return {name: _one_or_tuple(values) for name, values in _collect(state).items()}


def _collect(node: PyTree) -> dict[str, list[Any]]:
    """The values found in a part of a state, by name, in the order of the chain."""
    found: dict[str, list[Any]] = {}
    if isinstance(node, ReduceLrOnPlateauState):
        return {"lr": [node.lr]}
    if is_array(node):
        return found
    if isinstance(node, _WITH_HYPERPARAMS):
        found = {name: [value] for name, value in node.hyperparams.items()}
        node = node.inner_state
    children = jax.tree_util.tree_flatten_with_path(node, is_leaf=lambda x: x is not node)[0]
    labelled: dict[str, dict[Any, list[Any]]] = {}
    for path, child in children:
        for name, values in _collect(child).items():
            if path and isinstance(path[0], DictKey):
                labelled.setdefault(name, {})[path[0].key] = values
            else:
                found.setdefault(name, []).extend(values)
    for name, by_label in labelled.items():
        several = len(by_label) > 1
        values = (
            [{label: _one_or_tuple(own) for label, own in by_label.items()}]
            if several
            else next(iter(by_label.values()))
        )
        found.setdefault(name, []).extend(values)
    return found


def _one_or_tuple(values: list[Any]) -> Any:
    return values[0] if len(values) == 1 else tuple(values)
