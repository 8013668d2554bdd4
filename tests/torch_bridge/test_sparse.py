"""Sparse gradients of every COO form, beside torch's; plain ones of rows are in test_optim.py."""

import copy
from collections.abc import Callable, Iterable
from typing import Any

import pytest
import torch
from twins import ROUNDING, TORCH_THOROUGHLY, largest_difference, make_parameters

from funcopt import TorchBridge
from funcopt.torch_bridge import optim

# torch's Adagrad makes its sparse tensors without saying whether to check them.
pytestmark = pytest.mark.filterwarnings("ignore:Sparse invariant checks")

Make = Callable[[Any, Any], torch.optim.Optimizer]
"""From a module of optimizers, torch's or ours, and parameters."""

ALGORITHMS: dict[str, Make] = {
    "SparseAdam": lambda module, params: module.SparseAdam(params, lr=0.1),
    "SGD": lambda module, params: module.SGD(params, lr=0.1),
    "SGD momentum": lambda module, params: module.SGD(params, lr=0.1, momentum=0.9, dampening=0.3),
    "SGD nesterov": lambda module, params: module.SGD(params, lr=0.1, momentum=0.9, nesterov=True),
    "Adagrad": lambda module, params: module.Adagrad(params, lr=0.1, lr_decay=0.1),
    "SGD maximize": lambda module, params: module.SGD(params, lr=0.1, momentum=0.9, maximize=True),
}
EACH = pytest.mark.parametrize("make", [pytest.param(make, id=name) for name, make in ALGORITHMS.items()])

SHAPE = (4, 3, 2)


def gradient(step: int, sparse: int, count: int, shape: tuple[int, ...] = SHAPE) -> torch.Tensor:
    """An uncoalesced gradient of `count` entries, the first two of which are at the same place."""
    generator = torch.Generator().manual_seed(step)
    indices = torch.stack([torch.randint(0, n, (count,), generator=generator) for n in shape[:sparse]])
    indices[:, 1:2] = indices[:, :1]
    values = torch.randn(count, *shape[sparse:], generator=generator, dtype=torch.float64)
    return torch.sparse_coo_tensor(indices, values, shape, check_invariants=True)


def every_element(step: int, sparse: int) -> torch.Tensor:
    """A sparse gradient that has all there is."""
    generator = torch.Generator().manual_seed(step)
    return torch.randn(SHAPE, generator=generator, dtype=torch.float64).to_sparse(sparse)


FORMS: list[Callable[[int], torch.Tensor]] = [
    lambda sparse: gradient(0, sparse, 5),
    lambda sparse: gradient(1, sparse, 0),
    lambda sparse: gradient(2, sparse, 4).coalesce(),
    lambda sparse: every_element(3, sparse),
    lambda sparse: torch.zeros_like(every_element(4, sparse)),
    lambda sparse: gradient(5, sparse, 5),
]


def run(make: Make, module: Any, grads: Iterable[torch.Tensor]) -> tuple[list[torch.Tensor], list[Any]]:
    """The parameter after each step, and its state with what is kept in it as dense tensors."""
    (p,) = make_parameters([SHAPE])
    optimizer = make(module, [p])
    after = []
    for grad in grads:
        p.grad = grad
        optimizer.step()
        after.append(p.detach().clone())
    entry = optimizer.state[p]
    state = {key: value.to_dense() if torch.is_tensor(value) else value for key, value in entry.items()}
    return after, [state[key] for key in sorted(state)]


def assert_same(make: Make, grads: Callable[[], Iterable[torch.Tensor]]) -> None:
    (ours, our_state), (theirs, their_state) = (run(make, module, grads()) for module in (optim, torch.optim))
    assert largest_difference(ours, theirs) <= ROUNDING
    torch.testing.assert_close(our_state, their_state, rtol=ROUNDING, atol=ROUNDING)


@pytest.mark.one_engine
@TORCH_THOROUGHLY
@EACH
@pytest.mark.parametrize("sparse", [1, 2, 3])
def test_any_number_of_sparse_dimensions(sparse: int, make: Make) -> None:
    """Repeated places, none, each of them, zeros."""
    assert_same(make, lambda: [form(sparse) for form in FORMS])


@pytest.mark.parametrize("name", ["SparseAdam", "SGD momentum", "Adagrad"])
def test_no_sparse_dimension(name: str) -> None:
    """A dense tensor in the layout of a sparse one, which torch takes."""

    def hybrid(count: int) -> torch.Tensor:
        values = torch.linspace(-1, 1, count * 24, dtype=torch.float64).view(count, *SHAPE)
        return torch.sparse_coo_tensor(torch.zeros(0, count, dtype=torch.long), values, SHAPE, check_invariants=True)

    assert_same(ALGORITHMS[name], lambda: [hybrid(1), hybrid(2)])


@pytest.mark.parametrize("name", ["SGD", "SGD momentum", "SparseAdam"])
def test_dimensions_of_a_parameter_in_another_order_of_memory(name: str) -> None:
    results = []
    for module in (optim, torch.optim):
        (p,) = make_parameters([SHAPE])
        p.data = p.data.permute(2, 1, 0).contiguous().permute(2, 1, 0)
        optimizer = ALGORITHMS[name](module, [p])
        for step in range(3):
            p.grad = gradient(step, 2, 5)
            optimizer.step()
        assert not p.is_contiguous()
        results.append([p])
    assert largest_difference(*results) <= ROUNDING


@pytest.mark.parametrize("name", ["SGD", "SGD momentum", "Adagrad"])
def test_sparse_and_dense_gradients_in_turn(name: str) -> None:
    def grads() -> list[torch.Tensor]:
        return [gradient(0, 1, 5).to_dense(), gradient(1, 1, 5), gradient(2, 1, 5).to_dense(), gradient(3, 1, 5)]

    assert_same(ALGORITHMS[name], grads)


class Tables(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.rows = torch.nn.Embedding(20, 3, padding_idx=2, sparse=True, dtype=torch.float64)
        self.bag = torch.nn.EmbeddingBag(20, 3, mode="sum", sparse=True, dtype=torch.float64)
        self.head = torch.nn.Linear(3, 2, dtype=torch.float64)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.rows(x).sum(1) + self.bag(x))


def train_tables(make: Make, module: Any) -> tuple[list[torch.Tensor], list[Any]]:
    """Eight steps, one without a gradient of the first table; a new learning rate, data and checkpoint between."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = Tables()
    optimizer = make(module, model)
    generator = torch.Generator().manual_seed(1)
    for step in range(8):
        optimizer.zero_grad()
        model(torch.randint(0, 20, (6, 4), generator=generator)).square().mean().backward()
        if step == 3:
            model.rows.weight.grad = None
            optimizer.param_groups[0]["lr"] = 0.05
        if step == 5:
            model.bag.weight.data = model.bag.weight.data.t().contiguous().t()
            optimizer.load_state_dict(copy.deepcopy(optimizer.state_dict()))
        optimizer.step()
    return list(model.parameters()), [sorted(entry) for entry in optimizer.state.values()]


TABLES: dict[str, Make] = {
    "SparseAdam": lambda module, model: module.SparseAdam([model.rows.weight, model.bag.weight], lr=0.1),
    "SGD, one group": lambda module, model: module.SGD(model.parameters(), lr=0.1, momentum=0.9),
    "SGD, dense ones decay": lambda module, model: module.SGD(
        [
            {"params": [model.rows.weight, model.bag.weight]},
            {"params": model.head.parameters(), "weight_decay": 0.1, "nesterov": True},
        ],
        lr=0.1,
        momentum=0.9,
    ),
    "Adagrad, dense ones decay": lambda module, model: module.Adagrad(
        [
            {"params": [model.rows.weight]},
            {"params": model.head.parameters(), "weight_decay": 0.1},
            {"params": [model.bag.weight], "lr": 0.2},
        ],
        lr=0.1,
    ),
}


@pytest.mark.parametrize("name", TABLES)
def test_tables_are_trained(name: str) -> None:
    (ours, our_keys), (theirs, their_keys) = (train_tables(TABLES[name], module) for module in (optim, torch.optim))
    assert largest_difference(ours, theirs) <= ROUNDING
    assert our_keys == their_keys


@pytest.mark.parametrize("name", ["SparseAdam", "SGD momentum", "Adagrad"])
@pytest.mark.parametrize(("first", "second"), [(optim, torch.optim), (torch.optim, optim)], ids=["to torch", "from it"])
def test_checkpoints_move_both_ways(first: Any, second: Any, name: str) -> None:
    """Also where torch keeps a momentum as a sparse tensor."""
    results = []
    for modules in ((first, second), (torch.optim, torch.optim)):
        (p,) = make_parameters([SHAPE])
        saved = None
        for part, module in enumerate(modules):
            optimizer = ALGORITHMS[name](module, [p])
            if saved is not None:
                optimizer.load_state_dict(saved)
            for step in range(3):
                p.grad = gradient(3 * part + step, 1, 5)
                optimizer.step()
            saved = copy.deepcopy(optimizer.state_dict())
        results.append([p])
    assert largest_difference(*results) <= ROUNDING


@pytest.mark.parametrize("name", ["AdamW", "Adam", "Adafactor", "RMSprop"])
def test_a_refused_gradient_names_the_algorithm_and_changes_nothing(name: str) -> None:
    """Whatever its decay: it is the gradient that does not fit."""
    params = make_parameters([(2,), SHAPE])
    optimizer = getattr(optim, name)(params)
    params[0].grad, params[1].grad = torch.ones_like(params[0]), gradient(0, 1, 5)
    before = [p.detach().clone() for p in params]
    with pytest.raises(RuntimeError, match=f"(?i){name} does not support sparse gradients"):
        optimizer.step()
    assert all(torch.equal(p, q) for p, q in zip(params, before, strict=True))
    assert not any(optimizer.state.values())


def programs(counts: Iterable[tuple[int, ...]]) -> int:
    """How many programs SparseAdam needs for tables with gradients of so many rows, 0 for none."""
    counts = list(counts)
    tables = make_parameters([(16, 2)] * len(counts[0]))
    optimizer: Any = optim.SparseAdam(tables)
    for rows in counts:
        for p, n in zip(tables, rows, strict=True):
            values = torch.ones(n, 2, dtype=torch.float64)
            p.grad = torch.sparse_coo_tensor(torch.arange(n)[None], values, p.shape, check_invariants=True)
            p.grad = p.grad if n else None
        optimizer.step()
    assert isinstance(optimizer, TorchBridge)
    return optimizer.compilations


def test_tables_do_not_multiply_the_programs() -> None:
    """Of 4 x 4 counts of rows. A program for each size that is rounded up is three; for each pair of them, nine."""
    assert programs((i, j) for i in range(1, 5) for j in range(1, 5)) <= 6


def test_tables_without_gradient_do_not_multiply_the_programs() -> None:
    """Of 12 ways in which four tables have gradients, or none; dense ones get eight programs, and one for the rest."""
    assert programs([tuple(4 * (i >> k & 1) for k in range(4)) for i in range(4, 16)]) <= 9
