"""`TorchBridge`: a gradient transformation as a `torch.optim.Optimizer`.

The bridge reads `param_groups` and speaks torch's protocol. Whose memory is updated is in `_holdings.py` and
`_memory.py`, what the hyperparameters mean in `_binding.py`, what is compiled in `_engine.py`, what a checkpoint looks
like in `_state_dict.py`.
"""

import contextlib
import copy
import signal
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, Literal

import torch

from funcopt import _checks
from funcopt._tree import at_step, has_schedule
from funcopt.rule import GradientTransformation
from funcopt.torch_bridge import _buffers, _matching
from funcopt.torch_bridge._binding import Binding
from funcopt.torch_bridge._holdings import Gradients, Holdings
from funcopt.torch_bridge._matching import LoadReport
from funcopt.torch_bridge._state_view import StateView

Params = Iterable[torch.Tensor] | Iterable[dict[str, Any]] | Iterable[tuple[str, torch.Tensor]]
Transform = GradientTransformation | Callable[..., GradientTransformation]


class TorchBridge(torch.optim.Optimizer):
    """Runs a recipe on torch parameters: each `step()` is one call of a compiled XLA program.

    It is a torch optimizer: `param_groups` are read at every step, so any `torch.optim.lr_scheduler` drives it, and a
    changed number never recompiles. A group's `lr_mult` and `decay_mult` multiply its `lr` and `weight_decay` where
    they are used, so they survive every scheduler. A parameter whose `grad` is None is left alone, and so is its state.

    All groups are one tree: a global-norm clip in the recipe is global. optax's own factories know no groups and run
    once for each.

    Args:
        params: tensors, (name, tensor) pairs, or group dicts, as for any torch optimizer; on one device.
        transform: a factory whose arguments become group hyperparameters (`funcopt.adamw`, `optax.lion`, your own
            function that returns a chain), or a ready transformation, which has none.
        **hyperparams: values for the factory's arguments: numbers, flags, or schedules, which are evaluated at the
            count of applied updates before each; `lr` also names optax's `learning_rate`. What is not given has the
            factory's default. Whatever else is written into a group takes a schedule's place until its value is back.

    Raises:
        ValueError: for a value that the factory refuses, in any group.
        TypeError: for an argument that the factory lacks or needs.
        RuntimeError: for parameters on a device that JAX does not have.

    Example:
        >>> import funcopt, torch
        >>> model = torch.nn.Linear(2, 1)
        >>> optimizer = funcopt.TorchBridge(model.parameters(), funcopt.adamw, lr=1e-3)
        >>> model(torch.ones(1, 2)).sum().backward()
        >>> optimizer.step()
    """

    fast_path: bool = True
    """Whether an elementwise recipe runs in place on few flat arrays; otherwise parameter by parameter, with the same
    numbers. A subclass sets it."""

    # GradScaler hands over `grad_scale` and `found_inf` instead of unscaling and skipping itself.
    _step_supports_amp_scaling = True
    grad_scale: torch.Tensor | None
    found_inf: torch.Tensor | None

    _binding: Binding
    _schedules: list[dict[str, Any]]  # per group, by hyperparameter: schedules, and tuples with one in them
    _written: list[dict[str, Any]]  # per group: the scheduled values that it was given last
    _held: Holdings | None  # None until the state is first needed

    def __new__(cls, *args: Any, **kwargs: Any) -> "TorchBridge":
        del args, kwargs
        self = super().__new__(cls)
        # Here and not in __init__, so that subclasses may take the constructor of a torch optimizer.
        self._schedules = []
        self._written = []
        self._held = None
        return self

    def __init__(self, params: Params, transform: Transform, **hyperparams: Any) -> None:
        self._binding = Binding(transform, hyperparams)
        super().__init__(params, dict(self._binding.defaults))
        _ = self._holdings

    @property
    def compilations(self) -> int:
        """How often the update was compiled so far."""
        return 0 if self._held is None else self._held.engine.traces

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Updates the parameters that have a gradient.

        Writes those parameters and no other tensor; reads their gradients.

        Args:
            closure: evaluates the model anew and returns the loss; called once, with gradients enabled.

        Returns:
            The closure's result, or None.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        self._check_parameters()
        held = self._holdings
        self._apply_schedules()
        layout, numbers = self._binding.split(self.param_groups)
        if layout != held.layout:
            # A flag, or whether there is momentum, may decide what the state consists of.
            held.rebuild(self.param_groups)
        grads = held.gradients(self.param_groups)
        self._check_gradients(grads)
        if any(grads):
            counts, amp, extra = self._counts_after_update(), self._amp(), _extra(loss)
            with _uninterrupted():
                held.update(numbers, grads, amp, extra)
                for group, count in counts:
                    group["schedule_step"] = count
        return loss

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Adds a group, as torch does. Its parameters start at their own step 0; those before keep their state.

        A schedule in the group, or among the defaults, starts where the other groups' schedules are.
        """
        if not isinstance(param_group, dict):
            raise TypeError(f"param_group must be a dict, but got {type(param_group)}")
        where = f"parameter group {len(self.param_groups)}"
        self._binding.check_group(param_group, where)
        known = {} if self._held is None else dict(self.state)
        super().add_param_group(param_group)
        group = self.param_groups[-1]
        try:
            if group.get("differentiable"):
                _checks.fail(
                    type(self).__name__, "differentiable", "False", True, "differentiate the JAX update with jax.grad"
                )
            schedules = {name: group[name] for name in self._binding.defaults if has_schedule(group[name])}
            if schedules:
                group["schedule_step"] = max((g.get("schedule_step", 0) for g in self.param_groups), default=0)
            self._schedules.append(schedules)
            self._written.append({})
            self._apply_schedules()
            self._check_values()
            if self._held is not None:
                self._held.rebuild(self.param_groups, known)
        except BaseException:
            self.param_groups.pop()
            del self._schedules[len(self.param_groups) :], self._written[len(self.param_groups) :]
            raise

    def state_dict(self) -> dict[str, Any]:
        """The state in torch's layout: `torch.optim`'s class of the same algorithm can load it, and the reverse.

        Returns:
            `{"state": {index: {name: tensor}}, "param_groups": [...]}`. The tensors are snapshots: later steps leave
            them alone.
        """
        return super().state_dict()

    def load_state_dict(  # pyright: ignore[reportIncompatibleMethodOverride]
        self,
        state_dict: Mapping[str, Any],
        match: Literal["position", "name"] = "position",
        strict: bool = True,
        rename: Mapping[str, str] | None = None,
    ) -> LoadReport:
        """Loads a state in torch's layout, the bridge's or that of torch's own optimizer.

        State keeps the dtypes that it has here. Group fields come from `state_dict` where it has them; a schedule goes
        on from the count that was saved.

        Args:
            state_dict: the checkpoint.
            match: "position", as torch does; or "name", for parameters that were reordered, regrouped, added, removed
                or renamed. Names are those of `model.named_parameters()`, on both sides.
            strict: by name: whether both sides must have the same parameters.
            rename: by name: from names in the checkpoint to names here.

        Returns:
            What was matched, and what only one side has.

        Raises:
            ValueError: if groups, parameters, names of state, shapes or kinds of numbers do not fit; nothing has been
                changed then.
        """
        loaded = dict(state_dict)
        for pre_hook in self._optimizer_load_state_dict_pre_hooks.values():
            loaded = pre_hook(self, loaded) or loaded
        entries, fields, report = _matching.match(self.param_groups, loaded, match, strict, rename)
        merged = [{**group, **new} for group, new in zip(self.param_groups, copy.deepcopy(fields), strict=True)]
        self._holdings.assemble(merged, entries, complete=True)
        for group, written, new in zip(self.param_groups, self._written, merged, strict=True):
            group.update(new)
            written.clear()
        for post_hook in self._optimizer_load_state_dict_post_hooks.values():
            post_hook(self)
        return report

    @property
    def state(self) -> StateView:  # pyright: ignore[reportIncompatibleVariableOverride]
        """Each parameter's state under torch's names: what is read from it is a snapshot."""
        return StateView(self._holdings, self.param_groups)

    @state.setter
    def state(  # pyright: ignore[reportIncompatibleVariableOverride]
        self, value: Mapping[torch.Tensor, dict[str, Any]]
    ) -> None:
        # torch's constructor assigns an empty state before there are parameters, and unpickling one with values.
        if self._held is not None or value:
            self._holdings.rebuild(self.param_groups, value)

    def __getstate__(self) -> dict[str, Any]:
        # `config` is what funcopt.config keeps of how it built the optimizer.
        own = {
            name: self.__dict__[name]
            for name in ("_binding", "_schedules", "_written", "config")
            if name in self.__dict__
        }
        return {**super().__getstate__(), **own}

    def __setstate__(self, state: dict[str, Any]) -> None:
        state = dict(state)
        entries = state.pop("state")
        # Not that of a torch class in between, which looks the state of each parameter up in turn.
        torch.optim.Optimizer.__setstate__(self, state)
        self._holdings.rebuild(self.param_groups, entries)

    @property
    def _holdings(self) -> Holdings:
        """Memory, state and engine, made when they are first needed."""
        if self._held is None:
            self._held = Holdings(self._binding, self.param_groups, fast=self.fast_path)
        return self._held

    def _amp(self) -> tuple[Any, Any] | None:
        """What `torch.amp.GradScaler` has set for this step: the gradients' scale, and whether any is not finite."""
        found_inf = getattr(self, "found_inf", None)
        if found_inf is None:
            return None
        scale = getattr(self, "grad_scale", None)
        return _buffers.borrow_as_jax(torch.ones(()) if scale is None else scale), _buffers.borrow_as_jax(found_inf)

    def _counts_after_update(self) -> list[tuple[dict[str, Any], int]]:
        """The groups that follow their schedules and what they will have counted; an update that AMP skips is none."""
        skipped = getattr(self, "found_inf", None) is not None and bool(self.found_inf)
        return [
            (group, group["schedule_step"] + 1)
            for group, written in zip(self.param_groups, self._written, strict=True)
            if written and not skipped and not _differs(group, written)
        ]

    def _check_parameters(self) -> None:
        """Refuses, before each step, what a subclass cannot update."""

    def _check_gradients(self, grads: Gradients) -> None:
        """Refuses what the compiled update cannot see: decay of rows that a sparse gradient does not have."""
        for block, own in zip(self._holdings.blocks, grads, strict=True):
            if own is None or own[0].layout == torch.strided:
                continue
            i = block.part.place[0]
            group = self.param_groups[i]
            if group.get("weight_decay", 0.0) * group.get("decay_mult", 1.0) != 0.0:
                raise RuntimeError(
                    f"TorchBridge: weight_decay of parameter group {i} must be 0 with sparse gradients, got "
                    f"{group['weight_decay']!r}"
                )

    def _check_values(self) -> None:
        """Builds the transformation from the groups' plain numbers, so that the factory checks them."""
        layout, numbers = self._binding.split(self.param_groups)
        self._binding.build(layout.fill(numbers.tolist()))

    def _apply_schedules(self) -> None:
        """Writes scheduled hyperparameters into their groups, where nobody has written anything else since."""
        for group, schedules, written in zip(self.param_groups, self._schedules, self._written, strict=True):
            if not _differs(group, written):
                values = {
                    name: _plain(at_step(f, group["schedule_step"], tuples=True)) for name, f in schedules.items()
                }
                group.update(values)
                written.update(values)


def _extra(loss: Any) -> dict[str, float]:
    """What a closure's result tells the transformation: the loss, where it is a number."""
    try:
        return {} if loss is None else {"value": float(loss)}
    except (TypeError, ValueError):
        return {}


def _differs(group: dict[str, Any], written: dict[str, Any]) -> bool:
    """Whether a group's scheduled values are not those that it was given."""
    return any(group[name] != value for name, value in written.items())


def _plain(value: Any) -> Any:
    """A schedule's value as Python numbers, which is what groups hold and checkpoints carry."""
    return tuple(map(float, value)) if isinstance(value, tuple | list) else float(value)


@contextlib.contextmanager
def _uninterrupted() -> Iterator[None]:
    """Lets Ctrl-C wait for the end of the block: half an update would be none."""
    handler = signal.getsignal(signal.SIGINT)
    # Python runs handlers in the main thread only; one that is none of Python's cannot be put back.
    if not callable(handler) or threading.current_thread() is not threading.main_thread():
        yield
        return
    waiting: list[tuple[Any, Any]] = []
    signal.signal(signal.SIGINT, lambda *received: waiting.append(received))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, handler)
        if waiting:
            handler(*waiting[-1])
