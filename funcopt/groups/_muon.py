"""Hidden matrices and the rest, as `funcopt.muon_with_adamw` and Jordan's own training code divide them."""

from funcopt.groups._params import Param
from funcopt.groups._rule import Rule

_NOT_HIDDEN = frozenset({"embedding", "head", "bias", "norm"})


def muon_rules(*, adamw_lr_mult: float = 0.015) -> list[Rule]:
    """Muon for hidden matrices and kernels; AdamW for embeddings, heads, norms, biases, and vectors and scalars.

    What is an embedding or a head is told by layer or name (`funcopt.groups.KINDS`); a later rule may say otherwise:
    `Rule(path="stem", use_muon=False)`. Outputs are taken to be last in flax's kernels and in transformers' `Conv1D`.

    Args:
        adamw_lr_mult: AdamW's learning rate as a multiple of Muon's, >= 0: Jordan's are 3e-4 and 0.02.

    Returns:
        The rules, for `muon_with_adamw`.

    Example:
        >>> import jax.numpy as jnp
        >>> from funcopt.groups import group_params
        >>> params = {"embed": jnp.ones((8, 4)), "mlp": {"kernel": jnp.ones((4, 4)), "bias": jnp.ones(4)}}
        >>> groups = group_params(params, muon_rules(), "muon_with_adamw")
        >>> groups.hyperparams(lr=0.02)["use_muon"]
        {'embed': False, 'mlp': {'bias': False, 'kernel': True}}
        >>> tx = groups.optimizer(lr=0.02, weight_decay=0.01)
    """

    def is_hidden(param: Param) -> bool:
        return param.ndim >= 2 and param.kinds.isdisjoint(_NOT_HIDDEN)

    def has_outputs_last(param: Param) -> bool:
        return is_hidden(param) and (param.leaf == "kernel" or param.is_in("Conv1D"))

    return [
        Rule(where=lambda p: not is_hidden(p), use_muon=False, lr_mult=adamw_lr_mult, name="not hidden"),
        Rule(where=has_outputs_last, outputs_last=True, name="outputs last"),
    ]
