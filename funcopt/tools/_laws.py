"""What every optimizer obeys, whoever wrote it: laws of state, dtypes, checkpoints, groups and missing gradients.

A law is a function that raises `LawError` with a sentence that says what was expected and what was found.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from funcopt._law_error import expect
from funcopt.rule import GradientTransformation
from funcopt.tools._compare import compare
from funcopt.tools._spelling import parse
from funcopt.tools._trials import required

Law = Callable[[], None]

SHAPES = {"matrix": (4, 3), "vector": (3,), "square": (2, 2)}


def laws_of(subject: str, reference: str | None = None) -> dict[str, Law]:
    """The laws for an optimizer, by name.

    Args:
        subject: `module:name`, with arguments or without: a torch optimizer, or a function that returns a
            transformation.
        reference: one that it must equal, likewise.

    Raises:
        ValueError: for what cannot be imported.
        TypeError: for what is no optimizer.
    """
    _, make = parse(subject)
    found = _torch().laws(make) if required(make) else _laws_of_transformation(make)
    if reference is not None:
        found["reference"] = functools.partial(equals_its_reference, make, parse(reference)[1])
    return found


def equals_its_reference(make: Any, reference: Any) -> None:
    """Ten steps in float64 are those of the reference."""
    params = {name: np.random.default_rng(1).normal(size=shape) for name, shape in SHAPES.items()}
    found = compare(make, reference, params)
    expect(found, str(found))


def _laws_of_transformation(make: Callable[[], Any]) -> dict[str, Law]:
    tx = make()
    if not isinstance(tx, GradientTransformation):
        raise TypeError(f"the function must return a transformation with init and update, got {tx!r}")
    own = optax.with_extra_args_support(tx)
    return {law.__name__: functools.partial(law, own) for law in _OF_TRANSFORMATIONS}


def _trees(dtype: Any, seed: int = 0) -> Any:
    generator = np.random.default_rng(seed)
    return {name: jnp.asarray(generator.normal(size=shape), dtype) for name, shape in SHAPES.items()}


def _outline(tree: Any) -> Any:
    return jax.tree.map(lambda x: (jnp.shape(x), jnp.result_type(x)), tree)


def state_is_a_fixed_point(tx: Any) -> None:
    """An update keeps the state's structure, shapes and dtypes, so that a loop can carry it."""
    params = _trees(jnp.float32)
    state = tx.init(params)
    _, after = jax.eval_shape(tx.update, params, state, params)
    before, later = jax.tree.structure(state), jax.tree.structure(after)
    expect(before == later, f"the state's structure must stay: init gives {before}, update {later}")
    expect(
        _outline(state) == _outline(after), f"shapes and dtypes must stay: {_outline(state)} became {_outline(after)}"
    )


def updates_are_like_the_gradients(tx: Any) -> None:
    """Updates have the structure, the shapes and the dtypes of the gradients, in float32 and bfloat16."""
    for dtype in (jnp.float32, jnp.bfloat16):
        params = _trees(dtype)
        updates, _ = jax.eval_shape(tx.update, params, tx.init(params), params)
        expect(
            _outline(updates) == _outline(params), f"updates must be like {_outline(params)}, got {_outline(updates)}"
        )


def nothing_is_read_while_tracing(tx: Any) -> None:
    """A compiled step is the step."""
    params, grads = _trees(jnp.float32), _trees(jnp.float32, 1)
    plain = tx.update(grads, tx.init(params), params)
    compiled = jax.jit(tx.update)(grads, tx.init(params), params)
    for a, b in zip(jax.tree.leaves(plain), jax.tree.leaves(compiled), strict=True):
        if jnp.issubdtype(jnp.result_type(a), jnp.inexact):
            expect(np.allclose(a, b, rtol=1e-5, atol=1e-6), f"jit must change nothing but rounding, got {a} and {b}")


def runs_resume(tx: Any) -> None:
    """A state that was taken apart and put together as arrays goes on to the last bit."""
    params = _trees(jnp.float32)
    update = jax.jit(lambda g, s, p: (lambda u, t: (optax.apply_updates(p, u), t))(*tx.update(g, s, p)))
    straight, state = params, tx.init(params)
    saved: Any = None
    for step in range(6):
        if step == 3:
            leaves, treedef = jax.tree.flatten((straight, state))
            saved = treedef.unflatten([jnp.asarray(np.array(leaf)) for leaf in leaves])
        straight, state = update(_trees(jnp.float32, step), state, straight)
    resumed, state = saved
    for step in range(3, 6):
        resumed, state = update(_trees(jnp.float32, step), state, resumed)
    for a, b in zip(jax.tree.leaves(straight), jax.tree.leaves(resumed), strict=True):
        expect(np.array_equal(a, b), "a resumed run must equal the one that was not interrupted")


def nothing_is_changed_in_place(tx: Any) -> None:
    """The same input gives the same output twice."""
    params, grads = _trees(jnp.float32), _trees(jnp.float32, 1)
    state = tx.init(params)
    first, second = tx.update(grads, state, params), tx.update(grads, state, params)
    for a, b in zip(jax.tree.leaves(first), jax.tree.leaves(second), strict=True):
        expect(np.array_equal(a, b), "an update is a pure function, and gave two results for one input")


def zero_gradients_are_finite(tx: Any) -> None:
    """Gradients of zero, from the first step on, give finite updates."""
    params = _trees(jnp.float32)
    zeros = jax.tree.map(jnp.zeros_like, params)
    updates, _ = tx.update(zeros, tx.init(params), params)
    finite = all(bool(jnp.isfinite(x).all()) for x in jax.tree.leaves(updates))
    expect(finite, "gradients of zero must give finite updates")


_OF_TRANSFORMATIONS = (
    state_is_a_fixed_point,
    updates_are_like_the_gradients,
    nothing_is_read_while_tracing,
    runs_resume,
    nothing_is_changed_in_place,
    zero_gradients_are_finite,
)


def _torch() -> Any:
    """The laws of torch optimizers, only where there is one."""
    from funcopt.torch_bridge import _laws

    return _laws
