"""Line search for the strong Wolfe conditions, one evaluation at a time (Nocedal and Wright, 2006, section 3.5).

    f(t) <= f(0) + c1 * t * f'(0)    and    |f'(t)| <= c2 * |f'(0)|

First the step grows until two points *bracket* a step that meets both; then *zoom* shrinks the bracket. New steps are
minima of the cubic through two points. Order and constants are those of `torch.optim.LBFGS`, and of minFunc before it:
in particular growth is judged against the point before only from the third evaluation on.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

C1 = 1e-4
C2 = 0.9
MIN_GROWTH = 0.01  # of the distance to the point before
MAX_GROWTH = 10.0  # times the step
MARGIN = 0.1  # of the bracket's width: where a step goes that keeps close to an end
MIN_WIDTH = 1e-9  # of the bracket, in parameters, to go on; torch does not hand its tolerance_change down to the search


class Point(NamedTuple):
    """The loss along the direction."""

    t: jax.Array  # (): the step
    f: jax.Array  # (): the loss
    gtd: jax.Array  # (): the directional derivative
    g: jax.Array  # (n,): the gradient


class Search(NamedTuple):
    """A line search that waits for the loss at the step it asked for."""

    ends: Point  # a leading axis of 2: the bracket's ends; before there is a bracket, the point before comes first
    low: jax.Array  # int32 (): which end is the lower one; the result when over
    ls_iter: jax.Array  # int32 (): evaluations received
    zooming: jax.Array  # bool (): whether there is a bracket
    insufficient: jax.Array  # bool (): whether the last step kept close to an end
    over: jax.Array  # bool ()


def select(condition: jax.Array, yes: Any, no: Any) -> Any:
    """`jnp.where` for trees."""
    return jax.tree.map(lambda a, b: jnp.where(condition, a, b), yes, no)


def begin(origin: Point) -> Search:
    """A search from step 0, before its first evaluation."""
    low, ls_iter = (jnp.zeros((), jnp.int32) for _ in range(2))
    zooming, insufficient, over = (jnp.zeros((), bool) for _ in range(3))
    return Search(_pair(origin, origin), low, ls_iter, zooming, insufficient, over)


def end(search: Search, index: jax.Array | int) -> Point:
    """One end of the bracket."""
    return jax.tree.map(lambda x: x[index], search.ends)


def advance(
    search: Search, new: Point, origin: Point, *, exhausted: jax.Array, d_norm: jax.Array
) -> tuple[Search, jax.Array]:
    """Takes in one evaluation.

    Args:
        search: the search.
        new: the loss at the step that was asked for.
        origin: the loss at step 0.
        exhausted: whether no more evaluations are allowed.
        d_norm: largest entry of the direction.

    Returns:
        The search, and the step to evaluate next, or the result when over.
    """
    larger = cubic_minimum(end(search, 0), new, new.t + MIN_GROWTH * (new.t - search.ends.t[0]), MAX_GROWTH * new.t)
    search = lax.cond(search.zooming, _zoom, _bracket, search, new, origin, exhausted)
    width = jnp.abs(search.ends.t[1] - search.ends.t[0])
    over = search.over | (search.zooming & (exhausted | (width * d_norm < MIN_WIDTH)))
    inner, insufficient = _step_inside(search)
    t = jnp.where(over, search.ends.t[search.low], jnp.where(search.zooming, inner, larger))
    return search._replace(ls_iter=search.ls_iter + 1, insufficient=insufficient, over=over), t


def cubic_minimum(a: Point, b: Point, lower: jax.Array, upper: jax.Array) -> jax.Array:
    """The step between `lower` and `upper` where the cubic through two points is least; their middle if it has none."""
    left, right = select(a.t <= b.t, (a, b), (b, a))
    d1 = a.gtd + b.gtd - (3 * (a.f - b.f) / (a.t - b.t)).astype(a.gtd.dtype)
    d2_square = d1**2 - a.gtd * b.gtd
    d2 = jnp.sqrt(jnp.maximum(d2_square, 0))
    t = right.t - (right.t - left.t) * ((right.gtd + d2 - d1) / (right.gtd - left.gtd + 2 * d2))
    return jnp.where(d2_square >= 0, jnp.minimum(jnp.maximum(t, lower), upper), (lower + upper) / 2)


def _pair(first: Point, second: Point) -> Point:
    return jax.tree.map(lambda a, b: jnp.stack([a, b]), first, second)


def _lower(ends: Point) -> jax.Array:
    return jnp.where(ends.f[0] <= ends.f[1], 0, 1).astype(jnp.int32)


def _too_high(new: Point, origin: Point) -> jax.Array:
    # The bound is rounded to the gradients' dtype, as torch's: whether equal losses pass depends on it.
    dtype = origin.gtd.dtype
    return new.f.astype(dtype) > origin.f.astype(dtype) + C1 * new.t * origin.gtd


def _flat(new: Point, origin: Point) -> jax.Array:
    return jnp.abs(new.gtd) <= -C2 * origin.gtd


def _bracket(search: Search, new: Point, origin: Point, exhausted: jax.Array) -> Search:
    before = end(search, 0)
    rises = _too_high(new, origin) | ((search.ls_iter > 1) & (new.f >= before.f))
    found = ~rises & _flat(new, origin)
    enclosed = rises | (~found & (new.gtd >= 0))
    first = select(exhausted, origin, select(enclosed | found, before, new))
    ends = _pair(first, new)
    low = jnp.where(found & ~exhausted, 1, _lower(ends)).astype(jnp.int32)
    return search._replace(ends=ends, low=low, zooming=enclosed & ~exhausted, over=found | exhausted)


def _zoom(search: Search, new: Point, origin: Point, exhausted: jax.Array) -> Search:
    del exhausted
    low, high = end(search, search.low), end(search, 1 - search.low)
    worse = _too_high(new, origin) | (new.f >= low.f)
    found = ~worse & _flat(new, origin)
    turned = ~worse & ~found & (new.gtd * (high.t - low.t) >= 0)
    high = select(worse, new, select(turned, low, high))
    low = select(worse, low, new)
    ends = select(search.low == 0, _pair(low, high), _pair(high, low))
    return search._replace(ends=ends, low=jnp.where(worse, _lower(ends), search.low), over=found)


def _step_inside(search: Search) -> tuple[jax.Array, jax.Array]:
    """A step inside the bracket, and whether it keeps close to an end; at the second time in a row it is moved away."""
    lower, upper = search.ends.t.min(), search.ends.t.max()
    t = cubic_minimum(end(search, 0), end(search, 1), lower, upper)
    margin = MARGIN * (upper - lower)
    close = jnp.minimum(upper - t, t - lower) < margin
    move = close & (search.insufficient | (t >= upper) | (t <= lower))
    moved = jnp.where(jnp.abs(t - upper) < jnp.abs(t - lower), upper - margin, lower + margin)
    return jnp.where(move, moved, t), close & ~move
