"""What states take, against states that are made."""

import jax
import jax.numpy as jnp
import optax
import pytest
import torch

import funcopt
from funcopt.groups import Rule, group_params

PARAMS = {"w": jnp.ones((8, 6), jnp.bfloat16), "b": jnp.ones(6), "nothing": None}


@pytest.mark.parametrize("name", ["adamw", "adafactor", "soap", "prodigy", "muon_with_adamw", "schedule_free_adamw"])
def test_the_bytes_are_those_of_the_state(name: str) -> None:
    tx = funcopt.algorithms()[name].factory()
    found = funcopt.memory(tx, PARAMS)
    assert found.bytes == sum(x.nbytes for x in jax.tree.leaves(tx.init(PARAMS)))
    assert (found.params, found.params_bytes) == (54, 48 * 2 + 6 * 4)
    assert {row.key for row in found.rows} <= set(funcopt.algorithms()[name].state_keys)


def test_rows_are_by_key_and_dtype() -> None:
    found = funcopt.memory(funcopt.adamw(), PARAMS)
    assert found.rows[1:3] == (
        ("exp_avg", "float32", 1, 6, 24),
        ("exp_avg", "bfloat16", 1, 48, 96),
    )
    assert str(found).splitlines()[-1] == "4.519 bytes for each of 54 elements, which take 120 bytes themselves"


def test_nothing_is_allocated() -> None:
    found = funcopt.memory(optax.adam(1e-3), {"w": jax.ShapeDtypeStruct((2**20, 2**20), jnp.float32)})
    assert found.bytes == 2 * 4 * 2**40 + 4


def test_of_a_torch_optimizer_what_it_has() -> None:
    model = torch.nn.Linear(3, 2)
    optimizer = torch.optim.AdamW(model.parameters())
    assert funcopt.memory(optimizer).bytes == 0
    model(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    assert {row.key: row.bytes for row in funcopt.memory(optimizer).rows} == {
        "step": 8,
        "exp_avg": 32,
        "exp_avg_sq": 32,
    }


def test_of_groups_each_with_its_algorithm() -> None:
    model = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.Linear(4, 2))
    rules = [Rule(path="0.weight", algorithm="muon"), Rule(path="1.weight", freeze=True), Rule(path="1", amsgrad=True)]
    found = group_params(model, rules, "adamw").memory(lr=1e-3)
    assert {row.key: row.elements for row in found.rows if row.key != "step"} == {
        "momentum_buffer": 16,
        "exp_avg": 6,
        "exp_avg_sq": 6,
        "max_exp_avg_sq": 2,
    }


def test_bad_input() -> None:
    with pytest.raises(ValueError, match="memory: params must be given with a transformation, got None"):
        funcopt.memory(funcopt.adamw())
    with pytest.raises(TypeError, match="memory: optimizer must be a transformation or a torch optimizer"):
        funcopt.memory(1.0, PARAMS)
    with pytest.raises(ValueError, match="memory: the algorithm must be known"):
        group_params(PARAMS).memory()
