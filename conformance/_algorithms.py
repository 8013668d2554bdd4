"""What is compared: each class of torch.optim, the option sets it is tried with, and how far funcopt may be from it."""

import itertools
from collections.abc import Callable
from typing import Any, NamedTuple

import torch

import funcopt
from funcopt.torch_bridge import optim

# Both sides round a handful of operations in each of 30 steps. Measured worst 4e-14, and 3e-13 with other gradients:
# RAdam with beta2 0.9999, where torch's own rho_t, a difference of two large numbers, has lost digits.
FLOAT64 = 1e-12
# The same in units of 2**-23, and where XLA contracts a product into an FMA that torch does not. Measured worst 8,
# and 9 with other gradients.
FLOAT32 = 16 * 2.0**-23
# torch's Muon iterates in bfloat16, and the order of a sum of products decides its last bit: 2**-8 is the natural
# limit. Measured 2e-3 with matrices of 24 x 40.
BFLOAT16 = 2.0**-8

SHAPES = ((), (4, 3))
MATRICES = ((4, 3), (24, 40))
TABLES = ((8, 3),)


class Algorithm(NamedTuple):
    """A recipe, its torch class, and its class on the bridge."""

    recipe: Callable[..., funcopt.GradientTransformationExtraArgs]
    torch_class: type[torch.optim.Optimizer]
    bridge_class: type[funcopt.TorchBridge]
    options: tuple[dict[str, Any], ...]  # option sets; the first is the defaults, the last has most options at once
    float64: float = FLOAT64  # how far float64 may be from torch, relative to the tensor's largest entry
    float32: float = FLOAT32  # the same for float32
    shapes: tuple[tuple[int, ...], ...] = SHAPES  # of the parameters in each group
    rows: bool = False  # whether gradients are of some rows
    constructor_only: tuple[str, ...] = ()  # options that torch does not read from a group of its own
    note: str = ""  # what distinguishes a second row of the same class

    @property
    def name(self) -> str:
        return self.torch_class.__name__ + self.note

    def together(self) -> tuple[dict[str, Any], ...]:
        """The option sets as groups of one optimizer."""
        shared = {name: self.options[-1][name] for name in self.constructor_only}
        return tuple({**options, **shared} for options in self.options)

    def quick(self) -> "Algorithm":
        """The same with two option sets, the defaults and most options at once, and one parameter per group."""
        return self._replace(options=(self.options[0], self.options[-1]), shapes=self.shapes[-1:])


def product(**choices: tuple[Any, ...]) -> tuple[dict[str, Any], ...]:
    """All combinations of the given values."""
    return tuple(dict(zip(choices, values, strict=True)) for values in itertools.product(*choices.values()))


_MOMENTS = ({}, {"betas": (0.5, 0.9), "eps": 0.1}, {"betas": (0.0, 0.0)})
_DECAYED = {"weight_decay": 0.1, "decoupled_weight_decay": True}

SGD = Algorithm(
    funcopt.sgd,
    torch.optim.SGD,
    optim.SGD,
    tuple(
        {**momentum, **rest}
        for momentum in (
            {},
            {"momentum": 0.9},
            {"momentum": 0.9, "nesterov": True},
            {"momentum": 0.9, "dampening": 0.3},
        )
        for rest in product(weight_decay=(0.0, 0.1), maximize=(False, True))
    ),
)
ADAM = Algorithm(
    funcopt.adam,
    torch.optim.Adam,
    optim.Adam,
    (
        *product(
            amsgrad=(False, True), weight_decay=(0.0, 0.1), maximize=(False, True), decoupled_weight_decay=(False, True)
        ),
        {"betas": (0.0, 0.0)},
        {"betas": (0.5, 0.9), "eps": 0.1, "weight_decay": 0.1, "amsgrad": True, "maximize": True},
    ),
)
ADAMW = Algorithm(
    funcopt.adamw,
    torch.optim.AdamW,
    optim.AdamW,
    (
        *product(amsgrad=(False, True), weight_decay=(0.01, 0.3), maximize=(False, True)),
        {"betas": (0.5, 0.9), "eps": 0.1, "weight_decay": 0.1, "amsgrad": True, "maximize": True},
    ),
)
ADADELTA = Algorithm(
    funcopt.adadelta,
    torch.optim.Adadelta,
    optim.Adadelta,
    (
        {},
        {"rho": 1.0},
        {"rho": 0.0},
        {"eps": 0.1},
        {"rho": 0.6, "eps": 1e-3, "weight_decay": 0.3},
        {"rho": 0.8, "weight_decay": 0.1, "maximize": True},
    ),
)
ADAGRAD = Algorithm(
    funcopt.adagrad,
    torch.optim.Adagrad,
    optim.Adagrad,
    (
        {},
        {"eps": 0.1},
        {"initial_accumulator_value": 0.5},
        {"lr_decay": 0.3, "eps": 1e-3, "weight_decay": 0.3},
        {"lr_decay": 0.1, "initial_accumulator_value": 0.1, "weight_decay": 0.1, "maximize": True},
    ),
    constructor_only=("initial_accumulator_value",),
)
ADAMAX = Algorithm(
    funcopt.adamax,
    torch.optim.Adamax,
    optim.Adamax,
    (
        *_MOMENTS,
        {"betas": (0.7, 0.9), "eps": 1e-3, "weight_decay": 0.3},
        {"betas": (0.8, 0.99), "weight_decay": 0.1, "maximize": True},
    ),
)
ASGD = Algorithm(
    funcopt.asgd,
    torch.optim.ASGD,
    optim.ASGD,
    (
        {},
        {"lambd": 0.1, "alpha": 0.0},
        {"lambd": -0.01, "t0": -1.0},
        {"lambd": 0.03, "t0": 5.0, "weight_decay": 0.3},
        {"lambd": 0.1, "alpha": 2.0, "t0": 10, "weight_decay": 0.1, "maximize": True},
    ),
)
NADAM = Algorithm(
    funcopt.nadam,
    torch.optim.NAdam,
    optim.NAdam,
    (
        *_MOMENTS,
        {"betas": (0.99, 0.9999), "momentum_decay": 0.0},
        _DECAYED,
        {"momentum_decay": 0.5, "eps": 1e-3, "weight_decay": 0.3, "maximize": True},
    ),
)
RADAM = Algorithm(
    funcopt.radam,
    torch.optim.RAdam,
    optim.RAdam,
    (
        *_MOMENTS,
        {"betas": (0.99, 0.9999)},
        _DECAYED,
        {"betas": (0.7, 0.9), "eps": 1e-3, "weight_decay": 0.3, "maximize": True},
    ),
)
RMSPROP = Algorithm(
    funcopt.rmsprop,
    torch.optim.RMSprop,
    optim.RMSprop,
    (
        {},
        {"eps": 0.1, "alpha": 0.5},
        {"alpha": 0.0},
        {"centered": True},
        {"momentum": 0.9},
        {"alpha": 0.8, "eps": 1e-3, "weight_decay": 0.3},
        {"momentum": 0.9, "centered": True, "alpha": 0.9, "weight_decay": 0.1, "maximize": True},
    ),
)
RPROP = Algorithm(
    funcopt.rprop,
    torch.optim.Rprop,
    optim.Rprop,
    (
        {},
        {"etas": (0.3, 1.9)},
        {"step_sizes": (0.04, 0.06)},
        {"step_sizes": (1, 0.1)},
        {"etas": (0.8, 1.1)},
        {"etas": (0.3, 1.9), "step_sizes": (1e-3, 0.2), "maximize": True},
    ),
)
SPARSE_ADAM = Algorithm(
    funcopt.sparse_adam,
    torch.optim.SparseAdam,
    optim.SparseAdam,
    (*_MOMENTS, {"betas": (0.8, 0.99), "eps": 1e-3, "maximize": True}),
    shapes=TABLES,
    rows=True,
)
ADAFACTOR = Algorithm(
    funcopt.adafactor,
    torch.optim.Adafactor,
    optim.Adafactor,
    (
        {},
        {"eps": (0.1, 0.5)},
        {"beta2_decay": 0.0},
        {"beta2_decay": -0.5, "d": 1.5, "weight_decay": 0.3},
        {"beta2_decay": -1.0, "d": 2.0, "eps": (1e-3, 1e-2), "weight_decay": 0.1, "maximize": True},
    ),
    shapes=((5,), (2, 3, 2)),
)
MUON = Algorithm(
    funcopt.muon,
    torch.optim.Muon,
    optim.Muon,
    (
        {},
        {"momentum": 0.8, "weight_decay": 0.3, "nesterov": False, "ns_steps": 2},
        {
            "momentum": 0.0,
            "eps": 1.0,
            "adjust_lr_fn": "original",
            "weight_decay": 0.0,
            "ns_coefficients": (2.0, -1.5, 0.5),
        },
        {"nesterov": False, "momentum": 0.5, "adjust_lr_fn": "match_rms_adamw", "ns_steps": 3},
    ),
    float32=BFLOAT16,
    float64=BFLOAT16,
    shapes=MATRICES,
)
# What surrounds the iteration must agree as closely as everything else. The matrices are small, since the norm that
# they are divided by is a sum that is rounded to bfloat16.
MUON_WITHOUT_ITERATIONS = MUON._replace(
    options=tuple({**options, "ns_steps": 0} for options in MUON.options),
    float64=FLOAT64,
    float32=FLOAT32,
    shapes=((4, 3), (3, 5)),
    note=", ns_steps=0",
)

ALGORITHMS = (
    ADADELTA,
    ADAFACTOR,
    ADAGRAD,
    ADAM,
    ADAMAX,
    ADAMW,
    ASGD,
    MUON,
    MUON_WITHOUT_ITERATIONS,
    NADAM,
    RADAM,
    RMSPROP,
    RPROP,
    SGD,
    SPARSE_ADAM,
)
