"""Rules that give each parameter its hyperparameters: for torch modules and for JAX pytrees."""

from funcopt.groups._explain import Row as Row
from funcopt.groups._explain import Table as Table
from funcopt.groups._explain import Total as Total
from funcopt.groups._groups import Groups as Groups
from funcopt.groups._groups import group_params as group_params
from funcopt.groups._huggingface import huggingface_rules as huggingface_rules
from funcopt.groups._kinds import KINDS as KINDS
from funcopt.groups._mmengine import paramwise_rules as paramwise_rules
from funcopt.groups._muon import muon_rules as muon_rules
from funcopt.groups._nanogpt import nanogpt_rules as nanogpt_rules
from funcopt.groups._params import Param as Param
from funcopt.groups._rule import Rule as Rule
from funcopt.groups._swin import swin_rules as swin_rules
from funcopt.groups._timm import layer_decay_rules as layer_decay_rules
from funcopt.groups._timm import weight_decay_rules as weight_decay_rules
from funcopt.groups._tsm import tsm_rules as tsm_rules
from funcopt.groups._tsm import tsm_schedules as tsm_schedules
