"""funcopt.torch_bridge.optim in the place of torch.optim: torch's own option sets, error inputs and signatures."""

import ast
import copy
import inspect
import math
import warnings
from typing import Any

import pytest
import torch
from torch.testing._internal.common_optimizers import OptimizerErrorEnum, optim_db
from twins import TORCH_THOROUGHLY

from funcopt import TorchBridge
from funcopt._catalogue import factories
from funcopt.torch_bridge import optim

ALL = {info.optim_cls.__name__: info for info in optim_db}
# LBFGS needs closures: tests/transforms/test_lbfgs.py
INFOS = {name: info for name, info in ALL.items() if issubclass(getattr(optim, name), TorchBridge)}
INPUTS = [
    pytest.param(name, given.kwargs, id=f"{name}-{given.desc}")
    for name, info in INFOS.items()
    for given in info.optim_inputs_func("cpu")
]
# Muon orthogonalises in bfloat16, whose rounding depends on the order of a matrix product's sums.
RESOLUTION = {"Muon": 2e-3}
# With a tensor as lr torch computes step sizes in that tensor's float32.
TENSOR_LR = 1e-6
# Nothing but rounding: measured 3e-15.
ROUNDING = 1e-12
# torch's own load_state_dict casts NAdam's float32 mu_product to the parameters' float64, and goes on in that.
AFTER_LOADING = {"NAdam": 1e-9}

# torch's Adagrad makes its sparse tensors without saying whether to check them.
pytestmark = pytest.mark.filterwarnings("ignore:Sparse invariant checks")


def parameters(dtype: torch.dtype = torch.float64) -> list[torch.nn.Parameter]:
    generator = torch.Generator().manual_seed(0)
    return [torch.nn.Parameter(torch.randn(shape, generator=generator, dtype=dtype)) for shape in ((8, 5), (5, 5))]


def set_gradients(params: list[torch.nn.Parameter], step: int, sparse: bool) -> None:
    generator = torch.Generator().manual_seed(100 + step)
    for p in params:
        grad = torch.randn(p.shape, generator=generator, dtype=p.dtype)
        rows = torch.randint(0, len(p), (3,), generator=generator)
        p.grad = torch.sparse_coo_tensor(rows[None], grad[:3], p.shape, check_invariants=True) if sparse else grad


def run(optimizer: torch.optim.Optimizer, params: list[torch.nn.Parameter], steps: range, sparse: bool) -> None:
    for step in steps:
        set_gradients(params, step, sparse)
        optimizer.step()


def error(ours: list[torch.nn.Parameter], theirs: list[torch.nn.Parameter]) -> float:
    with torch.no_grad():
        return max(((a - b).abs().max() / b.abs().max()).item() for a, b in zip(ours, theirs, strict=True))


def tolerance(name: str, kwargs: dict[str, Any]) -> float:
    return max(RESOLUTION.get(name, ROUNDING), TENSOR_LR if isinstance(kwargs.get("lr"), torch.Tensor) else 0.0)


@pytest.mark.one_engine
@TORCH_THOROUGHLY
@pytest.mark.parametrize(("name", "kwargs"), INPUTS)
def test_torchs_own_option_sets(name: str, kwargs: dict[str, Any]) -> None:
    """The same trajectory, mid-training checkpoints both ways, and torch's state and group keys."""
    sparse = INFOS[name].only_supports_sparse_grads
    ours, theirs = parameters(), parameters()
    mine = getattr(optim, name)(ours, **kwargs)
    reference = getattr(torch.optim, name)(theirs, **kwargs)
    run(mine, ours, range(5), sparse)
    run(reference, theirs, range(5), sparse)
    assert error(ours, theirs) <= tolerance(name, kwargs)
    assert {p: set(entry) for p, entry in mine.state.items()} == {
        a: set(reference.state[b]) for a, b in zip(ours, theirs, strict=True) if reference.state[b]
    }
    assert set(mine.param_groups[0]) == set(reference.param_groups[0])

    # Each goes on from the other's checkpoint.
    for saved, params in ((mine.state_dict(), theirs), (reference.state_dict(), ours)):
        for p, q in zip(params, ours if params is theirs else theirs, strict=True):
            p.data.copy_(q)
        other = reference if params is theirs else mine
        other.load_state_dict(copy.deepcopy(saved))
    run(mine, ours, range(5, 10), sparse)
    run(reference, theirs, range(5, 10), sparse)
    assert error(ours, theirs) <= max(tolerance(name, kwargs), AFTER_LOADING.get(name, 0.0))


SUPPORTING_SPARSE = [name for name, info in INFOS.items() if info.supports_sparse]


@pytest.mark.parametrize("name", SUPPORTING_SPARSE)
def test_sparse_gradients(name: str) -> None:
    ours, theirs = parameters(), parameters()
    run(getattr(optim, name)(ours, lr=0.1), ours, range(10), True)
    run(getattr(torch.optim, name)(theirs, lr=0.1), theirs, range(10), True)
    assert error(ours, theirs) <= ROUNDING


@pytest.mark.parametrize("momentum", [{"momentum": 0.9}, {"momentum": 0.9, "nesterov": True}])
def test_sparse_momentum(momentum: dict[str, Any]) -> None:
    ours, theirs = parameters(), parameters()
    run(optim.SGD(ours, lr=0.1, **momentum), ours, range(10), True)
    run(torch.optim.SGD(theirs, lr=0.1, **momentum), theirs, range(10), True)
    assert error(ours, theirs) <= ROUNDING


def test_number_of_rows_does_not_recompile() -> None:
    embedding = torch.nn.Embedding(1000, 4, sparse=True)
    optimizer = optim.SparseAdam(embedding.parameters())
    for rows in range(1, 130):
        optimizer.zero_grad()
        embedding(torch.arange(rows)).sum().backward()
        optimizer.step()
    # one program for each power of two up to 256
    assert optimizer.compilations <= 9


def test_rows_without_gradient_stay() -> None:
    embedding = torch.nn.Embedding(10, 2, sparse=True)
    before = embedding.weight.detach().clone()
    optimizer = optim.SparseAdam(embedding.parameters(), lr=0.1)
    embedding(torch.tensor([3, 3, 7])).sum().backward()
    optimizer.step()
    moved = (embedding.weight != before).any(1)
    assert moved.nonzero().flatten().tolist() == [3, 7]
    assert optimizer.state[embedding.weight]["exp_avg"].any(1).nonzero().flatten().tolist() == [3, 7]


REFUSING_SPARSE = [name for name, info in INFOS.items() if not info.supports_sparse and name != "SparseAdam"]


@pytest.mark.parametrize("name", REFUSING_SPARSE)
def test_sparse_gradients_are_refused_where_torch_does(name: str) -> None:
    for module in (torch.optim, optim):
        params = parameters()
        optimizer = getattr(module, name)(params)
        set_gradients(params, 0, True)
        with pytest.raises(RuntimeError, match="parse"):
            optimizer.step()


@pytest.mark.parametrize("name", ["SGD", "Adagrad"])
def test_decay_with_sparse_gradients_is_refused(name: str) -> None:
    params = parameters()
    optimizer = getattr(optim, name)(params, weight_decay=0.1)
    set_gradients(params, 0, True)
    with pytest.raises(RuntimeError, match="weight_decay of parameter group 0 must be 0 with sparse gradients"):
        optimizer.step()


def test_sparse_adam_refuses_dense_gradients() -> None:
    params = parameters()
    optimizer = optim.SparseAdam(params)
    set_gradients(params, 0, False)
    with pytest.raises(RuntimeError, match="SparseAdam does not support dense gradients"):
        optimizer.step()


COMPLEX = [name for name, info in INFOS.items() if info.supports_complex]


@pytest.mark.parametrize("name", COMPLEX)
@pytest.mark.parametrize(("dtype", "allowed"), [(torch.complex128, 1e-12), (torch.complex64, 16 * 2.0**-23)])
def test_complex_parameters(name: str, dtype: torch.dtype, allowed: float) -> None:
    ours, theirs = parameters(dtype), parameters(dtype)
    run(getattr(optim, name)(ours, lr=0.05), ours, range(10), False)
    run(getattr(torch.optim, name)(theirs, lr=0.05), theirs, range(10), False)
    assert error(ours, theirs) <= allowed


ERRORS = [
    pytest.param(name, given, id=f"{name}-{i}")
    for name, info in ALL.items()
    for i, given in enumerate(info.optim_error_inputs_func("cpu", torch.float64))
]


@pytest.mark.parametrize(("name", "given"), ERRORS)
def test_torchs_own_error_inputs(name: str, given: Any) -> None:
    params, kwargs = given.optimizer_error_input.params, given.optimizer_error_input.kwargs
    params = parameters() if params is None else params
    at_construction = given.error_on == OptimizerErrorEnum.CONSTRUCTION_ERROR
    optimizer = None if at_construction else getattr(optim, name)(params, **kwargs)
    # A UserWarning is an error in these tests, too.
    with pytest.raises(given.error_type, match=given.error_regex):
        getattr(optim, name)(params, **kwargs) if optimizer is None else optimizer.step()


@pytest.mark.parametrize("name", [*ALL])
def test_constructors_are_torchs(name: str) -> None:
    """And take the engine, by keyword."""
    mine, theirs = getattr(optim, name), getattr(torch.optim, name)
    parameters = inspect.signature(mine).parameters
    further = [] if name == "LBFGS" else ["engine", "compiled"]
    assert [p for n, p in parameters.items() if n not in further] == [*inspect.signature(theirs).parameters.values()]
    assert [n for n in parameters if n not in inspect.signature(theirs).parameters] == further
    assert all(parameters[n].kind is inspect.Parameter.KEYWORD_ONLY for n in further)
    assert issubclass(mine, theirs)


def test_every_torch_optimizer_is_here() -> None:
    assert set(ALL) == {name for name in dir(optim) if hasattr(torch.optim, name) and not name.startswith("_")}


@pytest.mark.parametrize("option", [{"foreach": True}, {"fused": True}, {"foreach": False}])
def test_options_that_choose_torchs_implementation_change_nothing(option: dict[str, Any]) -> None:
    plain, chosen = parameters(), parameters()
    run(optim.AdamW(plain), plain, range(3), False)
    run(optim.AdamW(chosen, **option), chosen, range(3), False)
    assert error(chosen, plain) == 0.0


def test_nan_learning_rate_is_torchs_business() -> None:
    with pytest.raises(ValueError, match="Invalid learning rate"):
        optim.Adam(parameters(), lr=math.nan)


def test_no_warnings() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        params = parameters()
        run(optim.Adam(params), params, range(2), False)


def test_type_checkers_see_the_classes_that_there_are() -> None:
    """The classes are made in a loop; what type checkers are told is a list beside it."""
    source = ast.parse(inspect.getsource(optim))
    told = {
        node.name: ast.unparse(node.body[0].decorator_list[0])
        for block in source.body
        if isinstance(block, ast.If)
        for node in block.body
        if isinstance(node, ast.ClassDef) and not node.name.startswith("_")
    }
    here = {name: value for name, value in vars(optim).items() if getattr(value, "__module__", "") == optim.__name__}
    made = {name for name, value in here.items() if isinstance(value, type) and not name.startswith("_")}
    assert told == {
        name: f"_of(own.{OWN[name].__name__})" if name in OWN else f"_as(torch.optim.{name})" for name in made
    }
    assert len(told) == 14 + len(OWN)


OWN: dict[str, Any] = {
    factory.keys.torch_class: factory
    for name, factory in factories().items()
    if name != "lbfgs" and factory.keys.torch_class is not None
}
"""What torch.optim has not, by the name of its class."""


@pytest.mark.parametrize("name", OWN)
def test_a_class_takes_the_arguments_of_the_function(name: str) -> None:
    """By position and by name, and the bridge's by name; the docstring says all of them."""
    given, cls = inspect.signature(OWN[name]).parameters, getattr(optim, name)
    shown = inspect.signature(cls).parameters
    assert [*shown] == ["params", *given, *OF_THE_BRIDGE]
    assert [p for n, p in shown.items() if n in given] == [*given.values()]
    assert all(shown[n].kind is inspect.Parameter.KEYWORD_ONLY for n in OF_THE_BRIDGE)
    assert f"Run by `funcopt.{OWN[name].__name__}`." in cls.__doc__
    assert all(f"    {argument}: " in cls.__doc__ for argument in ("params", *given))
    optimizer = cls([torch.nn.Parameter(torch.zeros(4, 4))], engine="torch", foreach=True)
    assert isinstance(optimizer, TorchBridge)
    assert type(copy.deepcopy(optimizer)) is type(optimizer)
    assert optimizer.engine.name == "torch"


OF_THE_BRIDGE = ("engine", "compiled", "differentiable", "capturable", "foreach", "fused")


def test_arguments_by_position() -> None:
    group = optim.Lion(parameters(), 0.1, (0.5, 0.25), 0.125).param_groups[0]
    assert (group["lr"], group["betas"], group["weight_decay"]) == (0.1, (0.5, 0.25), 0.125)


@pytest.mark.parametrize(
    ("args", "kwargs", "message"),
    [
        ((0.1, (0.9, 0.99), 0.0, True), {}, "Lion: too many positional arguments; it takes lr, betas, weight_decay, m"),
        ((0.1,), {"lr": 0.1}, "Lion: multiple values for argument 'lr'; it takes lr, "),
        ((), {"beta": 0.9}, "lion has no argument beta; did you mean betas"),
    ],
)
def test_wrong_arguments(args: Any, kwargs: Any, message: str) -> None:
    with pytest.raises(TypeError, match=message):
        optim.Lion(parameters(), *args, **kwargs)


def test_values_are_checked_in_all_groups() -> None:
    with pytest.raises(ValueError, match="lion: lr must be >= 0, got -1"):
        optim.Lion(parameters(), -1.0)
    with pytest.raises(ValueError, match="parameter group 1: lion: lr must be >= 0, got -1"):
        optim.Lion([{"params": parameters()}, {"params": parameters(), "lr": -1.0}])
