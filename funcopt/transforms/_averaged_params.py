"""Reading the average of the parameters from the state of whatever keeps one."""

import jax

from funcopt.algorithms._asgd import AsgdState
from funcopt.rule import PyTree
from funcopt.transforms._params_ema import ParamsEmaState


def averaged_params(state: PyTree) -> PyTree:
    """The average of the parameters that `asgd` or `params_ema` keeps, for evaluation.

    Args:
        state: state of one of them, or of anything that contains it once, such as a chain.

    Returns:
        Tree like the parameters; the parameters themselves until averaging starts.

    Raises:
        ValueError: if there is no such state, or several.
    """
    found = [node for node in jax.tree.leaves(state, is_leaf=_keeps_average) if _keeps_average(node)]
    if len(found) != 1:
        raise ValueError(
            f"averaged_params: state must contain the state of one funcopt.asgd or funcopt.params_ema, got {len(found)}"
        )
    return found[0].ax if isinstance(found[0], AsgdState) else found[0].ema


def _keeps_average(node: object) -> bool:
    return isinstance(node, AsgdState | ParamsEmaState)
