"""The public names, frozen: a name that is here once stays."""

import ast
import types
from pathlib import Path

import funcopt
from funcopt import schedules

TOP = """
AdabeliefState AdadeltaState AdafactorBvState AdafactorHfState AdafactorState AdagradState AdamMiniState AdamState
AdamaxState AdampState AdanState AdemamixState AdoptState Algorithm ApolloState AsgdState CameState Comparison
DadaptAdamState DionState ElementwiseTransformation EmptyState FtrlState GaloreState GradientTransformation
GradientTransformationExtraArgs GramsState Hyperparameter KahanSumState KronState LambState LapropState LbfgsState
LionState LookaheadState MarsAdamwState MarsState Memory MetricsState MuonState MuonWithAdamwState NadamState
NormuonState NovogradState ParamsEmaState ParamsSwaState ProdigyState RadamState ReduceLrOnPlateauState RmspropState
RowSparse RpropState ScaleByAdamState Schedule ScheduleFreeState ScheduledState ScionState SecondMomentState SgdpState
ShampooState SignumState SoapState SophiaGState SparseAdamState StableAdamwState StochasticRoundingState TorchBridge
TraceState YogiState adabelief adadelta adafactor adafactor_bv adafactor_hf adagrad adam adam_mini adamax adamp adamw
adan add_decayed_weights ademamix adopt algorithms apollo apply_updates asgd averaged_params came cautious chain
clip_by_global_norm clip_by_value compare config current_hyperparams dadapt_adam dion eval_params frame freeze
from_optax_state ftrl galore global_norm grams groups join_small_leaves kahan_sum kinds kron lamb laprop lars lbfgs lion
lookahead lookahead_sync mars mars_adamw masked memory metrics muon muon_with_adamw nadam named_chain normuon novograd
params_ema params_swa partition plot prodigy radam reduce_lr_on_plateau rmsprop rprop rule sam scale scale_by_adabelief
scale_by_adadelta scale_by_adagrad scale_by_adam scale_by_adam_mini scale_by_adamax scale_by_adan scale_by_ademamix
scale_by_adopt scale_by_apollo scale_by_came scale_by_dion scale_by_galore scale_by_grams scale_by_kron
scale_by_learning_rate scale_by_lion scale_by_multipliers scale_by_muon scale_by_nadam scale_by_normuon scale_by_radam
scale_by_rmsprop scale_by_scion scale_by_shampoo scale_by_signum scale_by_soap scale_by_sophia_g scale_by_sparse_adam
scale_by_yogi schedule_free schedule_free_adamw schedule_free_radam schedule_free_sgd schedules scion sgd sgdp shampoo
show_config signum soap sophia_g sparse_adam stable_adamw step stochastic_rounding tiger to_optax_state tools
torch_bridge trace train_params update_hessian with_metrics with_step_per_leaf yogi
"""


def public(module: types.ModuleType) -> set[str]:
    return {name for name in dir(module) if not name.startswith("_")}


def test_top_level() -> None:
    # `integrations` is there once anything has imported it.
    internal = {"Any", "TYPE_CHECKING", "importlib", "integrations", "interop_optax", "transforms"}
    assert public(funcopt) - internal == set(TOP.split())
    for name in TOP.split():
        assert getattr(funcopt, name) is not None


def test_every_public_function_says_what_it_does() -> None:
    for module in (funcopt, schedules):
        for name in public(module):
            value = getattr(module, name)
            if callable(value) and getattr(value, "__module__", "").startswith("funcopt"):
                assert value.__doc__, name


# Modules that import what they are named after, so they are read and not imported.
INTEGRATIONS = {"mmengine": {"ScheduledParam", "register"}, "timm": {"register"}}


def test_integrations() -> None:
    folder = Path(funcopt.__file__).parent / "integrations"
    assert {path.stem for path in folder.glob("[!_]*.py")} == {*INTEGRATIONS}
    for module, names in INTEGRATIONS.items():
        tree = ast.parse((folder / f"{module}.py").read_text())
        defined = {node.name: node for node in tree.body if isinstance(node, ast.FunctionDef | ast.ClassDef)}
        assert {name for name in defined if not name.startswith("_")} == names
        assert all(ast.get_docstring(defined[name]) for name in names)
