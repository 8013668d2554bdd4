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
from funcopt._rows import RowSparse as RowSparse
from funcopt._tree import with_step_per_leaf as with_step_per_leaf
from funcopt.algorithms import AdadeltaState as AdadeltaState
from funcopt.algorithms import AdafactorState as AdafactorState
from funcopt.algorithms import AdagradState as AdagradState
from funcopt.algorithms import AdamaxState as AdamaxState
from funcopt.algorithms import AdamState as AdamState
from funcopt.algorithms import AsgdState as AsgdState
from funcopt.algorithms import LbfgsState as LbfgsState
from funcopt.algorithms import MuonState as MuonState
from funcopt.algorithms import NadamState as NadamState
from funcopt.algorithms import RadamState as RadamState
from funcopt.algorithms import RmspropState as RmspropState
from funcopt.algorithms import RpropState as RpropState
from funcopt.algorithms import SparseAdamState as SparseAdamState
from funcopt.algorithms import TraceState as TraceState
from funcopt.algorithms import adadelta as adadelta
from funcopt.algorithms import adafactor as adafactor
from funcopt.algorithms import adagrad as adagrad
from funcopt.algorithms import adam as adam
from funcopt.algorithms import adamax as adamax
from funcopt.algorithms import adamw as adamw
from funcopt.algorithms import asgd as asgd
from funcopt.algorithms import lbfgs as lbfgs
from funcopt.algorithms import muon as muon
from funcopt.algorithms import nadam as nadam
from funcopt.algorithms import radam as radam
from funcopt.algorithms import rmsprop as rmsprop
from funcopt.algorithms import rprop as rprop
from funcopt.algorithms import scale_by_adadelta as scale_by_adadelta
from funcopt.algorithms import scale_by_adagrad as scale_by_adagrad
from funcopt.algorithms import scale_by_adam as scale_by_adam
from funcopt.algorithms import scale_by_adamax as scale_by_adamax
from funcopt.algorithms import scale_by_muon as scale_by_muon
from funcopt.algorithms import scale_by_nadam as scale_by_nadam
from funcopt.algorithms import scale_by_radam as scale_by_radam
from funcopt.algorithms import scale_by_rmsprop as scale_by_rmsprop
from funcopt.algorithms import scale_by_sparse_adam as scale_by_sparse_adam
from funcopt.algorithms import sgd as sgd
from funcopt.algorithms import sparse_adam as sparse_adam
from funcopt.algorithms import trace as trace
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
from funcopt.transforms import ParamsEmaState as ParamsEmaState
from funcopt.transforms import ReduceLrOnPlateauState as ReduceLrOnPlateauState
from funcopt.transforms import add_decayed_weights as add_decayed_weights
from funcopt.transforms import averaged_params as averaged_params
from funcopt.transforms import clip_by_global_norm as clip_by_global_norm
from funcopt.transforms import clip_by_value as clip_by_value
from funcopt.transforms import freeze as freeze
from funcopt.transforms import global_norm as global_norm
from funcopt.transforms import join_small_leaves as join_small_leaves
from funcopt.transforms import masked as masked
from funcopt.transforms import params_ema as params_ema
from funcopt.transforms import partition as partition
from funcopt.transforms import reduce_lr_on_plateau as reduce_lr_on_plateau
from funcopt.transforms import scale as scale
from funcopt.transforms import scale_by_learning_rate as scale_by_learning_rate
from funcopt.transforms import scale_by_multipliers as scale_by_multipliers

if TYPE_CHECKING:
    from funcopt.torch_bridge import TorchBridge as TorchBridge

# Last, and in place of the package of that name, out of which everything is here already.
from funcopt._catalogue import algorithms as algorithms  # isort: skip

ScaleByAdamState = AdamState  # what it was called before 0.2

__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    if name in ("TorchBridge", "torch_bridge"):
        bridge = importlib.import_module("funcopt.torch_bridge")
        return bridge if name == "torch_bridge" else bridge.TorchBridge
    raise AttributeError(f"module 'funcopt' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), "TorchBridge", "torch_bridge"])
