"""Scion: steps of a fixed size in a norm that is chosen for each layer (Pethick et al., 2025, algorithms 1 and 2).

    m = lerp(m, g, momentum)                                               momentum: the weight of the new gradient
    O = newton_schulz(m) * sqrt(outputs / inputs)                          "Spectral"; a kernel's is divided by its size
    O = sign(m) / inputs                                                   "Sign"
    O = m / (sqrt(mean(m^2)) + 1e-8)                                       "BiasRMS"
    p = p - lr * (scale * O + p)                                           without the last p where unconstrained

"Auto" is BiasRMS for vectors and scalars and Spectral for all else. The constrained form decays by `lr` itself and
keeps a layer within `scale` in its norm, in which it should start: the authors' `init` is not part of this, nor are
their norms of rows and columns. pytorch_optimizer's SCION is unconstrained by default.
"""

import math
from typing import Annotated, Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp

from funcopt._numerics import lerp, root
from funcopt._tree import is_static, refuse_unless_real
from funcopt.algorithms._newton_schulz import (
    JORDAN,
    Coefficients,
    Iterations,
    Precision,
    orthogonalized,
)
from funcopt.frame import descend
from funcopt.kinds import Flag, Hyperparameter, NonNegative, Unit, choice
from funcopt.rule import Keys, Rule, direction, transformation

Norm: TypeAlias = Annotated[Hyperparameter, choice("Auto", "Spectral", "SpectralConv", "Sign", "BiasRMS")]


class ScionState(NamedTuple):
    momentum_buffer: Any  # tree like the parameters; None where momentum is 1


@transformation(elementwise=False, refuse_param=refuse_unless_real, keys=Keys(torch_class="Scion"))
def scion(
    lr: NonNegative = 1e-3,
    momentum: Unit = 1.0,
    norm: Norm = None,
    scale: NonNegative = 1.0,
    unconstrained: Flag = False,
    *,
    ns_coefficients: Coefficients = JORDAN,
    ns_steps: Iterations = 5,
    ns_precision: Precision = None,
    outputs_last: Flag = False,
) -> Rule:
    """The authors' `Scion`: a norm for each layer, by its shape or by name.

    Args:
        lr: learning rate, >= 0; also the decay where it is constrained.
        momentum: weight of the new gradient, in [0, 1]; 1 keeps no buffer.
        norm: "Auto" (or None) by shape; "Spectral" for hidden matrices and kernels ("SpectralConv" is the same);
            "Sign" for an input or output layer; "BiasRMS" for vectors.
        scale: radius, >= 0: the authors' recipes have 50 for hidden layers and 3000 for the output layer.
        unconstrained: flag: no decay.
        ns_coefficients: of the iteration, see `muon`, as for all that follows.
        ns_steps: iterations.
        ns_precision: of the iteration.
        outputs_last: flag: as flax has them.

    Returns:
        The optimizer; state key `momentum_buffer` unless momentum is 1.

    Example:
        >>> import funcopt
        >>> norms, scales = {"layers": "Auto", "head": "Sign"}, {"layers": 50.0, "head": 3000.0}
        >>> tx = funcopt.scion(lr=2**-12, momentum=0.1, norm=norms, scale=scales)
    """
    iteration = {"ns_coefficients": ns_coefficients, "ns_steps": ns_steps, "ns_precision": ns_precision}
    plain = is_static(momentum) and momentum == 1

    def init(p: jax.Array) -> ScionState:
        return ScionState(None if plain else jnp.zeros_like(p))

    def update(g: jax.Array, s: ScionState) -> tuple[jax.Array, ScionState]:
        m = g if plain else lerp(s.momentum_buffer, g, momentum)
        return scale * steepest(m), ScionState(None if plain else m)

    def steepest(m: jax.Array) -> jax.Array:
        """Of the arrays whose norm is 1, the one that the momentum is most along."""
        if norm == "BiasRMS" or (norm in (None, "Auto") and m.ndim < 2):
            return m / (root(jnp.mean(m * m, axis=0 if m.ndim else None, keepdims=True)) + 1e-8)
        # A layer's inputs are the axis beside its outputs; what axes a kernel has besides are its size.
        outputs, inputs, *size = (*(m.shape[::-1] if outputs_last else m.shape), 1, 1)[: max(2, m.ndim)]
        if norm == "Sign":
            return jnp.sign(m) / math.prod([inputs, *size])
        factor = (outputs / inputs) ** 0.5 / math.prod(size)
        matrix = m if m.ndim > 1 else m.reshape(outputs, 1)
        u = orthogonalized(matrix, outputs_last and m.ndim > 1, eps=1e-7, add_eps=True, **iteration)
        return factor * u.reshape(m.shape)

    return descend(Rule(update, init), lr, weight_decay=0.0 if unconstrained else 1.0, decoupled=True)


scale_by_scion = direction("scale_by_scion", scion, "`scion`'s steps, without decay and learning rate.")
