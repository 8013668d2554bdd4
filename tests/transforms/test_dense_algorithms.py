"""What the conformance matrix does not ask of dense algorithms: complex numbers, refusals, derivatives."""

import decimal
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from jax import lax
from torch.optim._muon import _zeropower_via_newtonschulz

import funcopt
from conformance import ALGORITHMS, Algorithm
from conformance._algorithms import ADAFACTOR, ASGD, MUON, MUON_WITHOUT_ITERATIONS
from conformance._jax import make_cell, run_in_jax
from conformance._problem import STEPS, Problem, learning_rates, make_problem, worst_error
from conformance._torch import TorchRun
from funcopt.algorithms._muon import newton_schulz
from funcopt.algorithms._radam import sma_length

ULP = 2.0**-23
DENSE = tuple(a for a in ALGORITHMS if not a.rows and a is not MUON_WITHOUT_ITERATIONS)
NOT_ELEMENTWISE = (ADAFACTOR, MUON)  # which are for real matrices, and look at whole ones
ELEMENTWISE = tuple(a for a in DENSE if a not in NOT_ELEMENTWISE)


def each(algorithms: Sequence[Algorithm]) -> Any:
    return pytest.mark.parametrize("algorithm", algorithms, ids=lambda a: a.name)


def worst_of_both(algorithm: Algorithm, problems: Sequence[Problem], *, x64: bool = True) -> float:
    """How far JAX and the bridge are from torch, with one option set per group."""
    lrs = learning_rates(len(problems), changing=True)
    runs = [
        TorchRun(cls, algorithm.options, problems).step(lrs, range(STEPS)).params()
        for cls in (algorithm.torch_class, algorithm.bridge_class)
    ]
    expected, bridged = ([array for arrays in run for array in arrays] for run in runs)
    in_jax, *_ = run_in_jax([make_cell(algorithm.recipe, algorithm.options, problems, changing=True)], x64=x64)
    start = [p for problem in problems for p in problem.params]
    return max(worst_error(actual, expected, start) for actual in (in_jax, bridged))


@each(ELEMENTWISE)
def test_complex_parameters_agree_with_torch(algorithm: Algorithm) -> None:
    algorithm = algorithm.quick()
    algorithm = algorithm._replace(options=algorithm.together())
    problems = [make_problem(algorithm, "complex128", group=i) for i in range(2)]
    assert worst_of_both(algorithm, problems) <= algorithm.float64


@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_adafactors_eps_is_that_of_the_dtype(dtype: str) -> None:
    """Gradients of 1e-9 are above float64's machine epsilon and below float32's."""
    algorithm = ADAFACTOR._replace(options=({},))
    problem = make_problem(algorithm, dtype)
    tiny = problem._replace(grads=[[np.asarray(1e-9 * g, dtype) for g in grads] for grads in problem.grads])
    assert worst_of_both(algorithm, [tiny], x64=dtype == "float64") <= getattr(algorithm, dtype)


@pytest.mark.parametrize("shape", [(5, 8), (128, 64), (256, 256)])
def test_orthogonalisation_agrees_to_bfloat16s_resolution(shape: tuple[int, int]) -> None:
    """Rounded to 8 bits after each of 15 products; measured 0 to 5.5e-3 of the norm."""
    matrix = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    numbers = {"ns_coefficients": (3.4445, -4.7750, 2.0315), "eps": 1e-7, "ns_steps": 5}
    expected = _zeropower_via_newtonschulz(torch.from_numpy(matrix), **numbers).float().numpy()
    actual = jax.jit(lambda x: newton_schulz(x, **numbers))(matrix)
    assert np.linalg.norm(actual - expected) <= 2**-7 * np.linalg.norm(expected)


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


def with_rows(table: dict[str, Any]) -> list[tuple[Algorithm, Any]]:
    """Each algorithm with each of its rows."""
    return [(a, row) for a in DENSE for row in table.get(a.recipe.__name__, ())]


@pytest.mark.parametrize(
    ("algorithm", "argument", "value", "error"),
    [pytest.param(a, *row, id=f"{a.name}-{row[0]}={row[1]}") for a, row in with_rows(REFUSED)],
)
def test_what_torch_refuses_is_refused(algorithm: Algorithm, argument: str, value: Any, error: type[Exception]) -> None:
    params = [torch.nn.Parameter(torch.ones(2, 3))]
    with pytest.raises(error):
        algorithm.torch_class(params, **{argument: value})  # pyright: ignore[reportCallIssue]
    with pytest.raises(error, match=rf"^{algorithm.recipe.__name__}: {argument}(\[\d\])? must be .*got "):
        algorithm.recipe(**{argument: value.numpy() if isinstance(value, torch.Tensor) else value})
    with pytest.raises(error):
        funcopt.TorchBridge(params, algorithm.recipe, **{argument: value})


@pytest.mark.parametrize(
    ("algorithm", "options"),
    [pytest.param(a, row, id=f"{a.name}-{row}") for a, row in with_rows(ACCEPTED)],
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
            r"muon: adjust_lr_fn\['w'\] must be None or one of 'original', 'match_rms_adamw', 'spectral_unclamped'",
        ),
        (
            lambda: funcopt.muon().init({"w": jnp.ones((2, 2)), "b": jnp.ones(2)}),
            r"muon: parameter \['b'\] must be a matrix, got shape \(2,\); .*funcopt.partition",
        ),
        (
            lambda: funcopt.muon().init([jnp.ones((2, 2), complex)]),
            r"muon: parameter \[0\] must be real, got complex64; .*funcopt.partition",
        ),
        (
            lambda: funcopt.adafactor().init([jnp.ones((2, 2), complex)]),
            r"adafactor: parameter \[0\] must be real, got complex64; .*funcopt.partition",
        ),
        (
            lambda: funcopt.nadam().init({"w": jnp.ones(2, int)}),
            r"nadam: parameter \['w'\] must be floating or complex, got int32; .*funcopt.masked",
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
    problem = make_problem(ASGD, "float64")
    lrs = learning_rates(1, changing=True)
    run = TorchRun(torch.optim.ASGD, [{"t0": t0}], [problem]).step(lrs, range(12))
    expected = [run.optimizer.state[tensor]["ax"].numpy() for tensor in run.tensors[0]]
    with jax.enable_x64(True):
        tx = funcopt.chain(funcopt.clip_by_value(100.0), funcopt.asgd(lambda step: jnp.asarray(lrs[:, 0])[step], t0=t0))
        params = [jnp.asarray(p) for p in problem.params]
        state = tx.init(params)
        for average, param in zip(funcopt.averaged_params(state), problem.params, strict=True):
            np.testing.assert_array_equal(average, param)
        for grads in problem.grads[:12]:
            updates, state = tx.update(grads, state, params)
            params = funcopt.apply_updates(params, updates)
        averages = [np.asarray(average) for average in funcopt.averaged_params(state)]
    assert worst_error(averages, expected, problem.params) <= ASGD.float64
    both = funcopt.partition({"a": funcopt.asgd(), "b": funcopt.asgd()}, {"v": "a", "w": "b"})
    with pytest.raises(ValueError, match=r"averaged_params: .* of one funcopt\.schedule_free, .* got 2"):
        funcopt.averaged_params(both.init({"v": jnp.ones(2), "w": jnp.ones(2)}))


@each(DENSE)
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


@each(DENSE)
def test_the_elementwise_mark(algorithm: Algorithm) -> None:
    for lr in (0.1, lambda step: 0.1 / (step + 1)):
        tx = algorithm.recipe(lr=lr)
        assert isinstance(tx, funcopt.ElementwiseTransformation) == (algorithm in ELEMENTWISE)


@each(ELEMENTWISE)
def test_updates_are_differentiable(algorithm: Algorithm) -> None:
    """Through 8 updates, RAdam's first rectified one among them: the derivative equals the difference quotient."""
    with jax.enable_x64(True):
        start = [jnp.asarray(p) for p in make_problem(algorithm, "float64").params]
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


@pytest.mark.parametrize(("shape", "factor"), [((4, 16), 0.5), ((16, 4), 2.0)])
def test_muon_unclamped(shape: tuple[int, int], factor: float) -> None:
    """Torch has it since 2.14 only: lr * sqrt(rows / columns) where "original" has at least lr."""
    grads = jnp.asarray(np.random.default_rng(0).normal(size=shape), jnp.float32)

    def update(name: str) -> Any:
        tx = funcopt.muon(0.1, weight_decay=0.0, adjust_lr_fn=name)
        return tx.update(grads, tx.init(grads), grads)[0]

    original = update("original") / max(1.0, factor)
    np.testing.assert_allclose(update("spectral_unclamped"), factor * original, rtol=1e-6)
