"""The public names, frozen: a name that is here once stays."""

import types

import funcopt
from funcopt import schedules

TOP = """
ElementwiseTransformation EmptyState GradientTransformation GradientTransformationExtraArgs Hyperparameter Schedule
ScaleByAdamState ScheduledState TorchBridge TraceState adam adamw add_decayed_weights apply_updates chain
clip_by_global_norm clip_by_value freeze global_norm masked named_chain partition scale scale_by_adam
scale_by_learning_rate scale_by_multipliers schedules sgd torch_bridge trace
ReduceLrOnPlateauState current_hyperparams reduce_lr_on_plateau
"""


def public(module: types.ModuleType) -> set[str]:
    return {name for name in dir(module) if not name.startswith("_")}


def test_top_level() -> None:
    internal = {"Any", "TYPE_CHECKING", "importlib", "transforms"}
    assert public(funcopt) - internal == set(TOP.split())
    for name in TOP.split():
        assert getattr(funcopt, name) is not None


def test_every_public_function_says_what_it_does() -> None:
    for module in (funcopt, schedules):
        for name in public(module):
            value = getattr(module, name)
            if callable(value) and getattr(value, "__module__", "").startswith("funcopt"):
                assert value.__doc__, name
