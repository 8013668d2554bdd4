"""Parts of the tree on their own: masked, partition, freeze."""

import dataclasses
import re
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import funcopt

PARAMS = {"a": jnp.ones((2, 2)), "b": jnp.ones(2)}
GRADS = {"a": jnp.full((2, 2), 0.5), "b": jnp.full(2, 0.5)}


def matrices(params: dict[str, jax.Array]) -> dict[str, bool]:
    return jax.tree.map(lambda p: p.ndim > 1, params)


def test_masked_passes_the_rest_through() -> None:
    tx = funcopt.masked(funcopt.scale(10.0), matrices)
    updates, _ = tx.update(GRADS, tx.init(PARAMS), PARAMS)
    assert (updates["a"] == 5.0).all()
    assert (updates["b"] == 0.5).all()


def test_functions_of_the_parameters_cope_with_missing_gradients() -> None:
    """Optax's own call the function on the updates, and fail here."""
    grads = {"a": None, "b": GRADS["b"]}
    masked = funcopt.masked(funcopt.scale(10.0), matrices)
    updates, _ = masked.update(grads, masked.init(PARAMS), PARAMS)
    assert updates["a"] is None
    split = funcopt.partition({True: funcopt.scale(10.0), False: funcopt.scale(2.0)}, matrices)
    updates, _ = split.update(grads, split.init(PARAMS), PARAMS)
    assert updates["a"] is None
    assert (updates["b"] == 1.0).all()
    reference = optax.masked(optax.scale(10.0), matrices)
    with pytest.raises(ValueError, match=r"pytree structure error|Expected None"):
        reference.update(grads, reference.init(PARAMS), PARAMS)


def test_function_needs_the_parameters() -> None:
    tx = funcopt.masked(funcopt.scale(10.0), matrices)
    with pytest.raises(ValueError, match="masked: a function of the parameters needs them"):
        tx.update(GRADS, tx.init(PARAMS))


def test_frozen_parts_do_not_move_nor_decay() -> None:
    tx = funcopt.chain(funcopt.adamw(0.1, weight_decay=0.5), funcopt.freeze({"a": True, "b": False}))
    updates, _ = tx.update(GRADS, tx.init(PARAMS), PARAMS)
    assert (updates["a"] == 0.0).all()
    assert (updates["b"] != 0.0).all()


def test_partition_keeps_no_state_for_fixed_parts() -> None:
    tx = funcopt.partition({"fit": funcopt.adam(0.1), "fixed": optax.set_to_zero()}, {"a": "fixed", "b": "fit"})
    assert [leaf.shape for leaf in jax.tree.leaves(tx.init(PARAMS)) if leaf.ndim] == [(2,), (2,)]


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class Layer:
    """A callable pytree, such as an equinox module."""

    w: Any
    b: Any

    def __call__(self, params: Any) -> Any:
        raise AssertionError("a tree is not called")


LAYER = Layer(jnp.ones((2, 2)), jnp.ones(2))


@pytest.mark.parametrize(
    ("params", "mask", "labels"),
    [
        (LAYER, Layer(True, False), Layer("x", "y")),
        (Layer(LAYER.w, None), Layer(True, None), Layer("x", None)),
        (Layer(LAYER.w, None), Layer(True, False), Layer("x", "y")),  # labels of more than is trained
        ({"a": LAYER, "c": LAYER}, {"a": Layer(True, False), "c": False}, {"a": Layer("x", "y"), "c": "y"}),
        (Layer(None, None), Layer(None, None), Layer(None, None)),
    ],
)
def test_callable_trees_are_trees(params: Any, mask: Any, labels: Any) -> None:
    def expected(chosen: Any, factor: float, other: float) -> Any:
        spread = jax.tree.map(lambda m, p: jax.tree.map(lambda x: x * (factor if m else other), p), chosen, params)
        return jax.tree.leaves(spread)

    parts = {"x": optax.adam(0.1), "y": funcopt.scale(2.0)}
    for tx, result in (
        (funcopt.masked(funcopt.scale(3.0), mask), expected(mask, 3.0, 1.0)),
        (funcopt.partition(parts, labels), expected(jax.tree.map(lambda x: x == "x", labels), -0.1, 2.0)),
    ):
        state = tx.init(params)
        updates, new_state = jax.jit(tx.update)(params, state, params)
        for actual, value in zip(jax.tree.leaves(updates), result, strict=True):
            np.testing.assert_allclose(actual, value, rtol=1e-5)  # optax's bias correction in float32
        assert jax.tree.structure(updates) == jax.tree.structure(params)
        assert jax.tree.structure(new_state) == jax.tree.structure(state)


def test_partial_is_a_function() -> None:
    at_least: Callable[..., Any] = lambda ndim, params: jax.tree.map(lambda p: p.ndim >= ndim, params)  # noqa: E731
    tx = funcopt.masked(funcopt.scale(10.0), jax.tree_util.Partial(at_least, 2))
    updates, _ = tx.update(GRADS, tx.init(PARAMS), PARAMS)
    assert ((updates["a"] == 5.0).all(), (updates["b"] == 0.5).all()) == (True, True)


@pytest.mark.parametrize("kind", [bool, np.bool_, np.array, jnp.array])
def test_masks_of_any_kind_of_boolean(kind: Any) -> None:
    tree = {"a": kind(True), "b": kind(False)}
    for mask in (tree, lambda params: tree):
        tx = funcopt.masked(funcopt.scale(10.0), mask)
        updates, _ = jax.jit(tx.update)(GRADS, tx.init(PARAMS), PARAMS)
        assert ((updates["a"] == 5.0).all(), (updates["b"] == 0.5).all()) == (True, True)


def test_gradients_of_integers_are_none() -> None:
    params = {"w": jnp.ones(3), "n": jnp.int32(1), "m": jnp.arange(4)}
    grads = jax.grad(lambda p: jnp.sum(p["w"] ** 2) * p["n"], allow_int=True)(params)
    labels = {"w": "fit", "n": "fixed", "m": "fixed"}
    for algorithm in (funcopt.adam(0.1), optax.adam(0.1), funcopt.sgd(0.1, momentum=0.9)):
        split = funcopt.partition({"fit": algorithm, "fixed": optax.set_to_zero()}, labels)
        masked = funcopt.masked(algorithm, {"w": True, "n": False, "m": False})
        for tx in (split, masked):
            state = tx.init(params)
            for update in (tx.update, jax.jit(tx.update)):
                updates, new_state = update(grads, state, params)
                new = funcopt.apply_updates(params, updates)
                assert jax.tree.map(lambda x: x.dtype.name, new) == {"w": "float32", "n": "int32", "m": "int32"}
                assert (int(new["n"]), new["m"].tolist()) == (1, [0, 1, 2, 3])
                alone = algorithm.update(grads["w"], algorithm.init(params["w"]), params["w"])[0]
                np.testing.assert_allclose(updates["w"], alone, rtol=1e-6)
                assert jax.tree.structure(new_state) == jax.tree.structure(state)


def test_optax_finds_the_parameters_in_the_state() -> None:
    """`optax.tree.map_params` calls `init` with what stands for parameters and is no tree of them."""
    for wrapped in (
        funcopt.masked(optax.adam(0.1), {"a": True, "b": False}),
        funcopt.masked(optax.adam(0.1), matrices),
        funcopt.partition({True: optax.adam(0.1), False: optax.sgd(0.1)}, {"a": True, "b": False}),
    ):
        state = wrapped.init(PARAMS)
        marked = optax.tree.map_params(wrapped, lambda _: "moment", state, transform_non_params=lambda _: "other")
        assert sorted(jax.tree.leaves(marked)) == ["moment", "moment", "other"]


SCALE = funcopt.scale(10.0)
PARTS = {"x": funcopt.sgd(0.1), "yes": funcopt.adam(0.1)}

STRUCTURE = " must be one value or have the parameters' structure "

# (what is done, error, message)
BAD = {
    "mask_number": (
        lambda: funcopt.masked(SCALE, {"a": 1.0}),
        TypeError,
        "masked: mask['a'] must be True or False, got 1.0",
    ),
    "mask_label": (
        lambda: funcopt.masked(SCALE, {"a": [True, "x"]}),
        TypeError,
        "masked: mask['a'][1] must be True or False, got 'x'; did you mean funcopt.partition?",
    ),
    "mask_elements": (
        lambda: funcopt.masked(SCALE, {"a": np.array([True, False])}),
        TypeError,
        "masked: mask['a'] must be True or False, got array([ True, False])",
    ),
    "mask_traced": (
        lambda: jax.jit(lambda x: funcopt.masked(SCALE, {"a": x > 0}).init({"a": x}))(1.0),
        TypeError,
        "masked: mask['a'] must be True or False, got",
    ),
    "mask_of_function": (
        lambda: funcopt.masked(SCALE, lambda params: {"a": True, "b": "x"}).init(PARAMS),
        TypeError,
        "masked: mask(params)['b'] must be True or False, got 'x'",
    ),
    "mask_key": (
        lambda: funcopt.masked(SCALE, {"a": True, "c": True}).init(PARAMS),
        ValueError,
        "masked: mask" + STRUCTURE + "PyTreeDef({'a': *, 'b': *}), got PyTreeDef({'a': *, 'c': *})",
    ),
    "mask_too_deep": (
        lambda: funcopt.masked(SCALE, {"a": {"w": True}, "b": True}).init(PARAMS),
        ValueError,
        "masked: mask['a']" + STRUCTURE + "PyTreeDef(*), got PyTreeDef({'w': *})",
    ),
    "mask_missing": (
        lambda: funcopt.masked(SCALE, {"a": None, "b": True}).init(PARAMS),
        ValueError,
        "masked: mask['a']" + STRUCTURE + "PyTreeDef(*), got PyTreeDef(None)",
    ),
    "mask_in_update": (
        lambda: funcopt.masked(SCALE, {"c": True}).update(PARAMS, funcopt.masked(SCALE, True).init(PARAMS), PARAMS),
        ValueError,
        "masked: mask" + STRUCTURE + "PyTreeDef({'a': *, 'b': *})",
    ),
    "mask_function_structure": (
        lambda: funcopt.masked(SCALE, lambda params: [True, False]).init(PARAMS),
        ValueError,
        "masked: mask(params)" + STRUCTURE + "PyTreeDef({'a': *, 'b': *}), got PyTreeDef([*, *])",
    ),
    "masked_swapped": (
        lambda: funcopt.masked({"a": True}, SCALE),
        TypeError,
        "masked: inner must be a transformation, got {'a': True}; call masked(inner, mask)",
    ),
    "masked_swapped_function": (lambda: funcopt.masked(matrices, SCALE), TypeError, "; call masked(inner, mask)"),
    "masked_factory": (
        lambda: funcopt.masked(funcopt.adam, True),
        TypeError,
        "masked: inner must be a transformation, got <function adam at ",
    ),
    "masked_factory_fix": (lambda: funcopt.masked(optax.adam, True), TypeError, "; call it: adam(...)"),
    "masked_number": (lambda: funcopt.masked(0.1, True), TypeError, "masked: inner must be a transformation, got 0.1"),
    "label_unknown": (
        lambda: funcopt.partition(PARTS, {"a": "x", "b": {"c": "yess"}}),
        ValueError,
        "partition: labels['b']['c'] must be among 'x', 'yes', got 'yess'; did you mean 'yes'?",
    ),
    "label_of_function": (
        lambda: funcopt.partition(PARTS, lambda params: {"a": "x", "b": "z"}).init(PARAMS),
        ValueError,
        "partition: labels(params)['b'] must be among 'x', 'yes', got 'z'",
    ),
    "label_boolean": (
        lambda: funcopt.partition(PARTS, {"a": True, "b": False}),
        ValueError,
        "got True; a tree of booleans is a mask, did you mean funcopt.masked?",
    ),
    "label_array": (
        lambda: funcopt.partition(PARTS, {"a": np.ones(2)}),
        ValueError,
        "partition: labels['a'] must be among",
    ),
    "label_structure": (
        lambda: funcopt.partition(PARTS, {"a": "x", "b": ["x", "yes"]}).init(PARAMS),
        ValueError,
        "partition: labels['b']" + STRUCTURE + "PyTreeDef(*), got PyTreeDef([*, *])",
    ),
    "label_function_structure": (
        lambda: funcopt.partition(PARTS, lambda params: ("x", "yes")).init(PARAMS),
        ValueError,
        "partition: labels(params)" + STRUCTURE + "PyTreeDef({'a': *, 'b': *}), got PyTreeDef((*, *))",
    ),
    "label_callable_structure": (
        lambda: funcopt.partition(PARTS, Layer("x", None)).init(LAYER),
        ValueError,
        "partition: labels.b" + STRUCTURE + "PyTreeDef(*), got PyTreeDef(None)",
    ),
    "partition_list": (
        lambda: funcopt.partition([SCALE, SCALE], {"a": 0, "b": 1}),
        TypeError,
        "partition: transforms must be a mapping from labels to transformations, got [",
    ),
    "partition_factory": (
        lambda: funcopt.partition({"x": funcopt.adam}, "x"),
        TypeError,
        "partition: transforms['x'] must be a transformation, got <function adam at ",
    ),
    "partition_factory_fix": (lambda: funcopt.partition({"x": optax.adam}, "x"), TypeError, "; call it: adam(...)"),
    "partition_swapped": (
        lambda: funcopt.partition({"a": "x"}, PARTS),
        TypeError,
        "a mapping from labels to transformations, got {'a': 'x'}; call partition(transforms, labels)",
    ),
    "partition_swapped_function": (
        lambda: funcopt.partition(matrices, PARTS),
        TypeError,
        "; call partition(transforms, labels)",
    ),
}


@pytest.mark.parametrize(("do", "error", "message"), BAD.values(), ids=BAD.keys())
def test_messages(do: Callable[[], Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=re.escape(message)):
        do()
