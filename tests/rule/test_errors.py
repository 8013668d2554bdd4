"""Mistakes are errors that say who refuses what, where it stands, and what to do."""

import inspect
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import funcopt

PARAMS = {"a": jnp.ones((2, 3)), "b": {"c": jnp.ones(4)}}
ADAM = funcopt.adam(0.1)
STATE = ADAM.init(PARAMS)
SCHEDULED = funcopt.adam(lambda step: 0.1)
CHAIN = funcopt.chain(funcopt.clip_by_global_norm(1.0), ADAM)
CLIP = funcopt.clip_by_global_norm(1.0)


class Mistake(NamedTuple):
    name: str
    call: Callable[[], Any]
    error: type[Exception]
    message: str  # a regular expression


def schedule(step: Any) -> Any:
    return 0.1 / (step + 1.0)


ORDER = r"update\(updates, state, params\)"
MISTAKES = [
    # Trees
    Mistake(
        "a gradient lacks",
        lambda: ADAM.update({"a": PARAMS["a"]}, STATE, PARAMS),
        ValueError,
        rf"updates must have the structure of the parameters, a dict with 'a', 'b', got a dict with 'a'; .*{ORDER}",
    ),
    Mistake(
        "a gradient lacks below",
        lambda: ADAM.update({"a": PARAMS["a"], "b": {}}, STATE, PARAMS),
        ValueError,
        r"update: updates\['b'\] must have the structure of the parameters, a dict with 'c', got an empty dict",
    ),
    Mistake(
        "a gradient more",
        lambda: ADAM.update({**PARAMS, "d": jnp.ones(1)}, STATE, PARAMS),
        ValueError,
        r"structure of the parameters, a dict with 'a', 'b', got a dict with 'a', 'b', 'd'",
    ),
    Mistake(
        "a gradient of another shape",
        lambda: ADAM.update({"a": jnp.ones(3), "b": PARAMS["b"]}, STATE, PARAMS),
        ValueError,
        r"update: updates\['a'\] must have the parameter's shape \(2, 3\), got shape \(3,\)",
    ),
    Mistake(
        "a gradient of another shape, without parameters",
        lambda: ADAM.update({"a": jnp.ones((1, 3)), "b": PARAMS["b"]}, STATE),
        ValueError,
        r"state of updates\['a'\] must fit its gradient, of shape \(1, 3\), got an update of shape \(2, 3\)",
    ),
    Mistake(
        "a larger gradient, without parameters",
        lambda: ADAM.update({"a": jnp.ones((5, 2, 3)), "b": PARAMS["b"]}, STATE),
        ValueError,
        r"state of updates\['a'\] must fit its gradient: exp_avg has shape \(2, 3\) and would get \(5, 2, 3\)",
    ),
    Mistake(
        "a gradient of another shape in a step",
        lambda: funcopt.step(ADAM, {"a": jnp.ones(3), "b": PARAMS["b"]}, STATE, PARAMS),
        ValueError,
        r"updates\['a'\] must have the parameter's shape \(2, 3\), got shape \(3,\)",
    ),
    Mistake(
        "an update of another shape",
        lambda: funcopt.apply_updates(PARAMS, {"a": jnp.ones((5, 2, 3)), "b": PARAMS["b"]}),
        ValueError,
        r"apply_updates: updates\['a'\] must have the parameter's shape \(2, 3\), got shape \(5, 2, 3\)",
    ),
    Mistake(
        "a model in place of updates",
        lambda: ADAM.update({**PARAMS, "f": jax.nn.relu}, STATE, {**PARAMS, "f": jax.nn.relu}),
        TypeError,
        r"update: updates\['f'\] must be an array, None or RowSparse, got .*equinox.filter",
    ),
    Mistake(
        "a model in place of parameters",
        lambda: ADAM.init({**PARAMS, "f": jax.nn.relu}),
        TypeError,
        r"adam: parameter \['f'\] must be an array, .*equinox.filter",
    ),
    Mistake(
        "a gradient where no parameter is",
        lambda: ADAM.update({"a": jnp.ones(2)}, ADAM.init({"a": None}), {"a": None}),
        ValueError,
        r"update: updates\['a'\] must be None, where there is no parameter",
    ),
    # States and their order
    Mistake(
        "no state",
        lambda: ADAM.update(PARAMS, None, PARAMS),
        ValueError,
        "adam: the state must be a AdamState, .*NoneType",
    ),
    Mistake(
        "no state of a chain",
        lambda: CHAIN.update(PARAMS, None, PARAMS),
        ValueError,
        "chain: the state must have one part for each of 2 transformations.*None",
    ),
    Mistake(
        "no state of a schedule",
        lambda: SCHEDULED.update(PARAMS, None, PARAMS),
        ValueError,
        "adam: the state must be a ScheduledState.*NoneType",
    ),
    Mistake(
        "another optimizer's state",
        lambda: ADAM.update(PARAMS, funcopt.sgd(0.1, momentum=0.9).init(PARAMS), PARAMS),
        ValueError,
        "adam: the state must be a AdamState, which init.* returns, got TraceState",
    ),
    Mistake(
        "a chain's state",
        lambda: ADAM.update(PARAMS, CHAIN.init(PARAMS), PARAMS),
        ValueError,
        "adam: the state must be a AdamState, which init.* returns, got tuple",
    ),
    Mistake("parameters and state swapped", lambda: ADAM.update(PARAMS, PARAMS, STATE), ValueError, ORDER),
    Mistake("gradients and state swapped", lambda: ADAM.update(STATE, PARAMS, PARAMS), ValueError, ORDER),
    Mistake(
        "the state of other parameters",
        lambda: ADAM.update(PARAMS, ADAM.init({"x": jnp.ones(2)}), PARAMS),
        ValueError,
        rf"adam: the state must be one of init\(params\) for parameters like the updates.*{ORDER}",
    ),
    # Names
    Mistake(
        "learning_rate",
        lambda: funcopt.adam(learning_rate=0.1),
        TypeError,
        "adam: unknown argument learning_rate, .*it is called lr here",
    ),
    Mistake("b1", lambda: funcopt.adam(b1=0.9), TypeError, "adam: unknown argument b1, .*it is called betas here"),
    Mistake(
        "mask",
        lambda: funcopt.adamw(0.1, mask={"a": True}),
        TypeError,
        "adamw: unknown argument mask, .*funcopt.masked",
    ),
    Mistake(
        "near",
        lambda: funcopt.adam(weight_dcay=0.1),
        TypeError,
        "adam: unknown argument weight_dcay, .*did you mean 'weight_decay'",
    ),
    Mistake(
        "one too many",
        lambda: funcopt.sgd(0.1, 0.9, 0.0, 0.0, False, True),
        TypeError,
        "sgd: too many positional arguments",
    ),
    Mistake(
        "missing",
        lambda: funcopt.clip_by_global_norm(),
        TypeError,
        "clip_by_global_norm: missing a required argument: 'max_norm'",
    ),
    # Chains
    Mistake("a list", lambda: funcopt.chain([ADAM, ADAM]), TypeError, r"chain: .* got one list; call chain\(\*parts\)"),
    Mistake(
        "a factory",
        lambda: funcopt.chain(CLIP, funcopt.adam),
        TypeError,
        r"chain: part 1 must be a gradient transformation, got .*; call it: adam\(",
    ),
    Mistake("optax's factory", lambda: funcopt.chain(optax.adam), TypeError, r"chain: part 0 .*; call it: adam\("),
    Mistake(
        "nothing", lambda: funcopt.chain(None), TypeError, "chain: part 0 must be a gradient transformation, got None"
    ),
    Mistake(
        "a name twice",
        lambda: funcopt.named_chain(("a", CLIP), ("a", CLIP)),
        ValueError,
        "named_chain: names must differ, got a, a",
    ),
    # Values
    Mistake(
        "norm_type as a schedule",
        lambda: funcopt.clip_by_global_norm(1.0, schedule),
        TypeError,
        "clip_by_global_norm: norm_type must be a plain value, got a schedule",
    ),
    Mistake(
        "tolerance_grad as a schedule",
        lambda: funcopt.lbfgs(tolerance_grad=schedule),
        TypeError,
        "lbfgs: tolerance_grad must be a plain value, got a schedule",
    ),
    Mistake(
        "ns_steps as a schedule",
        lambda: funcopt.muon(ns_steps=schedule),
        TypeError,
        "muon: ns_steps must be a plain value, got a schedule",
    ),
    Mistake(
        "a flag as a schedule",
        lambda: funcopt.adam(amsgrad=schedule),
        TypeError,
        "adam: amsgrad must be True or False, got",
    ),
    Mistake(
        "betas as a number",
        lambda: funcopt.adam(betas=0.9),
        TypeError,
        "adam: betas must be a tuple of 2 numbers, got 0.9",
    ),
    Mistake(
        "three betas",
        lambda: funcopt.adam(betas=(0.9, 0.9, 0.9)),
        ValueError,
        "adam: betas must be a tuple of 2 numbers, got",
    ),
    Mistake("not a number", lambda: funcopt.adam(float("nan")), ValueError, "adam: lr must be >= 0, got nan"),
    Mistake("text", lambda: funcopt.adam("0.1"), TypeError, "adam: lr must be a number, .* got '0.1'"),
    Mistake(
        "a bad number in a tree",
        lambda: funcopt.adam({"a": 0.1, "b": {"c": -1.0}}),
        ValueError,
        r"adam: lr\['b'\]\['c'\] must be >= 0, got -1.0",
    ),
    Mistake(
        "a tree that is no prefix",
        lambda: funcopt.adam({"a": 0.1, "x": 0.1}).init(PARAMS),
        ValueError,
        "adam: lr must be one value or have the parameters' structure",
    ),
    Mistake(
        "an integer parameter",
        lambda: ADAM.init({"n": jnp.arange(3)}),
        ValueError,
        r"adam: parameter \['n'\] must be floating or complex, got int32; .*funcopt.masked",
    ),
]


@pytest.mark.parametrize("mistake", MISTAKES, ids=lambda mistake: mistake.name)
def test_mistakes(mistake: Mistake) -> None:
    with pytest.raises(mistake.error, match=mistake.message):
        mistake.call()


@pytest.mark.parametrize("name", [name for name in funcopt.algorithms() if name != "lbfgs"])
def test_every_algorithm_names_itself(name: str) -> None:
    make = getattr(funcopt, name)
    with pytest.raises(TypeError, match=f"{name}: unknown argument learning_rate, it takes lr, .*it is called lr here"):
        make(learning_rate=0.1)
    with pytest.raises(ValueError, match=f"{name}: lr must be (None or )?>"):
        make(lr=-1.0)
    tx, params = make(), {"a": jnp.ones((2, 2))}
    with pytest.raises(ValueError, match=f"{name}: the state must be"):
        tx.update(params, None, params)
    with pytest.raises(ValueError, match=r"updates\['a'\] must have the parameter's shape"):
        tx.update({"a": jnp.ones((3, 2))}, tx.init(params), params)
    before = jax.tree.map(np.array, tx.init(params))
    jax.tree.map(np.testing.assert_array_equal, tx.init(params), before)


def test_help_shows_what_each_argument_may_be() -> None:
    shown = str(inspect.signature(funcopt.adamw))
    assert "lr: >= 0 = 0.001" in shown
    assert "betas: (a float in [0, 1), a float in [0, 1)) = (0.9, 0.999)" in shown
