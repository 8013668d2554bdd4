"""L-BFGS against torch.optim.LBFGS: the same iterates from the same number of evaluations, in JAX and in the bridge."""

import copy
import io
import pickle
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from jax import lax

import funcopt
from funcopt import lbfgs
from funcopt.torch_bridge._lbfgs import LBFGS, _transition

STEPS = 3

# float64, relative to the largest entry. Sums are in another order, and iterations amplify what that makes of the last
# digits where the loss is flat or curved: measured worst 7e-10 on the network, 1e-10 on Rosenbrock's function, 2e-13 on
# the others.
TOLERANCE = 1e-7

RNG = np.random.default_rng(0)
SCALES = np.logspace(0, 2, 8)
FEATURES = RNG.normal(size=(40, 5))
LABELS = np.sign(FEATURES @ RNG.normal(size=5) + 0.3 * RNG.normal(size=40))
ROTATION = np.linalg.qr(RNG.normal(size=(8, 8)))[0]


class Problem(NamedTuple):
    """A loss written for both frameworks: `xp` is torch or jax.numpy, `a` makes its arrays of numpy's."""

    loss: Callable[..., Any]  # loss(params, xp, a)
    start: tuple[np.ndarray, ...]


def quadratic(params: Sequence[Any], xp: Any, a: Callable[[np.ndarray], Any]) -> Any:
    (x,) = params
    return 0.5 * ((a(ROTATION) @ x - 1.0) ** 2 * a(SCALES)).sum()


def rosenbrock(params: Sequence[Any], xp: Any, a: Callable[[np.ndarray], Any]) -> Any:
    (x,) = params
    return (100.0 * (x[1:] - x[:-1] ** 2) ** 2).sum() + ((1.0 - x[:-1]) ** 2).sum()


def logistic(params: Sequence[Any], xp: Any, a: Callable[[np.ndarray], Any]) -> Any:
    weight, bias = params
    margins = a(LABELS) * (a(FEATURES) @ weight + bias)
    return xp.log1p(xp.exp(-margins)).mean() + 0.01 * (weight**2).sum()


def mlp(params: Sequence[Any], xp: Any, a: Callable[[np.ndarray], Any]) -> Any:
    first, bias, second = params
    return ((xp.tanh(a(FEATURES) @ first + bias) @ second - a(LABELS)) ** 2).mean()


def ripples(params: Sequence[Any], xp: Any, a: Callable[[np.ndarray], Any]) -> Any:
    (x,) = params
    return (xp.sin(3.0 * x) + 0.1 * x**2).sum() + 0.1 * (x[1:] * x[:-1]).sum()


def starts(*shapes: tuple[int, ...], seed: int = 1) -> tuple[np.ndarray, ...]:
    rng = np.random.default_rng(seed)
    return tuple(rng.normal(size=shape) for shape in shapes)


QUADRATIC = Problem(quadratic, starts((8,)))
ROSENBROCK = Problem(rosenbrock, (np.array([-1.2, 1.0, 0.5, -0.3]),))
LOGISTIC = Problem(logistic, starts((5,), ()))
MLP = Problem(mlp, starts((5, 4), (4,), (4,)))
RIPPLES = Problem(ripples, starts((6,)))

WOLFE = {"line_search_fn": "strong_wolfe"}
CASES: list[tuple[Problem, dict[str, Any]]] = [
    (QUADRATIC, {}),
    (QUADRATIC, {"lr": 0.5, "max_iter": 7, "history_size": 3}),
    (QUADRATIC, {"lr": 0.3, "max_iter": 1, "history_size": 1}),
    (QUADRATIC, {**WOLFE, "history_size": 2}),
    (ROSENBROCK, {"lr": 0.3}),
    (ROSENBROCK, WOLFE),
    (ROSENBROCK, {**WOLFE, "lr": 20.0, "history_size": 3}),
    (ROSENBROCK, {**WOLFE, "lr": 0.01, "max_eval": 9}),
    (LOGISTIC, {"history_size": 5}),
    (LOGISTIC, {**WOLFE, "max_iter": 4}),
    (MLP, {"lr": 0.2, "history_size": 10}),
    (MLP, {**WOLFE, "history_size": 4, "max_iter": 12}),
    (RIPPLES, {**WOLFE, "lr": 5.0}),
]
STOPS: list[tuple[Problem, dict[str, Any]]] = [
    (QUADRATIC, {"max_iter": 0}),
    (QUADRATIC, {"tolerance_grad": 1e9}),
    (QUADRATIC, {"max_eval": 6}),
    (QUADRATIC, {"lr": 0.0}),
    (QUADRATIC, {"max_eval": 1}),
    (QUADRATIC, {**WOLFE, "max_eval": 1}),
    (RIPPLES, {**WOLFE, "max_eval": 3, "lr": 5.0}),
    (QUADRATIC, {"tolerance_grad": 1.0, "tolerance_change": 0.0}),
    (QUADRATIC, {**WOLFE, "tolerance_grad": 1.0, "tolerance_change": 0.0}),
    (LOGISTIC, {"tolerance_grad": 0.0, "tolerance_change": 1e-3}),
    (LOGISTIC, {**WOLFE, "tolerance_grad": 0.0, "tolerance_change": 1e-3}),
    (QUADRATIC, {"lr": 1e-3, "tolerance_grad": 0.0, "tolerance_change": 1e-2}),
    (LOGISTIC, {"lr": 0.5, "tolerance_grad": 0.0, "tolerance_change": 5e-2}),
]


def case_name(case: Any) -> str | None:
    if isinstance(case, Problem):
        return case.loss.__name__
    return (
        ", ".join(f"{name}={value}" for name, value in case.items()) or "defaults" if isinstance(case, dict) else None
    )


class TorchRun:
    """A torch optimizer on a problem; keeps the points at which its closure was called."""

    def __init__(self, make: Callable[..., torch.optim.Optimizer], problem: Problem) -> None:
        self.loss = problem.loss
        self.params = [torch.nn.Parameter(torch.tensor(p)) for p in problem.start]
        self.optimizer = make(self.params)
        self.points: list[list[np.ndarray]] = []

    def closure(self) -> torch.Tensor:
        self.points.append(self.values())
        self.optimizer.zero_grad()
        dtype = self.params[0].dtype.to_real()
        loss = self.loss(self.params, torch, lambda x: torch.tensor(x, dtype=dtype))
        loss.backward()
        return loss

    def step(self) -> Any:
        return self.optimizer.step(self.closure)  # pyright: ignore[reportArgumentType]

    @property
    def entry(self) -> dict[str, Any]:
        return self.optimizer.state[self.params[0]]

    def values(self) -> list[np.ndarray]:
        return [p.detach().numpy().copy() for p in self.params]


def pair(problem: Problem, options: dict[str, Any]) -> tuple[TorchRun, TorchRun]:
    """The bridge's optimizer and torch's."""
    classes: tuple[Any, Any] = (LBFGS, torch.optim.LBFGS)
    ours, theirs = (TorchRun(lambda params, cls=cls: cls(params, **options), problem) for cls in classes)
    return ours, theirs


def distance(actual: Sequence[np.ndarray], expected: Sequence[np.ndarray]) -> float:
    """Largest difference relative to the largest entry."""
    scale = max(float(np.abs(e).max()) for e in expected)
    return max(float(np.abs(a - e).max()) for a, e in zip(actual, expected, strict=True)) / scale


def assert_same_step(ours: TorchRun, theirs: TorchRun, tolerance: float = TOLERANCE) -> None:
    """One step of both: the same calls of the closure at the same points, and the same result."""
    for run in (ours, theirs):
        run.points.clear()
        run.step()
    assert len(ours.points) == len(theirs.points)
    for actual, expected in zip([*ours.points, ours.values()], [*theirs.points, theirs.values()], strict=True):
        assert distance(actual, expected) <= tolerance


def run_jax(problem: Problem, options: dict[str, Any]) -> list[tuple[list[np.ndarray], int, int, int]]:
    """Parameters, iterations, evaluations as the state counts them and as they happened, after each update."""
    calls = 0
    results = []

    def count() -> None:
        nonlocal calls
        calls += 1

    def loss(params: Any) -> Any:
        jax.debug.callback(count)
        return problem.loss(params, jnp, jnp.asarray)

    with jax.enable_x64(True):
        tx = lbfgs(**options)

        @jax.jit
        def step(params: Any, state: Any) -> tuple[Any, Any]:
            value, grads = jax.value_and_grad(loss)(params)
            updates, state = tx.update(jax.tree.map(jnp.conj, grads), state, params, value=value, value_fn=loss)
            return funcopt.apply_updates(params, updates), state

        params: Any = [jnp.asarray(p) for p in problem.start]
        state: Any = tx.init(params)
        for _ in range(STEPS):
            params, state = step(params, state)
            jax.effects_barrier()
            results.append(([np.asarray(p) for p in params], int(state.n_iter), int(state.func_evals), calls))
    return results


def assert_jax_is_torch(problem: Problem, options: dict[str, Any]) -> None:
    theirs = TorchRun(lambda params: torch.optim.LBFGS(params, **options), problem)
    for params, n_iter, func_evals, calls in run_jax(problem, options):
        theirs.step()
        assert n_iter == theirs.entry["n_iter"]
        assert func_evals == calls == theirs.entry["func_evals"] == len(theirs.points)
        assert distance(params, theirs.values()) <= TOLERANCE


# The stop rules are the machine's, and the bridge goes through them all.
@pytest.mark.parametrize(
    ("problem", "options"),
    [
        *CASES[::2],
        *STOPS[:3],
        *(pytest.param(*case, marks=pytest.mark.thorough) for case in CASES[1::2]),
    ],
    ids=case_name,
)
def test_jax(problem: Problem, options: dict[str, Any]) -> None:
    assert_jax_is_torch(problem, options)


@pytest.mark.parametrize(("problem", "options"), CASES + STOPS, ids=case_name)
def test_bridge(problem: Problem, options: dict[str, Any]) -> None:
    ours, theirs = pair(problem, options)
    for _ in range(STEPS):
        assert_same_step(ours, theirs)
    assert [ours.entry[key] for key in ("n_iter", "func_evals")] == [
        theirs.entry[key] for key in ("n_iter", "func_evals")
    ]


class Script:
    """Losses and gradients that follow no function of the parameters: a line search goes through all its branches."""

    def __init__(self, seed: int) -> None:
        self.rng = np.random.default_rng(seed)
        self.noise = 10.0 ** self.rng.uniform(-5, 1)
        self.level = self.loss = 0.0

    def __call__(self) -> tuple[float, np.ndarray]:
        self.level -= self.noise * abs(self.rng.normal()) * self.rng.integers(2)
        if self.rng.uniform() < 0.9:
            self.loss = self.level + self.noise * self.rng.normal()
        return self.loss, self.rng.normal(size=3) * self.rng.choice([0.1, 1.0])


@pytest.mark.parametrize("part", range(4))
def test_any_sequence_of_losses_gives_torchs_steps(part: int) -> None:
    for seed in range(60 * part, 60 * (part + 1)):
        rng = np.random.default_rng(seed)
        options = {
            **WOLFE,
            "lr": 10.0 ** rng.uniform(-2, 1),
            "max_iter": 5,
            "max_eval": int(rng.integers(3, 30)),
            "tolerance_change": rng.choice([1e-9, 1e-2]),
            "history_size": 3,
        }
        ours, theirs = pair(Problem(bowl, starts((3,))), options)
        for run in (ours, theirs):
            script = Script(seed)

            def closure(run: TorchRun = run, script: Script = script) -> float:
                run.points.append(run.values())
                loss, gradient = script()
                run.params[0].grad = torch.tensor(gradient)
                return loss

            for _ in range(2):
                run.optimizer.step(closure)
        assert len(ours.points) == len(theirs.points)
        for actual, expected in zip([*ours.points, ours.values()], [*theirs.points, theirs.values()], strict=True):
            assert distance(actual, expected) <= TOLERANCE


# Checkpoints and state of the bridge


@pytest.mark.parametrize("options", [{"lr": 0.5, "history_size": 3, "max_iter": 4}, {**WOLFE, "max_iter": 4}])
@pytest.mark.parametrize("classes", [(LBFGS, torch.optim.LBFGS), (torch.optim.LBFGS, LBFGS)], ids=["to", "from"])
@pytest.mark.parametrize("steps", [0, 1, 2])
def test_checkpoints_move_both_ways(classes: tuple[Any, Any], steps: int, options: dict[str, Any]) -> None:
    first, second = classes
    before = TorchRun(lambda params: first(params, **options), QUADRATIC)
    for _ in range(steps):
        before.step()
    after = TorchRun(lambda params: second(params, **options), Problem(quadratic, tuple(before.values())))
    file = io.BytesIO()
    torch.save(before.optimizer.state_dict(), file)
    file.seek(0)
    after.optimizer.load_state_dict(torch.load(file))
    for _ in range(2):
        assert_same_step(after, before)
    assert after.entry["n_iter"] == before.entry["n_iter"] > 4 * steps


@pytest.mark.parametrize("max_iter", [0, 1, 2, 6])
def test_state_is_kept_as_torch_keeps_it(max_iter: int) -> None:
    """Also when its keys appear: `d` with the first iteration, `al` with the second."""
    ours, theirs = pair(QUADRATIC, {"lr": 0.5, "history_size": 3, "max_iter": max_iter, "max_eval": 99})
    ours.step()
    theirs.step()
    expected = {key: value for key, value in theirs.entry.items() if value is not None}
    assert set(ours.optimizer.state) == {ours.params[0]}
    assert set(ours.entry) == set(expected)
    assert all(type(ours.entry[key]) is int for key in ("func_evals", "n_iter"))
    for key, value in expected.items():
        chex.assert_trees_all_close(as_numpy(ours.entry[key]), as_numpy(value), rtol=1e-9)


def as_numpy(value: Any) -> Any:
    """Lists of tensors as arrays; torch's `al` has a None for each pair that is not there yet."""
    if isinstance(value, list):
        return [np.zeros(()) if item is None else as_numpy(item) for item in value]
    return np.asarray(value)


@pytest.mark.parametrize("look", [True, False], ids=["state read", "state not read"])
@pytest.mark.parametrize("call", [1, 2, 5])
def test_a_closure_that_raises_changes_nothing(call: int, look: bool) -> None:
    ours, theirs = pair(QUADRATIC, {"lr": 0.5, "history_size": 2, "max_iter": 6})
    assert_same_step(ours, theirs)
    if look:
        assert ours.entry
    before, calls = ours.values(), 0

    def failing() -> torch.Tensor:
        nonlocal calls
        calls += 1
        if calls == call:
            raise ArithmeticError
        return ours.closure()

    with pytest.raises(ArithmeticError):
        ours.optimizer.step(failing)  # pyright: ignore[reportArgumentType]
    chex.assert_trees_all_equal(ours.values(), before)
    for _ in range(2):
        assert_same_step(ours, theirs)


def test_copies_go_on_alike_and_cleared_state_starts_anew() -> None:
    ours, theirs = pair(QUADRATIC, {"lr": 0.5, "max_iter": 4})
    assert_same_step(ours, theirs)
    ours.params, ours.optimizer = copy.deepcopy((ours.params, ours.optimizer))
    assert_same_step(ours, theirs)
    ours.params, ours.optimizer = pickle.loads(pickle.dumps((ours.params, ours.optimizer)))
    assert_same_step(ours, theirs)
    for run in (ours, theirs):
        run.optimizer.state.clear()
    assert_same_step(ours, theirs)


def test_the_closure_may_read_the_state_and_has_jax_as_it_was() -> None:
    ours, theirs = pair(QUADRATIC, {"lr": 0.5, "max_iter": 4, "history_size": 2})
    counts: list[int] = []

    def closure() -> torch.Tensor:
        counts.append(ours.entry.get("n_iter", 0))
        assert jnp.zeros(1, float).dtype == jnp.float32
        return ours.closure()

    for _ in range(2):
        ours.optimizer.step(closure)  # pyright: ignore[reportArgumentType]
        theirs.step()
    assert counts == [0, 1, 2, 3, 4, 5, 6, 7]
    assert distance(ours.values(), theirs.values()) <= TOLERANCE


def test_what_was_read_of_the_state_stays_as_it_was() -> None:
    run, _ = pair(QUADRATIC, {"lr": 0.5, "max_iter": 4, "history_size": 2})
    run.step()
    saved = run.optimizer.state_dict()
    kept = copy.deepcopy(saved)
    run.step()
    chex.assert_trees_all_equal(as_numpy(saved["state"][0]["old_dirs"]), as_numpy(kept["state"][0]["old_dirs"]))
    assert saved["state"][0]["n_iter"] == 4


def test_changed_numbers_do_not_recompile() -> None:
    runs = pair(QUADRATIC, {"lr": 0.5, "max_iter": 3, "history_size": 6})
    schedulers = [torch.optim.lr_scheduler.ExponentialLR(run.optimizer, 0.8) for run in runs]
    assert_same_step(*runs)
    compiled = _transition._cache_size()  # pyright: ignore[reportFunctionMemberAccess]
    for _ in range(2):
        for scheduler in schedulers:
            scheduler.step()
        assert_same_step(*runs)
    for run in runs:
        run.optimizer.param_groups[0].update(lr=torch.tensor(0.1), max_iter=5, tolerance_grad=1e-3)
    assert_same_step(*runs)
    assert _transition._cache_size() == compiled  # pyright: ignore[reportFunctionMemberAccess]


def test_a_changed_history_size_keeps_the_newest_pairs() -> None:
    run, _ = pair(QUADRATIC, {"lr": 0.5, "max_iter": 5, "history_size": 4})
    run.step()
    newest = run.entry["old_stps"][-2:]
    run.optimizer.param_groups[0].update(history_size=2, max_iter=1)
    run.optimizer.param_groups[0]["tolerance_grad"] = 1e9
    run.step()
    chex.assert_trees_all_equal(as_numpy(run.entry["old_stps"]), as_numpy(newest))


def test_the_first_loss_is_returned() -> None:
    ours, theirs = pair(QUADRATIC, {})
    loss = ours.step()
    assert loss.item() == theirs.step().item()
    assert loss.requires_grad


# Kinds of parameters


def bowl(params: Sequence[Any], xp: Any, a: Callable[[np.ndarray], Any]) -> Any:
    return sum(a(SCALES)[i] * (xp.abs(p * (1.0 + 0.5 * i) - 0.7) ** 2).sum() for i, p in enumerate(params))


COMPLEX = Problem(bowl, (starts((3,))[0] + 1j * starts((3,), seed=2)[0], starts((2, 2), seed=3)[0], np.array(0.3)))


@pytest.mark.parametrize("options", [{"lr": 0.5, "max_iter": 5}, WOLFE], ids=case_name)
def test_complex_parameters_count_as_two_real_ones(options: dict[str, Any]) -> None:
    ours, theirs = pair(COMPLEX, options)
    for _ in range(2):
        assert_same_step(ours, theirs)
    assert_jax_is_torch(COMPLEX, options)


def test_mixed_dtypes_and_transposed_parameters() -> None:
    ours, theirs = pair(Problem(bowl, tuple(starts((3, 2), (4,)))), {"lr": 0.5, "max_iter": 1})
    for run in (ours, theirs):
        run.params[1].data = run.params[1].data.float()
    # torch's own fails on this layout.
    ours.params[0].data = ours.params[0].data.T.contiguous().T
    assert not ours.params[0].is_contiguous()
    for _ in range(4):
        # Within a step the bridge does not round the float32 parameters, as torch does after each iteration.
        assert_same_step(ours, theirs, 1e-6)
    assert ours.params[1].dtype == torch.float32


def test_float32() -> None:
    """Sums in another order are seen after a few iterations, and then decide when to stop: these are the first."""
    problem = Problem(quadratic, tuple(p.astype(np.float32) for p in QUADRATIC.start))
    ours, theirs = pair(problem, {**WOLFE, "max_iter": 5})
    assert_same_step(ours, theirs, 1e-5)  # measured: 1e-6
    assert ours.entry["d"].dtype == torch.float32


def test_half_precision_is_computed_in_float32_and_rounded_once() -> None:
    half, single = (torch.tensor([-1.2, 1.0, 0.5], dtype=dtype) for dtype in (torch.bfloat16, torch.float32))
    for p, slope in ((half, torch.tensor([0.3, -0.7, 0.1])), (single, torch.tensor([0.3, -0.7, 0.1]))):
        p.requires_grad_()
        slope = slope.to(torch.bfloat16).to(p.dtype)  # a gradient that both dtypes hold
        LBFGS([p], max_iter=1).step(lambda p=p, slope=slope: (p * slope).sum().backward() or 0.0)
    assert half.dtype == torch.bfloat16
    chex.assert_trees_all_equal(half.tolist(), single.to(torch.bfloat16).tolist())


def test_missing_gradients_are_zeros_in_the_bridge_as_in_torch() -> None:
    ours, theirs = pair(Problem(lambda params, xp, a: quadratic(params[1:], xp, a), starts((3,), (8,))), {"lr": 0.5})
    for _ in range(2):
        assert_same_step(ours, theirs)
    chex.assert_trees_all_equal(ours.values()[0], starts((3,))[0])


def test_sparse_gradients_are_made_dense() -> None:
    def loss(params: Sequence[Any], xp: Any, a: Callable[[np.ndarray], Any]) -> Any:
        rows = torch.nn.functional.embedding(torch.tensor([0, 2, 2]), params[0], sparse=True)
        return ((rows - 1.0) ** 2 * a(SCALES[:3])).sum()

    ours, theirs = pair(Problem(loss, starts((4, 3))), {"lr": 0.5, "max_iter": 5})
    for _ in range(2):
        assert_same_step(ours, theirs)
    assert ours.params[0].grad is not None
    assert ours.params[0].grad.is_sparse


# In JAX


def tree_loss(params: Any) -> Any:
    return sum(((i + 1.0) * jnp.abs(p - 0.5) ** 2).sum() for i, p in enumerate(jax.tree.leaves(params)))


def tree_params(dtype: Any = jnp.float32) -> dict[str, Any]:
    rng = np.random.default_rng(0)
    return {"a": jnp.asarray(rng.normal(size=(3, 2)), dtype), "b": [jnp.asarray(rng.normal(), dtype)]}


def update(tx: Any, params: Any, state: Any, **extra: Any) -> tuple[Any, Any]:
    grads = jax.tree.map(jnp.conj, jax.grad(tree_loss)(params))
    return tx.update(grads, state, params, value_fn=tree_loss, **extra)


@pytest.mark.parametrize(
    ("dtype", "options"), [(jnp.float32, WOLFE), (jnp.bfloat16, {"lr": 0.3}), (jnp.complex64, WOLFE)], ids=case_name
)
def test_state_is_a_fixed_point_of_scan(dtype: Any, options: dict[str, Any]) -> None:
    tx, params = lbfgs(**options, max_iter=3, history_size=2), tree_params(dtype)

    def step(carry: Any, _: None) -> tuple[Any, Any]:
        params, state = carry
        updates, state = update(tx, params, state)
        return (funcopt.apply_updates(params, updates), state), updates

    start = (params, tx.init(params))
    scan = jax.jit(lambda carry: lax.scan(step, carry, length=3), donate_argnums=0)
    end, updates = scan(jax.tree.map(jnp.array, start))
    chex.assert_trees_all_equal_shapes_and_dtypes(end, start)
    chex.assert_trees_all_equal_dtypes(updates, params)
    carry, jitted = start, jax.jit(step)
    for _ in range(3):
        carry, _ = jitted(carry, None)
    # Programs differ in what they contract, and iterations amplify it.
    chex.assert_trees_all_close(end[0], carry[0], atol=30 * float(jnp.finfo(dtype).eps))


def test_value_is_evaluated_where_it_is_not_given() -> None:
    tx, params = lbfgs(max_iter=3), tree_params()
    with_value = update(tx, params, tx.init(params), value=tree_loss(params))
    chex.assert_trees_all_equal(update(tx, params, tx.init(params)), with_value)


def test_lr_may_be_a_schedule() -> None:
    rates = (0.3, 0.05)
    scheduled, params = lbfgs(lambda step: jnp.asarray(rates)[step], max_iter=3), tree_params()
    state, expected, expected_state = scheduled.init(params), params, lbfgs().init(params)
    for lr in rates:
        updates, state = update(scheduled, params, state)
        params = funcopt.apply_updates(params, updates)
        updates, expected_state = update(lbfgs(lr, max_iter=3), expected, expected_state)
        expected = funcopt.apply_updates(expected, updates)
        chex.assert_trees_all_close(params, expected, rtol=1e-6)


def test_missing_gradients_leave_their_parameters_in_jax() -> None:
    tx, params = lbfgs(max_iter=3), tree_params()
    state = tx.init(params)
    _, state = update(tx, params, state)  # what the history knows of all parameters does not move those without
    updates, _ = tx.update({"a": None, "b": [jnp.ones(())]}, state, params, value_fn=tree_loss)
    assert updates["a"] is None
    assert float(updates["b"][0]) != 0.0

    nothing = {"a": None, "b": [None]}
    assert tx.update(nothing, state, params, value_fn=tree_loss) == (nothing, state)


def test_a_parameter_without_gradient_is_a_constant() -> None:
    tx, params = lbfgs(max_iter=6), tree_params()
    grads = {"a": None, "b": jax.grad(tree_loss)(params)["b"]}
    updates, _ = tx.update(grads, tx.init(params), params, value_fn=tree_loss)
    alone = lbfgs(max_iter=6)
    loss = lambda b: tree_loss({"a": params["a"], "b": b})  # noqa: E731
    expected, _ = alone.update(grads["b"], alone.init(params["b"]), params["b"], value_fn=loss)
    chex.assert_trees_all_close(updates["b"], expected, rtol=1e-5)


def test_forward_mode_differentiation_through_an_update() -> None:
    with jax.enable_x64(True):
        tx, x = lbfgs(max_iter=3), jnp.asarray(LOGISTIC.start[0])

        def loss(x: jax.Array) -> jax.Array:
            return logistic((x, 0.0), jnp, jnp.asarray)

        @jax.jit
        def after(x: jax.Array) -> jax.Array:
            return loss(x + tx.update(jax.grad(loss)(x), tx.init(x), x, value_fn=loss)[0])

        tangent = jnp.ones_like(x)
        _, slope = jax.jvp(after, (x,), (tangent,))
        step = 1e-6
        difference = (after(x + step * tangent) - after(x - step * tangent)) / (2 * step)
    np.testing.assert_allclose(slope, difference, rtol=1e-5)


def test_two_updates_trace_once() -> None:
    traces = 0
    tx, params = lbfgs(max_iter=2), tree_params()

    @jax.jit
    def step(params: Any, state: Any) -> tuple[Any, Any]:
        nonlocal traces
        traces += 1
        return update(tx, params, state)

    _, state = step(params, tx.init(params))
    step(params, state)
    assert traces == 1


# Errors


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"lr": -1.0}, ValueError),
        ({"lr": float("nan")}, ValueError),
        ({"lr": torch.tensor([0.1, 0.2])}, ValueError),
        ({"lr": torch.tensor(-0.1)}, ValueError),
        ({"lr": "x"}, TypeError),
    ],
)
def test_the_constructor_refuses_what_torch_refuses(options: dict[str, Any], error: type[Exception]) -> None:
    for cls in (LBFGS, torch.optim.LBFGS):
        with pytest.raises(error):
            cls([torch.zeros(2, requires_grad=True)], **options)


@pytest.mark.parametrize(
    ("options", "error"),
    [({"line_search_fn": "armijo"}, RuntimeError), ({"history_size": 0}, IndexError)],
)
def test_step_refuses_what_torch_refuses(options: dict[str, Any], error: type[Exception]) -> None:
    for run in pair(QUADRATIC, options):
        with pytest.raises(error):
            run.step()
        with pytest.raises(TypeError):
            run.optimizer.step()
        run.optimizer.add_param_group({"params": [torch.zeros(2)]})
        with pytest.raises(AssertionError):
            run.step()


def test_several_groups_are_refused() -> None:
    groups = [{"params": [torch.zeros(2, requires_grad=True)]} for _ in range(2)]
    for cls in (LBFGS, torch.optim.LBFGS):
        with pytest.raises(ValueError, match="LBFGS doesn't support per-parameter options"):
            cls(groups)


def test_a_state_of_another_model_is_refused() -> None:
    run, _ = pair(QUADRATIC, {})
    other = TorchRun(lambda params: torch.optim.LBFGS(params), RIPPLES)
    other.step()
    run.optimizer.load_state_dict(other.optimizer.state_dict())
    with pytest.raises(ValueError, match="LBFGS: d in the state must have 8 elements, got 6"):
        run.step()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"lr": -1.0}, "lbfgs: lr must be >= 0, got -1.0"),
        ({"lr": {"a": 1.0}}, "lbfgs: lr must be one number or schedule for all parameters, got"),
        ({"max_iter": -1}, "lbfgs: max_iter must be >= 0, got -1"),
        ({"max_eval": -1}, "lbfgs: max_eval must be >= 0, got -1"),
        ({"history_size": 0}, "lbfgs: history_size must be >= 1, got 0"),
        ({"line_search_fn": "armijo"}, "lbfgs: line_search_fn must be None or one of 'strong_wolfe', got 'armijo'"),
    ],
)
def test_lbfgs_refuses(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        lbfgs(**options)


def test_update_says_what_it_needs() -> None:
    tx, x = lbfgs(), jnp.zeros(2)
    for arguments in ({"params": x}, {"value_fn": jnp.sum}):
        with pytest.raises(ValueError, match="lbfgs: update needs the parameters and the loss as a function of them"):
            tx.update(x, tx.init(x), **arguments)
    with pytest.raises(ValueError, match=r"lbfgs: parameter .* must be floating or complex, got int32"):
        tx.init(jnp.arange(3))
