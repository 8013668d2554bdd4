"""No tensor outlives its memory: random programs and deletions under an allocator that checks and overwrites."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.one_engine

PRELUDE = f"""
import copy, gc, itertools, os, random, sys, threading
sys.path.insert(0, {str(Path(__file__).parents[1])!r})
import torch
from twins import largest_difference, make_parameters, set_gradients
from funcopt.torch_bridge import optim
from funcopt.torch_bridge.store import _store
torch.set_num_threads(1)
"""

CHECKING_ALLOCATOR = Path("/usr/lib/x86_64-linux-gnu/libc_malloc_debug.so.0")


def run(code: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Freed memory is overwritten; with glibc's debug library, each block's borders are checked as well."""
    environment = {**os.environ, "MALLOC_PERTURB_": "165", "MALLOC_CHECK_": "3"}
    if CHECKING_ALLOCATOR.exists():
        environment["LD_PRELOAD"] = str(CHECKING_ALLOCATOR)
    command = [sys.executable, "-W", "error", "-c", PRELUDE + code, *arguments]
    return subprocess.run(command, capture_output=True, text=True, env=environment, timeout=300)


STRESS = """
_store.JOIN_UP_TO = 40
SHAPES = [(), (0, 3), (1,), (2, 3), (5, 7), (8, 8), (300,), (3, 2, 4, 4), (65,)]

def program(seed):
    choose = random.Random(seed)
    shapes = choose.choices(SHAPES, k=8)
    both = make_parameters(shapes), make_parameters(shapes)
    kinds = choose.choice([("AdamW", {}), ("SGD", {"momentum": 0.9}), ("Adam", {"amsgrad": True})])
    count, kept = 5, []

    def build():
        return [
            getattr(module, kinds[0])(params[:count], lr=0.05, **kinds[1])
            for module, params in zip((optim, torch.optim), both)
        ]

    made = build()
    missing = choose.sample(range(8), 3)
    for step in range(14):
        match choose.randrange(9):
            case 0:
                [each.load_state_dict(copy.deepcopy(each.state_dict())) for each in made]
            case 1:
                states = [each.state_dict() for each in made]
                while len(made[0].param_groups) == 1 and len(states) == 2:
                    made = build()
                    [each.load_state_dict(state) for each, state in zip(made, states)]
                    states = []
            case 2 if count < 8:
                count += 1
                [each.add_param_group({"params": [params[count - 1]]}) for each, params in zip(made, both)]
            case 3:
                kept.append((both[0][count - 1].detach().view(-1), both[1][count - 1].detach().view(-1)))
            case 4:
                kept.append((both[0][0].detach().clone(), both[1][0].detach().clone()))
                kept.append((made[0].state_dict(), None))
            case 5:
                for params in both:
                    params[1].data = params[1].data.clone()
            case 6:
                choose.shuffle(kept)
                del kept[: len(kept) // 2]
                gc.collect()
            case 7:
                both = tuple([torch.nn.Parameter(p.detach().clone()) for p in params] for params in both)
                kept.append((made, None))
                count = 5
                made = build()
            case _:
                pass
        for params, each in zip(both, made):
            set_gradients(params, step)
            for i in missing[: choose.randrange(1) + step % 3]:
                params[i].grad = None
            each.step()
        assert largest_difference(*both) <= 1e-12, (seed, step)
        tensors = [pair for pair in kept if torch.is_tensor(pair[0])]
        assert not tensors or largest_difference(*zip(*tensors)) <= 1e-12, (seed, step)

for seed in range(int(sys.argv[1])):
    program(seed)
"""

DELETIONS = """
_store.JOIN_UP_TO = 8
expected = make_parameters([(3,), (4,), (50,)])
set_gradients(expected, 0)
reference = torch.optim.SGD(expected, lr=0.1)
reference.step()
names = ["params", "optimizer", "views", "state"]
for order in itertools.permutations(names):
    params = make_parameters([(3,), (4,), (50,)])
    set_gradients(params, 0)
    optimizer = optim.SGD(params, lr=0.1, momentum=0.9)
    optimizer.step()
    there = {
        "params": params,
        "optimizer": optimizer,
        "views": [p.detach().view(-1) for p in params[:2]] + [torch.from_numpy(params[2].detach().numpy())],
        "state": optimizer.state_dict(),
    }
    del params, optimizer
    for name in order:
        del there[name]
        noise = [torch.full((n,), float("nan"), dtype=torch.float64) for n in (3, 4, 16, 50) for _ in range(3)]
        for left in ("params", "views"):
            assert left not in there or largest_difference(there[left], expected) <= 1e-15, order
        if "state" in there:
            moments = [entry["momentum_buffer"] for entry in there["state"]["state"].values()]
            assert largest_difference(moments, [p.grad for p in expected]) <= 1e-15, order
"""

EXIT = """
params = make_parameters([(3,), (_store.JOIN_UP_TO + 1,), (2_000_000,)], torch.float32)
optimizer = optim.AdamW(params, lr=0.1)
view = params[1].detach()[7:]
stepping = threading.Event()

def some():
    for step in range(30):
        set_gradients(params[:2], step)
        optimizer.step()
        stepping.set()
    assert torch.equal(view, params[1].detach()[7:])

threading.Thread(target=some).start()
assert stepping.wait(60)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's allocator")
@pytest.mark.parametrize(
    ("code", "arguments"),
    [
        pytest.param(STRESS, ("12",), id="random programs", marks=pytest.mark.thorough),
        pytest.param(DELETIONS, (), id="every order of deletion"),
        pytest.param(EXIT, (), id="exit while another thread steps"),
    ],
)
def test_under_a_checking_allocator(code: str, arguments: tuple[str, ...]) -> None:
    done = run(code, *arguments)
    assert (done.returncode, done.stderr) == (0, "")
