"""Rules for flax's models: nnx modules as they are, and linen's parameters."""

import subprocess
import sys
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import funcopt
from funcopt.groups import Rule, group_params, nanogpt_rules

pytestmark = pytest.mark.clients
flax = pytest.importorskip("flax")
nnx = pytest.importorskip("flax.nnx")
linen = pytest.importorskip("flax.linen")

LR, DECAY = 1e-2, 0.1


class Block(nnx.Module):
    """With variables that are no parameters: batch statistics, keys and counts of the dropout."""

    def __init__(self, rngs: Any) -> None:
        self.conv = nnx.Conv(4, 4, (3,), feature_group_count=4, rngs=rngs)
        self.norm = nnx.BatchNorm(4, rngs=rngs)
        self.dropout = nnx.Dropout(0.1, rngs=rngs)
        self.linear = nnx.Linear(4, 4, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.linear(self.dropout(self.norm(self.conv(x))))


class Net(nnx.Module):
    def __init__(self, rngs: Any) -> None:
        self.embed = nnx.Embed(5, 4, rngs=rngs)
        self.blocks = nnx.List([Block(rngs) for _ in range(2)])
        self.head = nnx.Linear(4, 2, rngs=rngs)
        self.activation = nnx.relu

    def __call__(self, x: jax.Array) -> jax.Array:
        x = self.embed(x)
        for block in self.blocks:
            x = self.activation(block(x))
        return self.head(x.mean(-2))


def net() -> Any:
    return Net(nnx.Rngs(0))


def named(state: Any) -> dict[str, jax.Array]:
    """The arrays of a state by name."""
    return {".".join(map(str, path)): variable[...] for path, variable in nnx.to_flat_state(state)}


def adamw(lr_mult: float = 1.0, decay_mult: float = 1.0) -> Any:
    return funcopt.adamw(LR * lr_mult, weight_decay=DECAY * decay_mult)


def is_bias(name: str) -> bool:
    return name.endswith("bias")


# Rules, and the transformation of each parameter by its name; None is one that is frozen.
CASES: dict[str, tuple[Sequence[Rule], Callable[[str], Any]]] = {
    "none": ([], lambda name: adamw()),
    "lr_mult": ([Rule(path="blocks.0", lr_mult=0.1)], lambda name: adamw(0.1 if name.startswith("blocks.0") else 1.0)),
    "decay_mult": (
        [Rule(kind=("bias", "norm"), decay_mult=0.0)],
        lambda name: adamw(1.0, 0.0 if is_bias(name) or "norm" in name else 1.0),
    ),
    "freeze": ([Rule(path="blocks.*.norm", freeze=True)], lambda name: None if "norm" in name else adamw()),
    "algorithm": (
        [Rule(path="**.linear.kernel", algorithm="muon")],
        lambda name: funcopt.muon(LR, weight_decay=DECAY) if name.endswith("linear.kernel") else adamw(),
    ),
    "everything": (
        [
            Rule(kind="embedding", lr_mult=3.0),
            Rule(kind="depthwise", decay_mult=0.5),
            Rule(path="blocks.1", freeze=True),
            Rule(path="head", algorithm="sgd", momentum=0.9),
        ],
        lambda name: (
            None
            if name.startswith("blocks.1")
            else funcopt.sgd(LR, momentum=0.9, weight_decay=DECAY)
            if name.startswith("head")
            else adamw(3.0)
            if name.startswith("embed")
            else adamw(1.0, 0.5)
            if name.startswith("blocks.0.conv")
            else adamw()
        ),
    ),
}

each_case = pytest.mark.parametrize(("rules", "expected"), CASES.values(), ids=CASES.keys())
each_model = pytest.mark.parametrize("of", [lambda m: m, lambda m: nnx.state(m, nnx.Param)], ids=["module", "state"])


@each_case
@each_model
def test_optimizer_of_nnx(of: Any, rules: Sequence[Rule], expected: Callable[[str], Any]) -> None:
    model = net()
    tx = group_params(of(model), rules, "adamw").optimizer(lr=LR, weight_decay=DECAY)
    optimizer = nnx.Optimizer(model, tx, wrt=nnx.Param)
    before, others = named(nnx.state(model, nnx.Param)), named(nnx.state(model, nnx.Not(nnx.Param)))
    update = nnx.jit(lambda model, optimizer, grads: optimizer.update(model, grads) and None)
    all_grads = []
    for seed in range(2):
        leaves, treedef = jax.tree.flatten(nnx.state(model, nnx.Param))
        keys = jax.random.split(jax.random.key(seed), len(leaves))
        grads = treedef.unflatten([jax.random.normal(k, x.shape) for k, x in zip(keys, leaves, strict=True)])
        update(model, optimizer, grads)
        all_grads.append(named(grads))
    after = named(nnx.state(model, nnx.Param))
    for name, value in before.items():
        own = expected(name)
        if own is not None:
            state = own.init(value)
            for grads in all_grads:
                updates, state = own.update(grads[name], state, value)
                value = funcopt.apply_updates(value, updates)
        np.testing.assert_allclose(after[name], value, rtol=1e-5, atol=1e-7, err_msg=name)
    for name, value in named(nnx.state(model, nnx.Not(nnx.Param))).items():
        assert (value == others[name]).all(), name


def test_training_step_of_nnx() -> None:
    model = net()
    tx = group_params(model, nanogpt_rules(), "adamw").optimizer(lr=LR, weight_decay=DECAY)
    twin, reference = net(), optax.adamw(LR, weight_decay=DECAY, mask=lambda p: jax.tree.map(lambda x: x.ndim > 1, p))

    @nnx.jit
    def step(model: Any, optimizer: Any) -> jax.Array:
        tokens = jnp.arange(15).reshape(3, 5) % 5
        loss, grads = nnx.value_and_grad(lambda model: jnp.square(model(tokens)).mean())(model)
        optimizer.update(model, grads)
        return loss

    pairs = [(m, nnx.Optimizer(m, t, wrt=nnx.Param)) for m, t in ((model, tx), (twin, reference))]
    losses = np.array([[step(*pair) for pair in pairs] for _ in range(4)])
    # optax's bias correction is off by 7e-6 in float32.
    np.testing.assert_allclose(losses[:, 0], losses[:, 1], rtol=1e-4)
    assert losses[0, 0] != losses[3, 0]


@each_case
def test_hyperparams_have_the_structure_of_the_state(rules: Sequence[Rule], expected: Callable[[str], Any]) -> None:
    model = net()
    state = nnx.state(model, nnx.Param)
    groups = group_params(model, rules, "adamw")
    prefixes = [groups.labels()]
    if len(groups.algorithms) == 1:
        prefixes += groups.hyperparams(lr=LR, weight_decay=DECAY).values()
    for prefix in prefixes:
        for tree in (state, nnx.as_pure(state)):  # as `nnx.Optimizer` calls `init`, and `update`
            jax.tree.map(lambda value, part: None, prefix, tree)


def test_parameters_of_a_module_are_its_params_and_know_their_layers() -> None:
    groups = group_params(net(), [Rule(kind="norm", lr_mult=0.5), Rule(kind="depthwise", decay_mult=0.5)])
    params = {a.param.name: a.param for a in groups.assignments}
    assert list(params) == list(named(nnx.state(net(), nnx.Param)))
    assert params["blocks.0.norm.scale"].is_in("BatchNorm")
    assert type(params["blocks.0.norm.scale"].parent).__name__ == "Block"
    kinds = {name: set(param.kinds) for name, param in params.items() if "blocks.1" not in name}
    assert kinds == {
        "embed.embedding": {"embedding"},
        "blocks.0.conv.bias": {"bias", "depthwise"},
        "blocks.0.conv.kernel": {"depthwise"},
        "blocks.0.linear.bias": {"bias"},
        "blocks.0.linear.kernel": set(),
        "blocks.0.norm.bias": {"bias", "norm"},
        "blocks.0.norm.scale": {"norm"},
        "head.bias": {"bias", "head"},
        "head.kernel": {"head"},
    }
    assert not any(assignment.frozen for assignment in groups.assignments)


class Tied(nnx.Module):
    """One variable with two names, one module with two, and a module that refers to itself."""

    def __init__(self, rngs: Any) -> None:
        self.embed = nnx.Embed(5, 4, rngs=rngs)
        self.out = nnx.Linear(4, 4, rngs=rngs)
        self.out.kernel = self.embed.embedding
        self.again = self.out
        self.whole = self


def test_names_of_one_variable_are_tied() -> None:
    model = Tied(nnx.Rngs(0))
    groups = group_params(model, [Rule(kind="bias", decay_mult=0.0)], "adamw")
    assert [(a.param.name, [alias.name for alias in a.param.aliases]) for a in groups.assignments] == [
        ("again.bias", ["out.bias"]),
        ("again.kernel", ["embed.embedding", "out.kernel"]),
    ]
    nnx.Optimizer(model, groups.optimizer(lr=LR), wrt=nnx.Param)
    with pytest.raises(ValueError, match=r"'again.bias' and 'out.bias' are one tied parameter"):
        group_params(model, [Rule(path="out", lr_mult=0.1)])
    assert group_params(model, [Rule(path="out", lr_mult=0.1)], tied="first").assignments[0].settings == {}


def test_equal_arrays_in_two_variables_are_two_parameters() -> None:
    zeros = jnp.zeros(2)
    model = nnx.Dict(a=nnx.Param(zeros), b=nnx.Param(zeros))
    assert [a.param.name for a in group_params({"m": model}).assignments] == ["m.a", "m.b"]


def test_several_modules() -> None:
    models = {"encoder": nnx.Linear(2, 3, rngs=nnx.Rngs(0)), "decoder": nnx.Linear(3, 2, rngs=nnx.Rngs(1))}
    tx = group_params(models, [Rule(path="encoder", lr_mult=0.1)], "sgd").optimizer(lr=1.0)
    optimizer = nnx.Optimizer(models, tx, wrt=nnx.Param)
    state = nnx.state(models, nnx.Param)
    updates = optimizer.update(models, jax.tree.map(jnp.ones_like, state))
    np.testing.assert_allclose(updates["encoder"]["bias"], -0.1)
    np.testing.assert_allclose(updates["decoder"]["bias"], -1.0)


class NoPytree(nnx.Module, pytree=False):
    def __init__(self, rngs: Any) -> None:
        self.a = nnx.Linear(3, 2, rngs=rngs)


def test_module_that_is_no_pytree() -> None:
    model = NoPytree(nnx.Rngs(0))
    groups = group_params(model, [Rule(kind="bias", lr_mult=0.1)], "sgd")
    assert [(a.param.name, a.settings) for a in groups.assignments] == [("a.bias", {"lr_mult": 0.1}), ("a.kernel", {})]
    nnx.Optimizer(model, groups.optimizer(lr=LR), wrt=nnx.Param)


@pytest.mark.parametrize("boxed", [True, False])
@pytest.mark.parametrize("function", [True, False])
def test_trees_made_from_the_state(boxed: bool, function: bool) -> None:
    """`jax.tree.map` over the state gives a tree of variables, which `nnx.Optimizer` opens between init and update."""
    model = nnx.Linear(3, 2, rngs=nnx.Rngs(0))

    def matrices(params: Any) -> Any:
        mask = jax.tree.map(lambda x: x.ndim > 1, params)
        return mask if boxed else nnx.as_pure(mask)

    mask = matrices if function else matrices(nnx.state(model, nnx.Param))
    split = funcopt.partition({True: funcopt.adam(0.1), False: optax.set_to_zero()}, mask)
    for tx, bias in ((funcopt.masked(funcopt.adam(0.1), mask), 1.0), (split, 0.0)):
        optimizer = nnx.Optimizer(model, tx, wrt=nnx.Param)
        updates = optimizer.update(model, jax.tree.map(jnp.ones_like, nnx.state(model, nnx.Param)))
        np.testing.assert_allclose(updates["kernel"], -0.1, rtol=1e-6)
        np.testing.assert_allclose(updates["bias"], bias)


class Linen(linen.Module):
    boxed: bool = False

    @linen.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        init = linen.initializers.ones
        if self.boxed:
            init = linen.with_partitioning(init, ("in", "out"))
        x = linen.LayerNorm(name="norm")(linen.Dense(4, kernel_init=init, name="body")(x))
        return linen.Dense(2, kernel_init=init, name="head")(x)


@pytest.mark.parametrize("boxed", [True, False])
@pytest.mark.parametrize("prepare", [dict, flax.core.freeze, lambda variables: variables["params"]])
def test_linen(prepare: Any, boxed: bool) -> None:
    params = prepare(Linen(boxed).init(jax.random.key(0), jnp.ones((1, 3))))
    rules = [
        Rule(path="head.kernel", algorithm="muon", lr_mult=2.0),
        Rule(kind="norm", freeze=True),
        Rule(path="head.bias", lr_mult=0.1),
    ]
    tx = group_params(params, rules, "adam").optimizer(lr=0.1, weight_decay=0.0)
    grads = jax.tree.map(jnp.ones_like, params)
    updates, state = jax.jit(tx.update)(grads, tx.init(params), params)
    jax.jit(tx.update)(grads, state, params)
    updates = jax.tree.map(np.asarray, linen.meta.unbox(updates))
    updates = updates.get("params", updates)
    np.testing.assert_allclose(updates["body"]["kernel"], -0.1, rtol=1e-6)
    np.testing.assert_allclose(updates["head"]["bias"], -0.01, rtol=1e-6)
    np.testing.assert_array_equal(updates["norm"]["scale"], 0.0)
    alone = funcopt.muon(0.2, weight_decay=0.0)
    kernel = jnp.ones((4, 2))
    np.testing.assert_allclose(
        updates["head"]["kernel"], alone.update(kernel, alone.init(kernel), kernel)[0], rtol=1e-5
    )


@pytest.mark.parametrize(("before", "expected"), [("", False), ("import flax; ", True)])
def test_flax_is_not_imported(before: str, expected: bool) -> None:
    code = (
        f"{before}import sys, jax, jax.numpy as jnp, funcopt\n"
        "from funcopt.groups import Rule, group_params\n"
        "p = {'a': jnp.ones(2), 'b': jnp.ones((2, 2))}\n"
        "tx = group_params(p, [Rule(path='a', freeze=True)], 'adamw').optimizer(lr=0.1)\n"
        "tx.update(p, tx.init(p), p)\n"
        "print('flax' in sys.modules)"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert result.stdout.strip() == str(expected), result.stderr
