"""The audit: its parser against programs of known cost, and the programs that funcopt's rules become.

The figures of the CPU are those of jaxlib 0.10.2: where another XLA fuses otherwise they change, and are to be looked
at and recorded again. Those of the GPU are goals.
"""

import json
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import jaxlib
import numpy as np
import pytest

from benchmarks import _audit_hlo, _audit_report, _audit_torch, audit
from benchmarks._audit_programs import ALGORITHMS, build, compile_update, join, split_groups
from benchmarks._workloads import WORKLOADS
from funcopt import ElementwiseTransformation
from funcopt.torch_bridge._engine import enable_x64
from funcopt.torch_bridge._recipe import Recipe

HEAD = """HloModule m, input_output_alias={ {0}: (2, {}, may-alias), {1}: (0, {}, must-alias) }, \
entry_computation_layout={(f32[4]{0})->f32[4]{0}}
"""

# name: (text of a module without its head, (bytes, launches, copies, collectives) of its entry)
SNIPPETS = {
    "elementwise": (
        """
ENTRY %main (a: f32[8,2], b: bf16[16]) -> f32[16] {
  %a = f32[8,2]{1,0:T(8,128)} parameter(0)
  %b = bf16[16]{0} parameter(1)
  %c = f32[16]{0} convert(%b)
  %d = f32[16]{0} bitcast(%a)
  ROOT %e = f32[16]{0} multiply(%d, %c), metadata={op_name="a(b)"}
}""",
        (32 + 64 + 3 * 64, 2, 0, ()),
    ),
    "operand named twice": (
        """
ENTRY %main (a: f64[4]) -> f64[4] {
  %a = f64[4]{0} parameter(0)
  ROOT %e = f64[4]{0} multiply(%a, %a)
}""",
        (64, 1, 0, ()),
    ),
    "fusion with several results": (
        """
%f (x: f32[4], y: s32[]) -> (f32[4], pred[4]) {
  %x = f32[4]{0} parameter(0)
  %y = s32[] parameter(1)
  %z = pred[4]{0} compare(%x, %x)
  ROOT %t = (f32[4]{0}, pred[4]{0}) tuple(%x, %z)
}

ENTRY %main (a: f32[4], n: s32[]) -> f32[4] {
  %a = f32[4]{0} parameter(0)
  %n = s32[] parameter(1)
  %g = (f32[4]{0}, /*index=1*/pred[4]{0}) fusion(%a, /*index=1*/%n), kind=kLoop, calls=%f
  %h = f32[4]{0} get-tuple-element(%g), index=0
  ROOT %i = f32[4]{0} copy(%h)
}""",
        (16 + 4 + 20 + 32, 2, 1, ()),
    ),
    "fusion that reads a slice": (
        """
%f (x: f32[64], i: s32[]) -> f32[8] {
  %x = f32[64]{0} parameter(0)
  %i = s32[] parameter(1)
  %y = f32[64]{0} negate(%x)
  %u = f32[8]{0} dynamic-slice(%x, %i), dynamic_slice_sizes={8}
  %v = f32[8]{0} dynamic-slice(%y, %i), dynamic_slice_sizes={8}
  ROOT %w = f32[8]{0} add(%u, %v)
}

ENTRY %main (a: f32[64], n: s32[]) -> f32[8] {
  %a = f32[64]{0} parameter(0)
  %n = s32[] parameter(1)
  ROOT %g = f32[8]{0} fusion(%a, %n), kind=kLoop, calls=%f
}""",
        (32 + 4 + 32, 1, 0, ()),
    ),
    "call": (
        """
%body (x: f32[4]) -> f32[4] {
  %x = f32[4]{0} parameter(0)
  ROOT %y = f32[4]{0} negate(%x)
}

ENTRY %main (a: f32[4]) -> f32[4] {
  %a = f32[4]{0} parameter(0)
  ROOT %g = f32[4]{0} call(%a), to_apply=%body
}""",
        (32, 1, 0, ()),
    ),
    "loop": (
        """
%body (x: f32[4]) -> f32[4] {
  %x = f32[4]{0} parameter(0)
  ROOT %y = f32[4]{0} negate(%x)
}

%test (x: f32[4]) -> pred[] {
  %x = f32[4]{0} parameter(0)
  ROOT %y = pred[] constant(true)
}

ENTRY %main (a: f32[4]) -> f32[4] {
  %a = f32[4]{0} parameter(0)
  ROOT %g = f32[4]{0} while(%a), condition=%test, body=%body, backend_config={"known_trip_count":{"n":"5"}}
}""",
        (160, 5, 0, ()),
    ),
    "branches": (
        """
%short (x: f32[4]) -> f32[4] {
  ROOT %x = f32[4]{0} parameter(0)
}

%long (x: f32[4]) -> f32[4] {
  %x = f32[4]{0} parameter(0)
  ROOT %y = f32[4]{0} negate(%x)
}

ENTRY %main (p: pred[], a: f32[4]) -> f32[4] {
  %p = pred[] parameter(0)
  %a = f32[4]{0} parameter(1)
  %g = f32[4]{0} conditional(%p, %a, %a), true_computation=%short, false_computation=%long
  ROOT %h = f32[4]{0} conditional(%p, %g, %g), branch_computations={%long, %short}
}""",
        (64, 2, 0, ()),
    ),
    "collectives": (
        """
%sum (x: f32[], y: f32[]) -> f32[] {
  %x = f32[] parameter(0)
  %y = f32[] parameter(1)
  ROOT %z = f32[] add(%x, %y)
}

%one (x: f32[8]) -> f32[8] {
  %x = f32[8]{0} parameter(0)
  ROOT %y = f32[8]{0} all-reduce(%x), to_apply=%sum
}

ENTRY %main (a: f32[8]) -> f32[8] {
  %a = f32[8]{0} parameter(0)
  %s = (f32[8]{0}, f32[64]{0}) all-gather-start(%a), dimensions={0}
  %d = f32[64]{0} all-gather-done(%s)
  %t = ((f32[8]{0}), f32[8]{0}) async-start(%a), calls=%one
  ROOT %u = f32[8]{0} async-done(%t)
}""",
        (32 + 256 + 64, 2, 0, (("all-gather", 1), ("all-reduce", 1))),
    ),
}


@pytest.mark.parametrize("name", SNIPPETS)
def test_costs_of_snippets(name):
    text, expected = SNIPPETS[name]
    module = _audit_hlo.parse(HEAD + text)
    assert _audit_hlo.count(module) == expected
    assert module.aliases == {0: 2, 1: 0}


def test_what_cannot_be_counted_is_refused():
    with pytest.raises(ValueError, match="no HLO"):
        _audit_hlo.parse("HloModule m\n\n%f (x: f32[]) -> f32[] {\n  ROOT %x = f32[] parameter(0)\n}\n")
    loop = "HloModule m\n\nENTRY %e (x: f32[]) -> f32[] {\n  ROOT %g = f32[] while(), condition=%e, body=%e\n}\n"
    with pytest.raises(ValueError, match="unknown length"):
        _audit_hlo.count(_audit_hlo.parse(loop))


def test_program_of_known_cost():
    """Reads two arrays, writes one in place of the first, and a scalar."""
    step = jax.jit(lambda x, y: (x + 2 * y, jnp.float32(0)), donate_argnums=0)
    x = jax.ShapeDtypeStruct((1000,), jnp.float32)
    module = _audit_hlo.parse(step.lower(x, x).compile().as_text())
    cost = _audit_hlo.count(module)
    assert cost.bytes - 12_000 in (0, 4, 8)
    assert cost.launches - cost.copies == 1
    assert module.aliases == {0: 0}


def test_joined_tensors():
    assert join([(256, 256), (65_537,), (3, 2), (300, 300)]) == [(65_542,), (65_537,), (90_000,)]


@pytest.mark.parametrize("name", ALGORITHMS)
def test_least_bytes_are_those_of_the_state(name):
    """Parameters and what the state keeps for each are read and written, gradients read; by the clip once more."""
    algorithm = ALGORITHMS[name]
    shapes = split_groups(algorithm, [(64, 64)])
    _, (_, state, *_) = build(algorithm, shapes)
    kept = sum(leaf.size for leaf in jax.tree.leaves(state) if leaf.shape == (64, 64)) / 4096
    passes = {"recipe": 1, "adafactor": 3}.get(name, 0)
    assert algorithm.minimum == 4 * (2 + 1 + 2 * kept + passes)


@pytest.mark.parametrize("name", ALGORITHMS)
def test_elementwise_is_what_is_marked(name):
    algorithm = ALGORITHMS[name]
    made = Recipe(algorithm.make, algorithm.hyperparams)
    layout, numbers = made.split([{}])
    assert isinstance(made.build(layout.fill(numbers.tolist())), ElementwiseTransformation) == algorithm.elementwise


# In a JAX loop: bytes per parameter, launches, temporaries in the parameters' size, on one tensor of 4096 x 4096
ON_CPU = {
    "sgd": (12.0, 2, 0.0),
    "sgd momentum": (24.0, 3, 0.0),
    "sgd nesterov decay": (32.0, 3, 0.0),
    "adam": (40.0, 6, 0.0),
    "adamw": (40.0, 6, 0.0),
    "amsgrad": (52.0, 7, 0.0),
    "adagrad": (28.0, 3, 0.0),
    "rmsprop": (28.0, 3, 0.0),
    "rmsprop centered momentum": (56.0, 5, 0.0),
    "adadelta": (56.0, 5, 1.0),
    "adamax": (40.0, 5, 0.0),
    "nadam": (44.0, 9, 0.0),
    "radam": (40.0, 11, 0.0),
    "rprop": (68.0, 6, 2.0),
    "asgd": (24.0, 9, 0.0),
    "lion": (36.0, 4, 1.0),
    "adafactor": (44.0, 15, 1.0),
    "muon": (362.0, 60, 4.0),
    "recipe": (56.0, 14, 0.0),
}


@pytest.mark.skipif(jaxlib.__version__ != "0.10.2", reason="the figures recorded are those of jaxlib 0.10.2")
@pytest.mark.parametrize("name", ALGORITHMS)
def test_program_on_cpu(name):
    shapes = [_audit_report.ONE_TENSOR.shapes, ()][: 1 if ALGORITHMS[name].groups is None else 2]
    program = compile_update(ALGORITHMS[name], shapes, audit.devices("cpu", 1))
    figures = (
        round(program.bytes_per_param, 1),
        program.cost.launches,
        round(program.temporaries / (4 * program.params), 2),
    )
    assert figures == ON_CPU[name]
    assert (program.aliased, program.swapped) == (program.donated, 0)
    assert program.cost.collectives == ()


@pytest.mark.parametrize("name", [name for name, algorithm in ALGORITHMS.items() if algorithm.elementwise])
def test_the_bridge_moves_the_least_on_cpu(name):
    """On a list of tensors with the small ones joined, as on a GPU."""
    algorithm = ALGORITHMS[name]
    shapes = [join(group) for group in split_groups(algorithm, WORKLOADS["gpt2-block"].shapes)]
    program = compile_update(algorithm, shapes, audit.devices("cpu", 1), peer="bridge")
    assert program.bytes_per_param <= 1.01 * algorithm.minimum
    assert (program.aliased, program.swapped) == (program.donated, 0)
    assert program.temporaries <= _audit_report.MAX_SCALARS


def test_on_the_cpu_goals_are_for_the_bridge():
    rows = list(_audit_report.audit("cpu", audit.devices("cpu", 1), ["adamw"], ["one"]))
    assert {row.peer: row.verdict for row in rows} == {"funcopt": "", "optax": "", "bridge": "pass"}


def test_memory_taken_over_crosswise_costs_copies():
    """JAX pairs donated arguments with results of their shape in order, so an update has to keep its order."""
    x = jax.ShapeDtypeStruct((100_000,), jnp.float32)

    def update(param, state, grad):
        state = 0.9 * state + grad
        return param - 0.1 * state / (jnp.sqrt(jnp.abs(param)) + 1), state

    straight = jax.jit(update, donate_argnums=(0, 1))
    crosswise = jax.jit(lambda state, param, grad: update(param, state, grad), donate_argnums=(0, 1))
    costs = [_audit_hlo.count(_audit_hlo.parse(f.lower(x, x, x).compile().as_text())) for f in (straight, crosswise)]
    assert costs[1].bytes > costs[0].bytes


@pytest.mark.parametrize("name", ALGORITHMS)
def test_one_program_for_all_steps_and_numbers(name):
    algorithm = ALGORITHMS[name]
    step, arguments = build(algorithm, split_groups(algorithm, [(8, 4), (4, 4)]))
    params, state, grads, numbers = jax.tree.map(lambda x: np.full(x.shape, 0.5, x.dtype), arguments)
    state = jax.tree.map(lambda x: x if x.ndim else np.zeros_like(x), state)
    traced = []

    def traced_step(*arguments):
        traced.append(None)
        return step(*arguments)

    run = jax.jit(traced_step)
    with enable_x64(True):
        for i in range(3):
            params, state = run(params, state, grads, numbers + 0.01 * i)
    assert len(traced) == 1


@pytest.mark.parametrize("form", ["foreach", "fused"])
@pytest.mark.parametrize("name", [name for name, algorithm in ALGORITHMS.items() if algorithm.torch])
def test_torch_traffic(name, form):
    algorithm = ALGORITHMS[name]
    expected = getattr(algorithm, form)
    if expected is None:
        pytest.skip(f"torch has no {form} form")
    assert _audit_torch.traffic(algorithm, form) == pytest.approx(expected, rel=0.005)


# The goals that are missed as yet, by algorithm and list.
SHORT = {
    ("asgd", "gpt2-block"): ["18 launches for 4 large tensors"],  # eta and mu of each leaf
    # The norm of each leaf, two launches each; joined it would be one, and an all-gather where leaves are sharded.
    ("recipe", "gpt2-block"): ["20 launches for 4 large tensors"],
}


def test_programs_for_a_gpu(tmp_path):
    """Run as a command: JAX reads where the GPU compiler is when it starts."""
    if reason := audit.why_no_gpu():
        pytest.skip(reason)
    file = tmp_path / "rows.json"
    command = [sys.executable, "-m", "benchmarks.audit", "--device=h200", "--workloads", "one", "gpt2-block"]
    done = subprocess.run([*command, f"--json={file}"], cwd=Path(__file__).parents[2], capture_output=True, text=True)
    assert done.returncode == bool(SHORT), done.stderr
    rows = [_audit_report.Row(**row) for row in json.loads(file.read_text())]
    judged = {(row.algorithm, row.workload): row.shortfalls() for row in rows if row.has_goals}
    elementwise = [name for name, algorithm in ALGORITHMS.items() if algorithm.elementwise]
    assert set(judged) == {(name, workload) for name in elementwise for workload in ("one", "gpt2-block")}
    assert {place: missed for place, missed in judged.items() if missed} == SHORT

    several = {(row.algorithm, row.layout): row for row in rows if row.devices == 8 and row.peer == "funcopt"}
    for name in elementwise:
        least = ALGORITHMS[name].minimum
        assert several[name, "replicated"].bytes_per_param <= 1.01 * least
        assert several[name, "fsdp"].bytes_per_param <= 1.01 * least / 8
        assert several[name, "fsdp"].collectives == ({"all-reduce": 1} if name == "recipe" else {})
