"""The public names, frozen: a name that is here once stays."""

import types

import funcopt
from funcopt import schedules

TOP = """
AdadeltaState AdafactorState AdagradState AdamState AdamaxState Algorithm AsgdState ElementwiseTransformation
EmptyState GradientTransformation GradientTransformationExtraArgs Hyperparameter LbfgsState MuonState NadamState
ParamsEmaState RadamState ReduceLrOnPlateauState RmspropState RowSparse RpropState ScaleByAdamState Schedule
ScheduledState SparseAdamState TorchBridge TraceState adadelta adafactor adagrad adam adamax adamw add_decayed_weights
algorithms apply_updates asgd averaged_params chain clip_by_global_norm clip_by_value config current_hyperparams frame
freeze from_optax_state global_norm groups join_small_leaves kinds lbfgs masked muon nadam named_chain params_ema
partition radam reduce_lr_on_plateau rmsprop rprop rule scale scale_by_adadelta scale_by_adagrad scale_by_adam
scale_by_adamax scale_by_learning_rate scale_by_multipliers scale_by_muon scale_by_nadam scale_by_radam
scale_by_rmsprop scale_by_sparse_adam schedules sgd sparse_adam step to_optax_state torch_bridge trace
with_step_per_leaf
"""


def public(module: types.ModuleType) -> set[str]:
    return {name for name in dir(module) if not name.startswith("_")}


def test_top_level() -> None:
    internal = {"Any", "TYPE_CHECKING", "importlib", "interop_optax", "transforms"}
    assert public(funcopt) - internal == set(TOP.split())
    for name in TOP.split():
        assert getattr(funcopt, name) is not None


def test_every_public_function_says_what_it_does() -> None:
    for module in (funcopt, schedules):
        for name in public(module):
            value = getattr(module, name)
            if callable(value) and getattr(value, "__module__", "").startswith("funcopt"):
                assert value.__doc__, name
