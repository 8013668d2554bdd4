"""Long runs hold their memory, and optimizers in threads do not see each other."""

import json
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch
from twins import ROUNDING, TWINS, difference, make_model, train

pytestmark = pytest.mark.one_engine

SOAK = """
import gc, json, os, sys
from pathlib import Path
sys.path.insert(0, {tests!r})
import jax, torch
from torch.optim import lr_scheduler
from twins import TWINS, make_model

torch.set_num_threads(1)
model = make_model()
optimizer = TWINS["recipe"].ours(model.parameters(), lr=0.01)
scheduler = lr_scheduler.CosineAnnealingLR(optimizer, 50)
measured = []
for steps in (1_000, 9_000):
    for _ in range(steps):
        for p in model.parameters():
            p.grad = torch.randn_like(p)
        optimizer.step()
        scheduler.step()
    gc.collect()
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    measured.append((pages * os.sysconf("SC_PAGE_SIZE"), len(jax.live_arrays())))
print(json.dumps([measured, optimizer.compilations]))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads the resident size from /proc")
def test_ten_thousand_steps_hold_memory_flat() -> None:
    code = SOAK.format(tests=str(Path(__file__).parents[1]))
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    ((early, early_arrays), (late, late_arrays)), compilations = json.loads(done.stdout)
    assert late <= 1.02 * early
    assert late_arrays == early_arrays
    assert compilations == 1


@pytest.mark.parametrize("name", ["SGD", "recipe"])
def test_optimizers_in_two_threads(name: str) -> None:
    """Different models and lengths, at the same time; both equal to runs of their own."""
    twin = TWINS[name]
    alone, together = [make_model(seed) for seed in (1, 2)], [make_model(seed) for seed in (1, 2)]
    steps = [range(40), range(100, 160)]
    for model, own in zip(alone, steps, strict=True):
        train(model, twin.theirs(model.parameters(), lr=0.02), own)

    barrier = threading.Barrier(2)
    failures: list[BaseException] = []

    def run(model: torch.nn.Module, own: range) -> None:
        try:
            optimizer = twin.ours(model.parameters(), lr=0.02)
            barrier.wait()
            train(model, optimizer, own)
            optimizer.load_state_dict(optimizer.state_dict())
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=run, args=pair) for pair in zip(together, steps, strict=True)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
    for model, expected in zip(together, alone, strict=True):
        assert difference(model, expected) <= ROUNDING


def test_an_optimizer_moves_between_threads() -> None:
    """Made in one thread, stepped in others in turn, read in the first: precision does not depend on the thread."""
    ours, theirs = make_model(), make_model()
    optimizer, reference = TWINS["recipe"].ours(ours.parameters()), torch.optim.AdamW(theirs.parameters())
    for step in range(4):
        thread = threading.Thread(target=train, args=(ours, optimizer, [step]))
        thread.start()
        thread.join()
        train(theirs, reference, [step])
    assert difference(ours, theirs) <= ROUNDING
    moments = [optimizer.state[p]["exp_avg_sq"] for p in ours.parameters()]
    assert all(
        torch.allclose(moment, reference.state[p]["exp_avg_sq"], rtol=1e-12, atol=0)
        for moment, p in zip(moments, theirs.parameters(), strict=True)
    )
