"""What the torch engine has beside XLA's: any device, autograd, `torch.func`, torch's compiler."""

import copy
import functools
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import optax
import pytest
import torch
from jax import lax
from torch._functorch import config as functorch
from torch._inductor import config as inductor
from torch._inductor.utils import run_and_get_code
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from twins import ROUNDING, largest_difference, make_parameters, set_gradients, take_steps

import funcopt
from funcopt import TorchBridge
from funcopt.torch_bridge import functional, optim
from funcopt.torch_bridge._binding import Binding
from funcopt.torch_bridge.engines import _compiled, _kept
from funcopt.torch_bridge.engines._elements import Elements, elements_of
from funcopt.torch_bridge.engines._recipes import Elementwise, Given
from funcopt.torch_bridge.store._pure import update_purely

pytestmark = pytest.mark.one_engine

SHAPES = [(4, 3), (5,), (70, 500)]


def recipe(lr: Any = 0.01, weight_decay: Any = 0.1) -> Any:
    return funcopt.chain(
        funcopt.clip_by_global_norm(0.5), funcopt.adamw(lr, weight_decay=weight_decay), funcopt.params_ema(0.9)
    )


ELEMENTWISE = ("Adadelta", "Adagrad", "Adam", "Adamax", "AdamW", "ASGD", "NAdam", "RAdam", "RMSprop", "Rprop", "SGD")
OPTIONS: dict[str, dict[str, Any]] = {"SGD": {"momentum": 0.9, "lr": 0.01}}


def make(name: str, params: Any, **further: Any) -> Any:
    if name == "recipe":
        return TorchBridge(params, recipe, **further)
    return getattr(optim, name)(params, **OPTIONS.get(name, {}), **further)


# The choice.


def test_the_engine_is_told_with_its_reason() -> None:
    params = make_parameters([(3,)])
    assert optim.AdamW(params).engine.name == "xla"
    assert TorchBridge(params, funcopt.adamw, engine="torch").engine == ("torch", "engine='torch'")
    with torch.device("meta"):
        model = torch.nn.Linear(2, 2)
    assert optim.AdamW(model.parameters()).engine == ("torch", "JAX has no device for meta")
    assert optim.AdamW(params, differentiable=True).engine.name == "torch"


def of_each(turn: Callable[[Any], Any], lr: Any) -> Any:
    turned = optax.stateless(lambda updates, _: jax.tree.map(turn, updates))
    return funcopt.chain(turned, funcopt.sgd(lr, momentum=0.9))


def test_torchs_engine_multiplies_large_matrices() -> None:
    """Where it is faster: on the CPU, and if it has all that the recipe uses."""
    small, large, flat = make_parameters([(8, 8), (256, 256), (70_000,)])
    expected = "torch", "the update multiplies large matrices, at which torch is the faster one on the CPU"
    for own in (optim.Muon, optim.SOAP):
        assert own([large], lr=0.01).engine == expected
        assert own([large], lr=0.01, engine="xla").engine.name == "xla"
        assert own([small, large.detach()], lr=0.01).engine.name == "xla"
    assert TorchBridge([large, flat], funcopt.muon_with_adamw, lr=0.01).engine == expected
    assert optim.SOAP([flat], lr=0.01).engine.name == "xla"
    assert optim.Lamb([large], lr=0.01).engine.name == "xla"

    def looped(lr: Any) -> Any:
        return of_each(lambda g: lax.while_loop(lambda x: jnp.max(x) < 0, lambda x: x @ x, g), lr)

    assert TorchBridge([large], looped, lr=0.01).engine.name == "xla"


def test_large_matrices_that_come_later() -> None:
    def multiplied(lr: Any) -> Any:
        return of_each(lambda g: g @ g.T @ g, lr)

    ours, theirs = (make_parameters([(8, 8), (256, 256)]) for _ in range(2))
    bridge = TorchBridge(ours[:1], multiplied, lr=0.01)
    reference = TorchBridge(theirs[:1], multiplied, lr=0.01, engine="torch")
    for step in range(4):
        if step == 2:
            bridge.add_param_group({"params": ours[1:]})
            reference.add_param_group({"params": theirs[1:]})
        take_steps(ours, bridge, [step])
        take_steps(theirs, reference, [step])
        assert bridge.engine.name == ("xla" if step < 2 else "torch")
    assert largest_difference(ours, theirs) <= ROUNDING


def test_what_is_no_engine() -> None:
    params = make_parameters([(3,)])
    with pytest.raises(ValueError, match="engine must be 'auto' or 'xla' or 'torch', got 'cuda'"):
        optim.AdamW(params, engine="cuda")
    optimizer = TorchBridge(params, funcopt.adamw)
    with pytest.raises(ValueError, match="TorchBridge: engine must be"):
        optimizer.engine = "jax"  # pyright: ignore[reportAttributeAccessIssue]


def ranked(lr: Any) -> Any:
    return optax.chain(
        optax.stateless(lambda updates, _: jax.tree.map(lambda g: lax.top_k(g, 1)[0] + g, updates)), optax.sgd(lr)
    )


def test_what_torch_has_no_operation_for_is_refused_at_once() -> None:
    params = make_parameters([(3,)])
    with pytest.raises(NotImplementedError, match="ranked uses JAX's primitive top_k, which the torch engine has no"):
        TorchBridge(params, ranked, lr=0.1, engine="torch")
    optimizer = TorchBridge(params, ranked, lr=0.1)
    with pytest.raises(NotImplementedError, match="ranked"):
        optimizer.engine = "torch"


def test_random_keys_are_those_of_jax() -> None:
    """The same noise under both engines, which take turns; and as a pure function."""
    params, others, own = (make_parameters([(4, 3), (5,)]) for _ in range(3))
    optimizer = TorchBridge(params, optax.noisy_sgd, lr=0.1, key=0, engine="torch")
    other = TorchBridge(others, optax.noisy_sgd, lr=0.1, key=0, engine="xla")
    tx = functional(optax.noisy_sgd, lr=0.1, key=0)
    values = [p.detach().clone() for p in own]
    state = tx.init(values)
    for step, engine in enumerate(["torch", "xla", "torch"]):
        optimizer.engine = engine
        take_steps(params, optimizer, [step])
        take_steps(others, other, [step])
        values, state = tx.update([p.grad for p in params], state, values)
    assert largest_difference(params, others) <= ROUNDING
    assert largest_difference(params, values) <= ROUNDING
    keys = [x[0]["rng_key"] for x in (optimizer.state_dict()["state"], other.state_dict()["state"], state)]
    assert all(key.dtype == torch.int32 and torch.equal(key, keys[0]) for key in keys)


@pytest.mark.parametrize(
    ("factory", "options", "function", "due"),
    [
        (funcopt.soap, {"precondition_frequency": 3}, "eigh", [0]),
        (funcopt.soap, {"precondition_frequency": 3}, "qr", [3, 6]),
        (funcopt.galore, {"rank": 1, "update_proj_gap": 3}, "svd", [0, 3, 6]),
        (funcopt.shampoo, {"precondition_frequency": 3}, "eigh", [2, 5]),
        (funcopt.kron, {"preconditioner_update_probability": 0.3}, "solve_triangular", [3, 7]),
    ],
)
def test_what_is_not_due_is_not_computed(
    factory: Any, options: dict[str, Any], function: str, due: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Conditions on counts are decided before anything runs."""
    params = make_parameters([(4, 3)])
    optimizer = TorchBridge(params, factory, lr=0.01, engine="torch", **options)
    inner, steps = getattr(torch.linalg, function), []

    def counted(*args: Any, **kwargs: Any) -> Any:
        steps.append(step)
        return inner(*args, **kwargs)

    monkeypatch.setattr(torch.linalg, function, counted)
    for step in range(8):
        set_gradients(params, step)
        optimizer.step()
    assert sorted(set(steps)) == due


@pytest.mark.parametrize("name", ["AdamW", "SGD", "NAdam", "recipe", "Adafactor"])
def test_engines_take_turns(name: str) -> None:
    """State and checkpoints are the same under both."""
    params, others, loaded = (make_parameters(SHAPES) for _ in range(3))
    optimizer, other = make(name, params, engine="torch"), make(name, others, engine="xla")
    for step, engine in enumerate(["torch", "xla", "torch", "torch", "xla"]):
        optimizer.engine = engine
        take_steps(params, optimizer, [step])
        take_steps(others, other, [step])
        assert optimizer.engine.name == engine
    assert largest_difference(params, others) <= ROUNDING
    again = make(name, loaded, engine="torch")
    again.load_state_dict(copy.deepcopy(other.state_dict()))
    for p, q in zip(loaded, others, strict=True):
        p.data.copy_(q)
    take_steps(loaded, again, [7])
    take_steps(others, other, [7])
    assert largest_difference(loaded, others) <= ROUNDING


# Devices.


def test_parameters_on_two_devices() -> None:
    """Each is updated where it is; there is one device here that computes, and one that only has shapes."""
    (here,), (alone,) = make_parameters([(4, 3)]), make_parameters([(4, 3)])
    there = torch.nn.Parameter(torch.empty(2, 5, device="meta"))
    optimizer, other = optim.AdamW([here, there]), optim.AdamW([alone])
    for step in range(3):
        set_gradients([here], step)
        set_gradients([alone], step)
        there.grad = torch.empty(2, 5, device="meta")
        optimizer.step()
        other.step()
    assert largest_difference([here], [alone]) <= ROUNDING
    assert optimizer.state[there]["exp_avg"].device.type == "meta"
    assert float(optimizer.state[there]["step"]) == 3.0


class Watch(TorchDispatchMode):
    """Notes each operation that waits for the device."""

    def __init__(self) -> None:
        super().__init__()
        self.waits: list[str] = []
        self.operations = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        del types
        self.operations += 1
        if any(name in str(func) for name in ("_local_scalar_dense", "nonzero", "equal.default")):
            self.waits.append(str(func))
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("name", [*ELEMENTWISE, "recipe", "Muon"])
def test_no_step_waits_for_the_device(name: str) -> None:
    """Counts are on the CPU whatever the device, as torch's; Adafactor reads its own there."""
    params = make_parameters([(4, 3), (70, 500)])
    optimizer = make(name, params, engine="torch")
    take_steps(params, optimizer, range(2))
    set_gradients(params, 2)
    with Watch() as watch:
        optimizer.step()
    assert watch.operations
    assert not watch.waits


def code_of(factory: Any, **hyperparams: Any) -> tuple[Elements, Any]:
    binding = Binding(factory, hyperparams)
    found, _ = binding.split(binding.defaults)
    recipe = Elementwise(binding, found, "float32", "float32", Given(False, False), joined=False, wide=False)
    return elements_of(recipe), found


@pytest.mark.parametrize("device", ["cuda", "xpu", "mps"])
def test_nothing_is_computed_on_the_host_for_another_device(device: str) -> None:
    """On tensors that only claim to be there: no array ever is on the CPU."""
    elements, _ = code_of(funcopt.adamw)
    code, numbers = elements.chunked(0, (0,) * len(elements._deciding))
    with FakeTensorMode():
        arrays = [torch.empty(8, device=device) for _ in elements.arrays]
        scratch = [torch.empty(8, *own.rest, dtype=own.dtype, device=device) for own in code.scratch]
        with Watch() as watch:
            code.run([(*arrays, *scratch)], [0.5] * len(numbers), [], torch.device(device))
    assert watch.operations >= 8
    assert not watch.waits


# Autograd.


def loss_of(values: Any, step: int) -> torch.Tensor:
    return sum(((value * (step + 1)).sin() ** 2).sum() for value in values)  # pyright: ignore[reportReturnType]


def trained(build: Any, start: Any, hyperparams: dict[str, Any]) -> list[torch.Tensor]:
    """Parameters after three steps, as functions of what they were and of the hyperparameters."""
    optimizer = build([torch.zeros_like(x, requires_grad=True) for x in start], differentiable=True, **hyperparams)
    params = [x.clone() for x in start]
    optimizer.param_groups[0]["params"] = params
    for step in range(3):
        before = [p.clone() for p in params]
        grads = torch.autograd.grad(loss_of(before, step), before, create_graph=True)
        for p, grad in zip(params, grads, strict=True):
            p.grad = grad.clone()
        optimizer.step()
    return params


@pytest.fixture
def _float64() -> Iterator[None]:
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def points() -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(3)
    return [(torch.rand(s, generator=generator) + 0.2).requires_grad_() for s in ((2, 2), (3,))]


@pytest.mark.usefixtures("_float64")
@pytest.mark.parametrize("name", [name for name in ELEMENTWISE if name != "Rprop"])
def test_gradients_of_steps_and_learning_rates(name: str) -> None:
    """Against finite differences, whose error is their step's; also where torch's own steps cannot be differentiated.

    Rprop's are none: it takes gradients' signs.
    """
    build = getattr(optim, name)
    options = {"momentum": 0.9} if name == "SGD" else {}
    lr = torch.tensor(0.03, requires_grad=True)

    def run(lr: torch.Tensor, *start: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return tuple(trained(build, start, {"lr": lr, **options}))

    assert torch.autograd.gradcheck(run, (lr, *points()), eps=1e-6, atol=1e-5, rtol=1e-4)


@pytest.mark.usefixtures("_float64")
@pytest.mark.parametrize("name", ["Adadelta", "Adagrad", "Adam", "AdamW", "ASGD", "NAdam", "RAdam", "RMSprop"])
def test_gradients_are_torchs(name: str) -> None:
    """But SGD's: torch takes the first momentum buffer for a constant."""
    results = []
    for module in (optim, torch.optim):
        start = points()
        results.append(torch.autograd.grad(loss_of(trained(getattr(module, name), start, {}), 0), start))
    for ours, theirs in zip(*results, strict=True):
        assert (ours - theirs).abs().max() <= ROUNDING * theirs.abs().max()


def test_a_leaf_is_not_stepped_differentiably() -> None:
    (p,) = make_parameters([(3,)])
    optimizer = optim.SGD([p], lr=0.1, differentiable=True)
    set_gradients([p], 0)
    with pytest.raises(RuntimeError, match="a leaf Variable that requires grad"):
        optimizer.step()


@pytest.mark.parametrize("name", [*ELEMENTWISE, "recipe", "Adafactor", "Muon"])
def test_a_step_that_a_graph_can_hold(name: str) -> None:
    """What `capturable` runs on a GPU: it writes in place, counts on the device, and waits for nothing."""
    params, others = make_parameters([(4, 3), (3, 5)]), make_parameters([(4, 3), (3, 5)])
    optimizer, other = make(name, params), make(name, others, engine="torch")
    kept: list[Any] = []
    for step in range(4):
        set_gradients(params, step)
        with torch.no_grad(), Watch() as watch:
            assert update_purely(
                optimizer._binding,
                optimizer.param_groups,
                optimizer.state,
                loss=None,
                scale=None,
                differentiable=False,
                check=lambda _: None,
            )
        assert not watch.waits
        take_steps(others, other, [step])
        tensors = [value for p in params for value in optimizer.state[p].values()]
        assert step == 0 or all(a is b for a, b in zip(kept, tensors, strict=True))
        kept = tensors
    # Counts in float32 are multiplied as such, as torch does under `capturable`; bfloat16 is Muon's own.
    assert largest_difference(params, others) <= (1e-3 if name == "Muon" else ROUNDING)


def test_gradients_that_are_scaled() -> None:
    """As GradScaler hands them to an optimizer with `fused=True`."""
    results = []
    for factor in (1.0, 512.0):
        params = [p.clone() for p in make_parameters(SHAPES)]
        optimizer = TorchBridge([torch.zeros(1, requires_grad=True)], funcopt.adamw, fused=True, differentiable=True)
        optimizer.param_groups[0]["params"] = params
        for step in range(2):
            for p, grad in zip(params, make_parameters(SHAPES), strict=True):
                p.grad = grad.detach() * factor * (step + 1)
            optimizer.grad_scale, optimizer.found_inf = torch.tensor(factor), torch.tensor(0.0)
            optimizer.step()
        results.append(params)
    assert largest_difference(*results) <= ROUNDING


# torch.func.


@pytest.mark.parametrize("name", ["adamw", "sgd", "nadam", "radam", "rprop", "asgd", "adafactor"])
def test_an_ensemble_with_its_own_learning_rates(name: str) -> None:
    tx = functional(getattr(funcopt, name), **({"momentum": 0.9, "dampening": 0.3} if name == "sgd" else {}))

    def train(w: torch.Tensor, lr: torch.Tensor) -> torch.Tensor:
        params = {"w": w}
        state = tx.init(params)
        for step in range(4):
            params, state = tx.update({"w": (params["w"] * (step + 1)).sin()}, state, params, lr=lr)
        return params["w"]

    (start,) = make_parameters([(5, 4, 3)])
    rates = torch.linspace(0.01, 0.1, 5, dtype=torch.float64)
    together = torch.func.vmap(train)(start.detach(), rates)
    for w, lr, found in zip(start, rates, together, strict=True):
        params = [torch.nn.Parameter(w.detach().clone())]
        options = {"momentum": 0.9, "dampening": 0.3} if name == "sgd" else {}
        optimizer = TorchBridge(params, getattr(funcopt, name), lr=float(lr), **options)
        for step in range(4):
            params[0].grad = (params[0].detach() * (step + 1)).sin()
            optimizer.step()
        assert largest_difference([found], params) <= ROUNDING


def test_what_a_function_does_not_take() -> None:
    with pytest.raises(TypeError, match="adamw has no argument learning_speed"):
        functional(funcopt.adamw, learning_speed=1.0)
    tx = functional(funcopt.adamw)
    with pytest.raises(TypeError, match="adamw has no hyperparameter momentum; it has lr"):
        tx.init([torch.ones(2)], momentum=0.9)
    with pytest.raises(ValueError, match="must have the state 'exp_avg_sq'"):
        tx.update([torch.ones(2)], [{"step": torch.tensor(1.0), "exp_avg": torch.ones(2)}], [torch.ones(2)])


# torch's compiler.


@pytest.mark.parametrize("name", ["AdamW", "recipe"])
def test_compiled_blocks(name: str) -> None:
    """Joined and large parameters, some without gradients, and groups with numbers of their own."""

    def groups(params: Any) -> list[dict[str, Any]]:
        return [{"params": params[:1], "lr": 0.05}, {"params": params[1:], "weight_decay": 0.3}]

    results = []
    for compiled in (False, True):
        params = make_parameters(SHAPES)
        optimizer = make(name, groups(params), engine="torch", compiled=compiled)
        for step in range(4):
            set_gradients(params, step)
            if step == 2:
                params[0].grad = params[2].grad = None
            optimizer.step()
        results.append(params)
    assert largest_difference(*results) <= ROUNDING


def kernels_of(build: Callable[[], Any]) -> list[tuple[int, int]]:
    """How many kernels, and arrays beside the arguments, each compiled function has."""
    _compiled._function_of.cache_clear()
    _kept.forget_codes()
    torch._dynamo.reset()
    with warnings.catch_warnings(), inductor.patch(fx_graph_cache=False), functorch.patch(enable_autograd_cache=False):
        warnings.simplefilter("ignore")
        _, sources = run_and_get_code(build)
    return [(source.count("async_compile.cpp_pybinding("), source.count("= empty_strided_cpu(")) for source in sources]


@pytest.mark.parametrize("name", ["AdamW", "RAdam"])
def test_a_block_is_one_kernel(name: str) -> None:
    """Rows with numbers of their own, and a parameter by itself."""
    params = [torch.nn.Parameter(p.detach().float()) for p in make_parameters(SHAPES)]
    set_gradients(params, 0)
    optimizer = make(name, params, engine="torch", compiled=True)
    assert kernels_of(optimizer.step) == [(1, 0), (1, 0)]


def test_without_a_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    """One warning, and the update runs all the same."""
    monkeypatch.setattr(_compiled, "_broken", [])
    _compiled._function_of.cache_clear()
    _kept.forget_codes()
    torch._dynamo.reset()
    params, others = make_parameters(SHAPES), make_parameters(SHAPES)
    optimizer, other = optim.Adagrad(params, compiled=True, engine="torch"), optim.Adagrad(others, engine="torch")
    caches = functorch.patch(enable_autograd_cache=False)
    with caches, inductor.patch({"fx_graph_cache": False, "cpp.cxx": ("/nowhere/g++",)}):
        with pytest.warns(UserWarning, match=r"torch\.compile does not work here") as caught:
            take_steps(params, optimizer, range(3))
        assert len(caught) == 1
    take_steps(others, other, range(3))
    assert largest_difference(params, others) == 0.0


def test_a_train_step_is_compiled_as_a_whole() -> None:
    """The step is a break in its graph, as those of many torch optimizers are."""
    results = []
    for wrap in (lambda fn: fn, functools.partial(torch.compile, backend="eager")):
        torch.manual_seed(0)
        model = torch.nn.Linear(3, 2).double()
        optimizer = optim.AdamW(model.parameters(), engine="torch")

        def train(x: torch.Tensor, model: Any = model, optimizer: Any = optimizer) -> torch.Tensor:
            optimizer.zero_grad()
            loss = model(x).square().mean()
            loss.backward()
            optimizer.step()
            return loss

        step = wrap(train)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            for i in range(3):
                step(torch.full((2, 3), float(i + 1)).double())
        results.append(list(model.parameters()))
    assert largest_difference(*results) == 0.0


# Numbers.


@pytest.mark.parametrize("name", ["RMSprop", "Rprop", "SGD"])
def test_the_bits_of_torchs_own(name: str) -> None:
    """Where torch does the same operations in the same order."""
    params, others = ([torch.nn.Parameter(p.detach().float()) for p in make_parameters(SHAPES)] for _ in range(2))
    optimizer = make(name, params, engine="torch")
    other = getattr(torch.optim, name)(others, foreach=False, **OPTIONS.get(name, {}))
    take_steps(params, optimizer, range(6))
    take_steps(others, other, range(6))
    assert all(torch.equal(p, q) for p, q in zip(params, others, strict=True))
