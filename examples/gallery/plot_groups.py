"""Learning rates of a fine-tuning recipe
=========================================

A pretrained model is fine-tuned with small steps near its input, where features are general, and large ones in the
head, which is new. Biases and norms do not decay. Rules say so, and ``explain`` shows what becomes of them before any
step is made.
"""

import torch

import funcopt
from funcopt import plot
from funcopt.groups import Rule, group_params, layer_decay_rules


class Block(torch.nn.Module):
    """A residual block with its norm in front."""

    def __init__(self, width):
        super().__init__()
        self.norm = torch.nn.LayerNorm(width)
        self.mlp = torch.nn.Linear(width, width)

    def forward(self, x):
        return x + self.mlp(self.norm(x))


model = torch.nn.ModuleDict(
    {
        "embed": torch.nn.Linear(48, 32),
        "blocks": torch.nn.ModuleList(Block(32) for _ in range(3)),
        "head": torch.nn.Linear(32, 10),
    }
)

# %%
# Backbone and head
# -----------------
#
# A rule selects parameters and sets what they get; later ones win, field by field.

rules = [
    Rule(path="embed", freeze=True),
    Rule(path="blocks", lr_mult=0.1),
    Rule(kind=("bias", "norm"), decay_mult=0.0),
]
table = group_params(model, rules, "adamw").explain(lr=1e-3, weight_decay=0.05)
print(table)

# %%
# The same table as a picture, a bar for each parameter:

backbone_and_head = plot.groups(table)

# %%
# Layer decay
# -----------
#
# Each layer learns 0.65 times as fast as the one above it, as in the recipes of BEiT and MAE. Which layer a parameter
# belongs to is a function of its name.


def layer_of(name):
    part, place, *_ = name.split(".")
    return 1 + int(place) if part == "blocks" else {"embed": 0, "head": 4}[part]


groups = group_params(model, layer_decay_rules(model, 0.65, group_matcher=layer_of), "adamw")
layer_decay = plot.groups(groups.explain(lr=1e-3, weight_decay=0.05))

# %%
# One schedule moves all groups. ``lr_mult`` is applied where the learning rate is used, so no scheduler forgets it.

schedule = funcopt.schedules.warmup_cosine(1e-3, warmup_steps=10, total_steps=100)
optimizer = groups.optimizer(lr=schedule, weight_decay=0.05)
for group in optimizer.param_groups[:4]:
    print(f"{group['name']:36} lr_mult {group['lr_mult']:.3f}, {len(group['params'])} parameters")
