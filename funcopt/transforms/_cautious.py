"""Cautious updates (Liang et al., 2024): an update leaves out what goes against the gradient.

mask = u * g > 0                                                       u: the direction, before decay and lr
u    = u * mask / max(mean(mask), floor)                               the mean over each array
"""

from typing import Annotated, Any, TypeAlias

import jax
import jax.numpy as jnp

from funcopt import _checks
from funcopt.frame import redirected
from funcopt.kinds import Hyperparameter, number
from funcopt.rule import Frame, Refused, Rule, asked_for, asking, wrapper

Floor: TypeAlias = Annotated[Hyperparameter, number(_checks.UNIT_HALF_OPEN_LEFT)]


@wrapper(elementwise=False)
def cautious(inner: Rule, *, floor: Floor = 1e-3) -> Rule:
    """An optimizer that moves an element only where its direction agrees with the gradient's sign; timm's `caution`.

    The gradient is the one that the optimizer was given, after clipping, and after an L2 penalty where it has one.
    Decoupled decay is added afterwards, and so is LAMB's, whose ratio of norms is that of the masked update. Where the
    optimizer's decay cannot be told from its direction, both are masked.

    Args:
        inner: a factory or what it returned.
        floor: smallest mean of the mask by which the rest is enlarged, in (0, 1].

    Returns:
        A factory or a transformation, as `inner`, with its state.

    Raises:
        ValueError: for an optimizer that goes by the parameters its updates lead to, such as `schedule_free`'s: wrap
            what is in it.

    Example:
        >>> import funcopt
        >>> tx = funcopt.chain(funcopt.clip_by_global_norm(1.0), funcopt.cautious(funcopt.lion(1e-4)))
        >>> caution = funcopt.cautious(funcopt.adamw)
    """
    if inner.final:
        raise Refused("inner", "an optimizer whose update may be changed", "one that keeps weights to evaluate")
    frame = inner.frame or Frame(None)
    along = 1.0 if frame.redirect is not None or frame.maximize else -1.0
    return redirected(inner, lambda rule: _masked(rule, floor, along))


def _masked(rule: Rule, floor: Any, sign: float) -> Rule:
    """A rule whose updates that go along the gradient, or with `sign` -1 against it, are left."""

    def masked(g: jax.Array, u: jax.Array) -> jax.Array:
        mask = jnp.where(sign * u * g > 0, 1.0, 0.0).astype(u.dtype)
        return u * mask / jnp.maximum(jnp.sum(mask) / max(mask.size, 1), floor)

    def update(g: jax.Array, *state: Any, **given: Any) -> Any:
        result = rule.update(g, *state, **given)
        return masked(g, result) if rule.init is None else (masked(g, result[0]), result[1])

    return rule._replace(update=asking(update, *asked_for(rule.update)), rows="refuse", frame=None)
