"""Laws that every schedule obeys, whatever its values: one table of cases."""

import inspect
import subprocess
import sys
import textwrap
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from funcopt import Schedule, schedules

STEPS = np.arange(60)


class Case(NamedTuple):
    factory: str  # name in funcopt.schedules
    make: Callable[[], Schedule]
    float32: float = 2e-6  # error allowed in float32, relative to the largest value


def _momentum(cycle: schedules.CycledSchedule) -> Schedule:
    assert cycle.momentum is not None
    return cycle.momentum


CASES = {
    "constant": Case("constant_lr", lambda: schedules.constant_lr(0.3)),
    "linear": Case("linear_lr", lambda: schedules.linear_lr(0.3, 0.1, 1.0, 20)),
    "polynomial": Case("polynomial_lr", lambda: schedules.polynomial_lr(0.3, 40, 2.5)),
    "step": Case("step_lr", lambda: schedules.step_lr(0.3, 7, 0.9)),
    "step_fractional": Case("step_lr", lambda: schedules.step_lr(0.3, 2.5, 0.9)),  # pyright: ignore[reportArgumentType]
    "step_gamma_0": Case("step_lr", lambda: schedules.step_lr(0.3, 7, 0.0)),
    "multi_step": Case("multi_step_lr", lambda: schedules.multi_step_lr(0.3, [3, 30, 30])),
    "multi_step_none": Case("multi_step_lr", lambda: schedules.multi_step_lr(0.3, [])),
    "exponential": Case("exponential_lr", lambda: schedules.exponential_lr(0.3, 0.9)),
    "cosine": Case("cosine_annealing_lr", lambda: schedules.cosine_annealing_lr(0.3, 25, 0.01)),
    "restarts": Case("cosine_annealing_warm_restarts", lambda: schedules.cosine_annealing_warm_restarts(0.3, 7)),
    "restarts_longer": Case(
        "cosine_annealing_warm_restarts", lambda: schedules.cosine_annealing_warm_restarts(0.3, 7, 2, 0.01)
    ),
    "lambda": Case("lambda_lr", lambda: schedules.lambda_lr(0.3, lambda step: 1.0 / (1 + step))),
    "lambda_of_constant": Case("lambda_lr", lambda: schedules.lambda_lr(0.3, lambda step: 1)),
    "multiplicative": Case(
        "multiplicative_lr", lambda: schedules.multiplicative_lr(0.3, lambda step: 1.0 - 1.0 / (1 + step) ** 2), 1e-5
    ),
    "multiplicative_table": Case(
        "multiplicative_lr", lambda: schedules.multiplicative_lr(0.3, lambda step: 1.0 - 0.1 / step, total_iters=50)
    ),
    "cyclic": Case("cyclic_lr", lambda: schedules.cyclic_lr(0.01, 0.3, 5, 8, mode="triangular2")),
    "cyclic_exp": Case("cyclic_lr", lambda: schedules.cyclic_lr(0.01, 0.3, 5, mode="exp_range", gamma=0.9)),
    "cyclic_sawtooth": Case("cyclic_lr", lambda: schedules.cyclic_lr(0.01, 0.3, 5, 0)),
    "cyclic_scale_fn": Case("cyclic_lr", lambda: schedules.cyclic_lr(0.01, 0.3, 5, scale_fn=lambda cycle: 1 / cycle)),
    "cyclic_momentum": Case("cyclic_lr", lambda: _momentum(schedules.cyclic_lr(0.01, 0.3, 5))),
    "one_cycle": Case("one_cycle_lr", lambda: schedules.one_cycle_lr(0.3, 50)),
    "one_cycle_three": Case(
        "one_cycle_lr", lambda: schedules.one_cycle_lr(0.3, 50, three_phase=True, anneal_strategy="linear")
    ),
    "one_cycle_momentum": Case("one_cycle_lr", lambda: _momentum(schedules.one_cycle_lr(0.3, 50))),
    "sequential": Case(
        "sequential_lr",
        lambda: schedules.sequential_lr(
            [schedules.linear_lr(0.3), schedules.lambda_lr(0.3, lambda step: 0.9**step), schedules.step_lr(0.3, 4)],
            [5, 30],
        ),
    ),
    "chained": Case(
        "chained_scheduler",
        lambda: schedules.chained_scheduler(0.3, [schedules.constant_lr(1.0), schedules.exponential_lr(1.0, 0.9)]),
    ),
    "join": Case(
        "join", lambda: schedules.join([0.1, schedules.exponential_lr(0.3, 0.9), 0.2], [5, 30], continuous=True)
    ),
    "join_global": Case("join", lambda: schedules.join([0.1, schedules.exponential_lr(0.3, 0.9)], [30], restart=False)),
    "scale": Case("scale", lambda: schedules.scale(schedules.linear_lr(0.3), schedules.exponential_lr(1.0, 0.9))),
    "clip": Case("clip", lambda: schedules.clip(schedules.exponential_lr(0.3, 0.9), 0.05, 0.2)),
    "by_epoch": Case("by_epoch", lambda: schedules.by_epoch(schedules.step_lr(0.3, 2), 7)),
    "by_epoch_fractional": Case(
        "by_epoch",
        lambda: schedules.by_epoch(schedules.cosine_annealing_warm_restarts(0.3, 1, 2), 7, fractional=True),
    ),
    "ramp": Case("ramp", lambda: schedules.ramp(0.3, 0.01, 40)),
    "ramp_cosine": Case("ramp", lambda: schedules.ramp(0.3, 0.01, 40, "cosine")),
    "ramp_exponential": Case("ramp", lambda: schedules.ramp(0.3, 0.01, 40, "exponential")),
    "ramp_constant": Case("ramp", lambda: schedules.ramp(0.3, 0.01, 40, "constant")),
    "ramp_sqrt": Case("ramp", lambda: schedules.ramp(0.3, 0.01, 40, "sqrt")),
    "ramp_square": Case("ramp", lambda: schedules.ramp(0.3, 0.01, 40, "square")),
    "ramp_own": Case("ramp", lambda: schedules.ramp(0.3, 0.01, 40, lambda share: share**3)),
    "warmup": Case("warmup", lambda: schedules.warmup(schedules.step_lr(0.3, 10), 9, start_factor=0.1)),
    "cooldown": Case("cooldown", lambda: schedules.cooldown(schedules.exponential_lr(0.3, 0.99), 40, 10)),
    "warmup_cosine": Case("warmup_cosine", lambda: schedules.warmup_cosine(0.3, 10, 50, 0.01)),
    "wsd": Case("wsd", lambda: schedules.wsd(0.3, 10, 20, 20, end_lr=0.01, shape="sqrt")),
    "inverse_sqrt": Case("inverse_sqrt", lambda: schedules.inverse_sqrt(0.3, 10)),
    "cycles": Case("cycles", lambda: schedules.cycles(0.3, 10, 0.01, cycle_decay=0.5, cycle_limit=4, k_decay=1.5)),
    "cycles_longer": Case("cycles", lambda: schedules.cycles(0.3, 10, cycle_mul=1.5, cycle_limit=3)),
}

every_schedule = pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())


def test_every_public_factory_has_a_case() -> None:
    functions = {name for name, value in vars(schedules).items() if inspect.isfunction(value)}
    assert functions - {case.factory for case in CASES.values()} == {"describe"}


@every_schedule
def test_concrete_steps_of_any_type_give_float64(case: Case) -> None:
    schedule = case.make()
    for step in (0, 13, 59):
        values = [schedule(kind(step)) for kind in (int, float, np.int64, np.int32, np.float32, np.asarray)]
        assert {type(value) for value in values} == {np.float64}
        assert len({float(value) for value in values}) == 1


@every_schedule
def test_array_of_steps_is_the_values_of_the_steps(case: Case) -> None:
    schedule = case.make()
    values = schedule(STEPS)
    assert values.dtype == np.float64
    # numpy's vector code of pow and cos differs from its scalar code in the last digit.
    np.testing.assert_allclose(values, [schedule(int(step)) for step in STEPS], rtol=1e-14, atol=1e-16)
    np.testing.assert_array_equal(schedule(STEPS.reshape(3, 20)), values.reshape(3, 20))
    np.testing.assert_array_equal(schedule(STEPS.tolist()), values)
    assert schedule(np.zeros((0,), int)).shape == (0,)
    values[0] = 1.0  # the caller's own


@every_schedule
def test_values_depend_on_the_step_alone(case: Case) -> None:
    schedule, another = case.make(), case.make()
    backwards = [another(int(step)) for step in STEPS[::-1]]
    assert [schedule(int(step)) for step in STEPS] == backwards[::-1]
    assert [schedule(int(step)) for step in STEPS] == backwards[::-1]


@every_schedule
def test_jax_with_x64_equals_numpy(case: Case) -> None:
    schedule = case.make()
    with jax.enable_x64(True):
        values = schedule(jnp.asarray(STEPS))
        assert values.dtype == jnp.float64
        # Powers go through a logarithm there: an error of 1e-16 in the exponent, times its size.
        np.testing.assert_allclose(values, schedule(STEPS), rtol=1e-12, atol=1e-15)


@every_schedule
def test_jax_without_x64_is_float32(case: Case) -> None:
    schedule = case.make()
    expected = schedule(STEPS)
    values = schedule(jnp.asarray(STEPS))
    assert values.dtype == jnp.float32
    assert not values.weak_type
    np.testing.assert_allclose(values, expected, rtol=0, atol=case.float32 * np.abs(expected).max())


@pytest.mark.parametrize("dtype", [jnp.uint8, jnp.uint32, jnp.int8, jnp.bfloat16, jnp.float16])
@pytest.mark.parametrize("name", ["linear", "sequential", "lambda", "by_epoch_fractional"])
def test_jax_steps_of_any_type_count_in_full(name: str, dtype: Any) -> None:
    schedule = CASES[name].make()
    np.testing.assert_array_equal(schedule(jnp.asarray(STEPS, dtype)), schedule(jnp.asarray(STEPS, jnp.int32)))


@every_schedule
def test_jit_compiles_once_and_equals_eager(case: Case) -> None:
    schedule = case.make()
    traces = []

    @jax.jit
    def compiled(step: jax.Array) -> jax.Array:
        traces.append(step)
        return schedule(step)

    values = [compiled(jnp.int32(step)) for step in (0, 5, 13, 59)]
    assert len(traces) == 1
    assert all(value.shape == () and value.dtype == jnp.float32 for value in values)
    eager = [schedule(jnp.int32(step)) for step in (0, 5, 13, 59)]
    # Compiled code may differ in the last digits of float32: contracted multiplications, reciprocals.
    np.testing.assert_allclose(values, eager, rtol=0, atol=case.float32 * np.abs(schedule(STEPS)).max())


@every_schedule
def test_scan_and_vmap(case: Case) -> None:
    schedule = case.make()
    expected = schedule(STEPS)
    _, scanned = jax.lax.scan(lambda step, _: (step + 1, schedule(step)), jnp.int32(0), length=len(STEPS))
    mapped = jax.vmap(schedule)(jnp.asarray(STEPS))
    for values in (scanned, mapped):
        np.testing.assert_allclose(values, expected, rtol=0, atol=case.float32 * np.abs(expected).max())


def test_concrete_steps_start_no_jax_backend() -> None:
    program = """
        import sys
        from funcopt import schedules as s
        warm = s.warmup(s.cyclic_lr(0.1, 0.2, 5), 4, shape="cosine")
        whole = s.by_epoch(s.join([warm, s.lambda_lr(0.1, lambda step: 0.9**step)], [20], continuous=True), 3)
        [whole(step) for step in range(100)], whole(range(100))
        s.describe(s.step_lr(0.1, 30), 90)
        assert "torch" not in sys.modules and "matplotlib" not in sys.modules
        {use_jax}
    """
    # The platform does not exist, so that the first use of a backend fails.
    environment = {"JAX_PLATFORMS": "none", "PYTHONPATH": ":".join(path or "." for path in sys.path)}
    for use_jax, passes in (("", True), ("s.step_lr(0.1, 30)(__import__('jax').numpy.zeros(()))", False)):
        code = textwrap.dedent(program).format(use_jax=use_jax)
        result = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
        assert (result.returncode == 0) == passes, result.stderr
