"""All algorithms and parts as one table, from the definitions: what the tests of this folder are crossed with."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from subjects import TRIED

import funcopt


class Case(NamedTuple):
    """A transformation, made anew by `make`, and what it takes."""

    name: str
    make: Callable[..., funcopt.GradientTransformationExtraArgs]
    matrices_only: bool = False
    complex_numbers: bool = True
    elementwise: bool = True
    reads_params: bool = False  # whether `update` needs the parameters with the given hyperparameters
    scheduled: tuple[str, ...] = ()  # arguments that may be a schedule
    static: tuple[str, ...] = ()  # arguments that decide shapes, which optax has to be told
    smooth: bool = True  # whether it has a derivative where rows of a gradient are 0

    def params(self, seed: int = 0, dtype: Any = jnp.float32) -> dict[str, Any]:
        """A tree with a vector, unless there may be none."""
        rng = np.random.default_rng(seed)
        shapes = {"w": (4, 3), "v": (2, 4) if self.matrices_only else (5,)}
        return {name: jnp.asarray(rng.normal(size=shape), dtype) for name, shape in shapes.items()}


def chained() -> funcopt.GradientTransformationExtraArgs:
    return funcopt.chain(funcopt.clip_by_global_norm(1.0), funcopt.adamw(0.1), funcopt.params_ema(0.9))


READS_PARAMS = {
    "adafactor",
    "adafactor_hf",
    "adamp",
    "adamw",
    "asgd",
    "dadapt_adam",
    "dion",
    "ftrl",
    "lamb",
    "mars_adamw",
    "muon",
    "prodigy",
    "schedule_free_adamw",
    "schedule_free_radam",
    "schedule_free_sgd",
    "scion",
    "sgdp",
    "soap",
    "sophia_g",
    "stable_adamw",
    "tiger",
}
STATIC = {
    "apollo": ("rank", "update_proj_gap", "seed"),
    "dion": ("rank",),
    "galore": ("rank", "update_proj_gap"),
    "kron": ("max_size_triangular", "min_ndim_triangular", "seed"),
    "shampoo": ("max_preconditioner_dim", "precondition_frequency", "start_preconditioning_step"),
    "soap": ("max_precond_dim", "precondition_frequency", "shampoo_beta"),
}
# Decompositions have no derivative at a matrix of low rank, nor have quotients by norms of what is 0.
NOT_SMOOTH = {"dion", "galore", "kron", "shampoo", "soap"}
OPTIONS = {"shampoo": {"epsilon": 0.1}}  # by default roots of what is 1e-12, where the last digits of 1 decide

ALGORITHMS = [
    Case(
        name,
        functools.partial(found.factory, **OPTIONS[name]) if name in OPTIONS else found.factory,
        found.matrices_only,
        found.complex_numbers,
        found.elementwise,
        reads_params=name in READS_PARAMS,
        scheduled=tuple(argument for argument, kind in found.kinds.items() if kind.scheduled),
        static=STATIC.get(name, ()),
        smooth=name not in NOT_SMOOTH,
    )
    for name, found in funcopt.algorithms().items()
    if name != "lbfgs"  # it evaluates the loss itself: tests/transforms/test_lbfgs.py
]
PARTS = [
    Case(
        "sgd, momentum", lambda **given: funcopt.sgd(**{"lr": 0.1, "momentum": 0.9, **given}), scheduled=("momentum",)
    ),
    Case("rmsprop, all", functools.partial(funcopt.rmsprop, momentum=0.9, centered=True)),
    Case("adam, amsgrad", functools.partial(funcopt.adam, amsgrad=True)),
    Case("clip_by_global_norm", functools.partial(funcopt.clip_by_global_norm, max_norm=0.5)),
    Case("clip_by_value", functools.partial(funcopt.clip_by_value, clip_value=0.5)),
    Case(
        "add_decayed_weights",
        functools.partial(funcopt.add_decayed_weights, weight_decay=0.1),
        reads_params=True,
    ),
    Case("scale", functools.partial(funcopt.scale, factor=0.5)),
    Case("scale_by_multipliers", functools.partial(funcopt.scale_by_multipliers, multipliers=0.5)),
    Case("kahan_sum", funcopt.kahan_sum, reads_params=True),
    Case("stochastic_rounding", funcopt.stochastic_rounding, reads_params=True),
    Case("params_ema", funcopt.params_ema, reads_params=True),
    Case(
        "chain",
        lambda **given: funcopt.chain(funcopt.clip_by_global_norm(1.0), funcopt.adamw(0.1), funcopt.params_ema(0.9)),
        reads_params=True,
    ),
]
EACH_ALGORITHM = pytest.mark.parametrize("case", ALGORITHMS, ids=lambda case: case.name)
EACH = pytest.mark.parametrize("case", [*ALGORITHMS, *PARTS], ids=lambda case: case.name)
# What lifting a rule does, whatever the rule computes.
OF_KINDS = [case for case in ALGORITHMS if case.name in TRIED]
EACH_KIND = pytest.mark.parametrize("case", OF_KINDS, ids=lambda case: case.name)
EACH_KIND_AND_PART = pytest.mark.parametrize("case", [*OF_KINDS, *PARTS], ids=lambda case: case.name)


def with_holes(tree: dict[str, Any]) -> dict[str, Any]:
    """The same with places where there is no parameter, as `equinox.filter` leaves them."""
    return {**tree, "activation": None, "more": [None, None]}


def structures(tree: Any) -> Any:
    return jax.tree.structure(tree), [(x.shape, x.dtype) for x in jax.tree.leaves(tree)]
