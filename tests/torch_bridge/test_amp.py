"""torch.amp.GradScaler on the bridge: with fused=True unscaling happens inside the update."""

import copy

import pytest
import torch

import funcopt
from funcopt import TorchBridge

pytestmark = pytest.mark.usefixtures("each_path")

OVERFLOW_AT = (3, 4, 9)


def run(optimizer: torch.optim.Optimizer, params: list[torch.nn.Parameter], *, unscale: bool) -> list[float]:
    """12 steps, in some of which a gradient overflows; clipping needs unscaled gradients."""
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10, growth_interval=2)
    scales = []
    for step in range(12):
        generator = torch.Generator().manual_seed(step)
        for p in params:
            p.grad = scaler.scale(torch.randn(p.shape, generator=generator, dtype=p.dtype))
        if step in OVERFLOW_AT:
            params[0].grad.view(-1)[0] = float("inf")
        if unscale:
            scaler.unscale_(optimizer)
            torch.nn.utils.clip_grad_norm_(params, 1.0)
        scaler.step(optimizer)
        scaler.update()
        scales.append(scaler.get_scale())
    return scales


def parameters(dtype: torch.dtype) -> list[torch.nn.Parameter]:
    generator = torch.Generator().manual_seed(0)
    return [torch.nn.Parameter(torch.randn(shape, generator=generator, dtype=dtype)) for shape in ((4, 3), (5,))]


@pytest.mark.parametrize("unscale", [False, True])
@pytest.mark.parametrize("fused", [False, True])
def test_same_run_as_torch(unscale: bool, fused: bool) -> None:
    ours, theirs = parameters(torch.float32), parameters(torch.float32)
    bridge = TorchBridge(ours, funcopt.adamw, lr=0.1, fused=fused)
    scales = run(bridge, ours, unscale=unscale)
    assert scales == run(torch.optim.AdamW(theirs, lr=0.1, fused=fused), theirs, unscale=unscale)
    for a, b in zip(ours, theirs, strict=True):
        # a few ulp of float32 after 9 updates
        assert (a - b).abs().max() <= 8 * 2.0**-23 * b.abs().max()
    assert bridge.state[ours[0]]["step"] == 12 - len(OVERFLOW_AT)
    assert bridge.compilations == 1
    assert not hasattr(bridge, "found_inf")


def test_skipped_step_changes_nothing() -> None:
    params = parameters(torch.float16)
    bridge = TorchBridge(params, funcopt.adam, lr=lambda step: 0.1 / (1 + step), fused=True)
    scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
    for step in range(3):
        before = [p.detach().clone() for p in params], copy.deepcopy(bridge.state_dict())
        for p in params:
            p.grad = scaler.scale(torch.ones_like(p))
        if step == 1:
            params[1].grad[0] = float("nan")
        scaler.step(bridge)
        scaler.update()
        after = bridge.state_dict()
        unchanged = all(torch.equal(p, b) for p, b in zip(params, before[0], strict=True))
        same_state = before[1]["state"].keys() == after["state"].keys() and all(
            torch.equal(value, after["state"][i][name])
            for i, entry in before[1]["state"].items()
            for name, value in entry.items()
        )
        assert (unchanged, same_state) == ((True, True) if step == 1 else (False, False))
    assert bridge.param_groups[0]["schedule_step"] == 2
