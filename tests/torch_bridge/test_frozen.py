"""Parameters that are never trained may be anything at all: they cost nothing, and nobody looks at them."""

import copy
import gc
import io
from collections.abc import Callable
from typing import Any

import jax
import pytest
import torch
from twins import ROUNDING, TWINS, largest_difference, make_parameters, set_gradients, take_steps

pytestmark = [
    pytest.mark.usefixtures("each_path"),
    pytest.mark.filterwarnings("ignore:Sparse (CSR|invariant)"),
    pytest.mark.filterwarnings("ignore:.*(quantiz|nested tensors|ComplexHalf)"),
]


class Named(torch.Tensor):
    """A subclass that changes nothing."""


class Packed(torch.Tensor):
    """A wrapper around what is stored, as torchao's weights are: it can be detached and copied, and no more."""

    stored: torch.Tensor

    @staticmethod
    def __new__(cls, stored: torch.Tensor) -> "Packed":
        made = torch.Tensor._make_wrapper_subclass(cls, stored.shape, dtype=torch.float32)  # pyright: ignore
        made.stored = stored
        return made

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func not in (torch.ops.aten.detach.default, torch.ops.aten.clone.default):
            raise NotImplementedError(func)
        return cls(args[0].stored)


class Untouchable(torch.Tensor):
    """Refuses all that reads or writes its values."""

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.__name__ not in ("__get__", "detach", "is_floating_point", "is_complex", "requires_grad_"):
            raise TypeError(func.__name__)
        return super().__torch_function__(func, types, args, kwargs or {})


DTYPES = (
    torch.uint8,
    torch.int8,
    torch.int32,
    torch.int64,
    torch.bool,
    torch.float16,
    torch.bfloat16,
    torch.complex64,
    torch.complex32,
    torch.float8_e4m3fn,
    torch.float8_e5m2,
    torch.uint16,
)
FROZEN: dict[str, Callable[[], torch.Tensor]] = {
    **{str(dtype): lambda dtype=dtype: torch.zeros(4).to(dtype) for dtype in DTYPES},
    "bits": lambda: torch.zeros(4, dtype=torch.uint8).view(torch.bits8),
    "meta": lambda: torch.empty(4, device="meta"),
    "quantized": lambda: torch.quantize_per_tensor(torch.ones(4), 0.1, 0, torch.qint8),
    "quantized by channel": lambda: torch.quantize_per_channel(
        torch.ones(2, 3), torch.ones(2), torch.zeros(2), 0, torch.qint8
    ),
    "subclass": lambda: torch.ones(3).as_subclass(Named),
    "wrapper": lambda: Packed(torch.ones(3, dtype=torch.int8)),
    "untouchable": lambda: torch.ones(3).as_subclass(Untouchable),
    "sparse": lambda: torch.eye(3).to_sparse(),
    "sparse rows": lambda: torch.eye(3).to_sparse_csr(),
    "nested": lambda: torch.nested.nested_tensor([torch.ones(2), torch.ones(3)]),
    "no memory": lambda: torch.empty(0),
}


def train_beside(build: Any, frozen: torch.Tensor, place: str) -> tuple[list[torch.nn.Parameter], dict[str, Any]]:
    """Five steps with a checkpoint between them; the trained parameters, and the last state dict."""
    trained = make_parameters([(3, 2), (4,)])
    if place == "first":
        optimizer = build([frozen, *trained])
    elif place == "a group of its own":
        optimizer = build([{"params": trained}, {"params": [frozen], "lr": 0.2}])
    else:
        optimizer = build(trained)
        take_steps(trained, optimizer, [9])
        optimizer.add_param_group({"params": [frozen]})
    optimizer.zero_grad()
    optimizer.step()
    take_steps(trained, optimizer, range(3))
    optimizer.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    take_steps(trained, optimizer, range(3, 5))
    assert all(p is not frozen for p in optimizer.state)
    saved = optimizer.state_dict()
    torch.save(saved, io.BytesIO())
    return trained, saved


@pytest.mark.parametrize("place", ["first", "a group of its own", "added later"])
@pytest.mark.parametrize("kind", FROZEN)
def test_frozen_parameters_may_be_anything(kind: str, place: str) -> None:
    results = []
    for build in TWINS["recipe"]:
        frozen = torch.nn.Parameter(FROZEN[kind](), requires_grad=False)
        results.append(train_beside(build, frozen, place))
    (ours, our_state), (theirs, their_state) = results
    assert largest_difference(ours, theirs) <= ROUNDING
    assert list(our_state["state"]) == list(their_state["state"])
    assert [group["params"] for group in our_state["param_groups"]] == [
        group["params"] for group in their_state["param_groups"]
    ]


def jax_bytes() -> int:
    return sum(array.nbytes for array in jax.live_arrays())


NEVER_TRAINED = {"meta", "subclass", "wrapper", "untouchable", "sparse", "torch.float16", "torch.complex64"}


@pytest.mark.parametrize("name", ["SGD", "AdamW"])
@pytest.mark.parametrize("kind", sorted(NEVER_TRAINED))
def test_the_same_without_a_gradient(kind: str, name: str) -> None:
    """Trainable as far as anybody knows, and only never part of the loss."""
    results = [train_beside(build, torch.nn.Parameter(FROZEN[kind]()), "first") for build in TWINS[name]]
    assert largest_difference(results[0][0], results[1][0]) <= ROUNDING
    assert list(results[0][1]["state"]) == list(results[1][1]["state"]) == [1, 2]


@pytest.mark.parametrize("kind", ["torch.int8", "meta", "quantized", "untouchable", "nested"])
def test_nothing_else_is_there(kind: str) -> None:
    """An optimizer with nothing to do, which gets something later."""
    results = []
    for build in TWINS["recipe"]:
        optimizer = build([torch.nn.Parameter(FROZEN[kind](), requires_grad=False)])
        optimizer.step()
        optimizer.load_state_dict(optimizer.state_dict())
        assert optimizer.state_dict()["state"] == {}
        trained = make_parameters([(3, 2)])
        optimizer.add_param_group({"params": trained})
        take_steps(trained, optimizer, range(3))
        results.append(trained)
    assert largest_difference(*results) <= ROUNDING


def test_what_is_frozen_with_a_gradient_left_is_updated() -> None:
    """It is the gradient that counts, as in torch."""
    results = []
    for build in TWINS["AdamW"]:
        params = make_parameters([(3, 2), (4,)])
        optimizer = build(params, lr=0.05)
        take_steps(params, optimizer, range(2))
        set_gradients(params, 2)
        params[0].requires_grad_(False)
        optimizer.step()
        optimizer.step()
        results.append(params)
    assert largest_difference(*results) <= ROUNDING
    assert results[0][0].grad is not None


def test_a_subclass_is_trained_after_all() -> None:
    results = []
    for build in TWINS["AdamW"]:
        (other,) = make_parameters([(4,)])
        p = torch.nn.Parameter(torch.ones(3, dtype=torch.float64).as_subclass(Named), requires_grad=False)
        optimizer = build([p, other], lr=0.05)
        take_steps([other], optimizer, range(2))
        p.requires_grad_()
        take_steps([p, other], optimizer, range(2, 5))
        assert type(p.data) is Named
        results.append([p.detach().as_subclass(torch.Tensor), other])
    assert largest_difference(*results) <= ROUNDING


def test_frozen_parameters_take_no_room() -> None:
    """4 MB of them: JAX has no byte more, and a step runs the same program."""
    trained = make_parameters([(3, 2)])
    optimizer: Any = TWINS["recipe"].ours([torch.nn.Parameter(torch.ones(1000, 1000), requires_grad=False), *trained])
    other = TWINS["recipe"].ours(make_parameters([(3, 2)]))
    take_steps(other.param_groups[0]["params"], other, [0])
    gc.collect()
    before = jax_bytes()
    take_steps(trained, optimizer, [0])
    assert jax_bytes() - before < 1_000_000
    optimizer.add_param_group({"params": [torch.nn.Parameter(torch.ones(1000, 1000), requires_grad=False)]})
    take_steps(trained, optimizer, [1])
    assert jax_bytes() - before < 1_000_000
    assert optimizer.compilations == 1
