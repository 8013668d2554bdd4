"""Schedules, drawn and composed
================================

A schedule is a pure function of the step. It takes an array of steps, so it can be looked at before the run, and it
needs no history, so a run that resumes at step 7,000 needs to know nothing but that number.
"""

import funcopt
from funcopt import plot
from funcopt.schedules import (
    constant_lr,
    cooldown,
    cosine_annealing_lr,
    cosine_annealing_warm_restarts,
    describe,
    exponential_lr,
    inverse_sqrt,
    join,
    linear_lr,
    one_cycle_lr,
    scale,
    sequential_lr,
    warmup,
    warmup_cosine,
    wsd,
)

STEPS = 1000

# %%
# The usual ones
# --------------

usual = plot.schedules(
    {
        "warmup_cosine": warmup_cosine(1e-3, warmup_steps=100, total_steps=STEPS),
        "wsd": wsd(1e-3, warmup_steps=100, stable_steps=600, decay_steps=300, shape="sqrt"),
        "inverse_sqrt": inverse_sqrt(1e-3, warmup_steps=100),
        "restarts": cosine_annealing_warm_restarts(1e-3, T_0=150, T_mult=2),
    },
    STEPS,
)

# %%
# One cycle moves two hyperparameters: the momentum goes down while the learning rate goes up.

cycle = one_cycle_lr(1e-3, total_steps=STEPS)
one_cycle = plot.schedules({"lr": cycle, "momentum": cycle.momentum}, STEPS)

# %%
# Composed
# --------
#
# ``warmup`` goes in front of anything, ``cooldown`` ends anything, ``join`` puts one after another; with
# ``continuous=True`` each member starts where the one before it has come to. ``sequential_lr`` is torch's name for
# ``join``, and ``scale`` multiplies: a schedule by a number, or by another schedule.

halves = [cosine_annealing_lr(1e-3, T_max=500, eta_min=3e-4), exponential_lr(1.0, gamma=0.995)]
composed = {
    "warmup of a cosine": warmup(cosine_annealing_lr(1e-3, T_max=900), 100),
    "constant, cooled down": cooldown(warmup(1e-3, 100), start_step=700, cooldown_steps=300, shape="cosine"),
    "join, continuous": join(halves, milestones=[500], continuous=True),
    "sequential_lr": sequential_lr([linear_lr(1e-3, 0.1, total_iters=200), constant_lr(1e-3, 0.5, 400)], [200]),
    "scaled by a schedule": scale(cycle, exponential_lr(1.0, gamma=0.999)),
}
made = plot.schedules(composed, STEPS)

# %%
# In words
# --------
#
# ``describe`` prints the steps at which something happens, and warns of what is usually a mistake.

print(describe(composed["warmup of a cosine"], STEPS))

# %%
# In use
# ------
#
# A schedule stands wherever a number does, in any argument and in any part of the parameters.

tx = funcopt.adamw(lr={"body": composed["warmup of a cosine"], "head": cycle}, weight_decay=scale(cycle, 100.0))
state = tx.init({"body": 1.0, "head": 1.0})
print({name: float(lr) for name, lr in funcopt.current_hyperparams(state)["lr"].items()})
