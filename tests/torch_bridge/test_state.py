"""`optimizer.state` as the code of others uses it: read per parameter, assigned, deleted, copied."""

import collections
import copy
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from twins import EACH_TWIN, ROUNDING, TWINS, Twin, difference, make_model, train

import funcopt
from funcopt import TorchBridge

pytestmark = pytest.mark.usefixtures("each_path")


def test_entries_are_live() -> None:
    model = make_model()
    optimizer = TWINS["recipe"].ours(model.parameters())
    train(model, optimizer, range(2))
    p = model[0].weight
    entry, moment = optimizer.state[p], optimizer.state[p]["exp_avg"]
    kept = copy.deepcopy(entry)
    train(model, optimizer, range(2, 4))
    assert optimizer.state[p] is entry
    assert entry["exp_avg"] is moment
    assert (int(kept["step"]), int(entry["step"])) == (2, 4)
    assert not torch.equal(kept["exp_avg"], moment)


def test_parameters_without_state() -> None:
    model = make_model()
    optimizer = TorchBridge(model.parameters(), funcopt.sgd)
    train(model, optimizer, range(1))
    assert type(optimizer.state) is collections.defaultdict
    assert not optimizer.state
    assert optimizer.state[model[0].weight] == {}
    train(model, optimizer, range(1, 2))


@EACH_TWIN
def test_assigned_entries_are_used(twin: Twin) -> None:
    """All of the state is taken from another optimizer, one parameter at a time."""
    model, expected = make_model(), make_model()
    source, reference = twin.ours(model.parameters(), lr=0.05), twin.theirs(expected.parameters(), lr=0.05)
    train(model, source, range(4))
    train(expected, reference, range(8))
    optimizer = twin.ours(model.parameters(), lr=0.05)
    for p, entry in source.state.items():
        optimizer.state[p] = entry
    train(model, optimizer, range(4, 8))
    assert difference(model, expected) <= ROUNDING


@pytest.mark.parametrize(
    "remove",
    [lambda state, p: state.__delitem__(p), lambda state, p: state.pop(p), lambda state, p: state.pop(p, None)],
    ids=["del", "pop", "pop with a default"],
)
def test_deleted_entries_start_anew(remove: Callable[[Any, torch.Tensor], Any]) -> None:
    results = []
    for build in TWINS["AdamW"]:
        model = make_model()
        optimizer = build(model.parameters(), lr=0.05)
        train(model, optimizer, range(3))
        remove(optimizer.state, model[0].weight)
        train(model, optimizer, range(3, 6))
        assert [int(optimizer.state[p]["step"]) for p in model.parameters()] == [3, 6, 6, 6]
        results.append(model)
    assert difference(*results) <= ROUNDING


def test_cleared() -> None:
    results = []
    for build in TWINS["SGD"]:
        model = make_model()
        optimizer = build(model.parameters(), lr=0.05)
        train(model, optimizer, range(3))
        optimizer.state.clear()
        train(model, optimizer, range(3, 6))
        results.append(model)
    assert difference(*results) <= ROUNDING


def test_a_parameter_is_replaced_by_a_larger_one() -> None:
    """As programs do that grow a layer while they train: the old entry, padded, becomes that of the new parameter."""
    results = []
    for build in TWINS["AdamW"]:
        model = make_model()
        optimizer = build(model.parameters(), lr=0.05)
        train(model, optimizer, range(3))
        old, zeros = model[0].weight, torch.zeros(8, 2, dtype=torch.float64)
        entry = optimizer.state.pop(old)
        grown = torch.nn.Parameter(torch.cat([old.detach(), zeros], 1))
        for name in ("exp_avg", "exp_avg_sq"):
            entry[name] = torch.cat([entry[name], zeros], 1)
        optimizer.param_groups[0]["params"][0] = grown
        optimizer.state[grown] = entry
        for step in range(3):
            for p in optimizer.param_groups[0]["params"]:
                p.grad = torch.full_like(p, 0.1 * (step - 1))
            optimizer.step()
        results.append(torch.nn.ParameterList(optimizer.param_groups[0]["params"]))
    assert results[0][0].shape == (8, 8)
    assert difference(*results) <= ROUNDING


def test_a_step_refuses_state_that_does_not_fit_and_changes_nothing() -> None:
    model = make_model()
    optimizer = TWINS["AdamW"].ours(model.parameters())
    train(model, optimizer, range(2))
    p = model[0].bias
    fitting = optimizer.state[p]["exp_avg"]
    before = copy.deepcopy((list(model.parameters()), optimizer.state_dict()))
    for name, value, message in [
        ("exp_avg", torch.zeros(3), "exp_avg of parameter 1 of group 0 must have shape"),
        ("exp_avg", torch.zeros(8, dtype=torch.complex128), "exp_avg of parameter 1 of group 0 must be like float64"),
        ("exp_avg", None, "parameter 1 of group 0 must have the state 'exp_avg'"),
    ]:
        optimizer.state[p][name] = value
        with pytest.raises(RuntimeError, match=message):
            train(model, optimizer, [2])
        optimizer.state[p][name] = fitting
        assert all(torch.equal(a, b) for a, b in zip(model.parameters(), before[0], strict=True))
        for i, entry in optimizer.state_dict()["state"].items():
            assert all(torch.equal(value, before[1]["state"][i][key]) for key, value in entry.items())
    train(model, optimizer, [2])


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda pair: pickle.loads(pickle.dumps(pair))])
def test_copies_are_plain(duplicate: Callable[[Any], Any]) -> None:
    model = make_model()
    optimizer = TWINS["AdamW"].ours(model.parameters())
    train(model, optimizer, range(2))
    params, state = duplicate((list(model.parameters()), optimizer.state))
    assert type(state) is collections.defaultdict
    assert list(state) == params
    assert torch.equal(state[params[0]]["exp_avg"], optimizer.state[model[0].weight]["exp_avg"])
