"""funcopt: one optimizer definition for JAX and PyTorch.

Structure from optax, vocabulary and numerics from torch. Importing funcopt imports no torch; `funcopt.TorchBridge`
loads it on first use.
"""

import importlib
from typing import TYPE_CHECKING, Any

from optax import freeze as freeze

from funcopt import config as config
from funcopt import groups as groups
from funcopt import schedules as schedules
from funcopt._base import ElementwiseTransformation as ElementwiseTransformation
from funcopt._base import EmptyState as EmptyState
from funcopt._base import GradientTransformation as GradientTransformation
from funcopt._base import GradientTransformationExtraArgs as GradientTransformationExtraArgs
from funcopt._base import Hyperparameter as Hyperparameter
from funcopt._base import Schedule as Schedule
from funcopt._base import ScheduledState as ScheduledState
from funcopt._base import apply_updates as apply_updates
from funcopt._base import chain as chain
from funcopt._base import named_chain as named_chain
from funcopt._inspect import current_hyperparams as current_hyperparams
from funcopt._optax_state import from_optax_state as from_optax_state
from funcopt._optax_state import to_optax_state as to_optax_state
from funcopt._rows import RowSparse as RowSparse
from funcopt.transforms import AdafactorState as AdafactorState
from funcopt.transforms import AsgdState as AsgdState
from funcopt.transforms import LbfgsState as LbfgsState
from funcopt.transforms import ParamsEmaState as ParamsEmaState
from funcopt.transforms import ReduceLrOnPlateauState as ReduceLrOnPlateauState
from funcopt.transforms import RpropState as RpropState
from funcopt.transforms import ScaleByAdadeltaState as ScaleByAdadeltaState
from funcopt.transforms import ScaleByAdagradState as ScaleByAdagradState
from funcopt.transforms import ScaleByAdamaxState as ScaleByAdamaxState
from funcopt.transforms import ScaleByAdamState as ScaleByAdamState
from funcopt.transforms import ScaleByMuonState as ScaleByMuonState
from funcopt.transforms import ScaleByNadamState as ScaleByNadamState
from funcopt.transforms import ScaleByRadamState as ScaleByRadamState
from funcopt.transforms import ScaleByRmspropState as ScaleByRmspropState
from funcopt.transforms import ScaleBySparseAdamState as ScaleBySparseAdamState
from funcopt.transforms import TraceState as TraceState
from funcopt.transforms import adadelta as adadelta
from funcopt.transforms import adafactor as adafactor
from funcopt.transforms import adagrad as adagrad
from funcopt.transforms import adam as adam
from funcopt.transforms import adamax as adamax
from funcopt.transforms import adamw as adamw
from funcopt.transforms import add_decayed_weights as add_decayed_weights
from funcopt.transforms import asgd as asgd
from funcopt.transforms import averaged_params as averaged_params
from funcopt.transforms import clip_by_global_norm as clip_by_global_norm
from funcopt.transforms import clip_by_value as clip_by_value
from funcopt.transforms import global_norm as global_norm
from funcopt.transforms import join_small_leaves as join_small_leaves
from funcopt.transforms import lbfgs as lbfgs
from funcopt.transforms import masked as masked
from funcopt.transforms import muon as muon
from funcopt.transforms import nadam as nadam
from funcopt.transforms import params_ema as params_ema
from funcopt.transforms import partition as partition
from funcopt.transforms import radam as radam
from funcopt.transforms import reduce_lr_on_plateau as reduce_lr_on_plateau
from funcopt.transforms import rmsprop as rmsprop
from funcopt.transforms import rprop as rprop
from funcopt.transforms import scale as scale
from funcopt.transforms import scale_by_adadelta as scale_by_adadelta
from funcopt.transforms import scale_by_adagrad as scale_by_adagrad
from funcopt.transforms import scale_by_adam as scale_by_adam
from funcopt.transforms import scale_by_adamax as scale_by_adamax
from funcopt.transforms import scale_by_learning_rate as scale_by_learning_rate
from funcopt.transforms import scale_by_multipliers as scale_by_multipliers
from funcopt.transforms import scale_by_muon as scale_by_muon
from funcopt.transforms import scale_by_nadam as scale_by_nadam
from funcopt.transforms import scale_by_radam as scale_by_radam
from funcopt.transforms import scale_by_rmsprop as scale_by_rmsprop
from funcopt.transforms import scale_by_sparse_adam as scale_by_sparse_adam
from funcopt.transforms import sgd as sgd
from funcopt.transforms import sparse_adam as sparse_adam
from funcopt.transforms import trace as trace

if TYPE_CHECKING:
    from funcopt.torch_bridge import TorchBridge as TorchBridge

__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    if name in ("TorchBridge", "torch_bridge"):
        bridge = importlib.import_module("funcopt.torch_bridge")
        return bridge if name == "torch_bridge" else bridge.TorchBridge
    raise AttributeError(f"module 'funcopt' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), "TorchBridge", "torch_bridge"])
