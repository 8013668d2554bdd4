"""timm's scheduler arguments, value by value against its own schedulers."""

from typing import Any

import numpy as np
import pytest
import torch
from groups.client_models import import_timm

from funcopt.config import build_schedule

pytestmark = pytest.mark.clients

EPOCH_LENGTH, EPOCHS = 4, 30

CONFIGS: list[dict[str, Any]] = [
    {"sched": "cosine"},
    {"sched": "cosine", "warmup_epochs": 5, "min_lr": 1e-3},
    {"sched": "cosine", "warmup_epochs": 5, "warmup_prefix": True, "warmup_lr": 0.01},
    {"sched": "cosine", "num_epochs": 6, "cycle_limit": 3, "cycle_decay": 0.5, "k_decay": 1.5},
    {"sched": "cosine", "num_epochs": 4, "cycle_limit": 2, "cycle_mul": 2.0},
    {"sched": "tanh", "warmup_epochs": 3},
    {"sched": "tanh", "warmup_epochs": 3, "warmup_prefix": True, "min_lr": 0.01},
    {"sched": "tanh", "num_epochs": 7, "cycle_limit": 2},
    {"sched": "step", "decay_epochs": 7, "decay_rate": 0.3, "warmup_epochs": 2},
    {"sched": "step", "decay_epochs": 2.4, "decay_rate": 0.9, "warmup_epochs": 3, "warmup_prefix": True},
    {"sched": "step"},
    {"sched": "constant", "warmup_epochs": 4},
    {"sched": "multistep", "decay_milestones": [5, 9, 20], "decay_rate": 0.5},
    {"sched": "multistep", "decay_milestones": [5, 9], "warmup_epochs": 3, "warmup_prefix": True},
    {"sched": "multistep", "decay_milestones": [1, 9]},
    {"sched": "poly", "decay_rate": 0.9, "min_lr": 1e-3},
    {"sched": "poly", "num_epochs": 8, "decay_rate": 2.0, "k_decay": 0.7, "cycle_limit": 2, "warmup_epochs": 2},
    {"sched": "wsd", "warmup_epochs": 3, "min_lr": 0.002},
    {"sched": "wsd", "warmup_epochs": 3, "warmup_prefix": True, "decay_epochs": 5, "decay_fn": "exp"},
    {"sched": "wsd", "decay_epochs": 10, "decay_fn": "cosine"},
    {"sched": "wsd", "decay_epochs": 10, "decay_fn": "power"},
    {"sched": "rsqrt", "warmup_epochs": 4},
    {"sched": "rsqrt", "stable_timescale": 6, "decay_epochs": 0.5, "min_lr": 0.03},
]


@pytest.mark.parametrize("on_epochs", [True, False])
@pytest.mark.parametrize("config", CONFIGS, ids=range(len(CONFIGS)))
def test_values_of_each_update(config: dict[str, Any], on_epochs: bool) -> None:
    import_timm()
    create = pytest.importorskip("timm.scheduler").create_scheduler_v2
    config = {"num_epochs": EPOCHS, **config, "step_on_epochs": on_epochs}
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.ones(1))], 0.1)
    scheduler, _ = create(optimizer, **config, updates_per_epoch=EPOCH_LENGTH)
    expected = []
    for epoch in range(EPOCHS):
        for i in range(EPOCH_LENGTH):
            expected.append(optimizer.param_groups[0]["lr"])
            optimizer.step()
            scheduler.step_update(epoch * EPOCH_LENGTH + i + 1)
        scheduler.step(epoch + 1)
    schedule = build_schedule(config, 0.1, steps_per_epoch=EPOCH_LENGTH)
    updates = np.arange(EPOCHS * EPOCH_LENGTH)
    np.testing.assert_allclose(schedule(updates), expected, rtol=1e-10, atol=1e-12)
    assert config["sched"] == "step" or len(np.unique(expected)) > 1
