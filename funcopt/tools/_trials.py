"""Optimizers of either framework, run side by side: what `compare` starts, steps and reads."""

import copy
import functools
import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol, Self

import jax
import jax.numpy as jnp
import numpy as np
import optax

from funcopt._inspect import current_hyperparams
from funcopt._parts import names_of, parts
from funcopt._tree import is_none
from funcopt.groups._params import list_params, param_tree, unwrap
from funcopt.rule import GradientTransformation, step

Arrays = dict[str, np.ndarray]

# optax's names of what has one in torch.
TORCH_KEYS = {"mu": "exp_avg", "nu": "exp_avg_sq", "trace": "momentum_buffer", "count": "step"}


class Trial(Protocol):
    """One run."""

    def step(self, grads: Mapping[str, np.ndarray | None]) -> None:
        """One update, from a gradient for each parameter by name."""
        ...

    def params(self) -> Arrays:
        """The parameters by name."""
        ...

    def state(self) -> dict[tuple[str, str], np.ndarray]:
        """The state by parameter and key, under torch's names where there is one."""
        ...

    def hyperparams(self) -> dict[str, Any]:
        """The values in use, as far as they can be read."""
        ...


class Contender(Protocol):
    """An optimizer that can be started again and again."""

    options: Mapping[str, Any]  # what can be changed

    def start(self, start: Any, changes: Mapping[str, Any]) -> Trial:
        """A new run from a `Start`, with other values of some options."""
        ...


class Start:
    """Where runs start: the parameters by name, and as the tree that a transformation gets."""

    def __init__(self, params: Any, dtype: Any) -> None:
        inner = unwrap(params)
        listed = list_params(inner)
        of_torch = hasattr(listed[0].value, "detach")
        tree = {p.name: p.value for p in listed} if of_torch else param_tree(inner)
        self.names, self._treedef = names_of(jax.tree.map(lambda _: 0, tree))
        values = [p.value for p in listed] if of_torch else jax.tree.leaves(tree)
        order = [p.name for p in listed] if of_torch else self.names
        self.values = {name: as_numpy(value).astype(dtype) for name, value in zip(order, values, strict=True)}

    def tree(self, values: Mapping[str, Any]) -> Any:
        """Values by name in the parameters' tree."""
        return self._treedef.unflatten([values[name] for name in self.names])

    def gradients(self, tree: Any) -> dict[str, np.ndarray | None]:
        """Gradients like the parameters, or by name; one that is `None` or not there is missing.

        Raises:
            ValueError: for a gradient that no parameter has the name or the shape of.
        """
        names, treedef = names_of(jax.tree.map(lambda _: 0, tree, is_leaf=is_none))
        flat = tree if treedef != self._treedef and isinstance(tree, Mapping) else None
        given = dict(zip(names, jax.tree.leaves(tree, is_leaf=is_none), strict=True)) if flat is None else flat
        found: dict[str, np.ndarray | None] = dict.fromkeys(self.values)
        for name, grad in given.items():
            value = self.values.get(name)
            if value is None or (grad is not None and np.shape(grad) != value.shape):
                got = "none of that name" if value is None else f"{np.shape(grad)} for {value.shape}"
                raise ValueError(f"compare: grads[{name!r}] must be of a parameter's name and shape, got {got}")
            found[name] = None if grad is None else as_numpy(grad).astype(value.dtype)
        return found

    def replaced(self, change: Callable[[np.ndarray], np.ndarray]) -> Self:
        """The same parameters with other values."""
        other = copy.copy(self)
        other.values = {name: change(value) for name, value in self.values.items()}
        return other


def as_numpy(value: Any) -> np.ndarray:
    """The values of an array of any framework; bfloat16 as float32."""
    if hasattr(value, "detach"):
        value = value.detach().cpu()
        return np.array((value.float() if str(value.dtype) == "torch.bfloat16" else value).numpy())
    return np.array(value)


def is_number(value: object) -> bool:
    """Whether a hyperparameter is a number, a flag, or a tuple of them."""
    own = value if isinstance(value, tuple) and value else (value,)
    return all(isinstance(item, bool | float | int) for item in own)


class JaxTrial:
    """A transformation in a loop of one compiled step."""

    def __init__(self, tx: GradientTransformation, start: Start, options: Mapping[str, Any]) -> None:
        self._options = options
        self._start = start
        self._params = start.tree({name: jnp.asarray(value) for name, value in start.values.items()})
        self._state = jax.jit(tx.init)(self._params)
        self._step = jax.jit(functools.partial(step, optax.with_extra_args_support(tx)))

    def step(self, grads: Mapping[str, np.ndarray | None]) -> None:
        self._params, self._state = self._step(self._start.tree(grads), self._state, self._params)

    def params(self) -> Arrays:
        leaves = jax.tree.leaves(self._params)
        return {name: np.array(leaf) for name, leaf in zip(self._start.names, leaves, strict=True)}

    def state(self) -> dict[tuple[str, str], np.ndarray]:
        found: dict[tuple[str, str], np.ndarray] = {}
        _, treedef = names_of(self._params)
        changing = current_hyperparams(self._state)
        for key, each, common in parts(self._state, treedef):
            values = each if each is not None else [common] * len(self._start.names)
            for name, value in zip(self._start.names, values, strict=True):
                if hasattr(value, "dtype") and key not in changing:
                    found.setdefault((name, TORCH_KEYS.get(key, key)), np.array(value))
        return found

    def hyperparams(self) -> dict[str, Any]:
        current = {k: float(v) for k, v in current_hyperparams(self._state).items() if np.ndim(v) == 0}
        return {**{name: value for name, value in self._options.items() if is_number(value)}, **current}


class OfJax:
    """A transformation, or a function without required arguments that returns one."""

    def __init__(self, factory: Callable[..., GradientTransformation], options: Mapping[str, Any]) -> None:
        self._factory = factory
        self.options = options

    def start(self, start: Start, changes: Mapping[str, Any]) -> Trial:
        return JaxTrial(self._factory(**changes), start, {**self.options, **changes})


def contender(owner: str, name: str, optimizer: Any) -> Contender:
    """What `compare` was given, as something that can be started.

    Raises:
        TypeError: for what is neither a transformation nor a torch optimizer, nor makes one.
    """
    if isinstance(optimizer, GradientTransformation):
        return OfJax(lambda: optimizer, {})
    if hasattr(optimizer, "param_groups"):
        return _of_torch().OfOptimizer(optimizer)
    if not callable(optimizer):
        raise TypeError(
            f"{owner}: {name} must be a transformation, a torch optimizer, or a function that makes one of them, "
            f"got {optimizer!r}"
        )
    make: Any = optimizer
    return _of_torch().OfFactory(f"{owner}: {name}", make) if required(make) else OfJax(make, keywords(make))


def required(factory: Callable[..., Any]) -> Sequence[str]:
    """The arguments that a function cannot be called without."""
    return [
        p.name
        for p in inspect.signature(factory).parameters.values()
        if p.default is p.empty and p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)
    ]


def keywords(factory: Callable[..., Any]) -> dict[str, Any]:
    """The arguments of a function and their values, where it has some."""
    return {p.name: p.default for p in inspect.signature(factory).parameters.values() if p.default is not p.empty}


def _of_torch() -> Any:
    """The half of torch, only where there is a torch optimizer."""
    from funcopt.torch_bridge import _trials

    return _trials
