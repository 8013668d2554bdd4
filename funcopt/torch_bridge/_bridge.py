"""`TorchBridge`: a gradient transformation as a `torch.optim.Optimizer`.

The bridge reads `param_groups`, hands gradients, state and parameters to the engine, and writes the result back. What
the hyperparameters mean is in `_recipe.py`, what is compiled in `_engine.py`, what a checkpoint looks like in
`_state_dict.py`.
"""

import copy
import itertools
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Literal

import torch

from funcopt import _checks
from funcopt._base import GradientTransformation, PyTree
from funcopt._tree import at_step, has_schedule
from funcopt.torch_bridge import _buffers, _matching, _state_dict
from funcopt.torch_bridge._engine import Engine
from funcopt.torch_bridge._groups import GroupLeaves, PerGroup
from funcopt.torch_bridge._matching import LoadReport
from funcopt.torch_bridge._recipe import Layout, Recipe
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
            factory's default.

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

    # GradScaler hands over `grad_scale` and `found_inf` instead of unscaling and skipping itself.
    _step_supports_amp_scaling = True
    grad_scale: torch.Tensor | None
    found_inf: torch.Tensor | None

    _recipe: Recipe
    _schedules: list[dict[str, Any]]  # per group, by hyperparameter: schedules, and tuples with one in them
    _engine: Engine | None  # None until the state is first needed
    _tree: PyTree
    _layout: Layout

    def __new__(cls, *args: Any, **kwargs: Any) -> "TorchBridge":
        del args, kwargs
        self = super().__new__(cls)
        # Here and not in __init__, so that subclasses may take the constructor of a torch optimizer.
        self._schedules = []
        self._engine = None
        return self

    def __init__(self, params: Params, transform: Transform, **hyperparams: Any) -> None:
        self._recipe = Recipe(transform, hyperparams)
        super().__init__(params, dict(self._recipe.defaults))
        self._start()

    @property
    def compilations(self) -> int:
        """How often the update was compiled so far."""
        return 0 if self._engine is None else self._engine.traces

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
        self._check_gradients()
        engine = self._started()
        self._apply_schedules()
        layout, numbers = self._recipe.split(self.param_groups)
        if layout != self._layout:
            # A flag, or whether there is momentum, may decide what the state consists of.
            self._rebuild(self.state)
        every = self._params_by_group()
        due = [p.grad is not None for p in _values(every)]
        if not any(due):
            return loss
        grads, params = _map_leaves(_gradient, every), _map_leaves(_parameter, every)
        results, tree = engine.update(layout, numbers, grads, self._tree, params, self._amp(), _extra(loss))
        before, after = itertools.compress(_values(params), due), _values(results)
        writes = _buffers.plan_writes(list(itertools.compress(_values(every), due)), list(before), after)
        counts = self._counts_after_update()

        def take_over() -> None:
            _buffers.write(writes)
            self._tree = tree
            for group, count in counts:
                group["schedule_step"] = count

        try:
            take_over()
        except KeyboardInterrupt:
            take_over()  # all of it, before the interrupt goes on: half an update would be none
            raise
        return loss

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Adds a group, as torch does. Its parameters start at their own step 0; those before keep their state.

        A schedule in the group, or among the defaults, starts where the other groups' schedules are.
        """
        if not isinstance(param_group, dict):
            raise TypeError(f"param_group must be a dict, but got {type(param_group)}")
        where = f"parameter group {len(self.param_groups)}"
        self._recipe.check_group(param_group, where)
        known = {} if self._engine is None else self.state
        super().add_param_group(param_group)
        group = self.param_groups[-1]
        try:
            if group.get("differentiable"):
                _checks.fail(
                    type(self).__name__, "differentiable", "False", True, "differentiate the JAX update with jax.grad"
                )
            schedules = {name: group[name] for name in self._recipe.defaults if has_schedule(group[name])}
            if schedules:
                group["schedule_step"] = max((g.get("schedule_step", 0) for g in self.param_groups), default=0)
            self._schedules.append(schedules)
            self._apply_schedules()
            self._check_values()
            if self._engine is not None:
                self._rebuild(known)
        except BaseException:
            self.param_groups.pop()
            del self._schedules[len(self.param_groups) :]
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
        tree = self._write_entries(merged, entries, complete=True)
        for group, new in zip(self.param_groups, merged, strict=True):
            group.update(new)
        self._tree = tree
        for post_hook in self._optimizer_load_state_dict_post_hooks.values():
            post_hook(self)
        return report

    @property
    def state(self) -> StateView:  # pyright: ignore[reportIncompatibleVariableOverride]
        """Each parameter's state under torch's names: what is read from it is a snapshot."""
        return StateView(self._leaves, self._entry, self._rebuild)

    @state.setter
    def state(  # pyright: ignore[reportIncompatibleVariableOverride]
        self, value: Mapping[torch.Tensor, dict[str, Any]]
    ) -> None:
        # torch's constructor assigns an empty state before there are parameters, and unpickling one with values.
        if self._engine is not None or value:
            self._started()
            self._rebuild(value)

    def __getstate__(self) -> dict[str, Any]:
        # `config` is what funcopt.config keeps of how it built the optimizer.
        own = {name: self.__dict__[name] for name in ("_recipe", "_schedules", "config") if name in self.__dict__}
        return {**super().__getstate__(), **own}

    def __setstate__(self, state: dict[str, Any]) -> None:
        state = dict(state)
        entries = state.pop("state")
        # Not that of a torch class in between, which looks the state of each parameter up in turn.
        torch.optim.Optimizer.__setstate__(self, state)
        self._started()
        self._rebuild(entries)

    def _started(self) -> Engine:
        """The engine; at the first call it is made, and the state with it."""
        if self._engine is None:
            self._start()
        assert self._engine is not None
        return self._engine

    def _start(self) -> None:
        devices = {p.device for group in self.param_groups for p in group["params"]}
        if len(devices) > 1:
            raise RuntimeError(f"TorchBridge: parameters must be on one device, got {', '.join(map(str, devices))}")
        self._engine = Engine(self._recipe, _buffers.jax_device(devices.pop()))
        self._tree = self._fresh(self.param_groups)

    def _fresh(self, groups: list[dict[str, Any]]) -> PyTree:
        """A new state for all parameters."""
        engine = self._started()
        with engine.precision():
            params = _map_leaves(lambda p: _buffers.copy_to_jax(p, engine.device), self._params_by_group())
        self._layout, numbers = self._recipe.split(groups)
        return engine.init(self._layout, numbers, params)

    def _leaves(self) -> dict[torch.Tensor, _state_dict.Leaves]:
        """What there is of each parameter that has state."""
        places = self._places()
        with self._started().precision():
            leaves = _state_dict.read_leaves(self._tree, places)
        return {p: leaves[place] for place, p in places.items() if leaves[place]}

    def _entry(self, leaves: _state_dict.Leaves) -> _state_dict.Entry:
        with self._started().precision():
            return _state_dict.as_entry(leaves)

    def _rebuild(self, known: Mapping[torch.Tensor, _state_dict.Entry]) -> None:
        """Makes the state anew for the groups as they are, with what is known of it."""
        entries = {place: known.get(p, {}) for place, p in self._places().items()}
        self._tree = self._write_entries(self.param_groups, entries, complete=False)

    def _write_entries(
        self, groups: list[dict[str, Any]], entries: Mapping[_state_dict.Place, _state_dict.Entry], *, complete: bool
    ) -> PyTree:
        engine, fresh = self._started(), self._fresh(groups)
        with engine.precision():
            return _state_dict.write_entries(fresh, entries, engine.device, self._describe, complete=complete)

    def _amp(self) -> tuple[Any, Any] | None:
        """What `torch.amp.GradScaler` has set for this step: the gradients' scale, and whether any is not finite."""
        found_inf = getattr(self, "found_inf", None)
        if found_inf is None:
            return None
        scale = getattr(self, "grad_scale", None)
        return _buffers.borrow_as_jax(torch.ones(()) if scale is None else scale), _buffers.borrow_as_jax(found_inf)

    def _counts_after_update(self) -> list[tuple[dict[str, Any], int]]:
        """The scheduled groups and what they will have counted; an update that AMP skips is none."""
        skipped = getattr(self, "found_inf", None) is not None and bool(self.found_inf)
        return [
            (group, group["schedule_step"] + (not skipped))
            for group, schedules in zip(self.param_groups, self._schedules, strict=True)
            if schedules
        ]

    def _check_gradients(self) -> None:
        """Refuses what the compiled update cannot see: decay of rows that a sparse gradient does not have."""
        for i, group in enumerate(self.param_groups):
            sparse = any(p.grad is not None and p.grad.layout != torch.strided for p in group["params"])
            if sparse and group.get("weight_decay", 0.0) * group.get("decay_mult", 1.0) != 0.0:
                raise RuntimeError(
                    f"TorchBridge: weight_decay of parameter group {i} must be 0 with sparse gradients, got "
                    f"{group['weight_decay']!r}"
                )

    def _check_values(self) -> None:
        """Builds the transformation from the groups' plain numbers, so that the factory checks them."""
        layout, numbers = self._recipe.split(self.param_groups)
        self._recipe.build(layout.fill(numbers.tolist()))

    def _apply_schedules(self) -> None:
        """Writes scheduled hyperparameters into their groups."""
        for group, schedules in zip(self.param_groups, self._schedules, strict=True):
            for name, schedule in schedules.items():
                group[name] = _plain(at_step(schedule, group["schedule_step"], tuples=True))

    def _params_by_group(self) -> PerGroup:
        return PerGroup(
            GroupLeaves(i, _matching.keys_of(group), group["params"]) for i, group in enumerate(self.param_groups)
        )

    def _places(self) -> dict[_state_dict.Place, torch.Tensor]:
        return {
            (i, key): p
            for i, group in enumerate(self.param_groups)
            for key, p in zip(_matching.keys_of(group), group["params"], strict=True)
        }

    def _describe(self, place: _state_dict.Place) -> str:
        group, key = place
        return f"parameter {key!r} of group {group}"


def _map_leaves(fn: Callable[[torch.Tensor], Any], params: PerGroup) -> PerGroup:
    return PerGroup(GroupLeaves(leaves.group, leaves.keys, map(fn, leaves.values)) for leaves in params.values)


def _values(leaves: PerGroup) -> list[Any]:
    return [value for group in leaves.values for value in group.values]


def _gradient(p: torch.Tensor) -> Any:
    if p.grad is None:
        return None
    strided = p.grad.layout == torch.strided
    return _buffers.borrow_as_jax(p.grad) if strided else _buffers.copy_rows_to_jax(p.grad)


def _parameter(p: torch.Tensor) -> Any:
    """A parameter as far as its gradient concerns it."""
    if p.grad is None or p.grad.layout == torch.strided:
        return _buffers.borrow_as_jax(p)
    return _buffers.copy_same_rows_to_jax(p, p.grad)


def _extra(loss: Any) -> dict[str, float]:
    """What a closure's result tells the transformation: the loss, where it is a number."""
    try:
        return {} if loss is None else {"value": float(loss)}
    except (TypeError, ValueError):
        return {}


def _plain(value: Any) -> Any:
    """A schedule's value as Python numbers, which is what groups hold and checkpoints carry."""
    return tuple(map(float, value)) if isinstance(value, tuple | list) else float(value)
