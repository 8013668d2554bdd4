"""Rules applied to a model: `group_params`, and what torch and JAX need of the result."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import jax

from funcopt._memory import Memory, memory_of_parts
from funcopt._names import nearest
from funcopt.groups._algorithms import Algorithm, Factory, arguments_of, bind, find_algorithm, name_of
from funcopt.groups._explain import Table, make_table
from funcopt.groups._mixed import FROZEN, Mixed, Wrap, Wrapped
from funcopt.groups._params import is_tensor, list_params, param_tree, unwrap
from funcopt.groups._prefix import MULTIPLIER_OF, NOT_GIVEN, columns_of, joint_prefixes, shortest_prefix
from funcopt.groups._resolve import Assignment, Settings, resolve
from funcopt.groups._rule import Rule
from funcopt.kinds import Hyperparameter
from funcopt.rule import GradientTransformation, PyTree


class Group(NamedTuple):
    """Parameters with equal settings."""

    name: str
    settings: Settings
    members: list[Assignment]


def group_params(
    model: Any,
    rules: Sequence[Rule] = (),
    algorithm: Algorithm | None = None,
    *,
    tied: Literal["error", "first"] = "error",
) -> Groups:
    """Gives each parameter of a model its hyperparameters by rule.

    Rules merge field by field, and later ones win; a rule that changes the algorithm never wins over another one that
    does.

    Args:
        model: a `torch.nn.Module`; tensors, named tensors, or a dict of them; or a pytree of arrays (a dict, linen's
            parameters, an equinox model). Of an nnx module the `Param`s are taken, and what is made of the groups has
            the structure of `nnx.state(module, nnx.Param)`. Prefixes of wrappers (`module.`, `_orig_mod.`) do not
            count.
        rules: in the order in which they apply.
        algorithm: the optimizer of what no rule gives one: a name or a function that returns a transformation. Where
            it is known, rules may set its arguments only.
        tied: what to do about a parameter with several names: "error" if rules tell them apart, or "first" name only.

    Returns:
        The groups.

    Raises:
        ValueError: for a pattern that matches nothing, a hyperparameter that nothing has, two algorithms for one
            parameter, or tied parameters with different values.

    Example:
        >>> import jax.numpy as jnp
        >>> params = {"backbone": {"w": jnp.ones((2, 2)), "b": jnp.ones(2)}, "head": {"w": jnp.ones((2, 1))}}
        >>> groups = group_params(params, [Rule(path="backbone", lr_mult=0.1), Rule(kind="bias", decay_mult=0.0)])
        >>> groups.hyperparams(lr=1.0, weight_decay=0.5)
        {'lr': {'backbone': 0.1, 'head': 1.0}, 'weight_decay': {'backbone': {'b': 0.0, 'w': 0.5}, 'head': 0.5}}
    """
    factory = None if algorithm is None else find_algorithm(algorithm)
    inner = unwrap(model)
    return Groups(param_tree(inner), resolve(list_params(inner), rules, factory, tied), factory)


def _short(value: Any) -> str:
    """A value in few digits: what is computed (0.7**4) has many."""
    text = str(value)
    return f"{value:.6g}" if isinstance(value, float) and len(text) > 8 else text


class Groups:
    """A model's parameters with their settings, made by `group_params`.

    Attributes:
        assignments: one per parameter, in the model's order.
        groups: the parameters that are updated, joined where their settings are equal, in order of first appearance.
    """

    def __init__(self, model: Any, assignments: list[Assignment], algorithm: Factory | None) -> None:
        self._model = model
        self._algorithm = algorithm
        self.assignments = [self._without_default(assignment) for assignment in assignments]
        self._check_names()
        self.groups: list[Group] = []
        for assignment in self.assignments:
            if not assignment.frozen:
                self._group_of(assignment).members.append(assignment)

    def _check_names(self) -> None:
        """Algorithms are told apart by name."""
        factories: dict[str, Any] = {}
        for assignment in self.assignments:
            label, factory = self._label(assignment.settings), assignment.settings.get("algorithm", self._algorithm)
            if factories.setdefault(label, factory) is not factory:
                raise ValueError(f"group_params: algorithms must have names of their own, got two that are {label!r}")

    def _without_default(self, assignment: Assignment) -> Assignment:
        """What a rule gives the algorithm that it would have anyway is in one group with what has no such rule."""
        settings = dict(assignment.settings)
        if settings.get("algorithm") is self._algorithm:
            settings.pop("algorithm", None)
        return dataclasses.replace(assignment, settings=settings)

    def _group_of(self, assignment: Assignment) -> Group:
        for group in self.groups:
            if group.settings == assignment.settings:
                return group
        settings = assignment.settings
        values = {**settings, **({"algorithm": name_of(settings["algorithm"])} if "algorithm" in settings else {})}
        name = values.pop("group", None)
        if name is None:
            short, exact = (", ".join(f"{k}={show(v)}" for k, v in values.items()) for show in (_short, str))
            name = (exact if short in {group.name for group in self.groups} else short) or "default"
        self.groups.append(Group(name, settings, []))
        return self.groups[-1]

    def __repr__(self) -> str:
        frozen = sum(assignment.frozen for assignment in self.assignments)
        return f"Groups({len(self.assignments)} parameters, {frozen} of them frozen, in {len(self.groups)} groups)"

    @property
    def is_torch(self) -> bool:
        return is_tensor(self.assignments[0].param.value)

    def param_groups(self, *, lr: float | None = None, weight_decay: float | None = None) -> list[dict[str, Any]]:
        """Parameter groups for torch, with the parameters' names. Frozen parameters are in none of them.

        Args:
            lr: if given, the groups have this times their multiplier as `lr`, for optimizers that know no multipliers.
                A scheduler of torch's that multiplies keeps them; one with a floor of its own does not.
            weight_decay: the same.

        Returns:
            The groups: for `TorchBridge` with live `lr_mult` and `decay_mult`; given the base values, for any torch
            optimizer.

        Raises:
            ValueError: if a base value is given and not all of the settings can be had of a plain torch optimizer.
        """
        if not self.is_torch:
            raise ValueError("param_groups: the model must be a torch model; for a pytree use hyperparams or optimizer")
        base = {name: value for name, value in (("lr", lr), ("weight_decay", weight_decay)) if value is not None}
        return [
            {
                "params": [member.param.value for member in group.members],
                "param_names": [member.param.name for member in group.members],
                "name": group.name,
                **(self._bake(group.settings, base) if base else self._live(group.settings)),
            }
            for group in self.groups
        ]

    def _live(self, settings: Settings) -> dict[str, Any]:
        fields = {name: value for name, value in settings.items() if name not in ("algorithm", "group")}
        return fields | ({"algorithm": self._label(settings)} if len(self.algorithms) > 1 else {})

    def _bake(self, settings: Settings, base: dict[str, Any]) -> dict[str, Any]:
        if "algorithm" in settings:
            raise ValueError("param_groups: a torch optimizer has one algorithm; use optimizer(lr=..., ...)")
        fields = {k: v for k, v in settings.items() if k not in ("group", *MULTIPLIER_OF.values())}
        for name, field in MULTIPLIER_OF.items():
            multiplier = settings.get(field, 1.0)
            if name in base or name in fields:
                fields[name] = fields.get(name, base.get(name)) * multiplier
            elif multiplier != 1.0:
                raise ValueError(f"param_groups: {name} must be given, since a rule sets {field}={multiplier!r}")
        return fields

    def hyperparams(self, **base: Hyperparameter) -> dict[str, PyTree]:
        """Hyperparameters as prefixes of the parameters' tree: `funcopt.adamw(**groups.hyperparams(lr=1e-3))`.

        Args:
            **base: values where no rule sets another: numbers, or schedules, which keep their multipliers. Without
                one, the algorithm's default.

        Returns:
            A prefix for each name in `base`, and each that a rule sets or multiplies. What is frozen has a learning
            rate and a decay of 0; see `optimizer` for keeping no state for it either.

        Raises:
            ValueError: if rules set different algorithms, or a base value is missing.
        """
        if len(self.algorithms) > 1:
            raise ValueError("hyperparams: rules set several algorithms, which have different ones; use optimizer(...)")
        (factory,) = self.algorithms.values()
        columns = self._columns(factory, base)
        for name in MULTIPLIER_OF.keys() & columns.keys():
            columns[name] = [
                0.0 if assignment.frozen else value
                for value, assignment in zip(columns[name], self.assignments, strict=True)
            ]
        return {name: self._prefix(values) for name, values in columns.items()}

    def labels(self) -> PyTree:
        """The algorithm's name for each part of a pytree, "frozen" where nothing moves: for `funcopt.partition`."""
        return self._prefix(self._labels())

    def optimizer(self, *, wrap: Wrap | None = None, **base: Hyperparameter) -> Any:
        """The optimizer: the algorithm given to `group_params`, and those that rules set, with one state.

        Args:
            wrap: a function from the transformation to the one that is used, for what concerns all parameters:
                `lambda tx: funcopt.chain(funcopt.clip_by_global_norm(1.0), tx)`.
            **base: values where no rule sets another: numbers, or schedules, which keep their multipliers. Each
                algorithm takes those that it has; without one, its own default.

        Returns:
            For a torch model a `TorchBridge`; for a pytree a transformation, which keeps no state for what is frozen.

        Raises:
            ValueError: if `group_params` was given no algorithm, or for a value that no algorithm takes.

        Example:
            >>> import jax.numpy as jnp
            >>> params = {"hidden": jnp.ones((2, 2)), "head": jnp.ones((2, 1)), "stem": jnp.ones(2)}
            >>> rules = [Rule(path="hidden", algorithm="muon", lr_mult=10), Rule(path="stem", freeze=True)]
            >>> state = group_params(params, rules, "adamw").optimizer(lr=1e-3).init(params)
        """
        factories = self.algorithms
        if None in factories.values():
            raise ValueError("optimizer: the algorithm must be known; call group_params(model, rules, algorithm)")
        self._check_taken(base)
        if self.is_torch:
            return self._bridge(base, wrap)
        wrap = wrap or (lambda tx: tx)
        labels = self._labels()
        if len(factories) == 1 and FROZEN not in labels:
            (factory,) = factories.values()
            return wrap(bind(factory, self.hyperparams(**base)))
        columns = {label: self._columns(factory, base) for label, factory in factories.items()}
        names = {name for own in columns.values() for name in own}
        for label, factory in factories.items():  # what rules set for one algorithm, another one has its default for
            arguments = arguments_of(factory)
            for name in names & arguments.keys() - columns[label].keys():
                if arguments[name].default is NOT_GIVEN:
                    raise ValueError(f"optimizer: {name} must be given, {label} has no default for it")
                columns[label][name] = [arguments[name].default] * len(labels)
        return wrap(Mixed(factories)(**joint_prefixes(self._model, labels, columns)))

    def freeze(self) -> list[str]:
        """Sets `requires_grad=False` on what is frozen in a torch model, so that no gradient is computed either.

        Returns:
            The names of these parameters.
        """
        frozen = [assignment.param for assignment in self.assignments if assignment.frozen]
        for param in frozen:
            param.value.requires_grad_(False)
        return [param.name for param in frozen]

    def explain(self, *, lr: Hyperparameter = None, weight_decay: Hyperparameter = None) -> Table:
        """A table of what each parameter gets and from which rules; it prints well in a terminal.

        Args:
            lr: base value, to show numbers instead of multipliers.
            weight_decay: base value, likewise.
        """
        groups = {id(member): group.name for group in self.groups for member in group.members}
        return make_table(
            {"lr": lr, "weight_decay": weight_decay},
            [(a, label, groups.get(id(a), FROZEN)) for a, label in zip(self.assignments, self._labels(), strict=True)],
        )

    def memory(self, **base: Hyperparameter) -> Memory:
        """What the optimizer's state takes, by state key, without making it; frozen parameters have none.

        Args:
            **base: hyperparameters as for `optimizer`; some switch a part of the state on or off.

        Raises:
            ValueError: if `group_params` was given no algorithm.
        """
        if None in self.algorithms.values():
            raise ValueError("memory: the algorithm must be known; call group_params(model, rules, algorithm)")
        self._check_taken(base)
        return memory_of_parts(map(functools.partial(self._part, base), self.groups))

    def _part(self, base: dict[str, Any], group: Group) -> tuple[GradientTransformation, dict[str, Any]]:
        """A group's own transformation, and the shapes of its parameters."""
        factory: Any = group.settings.get("algorithm", self._algorithm)
        values = {name: value for name, value in {**base, **group.settings}.items() if name in arguments_of(factory)}
        params = [member.param for member in group.members]
        dtypes = [str(param.value.dtype).removeprefix("torch.") for param in params]
        shapes = [jax.ShapeDtypeStruct(param.shape, dtype) for param, dtype in zip(params, dtypes, strict=True)]
        return bind(factory, values), dict(zip((param.name for param in params), shapes, strict=True))

    @property
    def algorithms(self) -> dict[str, Any]:
        """The algorithms in use by name; None is one that `group_params` was not given."""
        used = {self._label(g.settings): g.settings.get("algorithm", self._algorithm) for g in self.groups}
        return used or {self._label({}): self._algorithm}

    def _label(self, settings: Settings) -> str:
        factory = settings.get("algorithm", self._algorithm)
        return "-" if factory is None else name_of(factory)

    def _check_taken(self, base: dict[str, Any]) -> None:
        known = {name for factory in self.algorithms.values() for name in arguments_of(factory)}
        for name in base:
            if name not in known:
                fix = nearest(name, known)
                raise ValueError(
                    f"optimizer: {name} must be a hyperparameter of {' or '.join(self.algorithms)}, which it is not"
                    f"{fix and '; ' + fix}"
                )

    def _bridge(self, base: dict[str, Any], wrap: Wrap | None) -> Any:
        from funcopt.torch_bridge import TorchBridge  # the only package that imports torch

        factories = self.algorithms
        groups = self.param_groups()
        (factory, *others) = factories.values()
        if others:
            factory = Mixed(factories)
            for group in groups:
                for name, argument in arguments_of(factories[group["algorithm"]]).items():
                    if name not in base and argument.default is not NOT_GIVEN:
                        group.setdefault(name, argument.default)
        return TorchBridge(groups, Wrapped(factory, wrap) if wrap else factory, **base)

    def _labels(self) -> list[str]:
        return [FROZEN if a.frozen else self._label(a.settings) for a in self.assignments]

    def _columns(self, factory: Factory | None, base: dict[str, Any]) -> dict[str, list[Any]]:
        settings = [a.settings for a in self.assignments]
        own = [s for s in settings if s.get("algorithm", self._algorithm) is factory]
        return columns_of(settings, own, factory, base)

    def _prefix(self, values: Sequence[Any]) -> PyTree:
        if self.is_torch:
            raise ValueError("hyperparams: the model must be a pytree; for a torch model use param_groups or optimizer")
        return shortest_prefix(self._model, values)
