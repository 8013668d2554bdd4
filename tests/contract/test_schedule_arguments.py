"""Laws of what schedules take for a number: one table of factories, crossed with kinds of numbers.

Each row gives a factory its values, which may be traced, and its lengths, which may not. The oracle is the schedule of
the same Python numbers.
"""

import inspect
import re
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import funcopt
from funcopt import plot, schedules
from funcopt.schedules import exponential_lr, linear_lr

STEPS = np.arange(45)

# A few roundings of float32, of the largest value.
FLOAT32 = 3e-6


class Row(NamedTuple):
    factory: str  # name in funcopt.schedules
    values: Mapping[str, float]
    lengths: Mapping[str, Any] = {}
    fixed: Mapping[str, Any] = {}  # what is no number
    part: str = ""  # attribute of what the factory returns: `momentum`
    adapt: Callable[[dict[str, Any]], dict[str, Any]] = dict  # puts values where they belong

    def make(self, **changes: Any) -> funcopt.Schedule:
        numbers = {**self.values, **self.lengths, **changes}
        made = getattr(schedules, self.factory)(**self.adapt(numbers), **self.fixed)
        return getattr(made, self.part) if self.part else made


def in_list(*names: str, into: str = "schedules") -> Callable[[dict[str, Any]], dict[str, Any]]:
    """Members of `schedules` that are numbers, and others around them."""

    def adapt(numbers: dict[str, Any]) -> dict[str, Any]:
        rest = {name: value for name, value in numbers.items() if name not in names}
        return {**rest, into: [*(numbers[name] for name in names), exponential_lr(0.3, 0.9)]}

    return adapt


def first_base(numbers: dict[str, Any]) -> dict[str, Any]:
    """`base` is the base value of a schedule that is the argument `schedule`."""
    rest = {name: value for name, value in numbers.items() if name != "base"}
    return {**rest, "schedule": linear_lr(numbers["base"], 0.5, 1.0, 10)}


def milestones(numbers: dict[str, Any]) -> dict[str, Any]:
    rest = {name: value for name, value in numbers.items() if not name.startswith("milestones")}
    return {**rest, "milestones": [numbers["milestones"], numbers["milestones_2"]]}


def joined(numbers: dict[str, Any]) -> dict[str, Any]:
    return milestones(in_list("first", "second")(numbers))


CYCLIC = {"base_lr": 0.01, "max_lr": 0.3, "base_momentum": 0.8, "max_momentum": 0.9}
ONE_CYCLE = {
    "max_lr": 0.3,
    "base_momentum": 0.8,
    "max_momentum": 0.9,
    "div_factor": 20.0,
    "final_div_factor": 50.0,
    "pct_start": 0.33,
}
JOINED = {"milestones": 4, "milestones_2": 20}

ROWS = {
    "constant": Row("constant_lr", {"base_lr": 0.3, "factor": 0.25}, {"total_iters": 7}),
    "linear": Row("linear_lr", {"base_lr": 0.3, "start_factor": 0.25, "end_factor": 0.8}, {"total_iters": 7}),
    "polynomial": Row("polynomial_lr", {"base_lr": 0.3, "power": 1.5}, {"total_iters": 30}),
    "step": Row("step_lr", {"base_lr": 0.3, "gamma": 0.5}, {"step_size": 7}),
    "multi_step": Row("multi_step_lr", {"base_lr": 0.3, "gamma": 0.5}, JOINED, adapt=milestones),
    "exponential": Row("exponential_lr", {"base_lr": 0.3, "gamma": 0.9}),
    "exponential_negative": Row("exponential_lr", {"base_lr": 0.3, "gamma": -0.9}),
    "cosine": Row("cosine_annealing_lr", {"base_lr": 0.3, "eta_min": 0.01}, {"T_max": 25}),
    "restarts": Row("cosine_annealing_warm_restarts", {"base_lr": 0.3, "eta_min": 0.01}, {"T_0": 7, "T_mult": 2}),
    "restarts_equal": Row("cosine_annealing_warm_restarts", {"base_lr": 0.3, "eta_min": 0.01}, {"T_0": 7, "T_mult": 1}),
    "lambda": Row("lambda_lr", {"base_lr": 0.3}, fixed={"lr_lambda": lambda step: 1.0 / (1 + step)}),
    "multiplicative": Row("multiplicative_lr", {"base_lr": 0.3}, fixed={"lr_lambda": lambda step: 1.0 - 0.1 / step}),
    "multiplicative_table": Row(
        "multiplicative_lr", {"base_lr": 0.3}, {"total_iters": 30}, {"lr_lambda": lambda step: 1.0 - 0.1 / step}
    ),
    "cyclic": Row("cyclic_lr", CYCLIC, {"step_size_up": 5, "step_size_down": 8}, {"mode": "triangular2"}),
    "cyclic_exp": Row("cyclic_lr", {**CYCLIC, "gamma": 0.9}, {"step_size_up": 5}, {"mode": "exp_range"}),
    "cyclic_scale_fn": Row("cyclic_lr", CYCLIC, {"step_size_up": 5}, {"scale_fn": lambda cycle: 1 / cycle}),
    "cyclic_momentum": Row(
        "cyclic_lr", {**CYCLIC, "gamma": 0.9}, {"step_size_up": 5}, {"mode": "exp_range"}, "momentum"
    ),
    "one_cycle": Row("one_cycle_lr", ONE_CYCLE, {"total_steps": 40}),
    "one_cycle_three": Row("one_cycle_lr", ONE_CYCLE, {"epochs": 10, "steps_per_epoch": 4}, {"three_phase": True}),
    "one_cycle_momentum": Row(
        "one_cycle_lr", ONE_CYCLE, {"total_steps": 40}, {"anneal_strategy": "linear"}, "momentum"
    ),
    "sequential": Row("sequential_lr", {"first": 0.1, "second": 0.2}, JOINED, adapt=joined),
    "join": Row("join", {"first": 0.1, "second": 0.2}, JOINED, {"continuous": True}, adapt=joined),
    "join_global": Row("join", {"first": 0.1, "second": 0.2}, JOINED, {"restart": False}, adapt=joined),
    "chained": Row("chained_scheduler", {"base_lr": 0.3, "first": 0.5}, adapt=in_list("first")),
    "scale": Row("scale", {"schedule": 0.3, "factor": 0.5}),
    "scale_of_schedule": Row("scale", {"base": 0.3, "factor": 0.5}, adapt=first_base),
    "clip": Row("clip", {"base": 0.3, "floor": 0.16, "ceiling": 0.27}, adapt=first_base),
    "clip_of_number": Row("clip", {"schedule": 0.3, "floor": 0.16}),
    "by_epoch": Row("by_epoch", {"base": 0.3}, {"steps_per_epoch": 3}, {"fractional": True}, adapt=first_base),
    "warmup": Row("warmup", {"base": 0.3, "start_factor": 0.1}, {"warmup_steps": 7}, adapt=first_base),
    "warmup_of_number": Row("warmup", {"schedule": 0.3, "start_factor": 0.1}, {"warmup_steps": 7}, {"restart": False}),
    "cooldown": Row(
        "cooldown", {"base": 0.3, "end_lr": 0.01}, {"start_step": 20, "cooldown_steps": 9}, adapt=first_base
    ),
    "warmup_cosine": Row(
        "warmup_cosine", {"base_lr": 0.3, "end_lr": 0.01, "start_factor": 0.1}, {"warmup_steps": 7, "total_steps": 40}
    ),
    "wsd": Row(
        "wsd",
        {"base_lr": 0.3, "end_lr": 0.01, "start_factor": 0.1},
        {"warmup_steps": 7, "stable_steps": 9, "decay_steps": 11},
        {"shape": "exponential"},
    ),
    "inverse_sqrt": Row("inverse_sqrt", {"base_lr": 0.3, "start_factor": 0.1}, {"warmup_steps": 7}),
    "inverse_sqrt_timescale": Row(
        "inverse_sqrt", {"base_lr": 0.3, "start_factor": 0.1, "timescale": 5.0}, {"warmup_steps": 7}
    ),
    "cycles": Row(
        "cycles",
        {"base_lr": 0.3, "end_lr": 0.01, "cycle_decay": 0.7, "k_decay": 1.5},
        {"cycle_steps": 9, "cycle_limit": 3},
    ),
    "cycles_longer": Row(
        "cycles",
        {"base_lr": 0.3, "end_lr": 0.01, "cycle_decay": 0.7, "k_decay": 1.5},
        {"cycle_steps": 9, "cycle_mul": 2},
        {"shape": "sqrt"},
    ),
    **{
        f"ramp_{shape if isinstance(shape, str) else 'own'}": Row(
            "ramp", {"start_value": 0.3, "end_value": 0.01}, {"steps": 30}, {"shape": shape}
        )
        for shape in ("linear", "cosine", "exponential", "constant", "sqrt", "square", lambda share: share**3)
    },
}

every_row = pytest.mark.parametrize("row", ROWS.values(), ids=ROWS.keys())
every_value = pytest.mark.parametrize(
    ("row", "name"),
    [(row, name) for row in ROWS.values() for name in row.values],
    ids=[f"{label}-{name}" for label, row in ROWS.items() for name in row.values],
)
every_length = pytest.mark.parametrize(
    ("row", "name"),
    [(row, name) for row in ROWS.values() for name in row.lengths],
    ids=[f"{label}-{name}" for label, row in ROWS.items() for name in row.lengths],
)


def test_every_number_that_a_factory_takes_is_in_a_row() -> None:
    for name, factory in vars(schedules).items():
        if not inspect.isfunction(factory) or name == "describe":
            continue
        rows = [row for row in ROWS.values() if row.factory == name]
        covered = {argument for row in rows for argument in row.adapt({**row.values, **row.lengths})}
        numeric = {
            argument
            for argument, parameter in inspect.signature(factory).parameters.items()
            if re.search(r"\b(float|int)\b", str(parameter.annotation))
        }
        assert numeric <= covered, name


@every_value
def test_mapped_over(row: Row, name: str) -> None:
    values = jnp.asarray([row.values[name], row.values[name] * 0.9], jnp.float32)
    expected = np.stack([row.make(**{name: float(value)})(STEPS) for value in values])
    allowed = FLOAT32 * np.abs(expected).max()
    at_all = jax.vmap(lambda value: row.make(**{name: value})(STEPS))(values)
    at_traced = jax.jit(jax.vmap(lambda value: row.make(**{name: value})(jnp.asarray(STEPS))))(values)
    for mapped in (at_all, at_traced):
        assert mapped.dtype == jnp.float32
        assert not mapped.weak_type
        np.testing.assert_allclose(mapped, expected, rtol=0, atol=allowed)
    for step in (0, 13):
        at_one = jax.vmap(lambda value, step=step: row.make(**{name: value})(step))(values)
        np.testing.assert_allclose(at_one, expected[:, step], rtol=0, atol=allowed)


@every_row
def test_mapped_over_everything_in_float64(row: Row) -> None:
    with jax.enable_x64(True):
        mapped = jax.vmap(lambda values: row.make(**values)(STEPS))(jax.tree.map(lambda x: jnp.full(1, x), row.values))
        assert mapped.dtype == jnp.float64
        # A power of a traced base: an error of 1e-16 in the exponent, times its size.
        np.testing.assert_allclose(mapped[0], row.make()(STEPS), rtol=1e-13, atol=1e-16)


@every_row
def test_differentiated(row: Row) -> None:
    with jax.enable_x64(True):
        derivatives = jax.jacobian(lambda values: row.make(**values)(STEPS))(row.values)
        at_one = jax.grad(lambda values: row.make(**values)(13))(row.values)
    for name, value in row.values.items():
        higher, lower = (row.make(**{name: value + offset})(STEPS) for offset in (1e-6, -1e-6))
        # Central differences: 1e-12 from the third derivative, 1e-16 / 1e-6 from rounding.
        np.testing.assert_allclose(derivatives[name], (higher - lower) / 2e-6, rtol=1e-6, atol=1e-8, err_msg=name)
        np.testing.assert_allclose(at_one[name], derivatives[name][13], rtol=1e-12, atol=1e-15, err_msg=name)


@every_value
def test_concrete_values_are_as_good_as_pythons(row: Row, name: str) -> None:
    for kind in (np.float16, np.float32, np.float64, np.array, lambda x: np.array([x]), jnp.float32, jnp.bfloat16):
        value = kind(row.values[name])
        own = row.make(**{name: value})
        reference = row.make(**{name: float(np.asarray(value).reshape(()))})
        np.testing.assert_array_equal(own(STEPS), reference(STEPS))
        assert own(STEPS).dtype == np.float64
        assert type(own(13)) is np.float64
    np.testing.assert_array_equal(own(jnp.asarray(STEPS)), reference(jnp.asarray(STEPS)))


@every_length
def test_lengths_of_any_integer_type(row: Row, name: str) -> None:
    reference, steps = row.make(), np.append(STEPS, 1000)  # beyond 8 bits
    for kind in (np.int8, np.uint8, np.int32, np.int64, np.array, jnp.int32, jnp.int8):
        own = row.make(**{name: kind(row.lengths[name])})
        np.testing.assert_array_equal(own(steps), reference(steps))
    np.testing.assert_array_equal(own(jnp.asarray(steps)), reference(jnp.asarray(steps)))


@every_length
def test_lengths_are_not_traced(row: Row, name: str) -> None:
    shown = r"milestones\[\d\]" if name.startswith("milestones") else name
    owner = rf"({row.factory}|warmup|cooldown|join|ramp)"
    with pytest.raises(TypeError, match=rf"{owner}: {shown} must be a number that is known before tracing, got "):
        jax.vmap(lambda length: row.make(**{name: length})(3))(jnp.asarray([row.lengths[name]]))


@every_value
def test_values_are_single_numbers(row: Row, name: str) -> None:
    pair = jnp.asarray([row.values[name]] * 2)
    with pytest.raises(ValueError, match=r"must be (one number, got (.|\n)*jax.vmap|a float in \[0, 1\])"):
        row.make(**{name: pair})
    with pytest.raises(ValueError, match=r"must be one number, got .*jax.vmap"):
        jax.vmap(lambda pair: row.make(**{name: pair}))(pair[None])


def test_traced_values_pass_unchecked_and_concrete_ones_are_checked() -> None:
    with pytest.raises(ValueError, match=r"constant_lr: factor must be in \[0, 1\], got 1.5"):
        schedules.constant_lr(1.0, jnp.float32(1.5))  # pyright: ignore[reportArgumentType]
    assert jax.vmap(lambda factor: schedules.constant_lr(1.0, factor)(0))(jnp.asarray([1.5])).tolist() == [1.5]
    with pytest.raises(TypeError, match="step_lr: base_lr must be a number"):
        jax.vmap(lambda flag: schedules.step_lr(flag, 3))(jnp.asarray([True]))


def test_members_that_are_traced_at_concrete_steps() -> None:
    """In a jitted function an optax schedule, or the user's own function, gives traced values for Python numbers."""
    own: funcopt.Schedule = lambda step: jnp.where(step < 3, 1.0, 0.5)  # noqa: E731
    factories = [
        lambda: schedules.warmup(own, 2, start_factor=0.1),
        lambda: schedules.cooldown(own, 5, 4),
        lambda: schedules.join([0.1, own], [2], continuous=True),
        lambda: schedules.clip(own, 0.6),
        lambda: schedules.lambda_lr(0.3, own),
        lambda: schedules.multiplicative_lr(0.3, own),
        lambda: schedules.multiplicative_lr(0.3, own, total_iters=5),
        lambda: schedules.ramp(0.3, 0.1, 5, own),
    ]
    for make in factories:
        for steps in (4, np.arange(8)):
            np.testing.assert_allclose(jax.jit(lambda m=make, s=steps: m()(s))(), make()(steps), rtol=FLOAT32)


def test_what_is_traced_is_not_remembered() -> None:
    schedule = schedules.multiplicative_lr(1.0, lambda step: jnp.where(step < 3, 1.0, 0.5))
    assert jax.jit(lambda: schedule(4))() == 0.25
    assert schedule(4) == 0.25
    assert schedule(3) == 0.5


def test_schedule_in_an_optimizer_is_mapped_over_its_peak() -> None:
    params, grads = {"w": jnp.ones(2)}, {"w": jnp.asarray([0.5, -1.0])}

    def train(peak: Any) -> Any:
        tx = funcopt.adamw(schedules.warmup_cosine(peak, 2, 10), weight_decay=0.1)
        now, state = params, tx.init(params)
        for _ in range(4):
            updates, state = tx.update(grads, state, now)
            now = funcopt.apply_updates(now, updates)
        return now["w"], funcopt.current_hyperparams(state)["lr"]

    peaks = [0.1, 0.2, 0.4]
    mapped, lrs = jax.vmap(train)(jnp.asarray(peaks))
    for i, peak in enumerate(peaks):
        for kind in (float, jnp.float32, np.array):
            alone, lr = train(kind(peak))
            np.testing.assert_allclose(mapped[i], alone, rtol=1e-6)
            np.testing.assert_allclose(lrs[i], lr, rtol=1e-6)


def test_what_is_traced_is_not_described() -> None:
    for name, look in {"describe": schedules.describe, "plot.schedules": plot.schedules}.items():
        with pytest.raises(TypeError, match=f"{name}: schedule must have values that are known"):
            jax.vmap(lambda peak, look=look: look(linear_lr(peak), 10) and peak)(jnp.ones(2))
    assert schedules.describe(linear_lr(np.float32(0.5)), np.int32(10)).rows[-1] == (10, 0.5)  # pyright: ignore[reportArgumentType]
