"""Lookahead (Zhang et al., 2019): fast weights that go back part of the way to slow ones every few updates.

    fast = p + u
    slow = slow + slow_step_size * (fast - slow)                           every sync_period updates
    p    = slow   in these updates,   otherwise   fast

The slow weights begin as the parameters, as in the paper; in timm's Lookahead as the fast ones at the first
synchronisation, which then changes nothing (`slow_from="first_sync"`).
"""

from typing import Annotated, Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp

from funcopt import _checks
from funcopt._numerics import choose
from funcopt.kinds import Hyperparameter, Unit, choice, integer
from funcopt.rule import Given, Refused, Rule, around, transformation, wrapper

Updates: TypeAlias = Annotated[Hyperparameter, integer(_checks.AT_LEAST_ONE)]
Start: TypeAlias = Annotated[str | None, choice("init", "first_sync")]


class LookaheadState(NamedTuple):
    step: Any  # int32 (), or a tree of them: applied updates so far
    lookahead_slow_buff: Any  # tree like the parameters: the slow weights

    def evaluated(self, param: jax.Array) -> jax.Array:
        """The slow weights."""
        del param
        return self.lookahead_slow_buff


@wrapper()
def lookahead(inner: Rule, *, sync_period: Updates = 6, slow_step_size: Unit = 0.5, slow_from: Start = None) -> Rule:
    """An optimizer whose parameters go back part of their way every few updates; with RAdam it is Ranger.

    `eval_params`, or the bridge's `eval`, gives the slow weights. Around a chain put `lookahead_sync` behind it.

    Args:
        inner: a factory or what it returned.
        sync_period: updates from one synchronisation to the next, >= 1; timm's `k`.
        slow_step_size: how far the slow weights go towards the fast ones, in [0, 1]; timm's `alpha`.
        slow_from: where the slow weights begin: "init" (or None), at the parameters; or "first_sync", as timm's.

    Returns:
        A factory or a transformation, as `inner`; state keys `step`, `lookahead_slow_buff` and those of the optimizer.

    Example:
        >>> import funcopt
        >>> ranger = funcopt.lookahead(funcopt.radam(lr=1e-3))
    """
    if inner.final:
        raise Refused("inner", "an optimizer whose update may be changed", "one that keeps weights to evaluate")
    sync = lookahead_sync.rule(sync_period, slow_step_size, slow_from)

    def before(g: jax.Array, own: Any, given: Given) -> tuple[jax.Array, Given]:
        return g, given

    def after(u: jax.Array, g: jax.Array, own: Any, given: Given) -> Any:
        return sync.update(u, own, param=given["param"])

    assert sync.init is not None
    return around(inner, sync.init, before, after, "param")._replace(final=True)


@transformation()
def lookahead_sync(sync_period: Updates = 6, slow_step_size: Unit = 0.5, slow_from: Start = None) -> Rule:
    """The part of `lookahead` that stands last in a chain.

    Args:
        sync_period: see `lookahead`.
        slow_step_size: see `lookahead`.
        slow_from: see `lookahead`.

    Returns:
        The transformation; state keys `step`, `lookahead_slow_buff`.

    Example:
        >>> import funcopt
        >>> tx = funcopt.chain(funcopt.clip_by_global_norm(1.0), funcopt.radam(1e-3), funcopt.lookahead_sync())
    """

    def init(p: jax.Array) -> LookaheadState:
        return LookaheadState(0, jnp.array(p, p.dtype))

    def update(u: jax.Array, s: LookaheadState, *, param: jax.Array) -> tuple[jax.Array, LookaheadState]:
        fast, slow = param + u, s.lookahead_slow_buff
        met = slow + slow_step_size * (fast - slow)
        if slow_from == "first_sync":
            met = choose(s.step <= sync_period, fast, met)
        due = s.step % sync_period == 0
        return choose(due, met - param, u), LookaheadState(s.step, choose(due, met, slow))

    return Rule(update, init, final=True)
