"""Whose memory the parameters are in: what holds it elsewhere sees each update, as with torch.optim."""

import copy
import io
import itertools
import multiprocessing
import pickle
import warnings
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import pytest
import torch
from twins import ROUNDING, largest_difference, make_parameters, set_gradients, take_steps

from funcopt.torch_bridge import optim
from funcopt.torch_bridge._buffers import copy_to_jax
from funcopt.torch_bridge.store._store import JOIN_UP_TO

pytestmark = pytest.mark.usefixtures("each_path")

SHAPES = [(3, 3), (3, 3), (5,), (2, 3, 2, 2)]


def tied(p: torch.nn.Parameter) -> Callable[[], torch.Tensor]:
    other = torch.nn.Parameter(p.data)
    return lambda: other


def view(p: torch.nn.Parameter) -> Callable[[], torch.Tensor]:
    other = p.detach().view(-1)
    return lambda: other.view(p.shape)


def graph(p: torch.nn.Parameter) -> Callable[[], torch.Tensor]:
    other = p.view(-1)
    return lambda: other.detach().view(p.shape)


def array(p: torch.nn.Parameter) -> Callable[[], torch.Tensor]:
    other = p.detach().numpy()
    return lambda: torch.from_numpy(other)


def dlpack(p: torch.nn.Parameter) -> Callable[[], torch.Tensor]:
    other = torch.from_dlpack(p.detach())
    return lambda: other


def state_dict(p: torch.nn.Parameter) -> Callable[[], torch.Tensor]:
    other = torch.nn.ParameterList([p]).state_dict()
    return lambda: other["0"]


def storage(p: torch.nn.Parameter) -> Callable[[], torch.Tensor]:
    other = p.untyped_storage()
    return lambda: torch.empty(0, dtype=p.dtype).set_(other).view(p.shape)


def shared(p: torch.nn.Parameter) -> Callable[[], torch.Tensor]:
    other = p.share_memory_().detach()
    return lambda: other


def reduced(p: torch.nn.Parameter) -> Callable[[], torch.Tensor]:
    """What another process would get."""
    reopened, arguments = torch.multiprocessing.reductions.reduce_tensor(p.detach().share_memory_())
    other = reopened(*arguments)
    return lambda: other


ALIASES = [tied, view, graph, array, dlpack, state_dict, storage, shared, reduced]


@pytest.mark.parametrize("when", ["before construction", "after construction", "after a step"])
def test_aliases_see_the_update(when: str) -> None:
    params = make_parameters([(2, 3)] * len(ALIASES))
    expected = make_parameters([(2, 3)] * len(ALIASES))
    aliases = [make(p) for make, p in zip(ALIASES, params, strict=True)] if when == "before construction" else []
    optimizer, reference = optim.AdamW(params, lr=0.1), torch.optim.AdamW(expected, lr=0.1)
    for step in range(4):
        if not aliases and (step == 1 or when == "after construction"):
            aliases = [make(p) for make, p in zip(ALIASES, params, strict=True)]
        set_gradients(params, step)
        set_gradients(expected, step)
        optimizer.step()
        reference.step()
    stale = [
        make.__name__ for make, read, p in zip(ALIASES, aliases, params, strict=True) if not torch.equal(read(), p)
    ]
    assert stale == []
    assert largest_difference(params, expected) <= ROUNDING


def swap(params: list[torch.nn.Parameter]) -> None:
    params[0].data, params[1].data = params[1].data, params[0].data


def transpose_in_place(params: list[torch.nn.Parameter]) -> None:
    with torch.no_grad():
        params[0].t_()


def transpose(params: list[torch.nn.Parameter]) -> None:
    params[0].data = params[0].data.t()


def replace(params: list[torch.nn.Parameter]) -> None:
    params[0].data = params[0].data.flip(0)


def write(params: list[torch.nn.Parameter]) -> None:
    with torch.no_grad():
        params[0].mul_(0.5)
    params[1].data.view(-1)[1:3] = 7.0


def share(params: list[torch.nn.Parameter]) -> None:
    for p in params:
        p.share_memory_()


def channels_last(params: list[torch.nn.Parameter]) -> None:
    params[3].data = params[3].data.to(memory_format=torch.channels_last)


def strided(params: list[torch.nn.Parameter]) -> None:
    params[1].data = torch.stack([params[1].data] * 2, -1)[..., 0]


CHANGES = [swap, transpose_in_place, transpose, replace, write, share, channels_last, strided]


@pytest.mark.parametrize("change", CHANGES)
def test_parameters_that_change_under_our_feet(change: Callable[[list[torch.nn.Parameter]], None]) -> None:
    """Before the first step, after it and twice more: numbers, strides and sharing are what they are with torch."""
    params, expected = make_parameters(SHAPES), make_parameters(SHAPES)
    optimizer, reference = optim.SGD(params, lr=0.1, momentum=0.9), torch.optim.SGD(expected, lr=0.1, momentum=0.9)
    for step in range(8):
        for own in (params, expected):
            if step in (0, 1, 4, 5):
                change(own)
            set_gradients(own, step)
        optimizer.step()
        reference.step()
        assert largest_difference(params, expected) <= ROUNDING
    for p, q in zip(params, expected, strict=True):
        assert (p.stride(), p.is_shared()) == (q.stride(), q.is_shared())


@pytest.mark.parametrize("steps", [0, 2])
def test_another_dtype_after_construction(steps: int) -> None:
    """`model.double()`: what follows is computed in float64, moments as well."""
    params, expected = make_parameters(SHAPES, torch.float32), make_parameters(SHAPES, torch.float32)
    optimizer, reference = optim.SGD(params, lr=0.1), torch.optim.SGD(expected, lr=0.1)
    moments = optim.Adam(make_parameters(SHAPES, torch.float32))
    for step in range(6):
        if step == steps:
            for p in [*params, *expected, *moments.param_groups[0]["params"]]:
                p.data = p.data.double()
        for own in (params, expected, moments.param_groups[0]["params"]):
            set_gradients(own, step)
        for each in (optimizer, reference, moments):
            each.step()
    # float32 takes part in the first two steps: a few of its roundings.
    assert largest_difference(params, expected) <= (2.0**-21 if steps else ROUNDING)
    assert {value["exp_avg"].dtype for value in moments.state.values()} == {torch.float64}
    assert {float(value["step"]) for value in moments.state.values()} == {6.0}


def test_a_storage_gives_its_memory_up_and_gets_it_back() -> None:
    """As offloading has it. A tensor that would have to grow in place refuses, as over memory of NumPy's."""
    params, expected = make_parameters(SHAPES), make_parameters(SHAPES)
    optimizer, reference = optim.AdamW(params), torch.optim.AdamW(expected)
    for step in range(3):
        take_steps(params, optimizer, [step])
        take_steps(expected, reference, [step])
        p, kept = params[step], params[step].detach().clone()
        if not p.untyped_storage().resizable():
            with pytest.raises(RuntimeError, match="resize storage that is not resizable"):
                p.data.resize_(100)
        size = p.untyped_storage().nbytes()
        p.untyped_storage().resize_(0)
        assert (p.untyped_storage().nbytes(), p.shape) == (0, kept.shape)
        p.untyped_storage().resize_(size)
        p.data.copy_(kept)
        p.untyped_storage().resize_(2 * size)
        assert torch.equal(p, kept)
    assert largest_difference(params, expected) <= ROUNDING


def test_storages_are_apart_and_of_the_parameters_size() -> None:
    """What safetensors and torch.save look at."""
    shapes = [*SHAPES, (), (JOIN_UP_TO + 1,)]
    params = make_parameters(shapes, torch.float32)
    optimizer = optim.AdamW(params)
    set_gradients(params, 0)
    optimizer.step()
    assert [p.untyped_storage().nbytes() for p in params] == [4 * p.numel() for p in params]
    assert [p.storage_offset() for p in params] == [0] * len(params)
    ranges = sorted((p.data_ptr(), p.data_ptr() + 4 * p.numel()) for p in params)
    assert all(stop <= start for (_, stop), (start, _) in itertools.pairwise(ranges))


def size_of(value: Any) -> int:
    file = io.BytesIO()
    torch.save(value, file)
    return file.tell()


def test_saved_files_are_as_large_as_torchs() -> None:
    sizes = []
    for make in (optim.AdamW, torch.optim.AdamW):
        params = make_parameters([*SHAPES, (2000,)])
        optimizer = make(params)
        set_gradients(params, 0)
        optimizer.step()
        weights = torch.nn.ParameterList(params).state_dict()
        sizes.append([size_of(params), size_of(weights), size_of(optimizer.state_dict())])
        assert torch.equal(pickle.loads(pickle.dumps(params[1])), params[1])
    # Of another length are only a file's zip paddings.
    assert all(ours <= theirs + 64 for ours, theirs in zip(*sizes, strict=True))


def test_copies_have_memory_of_their_own() -> None:
    params = make_parameters(SHAPES)
    optimizer = optim.AdamW(params)
    copies = [copy.deepcopy(params), pickle.loads(pickle.dumps(params)), [p.detach().clone() for p in params]]
    kept = [[p.tolist() for p in own] for own in copies]
    set_gradients(params, 0)
    optimizer.step()
    assert [[p.tolist() for p in own] for own in copies] == kept


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.complex64], ids=str)
@pytest.mark.parametrize("size", [1, 16, 1000, 100_003])
@pytest.mark.parametrize("offset", [0, 1], ids=["aligned", "unaligned"])
def test_a_copy_in_jax_is_xlas_own(size: int, offset: int, dtype: torch.dtype) -> None:
    """It keeps its values whatever becomes of the tensor, and a program that it is given writes over it."""
    tensor = torch.ones(size + offset, dtype=dtype)[offset:]
    with jax.enable_x64(True):
        array = copy_to_jax(tensor, jax.devices("cpu")[0])
        tensor.zero_()
        assert (array.dtype.name, array.shape) == (str(dtype).removeprefix("torch."), (size,))
        assert bool((array == 1).all())
        address = array.unsafe_buffer_pointer()
        assert jax.jit(jnp.negative, donate_argnums=0)(array).unsafe_buffer_pointer() == address


def read(params: list[torch.Tensor], pipe: Any) -> None:
    pipe.send([p.detach().tolist() for p in params])


@pytest.mark.skipif("fork" not in multiprocessing.get_all_start_methods(), reason="no fork here")
def test_a_forked_process_reads_the_parameters() -> None:
    params = make_parameters([*SHAPES, (7,)])
    params[-1].share_memory_()
    optimizer = optim.AdamW(params)
    set_gradients(params, 0)
    optimizer.step()
    context = multiprocessing.get_context("fork")
    receiver, sender = context.Pipe(duplex=False)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # JAX and Python warn of forks beside threads; this one runs no JAX
        process = context.Process(target=read, args=(params, sender))
        process.start()
    assert receiver.poll(60)
    assert receiver.recv() == [p.tolist() for p in params]
    process.join()
    assert process.exitcode == 0


@pytest.mark.parametrize("delete", [False, True])
def test_two_optimizers_over_the_same_parameters(delete: bool) -> None:
    """In turn, whether the first is still there or not."""
    params, expected = make_parameters(SHAPES), make_parameters(SHAPES)
    ours: list[Any] = [optim.AdamW(params, lr=0.1)]
    theirs: list[Any] = [torch.optim.AdamW(expected, lr=0.1)]
    for step in range(9):
        if step == 3:
            ours.append(optim.SGD(params, lr=0.1, momentum=0.9))
            theirs.append(torch.optim.SGD(expected, lr=0.1, momentum=0.9))
            if delete:
                del ours[0], theirs[0]
        set_gradients(params, step)
        set_gradients(expected, step)
        ours[step % len(ours)].step()
        theirs[step % len(theirs)].step()
    assert largest_difference(params, expected) <= ROUNDING


def test_backward_through_an_overwritten_parameter_is_refused() -> None:
    for make in (optim.SGD, torch.optim.SGD):
        params = make_parameters([(3,), (3,)])
        optimizer = make(params, lr=0.1)
        loss = (params[0] * params[1]).sum()
        loss.backward(retain_graph=True)
        versions = [p._version for p in params]
        optimizer.step()
        assert all(p._version > version for p, version in zip(params, versions, strict=True))
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            loss.backward()


DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16, torch.complex64, torch.complex128]


def test_all_dtypes_and_odd_shapes_in_one_group() -> None:
    """Within one rounding of the parameter per step: torch rounds half precision after every operation."""
    cases = [(dtype, shape) for dtype in DTYPES for shape in [(2, 3), (), (0, 4), (1,)]]
    params, expected = ([make_parameters([shape], dtype)[0] for dtype, shape in cases] for _ in range(2))
    optimizer, reference = optim.SGD(params, lr=0.125), torch.optim.SGD(expected, lr=0.125)
    for step in range(3):
        for own in (params, expected):
            for p in own:
                p.grad = torch.full_like(p, 0.5 * (step - 1.5))
        optimizer.step()
        reference.step()
    for p, q in zip(params, expected, strict=True):
        assert (p.dtype, p.shape) == (q.dtype, q.shape)
        assert torch.allclose(p, q, rtol=3 * torch.finfo(p.dtype).eps, atol=torch.finfo(p.dtype).eps)


def bucket_views(params: list[torch.nn.Parameter], step: int) -> None:
    """As DDP's gradient_as_bucket_view has them: one buffer for all."""
    flat = torch.randn(sum(p.numel() for p in params), generator=torch.Generator().manual_seed(step)).double()
    for p, part in zip(params, flat.split([p.numel() for p in params]), strict=True):
        p.grad = part.view(p.shape)


def unaligned(params: list[torch.nn.Parameter], step: int) -> None:
    bucket_views(params, step)
    for p in params:
        assert p.grad is not None
        raw = torch.zeros(8 * p.numel() + 4, dtype=torch.uint8).numpy()[4:].view("float64")
        grad = torch.from_numpy(raw).view(p.shape)
        p.grad = grad.copy_(p.grad)


def other_strides(params: list[torch.nn.Parameter], step: int) -> None:
    bucket_views(params, step)
    for p in params:
        assert p.grad is not None
        dims = tuple(range(p.dim()))[::-1]
        p.grad = p.grad.permute(dims).contiguous().permute(dims)


def expanded(params: list[torch.nn.Parameter], step: int) -> None:
    for p in params:
        p.grad = torch.full((1,) * p.dim(), 0.1 * (step + 1), dtype=p.dtype).expand(p.shape)


def negated(params: list[torch.nn.Parameter], step: int) -> None:
    bucket_views(params, step)
    for p in params:
        assert p.grad is not None
        p.grad = torch._neg_view(p.grad)


@pytest.mark.parametrize("assign", [bucket_views, unaligned, other_strides, expanded, negated])
def test_gradients_in_any_memory(assign: Callable[[list[torch.nn.Parameter], int], None]) -> None:
    """Of parameters in any order of strides."""
    both: list[list[torch.nn.Parameter]] = []
    for _ in range(2):
        params = make_parameters([*SHAPES, (4, 6), ()])
        params[0] = torch.nn.Parameter(params[0].detach().t())
        params[3] = torch.nn.Parameter(params[3].detach().to(memory_format=torch.channels_last))
        params[4] = torch.nn.Parameter(params[4].detach()[:, ::2])
        both.append(params)
    optimizer, reference = optim.AdamW(both[0], lr=0.1), torch.optim.AdamW(both[1], lr=0.1)
    for step in range(3):
        for own in both:
            assign(own, step)
        gradients = [p.grad.clone() for p in both[0] if p.grad is not None]
        optimizer.step()
        reference.step()
        assert all(torch.equal(p.grad, grad) for p, grad in zip(both[0], gradients, strict=True))
    assert largest_difference(*both) <= ROUNDING
    assert [p.stride() for p in both[0]] == [p.stride() for p in both[1]]


@pytest.mark.skipif(not hasattr(torch.Tensor, "grad_dtype"), reason="torch before 2.10 has no grad_dtype")
def test_gradients_of_a_wider_dtype() -> None:
    """float32 parameters, one gradient in float64: the update is rounded once, at the parameter."""
    params = make_parameters([(4, 3), (5,)], torch.float32)
    expected = [p.detach().double() for p in params]
    optimizer = optim.SGD(params, lr=0.1)
    params[1].grad_dtype = None
    params[0].grad = torch.full((4, 3), 0.3)
    params[1].grad = torch.full((5,), 1 / 3, dtype=torch.float64)
    optimizer.step()
    expected = [q - 0.1 * p.grad.double() for p, q in zip(params, expected, strict=True)]
    assert largest_difference([p.double() for p in params], expected) <= 2.0**-23


@pytest.mark.filterwarnings("ignore:optimizer contains a parameter group with duplicate parameters")
@pytest.mark.parametrize("name", ["SGD", "AdamW"])
def test_a_parameter_twice_in_a_group_is_updated_twice(name: str) -> None:
    """And counts twice. Not compared: torch's momentum, which starts anew in both updates of the first step."""
    both = [make_parameters(SHAPES) for _ in range(2)]
    made: list[Any] = []
    for module, params in zip((optim, torch.optim), both, strict=True):
        made.append(getattr(module, name)([params[0], *params, params[2], params[2]], lr=0.1))
    for step in range(4):
        for optimizer, params in zip(made, both, strict=True):
            set_gradients(params, step)
            if step == 2:
                params[1].grad = None
            optimizer.step()
        assert largest_difference(*both) <= ROUNDING
    for ours, theirs in zip(*both, strict=True):
        entries = [optimizer.state[p] for optimizer, p in zip(made, (ours, theirs), strict=True)]
        names = sorted(name for name, value in entries[1].items() if value is not None)
        assert sorted(entries[0]) == names
        assert largest_difference(*([torch.ones(1), *map(entry.get, names)] for entry in entries)) <= ROUNDING
    if name == "AdamW":
        assert [int(made[0].state[p]["step"]) for p in both[0]] == [8, 3, 12, 4]


def test_jax_does_not_see_the_parameters_memory() -> None:
    """An array made from a parameter keeps its values."""
    params = make_parameters(SHAPES)
    optimizer = optim.AdamW(params, lr=0.1)
    kept = [jnp.array(p.detach().numpy()) for p in params]
    values = [k.tolist() for k in kept]
    set_gradients(params, 0)
    optimizer.step()
    assert [k.tolist() for k in kept] == values
