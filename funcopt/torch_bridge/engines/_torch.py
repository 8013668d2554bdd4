"""The torch engine: the same recipes as operations of torch, on whatever device the parameters are on.

JAX traces a recipe once, on the CPU. What depends on numbers alone is computed by NumPy, for all parameters of a block
at once; the rest are torch's operations on flat memory, in place, chunk by chunk, so that what lies between two
operations stays in the cache. Nothing waits for the device.
"""

import contextlib
import dataclasses
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import torch

from funcopt.torch_bridge._buffers import jax_dtype, torch_dtype
from funcopt.torch_bridge._units import Form, form_of
from funcopt.torch_bridge.engines._chunks import Rows, run_chunks
from funcopt.torch_bridge.engines._code import Functional, functional
from funcopt.torch_bridge.engines._compiled import run_compiled
from funcopt.torch_bridge.engines._elements import elements_of
from funcopt.torch_bridge.engines._engine import Part, Updated
from funcopt.torch_bridge.engines._kept import kept
from funcopt.torch_bridge.engines._lowering import Lowered, Operand, decided, deciding, lower, needed, run_host, split
from funcopt.torch_bridge.engines._memory import Memory, TorchMemory
from funcopt.torch_bridge.engines._operations import Op, Value
from funcopt.torch_bridge.engines._recipes import Whole
from funcopt.torch_bridge.engines._totals import Run, add_up_processes, lockstep


class Engine:
    """Runs recipes as operations of torch, on the device of what they are given.

    Args:
        compiled: whether torch's compiler makes a kernel of what is done to a block.
    """

    name = "torch"
    takes_any_memory = True

    def __init__(self, *, compiled: bool = False) -> None:
        self.used: set[Any] = set()
        self._run = run_compiled if compiled else run_chunks

    @contextlib.contextmanager
    def precision(self) -> Iterator[None]:
        """The context in which recipes are traced."""
        with jax.enable_x64(True):
            yield

    def memory(self, shape: Sequence[int], dtype: torch.dtype, device: torch.device) -> Memory:
        """Zeros on a device."""
        return TorchMemory(shape, dtype, device)

    def rows(self, segment: np.ndarray, filled: np.ndarray, width: int) -> Rows:
        """Where the parameters of a block are."""
        return Rows(segment, filled, width)

    def lend(self, tensor: torch.Tensor) -> torch.Tensor:
        """The tensor."""
        return tensor.detach().resolve_conj().resolve_neg()

    def tensor(self, array: Any) -> torch.Tensor:
        """The tensor, or one of a number; of random keys, and integers without a sign, one with a sign."""
        return array.held.to(torch.int32) if isinstance(array, Unsigned) else torch.as_tensor(array)

    def load(self, value: Any, like: Any, device: torch.device) -> Any:
        """A value of a state as a tensor like that of a new one."""
        if isinstance(like, Unsigned):
            return Unsigned(torch.as_tensor(value).to(device, torch.int64) & 0xFFFFFFFF, like.shape, like.dtype)
        return torch.as_tensor(value).to(device=device, dtype=self.tensor(like).dtype)

    def update(self, parts: Sequence[Part], shared: np.ndarray) -> list[Updated]:
        """One update of all parts, in which a total of one is that of all.

        Args:
            parts: what to update.
            shared: float64 (n,), numbers for all.

        Raises:
            NotByRows: if a recipe needs more of a parameter than its elements.
        """
        runs: list[Run] = []
        keys: set[Any] = set()
        for part in parts:
            recipe = part.recipe
            if isinstance(recipe, Whole):
                alone = len(parts) == 1
                key = recipe, part.arrangement, len(shared), alone
                code = kept(key, lambda part=part, alone=alone: WholeCode.of(part, len(shared), alone=alone))
                runs.append(_run_whole(part, shared, code))
            else:
                key = recipe
                runs.append(self._run(part, shared, elements_of(recipe)))
            keys.add(key)
        self.used.add(frozenset(keys))
        reduces = [part.reduce for part in parts]
        found = lockstep(runs, reduces)
        add_up_processes(found, reduces)
        return found

    def init(self, recipe: Whole, numbers: np.ndarray, params: Sequence[torch.Tensor]) -> list[Any]:
        """The leaves of a new state of parameters in their own shapes."""
        shapes = [jax.ShapeDtypeStruct(tuple(p.shape), jax_dtype(p.dtype)) for p in params]
        key = recipe, "init", numbers.shape, *((x.shape, x.dtype) for x in shapes)
        code = kept(key, lambda: _init_code(recipe, numbers, shapes))
        known = run_host(code.host, dict(zip(code.given, numbers, strict=True)))
        device = params[0].device if params else torch.device("cpu")
        found = code.run(list(params), [known[x].item() for x in code.numbers], device)
        arrays = [_as_array(x, out, aval) for x, out, aval in zip(found, code.outputs, code.avals, strict=True)]
        return [x if isinstance(x, Unsigned) else self.tensor(x).clone() for x in arrays]

    def form(self, recipe: Whole, numbers: np.ndarray, params: Sequence[jax.ShapeDtypeStruct]) -> Form:
        """What the state of parameters in their own shapes consists of."""
        key = recipe, "form", numbers.shape, *((x.shape, x.dtype) for x in params)
        with self.precision():
            return kept(key, lambda: form_of(jax.eval_shape(recipe.init, numbers, list(params))))


@dataclasses.dataclass(frozen=True, eq=False)
class Unsigned:
    """Random keys, or 32-bit integers without a sign: in int64, in which they are computed with."""

    held: torch.Tensor
    shape: tuple[int, ...]
    dtype: Any  # as JAX has it


# Recipes on parameters in their own shapes.


class WholeCode:
    """A recipe as code, for some shapes: one for each way in which numbers decide, so that only what is due runs."""

    def __init__(
        self,
        lowered: Lowered,
        tensors: Sequence[Value],
        given: Sequence[Value],
        places: Mapping[int, Value],
        is_host: Sequence[bool],
        avals: Sequence[Any],
        structure: Any,
    ) -> None:
        self.given = given  # the numbers that it is given
        self.is_host = is_host  # of the arrays: whether they are numbers of the host
        self.avals = avals  # of the results
        self.structure = structure
        self._lowered, self._tensors, self._places = lowered, tensors, places
        found = split(lowered.ops, lowered.outputs, given)
        self._deciding = deciding(found.ops, found.numbers)
        self._host = needed(found.host, self._deciding)  # what decides

    def chosen(self, given: Mapping[Value, Any]) -> tuple[Functional, list[Operand]]:
        """The code for some numbers, and its results."""
        known = run_host(self._host, dict(given)) if self._deciding else {}
        choices = {x: int(known[x]) for x in self._deciding}
        return kept((self, *choices.values()), lambda: self._write(choices))

    def _write(self, choices: Mapping[Value, int]) -> tuple[Functional, list[Operand]]:
        ops, outputs = decided(self._lowered.ops, self._lowered.outputs, choices)
        return functional(ops, self._tensors, self.given, outputs, self._places, in_place=True), outputs

    @classmethod
    def of(cls, part: Part, shared: int, *, alone: bool) -> "WholeCode":
        """Traces a part's recipe."""
        numbers, due, *trees = part.given
        leaves, treedef = jax.tree.flatten(trees)
        is_host = [isinstance(x, np.ndarray | np.generic) for x in leaves]
        shapes = [
            jax.ShapeDtypeStruct(tuple(x.shape), jax_dtype(x.dtype) if isinstance(x, torch.Tensor) else x.dtype)
            for x in leaves
        ]
        assert isinstance(part.recipe, Whole)
        with jax.enable_x64(True):
            traced, structure = part.recipe.trace((shared, len(numbers), len(due)), treedef, shapes, totals=not alone)
            lowered = lower(traced.closed)
        scalars = shared + len(numbers) + len(due)
        arrays = lowered.inputs[scalars:]
        given = [*lowered.inputs[:scalars], *(x for x, own in zip(arrays, is_host, strict=True) if own)]
        tensors = [x for x, own in zip(arrays, is_host, strict=True) if not own]
        grads = len(jax.tree.leaves(trees[0]))
        places = dict(enumerate(arrays[grads:]))
        return cls(lowered, tensors, given, places, is_host, traced.closed.out_avals, structure)


def _run_whole(part: Part, shared: np.ndarray, own: WholeCode) -> Run:
    numbers, due, *trees = part.given
    leaves = jax.tree.leaves(trees)
    hosts = [x for x, is_host in zip(leaves, own.is_host, strict=True) if is_host]
    tensors = [
        x.held if isinstance(x, Unsigned) else x for x, is_host in zip(leaves, own.is_host, strict=True) if not is_host
    ]
    given = dict(zip(own.given, [*shared, *numbers, *due, *hosts], strict=True))
    code, outputs = own.chosen(given)
    known = run_host(code.host, dict(given))
    device = tensors[0].device
    results = code.run(tensors, [np.asarray(known[x]).item() for x in code.numbers], device)
    if isinstance(results, Generator):
        results = yield from results
    arrays = [_as_array(x, out, aval) for x, out, aval in zip(results, outputs, own.avals, strict=True)]
    return Updated(own.structure.unflatten(arrays), np.zeros(0))


def _as_array(x: Any, like: Operand, aval: Any) -> Any:
    """A result; a number in the dtype that was traced."""
    if not isinstance(x, torch.Tensor):
        return torch.tensor(x, dtype=torch_dtype(like.dtype)) if like.dtype.kind == "V" else np.asarray(x, like.dtype)
    return Unsigned(x, aval.shape, aval.dtype) if like.dtype == np.uint32 else x


class InitCode(NamedTuple):
    """How a state begins, as code."""

    run: Callable[..., list[Any]]
    numbers: list[Value]
    host: list[Op]
    given: list[Value]
    outputs: list[Operand]
    avals: Sequence[Any]


def _init_code(recipe: Whole, numbers: np.ndarray, params: Sequence[jax.ShapeDtypeStruct]) -> InitCode:
    def init(numbers: list[Any], params: list[Any]) -> list[Any]:
        return jax.tree.leaves(recipe.init(jnp.stack(numbers) if numbers else jnp.zeros(0), params))

    with jax.enable_x64(True):
        own = [jax.ShapeDtypeStruct((), jnp.float64)] * len(numbers)
        closed = jax.make_jaxpr(init)(own, list(params))
        lowered = lower(closed)
    given, arrays = lowered.inputs[: len(numbers)], lowered.inputs[len(numbers) :]
    code = functional(lowered.ops, arrays, given, lowered.outputs, {})
    return InitCode(code.run, code.numbers, code.host, given, lowered.outputs, closed.out_avals)
