"""An update is a pure function: it can be differentiated, which torch's `differentiable=True` is for."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import funcopt


@pytest.mark.parametrize("factory", [funcopt.sgd, funcopt.adam, funcopt.rmsprop], ids=lambda f: f.__name__)
def test_gradient_through_several_updates_with_respect_to_the_learning_rate(factory: object) -> None:
    def final_loss(lr: jax.Array) -> jax.Array:
        tx = factory(lr)
        params = jnp.array([1.0, -2.0])
        state = tx.init(params)
        for _ in range(4):
            updates, state = tx.update(jax.grad(lambda p: jnp.sum(jnp.sin(p) ** 2))(params), state, params)
            params = funcopt.apply_updates(params, updates)
        return jnp.sum(params**2)

    with jax.enable_x64(True):
        lr, h = jnp.asarray(0.05), 1e-6
        expected = (final_loss(lr + h) - final_loss(lr - h)) / (2 * h)
        # a central difference is good to h**2 and to rounding / h
        np.testing.assert_allclose(jax.grad(final_loss)(lr), expected, rtol=1e-7)
