"""Weight decay as an added multiple of the parameter.

    update = update + weight_decay * param

In front of an algorithm this is the L2 penalty's gradient; behind it, in front of the learning rate, it is decoupled
weight decay (Loshchilov and Hutter, 2019).
"""

from funcopt.frame import decay_rows, decayed, is_zero
from funcopt.kinds import Flag, NonNegative
from funcopt.rule import Rule, transformation


@transformation()
def add_decayed_weights(weight_decay: NonNegative = 0.0, mask: Flag = True) -> Rule:
    """Adds `weight_decay` times the parameter to the update.

    Args:
        weight_decay: >= 0.
        mask: boolean, or prefix of booleans: where to decay. A function of the parameters goes through
            `funcopt.masked` instead.

    Returns:
        The transformation; its update needs the parameters, unless the decay is a plain 0.

    Example:
        >>> import funcopt
        >>> tx = funcopt.chain(funcopt.add_decayed_weights({"w": 1e-4, "b": 0.0}), funcopt.adam(1e-3))
    """
    rate = weight_decay if mask else 0.0
    if is_zero(rate):
        return Rule(lambda u: u, rows="rows")
    return Rule(lambda u, *, param: decayed(u, param, rate), rows=decay_rows(rate))
