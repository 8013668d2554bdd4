"""State that a reference keeps in its groups, as vectors, or not at all: `Keys.group`, `Keys.flat`, `Keys.own`."""

import copy
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

import funcopt
from funcopt.torch_bridge import from_torch_state_dict, optim, to_torch_state_dict

SHAPES = {"w": (2, 3), "b": (3,)}


def parameters() -> list[tuple[str, torch.nn.Parameter]]:
    generator = torch.Generator().manual_seed(0)
    return [(name, torch.nn.Parameter(torch.randn(shape, generator=generator))) for name, shape in SHAPES.items()]


def step(optimizer: Any, steps: range, names: tuple[str, ...] = ("w", "b")) -> None:
    for i in steps:
        generator = torch.Generator().manual_seed(10 + i)
        for group in optimizer.param_groups:
            for name, p in zip(group["param_names"], group["params"], strict=True):
                grad = torch.randn(p.shape, generator=generator)
                p.grad = grad if name in names else None
        optimizer.step()


def prodigy(named: Any) -> Any:
    return optim.Prodigy(named, d0=1e-2)


def trained(steps: int = 3) -> Any:
    optimizer = prodigy(parameters())
    step(optimizer, range(steps))
    return optimizer


def test_groups_have_what_the_reference_keeps_there() -> None:
    optimizer = trained()
    saved = optimizer.state_dict()
    (group,) = saved["param_groups"]
    entry = optimizer.state[optimizer.param_groups[0]["params"][0]]
    assert group["k"] == 3
    assert isinstance(group["k"], int)
    assert {name: group[name] for name in ("d", "d_max", "d_numerator")} == {
        name: float(entry[name]) for name in ("d", "d_max", "d_numerator")
    }
    assert "d" not in optimizer.param_groups[0]
    assert saved["state"][0]["s"].shape == (6,)
    assert entry["s"].shape == (2, 3)


def test_a_group_without_gradients_has_them_too() -> None:
    w, b = parameters()
    optimizer = prodigy([{"params": [w]}, {"params": [b]}])
    step(optimizer, range(2), names=("w",))
    first, second = optimizer.state_dict()["param_groups"]
    assert (first["k"], second["k"]) == (2, 0)
    assert second["d"] == first["d"]


def go_on(saved: Any, source: Any, **options: Any) -> Any:
    other = prodigy([(name, torch.nn.Parameter(p.detach().clone())) for name, p in named(source)])
    other.load_state_dict(saved, **options)
    step(other, range(3, 6))
    return [p.detach() for _, p in named(other)]


def named(optimizer: Any) -> list[tuple[str, torch.Tensor]]:
    (group,) = optimizer.param_groups
    return list(zip(group["param_names"], group["params"], strict=True))


@pytest.mark.parametrize("match", ["position", "name"])
def test_a_references_checkpoint_is_gone_on_from(match: str) -> None:
    """Its entries have no d, its counts are its own, and one that is 0 everywhere is a number."""
    source = trained()
    saved = copy.deepcopy(source.state_dict())
    for entry in saved["state"].values():
        for name in ("d", "d_max", "d_numerator"):
            del entry[name]
    saved["param_groups"][0]["slice_p"] = 1
    found = go_on(saved, source, match=match)
    step(source, range(3, 6))
    for p, (_, q) in zip(found, named(source), strict=True):
        torch.testing.assert_close(p, q.detach(), rtol=1e-6, atol=0)
    other = prodigy(parameters())
    other.load_state_dict(saved)
    assert other.param_groups[0]["slice_p"] == 1
    assert "k" not in other.param_groups[0]
    saved["state"][0]["p0"] = torch.tensor(0.0)
    other.load_state_dict(saved)
    assert torch.equal(other.state[other.param_groups[0]["params"][0]]["p0"], torch.zeros(2, 3))


def counts(saved: Any) -> list[int]:
    optimizer = prodigy(parameters())
    optimizer.load_state_dict(saved)
    return [optimizer.state[p]["step"] for p in optimizer.param_groups[0]["params"]]


def test_a_count_is_the_parameters_own_until_the_reference_goes_on() -> None:
    optimizer = prodigy(parameters())
    step(optimizer, range(2))
    step(optimizer, range(2, 5), names=("w",))
    saved = optimizer.state_dict()
    assert saved["param_groups"][0]["k"] == 5
    assert counts(saved) == [5, 2]
    saved["param_groups"][0]["k"] = 7
    assert counts(saved) == [7, 7]


def test_what_the_reference_lacks_is_as_in_a_new_state() -> None:
    optimizer = optim.SGDScheduleFree(parameters(), momentum=0.7)
    step(optimizer, range(2))
    saved = optimizer.state_dict()
    assert saved["param_groups"][0]["k"] == 2
    assert saved["param_groups"][0]["lr_max"] == 1.0
    saved["state"] = {index: {"z": entry["z"]} for index, entry in saved["state"].items()}
    other = optim.SGDScheduleFree(parameters(), momentum=0.7)
    other.load_state_dict(saved)
    entry = other.state[other.param_groups[0]["params"][0]]
    assert {name: float(entry[name]) for name in ("step", "weight_sum", "lr_max", "beta")} == pytest.approx(
        {"step": 2, "weight_sum": 2.0, "lr_max": 1.0, "beta": 0.7}
    )


def test_a_count_that_is_missing_is_not_made_up() -> None:
    optimizer = optim.AdaBelief(parameters())
    step(optimizer, range(2))
    saved = optimizer.state_dict()
    del saved["state"][0]["step"]
    with pytest.raises(ValueError, match="parameter 'w' of group 0 must have the state 'step', got exp_avg"):
        optimizer.load_state_dict(saved)


def test_a_jax_loop_and_the_reference_go_on_from_each_other() -> None:
    source = trained()
    params = {name: jnp.asarray(p.detach().numpy()) for name, p in named(source)}
    tx = funcopt.prodigy(d0=1e-2)
    saved = copy.deepcopy(source.state_dict())
    for entry in saved["state"].values():
        for name in ("d", "d_max", "d_numerator"):
            del entry[name]
    state = from_torch_state_dict(saved, tx.init(params), params)
    again = to_torch_state_dict(state, params, source.state_dict()["param_groups"])
    assert again["param_groups"] == source.state_dict()["param_groups"]
    assert again["state"][0]["s"].shape == (6,)
    for i in range(3, 6):
        generator = torch.Generator().manual_seed(10 + i)
        grads = {name: jnp.asarray(torch.randn(shape, generator=generator).numpy()) for name, shape in SHAPES.items()}
        updates, state = tx.update(grads, state, params)
        params = jax.tree.map(jnp.add, params, updates)
    step(source, range(3, 6))
    for name, p in named(source):
        np.testing.assert_allclose(params[name], p.detach().numpy(), rtol=1e-5)
