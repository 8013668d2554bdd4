"""The same recipe on an equinox model and on its torch twin, and trees of labels that are equinox modules."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from groups.models import TorchNet, equinox_net

import funcopt
from funcopt._checks import is_schedule
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


class Affine(eqx.Module):
    """A callable module whose fields are arrays, a number, a function, a hole and a static value."""

    weight: jax.Array
    bias: jax.Array | None
    inner: Any
    scale: float = 2.0
    activation: Any = jax.nn.relu
    name: str = eqx.field(static=True, default="affine")

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.activation(self.inner(self.weight @ x) * self.scale)


def linear() -> Any:
    return eqx.nn.Linear(3, 2, key=jax.random.key(0))


MODELS = {
    "mlp": lambda: eqx.nn.MLP(3, 2, 4, 2, key=jax.random.key(0)),
    "linear": linear,
    "linear_without_bias": lambda: eqx.nn.Linear(3, 2, use_bias=False, key=jax.random.key(0)),
    "custom": lambda: Affine(jnp.ones((3, 3)), None, linear()),
    "in_containers": lambda: {"a": linear(), "b": [linear(), None]},
}

LR, DECAY = 0.1, 0.5


def is_matrix(x: Any) -> bool:
    return x.ndim == 2


def adamw(lr_mult: float = 1.0, decay_mult: float = 1.0) -> Any:
    return funcopt.adamw(LR * lr_mult, weight_decay=DECAY * decay_mult)


# What is made for a model, given its trained part: the transformation, and that of its matrices and of its vectors
# (None for what does not move).
WAYS: dict[str, tuple[Callable[[Any, Any], Any], Any, Any]] = {
    "masked": (
        lambda model, params: funcopt.masked(funcopt.sgd(LR), jax.tree.map(is_matrix, params)),
        funcopt.sgd(LR),
        funcopt.scale(1.0),
    ),
    "partition": (
        lambda model, params: funcopt.partition(
            {"matrix": adamw(), "vector": funcopt.sgd(LR)},
            jax.tree.map(lambda x: "matrix" if is_matrix(x) else "vector", params),
        ),
        adamw(),
        funcopt.sgd(LR),
    ),
    "partition_of_the_whole": (  # labels at the places of functions and numbers, too
        lambda model, params: funcopt.partition(
            {"matrix": adamw(), "rest": optax.set_to_zero()},
            jax.tree.map(lambda x: "matrix" if eqx.is_array(x) and is_matrix(x) else "rest", model),
        ),
        adamw(),
        None,
    ),
    "partition_of_a_function": (
        lambda model, params: funcopt.partition(
            {True: adamw(), False: funcopt.sgd(LR)}, lambda params: jax.tree.map(is_matrix, params)
        ),
        adamw(),
        funcopt.sgd(LR),
    ),
    "freeze": (
        lambda model, params: group_params(model, [Rule(ndim=1, freeze=True, optional=True)], "adamw").optimizer(
            lr=LR, weight_decay=DECAY
        ),
        adamw(),
        None,
    ),
    "two_algorithms": (
        lambda model, params: group_params(model, [Rule(ndim=2, algorithm="muon")], "adamw").optimizer(
            lr=LR, weight_decay=DECAY
        ),
        funcopt.muon(LR, weight_decay=DECAY),
        adamw(),
    ),
    "lr_mult": (
        lambda model, params: group_params(model, [Rule(ndim=1, lr_mult=0.1, optional=True)], "adamw").optimizer(
            lr=LR, weight_decay=DECAY
        ),
        adamw(),
        adamw(0.1),
    ),
    "decay_mult": (
        lambda model, params: group_params(params, [Rule(ndim=1, decay_mult=0.0, optional=True)], "adamw").optimizer(
            lr=LR, weight_decay=DECAY
        ),
        adamw(),
        adamw(1.0, 0.0),
    ),
}


@pytest.mark.parametrize(("make", "of_matrices", "of_vectors"), WAYS.values(), ids=WAYS.keys())
@pytest.mark.parametrize("model", MODELS.values(), ids=MODELS.keys())
def test_modules_are_trees_though_they_can_be_called(
    model: Callable[[], Any], make: Callable[[Any, Any], Any], of_matrices: Any, of_vectors: Any
) -> None:
    params, rest = eqx.partition(model(), eqx.is_inexact_array)
    tx = make(eqx.combine(params, rest), params)
    grads = jax.tree.map(lambda x: 0.5 + jnp.arange(x.size, dtype=x.dtype).reshape(x.shape), params)
    update = jax.jit(tx.update)
    now, state = params, tx.init(params)
    for _ in range(2):
        updates, state = update(grads, state, now)
        now = funcopt.apply_updates(now, updates)
    assert jax.tree.structure(now) == jax.tree.structure(params)
    for new, grad, old in zip(*map(jax.tree.leaves, (now, grads, params)), strict=True):
        own, value = of_matrices if old.ndim == 2 else of_vectors, old
        if own is not None:
            own_state = own.init(old)
            for _ in range(2):
                step, own_state = own.update(grad, own_state, value)
                value = funcopt.apply_updates(value, step)
        # Muon's iteration, compiled and not, in float32; the others agree to the last digits.
        np.testing.assert_allclose(new, value, rtol=1e-4, atol=1e-5)
    eqx.combine(now, rest)


@pytest.mark.parametrize("empty", [lambda: jax.tree.map(lambda _: None, linear()), lambda: eqx.nn.Identity()])
def test_modules_without_leaves_are_trees(empty: Callable[[], Any]) -> None:
    tree = empty()
    assert not is_schedule(tree)
    parts = {"x": funcopt.sgd(0.1)}
    for tx in (funcopt.masked(parts["x"], tree), funcopt.partition(parts, tree), funcopt.partition(parts, "x")):
        assert jax.tree.leaves(tx.update(tree, tx.init(tree), tree)[0]) == []
    params = {"a": tree, "b": jnp.ones(2)}
    for tx in (
        funcopt.masked(parts["x"], {"a": tree, "b": True}),
        funcopt.partition(parts, {"a": tree, "b": "x"}),
        funcopt.sgd(lr={"a": tree, "b": 0.1}),
    ):
        updates, _ = tx.update(params, tx.init(params), params)
        np.testing.assert_allclose(updates["b"], -0.1, rtol=1e-6)
