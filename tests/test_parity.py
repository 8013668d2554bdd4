"""sgd, adam and adamw agree with torch.optim for every combination of options, in JAX and through the bridge."""

from typing import Any

import jax
import pytest
import torch
from parity import make_problem, run_jax, run_torch, worst_error

import funcopt
from conformance._algorithms import ADAM, ADAMW, SGD

# float64: both sides round each of 50 steps' handful of operations; measured worst 1e-14.
# float32: the same, in units of 2**-23, and where JAX contracts a product into an FMA that torch does not; measured
# worst 9 ulp of the largest entry.
TOLERANCE = {"float64": 1e-12, "float32": 16 * 2.0**-23}


CASES = [
    pytest.param(factory, torch_class, options, id=f"{factory.__name__}-{options}")
    for factory, torch_class, algorithm in (
        (funcopt.sgd, torch.optim.SGD, SGD),
        (funcopt.adam, torch.optim.Adam, ADAM),
        (funcopt.adamw, torch.optim.AdamW, ADAMW),
    )
    for options in algorithm.options
]


# Conformance tries both dtypes on every run, on fewer options.
@pytest.mark.parametrize("dtype", ["float64", pytest.param("float32", marks=pytest.mark.thorough)])
@pytest.mark.parametrize(("factory", "torch_class", "options"), CASES)
def test_agrees_with_torch(factory: Any, torch_class: Any, options: dict[str, Any], dtype: str) -> None:
    problem = make_problem(dtype)
    expected, _ = run_torch(problem, lambda groups: torch_class(groups, lr=0.1, **options))
    with jax.enable_x64(dtype == "float64"):
        in_jax = run_jax(problem, factory, options)
    bridged, optimizer = run_torch(problem, lambda groups: funcopt.TorchBridge(groups, factory, lr=0.1, **options))
    assert worst_error(in_jax, expected) <= TOLERANCE[dtype]
    assert worst_error(bridged, expected) <= TOLERANCE[dtype]
    assert optimizer.compilations == 1  # pyright: ignore[reportAttributeAccessIssue]


@pytest.mark.parametrize(
    ("factory", "torch_class", "options"),
    [
        (funcopt.sgd, torch.optim.SGD, {"momentum": 0.9, "dampening": 0.3}),
        (funcopt.adam, torch.optim.Adam, {"amsgrad": True}),
        (funcopt.adamw, torch.optim.AdamW, {}),
    ],
)
def test_missing_gradients_agree_with_torch(factory: Any, torch_class: Any, options: dict[str, Any]) -> None:
    problem = make_problem("float64", missing=True)
    expected, _ = run_torch(problem, lambda groups: torch_class(groups, lr=0.1, **options))
    with jax.enable_x64(True):
        in_jax = run_jax(problem, factory, options)
    bridged, optimizer = run_torch(problem, lambda groups: funcopt.TorchBridge(groups, factory, lr=0.1, **options))
    assert worst_error(in_jax, expected) <= TOLERANCE["float64"]
    assert worst_error(bridged, expected) <= TOLERANCE["float64"]
    assert optimizer.compilations == 1  # pyright: ignore[reportAttributeAccessIssue]


def test_a_wrong_rule_is_caught() -> None:
    """The comparison can fail: optax's AMSGrad corrects the bias before the maximum."""
    import optax

    problem = make_problem("float64")
    expected, _ = run_torch(problem, lambda groups: torch.optim.Adam(groups, lr=0.1, amsgrad=True))
    wrong, _ = run_torch(problem, lambda groups: funcopt.TorchBridge(groups, optax.amsgrad, lr=0.1))
    assert worst_error(wrong, expected) > 1e-3
