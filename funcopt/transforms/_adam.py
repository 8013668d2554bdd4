"""Adam (Kingma and Ba, 2015, algorithm 1), AMSGrad (Reddi et al., 2018) and AdamW (Loshchilov and Hutter, 2019).

    m    = lerp(m, g, 1 - beta1)
    v    = beta2 * v + (1 - beta2) * g * g
    vmax = max(vmax, v)                                             amsgrad: v^ = vmax, otherwise v^ = v
    u    = m / (1 - beta1**t) / (sqrt(v^) / sqrt(1 - beta2**t) + eps)
    p    = p - lr * u

As in torch, AMSGrad takes the maximum of the raw second moment and corrects its bias afterwards; the paper has no
correction and optax takes the maximum of the corrected one.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from funcopt import _checks
from funcopt._base import GradientTransformationExtraArgs, Hyperparameter, chain, leafwise, scheduled
from funcopt._numerics import bias_correction, lerp
from funcopt._tree import map_prefix
from funcopt.transforms._decay import add_decayed_weights
from funcopt.transforms._scale import ascend_where, scale_by_learning_rate


class ScaleByAdamState(NamedTuple):
    step: Any  # int32 (), or a tree of them: applied updates so far
    exp_avg: Any  # tree like the parameters
    exp_avg_sq: Any  # tree like the parameters
    max_exp_avg_sq: Any  # tree like the parameters; None where amsgrad is False


def adam_rule(
    g: jax.Array,
    exp_avg: jax.Array,
    exp_avg_sq: jax.Array,
    max_exp_avg_sq: jax.Array | None,
    *,
    betas: tuple[Any, Any],
    amsgrad: bool,
    correction: jax.Array,
    eps: jax.Array,
) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array | None]:
    """Adam's direction: the rule of the module's head, before the learning rate, with what `_prepare_adam` gives."""
    beta1, beta2 = betas
    exp_avg = lerp(exp_avg, g, 1 - beta1)
    exp_avg_sq = beta2 * exp_avg_sq + (1 - beta2) * g * g
    second_moment = exp_avg_sq
    if amsgrad:
        assert max_exp_avg_sq is not None
        second_moment = max_exp_avg_sq = jnp.maximum(max_exp_avg_sq, exp_avg_sq)
    return exp_avg / (jnp.sqrt(second_moment) * correction + eps), exp_avg, exp_avg_sq, max_exp_avg_sq


def _prepare_adam(*, step: jax.Array, betas: tuple[Any, Any], eps: Any, amsgrad: bool) -> dict[str, Any]:
    """Both corrections and eps meet as scalars: one multiplication and addition for each element."""
    correction1, correction2 = (bias_correction(beta, step) for beta in betas)
    return {
        "betas": betas,
        "amsgrad": amsgrad,
        "correction": correction1 / jnp.sqrt(correction2),
        "eps": correction1 * eps,
    }


def _init_adam(param: jax.Array, *, amsgrad: bool, **hyperparams: Any) -> tuple[jax.Array | None, ...]:
    del hyperparams
    zeros = lambda: jnp.zeros(param.shape, param.dtype)  # noqa: E731  # distinct buffers, so that each can be donated
    return zeros(), zeros(), zeros() if amsgrad else None


def _check_adam(owner: str, betas: Hyperparameter, eps: Hyperparameter, amsgrad: Hyperparameter) -> None:
    _checks.check_hyperparam(owner, "betas", betas, (_checks.BETA, _checks.BETA))
    _checks.check_hyperparam(owner, "eps", eps, _checks.NON_NEGATIVE)
    _checks.check_flag(owner, "amsgrad", amsgrad)


def scale_by_adam(
    betas: Hyperparameter = (0.9, 0.999), eps: Hyperparameter = 1e-8, amsgrad: Hyperparameter = False
) -> GradientTransformationExtraArgs:
    """Rescales updates as Adam does: the direction of `torch.optim.Adam`, without its learning rate.

    Args:
        betas: decay rates of the two moments, each in [0, 1).
        eps: added to the denominator after the bias correction, >= 0.
        amsgrad: flag: divide by the largest second moment seen so far.

    Returns:
        The transformation, with a `ScaleByAdamState`.
    """
    owner = "scale_by_adam"
    _check_adam(owner, betas, eps, amsgrad)

    def make(betas: Hyperparameter, eps: Hyperparameter) -> GradientTransformationExtraArgs:
        hyperparams = {"betas": betas, "eps": eps, "amsgrad": amsgrad}
        return leafwise(
            owner,
            adam_rule,
            hyperparams,
            state=ScaleByAdamState,
            init_leaf=_init_adam,
            tuples=("betas",),
            prepare=_prepare_adam,
        )

    return scheduled(make, {"betas": betas, "eps": eps}, tuples=("betas",))


def _adam(
    owner: str,
    lr: Hyperparameter,
    betas: Hyperparameter,
    eps: Hyperparameter,
    weight_decay: Hyperparameter,
    amsgrad: Hyperparameter,
    maximize: Hyperparameter,
    decoupled_weight_decay: Hyperparameter,
) -> GradientTransformationExtraArgs:
    _checks.check_hyperparam(owner, "lr", lr, _checks.NON_NEGATIVE)
    _checks.check_hyperparam(owner, "weight_decay", weight_decay, _checks.NON_NEGATIVE)
    _checks.check_flag(owner, "maximize", maximize)
    _checks.check_flag(owner, "decoupled_weight_decay", decoupled_weight_decay)
    _check_adam(owner, betas, eps, amsgrad)
    return chain(
        ascend_where(maximize),
        add_decayed_weights(weight_decay, mask=map_prefix(lambda flag: not flag, decoupled_weight_decay)),
        scale_by_adam(betas, eps, amsgrad),
        add_decayed_weights(weight_decay, mask=decoupled_weight_decay),
        scale_by_learning_rate(lr),
    )


def adam(
    lr: Hyperparameter = 1e-3,
    betas: Hyperparameter = (0.9, 0.999),
    eps: Hyperparameter = 1e-8,
    weight_decay: Hyperparameter = 0.0,
    amsgrad: Hyperparameter = False,
    *,
    maximize: Hyperparameter = False,
    decoupled_weight_decay: Hyperparameter = False,
) -> GradientTransformationExtraArgs:
    """`torch.optim.Adam`.

    Args:
        lr: learning rate, >= 0.
        betas: decay rates of the two moments, each in [0, 1).
        eps: added to the denominator, >= 0.
        weight_decay: >= 0; an L2 penalty unless `decoupled_weight_decay`.
        amsgrad: flag: divide by the largest second moment seen so far.
        maximize: flag: ascend the objective; decay still shrinks the parameters.
        decoupled_weight_decay: flag: decay the parameters directly, which makes this AdamW.

    Returns:
        The optimizer; state keys `step`, `exp_avg`, `exp_avg_sq`, and `max_exp_avg_sq` with amsgrad.

    Example:
        >>> import funcopt
        >>> tx = funcopt.chain(funcopt.add_decayed_weights(1e-4), funcopt.adam(1e-3))
    """
    return _adam("adam", lr, betas, eps, weight_decay, amsgrad, maximize, decoupled_weight_decay)


def adamw(
    lr: Hyperparameter = 1e-3,
    betas: Hyperparameter = (0.9, 0.999),
    eps: Hyperparameter = 1e-8,
    weight_decay: Hyperparameter = 1e-2,
    amsgrad: Hyperparameter = False,
    *,
    maximize: Hyperparameter = False,
) -> GradientTransformationExtraArgs:
    """`torch.optim.AdamW`: `adam` with decoupled weight decay, by default 0.01.

    The decay per update is `lr * weight_decay`, as in torch and optax; the paper's is `weight_decay` alone.

    Example:
        >>> import funcopt
        >>> tx = funcopt.adamw(lr={"backbone": 1e-4, "head": 1e-3}, weight_decay=0.05)
    """
    return _adam("adamw", lr, betas, eps, weight_decay, amsgrad, maximize, True)
