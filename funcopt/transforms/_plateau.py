"""A learning rate that falls when a metric stops improving, as `torch.optim.lr_scheduler.ReduceLROnPlateau`.

    better = value < best * (1 - threshold)         "rel"; value < best - threshold in "abs"; mirrored in mode "max"
    bad    = 0 if better or cooling down else bad + 1
    lr     = max(lr * factor, min_lr)               when bad > patience, and if that is a drop of more than eps
    update = lr / base_lr * update

optax.contrib.reduce_on_plateau waits for one metric less, and has no mode "max", no absolute floor and no eps.
"""

import math
import operator
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp

from funcopt import _checks, _tree
from funcopt._rows import RowSparse, is_rows
from funcopt.kinds import Hyperparameter
from funcopt.rule import GradientTransformationExtraArgs, Leaves, PyTree, program

_OWNER = "reduce_lr_on_plateau"
_NOT_GIVEN = object()
_BELOW_ONE = _checks.Range("< 1", lambda x: x < 1.0)


class ReduceLrOnPlateauState(NamedTuple):
    best: jax.Array  # float (): the best metric so far
    num_bad_epochs: jax.Array  # int32 (): metrics in a row that were not better
    cooldown_counter: jax.Array  # int32 (): metrics that still do not count after a reduction
    lr: PyTree  # float (), or a prefix of them: the value that the last update used


def plateau_rule(
    value: jax.Array,
    best: jax.Array,
    num_bad_epochs: jax.Array,
    cooldown_counter: jax.Array,
    *,
    mode: str,
    patience: float,
    threshold: float,
    threshold_mode: str,
    cooldown: int,
) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
    """Whether to reduce, and the new values of the three."""
    sign, is_better = (-1.0, operator.lt) if mode == "min" else (1.0, operator.gt)
    better = is_better(value, best * (1.0 + sign * threshold) if threshold_mode == "rel" else best + sign * threshold)
    cooling = cooldown_counter > 0
    num_bad_epochs = jnp.where(better | cooling, 0, num_bad_epochs + 1)
    due = num_bad_epochs > patience
    return (
        due,
        jnp.where(better, value, best),
        jnp.where(due, 0, num_bad_epochs),
        jnp.where(due, cooldown, cooldown_counter - cooling),
    )


def reduce_lr_on_plateau(
    base_lr: Hyperparameter,
    mode: Literal["min", "max"] = "min",
    factor: float = 0.1,
    patience: float = 10,
    threshold: float = 1e-4,
    threshold_mode: Literal["rel", "abs"] = "rel",
    cooldown: int = 0,
    min_lr: Hyperparameter = 0.0,
    eps: float = 1e-8,
) -> GradientTransformationExtraArgs:
    """Scales finished updates down when a metric stops improving; place it behind the recipe.

    `update(updates, state, params, value=metric)` does what `scheduler.step(metric)` and then `optimizer.step()` do
    with torch's class. `value=None` says that there is no metric this time, where there is one per epoch; patience and
    cooldown count metrics. NaN is a metric, and never better.

    Args:
        base_lr: the learning rate in the recipe, >= 0, a number or a prefix of the parameters; 1 behind a recipe whose
            learning rate is a schedule, which is then multiplied by what is in the state.
        mode: whether the metric should fall ("min") or rise ("max").
        factor: what the learning rate is multiplied by, < 1, torch's default.
        patience: metrics in a row without improvement that do not yet reduce, torch's default.
        threshold: what counts as an improvement, torch's default.
        threshold_mode: whether `threshold` is relative to the best metric ("rel": for a negative one the wrong way
            round, as in torch) or absolute ("abs").
        cooldown: metrics after a reduction that do not count, torch's default.
        min_lr: floor, in the unit of `base_lr`; one number, or one per part of `base_lr`.
        eps: smallest drop that is made, in the unit of `base_lr`, torch's default.

    Returns:
        The transformation, with a `ReduceLrOnPlateauState`; `funcopt.current_hyperparams` reads its `lr`.

    Raises:
        ValueError: for values that torch refuses; by `update`, if no `value` is given or it is not one number.

    Example:
        >>> import funcopt, jax.numpy as jnp
        >>> tx = funcopt.chain(funcopt.sgd(0.1), funcopt.reduce_lr_on_plateau(0.1, factor=0.5, patience=0))
        >>> x, state = jnp.ones(2), tx.init(jnp.ones(2))
        >>> for loss in (1.0, 0.5, 0.5):
        ...     _, state = tx.update(2 * x, state, x, value=loss)
        >>> funcopt.current_hyperparams(state)
        {'lr': Array(0.05, dtype=float32)}
    """
    if _tree.has_schedule(base_lr) or _tree.has_schedule(min_lr):
        raise TypeError(
            f"{_OWNER}: base_lr and min_lr must be numbers, got a schedule; leave it to the recipe, with base_lr=1.0"
        )
    _checks.check_hyperparam(_OWNER, "base_lr", base_lr, _checks.NON_NEGATIVE)
    for name, choice, allowed in (("mode", mode, ("min", "max")), ("threshold_mode", threshold_mode, ("rel", "abs"))):
        if choice not in allowed:
            _checks.fail(_OWNER, name, f"one of {', '.join(map(repr, allowed))}", choice)
    _checks.check_real(_OWNER, "factor", factor, _BELOW_ONE)
    for name, number in (("patience", patience), ("threshold", threshold), ("eps", eps)):
        _checks.check_real(_OWNER, name, number, _checks.ANY_NUMBER)
    _checks.check_integer(_OWNER, "cooldown", cooldown, _checks.ANY_NUMBER)
    _checks.check_hyperparam(_OWNER, "min_lr", min_lr, _checks.ANY_NUMBER)
    parts = jax.tree.structure(base_lr)
    floors = parts.unflatten(_tree.broadcast_prefix(min_lr, parts, owner=_OWNER, name="min_lr"))

    def factors_of(lr: PyTree, treedef: Any) -> list[Any]:
        # A part with a learning rate of 0 does not move: its factor is 0, and not 0 / 0.
        factors = jax.tree.map(lambda lr, base: _tree.weak(lr / jnp.where(base == 0, 1.0, base)), lr, base_lr)
        return _tree.broadcast_prefix(factors, treedef, owner=_OWNER, name="base_lr")

    def reduced(due: jax.Array, lr: PyTree) -> PyTree:
        def reduce_part(lr: jax.Array, floor: Any) -> jax.Array:
            lower = jnp.maximum(lr * factor, floor).astype(lr.dtype)
            return jnp.where(due & (lr - lower > eps), lower, lr)

        return jax.tree.map(reduce_part, lr, floors)

    def init(params: PyTree) -> ReduceLrOnPlateauState:
        leaves, treedef = _tree.flatten(params)
        _tree.check_params(leaves, treedef, _OWNER, _tree.refuse_unless_floating)
        factors_of(base_lr, treedef)
        lr = jax.tree.map(lambda base: jnp.array(base, dtype=float).reshape(()), base_lr)
        worst = jnp.array(math.inf if mode == "min" else -math.inf, dtype=float)
        return ReduceLrOnPlateauState(worst, _tree.zero_step(), _tree.zero_step(), lr)

    def run(leaves: Leaves, state: Any, extra: dict[str, Any]) -> tuple[list[Any], ReduceLrOnPlateauState]:
        value = extra.get("value", _NOT_GIVEN)
        if value is _NOT_GIVEN:
            raise ValueError(
                f"{_OWNER}: update needs the metric; call update(updates, state, params, value=metric), with "
                "value=None where there is none"
            )
        if value is not None:
            if jnp.size(value) != 1:
                raise ValueError(f"{_OWNER}: value must be one number, got shape {jnp.shape(value)}")
            due, best, num_bad_epochs, cooldown_counter = plateau_rule(
                jnp.asarray(value, dtype=state.best.dtype).reshape(()),
                state.best,
                state.num_bad_epochs,
                state.cooldown_counter,
                mode=mode,
                patience=patience,
                threshold=threshold,
                threshold_mode=threshold_mode,
                cooldown=int(cooldown),
            )
            state = ReduceLrOnPlateauState(best, num_bad_epochs, cooldown_counter, reduced(due, state.lr))
        factors = factors_of(state.lr, leaves.treedef)
        return [_times(factor, u) for factor, u in zip(factors, leaves.updates, strict=True)], state

    return program(init, run, elementwise=True)


def _times(factor: Any, update: Any) -> Any:
    if update is None:
        return None
    return RowSparse(update.indices, factor * update.values) if is_rows(update) else factor * update
