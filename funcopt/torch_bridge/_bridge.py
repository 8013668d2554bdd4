"""`TorchBridge`: a gradient transformation as a `torch.optim.Optimizer`.

The bridge speaks torch's protocol; `param_groups` and `state` are torch's own, and the truth. Whose memory is updated
is in `store`, what the hyperparameters mean in `_binding.py`, what is compiled in `engines`, what a state consists of
in `_units.py`.
"""

import collections
import contextlib
import copy
import signal
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Literal, NamedTuple, Self

import torch
from torch.utils._python_dispatch import _get_current_dispatch_mode_stack

from funcopt._tree import at_step, has_schedule
from funcopt.rule import GradientTransformation
from funcopt.torch_bridge import _buffers, _matching
from funcopt.torch_bridge._binding import Binding
from funcopt.torch_bridge._evaluation import is_evaluating, keeper_of, to_evaluation, to_training
from funcopt.torch_bridge._matching import LoadReport
from funcopt.torch_bridge._metrics import summarize
from funcopt.torch_bridge._processes import STEPPING, refuse_forked
from funcopt.torch_bridge._units import (
    Entry,
    Place,
    Unit,
    as_in_reference,
    from_reference,
    value_of,
)
from funcopt.torch_bridge.engines import _choice
from funcopt.torch_bridge.engines._choice import Choice, Wanted
from funcopt.torch_bridge.store._pure import update_purely
from funcopt.torch_bridge.store._store import Store

Params = Iterable[torch.Tensor] | Iterable[dict[str, Any]] | Iterable[tuple[str, torch.Tensor]]
Transform = GradientTransformation | Callable[..., GradientTransformation]


class _Scheduled(NamedTuple):
    """A group, its schedules, and what it was given last."""

    group: dict[str, Any]
    schedules: dict[str, Any]  # by hyperparameter: schedules, and tuples with one in them
    written: dict[str, Any]

    @property
    def is_overruled(self) -> bool:
        """Whether somebody has written other values since."""
        return any(self.group.get(name) != value for name, value in self.written.items())


_KEPT = ("config", "_step_supports_amp_scaling", "_wanted", "_compiled")
"""What copies keep beside groups and state; `config` is what funcopt.config keeps of how it built the optimizer."""


class TorchBridge(torch.optim.Optimizer):
    """Runs a recipe on torch parameters: by one compiled program of XLA's, or by torch's own operations.

    It is a torch optimizer: `param_groups` are read at every step, so any `torch.optim.lr_scheduler` drives it, and a
    changed number never recompiles. A group's `lr_mult` and `decay_mult` multiply its `lr` and `weight_decay` where
    they are used, so they survive every scheduler. A parameter whose `grad` is None is left alone, and so is its state.

    All groups are one tree: a global-norm clip in the recipe is global. optax's own factories know no groups and run
    once for each.

    Args:
        params: tensors, (name, tensor) pairs, or group dicts, as for any torch optimizer.
        transform: a factory whose arguments become group hyperparameters (`funcopt.adamw`, `optax.lion`, your own
            function that returns a chain), or a ready transformation, which has none.
        engine: what updates the parameters: "xla", one compiled program, on devices that JAX has; "torch", torch's own
            operations, on any device; or "auto", see `engine`.
        compiled: whether torch's engine has torch's compiler make one kernel of an update of many parameters: some
            seconds at the first step, then up to 3 times as fast. Without a compiler it warns, and goes on without.
        differentiable: whether autograd goes through the steps, as with torch's own; the parameters are then no leaves.
        capturable: whether a CUDA graph can hold a step: counts are on the device, and nothing waits for it.
        fused: whether `torch.amp.GradScaler` leaves unscaling to the program, as with torch's fused optimizers.
        **hyperparams: values for the factory's arguments: numbers, flags, or schedules, which are evaluated at the
            count of applied updates before each; `lr` also names optax's `learning_rate`. What is not given has the
            factory's default. Whatever else is written into a group takes a schedule's place until its value is back.
            The count is the group's `schedule_step`, and may be set.

    Raises:
        ValueError: for a value that the factory refuses, in any group.
        TypeError: for an argument that the factory lacks or needs.
        NotImplementedError: for a recipe that torch's engine has no operations for, if it is to run it.

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

    # With fused=True GradScaler hands these over instead of unscaling and skipping itself.
    grad_scale: torch.Tensor | None
    found_inf: torch.Tensor | None

    _binding: Binding
    _scheduled: dict[int, _Scheduled]  # by the group's identity
    _held: Store | None  # None until the first step
    _eval_versions: dict[torch.Tensor, int]  # of the parameters that `eval` has written
    _wanted: Wanted = "auto"
    _compiled: bool = False
    _known_units: list[Unit] | None = None  # noted at a step: in a forked process JAX cannot be asked for them

    def __new__(cls, *args: Any, **kwargs: Any) -> Self:
        del args, kwargs
        self = super().__new__(cls)
        # Here and not in __init__, so that subclasses may take the constructor of a torch optimizer.
        self._scheduled = {}
        self._held = None
        self._eval_versions = {}
        return self

    def __init__(
        self,
        params: Params,
        transform: Transform,
        *,
        engine: Wanted = "auto",
        compiled: bool = False,
        differentiable: bool = False,
        capturable: bool = False,
        fused: bool = False,
        **hyperparams: Any,
    ) -> None:
        self._binding = Binding(transform, hyperparams)
        self._compiled = compiled
        self.engine = engine
        flags = {"differentiable": differentiable, "capturable": capturable}
        super().__init__(params, {**self._binding.defaults, **{name: True for name, flag in flags.items() if flag}})
        if fused:
            self._step_supports_amp_scaling = True

    @property
    def engine(self) -> Choice:
        """The engine that updates the parameters, and why; can be set, at any time, to "auto", "xla" or "torch".

        "auto" is XLA's on devices that JAX has, and torch's on others and for DTensors; on the CPU it is torch's, too,
        for updates that multiply large matrices, such as Muon's and SOAP's.
        """
        if self._is_pure:
            return Choice("torch", "the steps are differentiated, or captured in a graph")
        if self._held is not None and self._held.choice is not None:
            return self._held.choice
        return self._store_of(self.param_groups).first_choice

    @engine.setter
    def engine(self, wanted: Wanted) -> None:
        _choice.check(type(self).__name__, wanted)
        self._wanted = wanted
        self._held = None
        if vars(self).get("param_groups"):
            self._check_covered(self.param_groups)

    @property
    def compilations(self) -> int:
        """How many programs the steps have needed so far; what the process compiled before is not compiled again."""
        return 0 if self._held is None else self._held.compilations

    @torch._disable_dynamo  # pyright: ignore[reportPrivateImportUsage]  # lazily, as torch.optim does
    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Updates the parameters that have a gradient.

        Writes those parameters and their state, and no other tensor; reads their gradients.

        Args:
            closure: evaluates the model anew and returns the loss; called once, with gradients enabled.

        Returns:
            The closure's result, or None.

        Raises:
            RuntimeError: for state or gradients that do not fit their parameters; nothing has been changed then.
        """
        if is_evaluating(self.param_groups):
            raise RuntimeError(
                f"{type(self).__name__}: step must be of the weights that are trained; call train() after eval()"
            )
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        store = self._store
        refuse_forked()
        if torch._C._len_torch_dispatch_stack():  # pyright: ignore[reportAttributeAccessIssue]
            _refuse_tracing()
        with STEPPING:
            self._check_parameters()
            if getattr(self, "found_inf", None) is not None and bool(self.found_inf):
                return loss
            self._apply_schedules()
            scale = getattr(self, "grad_scale", None) if getattr(self, "found_inf", None) is not None else None
            if self._is_pure:
                self._step_purely(loss, scale)
                return loss
            counts = [(own.group, own.group["schedule_step"] + 1) for own in self._following()]
            with _uninterrupted():
                done = store.update(
                    self.param_groups,
                    self.state,
                    scale=None if scale is None else float(scale),
                    loss=_number(loss),
                    check=self._check_sparse,
                )
                for group, count in counts if done else ():
                    group["schedule_step"] = count
                if done and self._known_units is None:
                    self._known_units = self._some_units
        return loss

    @property
    def _is_pure(self) -> bool:
        """Whether a step is to be differentiated, or captured in a graph."""
        if any(group.get("differentiable") for group in self.param_groups):
            return True
        captured = [group for group in self.param_groups if group.get("capturable")]
        return any(p.device.type not in ("cpu", "meta") for group in captured for p in group["params"])

    def _step_purely(self, loss: Any, scale: torch.Tensor | None) -> None:
        differentiable = any(group.get("differentiable") for group in self.param_groups)
        counts = [(own.group, own.group["schedule_step"] + 1) for own in self._following()]
        with torch.set_grad_enabled(differentiable), _uninterrupted():
            done, readings = update_purely(
                self._binding,
                self.param_groups,
                self.state,
                loss=loss,
                scale=scale,
                differentiable=differentiable,
                check=self._check_sparse,
            )
            self._store.readings = readings if done else self._store.readings
            for group, count in counts if done else ():
                group["schedule_step"] = count

    def metrics(self) -> dict[str, Any]:
        """What the last update was like, if the recipe is one of `funcopt.with_metrics`.

        Numbers stay on their device until they are asked for here, which waits for it.

        Returns:
            `grad_norm`, `update_norm`, `param_norm`, `clipped_fraction`, and `d` of a recipe that estimates one, as
            numbers; `update_ratio` and `lr` as lists of one for each group: NaN for one without gradients, and of a
            learning rate that is not known. Norms are over all parameters of all groups and processes that had a
            gradient. Before the first update all are 0 or NaN.

        Raises:
            RuntimeError: if the recipe measures nothing.

        Example:
            >>> import funcopt, torch
            >>> w = torch.nn.Parameter(torch.tensor([3.0, 4.0]))
            >>> optimizer = funcopt.TorchBridge([w], funcopt.with_metrics(funcopt.sgd), lr=0.5)
            >>> w.square().sum().backward()
            >>> optimizer.step()
            >>> optimizer.metrics()["grad_norm"], optimizer.metrics()["update_ratio"]
            (10.0, [1.0])
        """
        readings = [] if self._held is None else self._held.readings
        if not readings and not any(unit.measures is not None for unit in self._some_units):
            raise RuntimeError(
                f"{type(self).__name__}: metrics must be of a recipe that measures its updates; pass "
                "funcopt.with_metrics(...)"
            )
        return summarize(readings, len(self.param_groups))

    def eval(self) -> None:
        """Puts the weights to evaluate into the parameters, where the recipe keeps such.

        They are the average of `schedule_free`, `params_ema`, `params_swa` or `asgd`, and the slow weights of
        `lookahead`. With other recipes it does nothing.

        What is trained is kept in the state meanwhile, to the last bit, so that a checkpoint that is saved now has
        both. Statistics of batch normalisation belong to the weights that they were taken with: refresh them.

        Raises:
            RuntimeError: if the recipe keeps several.
        """
        if is_evaluating(self.param_groups):
            return
        keeper = keeper_of(self._some_units)
        if keeper is not None:
            with STEPPING, _uninterrupted():
                self._eval_versions = to_evaluation(self.param_groups, self.state, keeper)

    def train(self) -> None:
        """Puts the weights that are trained back, after `eval`; otherwise it does nothing.

        Parameters that were written to meanwhile stay the weights to evaluate that they are now: what is trained is
        computed from them where the recipe can tell it, as `schedule_free` can; otherwise it is the same.
        """
        if is_evaluating(self.param_groups):
            with STEPPING, _uninterrupted():
                to_training(self.param_groups, self.state, keeper_of(self._some_units), self._eval_versions)
                self._eval_versions = {}

    @contextlib.contextmanager
    def eval_params(self) -> Iterator[None]:
        """The weights to evaluate, in a `with` block: `eval` before it and `train` behind it, also after an error.

        Example:
            >>> import funcopt, torch
            >>> model = torch.nn.Linear(2, 1)
            >>> optimizer = funcopt.TorchBridge(model.parameters(), funcopt.schedule_free_adamw)
            >>> with optimizer.eval_params():
            ...     loss = model(torch.ones(1, 2)).sum()
        """
        before = is_evaluating(self.param_groups)
        self.eval()
        try:
            yield
        finally:
            if not before:
                self.train()

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Adds a group, as torch does. Its parameters start at their own step 0; those before keep their state.

        A schedule in the group, or among the defaults, starts where the other groups' schedules are.
        """
        if not isinstance(param_group, dict):
            raise TypeError(f"param_group must be a dict, but got {type(param_group)}")
        where = f"parameter group {len(self.param_groups)}"
        self._binding.check_group(param_group, where)
        super().add_param_group(param_group)
        group = self.param_groups[-1]
        try:
            self._follow_schedules(group)
            self._apply_schedules()
            if self._binding.multiplied:  # otherwise torch's constructor has checked
                self._check_group(group, where)
            self._check_covered([group])
        except BaseException:
            self.param_groups.pop()
            self._scheduled.pop(id(group), None)
            raise

    def state_dict(self) -> dict[str, Any]:
        """The state in torch's layout; groups have what the reference keeps there, and not for each parameter."""
        saved = super().state_dict()
        if not saved["state"]:
            return saved
        return as_in_reference(saved, self._some_units if self._known_units is None else self._known_units)

    def load_state_dict(  # pyright: ignore[reportIncompatibleMethodOverride]
        self,
        state_dict: Mapping[str, Any],
        match: Literal["position", "name"] = "position",
        strict: bool = True,
        rename: Mapping[str, str] | None = None,
    ) -> LoadReport:
        """Loads a state in torch's layout, the bridge's or that of torch's own or the reference's optimizer.

        As torch's, the optimizer goes on with the tensors that it is given, where they have the right dtype. Group
        fields come from `state_dict` where it has them; a schedule goes on from the count that was saved. What the
        reference keeps in its groups, such as Prodigy's `d`, is state here, and `state_dict` writes it there, too.

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
        loaded = from_reference(loaded, self._some_units)
        entries, fields, report = _matching.match(self.param_groups, loaded, match, strict, rename)
        merged = [{**group, **new} for group, new in zip(self.param_groups, copy.deepcopy(fields), strict=True)]
        known = {index for group in loaded["param_groups"] for index in group["params"]}
        state: Any = collections.defaultdict(dict)
        state.update(
            (self._parameter(place), entry) for place, entry in self._fitting(merged, entries).items() if entry
        )
        state.update((key, value) for key, value in loaded["state"].items() if key not in known)
        for group, new in zip(self.param_groups, merged, strict=True):
            group.update(new)
            if id(group) in self._scheduled:
                self._scheduled[id(group)].written.clear()
        if match == "position":  # the names, too, of an optimizer that has none, as torch's takes them
            for group, saved in zip(self.param_groups, loaded["param_groups"], strict=True):
                if "param_names" in saved:
                    group["param_names"] = list(saved["param_names"])
        self.__setstate__({"state": state, "param_groups": self.param_groups})
        for post_hook in self._optimizer_load_state_dict_post_hooks.values():
            post_hook(self)
        return report

    def __getstate__(self) -> dict[str, Any]:
        own = {name: self.__dict__[name] for name in ("_binding", *_KEPT) if name in self.__dict__}
        # Groups are known by their identity, which copies have anew.
        return {**super().__getstate__(), **own, "_scheduled": list(self._scheduled.values())}

    def __setstate__(self, state: dict[str, Any]) -> None:
        state = dict(state)
        if "_scheduled" in state:
            state["_scheduled"] = {id(own.group): own for own in state["_scheduled"]}
            state["_held"] = None
        super().__setstate__(state)

    @property
    def _store(self) -> Store:
        """Memory and engine, made when they are first needed."""
        if self._held is None:
            self._held = Store(self._binding, fast=self.fast_path, wanted=self._wanted, compiled=self._compiled)
        return self._held

    def _parameter(self, place: Place) -> torch.Tensor:
        group = self.param_groups[place[0]]
        return group["params"][_matching.keys_of(group).index(place[1])]

    def _store_of(self, groups: Sequence[dict[str, Any]]) -> Store:
        """A store that only tells what there is, and holds nothing."""
        store = Store(self._binding, fast=self.fast_path, wanted=self._wanted)
        store.read(groups)
        return store

    @property
    def _some_units(self) -> list[Unit]:
        """What the state of a parameter consists of: of one that has one, or else of one that may get one."""
        every = [(i, p) for i, group in enumerate(self.param_groups) for p in group["params"] if p.requires_grad]
        # Of a subclass nobody knows whether it will ever be trained, nor what it allows.
        order = sorted(every, key=lambda own: (not self.state.get(own[1]), type(own[1]) is not torch.nn.Parameter))
        first = next(((i, p) for i, p in order if _has_units(p)), None)
        return [] if first is None else self._store_of(self.param_groups).units(*first)

    def _fitting(self, groups: Sequence[dict[str, Any]], entries: Mapping[Place, Entry]) -> dict[Place, Entry]:
        """Entries as the optimizer has them, each checked against what its parameter's state consists of."""
        keys = {
            (i, key): p
            for i, group in enumerate(groups)
            for key, p in zip(_matching.keys_of(group), group["params"], strict=True)
        }
        store = self._store_of(groups)
        fitting = {}
        for place, entry in entries.items():
            fitting[place] = dict(entry)
            p = keys[place]
            if all(value is None for value in entry.values()) or not _has_units(p):
                continue
            where = f"parameter {place[1]!r} of group {place[0]}"
            for unit in store.units(place[0], p):
                value = None if unit.hidden else value_of(unit, entry, where, "load_state_dict")
                if value is None and unit.own:
                    value = store.first(place[0], p, unit)
                if value is not None:
                    fitting[place][unit.name] = _as_kept(unit, value, p)
        return fitting

    def _check_group(self, group: dict[str, Any], where: str) -> None:
        """Has the factory check a group's values and parameters."""
        try:
            self._binding.check_values(group)
        except ValueError as error:
            if len(self.param_groups) == 1:
                raise
            raise ValueError(f"TorchBridge: {where}: {error}") from None
        for key, p in zip(_matching.keys_of(group), group["params"], strict=True):
            if not p.requires_grad or torch.nn.parameter.is_lazy(p):
                continue
            text = self._binding.refuse_param(p.shape, _buffers.jax_dtype(p.dtype))
            if text:
                raise ValueError(f"TorchBridge: parameter {key!r} of {where.removeprefix('parameter ')} must be {text}")

    def _check_covered(self, groups: Sequence[dict[str, Any]]) -> None:
        """Refuses what the torch engine has no operations for, if it is to update these groups."""
        params = [p for group in groups for p in group["params"]]
        if _choice.choose(self._wanted, params).name == "torch":
            Store(self._binding, fast=self.fast_path, wanted="torch").check_covered(groups)

    def _check_parameters(self) -> None:
        """Refuses, before each step, what a subclass cannot update."""
        for group in self.param_groups if self.defaults.get("fused") else ():
            if any(p.device.type == "meta" for p in group["params"] if p.grad is not None):
                raise RuntimeError(
                    "`fused=True` requires all the params to be floating point Tensors of supported devices: cpu and "
                    "cuda, but got one on meta"
                )

    def _check_sparse(self, params: Sequence[torch.Tensor]) -> None:
        """Refuses what the compiled update cannot see: decay of rows that a sparse gradient does not have."""
        for i, group in enumerate(self.param_groups if params else ()):
            decay = group.get("weight_decay", 0.0) * (group.get("decay_mult", 1.0) if self._binding.multiplied else 1.0)
            if decay == 0.0 or not any(p is q for p in params for q in group["params"]):
                continue
            rule = self._binding.rule_of({**group, "weight_decay": 0.0})
            if rule is None or rule.rows != "refuse":  # which it will say by itself
                raise RuntimeError(
                    f"TorchBridge: weight_decay of parameter group {i} must be 0 with sparse gradients, got "
                    f"{group['weight_decay']!r}"
                )

    def _follow_schedules(self, group: dict[str, Any]) -> None:
        """Notes a group's schedules."""
        schedules = {name: group[name] for name in self._binding.defaults if has_schedule(group.get(name))}
        self._scheduled[id(group)] = _Scheduled(group, schedules, {})
        if schedules:
            others = (other.get("schedule_step", 0) for other in self.param_groups)
            group["schedule_step"] = max(others, default=0)

    def _following(self) -> list[_Scheduled]:
        """Groups that follow their schedules: nobody has written anything else since."""
        own = [item for item in self._scheduled.values() if item.schedules]
        if not own:
            return []
        current = set(map(id, self.param_groups))
        return [item for item in own if id(item.group) in current and not item.is_overruled]

    def _apply_schedules(self) -> None:
        """Writes scheduled hyperparameters into their groups."""
        for group in self.param_groups:
            if id(group) not in self._scheduled:  # which holds the group, so that its identity is nobody else's
                self._follow_schedules(group)
        for own in self._following():
            step = own.group["schedule_step"]
            values = {name: _plain(at_step(f, step, tuples=True)) for name, f in own.schedules.items()}
            own.group.update(values)
            own.written.update(values)


def _has_units(p: torch.Tensor) -> bool:
    """Whether it is known what a parameter's state consists of: not of one that has no shape yet."""
    return (p.is_floating_point() or p.is_complex()) and not torch.nn.parameter.is_lazy(p)


def _number(loss: Any) -> float | None:
    """A closure's result, where it is a number: what a transformation gets as the loss."""
    try:
        return None if loss is None else float(loss)
    except (TypeError, ValueError):
        return None


def _as_kept(unit: Unit, value: Any, p: torch.Tensor) -> Any:
    """A value of a checkpoint in the dtype and on the device of the optimizer's state."""
    if unit.count is not None or unit.is_key or not isinstance(value, torch.Tensor):
        return value
    return value.to(dtype=_buffers.torch_dtype(unit.dtype), device=p.device)


def _plain(value: Any) -> Any:
    """A schedule's value as Python numbers, which is what groups hold and checkpoints carry."""
    return tuple(map(float, value)) if isinstance(value, tuple | list) else float(value)


def _refuse_tracing() -> None:
    """Refuses to step under what records torch's operations, or only pretends to do them: an update is none of them."""
    for mode in _get_current_dispatch_mode_stack():
        if type(mode).__name__ in ("ProxyTorchDispatchMode", "FakeTensorMode"):
            raise RuntimeError(
                f"TorchBridge: a step cannot be traced, and this one is under {type(mode).__name__}; step outside of it"
            )


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
