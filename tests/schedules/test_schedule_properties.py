"""Properties over random arguments, long runs in float32, and schedules at work in an optimizer."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import funcopt
from funcopt import Schedule, schedules

quick = settings(max_examples=30, deadline=None, derandomize=True)
positive = st.floats(1e-4, 10.0)
lengths = st.integers(1, 60)
steps = st.integers(0, 10_000)


@st.composite
def any_schedule(draw: st.DrawFn) -> Schedule:
    base, length, factor = draw(positive), draw(lengths), draw(st.floats(0.1, 1.0))
    made: list[Schedule] = [
        schedules.linear_lr(base, factor, 1.0, length),
        schedules.step_lr(base, length, factor),
        schedules.cosine_annealing_lr(base, length, factor * base),
        schedules.cosine_annealing_warm_restarts(base, length, 1 + length % 3, factor * base),
        schedules.cyclic_lr(factor * base, base, length, mode="triangular2"),
        schedules.one_cycle_lr(base, 2 + length, pct_start=0.7 * factor, div_factor=1 + 9 * factor),
        schedules.cycles(base, length, factor * base, cycle_mul=1.0 + factor, cycle_decay=0.9, k_decay=2 * factor),
        schedules.warmup(schedules.exponential_lr(base, 0.99), length, start_factor=factor, shape="exponential"),
        schedules.wsd(base, length, length, length, shape="square"),
    ]
    return draw(st.sampled_from(made))


@quick
@given(any_schedule(), st.lists(steps, min_size=1, max_size=20))
def test_vectorised_equals_scalar(schedule: Schedule, at: list[int]) -> None:
    # Next to a minimum of 0, the last digit of a cosine is 1e-16 of the largest value, 10.
    np.testing.assert_allclose(schedule(np.asarray(at)), [schedule(step) for step in at], rtol=1e-13, atol=1e-14)


@quick
@given(any_schedule(), steps)
def test_jit_with_x64_equals_numpy(schedule: Schedule, step: int) -> None:
    with jax.enable_x64(True):
        np.testing.assert_allclose(jax.jit(schedule)(step), schedule(step), rtol=1e-11, atol=1e-13)


@quick
@given(any_schedule(), positive, positive, steps)
def test_scaling_a_schedule_scales_its_floor(schedule: Schedule, floor: float, factor: float, step: int) -> None:
    outside = schedules.scale(schedules.clip(schedule, floor), factor)
    inside = schedules.clip(schedules.scale(schedule, factor), floor * factor)
    np.testing.assert_allclose(outside(step), inside(step), rtol=1e-15)
    assert outside(step) >= floor * factor * (1 - 1e-15)


@quick
@given(any_schedule(), any_schedule(), st.integers(0, 200), steps)
def test_join_is_each_member_in_its_turn(first: Schedule, second: Schedule, milestone: int, step: int) -> None:
    for restart, offset in ((True, milestone), (False, 0)):
        joined = schedules.join([first, second], [milestone], restart=restart)
        assert joined(step) == (first(step) if step < milestone else second(step - offset))
    assert schedules.join([first], [])(step) == first(step)


@quick
@given(any_schedule(), st.integers(0, 200), st.integers(0, 200), steps)
def test_join_of_joins_is_one_join(inner: Schedule, early: int, later: int, step: int) -> None:
    nested = schedules.join([schedules.join([inner, 0.1], [early]), inner], [early + later])
    assert nested(step) == schedules.join([inner, 0.1, inner], [early, early + later])(step)


@quick
@given(positive, positive, positive, st.integers(1, 100), st.integers(0, 100))
def test_continuous_join_has_no_jump(a: float, b: float, c: float, milestone: int, distance: int) -> None:
    members: list[Schedule] = [schedules.exponential_lr(base, 0.999) for base in (a, b, c)]
    joined = schedules.join(members, [milestone, milestone + distance], continuous=True)
    # The factors carry each member to where the one before it has come, so the whole decays as one.
    np.testing.assert_allclose(joined(np.arange(300)), members[0](np.arange(300)), rtol=1e-12)


@quick
@given(any_schedule(), st.integers(1, 100), st.integers(0, 100), st.integers(0, 99))
def test_by_epoch_holds_within_an_epoch(schedule: Schedule, per_epoch: int, epoch: int, update: int) -> None:
    step = epoch * per_epoch + update % per_epoch
    assert schedules.by_epoch(schedule, per_epoch)(step) == schedule(epoch)
    assert schedules.by_epoch(schedule, per_epoch, fractional=True)(epoch * per_epoch) == schedule(epoch)


@pytest.mark.parametrize(
    "schedule",
    [
        schedules.exponential_lr(1.0, 0.99999),
        schedules.step_lr(1.0, 7, 0.99995),
        schedules.cosine_annealing_lr(1.0, 1013),
        schedules.cosine_annealing_warm_restarts(1.0, 1000, 2),
        schedules.cosine_annealing_warm_restarts(1.0, 997),
        schedules.cyclic_lr(0.1, 1.0, 1000, 900),
        schedules.by_epoch(schedules.cosine_annealing_warm_restarts(1.0, 1, 2), 997, fractional=True),
        schedules.warmup_cosine(1.0, 10_000, 30_000_000),
        schedules.inverse_sqrt(1.0, 1000),
        schedules.join([1.0, schedules.cosine_annealing_lr(1.0, 100)], [16_777_217]),
    ],
)
def test_float32_counts_beyond_its_own_integers(schedule: Schedule) -> None:
    # 2**24 + 1 is no float32. The error is a few roundings, not that of a power of a rounded base (0.6 % here).
    near = np.asarray([2**24, 2**25 - 3])[:, None] + np.arange(-3, 20)
    at = np.concatenate([np.arange(0, 300_000, 997), near.ravel()])
    np.testing.assert_allclose(jax.jit(schedule)(jnp.asarray(at)), schedule(at), rtol=0, atol=2e-5)


@pytest.mark.parametrize("per_epoch", [7, 41, 47, 49, 83, 997])
def test_compiled_fractional_epochs_restart_exactly(per_epoch: int) -> None:
    # XLA multiplies by the reciprocal of a constant: 49 * (1 / 49) is less than 1 in float32, the cycle before.
    epochs = np.arange(200)
    restarts = schedules.cosine_annealing_warm_restarts(1.0, 1)
    by_update = jax.jit(schedules.by_epoch(restarts, per_epoch, fractional=True))
    np.testing.assert_array_equal(by_update(jnp.asarray(epochs * per_epoch)), 1.0)
    per_cycle = jax.jit(schedules.cosine_annealing_warm_restarts(1.0, per_epoch))
    np.testing.assert_array_equal(per_cycle(jnp.asarray(epochs * per_epoch)), 1.0)


def test_members_may_be_optax_schedules() -> None:
    joined = schedules.join([optax.linear_schedule(0.0, 1.0, 4), optax.cosine_decay_schedule(1.0, 8)], [4])
    np.testing.assert_allclose(joined(np.arange(13)), schedules.warmup_cosine(1.0, 4, 12)(np.arange(13)), atol=1e-7)


def test_member_is_asked_for_its_own_turn_only() -> None:
    table = [0.1, 0.2, 0.3]
    early: Schedule = schedules.lambda_lr(1.0, lambda step: table[step])
    joined = schedules.join([early, 1.0], [3])
    assert [joined(step) for step in range(5)] == [0.1, 0.2, 0.3, 1.0, 1.0]


def test_member_of_a_vectorised_join_sees_no_step_of_others() -> None:
    seen: list[int] = []
    first, second = (schedules.lambda_lr(1.0, lambda step: seen.append(step) or 1.0) for _ in range(2))
    schedules.join([first, second], [4], restart=False)(np.arange(9))
    assert (min(seen[:9]), max(seen[:9]), min(seen[9:]), max(seen[9:])) == (0, 4, 4, 8)


def test_lambda_gets_python_numbers() -> None:
    seen: list[Any] = []
    schedule = schedules.lambda_lr(1.0, lambda step: seen.append(step) or 1.0)
    for step in (3, np.int32(3), 2.5, np.arange(2)):
        schedule(step)
    schedules.sequential_lr([schedules.linear_lr(1.0), schedule], [5])(np.int64(7))
    assert seen == [3, 3, 2.5, 0, 1, 2]
    assert [type(step) for step in seen] == [int, int, float, int, int, int]


def test_multiplicative_asks_for_each_factor_once() -> None:
    seen: list[int] = []
    schedule = schedules.multiplicative_lr(1.0, lambda step: seen.append(step) or 0.5)
    assert [schedule(step) for step in (3, 0, 2, 4, 4)] == [0.125, 1.0, 0.25, 0.0625, 0.0625]
    assert seen == [1, 2, 3, 4]


@pytest.mark.parametrize("make", [lambda: schedules.cyclic_lr(0.01, 0.1, 3), lambda: schedules.one_cycle_lr(0.1, 10)])
def test_cycle_drives_an_optimizer(make: Any) -> None:
    cycle = make()
    params, grads = jnp.ones(3), jnp.asarray([0.1, -0.2, 0.3])
    scheduled = funcopt.adam(lr=cycle, betas=(cycle.momentum, 0.99))

    @jax.jit
    def update(params: Any, state: Any) -> Any:
        updates, state = scheduled.update(grads, state, params)
        return funcopt.apply_updates(params, updates), state

    state = scheduled.init(params)
    plain, plain_state = params, state
    for step in range(8):
        params, state = update(params, state)
        by_hand = funcopt.adam(lr=float(cycle(step)), betas=(float(cycle.momentum(step)), 0.99))
        fresh = by_hand.init(plain) if step == 0 else plain_state
        updates, plain_state = by_hand.update(grads, fresh, plain)
        plain = funcopt.apply_updates(plain, updates)
    np.testing.assert_allclose(params, plain, rtol=1e-6)
