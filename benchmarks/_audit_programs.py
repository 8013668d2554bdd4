"""The programs that the audit compiles: an algorithm's update of a list of tensors, for a kind of device.

What is compiled is what a JAX loop runs: `tx.update` and `apply_updates` as one function of abstract arrays that
donates parameters and state, with x64 enabled and all numbers of all groups in one float64 vector. On a GPU that is
what `TorchBridge`'s engine runs, too; on the CPU it has the results computed apart and their loops merged, and is a
peer of its own. optax's program has its numbers as constants, the cheapest form that a JAX loop can give it.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

import funcopt
from benchmarks import _audit_hlo
from benchmarks._workloads import Shape
from funcopt._tree import weak
from funcopt.torch_bridge import _fusion
from funcopt.torch_bridge._apart import compute_apart
from funcopt.torch_bridge._engine import enable_x64, label_moments
from funcopt.torch_bridge._groups import GroupLeaves, PerGroup
from funcopt.torch_bridge._recipe import Recipe

SMALL = 65_536
"""Elements up to which a tensor is joined with others into one flat leaf."""

LAYOUTS = ("replicated", "zero1", "fsdp")
"""Over several devices: everything on each; the state divided among them; parameters and gradients divided, too."""


@dataclasses.dataclass(frozen=True)
class Algorithm:
    """One algorithm, and what its update costs elsewhere, in bytes per float32 parameter.

    Attributes:
        make: funcopt's factory, whose arguments are the groups' numbers.
        hyperparams: values for some of them.
        minimum: the least possible: each array read once, each changed array written once.
        optax: makes optax's transformation for the same algorithm; None where it has none.
        torch: name of the class in `torch.optim`, None where it has none.
        foreach: what torch moves with `foreach=True`; None where it has no such form.
        fused: the same with `fused=True`.
        groups: values of a second group, that of the vectors and numbers; None for one group.
        elementwise: whether it treats each element alone, so that tensors may be joined.
    """

    make: Callable[..., Any]
    minimum: int
    hyperparams: dict[str, Any] = dataclasses.field(default_factory=dict)
    optax: Callable[[], Any] | None = None
    torch: str | None = None
    foreach: int | None = None
    fused: int | None = None
    groups: dict[str, Any] | None = None
    elementwise: bool = True


def lion(lr: Any = 1e-4, weight_decay: Any = 0.1) -> Any:
    """Lion from optax's direction and funcopt's decay and learning rate."""
    return funcopt.chain(
        funcopt.ElementwiseTransformation(*optax.scale_by_lion()),
        funcopt.add_decayed_weights(weight_decay),
        funcopt.scale_by_learning_rate(lr),
    )


_COSINE = funcopt.schedules.cosine_annealing_lr(1e-3, T_max=10_000)


def recipe(lr: Any = 1e-3, betas: Any = (0.9, 0.999), weight_decay: Any = 0.05) -> Any:
    """Global-norm clip, scheduled AdamW, decay for one of two groups, average of the parameters."""
    return funcopt.chain(
        funcopt.clip_by_global_norm(1.0),
        funcopt.adamw(lr, betas, weight_decay=weight_decay),
        funcopt.params_ema(0.999),
    )


def _optax_recipe() -> optax.GradientTransformation:
    tx = optax.chain(
        optax.clip_by_global_norm(1.0),
        optax.adamw(optax.cosine_decay_schedule(1e-3, 10_000), weight_decay=0.05, mask=[True, False]),
    )

    def init(params: Any) -> Any:
        return tx.init(params), jax.tree.map(jnp.array, params)

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        updates, inner = tx.update(updates, state[0], params)
        return updates, (inner, optax.incremental_update(optax.apply_updates(params, updates), state[1], 1e-3))

    return optax.GradientTransformation(init, update)


_NESTEROV = {"momentum": 0.9, "nesterov": True, "weight_decay": 1e-4}

ALGORITHMS = {
    "sgd": Algorithm(funcopt.sgd, 12, optax=lambda: optax.sgd(1e-2), torch="SGD", foreach=12, fused=12),
    "sgd momentum": Algorithm(
        funcopt.sgd, 20, {"momentum": 0.9}, lambda: optax.sgd(1e-2, 0.9), torch="SGD", foreach=32, fused=20
    ),
    "sgd nesterov decay": Algorithm(
        funcopt.sgd,
        20,
        _NESTEROV,
        lambda: optax.chain(optax.add_decayed_weights(1e-4), optax.sgd(1e-2, 0.9, nesterov=True)),
        torch="SGD",
        foreach=56,
        fused=20,
    ),
    "adam": Algorithm(funcopt.adam, 28, optax=lambda: optax.adam(1e-3), torch="Adam", foreach=76, fused=28),
    "adamw": Algorithm(funcopt.adamw, 28, optax=lambda: optax.adamw(1e-3), torch="AdamW", foreach=84, fused=28),
    "amsgrad": Algorithm(
        funcopt.adamw,
        36,
        {"amsgrad": True},
        lambda: optax.chain(
            optax.scale_by_amsgrad(), optax.add_decayed_weights(1e-2), optax.scale_by_learning_rate(1e-3)
        ),
        torch="AdamW",
        foreach=96,
        fused=36,
    ),
    "adagrad": Algorithm(funcopt.adagrad, 20, optax=lambda: optax.adagrad(1e-2), torch="Adagrad", foreach=56, fused=20),
    "rmsprop": Algorithm(funcopt.rmsprop, 20, optax=lambda: optax.rmsprop(1e-2), torch="RMSprop", foreach=56),
    "rmsprop centered momentum": Algorithm(
        funcopt.rmsprop,
        36,
        {"centered": True, "momentum": 0.9},
        lambda: optax.rmsprop(1e-2, centered=True, momentum=0.9),
        torch="RMSprop",
        foreach=104,
    ),
    "adadelta": Algorithm(funcopt.adadelta, 28, optax=lambda: optax.adadelta(1.0), torch="Adadelta", foreach=116),
    "adamax": Algorithm(funcopt.adamax, 28, optax=lambda: optax.adamax(2e-3), torch="Adamax", foreach=64),
    "nadam": Algorithm(funcopt.nadam, 28, optax=lambda: optax.nadam(2e-3), torch="NAdam", foreach=92),
    "radam": Algorithm(funcopt.radam, 28, optax=lambda: optax.radam(1e-3), torch="RAdam", foreach=92),
    "rprop": Algorithm(funcopt.rprop, 28, optax=lambda: optax.rprop(1e-2), torch="Rprop", foreach=140),
    "asgd": Algorithm(funcopt.asgd, 20, torch="ASGD", foreach=48),
    "lion": Algorithm(lion, 20, optax=lambda: optax.lion(1e-4, weight_decay=0.1)),
    "adafactor": Algorithm(
        funcopt.adafactor, 24, optax=lambda: optax.adafactor(1e-2), torch="Adafactor", foreach=76, elementwise=False
    ),
    "muon": Algorithm(funcopt.muon, 20, optax=lambda: optax.contrib.muon(1e-3), torch="Muon", elementwise=False),
    "recipe": Algorithm(
        recipe, 40, {"lr": _COSINE}, _optax_recipe, torch="recipe", foreach=108, fused=52, groups={"weight_decay": 0.0}
    ),
}


@dataclasses.dataclass(frozen=True)
class Program:
    """A compiled update.

    Attributes:
        cost: what one step moves and launches.
        params: parameters, in elements; of all devices.
        tensors: leaves of the parameters.
        donated: leaves of parameters and state.
        aliased: donated leaves whose memory an output takes over.
        swapped: those whose memory the new value of another leaf takes over, which forces copies.
        temporaries: bytes beside arguments and outputs, on each device.
        module: the program.
    """

    cost: _audit_hlo.Count
    params: int
    tensors: int
    donated: int
    aliased: int
    swapped: int
    temporaries: int
    module: _audit_hlo.Module

    @property
    def bytes_per_param(self) -> float:
        return self.cost.bytes / self.params


def split_groups(algorithm: Algorithm, shapes: Sequence[Shape]) -> list[list[Shape]]:
    """The tensors per group: all in one, or matrices and what has more axes apart from vectors."""
    if algorithm.groups is None:
        return [list(shapes)]
    return [[s for s in shapes if len(s) > 1], [s for s in shapes if len(s) <= 1]]


def join(shapes: Sequence[Shape]) -> list[Shape]:
    """Flat leaves: one for all small tensors together, one for each of the others."""
    sizes = [math.prod(shape) for shape in shapes]
    small = sum(size for size in sizes if size <= SMALL)
    return [(small,)] * bool(small) + [(size,) for size in sizes if size > SMALL]


def build(
    algorithm: Algorithm, shapes: Sequence[Sequence[Shape]], peer: str = "funcopt"
) -> tuple[Any, tuple[Any, ...]]:
    """The step, `step(params, state, grads, numbers) -> (params, state)`, and its abstract arguments.

    Args:
        algorithm: the algorithm.
        shapes: the parameters' shapes, per group.
        peer: "funcopt", "bridge" or "optax".
    """
    if peer == "optax":
        assert algorithm.optax is not None
        tx = algorithm.optax()
        params: Any = [[jax.ShapeDtypeStruct(shape, jnp.float32) for shape in group] for group in shapes]

        def optax_step(params: Any, state: Any, grads: Any) -> tuple[Any, Any]:
            updates, state = tx.update(grads, state, params)
            return optax.apply_updates(params, updates), state

        return optax_step, (params, jax.eval_shape(tx.init, params), params)

    made = Recipe(algorithm.make, algorithm.hyperparams)
    groups = [{}] if algorithm.groups is None else [{}, algorithm.groups]
    layout, numbers = made.split(groups)
    params = PerGroup(
        GroupLeaves(i, tuple(range(len(group))), [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in group])
        for i, group in enumerate(shapes)
    )

    def step(params: Any, state: Any, grads: Any, numbers: jax.Array) -> tuple[Any, Any]:
        tx = made.build(layout.fill([weak(numbers[i]) for i in range(layout.size)]))
        updates, state = tx.update(grads, state, params)
        return funcopt.apply_updates(params, updates), state

    with enable_x64(True):
        state = jax.eval_shape(made.build(layout.fill(numbers.tolist())).init, params)
    arguments = (params, state, params, jax.ShapeDtypeStruct(numbers.shape, numbers.dtype))
    if peer == "funcopt":
        return step, arguments

    def apart(params: Any, state: Any, grads: Any, numbers: jax.Array) -> tuple[Any, Any]:
        return compute_apart(functools.partial(step, numbers=numbers), label_moments, params, state, grads)

    return apart, arguments


def compile_update(
    algorithm: Algorithm,
    shapes: Sequence[Sequence[Shape]],
    devices: Sequence[Any],
    layout: str = "replicated",
    peer: str = "funcopt",
) -> Program:
    """Compiles an update and counts it.

    Args:
        algorithm: the algorithm.
        shapes: the parameters' shapes, per group.
        devices: to compile for; more than one share the arrays as `layout` says.
        layout: one of `LAYOUTS`.
        peer: "funcopt", "bridge" or "optax".
    """
    step, arguments = build(algorithm, shapes, peer)
    params, state, grads, *numbers = arguments
    mesh = Mesh(np.array(devices), ("devices",))
    everywhere = NamedSharding(mesh, PartitionSpec())

    def place(tree: Any, divide: bool) -> Any:
        return jax.tree.map(lambda leaf: _sharding(leaf.shape, mesh) if divide else everywhere, tree)

    own = (place(params, layout == "fsdp"), place(state, layout != "replicated"))
    jitted = jax.jit(
        step,
        in_shardings=(*own, place(grads, layout == "fsdp"), *([everywhere] * len(numbers))),
        out_shardings=own,
        donate_argnums=(0, 1),
        keep_unused=True,  # a reported hyperparameter is written and never read, and keeps its place all the same
    )
    with enable_x64(peer != "optax"):
        lowered = jitted.lower(*arguments)
        compiled = _fusion.compile_merging(lowered) if peer == "bridge" else lowered.compile()
    module = _audit_hlo.parse(compiled.as_text() or "")
    memory = compiled.memory_analysis()
    assert memory is not None
    sizes = [math.prod(leaf.shape) for leaf in jax.tree.leaves(params)]
    return Program(
        cost=_audit_hlo.count(module),
        params=sum(sizes),
        tensors=len(sizes),
        donated=len(jax.tree.leaves((params, state))),
        aliased=len(module.aliases),
        swapped=sum(output != argument for output, argument in module.aliases.items()),  # both in the same order
        temporaries=memory.temp_size_in_bytes,
        module=module,
    )


def _sharding(shape: Shape, mesh: Mesh) -> NamedSharding:
    """The first axis that the devices divide evenly is divided among them; where there is none, none is."""
    spec: list[str | None] = [None] * len(shape)
    for axis, length in enumerate(shape):
        if mesh.size > 1 and length % mesh.size == 0:
            spec[axis] = "devices"
            break
    return NamedSharding(mesh, PartitionSpec(*spec))
