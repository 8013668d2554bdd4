"""Algorithms that precondition or project matrices.

Bases are not unique where gradients have a lower rank than a side is long: shapes are such that they are.
"""

from typing import Any

import jax
import numpy as np
import scipy.special
import specs
from harness import Row


def normal(t: int, shape: tuple[int, ...]) -> np.ndarray:
    """The random numbers that funcopt draws with seed 0, from JAX's bits."""
    key = jax.random.fold_in(jax.random.key(0, impl="threefry2x32"), t)
    places = np.asarray(jax.random.uniform(key, shape, np.float32)).astype(np.float64)
    return np.sqrt(2) * scipy.special.erfinv(2 * places - 1 + 2.0**-23)


def eigh(x: np.ndarray) -> np.ndarray:
    """Eigenvectors, those of the largest eigenvalues first."""
    return np.linalg.eigh(x)[1][:, ::-1]


def qr(x: np.ndarray) -> np.ndarray:
    return np.linalg.qr(x)[0]


def svd(x: np.ndarray, full_matrices: bool) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Singular vectors whose entry of largest size is positive."""
    u, s, vt = np.linalg.svd(x, full_matrices=full_matrices)
    of_largest = lambda x: np.sign(np.take_along_axis(x, np.abs(x).argmax(0)[None], 0))  # noqa: E731
    return u * of_largest(u), s, vt * of_largest(vt.T).T


def projection(rank: int, gap: int) -> Any:
    """APOLLO's, drawn at the first update of each period."""

    def drawn(t: int, shape: tuple[int, ...]) -> np.ndarray:
        own = (rank, shape[1]) if shape[0] >= shape[1] else (shape[0], rank)
        return normal(t - (t - 1) % gap, own) / rank**0.5

    return drawn


def general_kron(
    p: np.ndarray,
    g: np.ndarray,
    s: dict[str, Any],
    t: int,
    lr: float,
    wd: float = 0.0,
    b1: float = 0.9,
    plr: float = 0.1,
    scale: float = 1.0,
    diagonal: Any = None,
    probability: Any = None,
    from_gradient: bool = False,
) -> np.ndarray:
    """PSGD Kron of any shape; `diagonal(shape)` says which axes have a diagonal factor, which is a matrix here."""
    shape = p.shape
    if p.ndim > 2:
        merged = [(p.size // shape[-1], shape[-1]), (shape[0], p.size // shape[0])]
        shape = min(merged, key=lambda own: own[1] - own[0])
    shape = shape or (1,)
    is_diagonal = [len(shape) < 2] * len(shape) if diagonal is None else diagonal(shape)
    if t == 1:
        s.update(m=np.zeros(shape), Q=[scale ** (1 / len(shape)) * np.eye(n) for n in shape], counter=0)
    m = s["m"] = b1 * s["m"] + (1 - b1) * g.reshape(shape)
    h = m / (1 - b1**t)

    def along(x: np.ndarray, matrices: Any) -> np.ndarray:
        for axis, matrix in enumerate(matrices):
            x = np.moveaxis(np.tensordot(x, matrix, ((axis,), (1,))), -1, axis)
        return x

    s["counter"] += 1
    if s["counter"] >= 1 / (1.0 if probability is None else probability(t)):
        s["counter"] = 0
        seen, noise = g.reshape(shape) if from_gradient else h, normal(t, shape)
        seen = seen + np.sqrt(float(np.finfo(np.float32).eps)) * np.abs(seen).mean() * noise
        h = h if from_gradient else seen
        a, b = along(seen, s["Q"]), along(noise, [np.linalg.inv(q).T for q in s["Q"]])
        for axis, q in enumerate(s["Q"]):
            rows = [np.moveaxis(x, axis, 0).reshape(shape[axis], -1) for x in (a, b)]
            x, y = (own @ own.T for own in rows)
            if is_diagonal[axis]:
                x, y = np.diag(np.diag(x)), np.diag(np.diag(y))
                bound = np.abs(x + y).max()
            else:
                total = x + y
                row = total[np.argmax((total * total).sum(0))] @ total
                bound = specs.norm(total @ (row / specs.norm(row)))
            s["Q"][axis] = q - np.triu(plr * (x - y)) / bound @ q
    u = along(along(h, s["Q"]), [q.T for q in s["Q"]])
    u = (u * min(1.0, 1.1 / (specs.rms(u) + 1e-12))).reshape(p.shape)
    return p - lr * (u + (wd * p if p.ndim >= 2 else 0))


def falling(t: int) -> float:
    """kron-torch's default, 499 updates later."""
    return float(np.clip(np.exp(-0.1 * (t - 1)), 0.2, 1.0))


def merged_shampoo(p: np.ndarray, g: np.ndarray, *rest: Any, shape: Any, **options: Any) -> np.ndarray:
    """Shampoo of arrays whose axes were joined."""
    own = shape(p.shape)
    return specs.shampoo(p.reshape(own), g.reshape(own), *rest, **options).reshape(p.shape)


def blocked_shampoo(
    p: np.ndarray, g: np.ndarray, s: dict[str, Any], *rest: Any, size: int, **options: Any
) -> np.ndarray:
    """Shampoo of each block of a matrix or vector."""
    new = np.empty_like(p)
    for place in np.ndindex(*(-(-n // size) for n in p.shape)):
        block = tuple(slice(i * size, (i + 1) * size) for i in place)
        new[block] = specs.shampoo(p[block], g[block], s.setdefault(place, {}), *rest, **options)
    return new


UNIQUE = ((4, 4), (5,), (5, 5), (3,), (4, 3, 2, 2))
MATRICES = ((6, 4), (5, 5), (4, 7))

ROWS = [
    Row(
        "galore",
        specs.galore_adamw,
        {"rank": 2, "update_proj_gap": 7, "scale": 0.5},
        {"rank": 2, "gap": 7, "scale": 0.5, "svd": svd},
        wrong=(
            ("(t - 1) % gap == 0", "t == 1 or t % gap == 0"),
            ("return p - lr * wd * p", "return p - lr * wd * (p + lr * u)"),
            ('(sqrt(s["v"]) + eps)', '(sqrt(s["v"]) + eps / sqrt(1 - b2**t))'),
        ),
        shapes=((6, 4), (5,), (4, 7), (3,), (5, 5)),
    ),
    Row(
        "galore",
        specs.galore_adamw,
        {"rank": 128, "betas": (0.8, 0.95), "eps": 0.1},
        {"rank": 128, "gap": 200, "scale": 0.25, "svd": svd, "b1": 0.8, "b2": 0.95, "eps": 0.1},
        name="of more dimensions than there are",
    ),
    Row(
        "apollo",
        specs.apollo,
        {"rank": 2, "update_proj_gap": 7},
        {"B": projection(2, 7)},
        wrong=(("1.01) / 1.01", "1.02) / 1.02"), ("return p - lr * wd * p", "return p - lr * wd * (p + lr * y)")),
        shapes=MATRICES,
    ),
    Row(
        "apollo",
        specs.apollo,
        {"rank": 1, "scale": 16.0, "scale_type": "tensor", "scale_front": True, "betas": (0.8, 0.95), "eps": 0.1},
        {"B": projection(1, 200), "scale": 16.0, "kind": "tensor", "front": True, "b1": 0.8, "b2": 0.95, "eps": 0.1},
        shapes=MATRICES,
        name="mini",
    ),
    Row(
        "apollo",
        specs.apollo,
        {"rank": 3, "disable_nl": True, "scale": 4.0},
        {"B": projection(3, 200), "limit": False, "scale": 4.0},
        shapes=MATRICES,
        name="without a limit",
    ),
    Row(
        "soap",
        specs.soap,
        spec_options={"eigh": eigh, "qr": qr},
        wrong=(
            ("k % every", "t % every"),
            ('s["v"] = np.take(s["v"], order, i)', "pass"),
            ("p = p - lr * wd * p", "p = p - lr * wd * (p + lr * sqrt(1 - b2**k) / (1 - b1**k) * u)"),
            ("k = t - 1", "k = t"),
        ),
        shapes=UNIQUE,
    ),
    Row(
        "soap",
        specs.soap,
        {
            "betas": (0.9, 0.99),
            "shampoo_beta": 0.8,
            "eps": 0.1,
            "precondition_frequency": 3,
            "max_precond_dim": 4,
            "precondition_1d": True,
        },
        {"b1": 0.9, "b2": 0.99, "bs": 0.8, "eps": 0.1, "every": 3, "max_dim": 4, "eig1d": True, "eigh": eigh, "qr": qr},
        shapes=((4, 4), (2,), (5, 3), (5,), (2, 5, 3)),
        name="options",
    ),
    Row(
        "shampoo",
        merged_shampoo,
        {"betas": (0.9, 0.999), "grafting_epsilon": 1e-8, "epsilon": 1e-4},
        {"shape": lambda shape: (int(np.prod(shape)),), "eps": 1e-4},
        name="all axes joined",
    ),
    Row(
        "shampoo",
        specs.shampoo,
        {
            "betas": (0.9, 0.99),
            "grafting_beta2": 0.99,
            "grafting_epsilon": 1e-3,
            "epsilon": 1e-6,
            "max_preconditioner_dim": 7,
            "precondition_frequency": 3,
            "start_preconditioning_step": 5,
        },
        {"b2": 0.99, "g_eps": 1e-3, "eps": 1e-6, "every": 3, "start": 5},
        wrong=(
            ("(t % every == 0 and t > start) or t == start", "t % every == 0"),
            ("L / c2", "L"),
            ("2 * k", "k"),
            ("t < start", "t <= start"),
            ('s["m"] + (1 - b1) * (g - s["m"])', 'b1 * s["m"] + g'),
        ),
        shapes=((6, 4), (5,), (4, 7), (3,), (4, 3, 3)),
        name="late",
    ),
    Row(
        "shampoo",
        blocked_shampoo,
        {
            "betas": (0.9, 0.99),
            "grafting_beta2": 0.99,
            "epsilon": 1e-4,
            "grafting_epsilon": 1e-8,
            "max_preconditioner_dim": 3,
        },
        {"size": 3, "b2": 0.99, "eps": 1e-4},
        shapes=((6, 4), (5,), (4, 7), (3,), (4, 3, 2)),
        name="blocks",
    ),
    Row(
        "shampoo",
        specs.shampoo,
        {"grafting": False, "use_bias_correction": False, "epsilon": 1e-3, "max_preconditioner_dim": 7},
        {"b2": 1.0, "graft": False, "correct": False, "eps": 1e-3},
        shapes=((6, 4), (5,), (4, 7), (3,), (4, 3, 3)),
        name="sums without grafting",
    ),
    Row(
        "kron",
        specs.kron,
        spec_options={"V": normal},
        wrong=(
            ("m = m + sqrt", "_ = m + sqrt"),
            ('Ql, Qr = s["Q"]\n    u', "u"),
            ("if p.ndim >= 2 else 0", "if p.ndim >= 3 else 0"),
            ("1.1 / (rms(u)", "1.0 / (rms(u)"),
        ),
        shapes=MATRICES,
    ),
    Row(
        "kron",
        general_kron,
        {"precond_lr": 0.2, "precond_init_scale": 0.5, "b1": 0.8},
        {"plr": 0.2, "scale": 0.5, "b1": 0.8},
        shapes=((6, 4), (5,), (), (4, 3, 2, 2), (2, 5, 3)),
        name="vectors and kernels",
    ),
    Row(
        "kron",
        general_kron,
        {"memory_save_mode": "smart_one_diag", "momentum_into_precond_update": False, "max_size_triangular": 5},
        {
            "from_gradient": True,
            "diagonal": lambda shape: [len(shape) < 2 or n > 5 or n == max(shape) > min(shape) for n in shape],
        },
        name="diagonal factors",
    ),
    Row(
        "kron",
        general_kron,
        {"preconditioner_update_probability": 0.3},
        {"probability": lambda t: 0.3},
        shapes=MATRICES,
        name="at times",
    ),
]
