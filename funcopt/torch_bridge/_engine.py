"""The compiled update: what is traced, what is static, what is donated.

    traced   gradients, state, parameters; the numbers of all groups, packed in one float64 vector
    static   flags and names (`_binding.Layout`), and as long as there are few patterns of them, missing gradients
    borrowed gradients, and parameters in torch's memory
    donated  on the fast path the state, and parameters in JAX's memory: the update writes over them, all or nothing.
             It needs no memory of its own, so there is nothing that could fail half-way
    kept     on the plain path the old state, until the new one is taken over: an update that runs out of memory has
             changed nothing. With gradients of rows it is donated, since a new copy of a table would cost more than
             the update
    merged   on the fast path on the CPU the loops over all results of a parameter, see `_apart` and `_fusion`

Everything runs with x64 enabled: float64 parameters keep their bits, and scalar arithmetic is float64 as in torch,
while the arrays keep their own dtypes.
"""

import contextlib
import functools
import itertools
from collections import Counter
from collections.abc import Callable, Iterator
from operator import attrgetter
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from funcopt._program import widened
from funcopt._rows import is_rows
from funcopt._tree import weak, with_step_per_leaf
from funcopt.rule import PyTree, apply_updates
from funcopt.torch_bridge import _fusion
from funcopt.torch_bridge._apart import compute_apart
from funcopt.torch_bridge._binding import Binding, Layout
from funcopt.torch_bridge._buffers import Device
from funcopt.torch_bridge._groups import GroupLeaves, PerGroup, is_group_leaves

_shape_of, _dtype_of = attrgetter("shape"), attrgetter("dtype")

MAX_PATTERNS = 8
"""Patterns of missing gradients that get a program of their own, in which the missing cost nothing. Beyond, one program
for all further patterns computes with zeros and drops what comes of them."""


class Update(NamedTuple):
    """What an update needs; trees by group, in which a missing gradient is None."""

    grads: PerGroup  # borrowed
    owned: PerGroup  # parameters in memory that the update may overwrite
    lent: PerGroup  # the other parameters, borrowed
    state: PyTree  # for all parameters
    amp: tuple[Any, Any] | None  # scale of the gradients, and whether to skip the update (non-zero); borrowed
    extra: dict[str, Any]  # further arguments of the transformation's `update`, such as the loss


class Engine:
    """Runs a recipe on one device. It keeps no state between calls but the compiled programs.

    Args:
        binding: what to run.
        device: where.
    """

    def __init__(self, binding: Binding, device: Device) -> None:
        self.device = device
        self.traces = 0  # times the update was traced: one per layout and pattern of missing gradients
        self._binding = binding
        # Patterns of missing gradients that have a program of their own, for each way in which parameters were joined.
        self._patterns: dict[tuple[Any, ...], set[tuple[Any, ...]]] = {}
        self._programs: dict[bool, Callable[..., Any]] = {}  # by whether they overwrite what they are given
        self._merged: dict[tuple[Any, ...], jax.stages.Compiled] = {}  # by layout, structure, shapes and dtypes

    @contextlib.contextmanager
    def precision(self) -> Iterator[None]:
        """The context in which all of the engine's arrays are made and used."""
        with jax.enable_x64(True), jax.default_device(self.device):
            yield

    def init(self, layout: Layout, numbers: np.ndarray, params: PerGroup) -> PyTree:
        """The initial state, in arrays of its own: none is a parameter's, or another's twice, so all can be donated."""
        with self.precision():
            tx = self._binding.build(layout.fill(numbers.tolist()))
            # Compiled as one: operation by operation each shape would be compiled for itself.
            state = jax.jit(lambda params: jax.tree.map(jnp.array, tx.init(params)))(params)
            # On that device for good, as a loaded state is, or XLA would compile once more for the difference; and
            # ready, since the parameters are borrowed.
            return jax.block_until_ready(jax.device_put(state, self.device))

    def update(self, layout: Layout, numbers: np.ndarray, given: Update, *, in_place: bool) -> tuple[PerGroup, PyTree]:
        """One update.

        Args:
            layout: static part of the hyperparameters.
            numbers: float64 vector, the rest of them.
            given: not to be used again where the update is in place, or any gradient is one of rows.
            in_place: whether to write over state and owned parameters.

        Returns:
            New arrays for the parameters that have a gradient, and the state for all. Both are ready: no computation
            still reads borrowed memory.
        """
        grads, owned, lent, state, amp, extra = given
        has_rows = any(is_rows(leaf) for node in grads.values for leaf in node.values)
        present = {node.group: tuple(key for key, grad in node.items() if grad is not None) for node in grads.values}

        def only_present(tree: PyTree) -> PyTree:
            return _map_group_leaves(lambda node: node.take(present[node.group]), tree)

        # A check of the result would come too late for what was overwritten.
        with self.precision(), jax.debug_nans(False), jax.debug_infs(False):
            run = functools.partial(self._run, layout, in_place=in_place, has_rows=has_rows)
            if all(node.keys == present[node.group] for node in grads.values):
                done = run(owned, state, lent, numbers, grads, amp, extra, None)
                owned, state, lent = jax.block_until_ready(done)
                return _merge(grads, owned, lent), state
            state = with_step_per_leaf(state)
            pattern = tuple(present.values())
            patterns = self._patterns.setdefault(tuple(node.keys for node in grads.values), set())
            if pattern in patterns or len(patterns) < MAX_PATTERNS:
                patterns.add(pattern)
                part = (only_present(tree) for tree in (owned, state, lent))
                done = run(*part, numbers, only_present(grads), amp, extra, None)
                owned, part_of_state, lent = jax.block_until_ready(done)
                state = _map_group_leaves(lambda node, new: node.put(new), state, part_of_state)
            else:
                flags = np.array([grad is not None for node in grads.values for grad in node.values])
                filled = _map_group_leaves(_fill_with_zeros, grads, _merge(grads, owned, lent))
                done = run(owned, state, lent, numbers, filled, amp, extra, flags)
                owned, state, lent = jax.block_until_ready(done)
            return _merge(grads, owned, lent), state

    def _run(self, layout: Layout, *arguments: Any, in_place: bool, has_rows: bool) -> Any:
        """Calls the program for arguments of this kind, compiled when it is first needed."""
        # For a GPU XLA merges loops by itself. And where nothing is to be compiled nothing is to be ahead of time.
        compiling = not jax.config.jax_disable_jit  # pyright: ignore[reportAttributeAccessIssue]
        if not (compiling and in_place and not has_rows and self.device.platform == "cpu"):
            return self._jitted(donating=in_place or has_rows)(layout, *arguments)
        leaves, treedef = jax.tree.flatten(arguments)
        arrays = [leaf for leaf in leaves if not isinstance(leaf, float)]  # but for the loss
        kind = (layout, treedef, *map(_shape_of, arrays), *map(_dtype_of, arrays))
        if kind not in self._merged:
            self._merged[kind] = self._compile_merged(layout, *arguments)
        return self._merged[kind](*arguments)

    def _compile_merged(self, layout: Layout, *arguments: Any) -> jax.stages.Compiled:
        """The update in place: with merged loops, or as it is where XLA does not merge them."""
        merged = _fusion.compile_merging(self._jit(donating=True, apart=True).lower(layout, *arguments))
        if _fusion.moves_little(merged):
            return merged
        traces = self.traces  # of updates that are run
        plain = self._jit(donating=True).lower(layout, *arguments).compile()
        self.traces = traces
        return min(merged, plain, key=_fusion.cost)

    def _jitted(self, *, donating: bool) -> Callable[..., Any]:
        if donating not in self._programs:
            self._programs[donating] = self._jit(donating=donating)
        return self._programs[donating]

    def _jit(self, *, donating: bool, apart: bool = False) -> Any:
        """The update, which takes the layout as a static argument."""
        return jax.jit(
            functools.partial(self._update, apart),
            static_argnums=0,
            # Donated arguments and their results stand in the same order: XLA pairs arrays of one shape by their
            # places. None is left out, not even one that the update ignores: its memory is to be that of a result.
            donate_argnums=(1, 2) if donating else (),
            keep_unused=donating,
        )

    def _update(
        self,
        apart: bool,
        layout: Layout,
        owned: PerGroup,
        state: PyTree,
        lent: PerGroup,
        numbers: jax.Array,
        grads: PerGroup,
        amp: tuple[jax.Array, jax.Array] | None,
        extra: dict[str, jax.Array],
        present: jax.Array | None,
    ) -> tuple[PerGroup, PyTree, PerGroup]:
        self.traces += 1
        params = _merge(grads, owned, lent)

        def compute(grads: PerGroup, state: PyTree, params: PerGroup) -> tuple[PerGroup, PyTree]:
            """New parameters and state."""
            if amp is not None:
                grads = jax.tree.map(functools.partial(_unscale, scale=amp[0]), grads)
            updates, new_state = self._transform(layout, numbers, grads, state, params, extra)
            # A transformation that is careless with dtypes (float32 moments for bfloat16 parameters after one update)
            # must not change what its state is made of.
            new_state = jax.tree.map(lambda new, old: new.astype(old.dtype), new_state, state)
            nothing = jax.tree.map(jnp.zeros_like, updates)
            if present is not None:
                flags = _like(present, grads)
                updates = _map_group_leaves(functools.partial(_select, flags), nothing, updates)
                new_state = _map_group_leaves(functools.partial(_select, flags), state, new_state)
            if amp is not None:
                skip = amp[1].reshape(()) != 0
                updates, new_state = jax.tree.map(
                    lambda old, new: jnp.where(skip, old, new), (nothing, state), (updates, new_state)
                )
            return jax.tree.map(_new_value, updates, params, is_leaf=is_rows), new_state

        if apart:
            new_params, new_state = compute_apart(compute, label_moments, grads, state, params)
        else:
            new_params, new_state = compute(grads, state, params)
        return _like_keys(new_params, owned), new_state, _like_keys(new_params, lent)

    def _transform(
        self,
        layout: Layout,
        numbers: jax.Array,
        grads: PerGroup,
        state: PyTree,
        params: PerGroup,
        extra: dict[str, jax.Array],
    ) -> tuple[PyTree, PyTree]:
        """The updates, and the new state."""
        tx = self._binding.build(layout.fill([weak(numbers[i]) for i in range(layout.size)]))
        try:
            return tx.update(widened(grads), state, params, **extra)
        except TypeError as error:
            if "required keyword-only argument" not in str(error):
                raise
            raise TypeError(
                f"TorchBridge: {self._binding.name} needs value, the loss; call step(closure) with a closure that "
                "returns it"
            ) from error


def _merge(like: PerGroup, *trees: PerGroup) -> PerGroup:
    """What stands in several trees as one, in the order of another."""
    merged = []
    for node, *nodes in zip(like.values, *(tree.values for tree in trees), strict=True):
        items = dict(itertools.chain.from_iterable(part.items() for part in nodes))
        merged.append(GroupLeaves(node.group, tuple(items), items.values()).take(node.keys))
    return PerGroup(merged)


def _like_keys(tree: PerGroup, like: PerGroup) -> PerGroup:
    """Those leaves of a tree whose keys another has."""
    return PerGroup(node.take(other.keys) for node, other in zip(tree.values, like.values, strict=True))


def label_moments(results: tuple[PerGroup, PyTree]) -> tuple[PyTree, PyTree]:
    """0 for the parameters and all scalars; 1, 2, ... for the moments, each with one array per parameter."""
    params, state = results
    moments: Counter[int] = Counter()  # so far, by group

    def label(node: PyTree) -> PyTree:
        if is_group_leaves(node) and any(leaf.ndim for leaf in jax.tree.leaves(node)):
            moments[node.group] += 1
        number = moments[node.group] if is_group_leaves(node) else 0
        return jax.tree.map(lambda leaf: number if leaf.ndim else 0, node)

    return jax.tree.map(lambda _: 0, params), jax.tree.map(label, state, is_leaf=is_group_leaves)


def _like(flags: jax.Array, tree: PerGroup) -> dict[tuple[int, str | int], jax.Array]:
    """One flag per parameter, by group and key."""
    places = [(node.group, key) for node in tree.values for key in node.keys]
    return {place: flags[i] for i, place in enumerate(places)}


def _select(flags: dict[tuple[int, str | int], jax.Array], old: GroupLeaves, new: GroupLeaves) -> GroupLeaves:
    """The new values of the parameters whose flag is set, the old ones of the others."""
    values = (
        jax.tree.map(functools.partial(jnp.where, flags[old.group, key]), value, before)
        for (key, before), value in zip(old.items(), new.values, strict=True)
    )
    return GroupLeaves(old.group, old.keys, values)


def _fill_with_zeros(grads: GroupLeaves, params: GroupLeaves) -> GroupLeaves:
    values = (
        np.zeros_like(param) if grad is None else grad for grad, param in zip(grads.values, params.values, strict=True)
    )
    return GroupLeaves(grads.group, grads.keys, values)


def _unscale(grad: jax.Array, scale: jax.Array) -> jax.Array:
    """A gradient without the scale of its loss, in float32 at least, since half precision is what it was scaled for."""
    if not jnp.issubdtype(grad.dtype, jnp.inexact):
        return grad
    return widened(grad) * (1 / scale.reshape(())).astype(jnp.promote_types(grad.real.dtype, jnp.float32))


def _new_value(update: Any, param: Any) -> Any:
    """The new parameter; or the update itself, where it is dense and of the parameter only some rows are here."""
    return update if is_rows(param) and not is_rows(update) else apply_updates(param, update)


def _map_group_leaves(fn: Callable[..., GroupLeaves], tree: PyTree, *rest: PyTree) -> PyTree:
    """Maps over what is kept per parameter; the last tree's values are taken for the rest of the state."""
    return jax.tree.map(
        lambda *nodes: fn(*nodes) if is_group_leaves(nodes[0]) else nodes[-1], tree, *rest, is_leaf=is_group_leaves
    )
