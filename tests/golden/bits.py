"""Digests of what each algorithm computes, over dtypes, schedules, prefixes, and the bridge's groups.

Run as a script it prints them as JSON. Bits depend on the instructions that XLA chooses, so whoever compares runs it
with `XLA_FLAGS=--xla_cpu_max_isa=SSE4_2`.
"""

import hashlib
import json
import sys
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import torch
from jax import lax
from jax.tree_util import GetAttrKey

import funcopt
from funcopt.torch_bridge import optim

STEPS = 6

Options = dict[str, Any]


def falling(start: float) -> Callable[[Any], Any]:
    return lambda step: start / (1.0 + 0.25 * step)


ALGORITHMS: dict[str, list[Options]] = {
    "adadelta": [{}, {"rho": 0.6, "eps": 1e-3, "weight_decay": 0.3, "maximize": True}],
    "adafactor": [{}, {"beta2_decay": -0.5, "eps": (1e-3, 1e-2), "d": 1.5, "weight_decay": 0.1, "maximize": True}],
    "adagrad": [{}, {"lr_decay": 0.1, "initial_accumulator_value": 0.1, "weight_decay": 0.1, "maximize": True}],
    "adam": [{}, {"weight_decay": 0.1, "amsgrad": True}, {"betas": (0.5, 0.9), "eps": 0.1, "maximize": True}],
    "adamax": [{}, {"betas": (0.7, 0.9), "eps": 1e-3, "weight_decay": 0.3, "maximize": True}],
    "adamw": [{}, {"betas": (0.5, 0.9), "eps": 0.1, "weight_decay": 0.1, "amsgrad": True, "maximize": True}],
    "asgd": [{}, {"lambd": 0.1, "alpha": 2.0, "t0": 2, "weight_decay": 0.1, "maximize": True}],
    "muon": [{"ns_steps": 0}, {"nesterov": False, "momentum": 0.5, "adjust_lr_fn": "match_rms_adamw", "ns_steps": 3}],
    "nadam": [{}, {"weight_decay": 0.1, "decoupled_weight_decay": True}, {"momentum_decay": 0.5, "weight_decay": 0.3}],
    "radam": [{}, {"weight_decay": 0.1, "decoupled_weight_decay": True}, {"betas": (0.7, 0.9), "weight_decay": 0.3}],
    "rmsprop": [{}, {"momentum": 0.9, "centered": True, "alpha": 0.9, "weight_decay": 0.1, "maximize": True}],
    "rprop": [{}, {"etas": (0.3, 1.9), "step_sizes": (1e-3, 0.2), "maximize": True}],
    "sgd": [{}, {"momentum": 0.9, "dampening": 0.3}, {"momentum": 0.9, "nesterov": True, "weight_decay": 0.1}],
    "sparse_adam": [{}, {"betas": (0.8, 0.99), "eps": 1e-3, "maximize": True}],
}
SCHEDULED: dict[str, Options] = {
    "adam": {"betas": (falling(0.9), 0.99), "weight_decay": falling(0.2)},
    "rmsprop": {"momentum": falling(0.9), "alpha": falling(0.95)},
    "sgd": {"momentum": falling(0.9), "weight_decay": falling(0.2)},
}
PREFIXES: dict[str, Options] = {
    "adam": {"weight_decay": {"a": 0.1, "b": 0.0}, "betas": {"a": (0.9, 0.99), "b": (0.8, 0.9)}},
    "adamw": {"weight_decay": {"a": 0.1, "b": {"w": 0.0, "v": 0.2}}, "maximize": {"a": True, "b": False}},
    "rmsprop": {"centered": {"a": True, "b": False}, "eps": {"a": 1e-8, "b": 1e-2}},
    "sgd": {"momentum": {"a": 0.0, "b": 0.9}, "nesterov": {"a": False, "b": True}},
}
PARTS: dict[str, Options] = {
    "add_decayed_weights": {"weight_decay": 0.1},
    "clip_by_global_norm": {"max_norm": 0.5},
    "clip_by_value": {"clip_value": 0.5},
    "params_ema": {"decay": 0.9},
    "scale": {"factor": -0.3},
    "scale_by_adadelta": {},
    "scale_by_adagrad": {},
    "scale_by_adam": {"amsgrad": True},
    "scale_by_adamax": {},
    "scale_by_learning_rate": {"lr": falling(0.1)},
    "scale_by_multipliers": {"multipliers": {"a": 0.1, "b": 1.0}},
    "scale_by_muon": {"ns_steps": 1},
    "scale_by_nadam": {},
    "scale_by_radam": {},
    "scale_by_rmsprop": {"momentum": 0.9},
    "scale_by_sparse_adam": {},
    "trace": {"momentum": 0.9},
}


def make_tree(seed: int, dtype: Any, matrices: bool) -> Any:
    rng = np.random.default_rng(seed)
    imaginary = 1j if np.dtype(dtype).kind == "c" else 0.0
    draw = lambda *shape: jnp.asarray(rng.normal(size=shape) + imaginary * rng.normal(size=shape), dtype)  # noqa: E731
    return {"a": draw(3, 5), "b": {"v": draw(2, 4) if matrices else draw(7), "w": draw(4, 4)}}


def digest(array: Any) -> str:
    return hashlib.sha256(np.ascontiguousarray(array).tobytes()).hexdigest()[:12]


def described(params: Any, state: Any) -> dict[str, str]:
    """Digests of the parameters, and of each field that a state keeps, wherever in the state it stands."""
    fields: dict[str, list[bytes]] = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(state):
        names = [key.name for key in path if isinstance(key, GetAttrKey)]
        if names and names[-1] not in ("schedule_step", "hyperparams"):
            fields.setdefault(names[-1], []).append(np.asarray(leaf).tobytes())
    result = {"params": digest(np.concatenate([np.asarray(x).reshape(-1) for x in jax.tree.leaves(params)]))}
    return result | {name: digest(np.frombuffer(b"".join(own), np.uint8)) for name, own in sorted(fields.items())}


def train(tx: Any, params: Any, gradients: list[Any], compiled: bool) -> dict[str, str]:
    def step(carry: Any, grads: Any) -> tuple[Any, None]:
        params, state = carry
        updates, state = tx.update(grads, state, params)
        return (funcopt.apply_updates(params, updates), state), None

    carry = params, tx.init(params)
    if compiled:
        stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *gradients)
        carry, _ = jax.jit(lambda carry, xs: lax.scan(step, carry, xs))(carry, stacked)
    else:
        for grads in gradients:
            carry, _ = step(carry, grads)
    return described(*carry)


def jax_cases() -> Iterator[tuple[str, dict[str, str]]]:
    """Each algorithm compiled in both precisions; operation by operation for bfloat16 and complex numbers."""
    named = [(name, f"{name}/{i}", options) for name, sets in ALGORITHMS.items() for i, options in enumerate(sets)]
    named = [(name, label, {"lr": falling(0.1), **options}) for name, label, options in named]
    named += [(name, f"{name}/scheduled", {"lr": 0.1, **options}) for name, options in SCHEDULED.items()]
    lrs = {"a": 0.1, "b": {"v": falling(0.2), "w": 0.05}}
    named += [(name, f"{name}/prefixes", {"lr": lrs, **options}) for name, options in PREFIXES.items()]
    named += [(name, name, options) for name, options in PARTS.items()]
    for name, label, options in named:
        shaped = "muon" in name
        for dtype in ("float32", "float64", "bfloat16", "complex64"):
            if dtype == "complex64" and (shaped or name == "adafactor"):
                continue
            with jax.enable_x64(dtype == "float64"):
                # Gradients wider than the parameters, as accumulated ones are.
                wide = "float32" if dtype == "bfloat16" else dtype
                gradients = [make_tree(i + 1, wide, shaped) for i in range(STEPS)]
                tx = getattr(funcopt, name)(**options)
                compiled = dtype in ("float32", "float64")
                yield f"{label}/{dtype}", train(tx, make_tree(0, dtype, shaped), gradients, compiled)


def lbfgs_cases() -> Iterator[tuple[str, dict[str, str]]]:
    for search in (None, "strong_wolfe"):
        with jax.enable_x64(True):
            tx = funcopt.lbfgs(0.5, max_iter=3, history_size=3, line_search_fn=search)
            params = make_tree(0, "float64", False)
            target = make_tree(1, "float64", False)

            def loss(p: Any, target: Any = target) -> Any:
                return sum(jnp.sum((x - y) ** 4) for x, y in zip(*map(jax.tree.leaves, (p, target)), strict=True))

            @jax.jit
            def step(params: Any, state: Any, tx: Any = tx, loss: Any = loss) -> Any:
                updates, state = tx.update(jax.grad(loss)(params), state, params, value_fn=loss)
                return funcopt.apply_updates(params, updates), state

            state = tx.init(params)
            for _ in range(3):
                params, state = step(params, state)
            yield f"lbfgs/{search}", described(params, state)


CLASSES = {
    "adadelta": optim.Adadelta,
    "adafactor": optim.Adafactor,
    "adagrad": optim.Adagrad,
    "adam": optim.Adam,
    "adamax": optim.Adamax,
    "adamw": optim.AdamW,
    "asgd": optim.ASGD,
    "muon": optim.Muon,
    "nadam": optim.NAdam,
    "radam": optim.RAdam,
    "rmsprop": optim.RMSprop,
    "rprop": optim.Rprop,
    "sgd": optim.SGD,
}


def bridge_cases() -> Iterator[tuple[str, dict[str, str]]]:
    """Each class with its option sets as groups, under changing learning rates and with a missing gradient."""
    for name, make in CLASSES.items():
        rng = np.random.default_rng(0)
        dtypes = (torch.float32, torch.float64, torch.bfloat16)
        groups: list[Any] = []
        for options in ALGORITHMS[name]:
            own = [torch.nn.Parameter(torch.tensor(rng.normal(size=(3, 5))).to(dtype)) for dtype in dtypes]
            given = {key: value for key, value in options.items() if key != "initial_accumulator_value"}
            groups.append({"params": own, **given})
        optimizer = make(groups, lr=0.1)
        params = [p for group in optimizer.param_groups for p in group["params"]]
        for t in range(STEPS):
            for group in optimizer.param_groups:
                group["lr"] = 0.1 / (1 + 0.25 * t)
            for i, p in enumerate(params):
                grad = torch.tensor(rng.normal(size=p.shape)).to(p.dtype)
                p.grad = None if t == 2 and i == 1 else grad
            optimizer.step()
        found = {"params": b"".join(bytes(p.detach().view(torch.uint8).numpy()) for p in params)}
        for p in params:
            for key, value in sorted(optimizer.state[p].items()):
                part = torch.as_tensor(value).contiguous().reshape(-1)
                found[key] = found.get(key, b"") + bytes(part.view(torch.uint8).numpy())
        yield f"bridge/{name}", {key: digest(np.frombuffer(value, np.uint8)) for key, value in found.items()}


if __name__ == "__main__":
    torch.set_num_threads(1)
    json.dump(dict((*jax_cases(), *lbfgs_cases(), *bridge_cases())), sys.stdout, indent=0, sort_keys=True)
    print()
