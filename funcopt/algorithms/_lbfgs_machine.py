"""L-BFGS (Liu and Nocedal, 1989) as in `torch.optim.LBFGS`, on one vector, from one evaluation to the next.

    y, s  = g - g_prev, t * d                          kept as the newest of `history_size` pairs if y.s > 1e-10
    H     = y.s / y.y
    q     = -g;      for pairs, newest first:   a_i = (s_i.q) / (y_i.s_i);   q = q - a_i * y_i
    d     = H * q;   for pairs, oldest first:   d = d + (a_i - (y_i.d) / (y_i.s_i)) * s_i
    p     = p + t * d     with t = lr, at the very first iteration lr * min(1, 1 / |g|_1), or from the line search

The algorithm is a machine that stops wherever it needs the loss: `transition` takes in the loss and gradient at the
point that was asked for and says which point is next. In JAX it runs under `lax.while_loop`; the torch bridge evaluates
a closure between transitions.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from funcopt import _tree
from funcopt.algorithms import _line_search
from funcopt.algorithms._line_search import Point, Search

MIN_CURVATURE = 1e-10


class LbfgsState(NamedTuple):
    func_evals: Any  # int32 (): evaluations of the loss so far
    n_iter: Any  # int32 (): iterations so far
    d: Any  # (n,): the last direction
    t: Any  # (): the last step along it
    old_dirs: Any  # (history_size, n): differences of gradients, y; a ring, pair k in row k % history_size
    old_stps: Any  # (history_size, n): steps, s
    ro: Any  # (history_size,): 1 / y.s
    al: Any  # (history_size,): the coefficients of the last direction
    H_diag: Any  # (): scale of the initial inverse Hessian
    prev_flat_grad: Any  # (n,): the gradient at the last iteration's start
    prev_loss: Any  # (): the loss there; the widest float, as torch's is a Python number
    num_pairs: Any  # int32 (): pairs kept so far, those already replaced included


class Options(NamedTuple):
    """Hyperparameters that may change at any update; scalars that never widen the vectors."""

    lr: Any
    max_iter: Any
    max_eval: Any
    tolerance_grad: Any
    tolerance_change: Any


class Machine(NamedTuple):
    """One update between two evaluations: it waits for the loss at `point`, or is done and `point` is the result."""

    state: LbfgsState
    x: jax.Array  # (n,): where the iteration began
    loss: jax.Array  # (): the loss at x
    flat_grad: jax.Array  # (n,): the gradient at x
    point: jax.Array  # (n,)
    iters: jax.Array  # int32 (): iterations of this update
    evals: jax.Array  # int32 (): evaluations of this update
    search: Search | None  # None: the step is fixed
    done: jax.Array  # bool ()


def initial_state(flat_params: jax.Array, history_size: int) -> LbfgsState:
    """The state before the first update; its arrays have the vector's dtype."""
    dtype = flat_params.dtype
    state = LbfgsState(
        func_evals=_tree.zero_step(),
        n_iter=_tree.zero_step(),
        d=jnp.zeros_like(flat_params),
        t=jnp.zeros((), dtype),
        old_dirs=jnp.zeros((history_size, flat_params.size), dtype),
        old_stps=jnp.zeros((history_size, flat_params.size), dtype),
        ro=jnp.zeros(history_size, dtype),
        al=jnp.zeros(history_size, dtype),
        H_diag=jnp.ones((), dtype),
        prev_flat_grad=jnp.zeros_like(flat_params),
        prev_loss=jnp.zeros((), float),
        num_pairs=_tree.zero_step(),
    )
    return jax.tree.map(functools.partial(_tree.beside, flat_params), state)


def start(state: LbfgsState, flat_params: jax.Array, line_search_fn: str | None) -> Machine:
    """A machine that waits for the loss at the parameters. No array is in it twice, so that each can be donated."""
    zeros = Point(*(jnp.zeros_like(like) for like in (state.t, state.prev_loss, state.t, flat_params)))
    return Machine(
        state=state,
        x=flat_params,
        loss=jnp.zeros_like(state.prev_loss),
        flat_grad=jnp.zeros_like(flat_params),
        point=jnp.array(flat_params),
        iters=_tree.zero_step(),
        evals=_tree.zero_step(),
        search=None if line_search_fn is None else _line_search.begin(zeros),
        done=jnp.zeros((), bool),
    )


def transition(machine: Machine, loss: jax.Array, flat_grad: jax.Array, options: Options) -> Machine:
    """Takes in the loss and the gradient at `machine.point` and goes on until the next evaluation, or the end."""
    first = machine.evals == 0
    machine = machine._replace(
        state=machine.state._replace(func_evals=machine.state.func_evals + 1), evals=machine.evals + 1
    )
    machine, arrived = _receive(machine, first, loss.astype(machine.loss.dtype), flat_grad, options)
    stop = arrived & _should_stop(machine, first, options)
    due = arrived & ~stop
    machine, stuck = _begin_iteration(machine, due, options)
    rest = stop | (due & stuck)
    # Without a line search, the last iteration's loss is of no use.
    last = due & (machine.iters >= options.max_iter) if machine.search is None else False
    point = jnp.where(rest, machine.x, machine.x + machine.state.t * machine.state.d)
    return machine._replace(point=point, done=rest | last)


def _receive(
    machine: Machine, first: jax.Array, loss: jax.Array, flat_grad: jax.Array, options: Options
) -> tuple[Machine, jax.Array]:
    """Takes in an evaluation; also says whether the machine has arrived where an iteration may begin."""
    if machine.search is None:
        return machine._replace(x=machine.point, loss=loss, flat_grad=flat_grad), jnp.ones((), bool)
    state = machine.state
    d = state.d
    zero = jnp.zeros_like(state.t)
    search, t = _line_search.advance(
        machine.search,
        Point(state.t, loss, _dot(flat_grad, d), flat_grad),
        Point(zero, state.prev_loss, _dot(state.prev_flat_grad, d), state.prev_flat_grad),
        exhausted=machine.evals > options.max_eval,
        d_norm=_largest(d),
    )
    found = _line_search.end(search, search.low)
    return machine._replace(
        state=state._replace(t=jnp.where(first, state.t, t)),
        x=jnp.where(search.over & ~first, machine.x + t * d, machine.x),
        loss=jnp.where(first, loss, found.f),
        flat_grad=jnp.where(first, flat_grad, found.g),
        search=search,
    ), first | search.over


def _should_stop(machine: Machine, first: jax.Array, options: Options) -> jax.Array:
    state = machine.state
    optimal = _largest(machine.flat_grad) <= options.tolerance_grad
    small_step = _largest(state.d * state.t) <= options.tolerance_change
    small_gain = jnp.abs(machine.loss - state.prev_loss) < options.tolerance_change
    no_progress = (machine.evals >= options.max_eval) | small_step | small_gain
    return (machine.iters >= options.max_iter) | optimal | (~first & no_progress)


def _begin_iteration(machine: Machine, due: jax.Array, options: Options) -> tuple[Machine, jax.Array]:
    """Chooses direction and first step where an iteration is due; also says whether the direction leads downhill."""
    g = machine.flat_grad
    state = _keep_pair(machine.state, g, due)
    d, al = lax.cond(due, _direction, lambda state, g: (state.d, state.al), state, g)
    inverse_norm = 1 / jnp.sum(jnp.abs(g))
    t = jnp.where((state.n_iter == 0) & (inverse_norm < 1), inverse_norm, 1) * options.lr
    gtd = _dot(g, d)
    state = state._replace(
        n_iter=state.n_iter + due,
        d=d,
        t=jnp.where(due, t, state.t),
        al=al,
        prev_flat_grad=jnp.where(due, g, state.prev_flat_grad),
        prev_loss=jnp.where(due, machine.loss, state.prev_loss),
    )
    search = machine.search
    if search is not None:
        search = _line_search.select(due, _line_search.begin(Point(jnp.zeros_like(t), machine.loss, gtd, g)), search)
    return machine._replace(state=state, iters=machine.iters + due, search=search), gtd > -options.tolerance_change


def _keep_pair(state: LbfgsState, g: jax.Array, due: jax.Array) -> LbfgsState:
    """Keeps the last iteration's pair. Before there is one, d is 0 and so is y.s."""
    y = g - state.prev_flat_grad
    s = state.d * state.t
    ys = _dot(y, s)
    keep = due & (ys > MIN_CURVATURE)
    row = state.num_pairs % state.ro.size

    # One row is written, kept or not: choosing between whole rings would copy them.
    def put(ring: jax.Array, new: jax.Array) -> jax.Array:
        return ring.at[row].set(jnp.where(keep, new, ring[row]))

    return state._replace(
        old_dirs=put(state.old_dirs, y),
        old_stps=put(state.old_stps, s),
        ro=put(state.ro, 1 / ys),
        H_diag=jnp.where(keep, ys / _dot(y, y), state.H_diag),
        num_pairs=state.num_pairs + keep,
    )


def _direction(state: LbfgsState, g: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The two-loop recursion; returns `d` and `al`."""
    size = state.ro.size
    count = jnp.minimum(state.num_pairs, size)

    def newest_first(k: jax.Array, carry: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        q, al = carry
        i = (state.num_pairs - 1 - k) % size
        a = _dot(state.old_stps[i], q) * state.ro[i]
        return q - a * state.old_dirs[i], al.at[i].set(a)

    q, al = lax.fori_loop(0, count, newest_first, (-g, state.al))

    def oldest_first(k: jax.Array, d: jax.Array) -> jax.Array:
        i = (state.num_pairs - count + k) % size
        return d + (al[i] - _dot(state.old_dirs[i], d) * state.ro[i]) * state.old_stps[i]

    return lax.fori_loop(0, count, oldest_first, q * state.H_diag), al


def _dot(x: jax.Array, y: jax.Array) -> jax.Array:
    # The default precision on a GPU may be TF32.
    return jnp.dot(x, y, precision=lax.Precision.HIGHEST)


def _largest(x: jax.Array) -> jax.Array:
    return jnp.max(jnp.abs(x), initial=0.0)
