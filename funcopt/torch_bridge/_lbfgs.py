"""`LBFGS`: `funcopt.lbfgs`'s machine with a torch closure between its transitions.

State is arrays from step to step. Where anyone looks at it, it becomes what torch keeps, and stays that until the next
step: checkpoints, pickling and changes by hand are torch's own.
"""

import collections
import contextlib
import functools
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import torch
from torch import Tensor

from funcopt.algorithms._lbfgs_machine import LbfgsState, Machine, Options, start, transition
from funcopt.torch_bridge import _buffers
from funcopt.torch_bridge._buffers import Device
from funcopt.torch_bridge._processes import STEPPING, refuse_forked

_transition: Callable[..., Machine] = jax.jit(transition, donate_argnums=0)


class LBFGS(torch.optim.LBFGS):
    """`torch.optim.LBFGS`, run by the machine of `funcopt.lbfgs`.

    Constructor, state and the calls of the closure are torch's. All parameters are one vector on one device: half
    precision counts as float32 in it, complex numbers as two real ones.

    Example:
        >>> import torch
        >>> from funcopt.torch_bridge import optim
        >>> x = torch.nn.Parameter(torch.zeros(2))
        >>> optimizer = optim.LBFGS([x], line_search_fn="strong_wolfe")
        >>> def closure():
        ...     optimizer.zero_grad()
        ...     loss = ((x - 3.0) ** 2).sum()
        ...     loss.backward()
        ...     return loss
        >>> _ = optimizer.step(closure)
        >>> x.tolist()
        [3.0, 3.0]
    """

    _entries: collections.defaultdict[Tensor, Any]  # what torch keeps; out of date while there are arrays
    _arrays: LbfgsState | None

    @torch.no_grad()
    def step(self, closure: Callable[[], Any]) -> Any:
        """Runs up to `max_iter` iterations.

        Writes the parameters before each call of the closure but the first; reads their gradients after it. If anything
        raises, parameters and state are as they were before.

        Args:
            closure: evaluates the model anew, sets the gradients and returns the loss; called with gradients enabled.

        Returns:
            The first result of the closure.

        Raises:
            RuntimeError: for an unknown `line_search_fn`; for parameters on several devices, or on one that JAX lacks.
            IndexError: for a `history_size` below 1.
        """
        if len(self.param_groups) != 1:
            raise AssertionError(f"LBFGS: there must be one parameter group, got {len(self.param_groups)}")
        group = self.param_groups[0]
        if group["line_search_fn"] not in (None, "strong_wolfe"):
            raise RuntimeError(
                f"LBFGS: line_search_fn must be None or 'strong_wolfe', got {group['line_search_fn']!r}; "
                "only 'strong_wolfe' is supported"
            )
        if group["history_size"] < 1:
            raise IndexError(f"LBFGS: history_size must be >= 1, got {group['history_size']}")
        options = Options(*(float(group[name]) for name in Options._fields))
        params = group["params"]
        before = _gather(params, _compute_dtype(params))
        first: list[Any] = []
        with self._precision():
            state = self._load(before, group["history_size"])
            undo = _Undo(state)
            machine = start(state, jnp.array(_buffers.borrow_as_jax(before)), group["line_search_fn"])
        try:
            while not machine.done:
                with torch.enable_grad():
                    result = closure()
                first = first or [result]  # the others' graphs need not live on
                grad = _gather([_gradient(p) for p in params], before.dtype)
                with self._precision():
                    undo.note(machine.state)
                    machine = _transition(machine, np.float64(float(result)), _buffers.borrow_as_jax(grad), options)
                    jax.block_until_ready(machine)
                self._arrays = machine.state
                _scatter(params, _buffers.borrow_as_torch(machine.point))
        except BaseException:
            _scatter(params, before)
            with self._precision():
                self._arrays = undo.restore(machine.state)
            raise
        return first[0]

    @property
    def state(self) -> collections.defaultdict[Tensor, Any]:
        """What torch keeps, all of it for the first parameter. A step does not change what was read before."""
        if self._arrays is not None:
            self._entries[self.param_groups[0]["params"][0]] = _entry_of(self._arrays)
            self._arrays = None
        return self._entries

    @state.setter
    def state(self, value: collections.defaultdict[Tensor, Any]) -> None:  # pyright: ignore[reportIncompatibleVariableOverride]
        self._entries, self._arrays = value, None

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__({name: value for name, value in state.items() if name != "state"})
        self._entries, self._arrays = state["state"], None

    def _load(self, flat_params: Tensor, history_size: int) -> LbfgsState:
        """The state as arrays of JAX's own, which the next transition may use up."""
        like = _buffers.borrow_as_jax(flat_params)
        arrays = self._arrays
        if (
            arrays is None
            or arrays.ro.size != history_size
            or (arrays.d.shape, arrays.d.dtype) != (like.shape, like.dtype)
            or arrays.d.devices() != {self._device()}
        ):
            entry = self.state.get(self.param_groups[0]["params"][0], {})
            arrays = jax.tree.map(jnp.array, _read_entry(entry, flat_params, history_size))
            self._arrays = arrays
            self._entries.clear()
        return arrays

    @contextlib.contextmanager
    def _precision(self) -> Iterator[None]:
        """The context of all that is done with arrays, and of nothing that the closure does."""
        refuse_forked()
        with STEPPING, jax.enable_x64(True), jax.default_device(self._device()):
            yield

    def _device(self) -> Device:
        devices = {p.device for p in self.param_groups[0]["params"]}
        if len(devices) > 1:
            raise RuntimeError(f"LBFGS: parameters must be on one device, got {', '.join(map(str, devices))}")
        return _buffers.jax_device(devices.pop())


class _Undo:
    """What brings a state back after transitions that have used it up: all but the rings, and their lost rows."""

    def __init__(self, state: LbfgsState) -> None:
        self._rest = jax.tree.map(jnp.array, state._replace(old_dirs=None, old_stps=None))
        self._rows: dict[int, tuple[jax.Array, jax.Array]] = {}

    def note(self, state: LbfgsState) -> None:
        """Keeps the row that the next pair replaces."""
        row = int(state.num_pairs) % state.ro.size
        if int(state.num_pairs) >= state.ro.size and row not in self._rows:
            self._rows[row] = state.old_dirs[row], state.old_stps[row]

    def restore(self, state: LbfgsState) -> LbfgsState:
        old_dirs, old_stps = state.old_dirs, state.old_stps
        for row, (y, s) in self._rows.items():
            old_dirs, old_stps = old_dirs.at[row].set(y), old_stps.at[row].set(s)
        return self._rest._replace(old_dirs=old_dirs, old_stps=old_stps)


def _read_entry(entry: dict[str, Any], flat: Tensor, history_size: int) -> LbfgsState:
    """Torch's state of an LBFGS, or an empty entry, as arrays; some borrow the entry's memory."""

    def given(name: str, default: Any) -> Any:
        value = entry.get(name)
        return default if value is None else value

    def vector(name: str, value: Tensor) -> Tensor:
        if value.numel() != flat.numel():
            raise ValueError(f"LBFGS: {name} in the state must have {flat.numel()} elements, got {value.numel()}")
        return value.reshape(-1).to(flat)

    def scalar(name: str, default: float) -> np.ndarray:
        return np.array(float(given(name, default)), array_dtype)

    def ring(name: str) -> Any:
        rows = flat.new_zeros(history_size, flat.numel())
        for row, value in zip(rows, given(name, [])[-history_size:], strict=False):
            row.copy_(vector(name, value))
        return _buffers.borrow_as_jax(rows)

    def numbers(name: str) -> np.ndarray:
        values = [float(value) for value in given(name, [])[-history_size:] if value is not None]
        return np.array(values + [0.0] * (history_size - len(values)), array_dtype)

    array_dtype = _buffers.borrow_as_jax(flat).dtype
    zeros = torch.zeros_like(flat)
    return LbfgsState(
        func_evals=np.int32(given("func_evals", 0)),
        n_iter=np.int32(given("n_iter", 0)),
        d=_buffers.borrow_as_jax(vector("d", given("d", zeros))),
        t=scalar("t", 0.0),
        old_dirs=ring("old_dirs"),
        old_stps=ring("old_stps"),
        ro=numbers("ro"),
        al=numbers("al"),
        H_diag=scalar("H_diag", 1.0),
        prev_flat_grad=_buffers.borrow_as_jax(vector("prev_flat_grad", given("prev_flat_grad", zeros))),
        prev_loss=np.float64(given("prev_loss", 0.0)),
        num_pairs=np.int32(min(len(given("ro", [])), history_size)),
    )


def _entry_of(state: LbfgsState) -> dict[str, Any]:
    """A state as torch keeps it: counts alone before the first iteration, and `al` from the second one on."""
    counts = {"func_evals": int(state.func_evals), "n_iter": int(state.n_iter)}
    if counts["n_iter"] == 0:
        return counts
    size, num_pairs = state.ro.size, int(state.num_pairs)
    order = [k % size for k in range(max(num_pairs - size, 0), num_pairs)]

    def tensor(array: jax.Array) -> Tensor:
        return _buffers.copy_borrowed(_buffers.borrow_as_torch(array))

    def rows(ring: jax.Array) -> list[Tensor]:
        borrowed = _buffers.borrow_as_torch(ring)
        return [_buffers.copy_borrowed(borrowed[i]) for i in order]

    coefficients = {"al": rows(state.al) + [None] * (size - len(order))} if counts["n_iter"] > 1 else {}
    return {
        **counts,
        **coefficients,
        "d": tensor(state.d),
        "t": float(state.t),
        "old_dirs": rows(state.old_dirs),
        "old_stps": rows(state.old_stps),
        "ro": rows(state.ro),
        "H_diag": tensor(state.H_diag),
        "prev_flat_grad": tensor(state.prev_flat_grad),
        "prev_loss": float(state.prev_loss),
    }


def _compute_dtype(tensors: Iterable[Tensor]) -> torch.dtype:
    return functools.reduce(torch.promote_types, (p.dtype.to_real() for p in tensors), torch.float32)


def _as_real(tensor: Tensor) -> Tensor:
    return torch.view_as_real(tensor) if tensor.is_complex() else tensor


def _gradient(p: Tensor) -> Tensor:
    if p.grad is None:
        return torch.zeros_like(p)
    return (p.grad.to_dense() if p.grad.is_sparse else p.grad).resolve_conj()


def _gather(tensors: Sequence[Tensor], dtype: torch.dtype) -> Tensor:
    """The tensors as one new vector."""
    return torch.cat([_as_real(tensor.detach()).reshape(-1).to(dtype) for tensor in tensors])


def _scatter(tensors: Sequence[Tensor], flat: Tensor) -> None:
    """Writes a vector back into the tensors it was gathered from."""
    real = [_as_real(tensor) for tensor in tensors]
    for tensor, part in zip(real, flat.split([tensor.numel() for tensor in real]), strict=True):
        tensor.copy_(part.view_as(tensor))
