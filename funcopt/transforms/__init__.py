"""Gradient transformations, one file per family; `funcopt` re-exports them all."""

from funcopt.transforms._averaged_params import averaged_params as averaged_params
from funcopt.transforms._clip import clip_by_global_norm as clip_by_global_norm
from funcopt.transforms._clip import clip_by_value as clip_by_value
from funcopt.transforms._clip import global_norm as global_norm
from funcopt.transforms._decay import add_decayed_weights as add_decayed_weights
from funcopt.transforms._join import join_small_leaves as join_small_leaves
from funcopt.transforms._mask import freeze as freeze
from funcopt.transforms._mask import masked as masked
from funcopt.transforms._mask import partition as partition
from funcopt.transforms._params_ema import ParamsEmaState as ParamsEmaState
from funcopt.transforms._params_ema import params_ema as params_ema
from funcopt.transforms._plateau import ReduceLrOnPlateauState as ReduceLrOnPlateauState
from funcopt.transforms._plateau import reduce_lr_on_plateau as reduce_lr_on_plateau
from funcopt.transforms._scale import scale as scale
from funcopt.transforms._scale import scale_by_learning_rate as scale_by_learning_rate
from funcopt.transforms._scale import scale_by_multipliers as scale_by_multipliers
