"""Optimizers and schedules from the configs that people have: MMEngine's, SCEPTER's, Swin's, timm's,
Hugging Face's, torch's.
"""

from funcopt.config._build import build_optimizer as build_optimizer
from funcopt.config._build import to_config as to_config
from funcopt.config._explain import Explanation as Explanation
from funcopt.config._explain import explain as explain
from funcopt.config._optimizers import Optimizers as Optimizers
from funcopt.config._registry import CONSTRUCTORS as CONSTRUCTORS
from funcopt.config._registry import OPTIMIZERS as OPTIMIZERS
from funcopt.config._registry import SCHEDULES as SCHEDULES
from funcopt.config._registry import Registry as Registry
from funcopt.config._schedule import build_schedule as build_schedule
from funcopt.config._schedule import build_schedules as build_schedules
