"""The laws that every transformation obeys: one table of cases crossed with one test per law."""

import functools
import inspect
from collections.abc import Callable
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import funcopt
from funcopt import ElementwiseTransformation


class Case(NamedTuple):
    """A factory with hyperparameters that differ from its defaults."""

    name: str
    make: Callable[..., funcopt.GradientTransformationExtraArgs]
    hyperparams: dict[str, Any]  # each may be given as a prefix
    scheduled: tuple[str, ...] = ()  # arguments that may be a schedule; flags may not
    elementwise: bool = True
    complex_numbers: bool = True  # whether it takes complex parameters, as torch's algorithm does
    matrices_only: bool = False
    prefixes: bool = True  # whether hyperparameters may be trees
    by_leaf: bool = True  # whether a leaf's update depends on its own history alone

    def __call__(self, **changes: Any) -> funcopt.GradientTransformationExtraArgs:
        return self.make(**{**self.hyperparams, **changes})


def card(weight_decay: Any, lr: Any) -> funcopt.GradientTransformationExtraArgs:
    """The line on the design card."""
    return funcopt.chain(funcopt.add_decayed_weights(weight_decay), funcopt.adam(lr))


def lbfgs(lr: Any) -> funcopt.GradientTransformationExtraArgs:
    """LBFGS evaluates the loss itself: here a quadratic one whose gradient at the parameters is the one given."""
    inner = funcopt.lbfgs(lr, max_iter=2, history_size=2)

    def update(updates: Any, state: Any, params: Any = None, **extra: Any) -> Any:
        del extra

        def value_fn(new: Any) -> jax.Array:
            pairs = zip(
                jax.tree.leaves(present), jax.tree.leaves(keep(new)), jax.tree.leaves(keep(params)), strict=True
            )
            terms = [jnp.real(jnp.vdot(g, p)) + jnp.real(jnp.vdot(p - q, p - q)) / 2 for g, p, q in pairs]
            return jnp.sum(jnp.stack(terms))

        def keep(tree: Any) -> Any:
            return jax.tree.map(lambda g, x: None if g is None else x, updates, tree, is_leaf=lambda x: x is None)

        present = keep(updates)
        if not jax.tree.leaves(present):
            return updates, state
        return inner.update(updates, state, params, value_fn=value_fn)

    return funcopt.GradientTransformationExtraArgs(inner.init, update)


# Options that differ from the defaults, by definition; an optimizer without a row here is tried with its defaults.
OPTIONS: dict[str, list[dict[str, Any]]] = {
    "scale": [{"factor": -0.5}],
    "scale_by_multipliers": [{"multipliers": 0.5}],
    "scale_by_learning_rate": [{"lr": 0.1}],
    "add_decayed_weights": [{"weight_decay": 0.1, "mask": True}],
    "clip_by_global_norm": [{"max_norm": 0.5}],
    "clip_by_value": [{"clip_value": 0.5}],
    "kahan_sum": [{}],
    "stochastic_rounding": [{"seed": 1}],
    "params_ema": [{"decay": 0.7}],
    "params_swa": [{"start_step": 1, "every": 1}],
    "lookahead_sync": [{"sync_period": 2}],
    "prodigy": [{"lr": 1.0, "weight_decay": 0.1, "d0": 0.01, "use_bias_correction": True}],
    "dadapt_adam": [{"lr": 1.0, "weight_decay": 0.1, "d0": 0.01}],
    "schedule_free_sgd": [{"lr": 0.1, "weight_decay": 0.1, "warmup_steps": 2, "r": 0.5}],
    "schedule_free_adamw": [{"lr": 0.1, "betas": (0.8, 0.9), "weight_decay": 0.1}],
    "schedule_free_radam": [{"lr": 0.1, "weight_decay": 0.1, "silent_sgd_phase": False}],
    "trace": [{"momentum": 0.9, "dampening": 0.3}, {"momentum": 0.9, "nesterov": True}],
    "scale_by_adam": [{"betas": (0.8, 0.9), "eps": 0.1, "amsgrad": True}],
    "sgd": [{"lr": 0.1, "momentum": 0.9, "weight_decay": 0.1, "maximize": True}, {"lr": 0.1}],
    "adam": [{"lr": 0.1, "weight_decay": 0.1, "decoupled_weight_decay": False}],
    "adamw": [{"lr": 0.1, "weight_decay": 0.1, "amsgrad": True}],
    "adadelta": [{"lr": 0.5, "rho": 0.8, "eps": 0.1, "weight_decay": 0.1}],
    "adagrad": [{"lr": 0.1, "lr_decay": 0.1, "eps": 0.1}],
    "adamax": [{"lr": 0.1, "betas": (0.8, 0.9), "weight_decay": 0.1}],
    "asgd": [{"lr": 0.1, "lambd": 0.1, "alpha": 0.5, "t0": 1.0}],
    "nadam": [{"lr": 0.1, "momentum_decay": 0.1, "decoupled_weight_decay": True}],
    "radam": [{"lr": 0.1, "betas": (0.8, 0.5), "weight_decay": 0.1}],
    "rmsprop": [{"lr": 0.1, "momentum": 0.9, "centered": True}, {"lr": 0.1, "alpha": 0.8, "eps": 0.1}],
    "rprop": [{"lr": 0.1, "etas": (0.4, 1.3), "step_sizes": (0.01, 1.0)}],
    "sparse_adam": [{"lr": 0.1, "betas": (0.8, 0.9), "eps": 0.1}],
    "adafactor": [{"lr": 0.1, "beta2_decay": -0.5, "d": 1.5, "weight_decay": 0.1}],
    "galore": [{"lr": 0.1, "rank": 1, "update_proj_gap": 2, "weight_decay": 0.1, "proj_type": "full"}],
    "apollo": [
        {"lr": 0.1, "rank": 2, "update_proj_gap": 2, "weight_decay": 0.1},
        {"lr": 0.1, "rank": 1, "scale": 4.0, "proj": "svd", "scale_type": "tensor", "scale_front": True},
    ],
    "soap": [
        {"lr": 0.1, "precondition_frequency": 2, "weight_decay": 0.1, "precondition_1d": True, "max_precond_dim": 3}
    ],
    "shampoo": [
        {"lr": 0.1, "betas": (0.8, 0.9), "epsilon": 1e-3, "max_preconditioner_dim": 2, "precondition_frequency": 2},
        {"lr": 0.1, "grafting": False, "epsilon": 0.5, "weight_decay": 0.1},
    ],
    "kron": [{"lr": 0.1, "preconditioner_update_probability": 0.5, "weight_decay": 0.1, "max_size_triangular": 2}],
    "muon": [
        {"lr": 0.1, "momentum": 0.8, "nesterov": False, "weight_decay": 0.2},
        {"lr": 0.1, "ns_coefficients": (3.0, -3.2, 1.2, 1.5, -0.5, 0.0), "ns_precision": "full", "outputs_last": True},
    ],
    "muon_with_adamw": [
        {"lr": 0.1, "weight_decay": 0.1, "use_muon": True, "adjust_lr_fn": "match_rms_adamw"},
        {"lr": 0.1, "betas": (0.8, 0.9), "eps": 0.1, "use_muon": False},
    ],
    "normuon": [{"lr": 0.1, "weight_decay": 0.1, "momentum": 0.8, "beta2": 0.7, "outputs_last": True}],
    "scion": [{"lr": 0.1, "momentum": 0.3, "scale": 2.0}, {"lr": 0.1, "norm": "Sign", "unconstrained": True}],
    "dion": [{"lr": 0.1, "mu": 0.8, "weight_decay": 0.1, "rank": 2, "epsilon": 0.1, "seed": 3}],
    "lion": [{"lr": 0.1, "betas": (0.8, 0.9), "weight_decay": 0.1, "maximize": True}],
    "adan": [
        {"lr": 0.1, "betas": (0.8, 0.7, 0.9), "eps": 0.1, "weight_decay": 0.1},
        {"lr": 0.1, "no_prox": True, "weight_decay": 0.1},
    ],
    "ademamix": [{"lr": 0.1, "betas": (0.8, 0.9, 0.99), "t_alpha": 3.0, "t_beta3": 3.0, "weight_decay": 0.1}],
    "adopt": [
        {"lr": 0.1, "betas": (0.8, 0.9), "eps": 0.1, "weight_decay": 0.1, "decouple": True},
        {"lr": 0.1, "clip_exp": None},
    ],
    "adabelief": [
        {"lr": 0.1, "betas": (0.8, 0.9), "eps": 0.1, "weight_decay": 0.1, "amsgrad": True, "rectify": False},
        {"lr": 0.1, "betas": (0.8, 0.9), "degenerated_to_sgd": False, "weight_decouple": False, "weight_decay": 0.1},
    ],
    "yogi": [{"lr": 0.1, "betas": (0.8, 0.9), "eps": 0.1, "weight_decay": 0.1, "initial_accumulator": 0.1}],
    "laprop": [
        {"lr": 0.1, "betas": (0.8, 0.9), "eps": 0.1, "weight_decay": 0.1},
        {"lr": 0.1, "weight_decay": 0.1, "fixed_decay": True},
    ],
    "signum": [{"lr": 0.1, "momentum": 0.8, "weight_decay": 0.1}, {"lr": 0.1, "momentum": 0.0}],
    "tiger": [{"lr": 0.1, "beta": 0.8, "weight_decay": 0.1}],
    "ftrl": [{"lr": 0.1, "lr_power": -0.4, "beta": 0.5, "lambda_1": 0.1, "lambda_2": 0.1}, {"lr": 0.1}],
    "sophia_g": [{"lr": 0.1, "betas": (0.8, 0.9), "rho": 0.1, "bs": 2.0}],
    "grams": [{"lr": 0.1, "betas": (0.8, 0.9), "eps": 0.1, "weight_decay": 0.1}],
    "adafactor_bv": [{"lr": 0.1, "min_dim_size_to_factor": 2, "clipping_threshold": 0.5, "weight_decay": 0.1}],
    "adafactor_hf": [{"lr": 0.1, "beta1": 0.8, "clip_threshold": 0.5, "weight_decay": 0.1}, {"warmup_init": True}],
    "adam_mini": [{"lr": 0.1, "betas": (0.8, 0.9), "block_rows": 0, "weight_decay": 0.1}, {"lr": 0.1}],
    "adamp": [{"lr": 0.1, "delta": 1.0, "wd_ratio": 0.5, "nesterov": True, "weight_decay": 0.1}],
    "came": [{"lr": 0.1, "betas": (0.8, 0.9, 0.7), "clip_threshold": 0.5, "weight_decay": 0.1}],
    "lamb": [{"lr": 0.1, "max_grad_norm": 0.5, "decoupled_decay": True}, {"lr": 0.1, "trust_clip": True}],
    "lars": [{"lr": 0.1, "momentum": 0.9, "trust_clip": True, "always_adapt": True}, {"lr": 0.1}],
    "mars_adamw": [{"lr": 0.1, "gamma": 0.1, "lr_1d_factor": 0.5, "weight_decay": 0.1}],
    "novograd": [{"lr": 0.1, "grad_averaging": True, "amsgrad": True, "weight_decay": 0.1}],
    "sgdp": [{"lr": 0.1, "momentum": 0.9, "delta": 1.0, "nesterov": True, "weight_decay": 0.1}],
    "stable_adamw": [{"lr": 0.1, "betas": (0.8, 0.9), "eps": 0.1, "decouple_lr": True, "max_lr": 0.2}],
}


def accepts(factory: Any, shape: tuple[int, ...], dtype: Any) -> bool:
    return not factory.refuse_param(jax.ShapeDtypeStruct(shape, dtype))


def rows_of(factory: Any) -> list[Case]:
    """The rows of a definition: all that the laws ask of it is what it says itself."""
    name = factory.__name__
    return [
        Case(
            f"{name}, {i}" if i else name,
            factory,
            options,
            scheduled=tuple(argument for argument, kind in factory.kinds.items() if kind.scheduled),
            elementwise=factory.elementwise,
            complex_numbers=accepts(factory, (2, 2), jnp.complex64),
            matrices_only=not accepts(factory, (2,), jnp.float32),
        )
        for i, options in enumerate(OPTIONS.get(name, [{"lr": 0.1}]))
    ]


DEFINED = [*(name for name in funcopt.algorithms() if name != "lbfgs"), *(OPTIONS.keys() - funcopt.algorithms().keys())]
WRAPPED = [
    funcopt.cautious(funcopt.adamw),
    funcopt.cautious(funcopt.lion),
    funcopt.cautious(funcopt.sgd),
    funcopt.mars(funcopt.adamw),
    funcopt.schedule_free(funcopt.sgd),
    funcopt.schedule_free(funcopt.lion),
    funcopt.lookahead(funcopt.radam, sync_period=2),
]
CASES = [
    *(row for name in sorted(DEFINED) for row in rows_of(getattr(funcopt, name))),
    *(row for factory in WRAPPED for row in rows_of(factory)),
    Case("card", card, {"weight_decay": 1e-4, "lr": 1e-3}, ("lr",)),
    Case("lbfgs", lbfgs, {"lr": 0.5}, ("lr",), elementwise=False, prefixes=False, by_leaf=False),
    Case(
        "masked",
        lambda lr: funcopt.masked(funcopt.adam(lr), {"body": True, "head": {"w": True, "b": False}}),
        {"lr": 0.1},
        ("lr",),
        elementwise=False,
    ),
    Case(
        "partition",
        lambda lr: funcopt.partition({"a": funcopt.sgd(lr), "b": funcopt.adam(lr)}, {"body": "a", "head": "b"}),
        {"lr": 0.1},
        ("lr",),
        elementwise=False,
    ),
]
LAWS = pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)


def make_tree(case: Case, seed: int, dtype: Any = jnp.float32) -> dict[str, Any]:
    rng = np.random.default_rng(seed)
    vector, scalar = ((4, 4), (1, 2)) if case.matrices_only else ((4,), ())
    return {
        "body": jnp.asarray(rng.normal(size=(3, 2)), dtype),
        "head": {"w": jnp.asarray(rng.normal(size=vector), dtype), "b": jnp.asarray(rng.normal(size=scalar), dtype)},
    }


def constant(value: Any) -> Callable[[Any], Any]:
    return lambda step: value


@functools.cache
def run(case: Case, steps: int = 3) -> tuple[Any, Any]:
    """Parameters and state after a few updates: what several laws compare with."""
    return apply(case(), make_tree(case, 0), [make_tree(case, i + 1) for i in range(steps)])


def apply(tx: funcopt.GradientTransformationExtraArgs, params: Any, gradients: list[Any]) -> tuple[Any, Any]:
    state = tx.init(params)
    for grads in gradients:
        updates, state = tx.update(grads, state, params)
        params = funcopt.apply_updates(params, updates)
    return params, state


Case.__hash__ = lambda self: hash(self.name)  # pyright: ignore[reportAttributeAccessIssue]  # for the cache above


@LAWS
def test_state_is_a_fixed_point_of_scan_and_donation(case: Case) -> None:
    tx = case()

    def step(carry: Any, grads: Any) -> tuple[Any, None]:
        params, state = carry
        updates, state = tx.update(grads, state, params)
        return (funcopt.apply_updates(params, updates), state), None

    gradients = jax.tree.map(lambda *leaves: jnp.stack(leaves), *[make_tree(case, i + 1) for i in range(3)])
    params = make_tree(case, 0)
    scan = jax.jit(lambda carry, xs: lax.scan(step, carry, xs), donate_argnums=0)
    result, _ = scan((params, tx.init(params)), gradients)
    # XLA contracts products into FMAs where single operations do not: a few ulp per step.
    chex.assert_trees_all_close(result, run(case), rtol=3e-6, atol=3e-6)


@LAWS
def test_updates_keep_structure_shape_and_dtype(case: Case) -> None:
    for dtype in (jnp.float32, jnp.bfloat16, jnp.float16, *([jnp.complex64] if case.complex_numbers else [])):
        params, grads = make_tree(case, 0, dtype), make_tree(case, 1, dtype)
        tx = case()
        state = tx.init(params)
        updates, new_state = tx.update(grads, state, params)
        chex.assert_trees_all_equal_shapes_and_dtypes(updates, grads)
        chex.assert_trees_all_equal_shapes_and_dtypes(new_state, state)
        assert all(bool(jnp.isfinite(leaf).all()) for leaf in jax.tree.leaves(updates))


@LAWS
def test_gradients_of_another_dtype_leave_the_state_as_it_was_made(case: Case) -> None:
    params, grads = make_tree(case, 0, jnp.bfloat16), make_tree(case, 1, jnp.float32)
    tx = case()
    state = tx.init(params)
    updates, new_state = tx.update(grads, state, params)
    chex.assert_trees_all_equal_shapes_and_dtypes(new_state, state)
    chex.assert_trees_all_equal_shapes_and_dtypes(funcopt.apply_updates(params, updates), params)


@LAWS
def test_inputs_are_not_changed(case: Case) -> None:
    tx = case()
    inputs = (make_tree(case, 1), tx.init(make_tree(case, 0)), make_tree(case, 0))
    before = jax.tree.map(np.array, inputs)
    tx.update(*inputs)
    chex.assert_trees_all_equal(inputs, before)


@LAWS
def test_two_calls_trace_once(case: Case) -> None:
    tx = case()
    traces = 0

    @jax.jit
    def update(grads: Any, state: Any, params: Any) -> Any:
        nonlocal traces
        traces += 1
        return tx.update(grads, state, params)

    params = make_tree(case, 0)
    _, state = jax.eval_shape(update, make_tree(case, 1), tx.init(params), params)
    jax.eval_shape(update, make_tree(case, 2), state, params)
    assert traces == 1


@LAWS
def test_missing_gradients_leave_their_leaves_untouched(case: Case) -> None:
    """Twice the same update of `head`, once without and once with a gap in which only `body` has a gradient."""
    tx, params, zeros = case(), make_tree(case, 0), jax.tree.map(jnp.zeros_like, make_tree(case, 0))
    state = tx.init(params)
    gap = {"body": make_tree(case, 1)["body"], "head": {"w": None, "b": None}}
    updates, after_gap = tx.update(gap, state, params)
    assert updates["head"] == {"w": None, "b": None}
    chex.assert_trees_all_equal(funcopt.apply_updates(params, updates)["head"], params["head"])

    if not case.by_leaf:
        return
    # Only `head` moves: a global norm sees the same gradients, whatever `body` did before.
    head_only = {**zeros, "head": make_tree(case, 2)["head"]}
    scheduled_alike, _ = tx.update(head_only, state, params)
    after, _ = tx.update(head_only, after_gap, params)
    chex.assert_trees_all_equal(after["head"], scheduled_alike["head"])


@LAWS
def test_all_gradients_missing_change_nothing(case: Case) -> None:
    tx, params = case(), make_tree(case, 0)
    state = tx.init(params)
    updates, new_state = tx.update(jax.tree.map(lambda _: None, params), state, params)
    assert jax.tree.leaves(updates) == []
    chex.assert_trees_all_equal(new_state, state)
    chex.assert_trees_all_equal(funcopt.apply_updates(params, updates), params)


@LAWS
def test_prefix_equals_full_tree(case: Case) -> None:
    if not case.prefixes:
        return
    assert_same(case, case(**{name: {"body": v, "head": v} for name, v in case.hyperparams.items()}))
    assert_same(case, case(**{name: {"body": v, "head": {"w": v, "b": v}} for name, v in case.hyperparams.items()}))


@LAWS
def test_constant_schedules_equal_numbers(case: Case) -> None:
    defaults = {name: p.default for name, p in inspect.signature(case.make).parameters.items()}
    values = {name: case.hyperparams.get(name, defaults[name]) for name in case.scheduled}
    assert_same(case, case(**{name: constant(value) for name, value in values.items()}))
    if case.prefixes:
        assert_same(case, case(**{name: {"body": v, "head": constant(v)} for name, v in values.items()}))


def assert_same(case: Case, tx: funcopt.GradientTransformationExtraArgs) -> None:
    params, _ = apply(tx, make_tree(case, 0), [make_tree(case, i + 1) for i in range(3)])
    # A schedule's value is a float32 scalar where a number is a double until it meets the array: two roundings.
    chex.assert_trees_all_close(params, run(case)[0], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("case", [case for case in CASES if case.elementwise], ids=lambda case: case.name)
def test_empty_tree_and_scalar_leaf(case: Case) -> None:
    tx = case()
    updates, _ = tx.update({}, tx.init({}), {})
    assert updates == {}
    updates, state = tx.update(jnp.asarray(0.3), tx.init(2.0), 2.0)
    chex.assert_shape(updates, ())
    chex.assert_trees_all_equal_shapes_and_dtypes(state, tx.init(2.0))


@LAWS
def test_elementwise_mark_means_that_leaves_may_be_joined(case: Case) -> None:
    assert isinstance(case(), ElementwiseTransformation) == case.elementwise
    if not case.elementwise:
        return

    def join(tree: Any) -> jax.Array:
        return jnp.concatenate([jnp.ravel(leaf) for leaf in jax.tree.leaves(tree)])

    joined, _ = apply(case(), join(make_tree(case, 0)), [join(make_tree(case, i + 1)) for i in range(3)])
    # A norm adds up in another order: one ulp of it.
    chex.assert_trees_all_close(joined, join(run(case)[0]), rtol=1e-6, atol=1e-6)


@LAWS
def test_integer_parameters_are_refused(case: Case) -> None:
    tree = {**make_tree(case, 0), "body": jnp.arange(6).reshape(3, 2)}
    with pytest.raises(ValueError, match=r"parameter \['body'\] must be floating or complex, got int32"):
        case().init(tree)
