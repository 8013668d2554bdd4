"""The optimizers that torch has not, against the packages that they come from: runs, and each other's checkpoints."""

import copy
import functools
import importlib
import math
from collections.abc import Callable, Iterator, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

import pytest
import torch

import funcopt
from funcopt import TorchBridge
from funcopt.torch_bridge import optim

pytestmark = pytest.mark.clients

# Relative to the way that the parameters have gone.
ROUNDING = 1e-12
# The reference keeps a number in float32, such as LaProp's sum of weights in timm.
FLOAT32 = 2e-7


def by_name(make: Callable[..., Any]) -> Callable[..., Any]:
    """adam-mini takes named parameters, and reads blocks and decay off the names: rows here, wholes in the second."""

    def build(groups: list[dict[str, Any]], **options: Any) -> Any:
        first, second = (group["params"] for group in groups)
        named = [(f"mlp.{i}", p) for i, p in enumerate(first)] + [(f"norm.{i}", p) for i, p in enumerate(second)]
        return make(named, weight_decay=groups[0]["weight_decay"], verbose=False, **options)

    return build


class Row(NamedTuple):
    """An algorithm and a class that it agrees with."""

    name: str  # funcopt's
    reference: str  # module and class
    options: Mapping[str, Any]  # for both
    ours: Mapping[str, Any] = MappingProxyType({})  # further ones of funcopt's
    theirs: Mapping[str, Any] = MappingProxyType({})
    within: float = ROUNDING
    second: Mapping[str, Any] = MappingProxyType({"weight_decay": 0.0})  # what the second group has
    build: Callable[[Any], Any] = lambda cls: cls
    shapes: tuple[tuple[int, ...], ...] = ((6, 4), (5,), (4, 7), (3,), (4, 3, 2, 2))
    loads: bool = True  # whether the two have the same state, by the same names
    lends: bool = True  # whether that is all that the reference needs

    @property
    def label(self) -> str:
        odd = ",".join(f"{name}={value}" for name, value in {**self.options, **self.ours}.items() if name != "lr")
        return f"{self.name}-{self.reference}-{odd}"


ONE_LR = {"weight_decay": 0.0, "lr": 1.0}
ROWS = [
    Row("adabelief", "adabelief_pytorch.AdaBelief", {"lr": 0.01, "rectify": False}),
    Row("adabelief", "adabelief_pytorch.AdaBelief", {"lr": 0.01}),
    Row("adabelief", "timm.optim.AdaBelief", {"lr": 0.01, "rectify": False}),
    Row("adabelief", "pytorch_optimizer.AdaBelief", {"lr": 0.01, "rectify": False}, loads=False),  # step in its groups
    Row(
        "adafactor_bv",
        "timm.optim.AdafactorBigVision",
        {"lr": 0.01},
        {"momentum_dtype": None},
        {"momentum_dtype": torch.float64},
        loads=False,  # which is a dtype of torch's in its groups
    ),
    Row(
        "adafactor_bv",
        "timm.optim.AdafactorBigVision",
        {"lr": 0.01, "momentum": None, "min_dim_size_to_factor": 3},
        loads=False,
    ),
    Row("adafactor_hf", "transformers.Adafactor", {"lr": 0.01, "scale_parameter": False, "relative_step": False}),
    Row("adafactor_hf", "transformers.Adafactor", {"lr": 0.01, "relative_step": False, "beta1": 0.9}),
    Row(
        "adafactor_hf",
        "pytorch_optimizer.AdaFactor",
        {"lr": 0.01, "relative_step": False},
        theirs={"betas": (None, 0.999)},
        loads=False,
    ),
    Row(
        "adam_mini",
        "adam_mini.Adam_mini",
        {"lr": 0.01},
        second={"weight_decay": 0.0, "block_rows": 0},
        build=by_name,
        shapes=((6, 4), (5,), (4, 7), (3,)),
        loads=False,  # a group for each parameter
    ),
    Row("adamp", "adamp.AdamP", {"lr": 0.01}),
    Row("adamp", "timm.optim.AdamP", {"lr": 0.01, "nesterov": True, "wd_ratio": 0.01}),
    Row("adan", "optimi.Adan", {"lr": 0.01, "eps": 1e-8}, loads=False),
    Row("adan", "pytorch_optimizer.Adan", {"lr": 0.01}, loads=False),
    Row("adan", "timm.optim.Adan", {"lr": 0.01}),
    Row("adan", "timm.optim.Adan", {"lr": 0.01, "no_prox": True}),
    Row(
        "ademamix",
        "pytorch_optimizer.AdEMAMix",
        {"lr": 0.01, "alpha": 5.0},
        theirs={"weight_decouple": True},
        loads=False,
    ),
    Row("adopt", "timm.optim.Adopt", {"lr": 0.01, "clip_exp": 0.333}),
    Row("adopt", "timm.optim.Adopt", {"lr": 0.01, "clip_exp": 0.25}, {"decouple": True}, {"decoupled": True}),
    Row("came", "came_pytorch.CAME", {"lr": 0.01}),
    Row("came", "pytorch_optimizer.CAME", {"lr": 0.01}, loads=False),  # step in its groups
    Row("dadapt_adam", "dadaptation.DAdaptAdam", {"d0": 1e-3}, second=ONE_LR),
    Row(
        "dadapt_adam",
        "dadaptation.DAdaptAdam",
        {"d0": 1e-3, "decouple": True, "use_bias_correction": True, "growth_rate": 1.5},
        second=ONE_LR,
    ),
    Row("ftrl", "pytorch_optimizer.FTRL", {"lr": 0.1, "beta": 1.0}, second={}),
    Row("grams", "pytorch_optimizer.Grams", {"lr": 0.01, "eps": 0.0}, loads=False),  # it adds eps after the correction
    # Without updates of the factors, for which each draws its own random numbers.
    Row(
        "kron",
        "timm.optim.kron.Kron",
        {"lr": 0.01, "preconditioner_update_probability": 1e-9},
        within=FLOAT32,
        loads=False,  # by other names
    ),
    Row("lamb", "timm.optim.Lamb", {"lr": 0.01}),
    Row("lamb", "timm.optim.Lamb", {"lr": 0.01, "bias_correction": False, "trust_clip": True, "always_adapt": True}),
    Row("lamb", "timm.optim.Lamb", {"lr": 0.01, "decoupled_decay": True, "grad_averaging": False}),
    Row("laprop", "timm.optim.LaProp", {"lr": 0.01}, within=FLOAT32),
    Row("lars", "timm.optim.Lars", {"lr": 1.0, "momentum": 0.9}),
    Row("lars", "timm.optim.Lars", {"lr": 1.0, "momentum": 0.9, "nesterov": True, "trust_clip": True}),
    Row("lion", "lion_pytorch.Lion", {"lr": 0.01}),
    Row("lion", "optimi.Lion", {"lr": 0.01}, lends=False),  # it starts anew without its kahan_comp
    Row("lion", "timm.optim.Lion", {"lr": 0.01, "betas": (0.8, 0.95)}),
    # It adds 1e-15 to the second moment, and eps before the correction.
    Row(
        "mars_adamw",
        "pytorch_optimizer.MARS",
        {"lr": 0.01, "eps": 0.0},
        theirs={"lr_1d": 0.01},
        shapes=((6, 4), (5,), (4, 7), (3,)),
        within=FLOAT32,
        loads=False,  # step in its groups
    ),
    Row("novograd", "timm.optim.NvNovoGrad", {"lr": 0.01}, within=FLOAT32),
    Row("prodigy", "prodigyopt.Prodigy", {"d0": 1e-3}, second=ONE_LR),
    Row("prodigy", "prodigyopt.Prodigy", {"d0": 1e-3, "decouple": False, "growth_rate": 1.3}, second=ONE_LR),
    Row(
        "prodigy",
        "prodigyopt.Prodigy",
        {"d0": 1e-3, "d_coef": 0.7, "use_bias_correction": True, "safeguard_warmup": True},
        second=ONE_LR,
    ),
    Row("schedule_free_adamw", "schedulefree.AdamWScheduleFree", {"lr": 0.01}),
    Row("schedule_free_adamw", "schedulefree.AdamWScheduleFree", {"lr": 0.01, "warmup_steps": 4, "r": 0.5}),
    # rho - 4 is the difference of numbers of 2000, whose rounding is 1e-12 of it.
    Row("schedule_free_radam", "schedulefree.RAdamScheduleFree", {"lr": 0.01}, within=1e-11),
    Row("schedule_free_radam", "schedulefree.RAdamScheduleFree", {"lr": 0.01, "silent_sgd_phase": False}, within=1e-11),
    Row("schedule_free_sgd", "schedulefree.SGDScheduleFree", {"lr": 0.1, "momentum": 0.8}),
    Row("sgdp", "timm.optim.SGDP", {"lr": 0.01, "momentum": 0.9}),
    Row("sgdp", "timm.optim.SGDP", {"lr": 0.01, "momentum": 0.9, "nesterov": True, "dampening": 0.1}),
    Row("signum", "pytorch_optimizer.SignSGD", {"lr": 0.01}),
    # Square matrices: others have no unique basis at first.
    Row(
        "soap",
        "pytorch_optimizer.SOAP",
        {"lr": 0.01, "precondition_frequency": 3},
        within=FLOAT32,
        shapes=((5, 5), (5,), (4, 4), (3,)),
        loads=False,  # step in its groups
    ),
    Row("stable_adamw", "optimi.StableAdamW", {"lr": 0.01}, lends=False),
    Row(
        "stable_adamw",
        "pytorch_optimizer.StableAdamW",
        {"lr": 0.01, "eps": 1e-6},
        theirs={"kahan_sum": False},
        lends=False,  # it counts in an int
    ),
    Row("tiger", "pytorch_optimizer.Tiger", {"lr": 0.01}),
    Row("yogi", "pytorch_optimizer.Yogi", {"lr": 0.01}),
]
# In packages that need CUDA, or in their authors' repositories only: tests/oracles has their rules.
ELSEWHERE = {"apollo", "dion", "galore", "muon_with_adamw", "normuon", "scion", "shampoo", "sophia_g"}
LABELS = [row.label for row in ROWS]
LOADING = [row for row in ROWS if row.loads]


@pytest.fixture(autouse=True)
def eager() -> Iterator[None]:
    """Without it Kron of timm has its parts compiled."""
    with torch.compiler.set_stance("force_eager"):
        yield


def base_lr(row: Row) -> float:
    return row.options.get("lr", 1.0)


def groups(row: Row, values: list[torch.Tensor], second: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Parameters of their own in two groups, with and without decay."""
    params = [torch.nn.Parameter(value.clone()) for value in values]
    first = {} if row.name == "ftrl" else {"weight_decay": 0.1}
    split = (len(params) + 1) // 2
    return [{"params": params[:split], **first}, {"params": params[split:], "lr": 0.5 * base_lr(row), **second}]


def make_ours(row: Row, values: list[torch.Tensor]) -> Any:
    factory: Any = getattr(funcopt, row.name)
    name = factory.keys.torch_class
    make = functools.partial(TorchBridge, transform=factory) if name is None else getattr(optim, name)
    return make(groups(row, values, row.second), **row.options, **row.ours)


def make_theirs(row: Row, values: list[torch.Tensor]) -> Any:
    module, _, name = row.reference.rpartition(".")
    pytest.importorskip(module.partition(".")[0])
    make = row.build(getattr(importlib.import_module(module), name))
    second = {name: value for name, value in row.second.items() if name in ("lr", "weight_decay")}
    optimizer = make(groups(row, values, second), **row.options, **row.theirs)
    if hasattr(optimizer, "train"):
        optimizer.train()
    return optimizer


def start(row: Row) -> list[torch.Tensor]:
    """Matrices and vectors by turns in the table, first and second half here."""
    generator = torch.Generator().manual_seed(0)
    shapes = [*row.shapes[::2], *row.shapes[1::2]]
    return [torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes]


def params_of(optimizer: Any) -> list[torch.Tensor]:
    return [p for group in optimizer.param_groups for p in group["params"]]


def run(row: Row, optimizer: Any, steps: range) -> None:
    """A closed loop: what is wrong with the parameters is in the gradients, too; and another rate at every step."""
    params = params_of(optimizer)
    first = {id(p) for p in params[: (len(params) + 1) // 2]}
    for step in steps:
        generator = torch.Generator().manual_seed(100 + step)
        for i, p in enumerate(params):
            noise = torch.randn(p.shape, generator=generator, dtype=p.dtype)
            p.grad = 0.3 * p.detach() + 0.1 * (i + 1) + noise
        for group in optimizer.param_groups:
            factor = 1.0 if "lr" in row.second or id(group["params"][0]) in first else 0.5
            group["lr"] = factor * base_lr(row) * (0.7 + 0.3 * math.cos(step / 5))
        optimizer.step()


def difference(ours: Any, theirs: Any, before: list[torch.Tensor]) -> float:
    with torch.no_grad():
        rows = zip(params_of(ours), params_of(theirs), before, strict=True)
        return max(((a - b).abs().max() / (b - c).abs().max()).item() for a, b, c in rows)


@pytest.mark.parametrize("row", ROWS, ids=LABELS)
def test_the_same_run(row: Row) -> None:
    values = start(row)
    theirs, ours = make_theirs(row, values), make_ours(row, values)
    run(row, theirs, range(20))
    run(row, ours, range(20))
    assert difference(ours, theirs, values) <= row.within


def load(target: Any, source: Any) -> None:
    """A checkpoint goes over, and what the groups of its source have not stays as it is in new ones."""
    saved = copy.deepcopy(source.state_dict())
    known = target.state_dict()["param_groups"]
    merged = [{**own, **group} for own, group in zip(known, saved["param_groups"], strict=True)]
    target.load_state_dict({**saved, "param_groups": merged})


@pytest.mark.parametrize("row", LOADING, ids=[row.label for row in LOADING])
def test_each_goes_on_from_the_others_checkpoint(row: Row) -> None:
    values = start(row)
    theirs, ours = make_theirs(row, values), make_ours(row, values)
    run(row, theirs, range(10))
    run(row, ours, range(10))
    mine = make_ours(row, [p.detach() for p in params_of(theirs)])
    load(mine, theirs)
    others = make_theirs(row, [p.detach() for p in params_of(ours)])
    if row.lends:
        load(others, ours)
    for optimizer in (theirs, ours, mine, others):
        run(row, optimizer, range(10, 20))
    assert difference(mine, theirs, values) <= row.within
    if row.lends:
        assert difference(ours, others, values) <= row.within


def test_every_algorithm_with_a_reference_is_here() -> None:
    keys = {name: getattr(found.factory, "keys", None) for name, found in funcopt.algorithms().items()}
    referred = {name for name, own in keys.items() if own is not None and own.torch_class is not None}
    assert referred - {row.name for row in ROWS} == ELSEWHERE
