"""Muon for hidden matrices and AdamW for all else, as one optimizer (Jordan et al., 2024: MuonWithAuxAdam).

    p   = p - lr * (k * newton_schulz(u) + weight_decay * p)               use_muon, two dimensions and more: `muon`
    p   = p - lr * (m / (1 - beta1**t) / (sqrt(v / (1 - beta2**t)) + eps) + weight_decay * p)            else: `adamw`

As in Jordan's code Newton and Schulz's iteration starts from u / (norm + 1e-7). His classes take a missing gradient for
zeros, which moves the parameter by its momentum and its decay; here it leaves the parameter alone, as torch's do.
"""

from typing import Annotated, Any, NamedTuple

import jax
import jax.numpy as jnp

from funcopt import _checks
from funcopt._tree import refuse_unless_real
from funcopt.algorithms._adam import AdamState, adam
from funcopt.algorithms._muon import MuonState, orthogonal
from funcopt.algorithms._newton_schulz import JORDAN, Adjustment, Coefficients, Iterations, Precision
from funcopt.frame import descend
from funcopt.kinds import Betas, Flag, Hyperparameter, NonNegative, number
from funcopt.rule import Keys, Rule, asked_for, asking, transformation


class MuonWithAdamwState(NamedTuple):
    step: Any  # int32 (), or a tree of them: applied updates so far
    momentum_buffer: Any  # tree like the parameters; None where AdamW updates
    exp_avg: Any  # tree like the parameters; None where Muon updates
    exp_avg_sq: Any  # tree like the parameters; None where Muon updates


@transformation(elementwise=False, refuse_param=refuse_unless_real, keys=Keys(torch_class="MuonWithAuxAdam"))
def muon_with_adamw(
    lr: Annotated[Hyperparameter, number(_checks.NON_NEGATIVE_OR_NONE)] = None,
    weight_decay: NonNegative = 0.0,
    momentum: NonNegative = 0.95,
    betas: Betas = (0.9, 0.95),
    eps: NonNegative = 1e-10,
    *,
    use_muon: Flag = True,
    nesterov: Flag = True,
    ns_coefficients: Coefficients = JORDAN,
    ns_steps: Iterations = 5,
    ns_precision: Precision = None,
    adjust_lr_fn: Adjustment = None,
    outputs_last: Flag = False,
) -> Rule:
    """Jordan's `MuonWithAuxAdam`: `muon` for hidden matrices and kernels, `adamw` for embeddings, heads and vectors.

    `funcopt.groups.muon_rules` tells hidden matrices from the rest, by name and shape.

    Args:
        lr: learning rate, >= 0; None for 0.02 where Muon updates and 3e-4 where AdamW does. One number is for both; a
            scheduler of torch's needs numbers.
        weight_decay: decoupled decay of the parameters, by `lr * weight_decay`, >= 0.
        momentum: decay rate of Muon's buffer, >= 0.
        betas: decay rates of AdamW's two moments, each in [0, 1).
        eps: added to AdamW's denominator, >= 0.
        use_muon: flag, or a prefix of flags: False for what AdamW updates. What has less than two dimensions it updates
            in any case.
        nesterov: see `muon`, as for all that follows.
        ns_coefficients: of the iteration.
        ns_steps: iterations.
        ns_precision: of the iteration.
        adjust_lr_fn: factor on the learning rate.
        outputs_last: flag: as flax has them.

    Returns:
        The optimizer; state keys `step`, and `momentum_buffer` or else `exp_avg` and `exp_avg_sq`.

    Example:
        >>> import funcopt
        >>> lrs = {"embed": 3e-3, "layers": 0.02, "head": 3e-4}
        >>> flags = {"embed": False, "layers": True, "head": False}
        >>> tx = funcopt.muon_with_adamw(lrs, use_muon=flags)
    """
    iteration = {"ns_coefficients": ns_coefficients, "ns_steps": ns_steps, "ns_precision": ns_precision}
    matrices = orthogonal(momentum, nesterov, adjust_lr_fn, outputs_last, eps=1e-7, add_eps=True, **iteration)
    muon = descend(matrices, 0.02 if lr is None else lr, weight_decay=weight_decay, decoupled=True)
    adamw = adam.rule(3e-4 if lr is None else lr, betas, eps, weight_decay, decoupled_weight_decay=True)

    def is_hidden(x: jax.Array) -> bool:
        return use_muon and x.ndim >= 2

    def init(p: jax.Array) -> MuonWithAdamwState:
        if is_hidden(p):
            return MuonWithAdamwState(0, jnp.zeros_like(p), None, None)
        return MuonWithAdamwState(0, None, jnp.zeros_like(p), jnp.zeros_like(p))

    def update(g: jax.Array, s: MuonWithAdamwState, **own: Any) -> tuple[jax.Array, MuonWithAdamwState]:
        if is_hidden(g):
            u, new = muon.update(g, MuonState(s.momentum_buffer), **own)
            return u, s._replace(momentum_buffer=new.momentum_buffer)
        u, new = adamw.update(g, AdamState(s.step, s.exp_avg, s.exp_avg_sq, None), **own)
        return u, s._replace(exp_avg=new.exp_avg, exp_avg_sq=new.exp_avg_sq)

    return Rule(asking(update, *asked_for(muon.update)), init)
