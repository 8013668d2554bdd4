"""Deletion in either order, interpreter exit and kill -9: nothing outlives its memory, nothing saved is lost."""

import copy
import gc
import signal
import subprocess
import sys
import weakref
from pathlib import Path

import jax
import pytest
import torch
from twins import EACH_TWIN, ROUNDING, TWINS, Twin, difference, make_model, train

from funcopt.torch_bridge.store._block import LEAST_ROWS, WIDTHS

PRELUDE = f"""
import gc, os, signal, sys, threading, time
from pathlib import Path
sys.path.insert(0, {str(Path(__file__).parents[1])!r})
import torch
from twins import TWINS, batch, make_model, train
torch.set_num_threads(1)
model = make_model()
optimizer = TWINS["recipe"].ours(model.parameters(), lr=0.05)
"""

ENDINGS = {
    "deletions": """
train(model, optimizer, range(3))
state = optimizer.state_dict()
del optimizer
gc.collect()
model(batch(0)[0]).sum().backward()

optimizer = TWINS["recipe"].ours(model.parameters(), lr=0.05)
train(model, optimizer, range(3))
del model
gc.collect()
optimizer.step()

del optimizer
gc.collect()
[entry["exp_avg"].add_(1) for entry in state["state"].values()]
""",
    "exit in a step, and a last step at exit": """
import atexit
thread = threading.Thread(target=train, args=(model, optimizer, range(3)))
thread.start()
thread.join()
model.optimizer, optimizer.model = optimizer, model
hook = optimizer.register_step_pre_hook(lambda *_: sys.exit(0))
atexit.register(train, model, optimizer, range(3))
atexit.register(hook.remove)
train(model, optimizer, range(3))
""",
    "end of the program before the first step": "",
}


def run(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-W", "error", "-c", PRELUDE + code], capture_output=True, text=True)


@pytest.mark.one_engine
@pytest.mark.parametrize("code", [pytest.param(code, id=name) for name, code in ENDINGS.items()])
def test_clean_exit(code: str) -> None:
    done = run(code)
    assert (done.returncode, done.stderr) == (0, "")


def jax_bytes() -> int:
    return sum(array.nbytes for array in jax.live_arrays())


@EACH_TWIN
@pytest.mark.usefixtures("each_path")
def test_nothing_is_left_of_a_deleted_optimizer(twin: Twin) -> None:
    """The weights and a saved state go on alone; of JAX's arrays stays only what the weights live in."""
    gc.collect()
    before = jax_bytes()
    model, expected = make_model(), make_model()
    optimizer, reference = twin.ours(model.parameters(), lr=0.05), twin.theirs(expected.parameters(), lr=0.05)
    train(model, optimizer, range(3))
    train(expected, reference, range(3))
    saved = copy.deepcopy(optimizer.state_dict())
    gone = weakref.ref(optimizer)
    del optimizer
    gc.collect()
    assert gone() is None
    weights = sum(p.numel() * p.element_size() for p in model.parameters())
    assert before <= jax_bytes() <= before + max(weights, LEAST_ROWS * WIDTHS[0] * 8)
    # Whatever is allocated next would overwrite memory that is only lent.
    _ = [torch.full((64,), float("nan"), dtype=torch.float64) for _ in range(100)]
    assert difference(model, expected) <= ROUNDING
    resumed = twin.ours(model.parameters(), lr=0.05)
    resumed.load_state_dict(saved)
    train(model, resumed, range(3, 6))
    train(expected, reference, range(3, 6))
    assert difference(model, expected) <= ROUNDING
    del model, resumed, saved
    gc.collect()
    assert jax_bytes() == before


@pytest.mark.usefixtures("each_path")
def test_parameters_go_with_their_optimizer() -> None:
    """The optimizer is what holds them: then nothing does."""
    model = make_model()
    optimizer = TWINS["recipe"].ours(model.parameters(), lr=0.05)
    train(model, optimizer, range(2))
    gone = weakref.ref(model[0].weight)
    del model
    gc.collect()
    assert gone() is not None
    del optimizer
    gc.collect()
    assert gone() is None


KILLED = """
def save(step):
    for name, value in (("model", model), ("optimizer", optimizer)):
        torch.save((step, value.state_dict()), folder / (name + ".new"))
    for name in ("model", "optimizer"):
        (folder / (name + ".new")).replace(folder / (name + ".pt"))

folder = Path({folder!r})
for step in range(10):
    if step == 7:
        optimizer.register_step_post_hook(lambda *_: os.kill(os.getpid(), signal.SIGKILL))
    train(model, optimizer, [step])
    if step % 3 == 2:
        save(step)
"""


@pytest.mark.one_engine
@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no SIGKILL")
def test_killed_between_two_saves(tmp_path: Path) -> None:
    """Saved after step 5, killed inside step 7: the run that goes on from there ends where an undisturbed one does."""
    assert run(KILLED.format(folder=str(tmp_path))).returncode == -signal.SIGKILL
    model, straight, expected = make_model(seed=9), make_model(), make_model()
    optimizer = TWINS["recipe"].ours(model.parameters(), lr=0.7)
    for name, value in (("model", model), ("optimizer", optimizer)):
        step, state = torch.load(tmp_path / f"{name}.pt", weights_only=True)
        assert step == 5
        value.load_state_dict(state)
    train(model, optimizer, range(6, 10))
    train(straight, TWINS["recipe"].ours(straight.parameters(), lr=0.05), range(10))
    train(expected, TWINS["recipe"].theirs(expected.parameters(), lr=0.05), range(10))
    assert difference(model, straight) == 0.0
    assert difference(model, expected) <= ROUNDING
