"""Where a cache, a place or a flag might outlive what it was made for: one test for each bug that was tried by hand."""

import copy
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch
from twins import ROUNDING, largest_difference, make_parameters, set_gradients, take_steps

import funcopt
import funcopt.kinds
from funcopt import ElementwiseTransformation, TorchBridge
from funcopt._lift import REDUCE
from funcopt.rule import Rule, transformation
from funcopt.torch_bridge import optim
from funcopt.torch_bridge.store import _store

Act = Callable[[Any, list[torch.nn.Parameter]], Any]

SHAPES = [(4, 3), (5,), (4, 3)]


def assert_same(make: Callable[[Any, list[torch.nn.Parameter]], Any], *acts: Act) -> None:
    """Two steps before each of some acts, and after the last one, with our optimizers and with torch's."""
    results = []
    for module in (optim, torch.optim):
        params = make_parameters(SHAPES)
        optimizer = make(module, params)
        take_steps(params, optimizer, range(2))
        for act in acts:
            act(optimizer, params)
            take_steps(params, optimizer, range(2, 4))
        results.append(params)
    assert largest_difference(*results) <= ROUNDING


def adamw(module: Any, params: list[torch.nn.Parameter]) -> Any:
    return module.AdamW(params, lr=0.05)


# Memory.


@pytest.mark.usefixtures("each_path")
@pytest.mark.parametrize("factor", [1, 2])
def test_a_storage_that_grows_keeps_its_contents(factor: int) -> None:
    def grow(optimizer: Any, params: list[torch.nn.Parameter]) -> None:
        kept, storage = params[0].detach().clone(), params[0].untyped_storage()
        storage.resize_(factor * storage.nbytes())
        assert torch.equal(params[0], kept)

    assert_same(adamw, grow)


def test_an_update_that_is_not_in_place_reaches_the_tensors() -> None:
    """XLA leaves donated memory alone that somebody holds."""

    def hold(optimizer: Any, params: list[torch.nn.Parameter]) -> None:
        if isinstance(optimizer, TorchBridge):
            columns = [column for block in optimizer._store.blocks for column in block._columns]
            optimizer.held = [np.asarray(column.memory.lend()) for column in columns]  # pyright: ignore

    assert_same(adamw, hold)


def test_memory_that_is_swapped_while_somebody_has_it() -> None:
    """Each of two parameters lies in the other one's place, and neither can move."""
    held: list[torch.Tensor] = []

    def swap(optimizer: Any, params: list[torch.nn.Parameter]) -> None:
        held[:] = params[0].data, params[2].data
        params[2].data, params[0].data = held

    assert_same(adamw, swap)


# Blocks.


def least_of_each(updates: Any) -> Any:
    return functools.reduce(jnp.minimum, [jnp.min(jnp.abs(u)) for u in jax.tree.leaves(updates)])


def least_by_rows(updates: Any) -> Any:
    reduce = REDUCE.get()
    return least_of_each(updates) if reduce is None else reduce(least_of_each(updates), jnp.minimum)


def least_by_sorting(updates: Any) -> Any:
    return jnp.sort(jnp.concatenate([jnp.abs(u).reshape(-1) for u in jax.tree.leaves(updates)]))[0]


@pytest.mark.parametrize(("least", "by_rows"), [(least_by_rows, True), (least_by_sorting, False)])
def test_what_fills_a_row_is_no_element(least: Callable[[Any], Any], by_rows: bool) -> None:
    """Neither in a row of its own, nor in the last one of several; what rows cannot do is done without them."""

    def times_the_least(lr: Any) -> funcopt.GradientTransformation:
        def update(updates: Any, state: Any, params: Any = None, **extra: Any) -> Any:
            factor = least(updates)
            return jax.tree.map(lambda u: u * factor, updates), state

        return funcopt.chain(ElementwiseTransformation(lambda params: (), update), funcopt.scale_by_learning_rate(lr))

    shapes = [(3,), (64,), (65,), (130,), ()]
    params, expected = make_parameters(shapes), make_parameters(shapes)
    optimizer, reference = TorchBridge(params, times_the_least, lr=0.5), torch.optim.SGD(expected, lr=0.5)
    for step in range(3):
        take_steps(params, optimizer, [step])
        set_gradients(expected, step)
        grads = [p.grad for p in expected if p.grad is not None]
        factor = min(float(grad.abs().min()) for grad in grads)
        for grad in grads:
            grad.mul_(factor)
        reference.step()
    assert bool(optimizer._store.blocks) == by_rows
    assert largest_difference(params, expected) <= ROUNDING


def share(optimizer: Any, params: list[torch.nn.Parameter]) -> None:
    """State in memory of other processes, which cannot move."""
    for value in optimizer.state[params[0]].values():
        value.share_memory_()


LEAVING: dict[str, Act] = {
    "no entry": lambda optimizer, params: optimizer.state.pop(params[0]),
    "an empty entry": lambda optimizer, params: optimizer.state[params[0]].clear(),
    "another entry": lambda o, params: o.state.update({params[0]: copy.deepcopy(o.state[params[2]])}),
    "no parameter": lambda optimizer, params: optimizer.param_groups[0]["params"].pop(0),
}


@pytest.mark.parametrize("name", LEAVING)
def test_state_that_lay_elsewhere_leaves(name: str) -> None:
    assert_same(adamw, share, LEAVING[name])


@pytest.mark.skipif(not hasattr(torch.Tensor, "grad_dtype"), reason="torch before 2.10 has no grad_dtype")
def test_a_later_gradient_may_be_the_wider_one() -> None:
    """One that float32 does not hold."""
    params = make_parameters([(4, 3), (5,)], torch.float32)
    expected = [p.detach() - torch.tensor([0.0, 1.0])[i] for i, p in enumerate(params)]
    optimizer = optim.SGD(params, lr=1e-40)
    params[1].grad_dtype = None
    params[0].grad = torch.ones(4, 3)
    params[1].grad = torch.full((5,), 1e40, dtype=torch.float64)
    optimizer.step()
    assert largest_difference(params, expected) <= 2.0**-23


# Groups and entries.


def three_groups(module: Any, params: list[torch.nn.Parameter]) -> Any:
    """The second and third run together, apart from the first."""
    groups = [{"params": [p], "lr": 0.05 / (1 + i), "amsgrad": i == 0} for i, p in enumerate(params)]
    return module.AdamW(groups, weight_decay=0.1)


GROUPS: dict[str, Act] = {
    "reversed": lambda optimizer, params: optimizer.param_groups.reverse(),
    "others swapped": lambda optimizer, params: optimizer.param_groups.insert(1, optimizer.param_groups.pop()),
    "first one gone": lambda optimizer, params: optimizer.param_groups.pop(0),
}


@pytest.mark.parametrize("name", GROUPS)
def test_groups_of_two_kinds_in_another_order(name: str) -> None:
    assert_same(three_groups, GROUPS[name])


def test_entries_that_change_their_parameters_and_not_their_order() -> None:
    def swap(optimizer: Any, params: list[torch.nn.Parameter]) -> None:
        values = [optimizer.state[p] for p in params]
        optimizer.state.clear()
        optimizer.state.update(zip([params[2], params[1], params[0]], values, strict=True))

    assert_same(adamw, swap)


# What is kept once.


def counted(lr: Any, weight_decay: Any = None) -> funcopt.GradientTransformation:
    """AdamW, with optax's count of all parameters' updates."""
    decay = () if weight_decay is None else (funcopt.add_decayed_weights(weight_decay),)
    return funcopt.chain(ElementwiseTransformation(*optax.scale_by_adam()), *decay, funcopt.scale_by_learning_rate(lr))


def bridge_of(recipe: Any, **options: Any) -> Callable[[Any, list[torch.nn.Parameter]], Any]:
    def make(module: Any, params: list[torch.nn.Parameter]) -> Any:
        groups = [{"params": [p], "lr": 0.05 / (1 + i)} for i, p in enumerate(params)]
        return TorchBridge(groups, recipe, **options) if module is optim else module.AdamW(groups, **options)

    return make


def load(optimizer: Any, params: list[torch.nn.Parameter]) -> None:
    optimizer.load_state_dict(copy.deepcopy(optimizer.state_dict()))


@pytest.mark.parametrize("recipe", [counted, optax.adamw])
def test_a_count_that_was_loaded_goes_on(recipe: Any) -> None:
    assert_same(bridge_of(recipe, lr=0.05, weight_decay=0.1), load, load)


def test_a_count_of_groups_of_two_kinds() -> None:
    """Its first value comes from a group that has the numbers which the recipe reads."""
    params, expected = make_parameters(SHAPES), make_parameters(SHAPES)
    decays = [None, 0.1, 0.1]
    optimizer = TorchBridge(
        [{"params": [p], "weight_decay": d} for p, d in zip(params, decays, strict=True)], counted, lr=0.05
    )
    reference = torch.optim.AdamW(
        [{"params": [p], "weight_decay": d or 0.0} for p, d in zip(expected, decays, strict=True)], lr=0.05
    )
    take_steps(params, optimizer, range(3))
    take_steps(expected, reference, range(3))
    assert len(optimizer._store.blocks) == 2
    assert largest_difference(params, expected) <= ROUNDING


def test_counts_of_groups_some_of_which_have_no_gradient() -> None:
    results, counts = [], []
    for module in (optim, torch.optim):
        params = make_parameters(SHAPES)
        optimizer = bridge_of(optax.adamw, lr=0.05, weight_decay=0.1)(module, params)
        for step, present in enumerate([(1, 2), (0, 1, 2), (1, 2), (0, 2), (1, 2), (2,), (0, 1), (0, 1, 2)]):
            if step in (2, 4, 5):
                load(optimizer, params)
            set_gradients(params, step)
            for i in {0, 1, 2} - {*present}:
                params[i].grad = None
            optimizer.step()
        results.append(params)
        counts.append([int(optimizer.state[p]["count" if module is optim else "step"]) for p in params])
    assert largest_difference(*results) <= ROUNDING
    assert counts[0] == counts[1]


# Parameters in their own shapes.


@pytest.mark.usefixtures("each_path")
def test_ones_own_key_before_the_first_step() -> None:
    """As SAM has it."""
    results = []
    for module in (optim, torch.optim):
        params = make_parameters(SHAPES)
        optimizer = module.SGD(params, lr=0.05, momentum=0.9)
        optimizer.state[params[0]]["old_p"] = params[0].detach().clone()
        take_steps(params, optimizer, range(3))
        assert "old_p" in optimizer.state[params[0]]
        results.append(params)
    assert largest_difference(*results) <= ROUNDING


@pytest.mark.usefixtures("each_path")
def test_state_of_a_narrower_dtype_goes_on_in_its_own() -> None:
    results = []
    for module in (optim, torch.optim):
        params = make_parameters(SHAPES)
        optimizer = module.SGD(params, lr=0.05, momentum=0.9)
        take_steps(params, optimizer, range(2))
        for p in params:
            narrow = optimizer.state[p]["momentum_buffer"].float()
            optimizer.state[p]["momentum_buffer"] = narrow if module is optim else narrow.double()
        take_steps(params, optimizer, range(2, 5))
        results.append([*params, *(optimizer.state[p]["momentum_buffer"] for p in params)])
    assert {value.dtype for value in results[0]} == {torch.float64}
    assert largest_difference(*results) <= ROUNDING


def test_a_parameter_that_comes_along_without_gradient_gets_no_entry(monkeypatch: pytest.MonkeyPatch) -> None:
    """After many patterns all parameters are in the program; and a graph that has saved one of them is still good."""
    monkeypatch.setattr(TorchBridge, "fast_path", False)
    monkeypatch.setattr(_store, "MAX_PATTERNS", 1)
    results = []
    for module in (optim, torch.optim):
        params = make_parameters(SHAPES)
        optimizer = adamw(module, params)
        take_steps(params, optimizer, range(2))
        optimizer.state.pop(params[0])
        loss = params[0].square().sum()
        set_gradients(params, 2)
        params[0].grad = None
        optimizer.step()
        assert params[0] not in optimizer.state
        loss.backward()
        results.append(params)
    assert largest_difference(*results) <= ROUNDING


def test_rows_have_the_scale_of_their_loss() -> None:
    """fused=True divides in the update, which a table's rows have to themselves."""
    results = []
    for module in (optim, torch.optim):
        (table, head) = make_parameters([(6, 3), (3,)])
        scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10, enabled=module is optim)
        options = {"fused": True} if module is optim else {}
        optimizer = module.SGD([table, head], lr=0.1, momentum=0.9, **options)
        for rows in ([0, 2], [2, 3, 2], [5]):
            optimizer.zero_grad()
            found = torch.nn.functional.embedding(torch.tensor(rows), table, sparse=True)
            scaler.scale((found @ head).sum()).backward()
            scaler.step(optimizer)
            scaler.update()
        results.append([table, head])
    assert largest_difference(*results) <= ROUNDING


# Growth.


def test_what_grows_again_before_it_is_quiet_stays_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_store, "QUIET_STEPS", 4)
    results, joined = [], []
    for module in (optim, torch.optim):
        params = make_parameters([(200, 200), (3,)])
        optimizer = adamw(module, params)
        for step in range(14):
            if step in (2, 4, 6, 8):
                params[0] = torch.nn.Parameter(params[0].detach()[: 200 - step].clone())
                optimizer.param_groups[0]["params"][0] = params[0]
            take_steps(params, optimizer, [step])
            if isinstance(optimizer, TorchBridge):
                joined.append(all(block.joined for block in optimizer._store.blocks))
        results.append(params)
    assert joined[2:11] == [True] * 9
    assert not joined[-1]
    assert largest_difference(*results) <= ROUNDING


@pytest.mark.usefixtures("each_path")
@pytest.mark.parametrize("name", ["SGD", "AdamW", "Adafactor"])
def test_a_parameter_that_was_put_into_two_groups(name: str) -> None:
    """Each group updates it."""
    results = []
    for module in (optim, torch.optim):
        params = make_parameters(SHAPES)
        groups = [{"params": params[:2], "lr": 0.1}, {"params": params[2:], "lr": 0.01}]
        optimizer = getattr(module, name)(groups)
        take_steps(params, optimizer, [0])
        optimizer.param_groups[1]["params"].append(params[0])
        take_steps(params, optimizer, range(1, 4))
        results.append(params)
    assert largest_difference(*results) <= ROUNDING


@pytest.mark.usefixtures("each_path")
@pytest.mark.parametrize("name", ["SGD", "AdamW"])
@pytest.mark.parametrize("when", [0, 2])
def test_parameters_over_one_memory(when: int, name: str) -> None:
    """Three of them, tied by their data: each update is on top of the last one."""
    results = []
    for module in (optim, torch.optim):
        params = make_parameters([(4, 3), (5,), (4, 3), (4, 3)])
        optimizer = getattr(module, name)(params, lr=0.1, weight_decay=0.1)
        for step in range(4):
            if step == when:
                params[2].data = params[0].data
                params[3].data = params[0].data
            take_steps(params, optimizer, [step])
        results.append(params)
    assert torch.equal(results[0][0], results[0][3])
    assert largest_difference(*results) <= ROUNDING


@transformation(elementwise=True)
def sum_of_norms(lr: funcopt.kinds.NonNegative = 0.1) -> Rule:
    """Each array's norm is one of its own, and not of parts of it.

    Args:
        lr: learning rate, >= 0.
    """

    def total(g: Any) -> Any:
        return jnp.sqrt(jnp.sum(g * g))

    def update(g: Any, *, total: Any) -> Any:
        return -lr * g / total

    return Rule(update, total=total)


def test_a_total_of_what_is_not_linear_in_its_parts() -> None:
    """A parameter of several rows is not one of several norms."""
    params = make_parameters([(300,), (7, 90)])
    set_gradients(params, 0)
    before = [p.detach().clone() for p in params]
    expected = sum(p.grad.norm() for p in params if p.grad is not None)
    TorchBridge(params, sum_of_norms, lr=0.1).step()
    for p, old in zip(params, before, strict=True):
        assert p.grad is not None
        torch.testing.assert_close(p.detach(), old - 0.1 * p.grad / expected, rtol=0, atol=ROUNDING)
