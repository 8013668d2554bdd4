"""torch.distributed.checkpoint takes the bridge's state by parameter name, nested or flattened, and gives it back."""

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_optimizer_state_dict,
    get_state_dict,
    set_optimizer_state_dict,
    set_state_dict,
)
from twins import EACH_TWIN, ROUNDING, TWINS, Twin, difference, make_model, train

EACH_LAYOUT = pytest.mark.parametrize("flat", [False, True], ids=["nested", "flattened"])

pytestmark = [
    # Without a process group torch says so at each call; it also uses two of its own deprecated names.
    pytest.mark.filterwarnings("ignore:torch.distributed is disabled, unavailable or uninitialized"),
    pytest.mark.filterwarnings("ignore:TypedStorage is deprecated"),
]


def options(flat: bool) -> StateDictOptions:
    return StateDictOptions(flatten_optimizer_state_dict=flat)


def save(path: Path, model: torch.nn.Module, optimizer: torch.optim.Optimizer, flat: bool) -> None:
    weights, state = get_state_dict(model, optimizer, options=options(flat))
    dcp.save({"model": weights, "optimizer": state}, checkpoint_id=path)


def load(path: Path, model: torch.nn.Module, optimizer: torch.optim.Optimizer, flat: bool) -> None:
    """As torch's tutorial does: what is saved is read into the tensors of a fresh model's and optimizer's state."""
    weights, state = get_state_dict(model, optimizer, options=options(flat))
    dcp.load({"model": weights, "optimizer": state}, checkpoint_id=path)
    set_state_dict(model, optimizer, model_state_dict=weights, optim_state_dict=state, options=options(flat))


@EACH_TWIN
@EACH_LAYOUT
@pytest.mark.usefixtures("each_path")
def test_save_and_resume(twin: Twin, flat: bool, tmp_path: Path) -> None:
    ours, theirs = make_model(), make_model()
    train(theirs, twin.theirs(theirs.parameters(), lr=0.05), range(12))

    first = twin.ours(ours.parameters(), lr=0.05)
    train(ours, first, range(5))
    save(tmp_path, ours, first, flat)
    resumed = make_model(seed=9)
    second = twin.ours(resumed.parameters(), lr=0.7)
    load(tmp_path, resumed, second, flat)
    train(resumed, second, range(5, 12))
    assert difference(resumed, theirs) <= ROUNDING


@pytest.mark.parametrize("name", ["AdamW", "SGD"])
@EACH_LAYOUT
def test_checkpoints_move_both_ways(name: str, flat: bool, tmp_path: Path) -> None:
    """What torch.optim saved is loaded by the bridge, and the reverse."""
    expected = make_model()
    train(expected, TWINS[name].theirs(expected.parameters(), lr=0.05), range(12))
    for i, (build, rebuild) in enumerate((TWINS[name], TWINS[name][::-1])):
        model, resumed = make_model(), make_model(seed=9)
        optimizer, other = build(model.parameters(), lr=0.05), rebuild(resumed.parameters(), lr=0.7)
        train(model, optimizer, range(5))
        save(tmp_path / str(i), model, optimizer, flat)
        load(tmp_path / str(i), resumed, other, flat)
        train(resumed, other, range(5, 12))
        assert difference(resumed, expected) <= ROUNDING


@pytest.mark.parametrize("twin", [TWINS["SGD"], TWINS["recipe"]], ids=["SGD", "recipe"])
@EACH_LAYOUT
def test_keys_are_there_before_the_first_step(twin: Twin, flat: bool) -> None:
    """A run that is asked for its state before it starts has the keys of one that is under way."""

    def keys(value: Any, path: tuple[Any, ...] = ()) -> set[tuple[Any, ...]]:
        if not isinstance(value, dict):
            return {path}
        return {leaf for key, inner in value.items() for leaf in keys(inner, (*path, key))}

    model, started = make_model(), make_model()
    optimizer, running = twin.ours(model.parameters()), twin.ours(started.parameters())
    train(started, running, range(2))
    early = get_optimizer_state_dict(model, optimizer, options=options(flat))
    assert keys(early) == keys(get_optimizer_state_dict(started, running, options=options(flat)))


@pytest.mark.parametrize("name", ["SGD", "AdamW"])
def test_asking_for_the_state_is_what_it_is_in_torch(name: str) -> None:
    """Before the first step there is no state, and to get some torch takes a step with learning rate 0."""
    results = []
    for build in TWINS[name]:
        model = make_model()
        optimizer = build(model.parameters(), lr=0.05)
        for step in range(4):
            get_optimizer_state_dict(model, optimizer)
            assert step or difference(model, make_model()) == 0.0
            get_optimizer_state_dict(model, optimizer, options=options(True))
            train(model, optimizer, [step])
        results.append(model)
    assert difference(*results) <= ROUNDING


@EACH_LAYOUT
def test_groups_are_told_apart_by_name(flat: bool, tmp_path: Path) -> None:
    """Named groups with numbers of their own, and a frozen parameter, which has no state."""

    def build(model: torch.nn.Module, make: Callable[..., torch.optim.Optimizer]) -> torch.optim.Optimizer:
        first, second = model[0], model[2]
        first.bias.requires_grad_(False)
        groups = [{"params": list(first.parameters()), "lr": 0.02}, {"params": list(second.parameters())}]
        return make(groups, lr=0.1)

    ours, theirs, resumed = make_model(), make_model(), make_model(seed=9)
    optimizer, reference = build(ours, TWINS["AdamW"].ours), build(theirs, TWINS["AdamW"].theirs)
    train(ours, optimizer, range(4))
    train(theirs, reference, range(8))
    resumed.load_state_dict(ours.state_dict())
    second = build(resumed, TWINS["AdamW"].ours)
    state = copy.deepcopy(get_optimizer_state_dict(ours, optimizer, options=options(flat)))
    set_optimizer_state_dict(resumed, second, state, options=options(flat))
    train(resumed, second, range(4, 8))
    assert difference(resumed, theirs) <= ROUNDING
