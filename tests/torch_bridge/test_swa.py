"""torch.optim.swa_utils and torch.nn.utils.clip_grad_* around the bridge: the same numbers as around torch.optim."""

from collections.abc import Callable
from typing import Any

import torch
from torch.optim import lr_scheduler, swa_utils
from twins import EACH_TWIN, ROUNDING, TWINS, Twin, batch, difference

import funcopt

AVERAGES: list[dict[str, Any]] = [
    {},
    {"multi_avg_fn": swa_utils.get_ema_multi_avg_fn(0.9)},
    {"avg_fn": lambda average, value, count: 0.8 * average + 0.2 * value, "use_buffers": True},
]
CLIPS: list[Callable[[Any], Any]] = [
    lambda params: torch.nn.utils.clip_grad_norm_(params, 0.5),
    lambda params: torch.nn.utils.clip_grad_norm_(params, 0.5, norm_type=float("inf"), foreach=True),
    lambda params: torch.nn.utils.clip_grad_value_(params, 0.1),
]


def normalized_model() -> torch.nn.Sequential:
    with torch.random.fork_rng():
        torch.manual_seed(3)
        return torch.nn.Sequential(
            torch.nn.Linear(6, 8, bias=False), torch.nn.BatchNorm1d(8), torch.nn.Linear(8, 2)
        ).double()


def loss_of(model: torch.nn.Module, step: int) -> torch.Tensor:
    x, y = batch(step)
    return torch.nn.functional.mse_loss(model(x), y)


@EACH_TWIN
def test_averaged_models(twin: Twin) -> None:
    """A usual run: a schedule first, then SWALR and averages; batch statistics for the averages at the end."""
    results = []
    for build in twin:
        model = normalized_model()
        optimizer = build(model.parameters(), lr=0.05)
        averages = [swa_utils.AveragedModel(model, **options) for options in AVERAGES]
        before, after = lr_scheduler.CosineAnnealingLR(optimizer, 12), swa_utils.SWALR(optimizer, 0.02, anneal_epochs=4)
        for step in range(16):
            optimizer.zero_grad()
            loss_of(model, step).backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            if step < 8:
                before.step()
            else:
                after.step()
                for averaged in averages:
                    averaged.update_parameters(model)
        for averaged in averages:
            swa_utils.update_bn([batch(step)[0] for step in range(3)], averaged)
        results.append((model, averages, optimizer.param_groups[0]["lr"]))
    (ours, our_averages, our_lr), (theirs, their_averages, their_lr) = results
    assert difference(ours, theirs) <= ROUNDING
    for our_average, their_average in zip(our_averages, their_averages, strict=True):
        assert difference(our_average, their_average) <= ROUNDING
        assert difference(our_average.module, ours) > 1e-3
    assert our_lr == their_lr == 0.02


def test_average_of_the_recipe_is_that_of_averaged_model() -> None:
    """The same average from within the compiled update."""

    def recipe(lr: Any, decay: Any) -> funcopt.GradientTransformationExtraArgs:
        return funcopt.chain(funcopt.adamw(lr), funcopt.params_ema(decay))

    ours, theirs = normalized_model(), normalized_model()
    optimizer = funcopt.TorchBridge(ours.parameters(), recipe, lr=0.05, decay=0.9)
    reference = torch.optim.AdamW(theirs.parameters(), lr=0.05)
    averaged = swa_utils.AveragedModel(theirs, multi_avg_fn=swa_utils.get_ema_multi_avg_fn(0.9))
    for step in range(12):
        for model, either in ((ours, optimizer), (theirs, reference)):
            either.zero_grad()
            loss_of(model, step).backward()
            either.step()
        averaged.update_parameters(theirs)
    for p, average in zip(ours.parameters(), averaged.module.parameters(), strict=True):
        torch.testing.assert_close(optimizer.state[p]["ema"], average.detach(), rtol=1e-11, atol=1e-13)


@EACH_TWIN
def test_gradients_clipped_in_place(twin: Twin) -> None:
    results = []
    for build in twin:
        model = normalized_model()
        optimizer = build(model.parameters(), lr=0.05)
        for step in range(12):
            optimizer.zero_grad()
            loss_of(model, step).backward()
            CLIPS[step % len(CLIPS)](model.parameters())
            optimizer.step()
        results.append(model)
    assert difference(*results) <= ROUNDING


def test_the_average_is_a_model_of_its_own() -> None:
    """AveragedModel copies a model that an optimizer holds: later steps leave the copy alone."""
    model = normalized_model()
    optimizer = TWINS["recipe"].ours(model.parameters(), lr=0.05)
    loss_of(model, 0).backward()
    optimizer.step()
    averaged = swa_utils.AveragedModel(model)
    averaged.update_parameters(model)
    before = [p.detach().clone() for p in averaged.parameters()]
    optimizer.step()
    assert all(torch.equal(p, b) for p, b in zip(averaged.parameters(), before, strict=True))
