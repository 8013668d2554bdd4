"""Where the compiled update finds gradients and parameters, and where it leaves its results.

A *block* is the memory of one part. On the CPU a flat block is JAX's own memory, which the update overwrites in place
(XLA donates it), and the parameters live in it; one that something else holds too is copied in before the update and
out after it. On a GPU it is torch's memory, which the result is copied into.

Tensors over JAX's memory: XLA must not know of them, or it would not write in place, so they are made from the bare
address. The memory lives as long as any tensor on it, since torch's storage refers to the array's owner. An array whose
update failed half-way is gone, and with it the memory; so what may fail (`jax_debug_nans`) is switched off there, and a
program that needs memory of its own is not given this one.
"""

import ctypes
import functools
import itertools
import sys
from collections.abc import Iterator, Mapping, Sequence
from operator import attrgetter
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import torch

from funcopt._rows import RowSparse
from funcopt.torch_bridge._buffers import (
    Device,
    borrow_as_jax,
    borrow_as_torch,
    copy_rows_to_jax,
    copy_to_jax,
    wait_for_torch,
)
from funcopt.torch_bridge._groups import GroupLeaves, PerGroup
from funcopt.torch_bridge._parts import Member, Part, Place, memory_order

_dtype_of = attrgetter("dtype")


class JaxMemory:
    """Memory that JAX owns and updates in place."""

    def __init__(self, values: torch.Tensor, device: Device) -> None:
        self._owner = _Owner(copy_to_jax(values, device))
        self._dtype = values.dtype
        self.tensor = self.elements(0, values.numel())

    def elements(self, start: int, stop: int) -> torch.Tensor:
        """Some of the memory as a tensor with a storage of its own."""
        if start == stop:
            return torch.empty(0, dtype=self._dtype)
        buffer = (ctypes.c_char * self._owner.array.nbytes).from_address(self._owner.address)
        vars(buffer)["owner"] = self._owner  # torch's storage keeps the buffer, and the buffer the array
        size = self._dtype.itemsize
        return torch.frombuffer(buffer, dtype=self._dtype, count=stop - start, offset=start * size)

    def lend(self) -> jax.Array:
        """The array, as the update takes it."""
        return self._owner.array

    def store(self, result: jax.Array) -> None:
        """Takes the update's result over."""
        if result.unsafe_buffer_pointer() == self._owner.address:
            self._owner.array = result
        else:  # somebody held the array, so that XLA left it alone: the old memory is still there, with tensors on it
            self.tensor.copy_(borrow_as_torch(result))


class _Owner:
    """Holds the array that currently stands for the memory at an address."""

    def __init__(self, array: jax.Array) -> None:
        self.array = array
        self.address = array.unsafe_buffer_pointer()


@functools.cache
def _writes_in_place(device: Device) -> bool:
    """Whether a donated array's result is at its address: on the CPU it always was, and nothing promises it."""
    array = copy_to_jax(torch.zeros(1024), device)
    address = array.unsafe_buffer_pointer()
    return jax.jit(jnp.negative, donate_argnums=0)(array).unsafe_buffer_pointer() == address


class TorchMemory:
    """Memory that torch owns."""

    def __init__(self, tensor: torch.Tensor) -> None:
        self.tensor = tensor

    def lend(self) -> Any:
        """The array, as the update takes it."""
        return borrow_as_jax(self.tensor)

    def store(self, result: jax.Array) -> None:
        """Takes the update's result over."""
        self.tensor.copy_(borrow_as_torch(result))


class FlatBlock:
    """Parameters of an elementwise recipe, as one flat array.

    Args:
        part: the part.
        params: its parameters. On the CPU those whose memory nothing else holds move into the block's.
        device: where JAX computes.
        torch_device: the same device as torch calls it.
    """

    def __init__(self, part: Part, params: list[torch.Tensor], device: Device, torch_device: torch.device) -> None:
        self.part = part
        self.key = part.place[1]
        self.params = params
        self.owned = device.platform == "cpu" and _writes_in_place(device)
        values = [p.detach().to(torch_device) for p in params]
        if self.owned:
            self._memory = JaxMemory(part.join(values), device)
            values.clear()  # or they would hold what is to move
            for member, p in zip(part.members, params, strict=True):
                if is_movable(p):
                    p.data = member.arrange(self._memory.elements(member.start, member.stop))
        else:
            flat = part.members[0].flatten(values[0]) if part.is_bare else part.join(values)
            self._memory = TorchMemory(flat)
        self._views = _views(part.members, self._memory.tensor)
        self._addresses = _addresses(params)
        self._strides = _strides(params)
        # Those whose memory is their own.
        self._away = [i for i, view in enumerate(self._views) if view.data_ptr() != self._addresses[i]]
        self._grads: torch.Tensor | None = None
        self._grad_views: list[torch.Tensor] = []

    def has_moved(self) -> bool:
        """Whether someone gave a parameter other memory, or put it into another order, since the block was made."""
        return _addresses(self.params) != self._addresses or _strides(self.params) != self._strides

    def fits(self) -> bool:
        """Whether the parameters still have their places in the flat array, wherever their memory is."""
        return all(
            p.dtype == self._memory.tensor.dtype and tuple(p.shape) == m.own_shape and memory_order(p) == m.order
            for m, p in zip(self.part.members, self.params, strict=True)
        )

    def takes(self, kinds: set[torch.layout | None]) -> bool:
        """Whether these are the layouts of gradients that the block takes together; None stands for a missing one."""
        return kinds in ({torch.strided}, {None})

    def lend(self, grads: list[torch.Tensor]) -> tuple[Any, Any]:
        """Gradients and parameters as the update takes them; valid until either changes."""
        return self._lend_grads(grads), self.lend_params()

    def lend_params(self) -> Any:
        """The parameters as the update takes them."""
        if self._away:
            _copy([self._views[i] for i in self._away], [self.params[i] for i in self._away])
        return self._memory.lend()

    def store(self, result: jax.Array) -> None:
        """Writes the update's result into the parameters that were lent."""
        self._memory.store(result)
        if self._away:
            _copy([self.params[i] for i in self._away], [self._views[i] for i in self._away])

    def _lend_grads(self, grads: list[torch.Tensor]) -> Any:
        device = self._memory.tensor.device
        if len(grads) == 1:
            (grad,), (param,) = grads, self.params
            if grad.shape != param.shape:
                raise RuntimeError(
                    f"TorchBridge: a gradient must have its parameter's shape {tuple(param.shape)}, got "
                    f"{tuple(grad.shape)}"
                )
            if self.part.is_bare:
                flat = self.part.members[0].flatten(grad)
                return borrow_as_jax(flat if flat.device == device else flat.to(device))
        dtypes = set(map(_dtype_of, grads))
        dtype = dtypes.pop() if len(dtypes) == 1 else _widest(dtypes)
        if self._grads is None or self._grads.dtype != dtype:
            self._grads = torch.zeros(self._memory.tensor.shape, dtype=dtype, device=device)
            self._grad_views = _views(self.part.members, self._grads)
        _copy(self._grad_views, grads)
        return borrow_as_jax(self._grads)


class PlainBlock:
    """One parameter in its own shape and memory; its gradient may have some rows only."""

    owned = False

    def __init__(self, part: Part, params: list[torch.Tensor], device: Device, torch_device: torch.device) -> None:
        del device
        self.part = part
        self.key = part.place[1]
        self.params = params
        self._device = torch_device
        self._dtype = params[0].dtype
        self._rows: torch.Tensor | None = None  # those that are lent

    def has_moved(self) -> bool:
        """Whether someone gave the parameter another dtype; memory of its own may be anywhere."""
        return self.params[0].dtype != self._dtype

    def fits(self) -> bool:
        """Whether the parameter is still what it was."""
        return not self.has_moved()

    def takes(self, kinds: set[torch.layout | None]) -> bool:
        """Any: there is one gradient, or none."""
        del kinds
        return True

    def lend(self, grads: list[torch.Tensor]) -> tuple[Any, Any]:
        """Gradient and parameter as the update takes them: of both the same rows, where the gradient has only some."""
        grad = grads[0].to(self._device)
        self._rows = None
        if grad.layout == torch.strided:
            return borrow_as_jax(grad), self.lend_params()
        _check_rows(grad)
        grad = grad.coalesce()
        self._rows = grad.indices()[0]
        own = self.params[0].detach().index_select(0, self._rows.to(self.params[0].device)).to(self._device)
        return copy_rows_to_jax(self._rows, grad.values()), copy_rows_to_jax(self._rows, own)

    def lend_params(self) -> Any:
        """The parameter as the update takes it, all of it."""
        return borrow_as_jax(self.params[0].to(self._device))

    def store(self, result: Any) -> None:
        """Writes the update's result into the parameter."""
        param = self.params[0]
        if isinstance(result, RowSparse):
            assert self._rows is not None
            values = borrow_as_torch(result.values)[: len(self._rows)]
            param.index_copy_(0, self._rows.to(param.device), values.to(param.device))
        elif self._rows is not None:  # a dense update of a parameter that was lent by rows
            param.add_(borrow_as_torch(result).to(param.device))
        else:
            param.copy_(borrow_as_torch(result))


Block: TypeAlias = FlatBlock | PlainBlock


class Blocks:
    """The memory of all parameters.

    Args:
        parts: how they are divided.
        params: the parameters by place.
        groups: how many groups there are.
        device: where JAX computes.
        torch_device: the same device as torch calls it.
        reuse: the memory so far; what is divided as before stays where it is.
    """

    def __init__(
        self,
        parts: Sequence[Part],
        params: Mapping[Place, torch.Tensor],
        groups: int,
        device: Device,
        torch_device: torch.device,
        reuse: "Blocks | None" = None,
    ) -> None:
        self.parts = parts
        self._torch_device = torch_device
        known = {(block.part, *map(id, block.params)): block for block in reuse or () if not block.has_moved()}
        self._groups: list[list[Block]] = [[] for _ in range(groups)]
        for part in parts:
            own = [params[member.place] for member in part.members]
            block = known.get((part, *map(id, own)))
            if block is None:
                block = (FlatBlock if part.flat else PlainBlock)(part, own, device, torch_device)
            self._groups[part.place[0]].append(block)

    def __iter__(self) -> Iterator[Block]:
        return itertools.chain.from_iterable(self._groups)

    def lend_params(self) -> PerGroup:
        """All parameters as the update takes them."""
        return self._per_group([block.lend_params() for block in self], [True for _ in self])

    def lend(self, grads: Sequence[list[torch.Tensor] | None]) -> tuple[PerGroup, PerGroup, PerGroup]:
        """What the update takes.

        Args:
            grads: the gradients of each block, None where it has none.

        Returns:
            Gradients; the parameters that the update may overwrite; the others.
        """
        lent = [(None, b.lend_params()) if g is None else b.lend(g) for b, g in zip(self, grads, strict=True)]
        arrays, params = zip(*lent, strict=True)
        owned = [block.owned for block in self]
        return (
            self._per_group(arrays, [True for _ in owned]),
            self._per_group(params, owned),
            self._per_group(params, [not own for own in owned]),
        )

    def store(self, results: PerGroup) -> None:
        """Writes the results of an update, which are those of the parameters that had a gradient."""
        written: list[torch.Tensor] = []
        for blocks, node in zip(self._groups, results.values, strict=True):
            updated = dict(node.items())
            for block in blocks:
                if block.key in updated:
                    block.store(updated[block.key])
                    written += block.params
        # As if torch had written all of it, so that autograd notices a backward pass through what is no longer there.
        torch.autograd.graph.increment_version(written)
        wait_for_torch(self._torch_device)

    def _per_group(self, values: Sequence[Any], chosen: Sequence[bool]) -> PerGroup:
        rest = iter(zip(values, chosen, strict=True))
        groups = []
        for i, blocks in enumerate(self._groups):
            own = [(block.key, value) for block, (value, keep) in zip(blocks, rest) if keep]  # noqa: B905
            groups.append(GroupLeaves(i, tuple(key for key, _ in own), (value for _, value in own)))
        return PerGroup(groups)


def _addresses(tensors: list[torch.Tensor]) -> list[int]:
    return list(map(torch.Tensor.data_ptr, tensors))


def _strides(tensors: list[torch.Tensor]) -> list[tuple[int, ...]]:
    return list(map(torch.Tensor.stride, tensors))


def _copy(targets: list[torch.Tensor], sources: list[torch.Tensor]) -> None:
    torch._foreach_copy_(targets, sources)  # pyright: ignore[reportPrivateImportUsage]


def _views(members: Sequence[Member], flat: torch.Tensor) -> list[torch.Tensor]:
    return [member.view(flat) for member in members]


def _widest(dtypes: set[torch.dtype]) -> torch.dtype:
    first, *others = dtypes
    for dtype in others:
        first = torch.promote_types(first, dtype)
    return first


def _check_rows(gradient: torch.Tensor) -> None:
    if gradient.layout != torch.sparse_coo or gradient.sparse_dim() != 1:
        raise RuntimeError(
            "TorchBridge: a sparse gradient must consist of rows (torch.sparse_coo with one sparse dimension, as that "
            f"of torch.nn.Embedding), got {gradient.layout} with {gradient.sparse_dim()} sparse dimensions"
        )


def is_movable(param: torch.Tensor) -> bool:
    """Whether a parameter's memory can move: no view, no other tensor, no other process would stay behind."""
    if _holders(param) != _holders(torch.empty(1)):
        return False
    storage = param.untyped_storage()
    return (
        type(param) in (torch.Tensor, torch.nn.Parameter)
        and param.device.type == "cpu"
        and param.is_leaf
        and not param.is_shared()
        and storage.nbytes() == param.numel() * param.element_size()
        and param.numel() > 0
        and not param.is_conj()
        and not param.is_neg()
    )


def _holders(tensor: torch.Tensor) -> tuple[int, int]:
    """How many tensors refer to a tensor's storage, and how many variables to the one Python object of it."""
    storage = tensor.untyped_storage()
    return torch._C._storage_Use_Count(storage._cdata), sys.getrefcount(storage)  # pyright: ignore
