"""The compiled update: one XLA program for all parameters, shared by all optimizers of the process.

A program is keyed by what it computes: recipes, and the shapes and dtypes of arrays. Hyperparameters are numbers in
arrays, so that changing them compiles nothing, nor does another division into groups, or another optimizer.

What the caller does with its arguments:

    donated  memory that the caller holds as JAX's own: on the CPU overwritten in place
    given    borrowed; the caller has waited for the result before anything else touches the memory

Everything runs with x64 enabled: float64 parameters keep their bits, and scalar arithmetic is float64 as in torch,
while the arrays keep their own dtypes.
"""

import collections
import contextlib
import itertools
import math
import threading
from collections.abc import Callable, Iterator, Sequence
from operator import attrgetter
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import torch

from funcopt.torch_bridge._buffers import Device, borrow_as_jax, borrow_as_torch, borrow_flat
from funcopt.torch_bridge._processes import refuse_forked
from funcopt.torch_bridge._units import Form, array_like, form_of, plain_array
from funcopt.torch_bridge.engines import _fusion, _recipes, _segments
from funcopt.torch_bridge.engines._engine import Measurement, Part, Updated
from funcopt.torch_bridge.engines._memory import CopiedMemory, JaxMemory, Memory, writes_in_place
from funcopt.torch_bridge.engines._recipes import Elementwise, Recipe, Whole

_shape_of, _dtype_of = attrgetter("shape"), attrgetter("dtype")

MAX_PROGRAMS = 1024
"""Programs that are kept; after that the one that was used least recently goes."""

_programs: collections.OrderedDict[Any, Any] = collections.OrderedDict()
_lock = threading.RLock()


class _Key(NamedTuple):
    """What decides a program."""

    recipes: tuple[Recipe, ...]
    arrangements: tuple[Any, ...]
    own: tuple[tuple[int, ...], ...]  # shapes
    shared: int  # numbers
    device: Device
    measure: bool = False  # whether it only says what the update is like


class Engine:
    """Runs recipes on one device.

    Args:
        device: where.
    """

    name = "xla"
    takes_any_memory = False

    def __init__(self, device: Device) -> None:
        self.device = device
        self.used: set[Any] = set()  # the programs' keys
        self._last: dict[bool, tuple[Any, Any]] = {}  # by whether it measures: a key, and its program

    @property
    def program(self) -> jax.stages.Compiled:
        """What ran last."""
        return self._last[False][1]

    @contextlib.contextmanager
    def precision(self) -> Iterator[None]:
        """The context in which all of the engine's arrays are made and used."""
        refuse_forked()
        with jax.enable_x64(True), jax.default_device(self.device):
            yield

    def memory(self, shape: Sequence[int], dtype: torch.dtype, device: torch.device) -> Memory:
        """Zeros: JAX's own where it overwrites them in place, otherwise torch's."""
        if writes_in_place(self.device):
            return JaxMemory(shape, dtype, self.device)
        return CopiedMemory(shape, dtype, device)

    def rows(self, segment: np.ndarray, filled: np.ndarray, width: int) -> _segments.Rows:
        """Where the parameters of a block are."""
        del width
        return _segments.Rows(jnp.array(segment), jnp.array(filled))

    def lend(self, tensor: torch.Tensor) -> Any:
        """A tensor as an array over its memory."""
        plain = tensor.dim() == 1 and tensor.device.type == "cpu" and tensor.is_contiguous()
        return borrow_flat(tensor) if plain and not (tensor.is_conj() or tensor.is_neg()) else borrow_as_jax(tensor)

    def tensor(self, array: Any) -> torch.Tensor:
        """An array of a result as a tensor over its memory."""
        return borrow_as_torch(plain_array(array))

    def load(self, value: Any, like: Any, device: torch.device) -> Any:
        """A value of a state as an array like that of a new one."""
        del device
        return array_like(value, like, self.device)

    def update(self, parts: Sequence[Part], shared: np.ndarray) -> list[Updated]:
        """One update of all parts, in which a total of one is that of all.

        Args:
            parts: what to update.
            shared: float64 (n,), numbers for all.

        Returns:
            What became of each part. All arrays are ready: no computation still reads borrowed memory.

        Raises:
            NotByRows: if a recipe needs more of a parameter than its elements.
        """
        donated, given = [part.donated for part in parts], [part.given for part in parts]
        # All numbers are one argument and one result: each of either costs as much as a thousand of them.
        numbers = np.concatenate([shared, *(part.own.ravel() for part in parts)])
        # The last program's key is looked at first: to compare is cheaper than to hash.
        key = _Key(
            tuple([part.recipe for part in parts]),
            tuple([part.arrangement for part in parts]),
            tuple([part.own.shape for part in parts]),
            len(shared),
            self.device,
        )
        # A check of the result would come too late for what was overwritten.
        with self.precision(), jax.debug_nans(False), jax.debug_infs(False):
            # By a program of its own, so that the update is the same one with and without.
            measuring = any(part.measured for part in parts)
            measured = self._run(key._replace(measure=True), donated, given, numbers)[1] if measuring else np.zeros(0)
            results = self._run(key, donated, given, numbers)
            (arrays, returned), measured = jax.block_until_ready((results, measured))
            returned, measured = np.asarray(returned), np.asarray(measured)
        ends = itertools.accumulate(part.returned for part in parts)
        sizes = itertools.accumulate(len(part.own) * part.measured for part in parts)
        return [
            Updated(own, returned[end - part.returned : end], _measurement(part, measured[:size]))
            for part, own, end, size in zip(parts, arrays, ends, sizes, strict=True)
        ]

    def _run(self, key: _Key, *arguments: Any) -> tuple[Any, Any]:
        if jax.config.jax_disable_jit:  # pyright: ignore[reportAttributeAccessIssue]
            return _update(*arguments, key=key, apart=False)
        known = self._last.get(key.measure)
        if known is None or key != known[0]:
            known = self._last[key.measure] = key, self._program(key, *arguments)
        return known[1](*arguments)

    def _program(self, key: _Key, *arguments: Any) -> Any:
        self.used.add(key)
        return self._kept(key, lambda: self._compile(key, *arguments))

    def _compile(self, key: _Key, *arguments: Any) -> Any:
        """The program: on the CPU with merged loops, or as it is where XLA does not merge them."""
        plain = all(isinstance(recipe, Whole) for recipe in key.recipes) or self.device.platform != "cpu"
        if plain or key.measure:
            return _jit(key, apart=False).lower(*arguments).compile()
        merged = _fusion.compile_merging(_jit(key, apart=True).lower(*arguments))
        sums = any(isinstance(recipe, Elementwise) and recipe.shape is not None for recipe in key.recipes)
        if _fusion.moves_little(merged, _fusion.FEW_WITH_SUMS if sums else _fusion.FEW):
            return merged
        unmerged = _jit(key, apart=False).lower(*arguments).compile()
        return min(merged, unmerged, key=_fusion.cost)

    def init(self, recipe: Whole, numbers: np.ndarray, params: Sequence[Any]) -> list[Any]:
        """The leaves of a new state of parameters in their own shapes, in arrays of its own."""
        with self.precision():
            # Compiled as one: operation by operation each shape would be compiled for itself.
            key = (recipe, "init", self.device, numbers.shape, *map(_shape_of, params), *map(_dtype_of, params))
            init = self._kept(key, lambda: jax.jit(recipe.init))
            state = init(numbers, list(params))
            return jax.tree.leaves(jax.block_until_ready(jax.device_put(state, self.device)))

    def form(self, recipe: Whole, numbers: np.ndarray, params: Sequence[jax.ShapeDtypeStruct]) -> Form:
        """What the state of parameters in their own shapes consists of."""
        with self.precision():
            key = (recipe, "form", numbers.shape, *map(_shape_of, params), *map(_dtype_of, params))
            return self._kept(key, lambda: form_of(jax.eval_shape(recipe.init, numbers, list(params))))

    def _kept(self, key: Any, make: Callable[[], Any]) -> Any:
        with _lock:
            if key not in _programs:
                _programs[key] = make()
                while len(_programs) > MAX_PROGRAMS:
                    _programs.popitem(last=False)
            _programs.move_to_end(key)
            return _programs[key]


def _measurement(part: Part, numbers: np.ndarray) -> Measurement | None:
    """What is measured of a part, whose numbers are the last ones."""
    if not part.measured:
        return None
    own = numbers[-len(part.own) * part.measured :].reshape(-1, part.measured)
    return Measurement(np.arange(len(part.own)), [*own.T])


def _jit(key: _Key, *, apart: bool) -> Any:
    def update(donated: Any, given: Any, numbers: Any) -> Any:
        return _update(donated, given, numbers, key=key, apart=apart)

    # Donated arguments and their results stand in the same order: XLA pairs arrays of one shape by their places. None
    # is left out, not even one that the update ignores: its memory is to be that of a result.
    return jax.jit(update, donate_argnums=() if key.measure else 0, keep_unused=True)


def _update(donated: Any, given: Any, numbers: Any, *, key: _Key, apart: bool) -> tuple[list[Any], jax.Array]:
    """The parts' results, with shapes in place of numbers; and all numbers, one after the other."""
    ends = np.cumsum([key.shared, *map(math.prod, key.own)])
    shared, *own = jnp.split(jnp.asarray(numbers), ends[:-1])
    runs: list[Any] = [
        recipe.run(
            shared,
            old,
            further,
            numbers.reshape(shape),
            apart=apart,
            alone=len(key.recipes) == 1,
            measure=key.measure,
            cpu=key.device.platform == "cpu",
        )
        for recipe, old, further, numbers, shape in zip(key.recipes, donated, given, own, key.own, strict=True)
    ]
    results = _segments.lockstep(runs)
    found = [x for result in results for x in result.numbers]
    arrays = [result.arrays for result in results] if not key.measure else []
    return arrays, jnp.concatenate([jnp.zeros(0), *map(jnp.ravel, found)])


def forget_programs() -> None:
    """Has everything compiled anew."""
    with _lock:
        _programs.clear()
        _recipes.forget()
