"""What an update was like, measured where it is computed.

    grad_norm         |g|                               g: the gradients that came in, before clipping
    update_norm       |u|                               u: what is added to the parameters
    param_norm        |p|                               p: the parameters before the update
    update_ratio      |u| / |p|                         in each group
    clipped_fraction  1 - |clipped| / |g|               clip_by_global_norm and clip_by_value; 0: nothing was clipped

Norms are over all arrays that have a gradient. A *group* is what stands at the top of the parameters' tree: an entry of
the outermost dict, a parameter group in the bridge.
"""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from funcopt import _tree
from funcopt._lift import OBSERVE, wrong_state
from funcopt._program import Leaves, Program, program, run_of
from funcopt._rows import coalesce, is_rows, take_rows
from funcopt.rule import ElementwiseTransformation, GradientTransformation, PyTree, Rule
from funcopt.transforms._clip import clip_by_global_norm, clip_by_value

_CLIPS = (clip_by_global_norm.rule, clip_by_value.rule)


class Measured(NamedTuple):
    """The numbers that metrics are made of: sums of squares over arrays, so that parts of a model can be added up."""

    grad: Any  # by group, (): of the gradients that came in
    update: Any  # by group, ()
    param: Any  # by group, (): before the update
    unclipped: Any  # (): of what came to the first clip
    clipped: Any  # (): what of it clips took away
    lr: Any  # by group, (): no sum; the learning rate of its first array, NaN where none is known
    d: Any  # (): no sum; the estimate of Prodigy or D-Adapt after the update, None without one


class MetricsState(NamedTuple):
    inner_state: Any  # state of what is measured
    measured: Measured  # of the last update


def with_metrics(inner: Any) -> Any:
    """An optimizer that measures its updates, in the same program; they are the same to the last bit.

    `metrics(state)` reads the last one in JAX, `optimizer.metrics()` in torch. A checkpoint of the optimizer alone goes
    on with metrics, and the other way round: in torch they are in no checkpoint, in JAX the optimizer's own state is
    `state.inner_state`, which `state._replace(inner_state=...)` puts in.

    Args:
        inner: a transformation, clips and all; or a function that returns one, such as `funcopt.adamw`.

    Returns:
        The same with metrics: a transformation, whose `update` needs the parameters, or a function with the same
        arguments.

    Raises:
        TypeError: for anything else.

    Example:
        >>> import funcopt
        >>> tx = funcopt.with_metrics(funcopt.chain(funcopt.clip_by_global_norm(1.0), funcopt.adamw(1e-3)))
        >>> factory = funcopt.with_metrics(funcopt.adamw)
    """
    if isinstance(inner, functools.partial):
        return functools.partial(with_metrics(inner.func), *inner.args, **inner.keywords)
    if isinstance(inner, GradientTransformation):
        return _measuring(inner)
    if not callable(inner) or isinstance(inner, type):
        raise TypeError(f"with_metrics: inner must be an optimizer or a function that returns one, got {inner!r}")
    return _measuring_factory(inner)


def metrics(state: PyTree) -> dict[str, Any]:
    """What the last update was like, as arrays on their devices: nothing waits until they are read.

    Args:
        state: state of `with_metrics`, or of anything that contains one.

    Returns:
        `grad_norm`, `update_norm`, `param_norm`, `update_ratio`, `clipped_fraction`, `lr`, and `d` of an optimizer
        that estimates one. `update_ratio` and `lr` have an entry for each group, a subtree at the top of the
        parameters: `lr` is that of its first array with a gradient, before what estimates make of it, and NaN where
        none is known. Norms are over all arrays that had a gradient; before the first update all are 0 or NaN.

    Raises:
        ValueError: if nothing in the state measures, or several do.

    Example:
        >>> import funcopt, jax.numpy as jnp
        >>> tx = funcopt.with_metrics(funcopt.sgd(0.5))
        >>> params = {"w": jnp.array([4.0, 0.0]), "b": jnp.array([3.0])}
        >>> params, state = funcopt.step(tx, {"w": jnp.array([2.0, 0.0]), "b": None}, tx.init(params), params)
        >>> found = funcopt.metrics(state)
        >>> float(found["grad_norm"]), float(found["update_ratio"]["w"])
        (2.0, 0.25)
    """
    found = [node for node in jax.tree.leaves(state, is_leaf=_is_measured) if _is_measured(node)]
    if len(found) != 1:
        raise ValueError(f"metrics: state must contain the state of one funcopt.with_metrics, got {len(found)}")
    return summary(found[0])


def summary(measured: Measured) -> dict[str, Any]:
    """The metrics of what was measured, arrays or numbers."""
    grad, update, param = (sum(jax.tree.leaves(own)) ** 0.5 for own in measured[:3])
    found = {
        "grad_norm": grad,
        "update_norm": update,
        "param_norm": param,
        "update_ratio": jax.tree.map(lambda u, p: (u / p) ** 0.5, measured.update, measured.param),
        "clipped_fraction": 1 - (1 - measured.clipped / (measured.unclipped + (measured.unclipped == 0))) ** 0.5,
        "lr": measured.lr,
    }
    return found if measured.d is None else {**found, "d": measured.d}


def _is_measured(node: object) -> bool:
    return isinstance(node, Measured)


@functools.cache
def _measuring_factory(factory: Callable[..., Any]) -> Callable[..., Any]:
    """The same for the same factory, so that programs are shared."""

    @functools.wraps(factory)
    def measuring(*args: Any, **kwargs: Any) -> Program:
        return _measuring(factory(*args, **kwargs))

    return measuring


def _measuring(inner: GradientTransformation) -> Program:
    run_inner = run_of(inner)

    def init(params: PyTree) -> MetricsState:
        leaves, treedef = _tree.flatten(params)
        state, groups = inner.init(params), _Groups(treedef)
        zero = _tree.zero_step(leaves).astype(_dtype_of(leaves))
        # A learning rate is as wide as JAX has numbers, as where it is used.
        sums, lr = (groups.map(lambda _, x=x: x, leaves) for x in (zero, (zero + jnp.nan).astype(float)))
        measured = Measured(sums, sums, sums, zero, zero, lr, _estimate_in(state))
        return MetricsState(state, jax.tree.map(jnp.array, measured))  # arrays of their own, which can be donated

    def run(leaves: Leaves, state: Any, extra: dict[str, Any]) -> tuple[list[Any], MetricsState]:
        if not isinstance(state, MetricsState):
            raise ValueError(wrong_state("with_metrics", MetricsState, state))
        if leaves.params is None:
            raise ValueError("with_metrics: update needs the parameters; call update(updates, state, params)")
        seen = _Observer(leaves)
        token = OBSERVE.set(seen)
        try:
            updates, inner_state = run_inner(leaves, state.inner_state, extra)
        finally:
            OBSERVE.reset(token)
        groups = _Groups(leaves.treedef)
        sums = (groups.map(_total, list(map(_square, own))) for own in (leaves.updates, updates, _reached(leaves)))
        grad, update, param = sums
        measured = Measured(
            grad,
            update,
            param,
            functools.reduce(jnp.add, jax.tree.leaves(grad)) if seen.clips_first else _total(seen.unclipped),
            _total(seen.lost),
            groups.map(_first, seen.lr),
            _estimate_in(inner_state),
        )
        kept = jax.tree.map(lambda new, old: jnp.asarray(new).astype(old.dtype), measured, state.measured)
        return updates, MetricsState(inner_state, kept)

    return program(init, run, elementwise=isinstance(inner, ElementwiseTransformation))


class _Groups:
    """The parts of a tree's leaves that stand at its top."""

    def __init__(self, treedef: Any) -> None:
        tree = treedef.unflatten(range(treedef.num_leaves))
        parts, self._top = jax.tree.flatten(tree, is_leaf=lambda node: node is not tree)
        self._members = [jax.tree.leaves(part) for part in parts]

    def map(self, fn: Callable[[list[Any]], Any], leaves: Sequence[Any]) -> PyTree:
        """A value for each part, from the list of its leaves' values."""
        return self._top.unflatten([fn([leaves[i] for i in own]) for own in self._members])


class _Observer:
    """What the parts of an optimizer tell of an update."""

    def __init__(self, leaves: Leaves) -> None:
        self._treedef, self._updates = leaves.treedef, leaves.updates
        self.clips_first = False  # whether what is measured anyway comes to the first clip
        self._lost: dict[Any, list[Any]] = {}  # by the structure that a clip saw
        self.lr: list[Any] = [None] * len(leaves.updates)
        self.unclipped: list[Any] = []  # squares, of what came to the first clip

    @property
    def lost(self) -> list[Any]:
        """Squares that clips took away."""
        return [x for own in self._lost.values() for x in own]

    def __call__(self, make: Callable[..., Rule], values: Mapping[str, Any], leaves: Leaves, updates: Any) -> None:
        lr = values.get("lr")
        if lr is not None and leaves.treedef == self._treedef:
            known = _tree.broadcast_prefix(lr, leaves.treedef, owner="with_metrics", name="lr")
            self.lr = [None if g is None else x for x, g in zip(known, self._updates, strict=True)]
        if make in _CLIPS:
            self.clips_first |= not self._lost and leaves.updates is self._updates
            before, after = (list(map(_square, own)) for own in (leaves.updates, updates))
            self.unclipped = self.unclipped or before
            # Element by element: what clips leave alone is 0, and several of them are one sum.
            lost = [None if b is None else b - a for b, a in zip(before, after, strict=True)]
            known = self._lost.get(leaves.treedef)
            self._lost[leaves.treedef] = lost if known is None else list(map(_add, known, lost))


def _square(x: Any) -> Any:
    """The squares of an array's elements; of rows, each once."""
    if x is None:
        return None
    values = coalesce(x).values if is_rows(x) else x
    return values * values


def _add(a: Any, b: Any) -> Any:
    return None if a is None else a + b


def _total(squares: Sequence[Any]) -> Any:
    """The sum of all elements of some arrays."""
    sums = [jnp.sum(x) for x in squares if x is not None]
    return functools.reduce(jnp.add, sums) if sums else 0.0


def _first(values: Sequence[Any]) -> Any:
    return next((x for x in values if x is not None), jnp.nan)


def _reached(leaves: Leaves) -> list[Any]:
    """The parameters that have a gradient; of some rows, these rows."""
    assert leaves.params is not None
    pairs = zip(leaves.updates, leaves.params, strict=True)
    return [None if g is None else take_rows(p, coalesce(g).indices) if is_rows(g) else p for g, p in pairs]


def _dtype_of(params: Sequence[Any]) -> Any:
    """The widest of the dtypes that are computed in."""
    dtypes = (jnp.result_type(p) for p in params if p is not None)
    wide = (jnp.finfo(_tree.compute_dtype(x)).dtype for x in dtypes if jnp.issubdtype(x, jnp.inexact))
    return functools.reduce(jnp.promote_types, wide, jnp.dtype(jnp.float32))


def _estimate_in(state: PyTree) -> Any:
    """`d` of an optimizer that estimates its learning rate, None without one."""
    nodes = jax.tree.leaves(state, is_leaf=_has_estimate)
    return next((node.d for node in nodes if _has_estimate(node)), None)


def _has_estimate(node: object) -> bool:
    return "d" in _tree.shared_fields(node)
