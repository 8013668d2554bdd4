"""Eight devices of the host: where states are, and which collectives XLA puts into an update. Run as a script it prints
JSON, since the number of devices is fixed before JAX starts.
"""

import collections
import json
import os
import re
import sys
from collections.abc import Callable, Iterator
from typing import Any

os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=8 --xla_cpu_multi_thread_eigen=false"

import jax
import jax.numpy as jnp
import optax
from jax import lax
from jax.sharding import AxisType, NamedSharding, PartitionSpec

import funcopt

Spec = PartitionSpec

# By layout: the mesh's axes, and the specs of a matrix and of a vector.
LAYOUTS: dict[str, tuple[dict[str, int], Spec, Spec]] = {
    "replicated": ({"data": 8}, Spec(), Spec()),
    "fsdp": ({"data": 8}, Spec("data"), Spec("data")),
    "tensor": ({"data": 4, "model": 2}, Spec(None, "model"), Spec("model")),
    "mixed": ({"data": 4, "model": 2}, Spec("data", "model"), Spec(("data", "model"))),
}
COLLECTIVES = re.compile(r"\b(all-reduce|all-gather|all-to-all|collective-permute|reduce-scatter)(?:-start)?\(")

Factory = Callable[[], funcopt.GradientTransformationExtraArgs]


def clipped() -> funcopt.GradientTransformationExtraArgs:
    return funcopt.chain(funcopt.clip_by_global_norm(1.0), funcopt.adamw(0.1), funcopt.params_ema(0.9))


def transformations() -> dict[str, tuple[Factory, bool]]:
    """By name: a factory, and whether it takes matrices only. The command line says which algorithms; else all."""
    found: dict[str, tuple[Factory, bool]] = {
        name: (algorithm.factory, algorithm.matrices_only) for name, algorithm in funcopt.algorithms().items()
    }
    wanted = sys.argv[1:] or [*found]
    found = {name: made for name, made in found.items() if name in wanted}
    found["sgd, momentum"] = (lambda: funcopt.sgd(0.1, momentum=0.9), False)
    found["rmsprop, all"] = (lambda: funcopt.rmsprop(momentum=0.9, centered=True), False)
    found["params_ema"] = (funcopt.params_ema, False)
    found["clip, adamw, ema"] = (clipped, False)
    found["optax's clip"] = (lambda: funcopt.chain(optax.clip_by_global_norm(1.0)), False)
    found["join_small_leaves"] = (lambda: funcopt.join_small_leaves(funcopt.adam(0.1)), False)
    return found


def make_params(layout: str, matrices_only: bool, kind: AxisType, dtype: Any = jnp.float32) -> dict[str, jax.Array]:
    axes, matrix, vector = LAYOUTS[layout]
    mesh = jax.make_mesh(tuple(axes.values()), tuple(axes), axis_types=(kind,) * len(axes))
    params = {"w": jax.device_put(jnp.ones((64, 32), dtype), NamedSharding(mesh, matrix))}
    if not matrices_only:
        # Of another length than the matrix's sides: a state is known by its shape.
        params["b"] = jax.device_put(jnp.ones(128, dtype), NamedSharding(mesh, vector))
    return params


def step(tx: Any, extra: dict[str, Any]) -> Callable[..., Any]:
    def update(params: Any, state: Any) -> Any:
        updates, state = tx.update(jax.tree.map(jnp.cos, params), state, params, **extra)
        return funcopt.apply_updates(params, updates), state

    return update


def extra_of(name: str) -> dict[str, Any]:
    loss = lambda params: sum(jnp.sum(x**2) for x in jax.tree.leaves(params))  # noqa: E731
    return {"value_fn": loss} if name == "lbfgs" else {}


def automatic() -> Iterator[dict[str, Any]]:
    """Shardings that XLA propagates (`AxisType.Auto`)."""
    for name, (make, matrices_only) in transformations().items():
        if name in ("lbfgs", "join_small_leaves"):  # one vector of everything has a sharding of its own
            continue
        for layout in LAYOUTS:
            params = make_params(layout, matrices_only, AxisType.Auto)
            tx = make()
            state = tx.init(params)
            like = {x.shape: x.sharding for x in params.values()}
            same = [x for x in jax.tree.leaves(state) if x.shape in like]
            compiled = jax.jit(step(tx, {})).lower(params, state).compile()
            outputs = zip(jax.tree.leaves(compiled.output_shardings), jax.tree.leaves((params, state)), strict=True)
            yield {
                "name": name,
                "layout": layout,
                "state": all(x.sharding.is_equivalent_to(like[x.shape], x.ndim) for x in same),
                "bytes": [sum(x.nbytes for x in same), sum(x.addressable_shards[0].data.nbytes for x in same)],
                "kept": all(out.is_equivalent_to(x.sharding, x.ndim) for out, x in outputs),
                "collectives": collections.Counter(COLLECTIVES.findall(compiled.as_text())),
            }


def typed() -> Iterator[dict[str, Any]]:
    """Shardings that are part of types (`AxisType.Explicit`), carried by a scan."""
    for name, (make, matrices_only) in transformations().items():
        for dtype in (jnp.float32, jnp.bfloat16, jnp.complex64):
            found = funcopt.algorithms().get(name)
            if dtype == jnp.complex64 and found is not None and not found.complex_numbers:
                continue
            params = make_params("mixed", matrices_only, AxisType.Explicit, dtype)
            with jax.set_mesh(params["w"].sharding.mesh):
                tx = make()
                update = step(tx, extra_of(name))
                try:
                    carry, _ = jax.jit(
                        lambda carry, update=update: lax.scan(lambda c, _: (update(*c), None), carry, None, length=2)
                    )((params, tx.init(params)))
                    outcome = "kept" if carry[0]["w"].sharding == params["w"].sharding else "lost"
                except ValueError as error:
                    outcome = str(error)
            yield {"name": name, "dtype": jnp.dtype(dtype).name, "outcome": outcome}


def placed() -> Iterator[dict[str, Any]]:
    """Parameters on one device other than the first, and in the host's pinned memory."""
    device = jax.devices()[3]
    shardings = [jax.sharding.SingleDeviceSharding(device)]
    shardings += [jax.sharding.SingleDeviceSharding(device, memory_kind="pinned_host")]
    for name, (make, matrices_only) in transformations().items():
        for sharding in shardings:
            params = {"w": jax.device_put(jnp.ones((4, 4)), sharding)}
            params |= {} if matrices_only else {"b": jax.device_put(jnp.ones(4), sharding)}
            state = jax.tree.leaves(make().init(params))
            yield {
                "name": name,
                "memory": sharding.memory_kind,
                "kept": all(x.sharding == params["w"].sharding for x in state if x.ndim),
            }


if __name__ == "__main__":
    tables = {"automatic": automatic, "typed": typed, "placed": placed}
    json.dump({name: list(table()) for name, table in tables.items()}, sys.stdout)
