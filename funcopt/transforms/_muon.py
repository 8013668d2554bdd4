"""Muon: momentum orthogonalised by Newton and Schulz's iteration (Jordan et al., 2024), for matrices.

    buf = lerp(buf, g, 1 - momentum)
    u   = lerp(g, buf, momentum)   if nesterov else   buf
    O   = newton_schulz(u)                                                 all singular values to about 1, in bfloat16
    k   = sqrt(max(1, rows / columns))   or   0.2 * sqrt(max(rows, columns))
    p   = p - lr * (k * O + weight_decay * p)

As in torch the iteration is in bfloat16 with float32 sums, rounded where torch's matrix products round: O agrees with
torch's to bfloat16's resolution, and not to the last digit, since the order of a sum of products is the device's.
torch's momentum buffer is normalised in place by mistake where it is bfloat16 and nesterov is False; this one is not.
optax's muon iterates in the parameters' dtype and corrects the momentum's bias.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from funcopt import _checks
from funcopt._base import GradientTransformationExtraArgs, Hyperparameter, chain, leafwise, scheduled
from funcopt._numerics import filled, lerp
from funcopt._tree import complaint_unless_real
from funcopt.transforms._decay import add_decayed_weights
from funcopt.transforms._scale import scale_by_learning_rate


class ScaleByMuonState(NamedTuple):
    momentum_buffer: Any  # tree like the parameters


def newton_schulz(matrix: jax.Array, *, ns_coefficients: tuple[Any, Any, Any], eps: Any, ns_steps: int) -> jax.Array:
    """The matrix with its singular values brought to about 1, in float32 with bfloat16's digits."""
    a, b, c = ns_coefficients
    rows, columns = matrix.shape
    x = _round(matrix.T if rows > columns else matrix).astype(jnp.float32)
    x = _round(x / jnp.maximum(_round(jnp.sqrt(jnp.sum(x * x))), eps))

    def iterate(_: Any, x: jax.Array) -> jax.Array:
        gram = _round(_product(x, x.T))
        polynomial = _round(b * gram + c * _product(gram, gram))
        return _round(a * x + _product(polynomial, x))

    x = lax.fori_loop(0, ns_steps, iterate, x)
    return x.T if rows > columns else x


def _round(x: jax.Array) -> jax.Array:
    # XLA drops a cast to bfloat16 and back, which it takes for excess precision; this it keeps.
    return lax.reduce_precision(x, exponent_bits=8, mantissa_bits=7)


def _product(x: jax.Array, y: jax.Array) -> jax.Array:
    return jnp.matmul(x.astype(jnp.bfloat16), y.astype(jnp.bfloat16), preferred_element_type=jnp.float32)


def muon_rule(
    g: jax.Array,
    momentum_buffer: jax.Array,
    *,
    momentum: Any,
    nesterov: bool,
    ns_coefficients: tuple[Any, Any, Any],
    eps: Any,
    ns_steps: int,
    adjust_lr_fn: str | None,
) -> tuple[jax.Array, jax.Array]:
    """Muon's direction: the rule of the module's head, before decay and learning rate."""
    momentum_buffer = lerp(momentum_buffer, g, 1 - momentum)
    update = lerp(g, momentum_buffer, momentum) if nesterov else momentum_buffer
    update = newton_schulz(update, ns_coefficients=ns_coefficients, eps=eps, ns_steps=ns_steps)
    rows, columns = g.shape
    factor = 0.2 * max(rows, columns) ** 0.5 if adjust_lr_fn == "match_rms_adamw" else max(1.0, rows / columns) ** 0.5
    return factor * update.astype(g.dtype), momentum_buffer


def _init_muon(param: jax.Array, **hyperparams: Any) -> tuple[jax.Array]:
    del hyperparams
    return (filled(param),)


def _complaint(param: Any) -> str:
    if jnp.ndim(param) != 2:
        return f"a matrix, got shape {jnp.shape(param)}; give it another algorithm with funcopt.partition"
    return complaint_unless_real(param)


def _check_muon(
    owner: str,
    momentum: Hyperparameter,
    nesterov: Hyperparameter,
    ns_coefficients: Hyperparameter,
    eps: Hyperparameter,
    ns_steps: Hyperparameter,
    adjust_lr_fn: Hyperparameter,
) -> None:
    _checks.check_hyperparam(owner, "momentum", momentum, _checks.NON_NEGATIVE)
    _checks.check_flag(owner, "nesterov", nesterov)
    _checks.check_hyperparam(owner, "ns_coefficients", ns_coefficients, (_checks.ANY_NUMBER,) * 3)
    _checks.check_hyperparam(owner, "eps", eps, _checks.ANY_NUMBER)
    _checks.check_integer(owner, "ns_steps", ns_steps, _checks.BELOW_HUNDRED)
    _checks.check_choice(owner, "adjust_lr_fn", adjust_lr_fn, ("original", "match_rms_adamw"))


def scale_by_muon(
    momentum: Hyperparameter = 0.95,
    nesterov: Hyperparameter = True,
    ns_coefficients: Hyperparameter = (3.4445, -4.7750, 2.0315),
    eps: Hyperparameter = 1e-7,
    ns_steps: int = 5,
    adjust_lr_fn: Hyperparameter = None,
) -> GradientTransformationExtraArgs:
    """Orthogonalises updates as Muon does: the direction of `torch.optim.Muon`, without decay and learning rate.

    Args:
        momentum: decay rate of the momentum buffer, >= 0.
        nesterov: flag: look ahead by one update.
        ns_coefficients: coefficients of x, x**3 and x**5 in the iteration's polynomial.
        eps: smallest norm by which an update is divided before the iteration.
        ns_steps: iterations, an integer or a prefix of integers, < 100.
        adjust_lr_fn: name of the factor k: "original" (or None), sqrt(max(1, rows / columns)), or "match_rms_adamw",
            0.2 * sqrt(max(rows, columns)), which lets AdamW's lr and weight decay be used.

    Returns:
        The transformation, with a `ScaleByMuonState`; its `init` raises ValueError for parameters that are no real
        matrices.
    """
    owner = "scale_by_muon"
    _check_muon(owner, momentum, nesterov, ns_coefficients, eps, ns_steps, adjust_lr_fn)
    numbers = {"momentum": momentum, "ns_coefficients": ns_coefficients, "eps": eps}
    fixed = {"nesterov": nesterov, "ns_steps": ns_steps, "adjust_lr_fn": adjust_lr_fn}
    tuples = ("ns_coefficients",)

    def make(**hyperparams: Hyperparameter) -> GradientTransformationExtraArgs:
        return leafwise(
            owner,
            muon_rule,
            {**hyperparams, **fixed},
            state=ScaleByMuonState,
            init_leaf=_init_muon,
            complaint=_complaint,
            elementwise=False,
            tuples=tuples,
        )

    return scheduled(make, numbers, elementwise=False, tuples=tuples)


def muon(
    lr: Hyperparameter = 1e-3,
    weight_decay: Hyperparameter = 0.1,
    momentum: Hyperparameter = 0.95,
    nesterov: Hyperparameter = True,
    ns_coefficients: Hyperparameter = (3.4445, -4.7750, 2.0315),
    eps: Hyperparameter = 1e-7,
    ns_steps: int = 5,
    adjust_lr_fn: Hyperparameter = None,
) -> GradientTransformationExtraArgs:
    """`torch.optim.Muon`, for the matrices of hidden layers.

    Args:
        lr: learning rate, >= 0.
        weight_decay: decoupled decay of the parameters, by `lr * weight_decay`, >= 0.
        momentum: decay rate of the momentum buffer, >= 0.
        nesterov: flag: look ahead by one update.
        ns_coefficients: coefficients of x, x**3 and x**5 in the iteration's polynomial.
        eps: smallest norm by which an update is divided before the iteration.
        ns_steps: iterations, an integer or a prefix of integers, < 100.
        adjust_lr_fn: name of the factor on the learning rate: "original" (or None), sqrt(max(1, rows / columns)), or
            "match_rms_adamw", 0.2 * sqrt(max(rows, columns)), which lets AdamW's lr and weight decay be used.

    Returns:
        The optimizer; state key `momentum_buffer`. Its `init` raises ValueError for parameters that are no real
        matrices.

    Example:
        >>> import funcopt
        >>> parts = {"hidden": funcopt.muon(lr=0.02), "rest": funcopt.adamw(lr=3e-4)}
        >>> tx = funcopt.partition(parts, {"embed": "rest", "layers": "hidden", "head": "rest"})
    """
    _checks.check_hyperparam("muon", "lr", lr, _checks.NON_NEGATIVE)
    _checks.check_hyperparam("muon", "weight_decay", weight_decay, _checks.NON_NEGATIVE)
    _check_muon("muon", momentum, nesterov, ns_coefficients, eps, ns_steps, adjust_lr_fn)
    return chain(
        scale_by_muon(momentum, nesterov, ns_coefficients, eps, ns_steps, adjust_lr_fn),
        add_decayed_weights(weight_decay),
        scale_by_learning_rate(lr),
    )
