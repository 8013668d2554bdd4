"""Programs belong to the process: what one optimizer has had compiled, no other compiles again.

Counted are XLA's own compilations, of whatever: also those of an operation that runs by itself.
"""

import contextlib
import copy
import math
import pickle
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import optax
import pytest
import torch
from torch.optim import lr_scheduler
from twins import ROUNDING, TWINS, largest_difference, make_parameters, take_steps

import funcopt
from funcopt import TorchBridge
from funcopt.torch_bridge import optim
from funcopt.torch_bridge._binding import Binding
from funcopt.torch_bridge.engines._xla import forget_programs
from funcopt.torch_bridge.store import _store

Params = Sequence[torch.nn.Parameter]

SHAPES = [(6, 8), (8,), (8, 2), ()]
LARGE = (_store.JOIN_UP_TO + 1,)

BUILDS: dict[str, Callable[..., torch.optim.Optimizer]] = {
    **{name: twin.ours for name, twin in TWINS.items()},
    "Adafactor": optim.Adafactor,
}
# optax's factories and Adafactor run in the parameters' own shapes.
BY_ROWS = ["AdamW", "SGD", "recipe"]

_compiled: list[float] = []


def _note(event: str, seconds: float, **_: Any) -> None:
    if event == "/jax/core/compile/backend_compile_duration":
        _compiled.append(seconds)


jax.monitoring.register_event_duration_secs_listener(_note)


@contextlib.contextmanager
def compiling(at_most: int) -> Iterator[None]:
    before = len(_compiled)
    yield
    assert len(_compiled) - before <= at_most


def first_run(name: str) -> tuple[list[torch.nn.Parameter], Any]:
    """An optimizer that has made two steps, the first of which compiled."""
    params = make_parameters([*SHAPES, LARGE])
    optimizer = BUILDS[name](params, lr=0.05)
    take_steps(params, optimizer, range(2))
    return params, optimizer


@pytest.mark.one_engine
def test_compilations_are_counted() -> None:
    forget_programs()
    before = len(_compiled)
    first_run("AdamW")
    assert len(_compiled) > before


# What comes after the first run; each gets its parameters and its optimizer.

LATER: dict[str, Callable[[str, list[torch.nn.Parameter], Any], Any]] = {}


def later(fn: Any) -> Any:
    LATER[fn.__name__] = fn
    return fn


@later
def second_optimizer(name: str, params: Any, optimizer: Any) -> Any:
    own = make_parameters([*SHAPES, LARGE], seed=1)
    take_steps(own, BUILDS[name](own, lr=0.3), range(3))


@later
def twenty_agents(name: str, params: Any, optimizer: Any) -> Any:
    for agent in range(20):
        own = make_parameters([*SHAPES, LARGE], seed=agent)
        take_steps(own, BUILDS[name](own, lr=0.01 * (1 + agent)), range(2))


@later
def load_state_dict(name: str, params: Any, optimizer: Any) -> Any:
    saved = copy.deepcopy(optimizer.state_dict())
    optimizer.load_state_dict(optimizer.state_dict())
    take_steps(params, optimizer, [2])
    own = make_parameters([*SHAPES, LARGE])
    resumed = BUILDS[name](own, lr=0.1)
    resumed.load_state_dict(saved)
    take_steps(own, resumed, [2])


@later
def state_edits(name: str, params: Any, optimizer: Any) -> Any:
    for step, edit in enumerate((dict, copy.deepcopy)):
        for p in params:
            optimizer.state[p] = edit() if edit is dict else edit(optimizer.state[p])
        take_steps(params, optimizer, [step])
    optimizer.state.pop(params[0], None)
    take_steps(params, optimizer, [2])
    optimizer.state.clear()
    take_steps(params, optimizer, [3])


@later
def copies(name: str, params: Any, optimizer: Any) -> Any:
    for own, other in (copy.deepcopy((params, optimizer)), pickle.loads(pickle.dumps((params, optimizer)))):
        take_steps(own, other, [2])
    take_steps(params, copy.copy(optimizer), [2])


@later
def other_numbers(name: str, params: Any, optimizer: Any) -> Any:
    scheduler = lr_scheduler.CosineAnnealingLR(optimizer, 5)
    for step in range(3):
        for group in optimizer.param_groups:
            if group.get("weight_decay"):
                group["weight_decay"] = 0.01 * (1 + step)
            if "betas" in group:
                group["betas"] = (0.5 + 0.1 * step, 0.99)
        take_steps(params, optimizer, [step])
        scheduler.step()


@later
def other_data(name: str, params: Any, optimizer: Any) -> Any:
    for p in params:
        p.data = p.data.clone()
    take_steps(params, optimizer, [2])
    for p in params:
        p.untyped_storage().resize_(0)
        p.untyped_storage().resize_(p.numel() * p.element_size())
        p.data.fill_(0.5)
    take_steps(params, optimizer, [3])


@pytest.mark.parametrize("act", LATER.values(), ids=LATER)
@pytest.mark.parametrize("name", BUILDS)
def test_nothing_is_compiled_again(name: str, act: Any) -> None:
    params, optimizer = first_run(name)
    with compiling(at_most=0):
        act(name, params, optimizer)
    assert optimizer.compilations <= 1


# Of programs by rows only.


@pytest.mark.parametrize("name", BY_ROWS)
def test_groups_and_small_shapes_are_numbers(name: str) -> None:
    """Known shapes in other orders and groups, one group each, groups added, gradients missing, other small shapes."""
    first_run(name)
    with compiling(at_most=0):
        params = make_parameters([LARGE, *reversed(SHAPES)])
        optimizer: Any = BUILDS[name]([{"params": [p], "lr": 0.01 * i} for i, p in enumerate(params)])
        take_steps(params, optimizer, range(2))
        for i in range(10):
            params += make_parameters([(3, i + 1), (2,)], seed=i)
            optimizer.add_param_group({"params": params[-2:], "lr": 0.02})
            take_steps(params, optimizer, [i], lambda own, i: setattr(own[-i - 1], "grad", None))
        params += make_parameters([(5,)])
        optimizer.param_groups[3]["params"].append(params[-1])
        optimizer.param_groups.reverse()
        take_steps(params, optimizer, range(2))


def grow(tensor: torch.Tensor, rows: int) -> torch.Tensor:
    """So many rows, of which further ones are 0."""
    more = max(0, rows - len(tensor))
    return torch.cat([tensor, torch.zeros(more, *tensor.shape[1:], dtype=tensor.dtype)])[:rows]


def densify(build: Any, sizes: Sequence[int]) -> tuple[list[torch.nn.Parameter], Any]:
    """As Gaussian splatting does: four groups with a parameter of so many rows, which keeps its state."""
    params = [torch.nn.Parameter(torch.ones(sizes[0], n, dtype=torch.float64)) for n in (3, 3, 4, 1)]
    optimizer = build([{"params": [p]} for p in params], lr=0.01)
    for step, rows in enumerate(sizes):
        for i, group in enumerate(optimizer.param_groups):
            (old,) = group["params"]
            entry = optimizer.state.pop(old, {})
            params[i] = torch.nn.Parameter(grow(old.detach(), rows))
            group["params"][0] = params[i]
            if entry:
                optimizer.state[params[i]] = {k: grow(v, rows) if v.shape == old.shape else v for k, v in entry.items()}
        take_steps(params, optimizer, [2 * step, 2 * step + 1])
    return params, optimizer


@pytest.mark.parametrize(("name", "rows"), [*((name, 30) for name in BY_ROWS), ("recipe", 6000)])
def test_densification(name: str, rows: int) -> None:
    """30 stages, in which 11 times as much comes to be, with a fifth of it pruned now and then."""
    sizes = [rows]
    for stage in range(30):
        sizes.append(int(sizes[-1] * (0.8 if stage % 5 == 4 else 1.16)) + 1)
    forget_programs()
    doublings = math.log2(max(sizes) / rows)
    # One at first, one when rows begin to come and go; a size is rounded up to an eighth of its power of two or more.
    with compiling(at_most=3 + math.ceil(2 * doublings)):
        params, optimizer = densify(TWINS[name].ours, sizes)
    expected, _ = densify(TWINS[name].theirs, sizes)
    assert largest_difference(params, expected) <= ROUNDING
    assert isinstance(optimizer, TorchBridge)
    with compiling(at_most=0):
        densify(TWINS[name].ours, sizes)


def stages(widths: Sequence[int]) -> None:
    """Networks of more and more units, each with an optimizer that loads what the last one had, as far as it goes."""
    saved: Any = None
    for width in widths:
        params = make_parameters([(6, width), (width,), (width, width), (width, 2)])
        optimizer = optim.AdamW(params, lr=0.01)
        if saved is not None:
            for i, p in enumerate(params):
                for key in ("exp_avg", "exp_avg_sq"):
                    saved["state"][i][key] = torch.zeros_like(p)
            optimizer.load_state_dict(saved)
        take_steps(params, optimizer, range(2))
        saved = optimizer.state_dict()


def test_stages_of_growth() -> None:
    """30 of them up to 180 x 180, all of which are joined with others."""
    widths = [6 * (1 + i) for i in range(30)]
    forget_programs()
    # Rows double three times; some programs are compiled in two ways, of which the better one stays.
    with compiling(at_most=6):
        stages(widths)
    with compiling(at_most=0):
        stages(widths)


def test_stages_of_growth_of_a_large_parameter() -> None:
    """20, from 200 x 200 to 238 x 238: not one program for each, but for the first ones and for what rounds them up."""
    forget_programs()
    with compiling(at_most=_store.MAX_SIZES + 4):
        stages([200 + 2 * i for i in range(20)])


def test_large_parameters_that_grow_no_more_are_no_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows are what growing costs least in; a step costs least in a place of one's own."""
    monkeypatch.setattr(_store, "QUIET_STEPS", 4)

    def run(module: Any) -> Params:
        params = make_parameters([(200, 200), (3,), (210, 190)])
        optimizer = module.AdamW(params, lr=0.05)
        places = []
        for step in range(12):
            if step == 2:
                params[0] = torch.nn.Parameter(params[0].detach()[:190].clone())
                optimizer.param_groups[0]["params"][0] = params[0]
            take_steps(params, optimizer, [step])
            if isinstance(optimizer, TorchBridge):
                places.append([block.joined for block in optimizer._store.blocks])
        if places:
            assert places[1] == [True, False, False]
            assert places[4] == [True, False]
            assert places[-1] == [True, False, False]
        return params

    assert largest_difference(run(optim), run(torch.optim)) <= ROUNDING


@pytest.mark.parametrize("name", ["Muon", "Adafactor"])
def test_groups_that_are_added_to_recipes_in_their_own_shapes(
    name: str, engine: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A program for all is made for the first divisions and for one that stays; between them there is one for each."""
    monkeypatch.setattr(_store, "QUIET_STEPS", 4)

    def run(module: Any) -> tuple[Params, list[int]]:
        layers = [make_parameters([(4, 3), (3, 4)]) for _ in range(8)]
        optimizer = getattr(module, name)(layers[0], lr=0.05)
        programs = []
        for layer in layers[1:]:
            take_steps([p for group in optimizer.param_groups for p in group["params"]], optimizer, [0])
            optimizer.add_param_group({"params": layer, "lr": 0.02})
            programs.append(getattr(optimizer, "compilations", 0))
        params = [p for layer in layers for p in layer]
        for step in range(8):
            take_steps(params, optimizer, [step])
            programs.append(getattr(optimizer, "compilations", 0))
        return params, programs

    (ours, programs), (theirs, _) = run(optim), run(torch.optim)
    # torch adds the products of bfloat16 numbers in another order than its product of float32 ones: among many, one
    # falls to the other side when the sum is rounded to bfloat16.
    one_side = 0.02 * 2**-8 if (name, engine) == ("Muon", "torch") else 0.0
    assert largest_difference(ours, theirs) <= ROUNDING + one_side
    # Three together, one for each of two shapes; then one together again.
    assert programs == [1, 2, 3, *[5] * 8, *[6] * 4]


@pytest.mark.parametrize("factory", [optax.adam, funcopt.adafactor, funcopt.muon], ids=lambda f: f.__name__)
def test_a_recipe_in_its_own_shapes_is_not_traced_again(factory: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    params = make_parameters([(4, 3), (3, 4), (4, 3)])
    optimizer = TorchBridge(params, factory, lr=0.1)
    take_steps(params, optimizer, range(2))
    built: list[Any] = []
    build = Binding.build
    monkeypatch.setattr(Binding, "build", lambda self, groups: built.append(groups) or build(self, groups))
    take_steps(params, optimizer, range(2, 4))
    assert not built
