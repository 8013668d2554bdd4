"""Muon: momentum orthogonalised by Newton and Schulz's iteration (Jordan et al., 2024), for matrices.

    buf = lerp(buf, g, 1 - momentum)
    u   = lerp(g, buf, momentum)   if nesterov else   buf
    O   = newton_schulz(u)                                                 all singular values to about 1, in bfloat16
    k   = sqrt(max(1, rows / columns))   or   0.2 * sqrt(max(rows, columns))
    p   = p - lr * (k * O + weight_decay * p)

As in torch the iteration is in bfloat16 with float32 sums, rounded where torch's matrix products round: O agrees with
torch's to bfloat16's resolution, and not to the last digit, since the order of a sum of products is the device's.
torch's momentum buffer is normalised in place by mistake where it is bfloat16 and nesterov is False; this one is not.
optax's muon iterates in the parameters' dtype and corrects the momentum's bias; its factor is that of the transposed
matrix, which `outputs_last=True` gives. Moonlight's factor is "match_rms_adamw". Jordan divides by norm + eps, torch by
max(norm, eps), and Jordan's factor of a kernel is that of its last two dimensions, height and width; here it is that of
the matrix which is orthogonalised.
"""

from typing import Any, NamedTuple

import jax

from funcopt._numerics import filled
from funcopt.algorithms._newton_schulz import (
    JORDAN,
    Adjustment,
    Coefficients,
    Iterations,
    Precision,
    adjustment,
    averaged,
    orthogonalized,
    refuse_unless_matrix,
)
from funcopt.algorithms._newton_schulz import newton_schulz as newton_schulz
from funcopt.frame import descend
from funcopt.kinds import AnyNumber, Flag, NonNegative
from funcopt.rule import Rule, direction, transformation


class MuonState(NamedTuple):
    momentum_buffer: Any  # tree like the parameters


@transformation(elementwise=False, refuse_param=refuse_unless_matrix)
def muon(
    lr: NonNegative = 1e-3,
    weight_decay: NonNegative = 0.1,
    momentum: NonNegative = 0.95,
    nesterov: Flag = True,
    ns_coefficients: Coefficients = JORDAN,
    eps: AnyNumber = 1e-7,
    ns_steps: Iterations = 5,
    adjust_lr_fn: Adjustment = None,
    *,
    ns_precision: Precision = None,
    outputs_last: Flag = False,
) -> Rule:
    """`torch.optim.Muon`, for the matrices of hidden layers, and for kernels.

    Args:
        lr: learning rate, >= 0.
        weight_decay: decoupled decay of the parameters, by `lr * weight_decay`, >= 0.
        momentum: decay rate of the momentum buffer, >= 0.
        nesterov: flag: look ahead by one update.
        ns_coefficients: coefficients of x, x**3 and x**5 in the iteration's polynomial; nine, twelve or more numbers
            give each iteration its own three, the last of them all further ones; or "polar_express" (Amsel et al.,
            2025), whose start is u / (1.02 * norm + eps), with an eps of 1e-6 there.
        eps: smallest norm by which an update is divided before the iteration.
        ns_steps: iterations, an integer or a prefix of integers, < 100.
        adjust_lr_fn: name of the factor on the learning rate: "original" (or None), sqrt(max(1, rows / columns));
            "match_rms_adamw", 0.2 * sqrt(max(rows, columns)), which lets AdamW's lr and weight decay be used; or
            "spectral_unclamped", sqrt(rows / columns), which torch has since 2.14.
        ns_precision: "bfloat16" (or None), the iteration's precision as in torch; or "full", the parameters', and
            float32 where they are narrower.
        outputs_last: flag: whether a layer's outputs, whose number is `rows`, are the last axis, as of flax's kernels,
            and not the first one, as of torch's weights. An array with more dimensions is the matrix of its outputs by
            all else.

    Returns:
        The optimizer; state key `momentum_buffer`. Its `init` raises ValueError for parameters that are not real, or
        have less than two dimensions.

    Example:
        >>> import funcopt
        >>> parts = {"hidden": funcopt.muon(lr=0.02), "rest": funcopt.adamw(lr=3e-4)}
        >>> tx = funcopt.partition(parts, {"embed": "rest", "layers": "hidden", "head": "rest"})
    """
    iteration = {"ns_coefficients": ns_coefficients, "eps": eps, "ns_steps": ns_steps, "ns_precision": ns_precision}
    rule = orthogonal(momentum, nesterov, adjust_lr_fn, outputs_last, **iteration)
    return descend(rule, lr, weight_decay=weight_decay, decoupled=True)


def orthogonal(momentum: Any, nesterov: bool, adjust_lr_fn: str | None, outputs_last: bool, **iteration: Any) -> Rule:
    """Muon's direction; `iteration` is what `newton_schulz` takes."""

    def init(p: jax.Array) -> MuonState:
        return MuonState(filled(p))

    def update(g: jax.Array, s: MuonState) -> tuple[jax.Array, MuonState]:
        u, buffer = averaged(g, s.momentum_buffer, momentum, nesterov)
        u = orthogonalized(u, outputs_last, **iteration)
        return adjustment(adjust_lr_fn, g.shape, outputs_last) * u, MuonState(buffer)

    return Rule(update, init)


scale_by_muon = direction(
    "scale_by_muon", muon, "Orthogonalises updates as `muon` does, without decay and learning rate."
)
