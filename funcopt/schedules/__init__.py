"""Schedules: pure functions of the step, by torch's names.

`schedule(step)` is the value of the update with that count, 0 for the first. Concrete steps (Python numbers, numpy
arrays) are computed in float64; jax arrays and traced steps in JAX's default float dtype. Nothing is remembered between
calls, so resuming, plotting, vectorising and jitting need nothing further.

What a schedule is made of is a number of any kind: Python's, numpy's, a one-element array. Its values (peaks, minima,
factors, momenta) may be traced, so that a sweep over peaks is a `jax.vmap`, and a schedule can be differentiated by
them; what it gives is then traced, too. Lengths are concrete.
"""

from funcopt.schedules._adjust import by_epoch as by_epoch
from funcopt.schedules._adjust import clip as clip
from funcopt.schedules._adjust import scale as scale
from funcopt.schedules._compose import chained_scheduler as chained_scheduler
from funcopt.schedules._compose import join as join
from funcopt.schedules._compose import sequential_lr as sequential_lr
from funcopt.schedules._cosine import cosine_annealing_lr as cosine_annealing_lr
from funcopt.schedules._cycles import cosine_annealing_warm_restarts as cosine_annealing_warm_restarts
from funcopt.schedules._cycles import cycles as cycles
from funcopt.schedules._cyclic import CycledSchedule as CycledSchedule
from funcopt.schedules._cyclic import cyclic_lr as cyclic_lr
from funcopt.schedules._cyclic import one_cycle_lr as one_cycle_lr
from funcopt.schedules._inspect import Description as Description
from funcopt.schedules._inspect import describe as describe
from funcopt.schedules._lambda import lambda_lr as lambda_lr
from funcopt.schedules._lambda import multiplicative_lr as multiplicative_lr
from funcopt.schedules._linear import constant_lr as constant_lr
from funcopt.schedules._linear import linear_lr as linear_lr
from funcopt.schedules._linear import polynomial_lr as polynomial_lr
from funcopt.schedules._shape import ramp as ramp
from funcopt.schedules._step import exponential_lr as exponential_lr
from funcopt.schedules._step import multi_step_lr as multi_step_lr
from funcopt.schedules._step import step_lr as step_lr
from funcopt.schedules._warmup import cooldown as cooldown
from funcopt.schedules._warmup import inverse_sqrt as inverse_sqrt
from funcopt.schedules._warmup import warmup as warmup
from funcopt.schedules._warmup import warmup_cosine as warmup_cosine
from funcopt.schedules._warmup import wsd as wsd
