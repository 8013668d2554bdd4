"""Products of bfloat16 in the torch engine: torch's own, with its bits, and not those of copies in float32."""

from typing import Any

import jax
import jax.numpy as jnp
import pytest
import torch
from jax import lax

from funcopt.torch_bridge.engines._code import functional
from funcopt.torch_bridge.engines._lowering import lower


def rounded(x: jax.Array) -> jax.Array:
    return lax.reduce_precision(x, exponent_bits=8, mantissa_bits=7).astype(jnp.bfloat16)


def product(x: jax.Array, y: jax.Array) -> jax.Array:
    return jnp.matmul(x, y, preferred_element_type=jnp.float32)


def weighted(x: Any, y: Any, b: float, c: float) -> Any:
    return rounded(b * x.astype(jnp.float32) + c * product(x, y))


CASES = [
    ("a product", lambda x, y: rounded(product(x, y)), torch.mm),
    ("a sum", lambda x, y: weighted(x, y, 0.3, -1.7), lambda x, y: torch.addmm(x, x, y, beta=0.3, alpha=-1.7)),
    (
        "the other order",
        lambda x, y: rounded(product(x, y) + 0.3 * y.astype(jnp.float32)),
        lambda x, y: torch.addmm(y, x, y, beta=0.3),
    ),
]


def compiled(fn: Any, *arrays: torch.Tensor) -> Any:
    lowered = lower(jax.make_jaxpr(fn)(*(jax.ShapeDtypeStruct(tuple(x.shape), jnp.bfloat16) for x in arrays)))
    return functional(lowered.ops, lowered.inputs, [], lowered.outputs, {})


@pytest.mark.parametrize(("name", "fn", "of_torch"), CASES, ids=[case[0] for case in CASES])
def test_products_are_torch_s(name: str, fn: Any, of_torch: Any) -> None:
    torch.manual_seed(0)
    x, y = torch.randn(40, 40).bfloat16(), torch.randn(40, 40).bfloat16()
    code = compiled(fn, x, y)
    assert "float32" not in code.source
    assert torch.equal(code.run([x, y], [], torch.device("cpu"))[0], of_torch(x, y))


def test_what_is_read_twice_or_not_rounded_stays() -> None:
    torch.manual_seed(0)
    x, y = torch.randn(8, 8).bfloat16(), torch.randn(8, 8).bfloat16()
    for fn, expected in (
        (product, x.float() @ y.float()),
        (lambda x, y: (rounded(product(x, y)), product(x, y))[1], x.float() @ y.float()),
    ):
        (actual,) = compiled(fn, x, y).run([x, y], [], torch.device("cpu"))
        torch.testing.assert_close(actual, expected)
    found = compiled(lambda x, y: (lambda z: (rounded(z), z))(product(x, y)), x, y).run([x, y], [], torch.device("cpu"))
    assert torch.equal(found[0], found[1].bfloat16())
