"""What programs do around a step: fork, start threads, compile, wrap, put memory away, set odd hyperparameters."""

import collections
import contextlib
import copy
import gc
import json
import subprocess
import sys
import threading
import warnings
import weakref
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx
from torch.optim import lr_scheduler
from torch.utils.flop_counter import FlopCounterMode
from twins import (
    EACH_TWIN,
    ROUNDING,
    TWINS,
    Twin,
    batch,
    difference,
    largest_difference,
    make_model,
    make_parameters,
    set_gradients,
    take_steps,
    train,
)

import funcopt
from funcopt import TorchBridge
from funcopt.torch_bridge import optim
from funcopt.torch_bridge.store._store import JOIN_UP_TO

SHAPES = [(6, 5), (3,), (), (JOIN_UP_TO + 1,)]
"""Joined with others, and alone."""

Make = Callable[[Any, Any], torch.optim.Optimizer]
"""From a module of optimizers, torch's or ours, and parameters."""


def both(run: Callable[..., Any], make: Make) -> tuple[Any, Any]:
    """What comes of ours, and of torch's; `run` gets parameters and an optimizer."""
    results = []
    for module in (optim, torch.optim):
        params = make_parameters(SHAPES)
        optimizer = make(module, params)
        results.append((params, run(params, optimizer), optimizer))
    assert largest_difference(results[0][0], results[1][0]) <= ROUNDING
    assert results[0][1] == results[1][1]
    return results[0][2], results[1][2]


# Processes.

PRELUDE = f"""
import collections, json, os, select, signal, sys, threading
sys.path.insert(0, {str(Path(__file__).parents[1])!r})
import torch
from torch.utils.data import DataLoader, TensorDataset
from twins import TWINS, batch, difference, make_model, train
torch.set_num_threads(1)
model = make_model()
optimizer = TWINS["recipe"].ours(model.parameters(), lr=0.05)
"""

FORKS = """
import jax.numpy as jnp
from funcopt.torch_bridge import _processes, optim

def start(act):
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        signal.alarm(60)
        try:
            said = act() or "done"
        except BaseException as error:
            said = f"{type(error).__name__}: {error}"
        os.write(writer, said.encode())
        os._exit(0)
    os.close(writer)
    return child, reader

def finish(started, patience=10):
    child, reader = started
    ready, _, _ = select.select([reader], [], [], patience)
    said = os.read(reader, 9999).decode() if ready else ""
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return said or "hangs"

def new(name):
    own = make_model()
    return own, TWINS[name].ours(own.parameters(), lr=0.05)

def step():
    train(model, optimizer, [1])

def after(act):
    act()
    return finish(start(step))

def load():
    other = make_model()
    reference = TWINS["recipe"].theirs(other.parameters(), lr=0.05)
    train(other, reference, [0])
    optimizer.load_state_dict(reference.state_dict())

def lbfgs():
    own = make_model()
    stepped = optim.LBFGS(own.parameters())
    stepped.step(lambda: sum(p.square().sum() for p in own.parameters()))

def holding():
    with _processes.STEPPING:
        held.set()
        release.wait()

# A process in which JAX has not run yet forks one for each way in which it may have.
ways = {
    "after nothing": lambda: after(lambda: None),
    "after use of JAX": lambda: after(lambda: jnp.ones(3).block_until_ready()),
    "after load_state_dict": lambda: after(load),
    "after LBFGS": lambda: after(lbfgs),
}
started = {name: start(act) for name, act in ways.items()}
said = {name: finish(child, 30) for name, child in started.items()}

train(model, optimizer, [0])
ways = {
    "step": step,
    "another optimizer": lambda: train(*new("recipe"), [1]),
    "another algorithm": lambda: train(*new("SGD"), [1]),
    "parameter by parameter": lambda: train(*new("optax"), [1]),
    "LBFGS": lbfgs,
    "load_state_dict": lambda: new("recipe")[1].load_state_dict(optimizer.state_dict()),
    "grandchild": lambda: finish(start(step)),
    "reading": lambda: str(len(optimizer.state_dict()["state"])),
}
started = {name: start(act) for name, act in ways.items()}
held, release = threading.Event(), threading.Event()
thread = threading.Thread(target=holding)
thread.start()
assert held.wait(30)
started["beside a thread that steps"] = start(step)
release.set()
thread.join()
said |= {name: finish(child) for name, child in started.items()}

step()
expected = make_model()
train(expected, TWINS["recipe"].theirs(expected.parameters(), lr=0.05), range(2))
print(json.dumps([said, difference(model, expected)]))
"""

WHAT_CHILDREN_SAY = {
    "after nothing": "done",
    "reading": "4",
    **dict.fromkeys(
        (
            "after use of JAX",
            "after load_state_dict",
            "after LBFGS",
            "step",
            "another optimizer",
            "another algorithm",
            "parameter by parameter",
            "LBFGS",
            "load_state_dict",
            "grandchild",
            "beside a thread that steps",
        ),
        "RuntimeError: TorchBridge: this process was forked",
    ),
}


def run_python(code: str, *options: str) -> subprocess.CompletedProcess[str]:
    # Python 3.12 and later warn of any fork beside threads, of which torch has some without us.
    quiet = ("-W", "ignore:This process:DeprecationWarning")
    command = [sys.executable, *options, *quiet, "-c", PRELUDE + code]
    return subprocess.run(command, capture_output=True, text=True, timeout=300)


needs_fork = pytest.mark.skipif(sys.platform in ("win32", "darwin"), reason="no safe fork there")


@needs_fork
@pytest.mark.one_engine
def test_a_forked_process_steps_or_says_why_not() -> None:
    """XLA's threads are not in the child: whatever needs them would wait for ever."""
    done = run_python(FORKS)
    assert done.returncode == 0, done.stderr
    said, error = json.loads(done.stdout)
    assert {name: text[: len(WHAT_CHILDREN_SAY[name])] for name, text in said.items()} == WHAT_CHILDREN_SAY
    assert error <= ROUNDING  # the parent goes on


LOADERS = """
data = TensorDataset(*batch(0))
expected = make_model()
reference = TWINS["recipe"].theirs(expected.parameters(), lr=0.05)
for own, its in ((model, optimizer), (expected, reference)):
    for epoch in range(2):
        for x, y in DataLoader(data, 8, num_workers=2):
            its.zero_grad()
            torch.nn.functional.mse_loss(own(x), y).backward()
            its.step()
print(difference(model, expected))
"""


@needs_fork
@pytest.mark.one_engine
def test_workers_of_a_data_loader_start_without_a_warning() -> None:
    done = run_python(LOADERS, "-W", "error")
    assert (done.returncode, done.stderr) == (0, "")
    assert float(done.stdout) <= ROUNDING


# Threads.


@pytest.fixture
def switching_often() -> Iterator[None]:
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    yield
    sys.setswitchinterval(interval)


def in_threads(count: int, act: Callable[[], Any]) -> None:
    barrier, failures = threading.Barrier(count), []

    def run() -> None:
        try:
            barrier.wait()
            act()
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=run) for _ in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures


@EACH_TWIN
@pytest.mark.usefixtures("switching_often")
def test_threads_that_step_one_optimizer_take_turns(twin: Twin) -> None:
    """As many steps as one after another. torch's own steps mix: of 200 it was 9 % off."""
    params, expected = make_parameters(SHAPES), make_parameters(SHAPES)
    optimizer, reference = twin.ours(params, lr=0.01), twin.theirs(expected, lr=0.01)
    set_gradients(params, 0)
    set_gradients(expected, 0)
    in_threads(4, lambda: [optimizer.step() for _ in range(20)])
    for _ in range(80):
        reference.step()
    assert largest_difference(params, expected) <= ROUNDING


@pytest.mark.usefixtures("switching_often")
def test_threads_with_optimizers_of_their_own_over_one_model() -> None:
    """Hogwild in threads: of torch's updates one in a thousand is lost; a tenth is allowed for here."""
    (p,) = make_parameters([(40,)])
    start, p.grad = p.detach().clone(), torch.ones_like(p)

    def run() -> None:
        optimizer = optim.SGD([p], lr=1.0)
        for _ in range(100):
            optimizer.step()

    in_threads(4, run)
    assert (start - p.detach()).mean() >= 360


# torch.compile, and other tracing.


def compiled_step(model: torch.nn.Module, optimizer: torch.optim.Optimizer) -> None:
    step = torch.compile(optimizer.step, backend="eager")
    for i in range(4):
        x, y = batch(i)
        optimizer.zero_grad()
        torch.nn.functional.mse_loss(model(x), y).backward()
        step()


def compiled_train_step(model: torch.nn.Module, optimizer: torch.optim.Optimizer) -> None:
    scheduler = lr_scheduler.StepLR(optimizer, 2)

    @torch.compile(backend="aot_eager")
    def step(x: torch.Tensor, y: torch.Tensor) -> None:
        optimizer.zero_grad()
        torch.nn.functional.mse_loss(model(x), y).backward()
        optimizer.step()

    for i in range(4):
        step(*batch(i))
        scheduler.step()


# Importing the compiler warns.
@pytest.mark.filterwarnings("ignore:.torch.jit.script_method:DeprecationWarning")
@pytest.mark.parametrize("run", [compiled_step, compiled_train_step])
@pytest.mark.parametrize("name", ["AdamW", "recipe"])
def test_compiled(name: str, run: Any) -> None:
    """Torch's numbers without a compiler, that is: in one torch's own Adam is 5e-6 off, as it counts in float32."""
    ours, theirs = make_model(), make_model()
    torch.compiler.reset()
    run(ours, TWINS[name].ours(ours.parameters(), lr=0.05))
    reference = TWINS[name].theirs(theirs.parameters(), lr=0.05)
    scheduler = lr_scheduler.StepLR(reference, 2)
    for i in range(4):
        train(theirs, reference, [i])
        if run is compiled_train_step:
            scheduler.step()
    assert difference(ours, theirs) <= ROUNDING


@pytest.mark.parametrize("how", ["make_fx", "fake"])
def test_other_tracing_is_refused(how: str) -> None:
    """Which would record, or pretend, no update at all; modes that only look on are no matter."""
    params = make_parameters([(3, 2)])
    optimizer = optim.AdamW(params)
    take_steps(params, optimizer, [0])
    before = params[0].detach().clone()
    mode = FakeTensorMode() if how == "fake" else contextlib.nullcontext()
    traced = make_fx(lambda x: (optimizer.step(), x)[1]) if how == "make_fx" else lambda x: optimizer.step()
    x = torch.ones(1)
    with mode, pytest.raises(RuntimeError, match="cannot be traced"):
        traced(x)
    assert torch.equal(params[0], before)
    with FlopCounterMode(display=False):
        optimizer.step()
    assert not torch.equal(params[0], before)


# Wrappers.


def sharing_its_dict(optimizer: Any) -> Any:
    """A subclass made on the spot, over the same attributes."""
    kind = type("Wrapped", (type(optimizer),), {})
    wrapper = kind.__new__(kind)
    wrapper.__dict__ = optimizer.__dict__
    return wrapper


class _Lightnings:
    """As Lightning and Fabric do: a copy of the attributes, and a class that is the optimizer's as well."""

    def __init__(self, optimizer: Any) -> None:
        self.__dict__ = {key: value for key, value in optimizer.__dict__.items() if key != "step"}
        self.__class__ = type("Lightnings", (_Lightnings, type(optimizer)), {})
        self.inner = optimizer

    def step(self, closure: Any = None) -> Any:
        return self.inner.step(closure)


class _OverItsGroups(torch.optim.Optimizer):
    """Torch's constructor over the groups of the optimizer that it wraps, and the same state."""

    def __init__(self, optimizer: torch.optim.Optimizer) -> None:
        super().__init__(optimizer.param_groups, optimizer.defaults)
        self.inner, self.param_groups, self.state = optimizer, optimizer.param_groups, optimizer.state

    def step(self, closure: Any = None) -> Any:
        return self.inner.step(closure)


@EACH_TWIN
@pytest.mark.parametrize("steps", [0, 2])
@pytest.mark.parametrize("wrap", [sharing_its_dict, _Lightnings, _OverItsGroups])
def test_wrappers_that_share_groups_and_state(wrap: Any, steps: int, twin: Twin) -> None:
    results = []
    for build in twin:
        model = make_model()
        optimizer = build(model.parameters(), lr=0.05)
        train(model, optimizer, range(steps))
        wrapper = wrap(optimizer)
        assert isinstance(wrapper, torch.optim.Optimizer)
        assert wrapper.state is optimizer.state
        assert wrapper.param_groups is optimizer.param_groups
        scheduler = lr_scheduler.StepLR(wrapper, 2)
        train(model, wrapper, range(2, 5), lambda loss, scheduler=scheduler: scheduler.step())
        train(model, optimizer, range(5, 7))
        assert wrapper.state is optimizer.state
        wrapper.load_state_dict(copy.deepcopy(wrapper.state_dict()))
        train(model, wrapper, range(7, 9))
        results.append(model)
    assert difference(*results) <= ROUNDING


# Garbage.


@pytest.fixture
def without_garbage_collection() -> Iterator[None]:
    torch.optim.SGD(make_parameters([()])).step()  # torch's first import of its compiler holds what is there
    gc.collect()
    gc.disable()
    yield
    gc.enable()


@EACH_TWIN
@pytest.mark.usefixtures("without_garbage_collection")
@pytest.mark.parametrize("steps", [0, 1, 2])
@pytest.mark.parametrize("beside", ["nothing", "hooks", "scheduler", "a loaded state"])
def test_a_dropped_optimizer_is_gone_at_once(beside: str, steps: int, twin: Twin) -> None:
    model = make_model()
    optimizer = twin.ours(model.parameters())
    scheduler = None
    if beside == "hooks":
        optimizer.register_step_pre_hook(lambda *_: None)
        optimizer.register_step_post_hook(lambda *_: None)
        optimizer.register_load_state_dict_post_hook(lambda *_: None)
    elif beside == "scheduler":
        scheduler = lr_scheduler.StepLR(optimizer, 1)
    train(model, optimizer, range(steps))
    if beside == "a loaded state":
        optimizer.load_state_dict(optimizer.state_dict())
    parts = [weakref.ref(optimizer), *([weakref.ref(optimizer._held)] if optimizer._held else [])]
    del optimizer, scheduler
    assert [part() for part in parts] == [None] * (2 if steps else 1)


# Memory.


@EACH_TWIN
@pytest.mark.filterwarnings("ignore:Lazy modules are a new feature")
def test_lazy_parameters(twin: Twin) -> None:
    """The optimizer is made before the first forward pass, which says what shapes there are."""
    results = []
    for build in twin:
        model = torch.nn.Sequential(
            torch.nn.LazyLinear(4, dtype=torch.float64), torch.nn.LazyLinear(2, dtype=torch.float64)
        )
        optimizer = build(model.parameters(), lr=0.05)
        optimizer.step()
        optimizer.load_state_dict(optimizer.state_dict())
        assert len(optimizer.state) == 0
        with torch.random.fork_rng():
            torch.manual_seed(0)
            train(model, optimizer, range(4))
        results.append(model)
    assert difference(*results) <= ROUNDING


@pytest.mark.filterwarnings("ignore:Lazy modules are a new feature")
def test_a_state_is_loaded_before_lazy_parameters_have_a_shape() -> None:
    results = []
    for build in TWINS["AdamW"]:
        trained = torch.nn.Linear(6, 2, dtype=torch.float64)
        with torch.no_grad():
            [p.fill_(0.1) for p in trained.parameters()]
        first = build(trained.parameters(), lr=0.05)
        train(trained, first, range(2))
        model = torch.nn.LazyLinear(2, dtype=torch.float64)
        optimizer = build(model.parameters(), lr=0.05)
        optimizer.load_state_dict(first.state_dict())
        model(batch(0)[0])
        model.load_state_dict(trained.state_dict())
        train(model, optimizer, range(2, 4))
        results.append(model)
    assert difference(*results) <= ROUNDING


def put_away(tensor: torch.Tensor, how: str) -> Callable[[], Any]:
    """Takes a tensor's memory from it; returns what gives it back."""
    kept = tensor.detach().clone()
    if how == "resize":
        tensor.untyped_storage().resize_(0)
        return lambda: (tensor.untyped_storage().resize_(kept.nbytes), tensor.detach().copy_(kept))
    tensor.data = {
        "another size": torch.empty(0, dtype=kept.dtype),
        "flat": kept.reshape(-1),
        "another dtype": kept.float(),
    }[how]
    return lambda: setattr(tensor, "data", kept)


@pytest.mark.usefixtures("each_path")
@pytest.mark.parametrize("state", [False, True], ids=["parameters", "and state"])
@pytest.mark.parametrize("how", ["another size", "resize", "flat", "another dtype"])
def test_memory_is_put_away_between_steps(how: str, state: bool) -> None:
    """As offloading does and FSDP, which let everything else go on meanwhile."""
    results = []
    for build in TWINS["AdamW"]:
        params = make_parameters([(6, 5), (3,), (), (70,)])
        optimizer = build(params, lr=0.05)
        for step in range(4):
            take_steps(params, optimizer, [step])
            optimizer.zero_grad()
            found = [v for e in optimizer.state.values() for k, v in e.items() if torch.is_tensor(v) and k != "step"]
            back = [put_away(tensor, how) for tensor in [*params, *(found if state else [])]]
            optimizer.step()
            optimizer.state_dict()
            for give_back in back:
                give_back()
        results.append(params)
    assert largest_difference(*results) <= ROUNDING


TAKEN: dict[str, Callable[[Any, torch.Tensor], Any]] = {
    "other data": lambda optimizer, p: setattr(p, "data", p.detach().clone()),
    "another tensor in an entry": lambda o, p: o.state[p].update(exp_avg=o.state[p]["exp_avg"].clone()),
    "another entry": lambda optimizer, p: optimizer.state.update({p: copy.deepcopy(optimizer.state[p])}),
    "no entry": lambda optimizer, p: optimizer.state.pop(p),
    "no state": lambda optimizer, p: optimizer.state.clear(),
    "another state": lambda optimizer, p: setattr(optimizer, "state", collections.defaultdict(dict)),
    "a loaded state": lambda optimizer, p: optimizer.load_state_dict(copy.deepcopy(optimizer.state_dict())),
    "another parameter": lambda optimizer, p: optimizer.param_groups[0]["params"].__setitem__(
        0, torch.nn.Parameter(p.detach().clone())
    ),
}


@pytest.mark.usefixtures("each_path")
@pytest.mark.parametrize("name", TAKEN)
def test_what_an_optimizer_has_no_more_it_does_not_write(name: str) -> None:
    """A tensor that its user took out, and keeps: later steps are none of its business. Views go along."""
    results = []
    for module in (torch.optim, optim):
        params = make_parameters([(4, 3), (5,)])
        optimizer = module.AdamW(params, lr=0.05)
        take_steps(params, optimizer, range(2))
        entry, old = optimizer.state[params[0]], params[0].data
        taken = [entry["exp_avg"] if name != "other data" else old]
        if name not in ("other data", "another tensor in an entry"):
            taken += [entry["exp_avg_sq"], entry["step"]]
        kept, view = copy.deepcopy(taken), params[0].detach().view(-1)
        TAKEN[name](optimizer, params[0])
        take_steps(optimizer.param_groups[0]["params"], optimizer, range(2, 5))
        assert all(torch.equal(a, b) for a, b in zip(taken, kept, strict=True))
        results.append([*optimizer.param_groups[0]["params"], view])
    assert largest_difference(*results) <= ROUNDING


# Hyperparameters.


@pytest.mark.parametrize("kept", [(), (0, 3)], ids=["all", "some"])
@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_checkpoints_of_sgd_from_when_a_momentum_might_be_none(momentum: float, kept: Sequence[int]) -> None:
    def run(params: Any, optimizer: Any) -> Any:
        take_steps(params, optimizer, range(2))
        saved = copy.deepcopy(optimizer.state_dict())
        saved["state"] = {i: saved["state"].get(i) if i in kept else None for i in range(len(params))}
        saved["state"] = {i: entry or {"momentum_buffer": None} for i, entry in saved["state"].items()}
        optimizer.load_state_dict(saved)
        loaded = [sorted(entry) for entry in optimizer.state.values()]
        take_steps(params, optimizer, range(2, 5))
        return loaded, [sorted(entry) for entry in optimizer.state_dict()["state"].values()]

    both(run, lambda module, params: module.SGD(params, lr=0.05, momentum=momentum, dampening=0.3))


CYCLING = {
    "SGD": {"momentum": 0.9, "nesterov": True},
    "RMSprop": {"momentum": 0.9},
    "Adam": {"amsgrad": True},
    "AdamW": {},
    "NAdam": {},
    "RAdam": {},
    "Adamax": {},
}

# At 1 exactly, torch's Adams divide by zero.
SCHEDULERS = {
    "cyclic": lambda o: lr_scheduler.CyclicLR(o, 0.01, 0.05, 3, base_momentum=0.0, max_momentum=0.95),
    "cyclic beyond 1": lambda o: lr_scheduler.CyclicLR(o, 0.001, 0.005, 3, base_momentum=0.9, max_momentum=1.5),
    "one cycle": lambda o: lr_scheduler.OneCycleLR(o, 0.05, 12),
    "one cycle beyond 1": lambda o: lr_scheduler.OneCycleLR(o, 0.005, 12, base_momentum=0.5, max_momentum=1.25),
}


@pytest.mark.parametrize("name", CYCLING)
@pytest.mark.parametrize("schedule", SCHEDULERS)
def test_momentum_cycles(schedule: str, name: str) -> None:
    def run(params: Any, optimizer: Any) -> Any:
        scheduler = SCHEDULERS[schedule](optimizer)
        seen = []
        for step in range(11):
            take_steps(params, optimizer, [step])
            scheduler.step()
            seen.append([optimizer.param_groups[0].get(key) for key in ("lr", "momentum", "betas")])
        return seen

    ours, _ = both(run, lambda module, params: getattr(module, name)(params, lr=0.01, **CYCLING[name]))
    assert isinstance(ours, TorchBridge)
    assert ours.compilations == 1


@pytest.mark.parametrize("values", [(0.9, 0.0, 0.9), (0.9, 0, 1, 0.5), (0.9, 1.5, 0.0, 0.9)])
@pytest.mark.parametrize("name", ["SGD", "RMSprop"])
def test_momentum_of_zero_for_a_step_keeps_buffer_and_program(name: str, values: Sequence[float]) -> None:
    def run(params: Any, optimizer: Any) -> None:
        buffers = []
        for step, value in enumerate(values):
            optimizer.param_groups[0]["momentum"] = value
            take_steps(params, optimizer, [step])
            buffers.append([optimizer.state[p]["momentum_buffer"] for p in params])
        assert all(a is b for own in buffers for a, b in zip(own, buffers[0], strict=True))

    ours, _ = both(run, lambda module, params: getattr(module, name)(params, lr=0.05, momentum=0.9))
    assert isinstance(ours, TorchBridge)
    assert ours.compilations == 1


@pytest.mark.parametrize("nesterov", [False, True])
def test_momentum_warms_up_from_zero(nesterov: bool) -> None:
    def run(params: Any, optimizer: Any) -> None:
        for step, value in enumerate((0.0, 0.3, 0.6)):
            optimizer.param_groups[0]["momentum"] = value
            take_steps(params, optimizer, [step])

    both(run, lambda module, params: module.SGD(params, lr=0.05, momentum=0.9, nesterov=nesterov))


TENSOR_LR = ("SGD", "Adam", "AdamW", "NAdam", "RAdam", "Adamax", "RMSprop", "Adagrad", "Adadelta", "ASGD", "Adafactor")
FUSED = ("SGD", "Adam", "AdamW", "Adagrad")


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("name", TENSOR_LR)
def test_lr_is_a_tensor_that_is_filled(name: str, dtype: torch.dtype) -> None:
    """As torch's fused implementations, and as numbers of the same value.

    With a rate of float32 torch's other implementations round some of what they compute from it to float32, Adam's
    `lr / (1 - beta1**t)` or AdamW's `1 - lr * weight_decay`: up to 1e-7 from its own fused ones, and from these.
    """

    def run(params: Any, optimizer: Any) -> Any:
        group = optimizer.param_groups[0]
        for step in range(4):
            take_steps(params, optimizer, [step])
            rate = torch.tensor(0.05 / (2 + step), dtype=dtype)
            if isinstance(group["lr"], torch.Tensor):
                group["lr"].fill_(rate)
            else:
                group["lr"] = float(rate)

    def make(module: Any, params: Any, *, number: bool = False) -> Any:
        options: dict[str, Any] = {} if name == "SGD" else {"weight_decay": 0.1}
        lr = torch.tensor(0.05, dtype=dtype)
        theirs = module is torch.optim
        options |= {"fused": True} if theirs and name in FUSED else {}
        return getattr(module, name)(params, lr=float(lr) if theirs and number else lr, **options)

    ours, _ = both(run, partial(make, number=name not in FUSED))
    assert isinstance(ours, TorchBridge)
    assert ours.compilations == 1
    by_torch = make_parameters(SHAPES)
    run(by_torch, getattr(torch.optim, name)(by_torch, lr=torch.tensor(0.05, dtype=dtype), weight_decay=0.0))
    by_us = make_parameters(SHAPES)
    run(by_us, getattr(optim, name)(by_us, lr=torch.tensor(0.05, dtype=dtype), weight_decay=0.0))
    assert largest_difference(by_us, by_torch) <= (ROUNDING if dtype == torch.float64 else 2.0**-23)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("name", ["Adam", "AdamW"])
def test_betas_are_tensors_that_are_filled(name: str, dtype: torch.dtype) -> None:
    """As numbers of the same values; for float32 see the rate."""

    def run(params: Any, optimizer: Any) -> Any:
        group = optimizer.param_groups[0]
        for step in range(4):
            take_steps(params, optimizer, [step])
            new = [torch.tensor(0.5 + 0.1 * step, dtype=dtype), torch.tensor(0.9 + 0.01 * step, dtype=dtype)]
            if isinstance(group["betas"][0], torch.Tensor):
                _ = [old.fill_(value) for old, value in zip(group["betas"], new, strict=True)]
            else:
                group["betas"] = (float(new[0]), float(new[1]))

    def make(module: Any, params: Any) -> Any:
        lr = torch.tensor(0.05, dtype=dtype)
        betas = (torch.tensor(0.9, dtype=dtype), torch.tensor(0.99, dtype=dtype))
        if module is torch.optim:
            return getattr(module, name)(params, lr=float(lr), betas=tuple(map(float, betas)))
        return getattr(module, name)(params, lr=lr, betas=betas)

    both(run, make)


@pytest.fixture
def float64_by_default() -> Iterator[None]:
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


@pytest.mark.usefixtures("float64_by_default")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("name", ["Adam", "Adagrad", "Adafactor", "RMSprop", "NAdam", "ASGD"])
def test_counts_and_other_numbers_are_in_a_default_dtype_of_float64(name: str, dtype: torch.dtype) -> None:
    results = []
    for module in (optim, torch.optim):
        params = make_parameters([(4, 3), (5,)], dtype)
        optimizer = getattr(module, name)(params, lr=0.05)
        take_steps(params, optimizer, range(4))
        entries = [{key: value.dtype for key, value in optimizer.state[p].items()} for p in params]
        results.append((params, entries))
    assert results[0][1] == results[1][1]
    # A few ulp.
    rounding = ROUNDING if dtype == torch.float64 else 8 * 2.0**-23
    assert largest_difference(results[0][0], results[1][0]) <= rounding


OWN: dict[str, Any] = {
    "lr_mult": 3.0,
    "decay_mult": None,
    "name": "first",
    "factors": [1, 2],
    "step": lambda: 1,
    "state": {"a": torch.ones(2)},
    "schedule_step": "none",
}


@pytest.mark.parametrize("name", ["SGD", "AdamW"])
def test_further_fields_of_groups_are_the_users_own(name: str) -> None:
    """From the constructor, `add_param_group` and checkpoints: kept, without an effect or a warning."""

    def run(params: Any, optimizer: Any) -> Any:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            optimizer.add_param_group({"params": make_parameters([(2,)]), "decay_mult": "much", "lr_mult": -1.0})
            take_steps(params, optimizer, range(2))
            saved = copy.copy(optimizer.state_dict())
            saved["param_groups"] = [{**group, "lr_mult": 5.0, "later": 1} for group in saved["param_groups"]]
            optimizer.load_state_dict(saved)
            take_steps(params, optimizer, range(2, 4))
        assert optimizer.param_groups[0]["step"] is OWN["step"]
        own = [{key: group.get(key) for key in ("lr_mult", "decay_mult", "name")} for group in optimizer.param_groups]
        return own, [sorted(group) for group in optimizer.param_groups]

    def make(module: Any, params: Any) -> Any:
        return getattr(module, name)([{"params": params, **OWN}], lr=0.05, weight_decay=0.1)

    both(run, make)


def test_multipliers_mean_something_to_the_bridge() -> None:
    """So that the test above could fail."""
    results = []
    for own in ({}, {"lr_mult": 3.0}):
        params = make_parameters(SHAPES)
        take_steps(params, TorchBridge([{"params": params, **own}], funcopt.adamw, lr=0.05), range(2))
        results.append(params)
    assert largest_difference(*results) > 0.01
