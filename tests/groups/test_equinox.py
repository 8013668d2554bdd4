"""The same recipe on an equinox model and on its torch twin."""

import jax
import jax.numpy as jnp
import pytest
from groups.models import TorchNet, equinox_net

import funcopt
from funcopt.groups import Row, Rule, group_params

pytestmark = pytest.mark.clients
eqx = pytest.importorskip("equinox")

RULES = [
    Rule(kind=("bias", "norm"), decay_mult=0.0),
    Rule(path="backbone", lr_mult=0.1),
    Rule(kind="depthwise", decay_mult=0.5),
    Rule(kind="embedding", lr_mult=3.0),
    Rule(path="backbone.layers.0", freeze=True),
    Rule(kind="head", ndim=2, algorithm="muon"),
]


def without_ones(row: Row) -> Row:
    """Equinox stores a convolution's bias as (channels, 1)."""
    return row._replace(shape=tuple(size for size in row.shape if size != 1))


def test_equal_tables() -> None:
    ours = group_params(equinox_net(), RULES, "adamw").explain(lr=1e-3, weight_decay=0.1)
    twin = group_params(TorchNet(), RULES, "adamw").explain(lr=1e-3, weight_decay=0.1)
    assert [without_ones(row) for row in ours.rows] == [without_ones(row) for row in twin.rows]
    assert ours.totals == twin.totals
    assert {total.group for total in ours.totals} >= {"frozen", "lr_mult=0.1"}


def test_optimizer_of_a_model() -> None:
    params = eqx.filter(equinox_net(), eqx.is_inexact_array)
    tx = group_params(equinox_net(), RULES, "adamw").optimizer(lr=1e-3, weight_decay=0.1)
    updates, _ = jax.jit(tx.update)(jax.tree.map(jnp.ones_like, params), tx.init(params), params)
    new = funcopt.apply_updates(params, updates)
    assert jnp.array_equal(new.backbone.layers[0].weight, params.backbone.layers[0].weight)
    step = params.backbone.layers[1].bias - new.backbone.layers[1].bias
    assert jnp.allclose(step, 1e-4, rtol=1e-3)  # Adam's first step is lr * sign(gradient)


def test_hyperparams_of_a_model() -> None:
    params = eqx.filter(equinox_net(), eqx.is_inexact_array)
    tx = funcopt.adamw(**group_params(params, RULES[:4]).hyperparams(lr=1e-3, weight_decay=0.0))
    updates, _ = tx.update(jax.tree.map(jnp.ones_like, params), tx.init(params), params)
    assert jnp.allclose(updates.embed.weight, -3e-3, rtol=1e-3)
    assert jnp.allclose(updates.head.weight, -1e-3, rtol=1e-3)
