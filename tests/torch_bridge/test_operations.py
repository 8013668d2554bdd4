"""JAX's primitives as torch's operations, and as NumPy's on scalars: each agrees with JAX."""

import inspect
import itertools
from collections.abc import Callable, Sequence
from functools import cache, partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
import torch
from jax import lax

from funcopt.torch_bridge.engines._code import chunked, functional
from funcopt.torch_bridge.engines._lowering import (
    Lowered,
    dotted,
    fused,
    lower,
    needed,
    run_host,
    split,
    without_splats,
)
from funcopt.torch_bridge.engines._operations import MANY, NUMPY, TORCH, NotCovered, name_of
from funcopt.torch_bridge.engines._segments import NotByRows

pytestmark = pytest.mark.one_engine

CPU = torch.device("cpu")

FLOATS = "float64 float32 bfloat16"
INTS = "int64 int32 uint32"
FIELD = f"{FLOATS} {INTS} complex128"
ORDERED = f"{FLOATS} {INTS}"
WORDS = f"{INTS} uint8 bool"
ALL = f"{FIELD} uint8 bool"

VALUES: dict[str, Sequence[Any]] = {
    "f": [0.0, -0.0, 1.0, -1.0, 0.5, -0.5, 1.5, 2.5, -2.5, 0.3, -3.7, 41.0, -41.0, 1e-4, 3e9, np.inf, -np.inf, np.nan],
    "i": [0, 1, -1, 2, -2, 3, 7, -7, 12, -100, 2**31 - 1, -(2**31)],
    "u": [0, 1, 2, 3, 7, 100, 200, 255],
    "b": [False, True],
    "c": [0j, 1 + 0j, -1 + 2j, 0.5 - 0.25j, 2.5j, -3.7 - 1.25j, 0.3 + 41j],
}


def values(dtype: str, arity: int = 1) -> np.ndarray:
    """What is tried; fewer of each of many operands."""
    own = np.dtype(getattr(ml_dtypes, dtype, dtype))
    found = VALUES["f" if own.kind == "V" else own.kind]
    if dtype == "uint32":
        found = [*found, 2**31, 2**32 - 1]
    found = found[:: arity - 1] if arity > 2 else found
    return np.array(found).astype(own)


class Case(NamedTuple):
    """A function of one primitive, that treats each element alone."""

    fn: Callable[..., Any]
    arity: int = 1
    dtypes: str = "float64 float32"
    ulps: float = 0
    """How far results may be apart, in units of the dtype's precision: libraries' functions are not rounded alike."""
    least: float = 0
    """What results are at least that the precision is one of."""
    signed: bool = True
    """Whether zeros have the same sign."""
    numbers: bool = True
    """Whether some of the operands may be numbers."""


def _shifted(x: Any, *, by: int) -> Any:
    return lax.shift_right_logical(lax.shift_left(x, lax.full_like(x, 1)), lax.full_like(x, by))


ELEMENTWISE: dict[str, list[Case]] = {
    "add": [Case(lax.add, 2, FIELD)],
    "sub": [Case(lax.sub, 2, FIELD)],
    "mul": [Case(lax.mul, 2, FIELD)],
    "div": [Case(lax.div, 2, ORDERED), Case(lax.div, 2, "complex128", 2)],
    "neg": [Case(lax.neg, 1, FIELD)],
    "sqrt": [Case(lax.sqrt, 1, FLOATS, ulps=1), Case(lax.sqrt, 1, "complex128", 2)],
    "rsqrt": [Case(lax.rsqrt, 1, FLOATS, ulps=2)],
    "cbrt": [Case(lax.cbrt, ulps=8)],
    "exp": [Case(lax.exp, ulps=4), Case(lax.exp, 1, "complex128", 4)],
    "exp2": [Case(lax.exp2, ulps=16)],
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
    "sinh": [Case(lax.sinh, ulps=16)],
    "cosh": [Case(lax.cosh, ulps=16)],
    "tanh": [Case(lax.tanh, ulps=4)],
    "asinh": [Case(lax.asinh, ulps=4)],
    "acosh": [Case(lax.acosh, ulps=4)],
    "atanh": [Case(lax.atanh, ulps=4)],
    "logistic": [Case(lax.logistic, ulps=4)],
    "erf": [Case(lax.erf, ulps=4, least=1)],
    "erfc": [Case(lax.erfc, ulps=4)],
    "erf_inv": [Case(lax.erf_inv, ulps=4)],
    "lgamma": [Case(lax.lgamma, ulps=8, least=1, signed=False)],
    "digamma": [Case(lambda x: lax.digamma(abs(x) + 0.25), ulps=8, least=1)],
    "abs": [Case(lax.abs, 1, f"{FLOATS} int64 int32"), Case(lax.abs, 1, "complex128", 1)],
    "sign": [Case(lax.sign, 1, ORDERED), Case(lax.sign, 1, "complex128", 4)],
    "floor": [Case(lax.floor, 1, FLOATS)],
    "ceil": [Case(lax.ceil, 1, FLOATS)],
    "round": [
        Case(partial(lax.round, rounding_method=lax.RoundingMethod.TO_NEAREST_EVEN), 1, FLOATS),
        Case(partial(lax.round, rounding_method=lax.RoundingMethod.AWAY_FROM_ZERO), 1, FLOATS),
    ],
    "square": [Case(lax.square, 1, FIELD)],
    "integer_pow": [
        Case(partial(lax.integer_pow, y=y), 1, dtypes, ulps)
        for y, dtypes, ulps in [
            (2, FIELD, 0),
            (3, ORDERED, 2),
            (7, ORDERED, 4),
            (-1, FLOATS, 2),
            (-2, FLOATS, 2),
            (3, "complex128", 32),
        ]
    ],
    "pow": [
        Case(lax.pow, 2, FLOATS, 4, numbers=False),
        # To the number 0.5 it is torch's root, of which there is none of -inf.
        Case(lambda x, y: lax.pow(lax.abs(x), y), 2, FLOATS, 4),
        Case(lambda x: lax.pow(x, jnp.int32(3)), ulps=2),
    ],
    "rem": [Case(lax.rem, 2, ORDERED)],
    "nextafter": [Case(lax.nextafter, 2, "float64 float32")],
    "is_finite": [Case(lax.is_finite, 1, FLOATS)],
    "max": [Case(lax.max, 2, f"{ORDERED} bool", signed=False)],
    "min": [Case(lax.min, 2, f"{ORDERED} bool", signed=False)],
    "clamp": [Case(lax.clamp, 3, ORDERED, signed=False)],
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
    "shift_left": [Case(lax.shift_left, 2, f"{INTS} uint8")],
    "shift_right_logical": [
        Case(lax.shift_right_logical, 2, f"{INTS} uint8"),
        *(Case(partial(_shifted, by=by), 1, f"{INTS} uint8") for by in (0, 3, 7)),
    ],
    "shift_right_arithmetic": [Case(lax.shift_right_arithmetic, 2, "int64 int32")],
    "bitcast_convert_type": [
        Case(partial(lax.bitcast_convert_type, new_dtype=to), 1, dtypes)
        for to, dtypes in [
            ("int32", "float32 uint32"),
            ("uint32", "float32 int32"),
            ("float32", "int32 uint32"),
            ("float64", "int64"),
            ("int64", "float64"),
            ("int16", "bfloat16"),
        ]
    ],
    "select_n": [
        Case(lambda x, y, z: lax.select_n(x > 0, y, z), 3, ORDERED),
        Case(lambda x, y, z: lax.select_n((x > 0).astype(int) + (x > 1), y, z, x), 3, ORDERED),
    ],
    "convert_element_type": [
        *(Case(partial(lax.convert_element_type, new_dtype=to), 1, f"{ORDERED} uint8 bool") for to in FLOATS.split()),
        *(Case(partial(lax.convert_element_type, new_dtype=to), 1, f"{INTS} uint8 bool") for to in WORDS.split()),
        Case(partial(lax.convert_element_type, new_dtype=bool), 1, FLOATS),
        Case(partial(lax.convert_element_type, new_dtype="complex128"), 1, ALL),
    ],
    "to_integer": [
        Case(partial(lax.convert_element_type, new_dtype=to), 1, FLOATS)
        for to in ("int64", "int32", "int8", "uint32", "uint8")
    ],
    "reduce_precision": [
        Case(partial(lax.reduce_precision, exponent_bits=exponent, mantissa_bits=mantissa), 1, "float32")
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
    return torch.from_numpy(np.ascontiguousarray(x)).to(getattr(torch, name_of(x.dtype).removeprefix("torch.")))


def to_numpy(x: Any, dtype: Any) -> np.ndarray:
    if not isinstance(x, torch.Tensor):
        return np.asarray(x, dtype)
    x = x.resolve_conj()
    if dtype == ml_dtypes.bfloat16:
        assert x.dtype == torch.bfloat16
        return x.contiguous().view(torch.int16).numpy().view(dtype)
    assert str(x.dtype) == name_of(dtype)
    found = x.numpy().astype(dtype)
    assert dtype == np.uint64 or (found == x.numpy()).all() or found.dtype.kind in "fc"
    return found


def assert_agree(found: Any, expected: Any, ulps: float = 0, least: float = 0, signed: bool = True) -> None:
    """NaN agrees with NaN; what else may differ is said in `Case`."""
    expected = np.asarray(expected)
    assert found.shape == expected.shape
    assert found.dtype == expected.dtype
    if expected.dtype.kind not in "fVc":
        np.testing.assert_array_equal(found, expected)
        return
    distance = ulps * float(ml_dtypes.finfo(expected.real.dtype).eps)
    wide = np.complex128 if expected.dtype.kind == "c" else np.float64
    found, expected = found.astype(wide), expected.astype(wide)
    np.testing.assert_allclose(found, expected, distance, distance * least)
    if signed and wide == np.float64:
        is_zero = expected == 0
        np.testing.assert_array_equal(np.signbit(found[is_zero]), np.signbit(expected[is_zero]))


def traced(fn: Callable[..., Any], *arguments: Any) -> Lowered:
    with jax.enable_x64(True):
        return lower(jax.make_jaxpr(fn)(*arguments))


def names(lowered: Lowered) -> set[str]:
    return {op.name for op in lowered.ops}


@cache
def _results(cases: tuple[Case, ...]) -> dict[tuple[Case, str], tuple[Sequence[np.ndarray], np.ndarray]]:
    """One program of all, as XLA takes long to compile each."""
    grids = {
        (case, dtype): np.meshgrid(*[values(dtype, case.arity)] * case.arity, indexing="ij")
        for case in cases
        for dtype in case.dtypes.split()
    }
    with jax.enable_x64(True):
        found = jax.jit(lambda own: [case.fn(*grid) for (case, _), grid in zip([*grids], own, strict=True)])(
            list(grids.values())
        )
    return {key: (grid, np.asarray(result)) for (key, grid), result in zip(grids.items(), found, strict=True)}


def expected(name: str, case: Case, dtype: str) -> tuple[Sequence[np.ndarray], np.ndarray]:
    """Operands, all with all, and what JAX makes of them."""
    return _results(tuple(ELEMENTWISE[name]))[case, dtype]


EACH = [
    pytest.param(name, case, dtype, id=f"{name}{i or ''}-{dtype}")
    for name, cases in ELEMENTWISE.items()
    for i, case in enumerate(cases)
    for dtype in case.dtypes.split()
]


@pytest.mark.parametrize(("name", "case", "dtype"), EACH)
def test_of_arrays(name: str, case: Case, dtype: str) -> None:
    operands, result = expected(name, case, dtype)
    lowered = traced(case.fn, *operands)
    assert name in names(lowered) or (name == "convert_element_type" and result.dtype == dtype)
    code = functional(lowered.ops, lowered.inputs, [], lowered.outputs, {})
    (found,) = code.run([*map(to_torch, operands)], [], CPU)
    assert_agree(to_numpy(found, result.dtype), result, *case[3:6])


@pytest.mark.parametrize(("name", "case", "dtype"), [x for x in EACH if x.values[1].arity > 1 and x.values[1].numbers])
def test_of_arrays_and_numbers(name: str, case: Case, dtype: str) -> None:
    own, (operands, result) = values(dtype, case.arity), expected(name, case, dtype)
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
                assert_agree(to_numpy(found, result.dtype), wanted, *case[3:6])


@pytest.mark.parametrize(("name", "case", "dtype"), [x for x in EACH if x.values[0] in NUMPY])
def test_of_numbers(name: str, case: Case, dtype: str) -> None:
    operands, result = expected(name, case, dtype)
    lowered = traced(case.fn, *(x.flat[0] for x in operands))
    assert {op.name for op in lowered.ops} <= NUMPY.keys()
    columns = [x.ravel() for x in operands]
    known = run_host(lowered.ops, dict(zip(lowered.inputs, columns, strict=True)))
    assert_agree(known[lowered.outputs[0]], result.ravel(), *case[3:6])
    for i in range(0, result.size, 7):
        known = run_host(lowered.ops, {x: column[i] for x, column in zip(lowered.inputs, columns, strict=True)})
        assert_agree(known[lowered.outputs[0]], result.ravel()[i], *case[3:6])


# What is not element by element.

X = np.arange(24.0).reshape(2, 3, 4) % 7 - 3
WITH_NAN = np.where(X == 2, np.nan, np.where(X == -2, -np.inf, X))
ROWS = np.array([2, 0, 9, 2, -4, -9], np.int32)  # of a table of 4: one twice, one from behind, two that are not there
TABLE = np.arange(12.0).reshape(4, 3)


def table(x: Any) -> Any:
    return TABLE.astype(x.dtype) + x[0, 0, 0]


def square(x: Any) -> Any:
    """A symmetric matrix of full rank."""
    return x[0] @ x[0].T + np.diag([5.0, 9.0, 13.0])


SHAPED: dict[str, list[Callable[[Any], Any]]] = {
    "reshape": [
        lambda x: x.reshape(6, 4),
        lambda x: lax.reshape(x, (4, 6), dimensions=(2, 0, 1)),
        lambda x: lax.reshape(x[0, :, :3], (3, 3), dimensions=(1, 0)),
    ],
    "squeeze": [lambda x: lax.squeeze(x[:1, :, :1], (0, 2))],
    "broadcast_in_dim": [
        lambda x: jnp.expand_dims(x, (1, 3)),
        lambda x: lax.broadcast_in_dim(x, (5, 2, 3, 4), (1, 2, 3)),
        lambda x: jnp.full((2, 3), x[0, 0, 0]),
        lambda x: (x, jnp.ones((2, 3))),
    ],
    "transpose": [lambda x: x.transpose(2, 0, 1)],
    "concatenate": [lambda x: jnp.concatenate([x, x + 1], 1)],
    "stack": [lambda x: jnp.stack([x, x + 1], 2)],
    "slice": [lambda x: x[:, 1:3, ::2], lambda x: lax.slice(x, (0, 1, 1), (2, 3, 4), (1, 1, 2))],
    "rev": [lambda x: lax.rev(x, (0, 2))],
    "iota": [lambda x: lax.broadcasted_iota(jnp.int32, (3, 4), 1) + x[0].astype(int), lambda x: lax.iota(x.dtype, 5)],
    "reduce_sum": [lambda x: x.sum((0, 2)), lambda x: x.sum()],
    "reduce_max": [lambda x: x.max(1), lambda x: x.max()],
    "reduce_min": [lambda x: x.min(1), lambda x: x.min((0, 2))],
    "reduce_and": [lambda x: (x > 0).all(1)],
    "reduce_or": [lambda x: (x > 0).any((0, 1))],
    "reduce_prod": [lambda x: (1 + x / 8).prod((0, 2)), lambda x: x.prod()],
    "argmax": [lambda x: lax.argmax(x, 2, jnp.int32), lambda x: jnp.argmax(x)],
    "argmin": [lambda x: lax.argmin(x, 1, jnp.int32), lambda x: jnp.argmin(x, 0)],
    "cumsum": [lambda x: lax.cumsum(x, 1), lambda x: lax.cumsum(x, 2, reverse=True)],
    "cumprod": [lambda x: lax.cumprod(1 + x / 8, 1), lambda x: lax.cumprod(x, 0, reverse=True)],
    "dot_general": [
        lambda x: x[0] @ x[1].T,
        lambda x: (x[0].T @ x[0], x[0, 0] @ x[1, 0], x[0] @ x[0, 0]),
        lambda x: jnp.einsum("bij,bkj->bik", x, x),
        lambda x: lax.dot_general(x, x, (((0,), (0,)), ((2, 1), (2, 1)))),
        lambda x: lax.dot(x[0].astype(jnp.float32), x[1].T.astype(jnp.float32), preferred_element_type=jnp.float64),
    ],
    "gather": [
        lambda x: table(x).at[ROWS].get(mode="fill", fill_value=5),
        lambda x: table(x).at[ROWS].get(mode="fill"),
        lambda x: table(x).at[ROWS.reshape(2, 3)].get(mode="clip"),
        lambda x: x[0, 0][jnp.array([3, 1])],
        lambda x: (x[:, jnp.array([2, 0, 1])], jnp.take(x, jnp.array([[5, 1]]), axis=2), jnp.take(x, 1, axis=1)),
    ],
    "eigh": [
        lambda x: [jnp.abs(y) for y in jnp.linalg.eigh(square(x))],  # the sign of a vector is anyone's
        lambda x: jnp.abs(lax.linalg.eigh(square(x), lower=False)[0]),
        lambda x: jnp.linalg.eigvalsh(jnp.stack([square(x), jnp.eye(3)])),
    ],
    "svd": [
        lambda x: [jnp.abs(y) for y in jnp.linalg.svd(x[1, :2].astype(float), full_matrices=False)],
        lambda x: [jnp.abs(y)[:, :2] for y in jnp.linalg.svd(x[1, :2].astype(float))[::2]],
        lambda x: jnp.linalg.svd(x.astype(float), compute_uv=False),
    ],
    "qr": [lambda x: jnp.linalg.qr(square(x)), lambda x: jnp.linalg.qr(square(x)[:, :2], mode="complete")],
    "triangular_solve": [
        lambda x: [
            lax.linalg.triangular_solve(square(x), x[1].astype(float), left_side=True, lower=lower, transpose_a=turned)
            for lower in (False, True)
            for turned in (False, True)
        ],
        lambda x: lax.linalg.triangular_solve(square(x), x[1].T.astype(float), unit_diagonal=True),
        lambda x: lax.linalg.triangular_solve(
            square(x) * (2 + 1j), x[1] * (1 + 0j), left_side=True, transpose_a=True, conjugate_a=True
        ),
    ],
    "scatter": [
        lambda x: table(x).at[ROWS[1:]].set(x[0, 0, :3], mode="drop"),
        lambda x: table(x).at[1:3].set(0),
        lambda x: x[0, 0].at[1].set(7),
    ],
    "scatter-add": [
        lambda x: table(x).at[ROWS].add(x[1, 1, :3], mode="drop"),
        lambda x: x[0, 0].at[1].add(7),
    ],
    "sort": [
        lambda x: (jnp.sort(x, 1), jnp.argsort(x, 0)),
        lambda x: lax.sort((x[0] // 2, -x[0], x[1]), dimension=1, num_keys=2),
        lambda x: lax.sort((x[0] // 2, x[1]), dimension=0, num_keys=1, is_stable=True),
    ],
    "split": [lambda x: lax.split(x, (1, 3), axis=2)],
    "add_any": [lambda x: jax.vjp(lambda y: jnp.sin(y) * y, x.astype(float))[1](x.astype(float))],
}
FUSED = {"lerp", "addcmul", "addcdiv", "add_scaled", "addmm", "reduce_squares"}
"""Torch's operations for several of JAX's."""


def test_every_operation_has_a_case() -> None:
    assert {*ELEMENTWISE, *SHAPED, *FUSED, "threefry2x32", "or_nan"} == {*TORCH, *MANY}
    assert {*NUMPY} <= {*ELEMENTWISE, "add_any", "or_nan"}


def assert_same(fn: Callable[[Any], Any], *arrays: np.ndarray, ulps: float = 8) -> Lowered:
    """Sums and functions are rounded in another order."""
    with jax.enable_x64(True):
        jitted = jax.jit(fn)
        wanted = [jax.tree.leaves(jitted(x)) for x in arrays]
    lowered = traced(fn, arrays[0])
    code = functional(lowered.ops, lowered.inputs, [], lowered.outputs, {})
    for x, own in zip(arrays, wanted, strict=True):
        for a, b in zip(code.run([to_torch(x)], [], CPU), own, strict=True):
            assert_agree(to_numpy(a, b.dtype), b, ulps, least=1, signed=False)
    return lowered


@pytest.mark.parametrize("name", SHAPED)
def test_of_shapes(name: str) -> None:
    def all_of_them(x: Any) -> Any:
        return [fn(x) for fn in SHAPED[name]]

    assert name in names(assert_same(all_of_them, X, WITH_NAN))
    assert_same(all_of_them, X.astype(np.int32))


RANDOM: list[Callable[[Any], Any]] = [
    lambda key: jax.random.split(key, (2, 3)),
    lambda key: jax.random.fold_in(key, 7),
    lambda key: [jax.random.bits(key, (3, 5), dtype) for dtype in (np.uint8, np.uint16, np.uint32, np.uint64)],
    lambda key: [jax.random.uniform(key, (99,), dtype) for dtype in (np.float64, np.float32, np.float16)],
    lambda key: [jax.random.permutation(key, 20), jax.random.bernoulli(key, 0.3, (50,))],
    lambda key: jax.random.randint(key, (50,), -3, 10, np.int32),
    lambda key: [jax.random.uniform(key) for key in jax.random.split(key, 3)[1:]],
    lambda key: jax.vmap(lambda key: jax.random.uniform(key, (2,)))(jax.random.split(key, 3)),
    lambda key: lax.scan(lambda key, i: (jax.random.fold_in(key, i), jax.random.uniform(key)), key, np.arange(3)),
    lambda key: jax.random.uniform(jnp.where(jax.random.uniform(key) < 0.3, key, jax.random.key(12345678901))),
    lambda key: jnp.concatenate([jax.random.split(key), key[None]]).reshape(3, 1),
    lambda key: jax.random.uniform(jax.random.key_data(key), (3,)),  # as older programs have it
]


def of_data(fn: Callable[[Any], Any], data: Any) -> list[Any]:
    """What a function of a key gives, keys as what they are made of."""
    found = jax.tree.leaves(fn(jax.random.wrap_key_data(data)))
    return [jax.random.key_data(x) if jnp.issubdtype(x.dtype, jax.dtypes.prng_key) else x for x in found]


KEYS = [np.array([0, 3], np.uint32), np.array([2**32 - 1, 2**31 + 7], np.uint32)]


@pytest.mark.parametrize("fn", RANDOM)
def test_random_keys_give_the_same_bits(fn: Callable[[Any], Any]) -> None:
    assert "threefry2x32" in names(assert_same(partial(of_data, fn), *KEYS, ulps=0))


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_normal_numbers(dtype: Any) -> None:
    """Of the same bits, but functions are rounded otherwise."""
    assert_same(partial(of_data, lambda key: jax.random.normal(key, (999,), dtype)), *KEYS, ulps=64)


def test_random_keys_as_arguments_and_results() -> None:
    lowered = traced(lambda key: (jax.random.split(key), jax.random.key(5)), jax.random.key(3))
    found = functional(lowered.ops, lowered.inputs, [], lowered.outputs, {}).run([to_torch(KEYS[0])], [], CPU)
    split, made = (jax.random.key_data(key) for key in (jax.random.split(jax.random.key(3)), jax.random.key(5)))
    assert_agree(to_numpy(found[0], np.uint32), split)
    assert_agree(to_numpy(found[1], np.uint32), made)


def _scan(x: Any, *, reverse: bool) -> Any:
    return lax.scan(lambda c, row: (c * 0.5 + row.sum(), (c + row, row[0])), jnp.zeros(()), x[0], reverse=reverse)


_halved = jax.custom_jvp(lambda x: x / 2)
_halved.defjvp(lambda primals, tangents: (primals[0] / 2, tangents[0]))


@pytest.mark.parametrize(
    "fn",
    [
        partial(_scan, reverse=False),
        partial(_scan, reverse=True),
        lambda x: lax.cond(x[0, 0, 0] > 0, jnp.sin, jnp.cos, x),
        lambda x: lax.switch(x[0, 0, 1].astype(int) + 2, [jnp.sin, jnp.cos, jnp.tanh], x),
        lambda x: lax.switch(x[0, 0, 1].astype(int) + 9, [jnp.sin, jnp.cos, jnp.tanh], x),
        lambda x: lax.fori_loop(0, 3, lambda i, y: y * x[0] + i, x[1]),
        lambda x: jax.nn.relu(jax.jit(lambda y: jax.jit(jnp.sin)(y) + y[0])(x)),
        lambda x: _halved(jax.checkpoint(jnp.sin)(x)),
        lambda x: lax.stop_gradient(lax.optimization_barrier(x)) + np.arange(4),
    ],
)
def test_control_flow(fn: Callable[[Any], Any]) -> None:
    """Loops are written out, and both branches of a condition computed."""
    assert_same(fn, X)


@pytest.mark.parametrize(
    ("fn", "text"),
    [
        (lambda x: lax.top_k(x, 2), "primitive top_k"),
        (lambda x: jnp.linalg.cholesky(square(x)), "primitive cholesky"),
        (lambda x: lax.linalg.eigh(square(x), subset_by_index=(0, 1)), "some of the eigenvalues"),
        (lambda x: lax.linalg.svd(x[0], full_matrices=False, subset_by_index=(0, 1)), "some of the singular values"),
        (lambda x: lax.linalg.qr(x[0], pivoting=True), "qr with pivoting"),
        (lambda x: lax.while_loop(lambda y: y[0, 0, 0] < 9, lambda y: y + 1, x), "primitive while"),
        (lambda x: lax.scan(lambda c, row: (c + row, c), x[0], x[:0]), "a loop of 0"),
        (lambda x: x.at[:, 1, :].set(0.0), "scatter of anything but rows"),
        (lambda x: x[jnp.array([1, 0]), jnp.array([2, 1])], "gather along several axes"),
        (lambda x: x[0].at[jnp.array([5, 0])].set(0.0, mode="clip"), "scatter of anything but rows"),
        (lambda x: lax.reduce_precision(x, 4, 3), "reduce_precision to"),
        (lambda x: x.astype(jnp.uint64), "to_integer of uint64"),
        (lambda x: lax.iota(jnp.uint64, 3) < 2, "lt of uint64"),
        (lambda x: jax.random.gamma(jax.random.key(0), x), "random_gamma of random keys"),
        (lambda x: jax.random.uniform(jax.random.key(0, impl="rbg"), (3,)), "primitive rng_bit_generator"),
    ],
)
def test_what_is_not_covered_is_named(fn: Callable[[Any], Any], text: str) -> None:
    def write() -> None:
        lowered = traced(fn, X)
        functional(lowered.ops, lowered.inputs, [], lowered.outputs, {})

    with pytest.raises(NotCovered, match=text):
        write()


# In place, chunk by chunk.

# Functions that torch's vectors and what is left over at the end of them round alike.
UNARY: list[Callable[[Any], Any]] = [
    jnp.negative,
    jnp.sign,
    jnp.sqrt,
    jnp.square,
    lax.round,
    lambda x: 2 - x,
    lambda x: x**3,
    lambda x: x.astype(jnp.bfloat16).astype(x.dtype),
    lambda x: lax.clamp(jnp.float32(-1), x, jnp.float32(1)),
    lambda x: jnp.full_like(x, 0.25),
    lambda x: (x > 0).astype(x.dtype),
]
BINARY: list[Callable[[Any, Any], Any]] = [
    jnp.add,
    jnp.subtract,
    jnp.multiply,
    jnp.divide,
    jnp.maximum,
    lambda x, y: jnp.where(x > y, x, y + 1),
    lambda x, y: jnp.where((x < y) | ~(y == y), 0.5, x),
    lambda x, y: lax.select_n((x > 0).astype(jnp.int32) + (y > 0), x, y, x + y),
    lambda x, y: (lax.complex(x, y) * lax.complex(y, x)).real,
    lambda x, y: jnp.conj(lax.complex(x, y)).imag + abs(lax.complex(x, y)),
]


def random_program(seed: int) -> Callable[..., Any]:
    """A function of arrays and a number that returns as many arrays, some of them arguments, or one of them twice."""
    random = np.random.default_rng(seed)
    steps = random.integers(0, 1000, (random.integers(5, 31), 4))
    ends = random.integers(0, 1000, (4, 2))

    def program(number: Any, *arrays: Any) -> Any:
        values = [x.astype(jnp.float32) for x in arrays]
        for kind, which, i, j in steps:
            x, y = values[i % len(values)], values[j % len(values)]
            if kind % 3 == 0:
                values.append(UNARY[which % len(UNARY)](x))
            else:
                values.append(BINARY[which % len(BINARY)](x, y if kind % 3 == 1 else number * y))
        new = [arrays[i % len(arrays)] if kind % 3 == 0 else values[i % len(values)] for kind, i in ends[: len(arrays)]]
        return [x.astype(like.dtype) for x, like in zip(new, arrays, strict=True)]

    return program


PROGRAMS: list[Callable[..., Any]] = [
    *map(random_program, range(120)),
    lambda number, x, y: [y, x],  # each to the other's place
    lambda number, x, y, z: [y, x, x],
    lambda number, x, y, z: [x + number * (y - x), z + number * x * y, z],
]


@pytest.mark.parametrize("with_fused", [False, True])
def test_in_place_as_out_of_place(with_fused: bool) -> None:
    """Bit by bit, and whatever is left in the memory between operations."""
    for seed, program in enumerate(PROGRAMS):
        count = len(inspect.signature(program).parameters) - 1 if seed >= 120 else 2 + seed % 3
        arrays = [np.random.default_rng([seed, i]).normal(size=37).astype(np.float32) for i in range(count)]
        arrays[0][:4] = np.nan, np.inf, -np.inf, -0.0
        if seed % 4 == 3:
            arrays[-1] = arrays[-1].astype(ml_dtypes.bfloat16)
        lowered = traced(program, np.float32(0.5), *arrays)
        number, *own = lowered.inputs
        ops, outputs = without_splats(lowered.ops, lowered.outputs)
        found = split(needed(ops, outputs), outputs, [number])
        numbers = run_host(found.host, {number: np.float32(0.5)})
        ops = fused(found.ops, outputs, lambda x, numbers=numbers: x in numbers) if with_fused else found.ops
        given = [float(numbers[x]) for x in found.numbers]
        tensors = [to_torch(x.copy()) for x in arrays]
        # What is a number may be joined with others into one of torch's operations; what is a tensor is not.
        scalars = [torch.tensor(x, dtype=torch.float32) for x in given]
        if with_fused:
            wanted = functional(ops, own, found.numbers, outputs, {}).run(tensors, given, CPU)
        else:
            wanted = functional(ops, [*own, *found.numbers], [], outputs, {}).run([*tensors, *scalars], [], CPU)
        wanted = [
            torch.as_tensor(x).expand(37).to(like.dtype, copy=True) for x, like in zip(wanted, tensors, strict=True)
        ]
        code = chunked(ops, own, dict(enumerate(own)), outputs, found.numbers, [])
        scratch = [torch.full((16, *x.rest), 77, dtype=x.dtype) for x in code.scratch]
        parts = zip(*(x.split(16) for x in tensors), strict=True)
        code.run([(*part, *(x[: len(part[0])] for x in scratch)) for part in parts], given, [], CPU)
        for a, b in zip(tensors, wanted, strict=True):
            bits = [x.nan_to_num(7.0, np.inf, -np.inf).view(torch.int16) for x in (a, b)]
            assert torch.equal(*bits), code.source


# With operations that see more than an element.
MATRICES: list[Callable[[Any], Any]] = [
    jnp.transpose,
    lambda x: x + x.T,
    lambda x: x @ x.T,
    lambda x: x[::-1],
    lambda x: x.at[0].set(7.0),
    lambda x: jnp.split(x, 3)[1].repeat(3, 0),
    lambda x: x - jnp.split(x, 3, 1)[2][:, :1],
    lambda x: jnp.concatenate([2 - part for part in jnp.split(x, 3)]),
    lambda x: jnp.broadcast_to(x[0], x.shape),
    lambda x: x.reshape(4, 9).reshape(6, 6),
    lambda x: x / (1 + jnp.abs(x).max(axis=1, keepdims=True)),
    lambda x: jnp.sort(x, axis=0),
    lambda x: jnp.cumsum(x, axis=1) / 6,
    lambda x: x[jnp.argsort(x[:, 0])],
    lambda x: x.astype(jnp.bfloat16).T.astype(x.dtype),
    lambda x: jnp.linalg.qr(x)[0],
]


def random_matrix_program(seed: int) -> Callable[..., Any]:
    """As `random_program`, of square matrices."""
    random = np.random.default_rng(seed)
    steps = random.integers(0, 1000, (random.integers(5, 31), 4))
    ends = random.integers(0, 1000, 3)

    def program(number: Any, *arrays: Any) -> Any:
        values = [*arrays]
        for kind, which, i, j in steps:
            x, y = values[i % len(values)], values[j % len(values)]
            if kind % 3 == 0:
                values.append(MATRICES[which % len(MATRICES)](x))
            else:
                values.append(BINARY[which % 6](x, y if kind % 3 == 1 else number * y))
        return [values[i % len(values)] for i in ends]

    return program


def test_memory_of_operands_is_used_again() -> None:
    """Bit by bit as in memory of its own, and arguments stay what they are."""
    used = 0
    for seed in range(90):
        program = random_matrix_program(seed)
        arrays = [np.random.default_rng([seed, i]).normal(size=(6, 6)).astype(np.float32) for i in range(3)]
        lowered = traced(program, np.float32(0.5), *arrays)
        number, *own = lowered.inputs
        kept, overwritten = (
            functional(lowered.ops, own, [number], lowered.outputs, {}, in_place=in_place) for in_place in (False, True)
        )
        given = [float(run_host(kept.host, {number: np.float32(0.5)})[x]) for x in kept.numbers]
        tensors = [to_torch(x.copy()) for x in arrays]
        wanted = [torch.as_tensor(x).clone() for x in kept.run(tensors, given, CPU)]
        found = [torch.as_tensor(x) for x in overwritten.run(tensors, given, CPU)]
        for a, b in zip([*found, *tensors], [*wanted, *map(to_torch, arrays)], strict=True):
            assert torch.equal(a.nan_to_num(7.0), b.nan_to_num(7.0)), overwritten.source
        used += overwritten.source.count("out=")
    assert used > 200


def test_memory_between_operations_is_used_again() -> None:
    def program(x: Any) -> Any:
        for _ in range(12):
            x = jnp.sqrt(jnp.abs(x) + 1) * jnp.sign(x) - x
        return [x]

    lowered = traced(program, np.ones(8, np.float32))
    code = chunked(lowered.ops, lowered.inputs, {0: lowered.inputs[0]}, lowered.outputs, [], [])
    assert len(code.scratch) <= 3


def test_one_number_for_all_elements_is_not_joined_with_them() -> None:
    """In chunks nothing says how many there are."""
    for fn in (lambda x: jnp.stack([x, jnp.ones_like(x)], 1), lambda x: x + jnp.sum(jnp.full_like(x, 2.0))):
        lowered = traced(fn, np.ones(8))
        with pytest.raises(NotByRows, match="one number for all elements"):
            without_splats(lowered.ops, lowered.outputs)


def test_several_operations_as_one_of_torchs() -> None:
    def program(number: Any, x: Any, y: Any, z: Any) -> Any:
        return [x + number * (y - x), y + number * x * z, z + number * (x / y), x + number * z, x + number * (x - z)]

    arrays = [np.linspace(1, 2, 10) + i for i in range(3)]
    lowered = traced(program, np.float64(0.5), *arrays)
    number, *own = lowered.inputs
    ops = fused(lowered.ops, lowered.outputs, lambda x: x is number or not x.shape)
    assert [op.name for op in ops] == ["lerp", "addcmul", "addcdiv", "add_scaled", "lerp"]
    found = functional(ops, own, [number], lowered.outputs, {}).run([*map(to_torch, arrays)], [0.5], CPU)
    for a, b in zip(found, program(0.5, *arrays), strict=True):
        np.testing.assert_allclose(a.numpy(), b, rtol=1e-15)


def test_a_sum_of_squares_is_one_operation() -> None:
    """Of a flat array; one that is read elsewhere, too, is still there."""

    def program(x: Any, y: Any) -> Any:
        square = x * x
        return [jnp.sum(square), square, jnp.sum(y * y), jnp.sum(x * y)]

    arrays = [np.linspace(1, 2, 10), np.linspace(3, 4, 10)]
    lowered = traced(program, *arrays)
    ops = dotted(lowered.ops, lowered.outputs)
    assert [op.name for op in ops] == ["mul", "reduce_squares", "reduce_squares", "mul", "reduce_sum"]
    found = functional(ops, lowered.inputs, [], lowered.outputs, {}).run([*map(to_torch, arrays)], [], CPU)
    with jax.enable_x64(True):
        expected = program(*map(jnp.asarray, arrays))
    for a, b in zip(found, expected, strict=True):
        np.testing.assert_allclose(a.numpy(), b, rtol=1e-15)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_signs_in_chunks(dtype: Any) -> None:
    """Of the least numbers, too; and of NaN it is NaN."""
    least = np.finfo(dtype).smallest_subnormal
    x = np.array([0.0, least, -least, 1e-30, -3.0, np.inf, -np.inf, np.nan], dtype)
    lowered = traced(lambda x: [jnp.sign(x)], x)
    code = chunked(lowered.ops, lowered.inputs, {0: lowered.inputs[0]}, lowered.outputs, [], [])
    found = torch.from_numpy(x.copy())
    code.run([(found, *(torch.empty(len(x), dtype=own.dtype) for own in code.scratch))], [], [], CPU)
    np.testing.assert_array_equal(found.numpy(), np.sign(x))


def test_an_array_of_bfloat16_that_is_known() -> None:
    known = jnp.array([1.5, 2.5, -3.0], jnp.bfloat16)
    lowered = traced(lambda x: [x + known], known)
    code = functional(lowered.ops, lowered.inputs, [], lowered.outputs, {})
    (found,) = code.run([torch.tensor([1.0, 2.0, 3.0], dtype=torch.bfloat16)], [], CPU)
    assert found.tolist() == [2.5, 4.5, 0.0]
