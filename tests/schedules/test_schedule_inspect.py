"""What `describe` finds and does not find."""

import numpy as np
import pytest

from funcopt import Schedule, schedules

SOUND = {
    "cosine": (schedules.cosine_annealing_lr(0.1, 100), [0, 1, 99, 100]),
    "exponential": (schedules.exponential_lr(0.1, 0.95), [0, 1, 99, 100]),
    "exponential_fast": (schedules.exponential_lr(0.1, 0.5), [0, 1, 99, 100]),
    "step": (schedules.step_lr(0.1, 30, 0.5), [0, 1, 29, 30, 59, 60, 89, 90, 99, 100]),
    "warmup_cosine": (schedules.warmup_cosine(0.1, 10, 90), [0, 1, 10, 90, 99, 100]),
    "warmup_constant": (schedules.warmup(0.1, 10, start_factor=0.1, shape="constant"), [0, 1, 9, 10, 99, 100]),
    "wsd": (schedules.wsd(0.1, 10, 40, 40), [0, 1, 10, 50, 90, 99, 100]),
    "wsd_sqrt_at_once": (schedules.wsd(0.1, 10, 0, 80, shape="sqrt"), [0, 1, 10, 90, 99, 100]),
    "inverse_sqrt": (schedules.inverse_sqrt(0.1, 10), [0, 1, 10, 99, 100]),
    "cyclic": (schedules.cyclic_lr(0.01, 0.1, 25), [0, 1, 25, 50, 75, 99, 100]),
    "one_cycle": (schedules.one_cycle_lr(0.1, 100), [0, 1, 29, 99, 100]),
    "restarts": (schedules.cosine_annealing_warm_restarts(0.1, 50), [0, 1, 49, 50, 99, 100]),
    "constant": (schedules.constant_lr(0.1, 1.0), [0, 1, 99, 100]),
}

MISTAKES = {
    "negative": (schedules.lambda_lr(1.0, lambda step: 1 - step / 50), "negative at step 51"),
    "not_finite": (lambda step: np.where(step < 7, 1.0, np.nan), "not finite at step 7"),
    "too_long": (schedules.cosine_annealing_lr(0.1, 500), "minimum 0 is reached at step 500 only.*uses 0.0906"),
    "too_long_from_0": (schedules.warmup_cosine(0.1, 10, 200), "minimum 0 is reached at step 200 only"),
    "jump_down_after_warmup": (
        schedules.join([schedules.ramp(0, 0.1, 20), schedules.cosine_annealing_lr(0.1, 50)], [20], restart=False),
        "jumps at the end of the warm-up, from 0.095 at step 19 to 0.06545",
    ),
    "jump_up_after_warmup": (
        schedules.join([schedules.ramp(0, 0.05, 20), schedules.step_lr(0.1, 30)], [20]),
        "jumps at the end of the warm-up, from 0.0475 at step 19 to 0.1",
    ),
}


@pytest.mark.parametrize(("schedule", "boundaries"), SOUND.values(), ids=SOUND.keys())
def test_describe_tabulates_a_sound_schedule_without_a_warning(schedule: Schedule, boundaries: list[int]) -> None:
    description = schedules.describe(schedule, 100)
    assert description.problems == []
    assert description.rows == [(step, schedule(step)) for step in boundaries]


@pytest.mark.parametrize(("schedule", "message"), MISTAKES.values(), ids=MISTAKES.keys())
def test_describe_warns_of_a_mistake(schedule: Schedule, message: str) -> None:
    with pytest.warns(UserWarning, match=message) as caught:
        description = schedules.describe(schedule, 100)
    assert [str(warning.message) for warning in caught] == description.problems
    assert caught[0].filename == __file__


def test_describe_of_short_runs() -> None:
    for steps in (1, 2, 3):
        assert schedules.describe(schedules.step_lr(0.1, 30), steps).rows[-1] == (steps, 0.1)


def test_description_prints_a_table() -> None:
    with pytest.warns(UserWarning, match="minimum"):
        text = str(schedules.describe(schedules.cosine_annealing_lr(0.1, 500), 100))
    assert text.splitlines()[:2] == ["step  value", "   0  0.1"]
    assert text.splitlines()[-1].startswith("! the minimum 0 is reached at step 500 only")
