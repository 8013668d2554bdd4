"""Ten algorithms against torch.optim: two groups with different hyperparameters, a learning rate that never rests."""

import decimal
import inspect
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch
from jax import lax
from torch.optim._muon import _zeropower_via_newtonschulz

import funcopt
from funcopt.transforms._muon import newton_schulz
from funcopt.transforms._radam import sma_length

STEPS = 40
SHAPES = ((4, 3), (5,), (2, 3, 2))
MATRICES = ((4, 3), (5, 8), (3, 6))
GROUPS = ((0,), (1, 2))  # which parameters are in which group
ZERO_STEP = 6  # whose gradients are all 0
MISSING = {0: (0, 1), 1: (0, 1), 17: (0, 1)}  # parameters without a gradient, by step: from the start, and later

# Both sides round a handful of operations in each of 40 steps; measured worst 8e-14 (RAdam with beta2 0.9999,
# where torch's own rho_t has lost digits), otherwise 1e-14.
FLOAT64 = 1e-12
ULP = 2.0**-23
# torch's Muon iterates in bfloat16, and the order of a sum of products decides its last bit; measured worst 6e-5.
BFLOAT16 = 2.0**-8


class Algorithm(NamedTuple):
    """A recipe and its torch class."""

    recipe: Callable[..., funcopt.GradientTransformationExtraArgs]
    torch_class: type[torch.optim.Optimizer]
    options: tuple[dict[str, Any], ...]  # option sets for all parameters; the last one has most options at once
    second: dict[str, Any]  # what the second group has on top
    float32: float  # how far float32 may be from torch, relative to the tensor's largest entry: twice the measured
    float64: float = FLOAT64  # the same for float64
    shapes: tuple[tuple[int, ...], ...] = SHAPES
    takes_complex: bool = True
    elementwise: bool = True

    @property
    def name(self) -> str:
        return self.torch_class.__name__.lower()


MOMENTS = ({}, {"betas": (0.5, 0.9), "eps": 0.1}, {"betas": (0.0, 0.0)})
DECAYED = ({"weight_decay": 0.1, "decoupled_weight_decay": True}, {"weight_decay": 0.1, "maximize": True})
ADADELTA = Algorithm(
    funcopt.adadelta,
    torch.optim.Adadelta,
    ({}, {"rho": 1.0}, {"rho": 0.0}, {"eps": 0.1}, {"rho": 0.8, "weight_decay": 0.1, "maximize": True}),
    {"rho": 0.6, "eps": 1e-3, "weight_decay": 0.3},
    float32=4 * ULP,
)
ADAGRAD = Algorithm(
    funcopt.adagrad,
    torch.optim.Adagrad,
    (
        {},
        {"eps": 0.1},
        {"initial_accumulator_value": 0.5},
        {"lr_decay": 0.1, "initial_accumulator_value": 0.1, "weight_decay": 0.1, "maximize": True},
    ),
    {"lr_decay": 0.3, "eps": 1e-3, "weight_decay": 0.3},
    float32=4 * ULP,
)
ADAMAX = Algorithm(
    funcopt.adamax,
    torch.optim.Adamax,
    (*MOMENTS, {"betas": (0.8, 0.99), "weight_decay": 0.1, "maximize": True}),
    {"betas": (0.7, 0.9), "eps": 1e-3, "weight_decay": 0.3},
    float32=4 * ULP,
)
ASGD = Algorithm(
    funcopt.asgd,
    torch.optim.ASGD,
    (
        {},
        {"lambd": 0.1, "alpha": 0.0},
        {"lambd": -0.01, "t0": -1.0},
        {"lambd": 0.1, "alpha": 2.0, "t0": 10, "weight_decay": 0.1, "maximize": True},
    ),
    {"lambd": 0.03, "t0": 5.0, "weight_decay": 0.3},
    float32=8 * ULP,
)
NADAM = Algorithm(
    funcopt.nadam,
    torch.optim.NAdam,
    (*MOMENTS, {"betas": (0.99, 0.9999), "momentum_decay": 0.0}, *DECAYED),
    {"momentum_decay": 0.5, "eps": 1e-3, "weight_decay": 0.3},
    float32=12 * ULP,
)
RADAM = Algorithm(
    funcopt.radam,
    torch.optim.RAdam,
    (*MOMENTS, {"betas": (0.99, 0.9999)}, *DECAYED),
    {"betas": (0.7, 0.9), "eps": 1e-3, "weight_decay": 0.3},
    float32=6 * ULP,
)
RMSPROP = Algorithm(
    funcopt.rmsprop,
    torch.optim.RMSprop,
    (
        {},
        {"eps": 0.1, "alpha": 0.5},
        {"alpha": 0.0},
        {"centered": True},
        {"momentum": 0.9},
        {"momentum": 0.9, "centered": True, "alpha": 0.9, "weight_decay": 0.1, "maximize": True},
    ),
    {"alpha": 0.8, "eps": 1e-3, "weight_decay": 0.3},
    float32=4 * ULP,
)
RPROP = Algorithm(
    funcopt.rprop,
    torch.optim.Rprop,
    (
        {},
        {"etas": (0.3, 1.9)},
        {"step_sizes": (0.04, 0.06)},
        {"step_sizes": (1, 0.1)},
        {"etas": (0.3, 1.9), "step_sizes": (1e-3, 0.2), "maximize": True},
    ),
    {"etas": (0.8, 1.1)},
    float32=4 * ULP,
)
ADAFACTOR = Algorithm(
    funcopt.adafactor,
    torch.optim.Adafactor,
    (
        {},
        {"eps": (0.1, 0.5)},
        {"beta2_decay": 0.0},
        {"beta2_decay": -1.0, "d": 2.0, "eps": (1e-3, 1e-2), "weight_decay": 0.1, "maximize": True},
    ),
    {"beta2_decay": -0.5, "d": 1.5, "weight_decay": 0.3},
    float32=6 * ULP,
    takes_complex=False,
    elementwise=False,
)
ALGORITHMS = (ADADELTA, ADAGRAD, ADAMAX, ASGD, NADAM, RADAM, RMSPROP, RPROP, ADAFACTOR)
MUON = Algorithm(
    funcopt.muon,
    torch.optim.Muon,
    (
        {},
        {"nesterov": False, "momentum": 0.5, "adjust_lr_fn": "match_rms_adamw", "ns_steps": 3},
        {
            "momentum": 0.0,
            "eps": 1.0,
            "adjust_lr_fn": "original",
            "weight_decay": 0.0,
            "ns_coefficients": (2.0, -1.5, 0.5),
        },
    ),
    {"momentum": 0.8, "weight_decay": 0.3, "nesterov": False, "ns_steps": 2},
    float32=BFLOAT16,
    float64=BFLOAT16,
    shapes=MATRICES,
    takes_complex=False,
    elementwise=False,
)
EVERY = (*ALGORITHMS, MUON)


def cases(algorithms: Sequence[Algorithm]) -> list[Any]:
    return [pytest.param(a, options, id=f"{a.name}-{options}") for a in algorithms for options in a.options]


def each(algorithms: Sequence[Algorithm]) -> Any:
    return pytest.mark.parametrize("algorithm", algorithms, ids=lambda a: a.name)


class Problem(NamedTuple):
    params: list[np.ndarray]
    grads: list[list[np.ndarray | None]]  # by step and parameter
    lrs: np.ndarray  # (steps, groups)


def make_problem(
    algorithm: Algorithm, dtype: str, *, missing: bool = False, steps: int = STEPS, scale: float = 1.0
) -> Problem:
    """Parameters of size 1, gradients of size `scale`."""
    rng = np.random.default_rng(0)
    imaginary = 1j if np.dtype(dtype).kind == "c" else 0.0

    def draw(size: float) -> list[np.ndarray]:
        draws = [size * (rng.normal(size=shape) + imaginary * rng.normal(size=shape)) for shape in algorithm.shapes]
        return [array.astype(dtype) for array in draws]

    params = draw(1.0)
    grads: list[list[Any]] = [draw(scale) for _ in range(steps)]
    grads[ZERO_STEP] = [np.zeros_like(g) for g in grads[ZERO_STEP]]
    for step, absent in MISSING.items() if missing else ():
        for i in absent:
            grads[step][i] = None
    lrs = 0.05 * (1.2 + np.sin(np.arange(steps)[:, None] * np.array([1.0, 1.7])))
    return Problem(params, grads, lrs)


Make = Callable[[list[dict[str, Any]]], Any]  # builds an optimizer from parameter groups


class TorchRun:
    """Parameters with an optimizer, torch's or the bridge, and the learning rate set by hand at each step."""

    def __init__(
        self, params: list[np.ndarray], make: Make, second: dict[str, Any], dtype: torch.dtype | None = None
    ) -> None:
        self.tensors = [torch.nn.Parameter(torch.from_numpy(p.copy()).to(dtype)) for p in params]
        groups = [{"params": [self.tensors[i] for i in members]} for members in GROUPS]
        self.optimizer = make([groups[0], {**groups[1], **second}])

    def step(self, problem: Problem, steps: range) -> "TorchRun":
        for t in steps:
            for tensor, grad in zip(self.tensors, problem.grads[t], strict=True):
                tensor.grad = None if grad is None else torch.from_numpy(grad.copy()).to(tensor.dtype)
            for group, lr in zip(self.optimizer.param_groups, problem.lrs[t], strict=True):
                group["lr"] = float(lr)
            self.optimizer.step()
        return self

    @property
    def params(self) -> list[np.ndarray]:
        return [tensor.detach().numpy() for tensor in self.tensors]

    def resumed_by(self, make: Make, second: dict[str, Any]) -> "TorchRun":
        """Another optimizer on a copy of the parameters, with this one's state."""
        other = TorchRun(self.params, make, second)
        other.optimizer.load_state_dict(self.optimizer.state_dict())
        return other


def with_torch(algorithm: Algorithm, options: dict[str, Any]) -> Make:
    return lambda groups: algorithm.torch_class(groups, **{"lr": 0.1, **options})  # pyright: ignore[reportCallIssue]


def with_bridge(algorithm: Algorithm, options: dict[str, Any]) -> Make:
    return lambda groups: funcopt.TorchBridge(groups, algorithm.recipe, lr=0.1, **options)


def run_in_torch(algorithm: Algorithm, options: dict[str, Any], problem: Problem) -> list[np.ndarray]:
    run = TorchRun(problem.params, with_torch(algorithm, options), algorithm.second)
    return run.step(problem, range(len(problem.grads))).params


def run_in_bridge(algorithm: Algorithm, options: dict[str, Any], problem: Problem) -> list[np.ndarray]:
    run = TorchRun(problem.params, with_bridge(algorithm, options), algorithm.second)
    return run.step(problem, range(len(problem.grads))).params


def by_group(values: Sequence[Any]) -> list[list[Any]]:
    return [[values[i] for i in members] for members in GROUPS]


def transformation(
    algorithm: Algorithm, options: dict[str, Any], lrs: np.ndarray
) -> funcopt.GradientTransformationExtraArgs:
    """The recipe with all hyperparameters as prefixes of the groups, the learning rates as schedules."""
    defaults = {name: p.default for name, p in inspect.signature(algorithm.recipe).parameters.items()}
    first, second = {**defaults, **options}, {**defaults, **options, **algorithm.second}
    prefixes: dict[str, Any] = {name: [first[name], second[name]] for name in {**options, **algorithm.second}}
    return algorithm.recipe(
        **{**prefixes, "lr": [lambda step, column=column: jnp.asarray(column)[step] for column in lrs.T]}
    )


def run_in_jax(algorithm: Algorithm, options: dict[str, Any], problem: Problem) -> list[np.ndarray]:
    tx = transformation(algorithm, options, problem.lrs)

    @jax.jit
    def update(params: Any, state: Any, grads: Any) -> tuple[Any, Any]:
        updates, state = tx.update(grads, state, params)
        return funcopt.apply_updates(params, updates), state

    params = by_group([jnp.asarray(p) for p in problem.params])
    state = tx.init(params)
    for grads in problem.grads:
        params, state = update(params, state, by_group(grads))
    return [np.asarray(p) for p in jax.tree.leaves(params)]


def worst_error(actual: Sequence[np.ndarray], expected: Sequence[np.ndarray], problem: Problem) -> float:
    """Largest difference, relative to the largest entry that its tensor had at the start or the end."""
    return max(
        float(np.abs(a - e).max() / max(np.abs(e).max(), np.abs(start).max()))
        for a, e, start in zip(actual, expected, problem.params, strict=True)
    )


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize(("algorithm", "options"), cases(EVERY))
def test_agrees_with_torch(algorithm: Algorithm, options: dict[str, Any], dtype: str) -> None:
    problem = make_problem(algorithm, dtype)
    expected = run_in_torch(algorithm, options, problem)
    tolerance = {"float64": algorithm.float64, "float32": algorithm.float32}[dtype]
    assert worst_error(run_in_bridge(algorithm, options, problem), expected, problem) <= tolerance
    with jax.enable_x64(dtype == "float64"):
        assert worst_error(run_in_jax(algorithm, options, problem), expected, problem) <= tolerance


@each(ALGORITHMS)
def test_missing_gradients_agree_with_torch(algorithm: Algorithm) -> None:
    """A first gradient may come late: a parameter's count, and the rate ASGD and Rprop begin with, are its own."""
    problem = make_problem(algorithm, "float64", missing=True)
    options = algorithm.options[-1]
    expected = run_in_torch(algorithm, options, problem)
    assert worst_error(run_in_bridge(algorithm, options, problem), expected, problem) <= FLOAT64
    with jax.enable_x64(True):
        assert worst_error(run_in_jax(algorithm, options, problem), expected, problem) <= FLOAT64


@each([a for a in ALGORITHMS if a.takes_complex])
def test_complex_parameters_agree_with_torch(algorithm: Algorithm) -> None:
    problem = make_problem(algorithm, "complex128")
    options = algorithm.options[-1]
    expected = run_in_torch(algorithm, options, problem)
    assert worst_error(run_in_bridge(algorithm, options, problem), expected, problem) <= FLOAT64
    with jax.enable_x64(True):
        assert worst_error(run_in_jax(algorithm, options, problem), expected, problem) <= FLOAT64


def test_adafactors_eps_is_that_of_the_dtype() -> None:
    """Gradients of 1e-9 are above float64's machine epsilon and below float32's."""
    for dtype, tolerance in (("float64", ADAFACTOR.float64), ("float32", ADAFACTOR.float32)):
        tiny = make_problem(ADAFACTOR, dtype, scale=1e-9)
        expected = run_in_torch(ADAFACTOR, {}, tiny)
        assert worst_error(run_in_bridge(ADAFACTOR, {}, tiny), expected, tiny) <= tolerance
        with jax.enable_x64(dtype == "float64"):
            assert worst_error(run_in_jax(ADAFACTOR, {}, tiny), expected, tiny) <= tolerance


@pytest.mark.parametrize("options", [{**options, "ns_steps": 0} for options in MUON.options], ids=str)
def test_muon_without_iterations_agrees_to_the_last_digits(options: dict[str, Any]) -> None:
    algorithm = MUON._replace(second={**MUON.second, "ns_steps": 0})
    problem = make_problem(algorithm, "float64", missing=True)
    expected = run_in_torch(algorithm, options, problem)
    assert worst_error(run_in_bridge(algorithm, options, problem), expected, problem) <= FLOAT64
    with jax.enable_x64(True):
        assert worst_error(run_in_jax(algorithm, options, problem), expected, problem) <= FLOAT64


@pytest.mark.parametrize("shape", [(5, 8), (128, 64), (256, 256)])
def test_orthogonalisation_agrees_to_bfloat16s_resolution(shape: tuple[int, int]) -> None:
    """Rounded to 8 bits after each of 15 products; measured 0 to 5.5e-3 of the norm."""
    matrix = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    numbers = {"ns_coefficients": (3.4445, -4.7750, 2.0315), "eps": 1e-7, "ns_steps": 5}
    expected = _zeropower_via_newtonschulz(torch.from_numpy(matrix), **numbers).float().numpy()
    actual = jax.jit(lambda x: newton_schulz(x, **numbers))(matrix)
    assert np.linalg.norm(actual - expected) <= 2**-7 * np.linalg.norm(expected)


@each(EVERY)
def test_torch_continues_from_the_bridges_checkpoint(algorithm: Algorithm) -> None:
    """As it does from its own: loading casts float32 states of NAdam and ASGD, so the oracle is loaded, too."""
    problem, options, half = make_problem(algorithm, "float64", missing=True), algorithm.options[-1], STEPS // 2
    torch_, bridge = with_torch(algorithm, options), with_bridge(algorithm, options)
    first, second = range(half), range(half, STEPS)
    expected = TorchRun(problem.params, torch_, algorithm.second).step(problem, first)
    bridged = TorchRun(problem.params, bridge, algorithm.second).step(problem, first)
    saved, saved_by_torch = bridged.optimizer.state_dict(), expected.optimizer.state_dict()
    for index, entry in saved_by_torch["state"].items():
        assert list(saved["state"][index]) == list(entry)
        for name, value in entry.items():
            assert saved["state"][index][name].dtype == value.dtype, name
            np.testing.assert_allclose(saved["state"][index][name], value, rtol=1e-11, atol=1e-11, err_msg=name)
    expected = expected.resumed_by(torch_, algorithm.second).step(problem, second)
    resumed = bridged.resumed_by(torch_, algorithm.second).step(problem, second)
    assert worst_error(resumed.params, expected.params, problem) <= algorithm.float64


@each(EVERY)
def test_the_bridge_continues_from_torchs_checkpoint(algorithm: Algorithm) -> None:
    problem, options, half = make_problem(algorithm, "float64", missing=True), algorithm.options[-1], STEPS // 2
    torch_, bridge = with_torch(algorithm, options), with_bridge(algorithm, options)
    run = TorchRun(problem.params, torch_, algorithm.second).step(problem, range(half))
    resumed = run.resumed_by(bridge, algorithm.second).step(problem, range(half, STEPS))
    expected = run.step(problem, range(half, STEPS))
    assert worst_error(resumed.params, expected.params, problem) <= algorithm.float64


@each(EVERY)
def test_a_bfloat16_step_is_within_one_rounding_of_torchs(algorithm: Algorithm) -> None:
    """From the same state. torch rounds after each operation and funcopt once, as torch's fused kernels do; over many
    steps the two part by up to 14 ulp, torch being the one that is further from the float64 trajectory.
    """
    problem, options = make_problem(algorithm, "float32", steps=12), algorithm.options[-1]
    run = TorchRun(problem.params, with_torch(algorithm, options), algorithm.second, torch.bfloat16)
    bridged = TorchRun(problem.params, with_bridge(algorithm, options), algorithm.second, torch.bfloat16)
    for t in range(12):
        run.step(problem, range(t, t + 1))
        bridged.step(problem, range(t, t + 1))
        for actual, expected in zip(bridged.tensors, run.tensors, strict=True):
            largest = torch.nextafter(expected.abs().max(), torch.tensor(math.inf, dtype=torch.bfloat16))
            assert (actual - expected).abs().max() <= largest - expected.abs().max()
            actual.data.copy_(expected.data)
        bridged.optimizer.load_state_dict(run.optimizer.state_dict())


COMMON = (
    ("lr", -1.0, ValueError),
    ("lr", math.nan, ValueError),
    ("lr", torch.tensor([0.1, 0.2]), ValueError),
    ("lr", torch.tensor(-0.1), ValueError),
    ("lr", "x", TypeError),
)
DECAY = (("weight_decay", -1.0, ValueError), ("weight_decay", math.nan, ValueError))
EPS = (("eps", -1.0, ValueError), ("eps", math.nan, ValueError))
BETAS = (
    ("betas", (-0.1, 0.9), ValueError),
    ("betas", (1.0, 0.9), ValueError),
    ("betas", (0.9, -0.1), ValueError),
    ("betas", (0.9, 1.0), ValueError),
    ("betas", (math.nan, 0.9), ValueError),
    ("betas", 0.9, TypeError),
)
REFUSED: dict[str, tuple[tuple[str, Any, type[Exception]], ...]] = {
    "adadelta": (*COMMON, *DECAY, *EPS, ("rho", -0.1, ValueError), ("rho", 1.1, ValueError)),
    "adagrad": (
        *COMMON,
        *DECAY,
        *EPS,
        ("lr_decay", -1.0, ValueError),
        ("initial_accumulator_value", -1.0, ValueError),
    ),
    "adamax": (*COMMON, *DECAY, *EPS, *BETAS),
    "asgd": (*COMMON, *DECAY),
    "nadam": (*COMMON, *DECAY, *EPS, *BETAS, ("momentum_decay", -1.0, ValueError)),
    "radam": (*COMMON, *DECAY, *EPS, *BETAS),
    "rmsprop": (*COMMON, *DECAY, *EPS, ("momentum", -1.0, ValueError), ("alpha", -0.1, ValueError)),
    "rprop": (
        *COMMON,
        ("etas", (0.5, 1.0), ValueError),
        ("etas", (0.0, 1.2), ValueError),
        ("etas", (1.2, 0.5), ValueError),
        ("etas", (0.5, 0.9), ValueError),
    ),
    "adafactor": (
        *COMMON,
        *DECAY,
        ("eps", -1.0, TypeError),
        ("eps", (-1e-30, 1e-3), ValueError),
        ("eps", (None, -1e-3), ValueError),
        ("beta2_decay", 0.1, ValueError),
        ("d", 0.5, ValueError),
    ),
    "muon": (*COMMON, *DECAY, ("momentum", -1.0, ValueError), ("adjust_lr_fn", "nope", ValueError)),
}
ACCEPTED: dict[str, tuple[dict[str, Any], ...]] = {
    "adadelta": ({"lr": 0.0, "eps": 0.0, "rho": 1.0},),
    "adagrad": ({"lr": 0.0, "eps": 0.0},),
    "adamax": ({"lr": 0.0, "eps": 0.0, "betas": (0, 0.9)},),
    "asgd": ({"lr": 0.0, "alpha": -0.1, "lambd": -1.0, "t0": -1.0}, {"alpha": 2.0}),
    "nadam": ({"lr": 0.0, "eps": 0.0, "betas": (0, 0.9)},),
    "radam": ({"lr": 0.0, "eps": 0.0, "betas": (0, 0.9)},),
    "rmsprop": ({"lr": 0.0, "eps": 0.0, "momentum": 0.0, "alpha": 2.0},),
    "rprop": ({"lr": 0.0, "step_sizes": (1, 0.1)}, {"step_sizes": (-1, 1)}),
    "adafactor": ({"lr": 0.0, "beta2_decay": 0.0, "d": 1.0, "eps": (0.0, 0.0)},),
    "muon": ({"lr": 0.0, "eps": -1.0, "momentum": 0.0, "adjust_lr_fn": "original", "ns_steps": 0}, {"eps": math.nan}),
}


@pytest.mark.parametrize(
    ("algorithm", "argument", "value", "error"),
    [pytest.param(a, *row, id=f"{a.name}-{row[0]}={row[1]}") for a in EVERY for row in REFUSED[a.name]],
)
def test_what_torch_refuses_is_refused(algorithm: Algorithm, argument: str, value: Any, error: type[Exception]) -> None:
    params = [torch.nn.Parameter(torch.ones(2, 3))]
    with pytest.raises(error):
        algorithm.torch_class(params, **{argument: value})  # pyright: ignore[reportCallIssue]
    with pytest.raises(error, match=rf"^{algorithm.name}: {argument}(\[\d\])? must be .*got "):
        algorithm.recipe(**{argument: value.numpy() if isinstance(value, torch.Tensor) else value})
    with pytest.raises(error):
        funcopt.TorchBridge(params, algorithm.recipe, **{argument: value})


@pytest.mark.parametrize(
    ("algorithm", "options"), [pytest.param(a, row, id=f"{a.name}-{row}") for a in EVERY for row in ACCEPTED[a.name]]
)
def test_what_torch_accepts_is_accepted(algorithm: Algorithm, options: dict[str, Any]) -> None:
    params = [torch.nn.Parameter(torch.ones(2, 3))]
    algorithm.torch_class(params, **options)  # pyright: ignore[reportCallIssue]
    algorithm.recipe(**options).init({"w": jnp.ones((2, 3))})
    funcopt.TorchBridge(params, algorithm.recipe, **options)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: funcopt.radam(betas=(0.9,)), r"radam: betas must be a tuple of 2 numbers, got \(0.9,\)"),
        (lambda: funcopt.muon(ns_steps=100), "muon: ns_steps must be < 100, got 100"),
        (lambda: funcopt.muon(ns_coefficients=(1.0, 2.0)), "muon: ns_coefficients must be a tuple of 3 numbers"),
        (
            lambda: funcopt.muon(adjust_lr_fn={"w": "orignal"}),
            r"muon: adjust_lr_fn\['w'\] must be None or one of 'original', 'match_rms_adamw', got 'orignal'",
        ),
        (
            lambda: funcopt.muon().init({"w": jnp.ones((2, 2)), "b": jnp.ones(2)}),
            r"scale_by_muon: parameter \['b'\] must be a matrix, got shape \(2,\); .*funcopt.partition",
        ),
        (
            lambda: funcopt.muon().init([jnp.ones((2, 2), complex)]),
            r"scale_by_muon: parameter \[0\] must be real, got complex64; .*funcopt.partition",
        ),
        (
            lambda: funcopt.adafactor().init([jnp.ones((2, 2), complex)]),
            r"adafactor: parameter \[0\] must be real, got complex64; .*funcopt.partition",
        ),
        (
            lambda: funcopt.nadam().init({"w": jnp.ones(2, int)}),
            r"scale: parameter \['w'\] must be floating or complex, got int32; .*funcopt.masked",
        ),
        (lambda: funcopt.averaged_params(funcopt.sgd().init(jnp.ones(2))), "averaged_params: state must contain .* 0"),
    ],
)
def test_errors_say_what_and_where(make: Callable[[], Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: funcopt.muon(ns_steps=2.0), "muon: ns_steps must be an integer, got 2.0"),  # pyright: ignore
        (lambda: funcopt.muon(ns_steps=True), "muon: ns_steps must be an integer, got True"),
        (lambda: funcopt.rmsprop(centered=1), "rmsprop: centered must be True or False, got 1"),
        (lambda: funcopt.nadam(betas=(None, 0.9)), r"nadam: betas\[0\] must be a number"),
    ],
)
def test_arguments_of_another_type(make: Callable[[], Any], message: str) -> None:
    with pytest.raises(TypeError, match=message):
        make()


@pytest.mark.parametrize("t0", [1e6, 3.0])
def test_averaged_params_is_torchs_average(t0: float) -> None:
    algorithm = ASGD
    problem = make_problem(algorithm, "float64", steps=12)
    run = TorchRun(problem.params, with_torch(algorithm, {"t0": t0}), {}).step(problem, range(12))
    expected = [run.optimizer.state[tensor]["ax"].numpy() for tensor in run.tensors]
    with jax.enable_x64(True):
        tx = funcopt.chain(
            funcopt.clip_by_value(100.0), transformation(algorithm._replace(second={}), {"t0": t0}, problem.lrs)
        )
        params = by_group([jnp.asarray(p) for p in problem.params])
        state = tx.init(params)
        for average, param in zip(jax.tree.leaves(funcopt.averaged_params(state)), problem.params, strict=True):
            np.testing.assert_array_equal(average, param)
        for grads in problem.grads:
            updates, state = tx.update(by_group(grads), state, params)
            params = funcopt.apply_updates(params, updates)
        averages = jax.tree.leaves(funcopt.averaged_params(state))
    assert worst_error([np.asarray(a) for a in averages], expected, problem) <= FLOAT64
    both = funcopt.partition({"a": funcopt.asgd(), "b": funcopt.asgd()}, {"v": "a", "w": "b"})
    with pytest.raises(ValueError, match=r"one funcopt\.asgd, got 2"):
        funcopt.averaged_params(both.init({"v": jnp.ones(2), "w": jnp.ones(2)}))


@each(EVERY)
def test_float64_scalars_never_widen_an_array(algorithm: Algorithm) -> None:
    """Scalar arithmetic is float64 as in torch; an array of float64 would cost twice the memory traffic."""
    options = {"lr": 0.1, **algorithm.options[-1]}
    numbers = {name: value for name, value in options.items() if isinstance(value, float | tuple)}
    with jax.enable_x64(True):
        params = [jnp.asarray(p) for p in make_problem(algorithm, "float32").params]
        state = algorithm.recipe(**options).init(params)
        update = lambda numbers: algorithm.recipe(**{**options, **numbers}).update(params, state, params)  # noqa: E731
        avals = [v.aval for v in _variables(jax.make_jaxpr(update)(numbers).jaxpr)]
    assert [aval for aval in avals if aval.dtype == jnp.float64 and aval.ndim > 0] == []
    assert [aval for aval in avals if aval.dtype == jnp.float64] != []


def _variables(jaxpr: Any) -> list[Any]:
    found = []
    for equation in jaxpr.eqns:
        found.extend(equation.outvars)
        for value in equation.params.values():
            inner = getattr(value, "jaxpr", None)
            found.extend(_variables(inner) if inner is not None else [])
    return found


@each(EVERY)
def test_the_elementwise_mark(algorithm: Algorithm) -> None:
    for lr in (0.1, lambda step: 0.1 / (step + 1)):
        tx = algorithm.recipe(lr=lr)
        assert isinstance(tx, funcopt.ElementwiseTransformation) == algorithm.elementwise


@each(ALGORITHMS)
def test_updates_are_differentiable(algorithm: Algorithm) -> None:
    """Through 8 updates, RAdam's first rectified one among them: the derivative equals the difference quotient."""
    with jax.enable_x64(True):
        problem = make_problem(algorithm, "float64", steps=8)
        start = by_group([jnp.asarray(p) for p in problem.params])
        tx = algorithm.recipe(**{"lr": 0.05, **algorithm.options[-1]})

        def step(carry: Any, _: Any) -> tuple[Any, None]:
            params, state = carry
            grads = jax.tree.map(lambda p: jnp.sin(3 * p) + 0.1, params)
            updates, state = tx.update(grads, state, params)
            return (funcopt.apply_updates(params, updates), state), None

        @jax.jit
        def loss_after(shift: jax.Array) -> jax.Array:
            params = jax.tree.map(lambda p: p + shift, start)
            (params, _), _ = lax.scan(step, (params, tx.init(params)), length=8)
            return sum(jnp.sum(p * p) for p in jax.tree.leaves(params))  # pyright: ignore[reportReturnType]

        slope = jax.jit(jax.grad(loss_after))(0.0)
        quotient = (loss_after(1e-6) - loss_after(-1e-6)) / 2e-6
    np.testing.assert_allclose(slope, quotient, rtol=1e-6)


@pytest.mark.parametrize("beta2", [0.0, 0.5, 0.9, 0.99, 0.999, 0.9999, 0.99999])
def test_radams_sma_length_is_accurate_in_float32(beta2: float) -> None:
    """Where torch's formula in float32 is off by 0.04 (beta2 0.999) to 290 (0.99999), and 5 is the threshold."""
    steps = np.unique(np.geomspace(1, 1e6, 200).astype(np.int32))
    with decimal.localcontext(prec=60):
        beta = decimal.Decimal(beta2)
        exact = [float((1 + beta) / (1 - beta) - 2 * t * beta**t / (1 - beta**t)) for t in map(int, steps)]
    actual = np.asarray(jax.jit(jax.vmap(lambda t: sma_length(beta2, t)))(steps))
    assert actual.dtype == np.float32
    assert np.abs(actual / exact - 1).max() <= 8 * ULP
    np.testing.assert_array_equal(actual > 5, np.array(exact) > 5)


@pytest.mark.parametrize(
    ("algorithm", "wrong", "options"),
    [
        (ADAGRAD, optax.adagrad, {"eps": 1e-3}),
        (RMSPROP, optax.rmsprop, {"momentum": 0.9}),
        (NADAM, optax.nadam, {}),
        (RADAM, optax.radam, {"eps": 0.1}),
    ],
    ids=lambda x: getattr(x, "name", ""),
)
def test_another_rule_is_caught(algorithm: Algorithm, wrong: Any, options: dict[str, Any]) -> None:
    """The comparison can fail: optax's rules of the same name are others."""
    problem = make_problem(algorithm, "float64")
    run = TorchRun(problem.params, with_torch(algorithm, options), {}).step(problem, range(STEPS))
    other = TorchRun(problem.params, lambda groups: funcopt.TorchBridge(groups, wrong, lr=0.1, **options), {})
    assert worst_error(other.step(problem, range(STEPS)).params, run.params, problem) > 1e-6
