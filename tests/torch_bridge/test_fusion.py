"""One loop for all results of an update on the CPU: it moves the least bytes, and changes no number."""

import os
import re
import subprocess
import sys
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch
from twins import ROUNDING, largest_difference, make_parameters, program_of, take_steps

import funcopt
from funcopt.torch_bridge import TorchBridge, optim
from funcopt.torch_bridge.engines import _fusion, _xla
from funcopt.torch_bridge.engines._apart import compute_apart
from funcopt.torch_bridge.store import _block

pytestmark = pytest.mark.one_engine

SHAPES = [(100, 400), (7,), (40_000,), (300, 200)]
# The small one is in a block of its own, with room for others.
ELEMENTS = 40_000 + _block.LEAST_ROWS * _block.WIDTHS[0] + 40_000 + 60_000


def lion(lr: Any) -> funcopt.GradientTransformation:
    return funcopt.chain(funcopt.ElementwiseTransformation(*optax.scale_by_lion()), funcopt.scale_by_learning_rate(lr))


def averaged_lion(lr: Any) -> funcopt.GradientTransformation:
    return funcopt.chain(lion(lr), funcopt.params_ema(0.99))


def everything(lr: Any, weight_decay: Any, amsgrad: bool = False) -> funcopt.GradientTransformation:
    return funcopt.chain(
        funcopt.clip_by_global_norm(1.0),
        funcopt.adamw(lr, weight_decay=weight_decay, amsgrad=amsgrad),
        funcopt.params_ema(0.99),
    )


# Arrays of the parameters' size that are read or written: gradients, and twice the parameters and each moment.
RECIPES = {
    "SGD": (funcopt.sgd, {}, 3),
    "Nesterov": (funcopt.sgd, {"momentum": 0.9, "nesterov": True, "weight_decay": 0.1}, 5),
    "Adam": (funcopt.adam, {"weight_decay": 0.1}, 7),
    "AdamW": (funcopt.adamw, {}, 7),
    "AMSGrad": (funcopt.adamw, {"amsgrad": True}, 9),
    "Adagrad": (funcopt.adagrad, {}, 5),
    "RMSprop": (funcopt.rmsprop, {"centered": True, "momentum": 0.9}, 9),
    "Adadelta": (funcopt.adadelta, {"weight_decay": 0.1}, 7),
    "Adamax": (funcopt.adamax, {}, 7),
    "NAdam": (funcopt.nadam, {}, 7),
    "RAdam": (funcopt.radam, {}, 7),
    "Rprop": (funcopt.rprop, {}, 7),
    "ASGD": (funcopt.asgd, {}, 5),
    "Lion": (lion, {"lr": 1e-2}, 5),
    "Lion + EMA": (averaged_lion, {"lr": 1e-2}, 7),
    "clip + AdamW + EMA": (everything, {"lr": 1e-2, "weight_decay": 0.1}, 10),
    "clip + AMSGrad + EMA": (everything, {"lr": 1e-2, "weight_decay": 0.1, "amsgrad": True}, 12),
}
EACH_RECIPE = pytest.mark.parametrize("recipe", RECIPES)


class Run:
    """A recipe on parameters in two groups."""

    def __init__(self, recipe: str, dtype: torch.dtype = torch.float64) -> None:
        factory, options, _ = RECIPES[recipe]
        self.params = [torch.nn.Parameter(p.detach().to(dtype)) for p in make_parameters(SHAPES)]
        self.optimizer = TorchBridge([{"params": self.params[:2]}, {"params": self.params[2:]}], factory, **options)

    def step(self, number: int = 0) -> None:
        take_steps(self.params, self.optimizer, [number])

    def steps_with_missing_gradients(self) -> list[torch.Tensor]:
        """In the first two steps one parameter has no gradient, in all of them another; what came of it."""

        def leave_out(params: Sequence[torch.Tensor], number: int) -> None:
            params[1].grad = None
            if number < 2:
                params[3].grad = None

        take_steps(self.params, self.optimizer, range(4), leave_out)
        state = [value for p in self.params for value in self.optimizer.state[p].values()]
        return [*(p.detach() for p in self.params), *(value for value in state if isinstance(value, torch.Tensor))]


def moves_the_least(run: Run, recipe: str) -> bool:
    program = program_of(run.optimizer)
    memory: Any = program.memory_analysis()
    least = 4 * ELEMENTS * RECIPES[recipe][2]
    # The numbers of each row of joined parameters, and scalars: 16 in float64, written once and read by each loop.
    numbers = 16 * 8 * _block.LEAST_ROWS
    return _fusion.bytes_moved(program) <= 1.01 * least + 4 * numbers and memory.temp_size_in_bytes <= 2 * numbers


@EACH_RECIPE
def test_an_update_moves_the_least_bytes(recipe: str) -> None:
    run = Run(recipe, torch.float32)
    run.step()
    assert moves_the_least(run, recipe)


# A norm reads what it is of once more: LAMB's of its updates all that these are made of, beside the clip's.
@pytest.mark.parametrize(
    ("name", "options", "bytes_per_element"),
    [("Lars", {"momentum": 0.9, "weight_decay": 0.1}, 28), ("StableAdamW", {}, 36), ("Lamb", {}, 52)],
)
def test_so_does_one_that_takes_norms(name: str, options: dict[str, Any], bytes_per_element: float) -> None:
    params = make_parameters([(100, 400), (200, 50, 2, 2)], torch.float32)
    optimizer = getattr(optim, name)(params, lr=0.1, **options)
    take_steps(params, optimizer, [0])
    moved = _fusion.bytes_moved(program_of(optimizer)) / sum(p.numel() for p in params)
    assert bytes_per_element <= moved <= 1.02 * bytes_per_element
    assert optimizer.compilations == 1


@pytest.mark.parametrize("recipe", ["AdamW", "AMSGrad", "Lion + EMA"])
def test_with_scaled_gradients_too(recipe: str) -> None:
    """Without a clip, for whose norm XLA keeps the scale as an array where large parameters have one shape."""
    run = Run(recipe, torch.float32)
    run.optimizer.grad_scale, run.optimizer.found_inf = torch.tensor([2.0]), torch.tensor([0.0])
    run.step()
    assert moves_the_least(run, recipe)


def test_loops_of_different_parameters_stay_apart() -> None:
    """Parameters of one shape, too large to be joined: XLA would merge what shares a scalar."""
    params = make_parameters([(40_000,)] * 3, torch.float32)
    optimizer = TorchBridge(params, funcopt.sgd, lr=0.1, momentum=0.9)
    take_steps(params, optimizer, [0])
    program = program_of(optimizer)
    heads = [line.partition(" fusion(")[0] for line in (program.as_text() or "").splitlines() if " fusion(" in line]
    results = [head.count("f32[40000]") for head in heads]
    assert [count for count in results if count] == [2, 2, 2]


@pytest.mark.parametrize("recipe", ["Adadelta", "Rprop", "Lion + EMA", "clip + AMSGrad + EMA"])
def test_merging_changes_no_number(recipe: str, monkeypatch: pytest.MonkeyPatch) -> None:
    merged = Run(recipe)
    results = merged.steps_with_missing_gradients()
    monkeypatch.setattr(_fusion, "compile_merging", lambda lowered: lowered.compile())
    _xla.forget_programs()
    plain = Run(recipe)
    assert largest_difference(results, plain.steps_with_missing_gradients()) <= ROUNDING
    assert merged.optimizer.compilations == plain.optimizer.compilations


def test_a_norm_of_what_is_computed(monkeypatch: pytest.MonkeyPatch) -> None:
    """It needs all updates before any parameter is known."""

    def clipped_at_the_end(lr: Any) -> funcopt.GradientTransformation:
        return funcopt.chain(funcopt.adamw(lr), funcopt.clip_by_global_norm(1e-2))

    monkeypatch.setitem(RECIPES, "clipped", (clipped_at_the_end, {"lr": 1e-2}, None))
    results = Run("clipped").steps_with_missing_gradients()
    monkeypatch.setattr(_fusion, "compile_merging", lambda lowered: lowered.compile())
    _xla.forget_programs()
    assert largest_difference(results, Run("clipped").steps_with_missing_gradients()) <= ROUNDING


def test_what_has_an_effect_has_it_once(capfd: pytest.CaptureFixture[str]) -> None:
    def talk(updates: Any, state: Any, params: Any = None) -> Any:
        jax.debug.print("norm {norm}", norm=funcopt.global_norm(updates))
        return updates, state

    def talkative(lr: Any) -> funcopt.GradientTransformation:
        return funcopt.chain(funcopt.ElementwiseTransformation(optax.identity().init, talk), funcopt.adamw(lr))

    p = torch.nn.Parameter(torch.zeros(4))
    p.grad = torch.ones_like(p)
    TorchBridge([p], talkative, lr=0.1).step()
    jax.effects_barrier()
    assert capfd.readouterr().out == "norm 2.0\n"


def test_loops_that_do_not_merge_are_not_taken_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where JAX gives no access to the pass, as a version with other internals would."""

    class OtherInternals:
        def __init__(self, lowered: jax.stages.Lowered) -> None:
            self._lowering, self.compile = object(), lowered.compile

    compile_merging = _fusion.compile_merging
    monkeypatch.setattr(_fusion, "compile_merging", lambda lowered: compile_merging(OtherInternals(lowered)))  # pyright: ignore
    _xla.forget_programs()
    run = Run("AdamW", torch.float32)
    run.step()
    program = program_of(run.optimizer)
    # Joined parameters are read once more for each result, for those that are not due.
    joined = 3 * 4 * _block.LEAST_ROWS * _block.WIDTHS[0]
    assert 4 * ELEMENTS * 10 <= _fusion.bytes_moved(program) <= 1.01 * 4 * ELEMENTS * 10 + 2 * joined
    assert run.optimizer.compilations == 1


BYTES = """
import torch, funcopt
from funcopt.torch_bridge.engines import _fusion
p = torch.nn.Parameter(torch.ones(100_000))
p.grad = torch.ones_like(p)
optimizer = funcopt.TorchBridge([p], funcopt.sgd, lr=0.1, momentum=0.9)
optimizer.step()
program = optimizer._store._engine.program
print(_fusion.bytes_moved(program) / p.numel())
"""


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        ("--xla_backend_extra_options=xla_cpu_use_multi_output_fusion=true", 20),
        ("--xla_disable_hlo_passes=cpu_multi_output_fusion", 28),
    ],
)
def test_the_pass_can_be_switched_off(flags: str, expected: int) -> None:
    environment = {**os.environ, "XLA_FLAGS": flags}
    command = [sys.executable, "-c", BYTES]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert float(done.stdout) == pytest.approx(expected, rel=0.01)


def test_without_compiling_at_all() -> None:
    ours, theirs = make_parameters([(100,), (10, 4)]), make_parameters([(100,), (10, 4)])
    optimizer = TorchBridge(ours, funcopt.adamw)
    with jax.disable_jit():
        take_steps(ours, optimizer, range(2))
    take_steps(theirs, torch.optim.AdamW(theirs), range(2))
    assert largest_difference(ours, theirs) <= ROUNDING


def test_other_programs_are_compiled_as_ever() -> None:
    Run("AdamW").step()
    x = jnp.ones(4096)
    toy = jax.jit(lambda x, y: (0.9 * x + y, 0.5 * x - y)).lower(x, x)
    assert len(re.findall(r"\bfusion\(", toy.compile().as_text() or "")) == 2


def test_apart_computes_the_same() -> None:
    """Constants, nested jitted functions, missing leaves, integers, reductions of reductions."""

    def compute(x: jax.Array, tree: dict[str, Any]) -> tuple[jax.Array, dict[str, Any]]:
        total = jnp.sum(x) + jnp.max(jnp.abs(tree["a"] - jnp.mean(x)))
        y = jnp.where(x > 0, x / total, jnp.asarray(np.arange(3.0)))
        return y, {"a": jax.jit(lambda y: y * total)(y), "count": tree["count"] + 1, "none": None}

    arguments = jnp.array([1.0, -2.0, 3.0]), {"a": jnp.array([[0.5], [-7.0]]), "count": jnp.zeros((), int)}

    def label(results: Any) -> Any:
        return jax.tree.map(lambda leaf: leaf.ndim, results)

    expected = compute(*arguments)
    actual = jax.jit(lambda *arguments: compute_apart(compute, label, *arguments))(*arguments)
    assert jax.tree.structure(actual) == jax.tree.structure(expected)
    assert all(jax.tree.leaves(jax.tree.map(jnp.allclose, actual, expected)))


@pytest.mark.filterwarnings("ignore:Sparse invariant checks")
def test_a_first_step_without_any_gradient_in_place() -> None:
    """Rows of sparse gradients, which are not merged, on the path of those that are."""

    def rows_only(params: Sequence[torch.Tensor], step: int) -> None:
        assert params[1].grad is not None
        rows, values = torch.tensor([[1, 7, 3]]), params[1].grad[:3]
        params[1].grad = torch.sparse_coo_tensor(rows, values, params[1].shape, check_invariants=True)
        if step == 0:
            params[0].grad = None

    ours, theirs = make_parameters([(100,), (10, 4)]), make_parameters([(100,), (10, 4)])
    take_steps(ours, TorchBridge(ours, funcopt.adagrad), range(3), rows_only)
    take_steps(theirs, torch.optim.Adagrad(theirs), range(3), rows_only)
    assert largest_difference(ours, theirs) <= ROUNDING
