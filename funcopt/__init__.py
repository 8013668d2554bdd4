"""funcopt: one optimizer definition for JAX and PyTorch.

Structure from optax, vocabulary and numerics from torch. Importing funcopt imports no torch; `funcopt.TorchBridge`
loads it on first use.
"""

import importlib
from typing import TYPE_CHECKING, Any

from funcopt import config as config
from funcopt import groups as groups
from funcopt import kinds as kinds
from funcopt import rule as rule
from funcopt import schedules as schedules
from funcopt._catalogue import Algorithm as Algorithm
from funcopt._inspect import current_hyperparams as current_hyperparams
from funcopt._memory import Memory as Memory
from funcopt._memory import memory as memory
from funcopt._rows import RowSparse as RowSparse
from funcopt._tree import with_step_per_leaf as with_step_per_leaf
from funcopt.algorithms import AdabeliefState as AdabeliefState
from funcopt.algorithms import AdadeltaState as AdadeltaState
from funcopt.algorithms import AdafactorBvState as AdafactorBvState
from funcopt.algorithms import AdafactorHfState as AdafactorHfState
from funcopt.algorithms import AdafactorState as AdafactorState
from funcopt.algorithms import AdagradState as AdagradState
from funcopt.algorithms import AdamaxState as AdamaxState
from funcopt.algorithms import AdamMiniState as AdamMiniState
from funcopt.algorithms import AdampState as AdampState
from funcopt.algorithms import AdamState as AdamState
from funcopt.algorithms import AdanState as AdanState
from funcopt.algorithms import AdemamixState as AdemamixState
from funcopt.algorithms import AdoptState as AdoptState
from funcopt.algorithms import ApolloState as ApolloState
from funcopt.algorithms import AsgdState as AsgdState
from funcopt.algorithms import CameState as CameState
from funcopt.algorithms import DadaptAdamState as DadaptAdamState
from funcopt.algorithms import DionState as DionState
from funcopt.algorithms import FtrlState as FtrlState
from funcopt.algorithms import GaloreState as GaloreState
from funcopt.algorithms import GramsState as GramsState
from funcopt.algorithms import KronState as KronState
from funcopt.algorithms import LambState as LambState
from funcopt.algorithms import LapropState as LapropState
from funcopt.algorithms import LbfgsState as LbfgsState
from funcopt.algorithms import LionState as LionState
from funcopt.algorithms import MarsAdamwState as MarsAdamwState
from funcopt.algorithms import MuonState as MuonState
from funcopt.algorithms import MuonWithAdamwState as MuonWithAdamwState
from funcopt.algorithms import NadamState as NadamState
from funcopt.algorithms import NormuonState as NormuonState
from funcopt.algorithms import NovogradState as NovogradState
from funcopt.algorithms import ProdigyState as ProdigyState
from funcopt.algorithms import RadamState as RadamState
from funcopt.algorithms import RmspropState as RmspropState
from funcopt.algorithms import RpropState as RpropState
from funcopt.algorithms import ScheduleFreeState as ScheduleFreeState
from funcopt.algorithms import ScionState as ScionState
from funcopt.algorithms import SecondMomentState as SecondMomentState
from funcopt.algorithms import SgdpState as SgdpState
from funcopt.algorithms import ShampooState as ShampooState
from funcopt.algorithms import SignumState as SignumState
from funcopt.algorithms import SoapState as SoapState
from funcopt.algorithms import SophiaGState as SophiaGState
from funcopt.algorithms import SparseAdamState as SparseAdamState
from funcopt.algorithms import StableAdamwState as StableAdamwState
from funcopt.algorithms import TraceState as TraceState
from funcopt.algorithms import YogiState as YogiState
from funcopt.algorithms import adabelief as adabelief
from funcopt.algorithms import adadelta as adadelta
from funcopt.algorithms import adafactor as adafactor
from funcopt.algorithms import adafactor_bv as adafactor_bv
from funcopt.algorithms import adafactor_hf as adafactor_hf
from funcopt.algorithms import adagrad as adagrad
from funcopt.algorithms import adam as adam
from funcopt.algorithms import adam_mini as adam_mini
from funcopt.algorithms import adamax as adamax
from funcopt.algorithms import adamp as adamp
from funcopt.algorithms import adamw as adamw
from funcopt.algorithms import adan as adan
from funcopt.algorithms import ademamix as ademamix
from funcopt.algorithms import adopt as adopt
from funcopt.algorithms import apollo as apollo
from funcopt.algorithms import asgd as asgd
from funcopt.algorithms import came as came
from funcopt.algorithms import dadapt_adam as dadapt_adam
from funcopt.algorithms import dion as dion
from funcopt.algorithms import ftrl as ftrl
from funcopt.algorithms import galore as galore
from funcopt.algorithms import grams as grams
from funcopt.algorithms import kron as kron
from funcopt.algorithms import lamb as lamb
from funcopt.algorithms import laprop as laprop
from funcopt.algorithms import lars as lars
from funcopt.algorithms import lbfgs as lbfgs
from funcopt.algorithms import lion as lion
from funcopt.algorithms import mars_adamw as mars_adamw
from funcopt.algorithms import muon as muon
from funcopt.algorithms import muon_with_adamw as muon_with_adamw
from funcopt.algorithms import nadam as nadam
from funcopt.algorithms import normuon as normuon
from funcopt.algorithms import novograd as novograd
from funcopt.algorithms import prodigy as prodigy
from funcopt.algorithms import radam as radam
from funcopt.algorithms import rmsprop as rmsprop
from funcopt.algorithms import rprop as rprop
from funcopt.algorithms import scale_by_adabelief as scale_by_adabelief
from funcopt.algorithms import scale_by_adadelta as scale_by_adadelta
from funcopt.algorithms import scale_by_adagrad as scale_by_adagrad
from funcopt.algorithms import scale_by_adam as scale_by_adam
from funcopt.algorithms import scale_by_adam_mini as scale_by_adam_mini
from funcopt.algorithms import scale_by_adamax as scale_by_adamax
from funcopt.algorithms import scale_by_adan as scale_by_adan
from funcopt.algorithms import scale_by_ademamix as scale_by_ademamix
from funcopt.algorithms import scale_by_adopt as scale_by_adopt
from funcopt.algorithms import scale_by_apollo as scale_by_apollo
from funcopt.algorithms import scale_by_came as scale_by_came
from funcopt.algorithms import scale_by_dion as scale_by_dion
from funcopt.algorithms import scale_by_galore as scale_by_galore
from funcopt.algorithms import scale_by_grams as scale_by_grams
from funcopt.algorithms import scale_by_kron as scale_by_kron
from funcopt.algorithms import scale_by_lion as scale_by_lion
from funcopt.algorithms import scale_by_muon as scale_by_muon
from funcopt.algorithms import scale_by_nadam as scale_by_nadam
from funcopt.algorithms import scale_by_normuon as scale_by_normuon
from funcopt.algorithms import scale_by_radam as scale_by_radam
from funcopt.algorithms import scale_by_rmsprop as scale_by_rmsprop
from funcopt.algorithms import scale_by_scion as scale_by_scion
from funcopt.algorithms import scale_by_shampoo as scale_by_shampoo
from funcopt.algorithms import scale_by_signum as scale_by_signum
from funcopt.algorithms import scale_by_soap as scale_by_soap
from funcopt.algorithms import scale_by_sophia_g as scale_by_sophia_g
from funcopt.algorithms import scale_by_sparse_adam as scale_by_sparse_adam
from funcopt.algorithms import scale_by_yogi as scale_by_yogi
from funcopt.algorithms import schedule_free as schedule_free
from funcopt.algorithms import schedule_free_adamw as schedule_free_adamw
from funcopt.algorithms import schedule_free_radam as schedule_free_radam
from funcopt.algorithms import schedule_free_sgd as schedule_free_sgd
from funcopt.algorithms import scion as scion
from funcopt.algorithms import sgd as sgd
from funcopt.algorithms import sgdp as sgdp
from funcopt.algorithms import shampoo as shampoo
from funcopt.algorithms import signum as signum
from funcopt.algorithms import soap as soap
from funcopt.algorithms import sophia_g as sophia_g
from funcopt.algorithms import sparse_adam as sparse_adam
from funcopt.algorithms import stable_adamw as stable_adamw
from funcopt.algorithms import tiger as tiger
from funcopt.algorithms import trace as trace
from funcopt.algorithms import update_hessian as update_hessian
from funcopt.algorithms import yogi as yogi
from funcopt.interop_optax import from_optax_state as from_optax_state
from funcopt.interop_optax import to_optax_state as to_optax_state
from funcopt.kinds import Hyperparameter as Hyperparameter
from funcopt.kinds import Schedule as Schedule
from funcopt.rule import ElementwiseTransformation as ElementwiseTransformation
from funcopt.rule import EmptyState as EmptyState
from funcopt.rule import GradientTransformation as GradientTransformation
from funcopt.rule import GradientTransformationExtraArgs as GradientTransformationExtraArgs
from funcopt.rule import ScheduledState as ScheduledState
from funcopt.rule import apply_updates as apply_updates
from funcopt.rule import chain as chain
from funcopt.rule import named_chain as named_chain
from funcopt.rule import step as step
from funcopt.tools import Comparison as Comparison
from funcopt.tools import compare as compare
from funcopt.tools import show_config as show_config
from funcopt.transforms import KahanSumState as KahanSumState
from funcopt.transforms import LookaheadState as LookaheadState
from funcopt.transforms import MarsState as MarsState
from funcopt.transforms import MetricsState as MetricsState
from funcopt.transforms import ParamsEmaState as ParamsEmaState
from funcopt.transforms import ParamsSwaState as ParamsSwaState
from funcopt.transforms import ReduceLrOnPlateauState as ReduceLrOnPlateauState
from funcopt.transforms import StochasticRoundingState as StochasticRoundingState
from funcopt.transforms import add_decayed_weights as add_decayed_weights
from funcopt.transforms import averaged_params as averaged_params
from funcopt.transforms import cautious as cautious
from funcopt.transforms import clip_by_global_norm as clip_by_global_norm
from funcopt.transforms import clip_by_value as clip_by_value
from funcopt.transforms import eval_params as eval_params
from funcopt.transforms import freeze as freeze
from funcopt.transforms import global_norm as global_norm
from funcopt.transforms import join_small_leaves as join_small_leaves
from funcopt.transforms import kahan_sum as kahan_sum
from funcopt.transforms import lookahead as lookahead
from funcopt.transforms import lookahead_sync as lookahead_sync
from funcopt.transforms import mars as mars
from funcopt.transforms import masked as masked
from funcopt.transforms import metrics as metrics
from funcopt.transforms import params_ema as params_ema
from funcopt.transforms import params_swa as params_swa
from funcopt.transforms import partition as partition
from funcopt.transforms import reduce_lr_on_plateau as reduce_lr_on_plateau
from funcopt.transforms import sam as sam
from funcopt.transforms import scale as scale
from funcopt.transforms import scale_by_learning_rate as scale_by_learning_rate
from funcopt.transforms import scale_by_multipliers as scale_by_multipliers
from funcopt.transforms import stochastic_rounding as stochastic_rounding
from funcopt.transforms import train_params as train_params
from funcopt.transforms import with_metrics as with_metrics

if TYPE_CHECKING:
    from funcopt.torch_bridge import TorchBridge as TorchBridge

# Last, and in place of the package of that name, out of which everything is here already.
from funcopt._catalogue import algorithms as algorithms  # isort: skip

ScaleByAdamState = AdamState  # what it was called before 0.2

__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    if name == "TorchBridge":
        return importlib.import_module("funcopt.torch_bridge").TorchBridge
    if name in ("plot", "torch_bridge"):
        return importlib.import_module(f"funcopt.{name}")
    raise AttributeError(f"module 'funcopt' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), "TorchBridge", "plot", "torch_bridge"])
