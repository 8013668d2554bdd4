"""JAX's primitives as torch's operations, and as NumPy's on scalars: each agrees with JAX."""

import functools
import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
import torch
from jax import lax

from funcopt.torch_bridge.engines._code import chunked, functional
from funcopt.torch_bridge.engines._lowering import Lowered, fused, lower, needed, run_host, without_splats
from funcopt.torch_bridge.engines._operations import MANY, NUMPY, TORCH, NotCovered

pytestmark = pytest.mark.one_engine

CPU = torch.device("cpu")

FLOATS = "float64 float32 bfloat16"
INTS = "int64 int32"
FIELD = f"{FLOATS} {INTS} complex128"
ORDERED = f"{FLOATS} {INTS}"
WORDS = f"{INTS} uint8 bool"
ALL = f"{FIELD} uint8 bool"

VALUES: dict[str, Sequence[Any]] = {
    "f": [0.0, 1.0, -1.0, 0.5, -0.5, 1.5, 2.5, -2.5, 0.3, -3.7, 11.0, -11.0],
    "i": [1, -1, 2, -2, 3, 7, -7, 12, -100],
    "u": [0, 1, 2, 3, 7, 100, 200, 255],
    "b": [False, True],
    "c": [1 + 0j, -1 + 2j, 0.5 - 0.25j, 2.5j, -3.7 - 1.25j, 0.3 + 4j],
}


def values(dtype: str, arity: int = 1) -> np.ndarray:
    """What is tried; fewer of each of many operands."""
    own = np.dtype(getattr(ml_dtypes, dtype, dtype))
    found = VALUES["f" if own.kind == "V" else own.kind]
    found = found[: len(found) // (arity - 1)] if arity > 2 else found
    return np.array(found).astype(own)


class Case(NamedTuple):
    """A function of one primitive, that treats each element alone."""

    fn: Callable[..., Any]
    arity: int = 1
    dtypes: str = FLOATS
    ulps: float = 0
    """How far results may be apart, in units of the dtype's precision: libraries' functions are not rounded alike."""


ELEMENTWISE: dict[str, list[Case]] = {
    "add": [Case(lax.add, 2, FIELD)],
    "sub": [Case(lax.sub, 2, FIELD)],
    "mul": [Case(lax.mul, 2, ORDERED), Case(lax.mul, 2, "complex128", 1)],
    "div": [Case(lax.div, 2, ORDERED), Case(lax.div, 2, "complex128", 2)],
    "neg": [Case(lax.neg, 1, FIELD)],
    "sqrt": [Case(lax.sqrt, ulps=1), Case(lax.sqrt, 1, "complex128", 2)],
    "rsqrt": [Case(lax.rsqrt, ulps=2)],
    "cbrt": [Case(lax.cbrt, ulps=8)],
    "exp": [Case(lax.exp, ulps=4), Case(lax.exp, 1, "complex128", 4)],
    "exp2": [Case(lax.exp2, ulps=4)],
    "log": [Case(lax.log, ulps=4), Case(lax.log, 1, "complex128", 4)],
    "log1p": [Case(lax.log1p, ulps=4)],
    "expm1": [Case(lax.expm1, ulps=4)],
    "sin": [Case(lax.sin, ulps=4)],
    "cos": [Case(lax.cos, ulps=4)],
    "tan": [Case(lax.tan, ulps=4)],
    "asin": [Case(lax.asin, ulps=4)],
    "acos": [Case(lax.acos, ulps=4)],
    "atan": [Case(lax.atan, ulps=4)],
    "atan2": [Case(lax.atan2, 2, ulps=4)],
    "sinh": [Case(lax.sinh, ulps=4)],
    "cosh": [Case(lax.cosh, ulps=4)],
    "tanh": [Case(lax.tanh, ulps=4)],
    "asinh": [Case(lax.asinh, ulps=4)],
    "acosh": [Case(lax.acosh, ulps=4)],
    "atanh": [Case(lax.atanh, ulps=4)],
    "logistic": [Case(lax.logistic, ulps=4)],
    "erf": [Case(lax.erf, ulps=4)],
    "erfc": [Case(lax.erfc, ulps=4)],
    "erf_inv": [Case(lax.erf_inv, ulps=4)],
    "lgamma": [Case(lax.lgamma, ulps=4)],
    "digamma": [Case(lambda x: lax.digamma(x * x + 0.5), ulps=4)],
    "abs": [Case(lax.abs, 1, ORDERED), Case(lax.abs, 1, "complex128", 1)],
    "sign": [Case(lax.sign, 1, ORDERED), Case(lax.sign, 1, "complex128", 1)],
    "floor": [Case(lax.floor)],
    "ceil": [Case(lax.ceil)],
    "round": [
        Case(functools.partial(lax.round, rounding_method=lax.RoundingMethod.TO_NEAREST_EVEN)),
        Case(functools.partial(lax.round, rounding_method=lax.RoundingMethod.AWAY_FROM_ZERO)),
    ],
    "square": [Case(lax.square, 1, FIELD)],
    "integer_pow": [
        Case(functools.partial(lax.integer_pow, y=y), 1, dtypes, ulps)
        for y, dtypes, ulps in [(2, FIELD, 0), (3, FIELD, 2), (7, FIELD, 4), (-1, FLOATS, 2), (-2, FLOATS, 2)]
    ],
    "pow": [Case(lax.pow, 2, FLOATS, 4)],
    "rem": [Case(lax.rem, 2, ORDERED)],
    "nextafter": [Case(lax.nextafter, 2, "float64 float32")],
    "is_finite": [Case(lax.is_finite)],
    "max": [Case(lax.max, 2, f"{ORDERED} bool")],
    "min": [Case(lax.min, 2, f"{ORDERED} bool")],
    "clamp": [Case(lax.clamp, 3, ORDERED)],
    "lt": [Case(lax.lt, 2, ORDERED)],
    "le": [Case(lax.le, 2, ORDERED)],
    "gt": [Case(lax.gt, 2, ORDERED)],
    "ge": [Case(lax.ge, 2, ORDERED)],
    "eq": [Case(lax.eq, 2, ALL)],
    "ne": [Case(lax.ne, 2, ALL)],
    "and": [Case(lax.bitwise_and, 2, WORDS)],
    "or": [Case(lax.bitwise_or, 2, WORDS)],
    "xor": [Case(lax.bitwise_xor, 2, WORDS)],
    "not": [Case(lax.bitwise_not, 1, WORDS)],
    "select_n": [
        Case(lambda x, y, z: lax.select_n(x > 0, y, z), 3, ORDERED),
        Case(lambda x, y, z: lax.select_n((x > 0).astype(int) + (x > 1), y, z, x), 3, ORDERED),
    ],
    "convert_element_type": [
        Case(
            functools.partial(lax.convert_element_type, new_dtype=to), 1, ALL if "complex" in to else f"{ORDERED} bool"
        )
        for to in ("float64", "float32", "bfloat16", "int32", "bool", "complex128")
    ],
    "reduce_precision": [
        Case(functools.partial(lax.reduce_precision, exponent_bits=exponent, mantissa_bits=mantissa), 1, "float32")
        for exponent, mantissa in [(8, 7), (5, 10), (8, 23)]
    ],
    "real": [Case(lax.real, 1, "complex128 complex64")],
    "imag": [Case(lax.imag, 1, "complex128 complex64")],
    "conj": [Case(lax.conj, 1, "complex128 complex64")],
    "complex": [Case(lax.complex, 2, "float64 float32")],
}


def to_torch(x: Any) -> torch.Tensor:
    x = np.asarray(x)
    if x.dtype == ml_dtypes.bfloat16:
        return torch.from_numpy(x.view(np.int16)).view(torch.bfloat16)
    return torch.from_numpy(np.ascontiguousarray(x))


def to_numpy(x: Any, dtype: Any) -> np.ndarray:
    if not isinstance(x, torch.Tensor):
        return np.asarray(x, dtype)
    x = x.resolve_conj()
    if dtype == ml_dtypes.bfloat16:
        assert x.dtype == torch.bfloat16
        return x.contiguous().view(torch.int16).numpy().view(dtype)
    assert x.numpy().dtype == dtype
    return x.numpy()


def assert_agree(found: Any, expected: Any, ulps: float = 0) -> None:
    """XLA's functions of vectors, and torch's, are some units off the correctly rounded results."""
    expected = np.asarray(expected)
    assert found.shape == expected.shape
    assert found.dtype == expected.dtype
    if expected.dtype.kind in "fcV":
        epsilon = float(ml_dtypes.finfo(expected.real.dtype).eps)
        wide = np.complex128 if expected.dtype.kind == "c" else np.float64
        found, expected = found.astype(wide), expected.astype(wide)
        np.testing.assert_allclose(
            found, expected, rtol=32 * epsilon if ulps else 0.0, atol=4 * epsilon if ulps else 0.0
        )
    else:
        np.testing.assert_array_equal(found, expected)


def traced(fn: Callable[..., Any], *arguments: Any) -> Lowered:
    with jax.enable_x64(True):
        return lower(jax.make_jaxpr(fn)(*arguments))


def names(lowered: Lowered) -> set[str]:
    return {op.name for op in lowered.ops}


@functools.cache
def expected(case: Case, dtype: str) -> tuple[Sequence[np.ndarray], np.ndarray]:
    """Operands, all with all, and what JAX makes of them."""
    grid = np.meshgrid(*[values(dtype, case.arity)] * case.arity, indexing="ij")
    with jax.enable_x64(True):
        return grid, np.asarray(jax.jit(case.fn)(*grid))


EACH = [
    pytest.param(name, case, dtype, id=f"{name}{i or ''}-{dtype}")
    for name, cases in ELEMENTWISE.items()
    for i, case in enumerate(cases)
    for dtype in case.dtypes.split()
]


@pytest.mark.parametrize(("name", "case", "dtype"), EACH)
def test_of_arrays(name: str, case: Case, dtype: str) -> None:
    operands, result = expected(case, dtype)
    lowered = traced(case.fn, *operands)
    assert name in names(lowered) or (name == "convert_element_type" and result.dtype == dtype)
    code = functional(lowered.ops, lowered.inputs, [], lowered.outputs, {})
    (found,) = code.run([*map(to_torch, operands)], [], CPU)
    assert_agree(to_numpy(found, result.dtype), result, case.ulps)


@pytest.mark.parametrize(("name", "case", "dtype"), [x for x in EACH if x.values[1].arity > 1])
def test_of_arrays_and_numbers(name: str, case: Case, dtype: str) -> None:
    own, (operands, result) = values(dtype, case.arity), expected(case, dtype)
    for count in range(1, case.arity):
        for which in itertools.combinations(range(case.arity), count):
            rest = [
                x[tuple(0 if i in which else slice(None) for i in range(case.arity))] for i, x in enumerate(operands)
            ]
            like = rest[next(i for i in range(case.arity) if i not in which)]

            def fn(*x: Any, which: Any = which, shape: Any = like.shape) -> Any:
                return case.fn(*(jnp.broadcast_to(y, shape) if i in which else y for i, y in enumerate(x)))

            arguments = [own[0] if i in which else x for i, x in enumerate(rest)]
            lowered = traced(fn, *arguments)
            ops, outputs = without_splats(lowered.ops, lowered.outputs)
            numbers = [lowered.inputs[i] for i in which]
            arrays = [x for i, x in enumerate(lowered.inputs) if i not in which]
            tensors = [to_torch(x) for i, x in enumerate(rest) if i not in which]
            code = functional(needed(ops, outputs), arrays, numbers, outputs, {})
            for indices in itertools.product(range(len(own)), repeat=count):
                known = run_host(code.host, {x: own[i] for x, i in zip(numbers, indices, strict=True)})
                (found,) = code.run(tensors, [np.asarray(known[x]).item() for x in code.numbers], CPU)
                where = dict(zip(which, indices, strict=True))
                wanted = result[tuple(where.get(i, slice(None)) for i in range(case.arity))]
                assert_agree(to_numpy(found, result.dtype), wanted, case.ulps)


@pytest.mark.parametrize(("name", "case", "dtype"), [x for x in EACH if x.values[0] in NUMPY])
def test_of_numbers(name: str, case: Case, dtype: str) -> None:
    operands, result = expected(case, dtype)
    lowered = traced(case.fn, *(x.flat[0] for x in operands))
    assert {op.name for op in lowered.ops} <= NUMPY.keys()
    columns = [x.ravel() for x in operands]
    known = run_host(lowered.ops, dict(zip(lowered.inputs, columns, strict=True)))
    assert_agree(known[lowered.outputs[0]], result.ravel(), case.ulps)
    for i in range(0, result.size, 7):
        known = run_host(lowered.ops, {x: column[i] for x, column in zip(lowered.inputs, columns, strict=True)})
        assert_agree(known[lowered.outputs[0]], result.ravel()[i], case.ulps)


# What is not element by element.

X = np.arange(24.0).reshape(2, 3, 4) % 7 - 3
ROWS = np.array([2, 0, 9, 2], np.int32)  # of a table of 4: one twice, one that is not there
TABLE = np.arange(12.0).reshape(4, 3)
SHAPED: dict[str, list[Callable[[Any], Any]]] = {
    "reshape": [
        lambda x: x.reshape(6, 4),
        lambda x: lax.reshape(x, (4, 6), dimensions=(2, 0, 1)),
        lambda x: lax.reshape(x[0, :, :3], (3, 3), dimensions=(1, 0)),
    ],
    "squeeze": [lambda x: lax.squeeze(x[:1], (0,))],
    "broadcast_in_dim": [
        lambda x: jnp.expand_dims(x, 1),
        lambda x: lax.broadcast_in_dim(x, (5, 2, 3, 4), (1, 2, 3)),
        lambda x: jnp.full((2, 3), x[0, 0, 0]),
    ],
    "transpose": [lambda x: x.transpose(2, 0, 1)],
    "concatenate": [lambda x: jnp.concatenate([x, x + 1], 1)],
    "stack": [lambda x: jnp.stack([x, x + 1], 2)],
    "slice": [lambda x: x[:, 1:3, ::2]],
    "rev": [lambda x: lax.rev(x, (0, 2))],
    "iota": [lambda x: lax.broadcasted_iota(jnp.int32, (3, 4), 1) + x[0].astype(int)],
    "reduce_sum": [lambda x: x.sum((0, 2)), lambda x: x.sum()],
    "reduce_max": [lambda x: x.max(1), lambda x: x.max()],
    "reduce_min": [lambda x: x.min(1)],
    "reduce_and": [lambda x: (x > 0).all(1)],
    "reduce_or": [lambda x: (x > 0).any((0, 1))],
    "reduce_prod": [lambda x: (1 + x / 8).prod((0, 2))],
    "argmax": [lambda x: lax.argmax(x, 2, jnp.int32)],
    "argmin": [lambda x: lax.argmin(x, 1, jnp.int32)],
    "cumsum": [lambda x: lax.cumsum(x, 1), lambda x: lax.cumsum(x, 2, reverse=True)],
    "cumprod": [lambda x: lax.cumprod(1 + x / 8, 1)],
    "dot_general": [lambda x: x[0] @ x[1].T, lambda x: jnp.einsum("bij,bkj->bik", x, x), lambda x: x[0].T @ x[0]],
    "gather": [
        lambda x: (TABLE + x[0, 0, 0]).at[ROWS].get(mode="fill", fill_value=5.0),
        lambda x: x[0, 0][jnp.array([3, 1])],
    ],
    "scatter": [
        lambda x: (TABLE + x[0, 0, 0]).at[ROWS[1:]].set(x[0, :, :3], mode="drop"),
        lambda x: x[0, 0].at[1].set(7.0),
    ],
    "scatter-add": [lambda x: (TABLE + x[0, 0, 0]).at[ROWS].add(jnp.ones((4, 3)), mode="drop")],
    "sort": [lambda x: jnp.sort(x, 1), lambda x: lax.sort((x[0] // 2, x[0], x[1]), dimension=1, num_keys=2)],
    "split": [lambda x: lax.split(x, (1, 3), axis=2)],
}
FUSED = {"lerp", "addcmul", "addcdiv", "add_scaled"}


def test_every_operation_has_a_case() -> None:
    assert {*ELEMENTWISE, *SHAPED, *FUSED, "add_any"} == {*TORCH, *MANY}
    assert {*NUMPY} <= {*ELEMENTWISE, "add_any"}


@pytest.mark.parametrize(("name", "fn"), [(name, fn) for name, fns in SHAPED.items() for fn in fns])
def test_of_shapes(name: str, fn: Callable[[Any], Any]) -> None:
    with jax.enable_x64(True):
        wanted = jax.tree.leaves(jax.jit(fn)(X))
    lowered = traced(fn, X)
    assert name in names(lowered)
    found = functional(lowered.ops, lowered.inputs, [], lowered.outputs, {}).run([to_torch(X)], [], CPU)
    for a, b in zip(found, wanted, strict=True):
        assert_agree(to_numpy(a, b.dtype), b, ulps=1)


def _scan(x: Any, *, reverse: bool) -> Any:
    return lax.scan(lambda c, row: (c * 0.5 + row.sum(), c + row), jnp.zeros(()), x[0], reverse=reverse)


def test_control_flow() -> None:
    """Loops are written out, and both branches of a condition computed."""
    functions: list[Callable[[Any], Any]] = [
        functools.partial(_scan, reverse=False),
        functools.partial(_scan, reverse=True),
        lambda x: lax.cond(x[0, 0, 0] > 0, jnp.sin, jnp.cos, x),
        lambda x: lax.switch(x[0, 0, 1].astype(int) + 2, [jnp.sin, jnp.cos, jnp.tanh], x),
        lambda x: lax.fori_loop(0, 3, lambda i, y: y * x[0] + i, x[1]),
        lambda x: jax.nn.relu(jax.jit(jnp.sin)(x)),
    ]
    for fn in functions:
        with jax.enable_x64(True):
            wanted = jax.tree.leaves(jax.jit(fn)(X))
        lowered = traced(fn, X)
        found = functional(lowered.ops, lowered.inputs, [], lowered.outputs, {}).run([to_torch(X)], [], CPU)
        for a, b in zip(found, wanted, strict=True):
            assert_agree(to_numpy(a, b.dtype), b, ulps=1)


@pytest.mark.parametrize(
    ("fn", "text"),
    [
        (lambda x: lax.top_k(x, 2), "primitive top_k"),
        (lambda x: jnp.linalg.svd(x[0]), "primitive svd"),
        (lambda x: lax.while_loop(lambda y: y[0, 0, 0] < 9, lambda y: y + 1, x), "primitive while"),
        (lambda x: x.at[:, 1, :].set(0.0), "scatter of anything but rows"),
        (lambda x: x[0].at[jnp.array([5, 0])].set(0.0, mode="clip"), "scatter of anything but rows"),
    ],
)
def test_what_is_not_covered_is_named(fn: Callable[[Any], Any], text: str) -> None:
    def write() -> None:
        lowered = traced(fn, X)
        functional(lowered.ops, lowered.inputs, [], lowered.outputs, {})

    with pytest.raises(NotCovered, match=text):
        write()


# In place, chunk by chunk.

UNARY = [jnp.sqrt, jnp.negative, jnp.sign, jnp.abs, lambda x: x.astype(jnp.bfloat16).astype(x.dtype), jnp.square]
BINARY = [
    jnp.add,
    jnp.subtract,
    jnp.multiply,
    jnp.maximum,
    lambda x, y: jnp.where(x > y, x, y + 1),
    lambda x, y: x / (y + 3),
]


def random_program(seed: int) -> Callable[..., Any]:
    """A function of three arrays and a number that returns three arrays, among them some of the arguments."""
    random = np.random.default_rng(seed)
    steps = [(random.integers(3), *random.integers(0, 100, 3)) for _ in range(random.integers(5, 25))]
    ends = random.integers(0, 100, 3)

    def program(number: Any, *arrays: Any) -> Any:
        values = [*arrays]
        for kind, which, i, j in steps:
            x, y = values[i % len(values)], values[j % len(values)]
            if kind == 0:
                values.append(UNARY[which % len(UNARY)](x))
            else:
                values.append(BINARY[which % len(BINARY)](x, y if kind == 1 else number * y))
        return [values[-1], *(values[end % len(values)] for end in ends[1:])]

    return program


def programs() -> Iterator[Callable[..., Any]]:
    yield from map(random_program, range(60))
    yield lambda number, x, y, z: [y, x, x]  # each to another's place
    yield lambda number, x, y, z: [x + number * (y - x), z + number * x * y, z]


def test_in_place_as_out_of_place() -> None:
    """Bit by bit; without `fused`, which rounds otherwise."""
    for program in programs():
        arrays = [np.random.default_rng(9).normal(size=10).astype(np.float32) for _ in range(3)]
        lowered = traced(program, np.float32(0.5), *arrays)
        ops, outputs = without_splats(lowered.ops, lowered.outputs)
        number, *own = lowered.inputs
        whole = functional(ops, own, [number], outputs, {})
        wanted = whole.run([to_torch(x.copy()) for x in arrays], [0.5] * len(whole.numbers), CPU)
        code = chunked(ops, own, dict(enumerate(own)), outputs, [number], [])
        tensors = [to_torch(x.copy()) for x in arrays]
        scratch = [torch.empty(4, *x.rest, dtype=x.dtype) for x in code.scratch]
        parts = zip(*(x.split(4) for x in tensors), strict=True)
        code.run([(*part, *(x[: len(part[0])] for x in scratch)) for part in parts], [0.5], [], CPU)
        for a, b in zip(tensors, wanted, strict=True):
            assert torch.equal(a.nan_to_num(), b.nan_to_num()), code.source


def test_memory_between_operations_is_used_again() -> None:
    def program(x: Any) -> Any:
        for _ in range(12):
            x = jnp.sqrt(jnp.abs(x) + 1) * jnp.sign(x) - x
        return [x]

    lowered = traced(program, np.ones(8, np.float32))
    code = chunked(lowered.ops, lowered.inputs, {0: lowered.inputs[0]}, lowered.outputs, [], [])
    assert len(code.scratch) <= 3


def test_several_operations_as_one_of_torchs() -> None:
    def program(number: Any, x: Any, y: Any, z: Any) -> Any:
        return [x + number * (y - x), y + number * x * z, z + number * (x / y), x + number * z]

    arrays = [np.linspace(1, 2, 10) + i for i in range(3)]
    lowered = traced(program, np.float64(0.5), *arrays)
    number, *own = lowered.inputs
    ops = fused(lowered.ops, lowered.outputs, lambda x: x is number or not x.shape)
    assert [op.name for op in ops] == ["lerp", "addcmul", "addcdiv", "add_scaled"]
    found = functional(ops, own, [number], lowered.outputs, {}).run([*map(to_torch, arrays)], [0.5], CPU)
    for a, b in zip(found, program(0.5, *arrays), strict=True):
        np.testing.assert_allclose(a.numpy(), b, rtol=1e-15)
