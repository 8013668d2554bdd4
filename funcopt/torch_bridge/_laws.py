"""What every torch optimizer obeys: what trainers, schedulers, scalers and checkpoints rely on."""

import copy
import functools
import io
from collections.abc import Callable, Sequence
from typing import Any

import torch

from funcopt._law_error import expect

Make = Callable[..., Any]

_SHAPES = ((4, 3), (3,), (2, 2))


def laws(make: Make) -> dict[str, Callable[[], None]]:
    """The laws for what `make`, a class or a function of the parameters, returns.

    Raises:
        TypeError: if that is no optimizer.
    """
    found = make(_params())
    if not hasattr(found, "param_groups"):
        raise TypeError(f"the function must return a torch optimizer, got {found!r}")
    return {law.__name__: functools.partial(law, make) for law in _LAWS}


def _params(dtype: torch.dtype = torch.float32) -> list[torch.nn.Parameter]:
    generator = torch.Generator().manual_seed(0)
    return [torch.nn.Parameter(torch.randn(shape, generator=generator).to(dtype)) for shape in _SHAPES]


def _give(params: Sequence[torch.Tensor], seed: int) -> None:
    generator = torch.Generator().manual_seed(100 + seed)
    for p in params:
        p.grad = torch.randn(p.shape, generator=generator).to(p.dtype)


def _run(optimizer: Any, params: Sequence[torch.Tensor], steps: range) -> None:
    for step in steps:
        _give(params, step)
        optimizer.step()


def _equal(a: Sequence[torch.Tensor], b: Sequence[torch.Tensor]) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


def parameters_are_updated_in_place(make: Make) -> None:
    """A step changes the tensors that it was given, and no gradient."""
    params = _params()
    optimizer, before = make(params), [p.detach().clone() for p in params]
    _give(params, 0)
    grads = [p.grad.clone() for p in params if p.grad is not None]
    optimizer.step()
    expect(not any(torch.equal(p, old) for p, old in zip(params, before, strict=True)), "a step must change parameters")
    own = [p for group in optimizer.param_groups for p in group["params"]]
    expect(all(a is b for a, b in zip(own, params, strict=True)), "parameters must stay the same objects")
    expect(_equal([p.grad for p in params if p.grad is not None], grads), "a step must leave gradients as they are")


def state_belongs_to_parameters(make: Make) -> None:
    """Each parameter with a gradient has an entry of state, with tensors on its device."""
    params = _params()
    optimizer = make(params)
    _run(optimizer, params, range(2))
    for p, entry in optimizer.state.items():
        expect(isinstance(p, torch.Tensor), f"the keys of state must be parameters, got {p!r}")
        for key, value in entry.items():
            if isinstance(value, torch.Tensor) and value.dim() > 0:
                expect(value.device == p.device, f"state[{key!r}] must be on {p.device}, got {value.device}")


def dtypes_stay(make: Make) -> None:
    """Parameters keep their dtype, in float64, float32 and bfloat16, and are finite."""
    for dtype in (torch.float64, torch.float32, torch.bfloat16):
        params = _params(dtype)
        _run(make(params), params, range(3))
        expect(all(p.dtype == dtype for p in params), f"parameters must stay in {dtype}")
        expect(all(bool(torch.isfinite(p).all()) for p in params), f"parameters must be finite in {dtype}")


def missing_gradients_leave_parameters_alone(make: Make) -> None:
    """A parameter without a gradient stays, has no state, and changes nothing for the others."""
    params, others = _params(), _params()
    optimizer, reference = make(params), make([others[0], others[2]])
    for step in range(3):
        for own in (params, others):
            _give(own, step)
            own[1].grad = None
        optimizer.step()
        reference.step()
    expect(torch.equal(params[1], _params()[1]), "a parameter without a gradient must stay as it is")
    expect(not optimizer.state.get(params[1]), "a parameter without a gradient must have no state")
    expect(_equal([params[0], params[2]], [others[0], others[2]]), "the others must be updated as if it was not there")


def groups_have_values_of_their_own(make: Make) -> None:
    """Learning rates of groups count, also those that are edited between steps."""
    params, others = _params(), _params()
    optimizer = make([{"params": params[:1]}, {"params": params[1:]}])
    alone = [make(others[:1]), make(others[1:])]
    rate = optimizer.param_groups[0]["lr"]
    for step in range(3):
        for i, own in enumerate(alone):
            lr = rate / (1, 4)[i] / (1, 2, 1)[step]
            optimizer.param_groups[i]["lr"] = own.param_groups[0]["lr"] = lr
        _give(params, step)
        _give(others, step)
        for each in (optimizer, *alone):
            each.step()
    expect(_equal(params, others), "two groups must be updated as by two optimizers with their learning rates")


def groups_can_be_added(make: Make) -> None:
    """`add_param_group` between steps: new parameters are updated, old ones go on."""
    params = _params()
    optimizer = make(params[:2])
    _run(optimizer, params[:2], range(2))
    optimizer.add_param_group({"params": params[2:]})
    before = params[2].detach().clone()
    _run(optimizer, params, range(2, 3))
    expect(not torch.equal(params[2], before), "a parameter of an added group must be updated")


def checkpoints_are_plain(make: Make) -> None:
    """A state_dict is saved and loaded by torch with weights_only=True, which executes nothing."""
    params = _params()
    optimizer = make(params)
    _run(optimizer, params, range(2))
    _saved(optimizer)


def _saved(optimizer: Any) -> Any:
    file = io.BytesIO()
    torch.save(optimizer.state_dict(), file)
    file.seek(0)
    return torch.load(file, weights_only=True)


def runs_resume(make: Make) -> None:
    """A new optimizer with a loaded checkpoint goes on to the last bit, with the checkpoint's hyperparameters."""
    params = _params()
    optimizer = make(params)
    _run(optimizer, params, range(2))
    optimizer.param_groups[0]["lr"] /= 2
    _run(optimizer, params, range(2, 4))
    resumed = [torch.nn.Parameter(p.detach().clone()) for p in params]
    other = make(resumed)
    other.load_state_dict(_saved(optimizer))
    _run(optimizer, params, range(4, 7))
    _run(other, resumed, range(4, 7))
    expect(_equal(params, resumed), "a resumed run must equal the one that was not interrupted")


def copies_are_independent(make: Make) -> None:
    """A deep copy has state of its own and goes on alike."""
    params = _params()
    optimizer = make(params)
    _run(optimizer, params, range(2))
    other = copy.deepcopy(optimizer)
    copied = [p for group in other.param_groups for p in group["params"]]
    _run(other, copied, range(2, 4))
    expect(not _equal(params, copied), "a copy must have parameters of its own")
    _run(optimizer, params, range(2, 4))
    expect(_equal(params, copied), "a copy must go on as the original does")


def closures_are_called_with_gradients(make: Make) -> None:
    """`step(closure)` calls it with gradients enabled and returns its loss."""
    params = _params()

    def closure() -> torch.Tensor:
        expect(torch.is_grad_enabled(), "a closure must be called with gradients enabled")
        for p in params:
            p.grad = None
        loss = torch.stack([(p * p).sum() for p in params]).sum()
        loss.backward()
        return loss

    found = make(params).step(closure)
    expect(
        found is not None and float(torch.as_tensor(found).detach()) > 0,
        f"step(closure) must return the closure's loss, got {found!r}",
    )


def schedulers_drive_it(make: Make) -> None:
    """Torch's schedulers move its learning rate."""
    params = _params()
    optimizer = make(params)
    rate = optimizer.param_groups[0]["lr"]
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1, gamma=0.5)
    _give(params, 0)
    optimizer.step()
    scheduler.step()
    found = optimizer.param_groups[0]["lr"]
    expect(float(found) == float(rate) / 2, f"a scheduler must halve lr={rate}, got {found}")


_LAWS = (
    parameters_are_updated_in_place,
    state_belongs_to_parameters,
    dtypes_stay,
    missing_gradients_leave_parameters_alone,
    groups_have_values_of_their_own,
    groups_can_be_added,
    checkpoints_are_plain,
    runs_resume,
    copies_are_independent,
    closures_are_called_with_gradients,
    schedulers_drive_it,
)
