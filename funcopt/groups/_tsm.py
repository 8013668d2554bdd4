"""TSM's policies (Lin et al., 2019): multipliers by type of layer, and how they follow the epochs."""

from collections.abc import Sequence
from typing import Any, Literal

from funcopt import _checks
from funcopt.groups._params import Param, list_params
from funcopt.groups._rule import Rule
from funcopt.kinds import Schedule
from funcopt.schedules import by_epoch, multi_step_lr, ramp

_CONVOLUTIONS = ("Conv1d", "Conv2d", "Conv3d")
_BATCH_NORMS = ("BatchNorm2d", "BatchNorm3d", "BatchNorm")


def tsm_rules(
    model: Any, *, modality: Literal["RGB", "Flow", "RGBDiff"] = "RGB", fc_lr5: bool = False, partial_bn: bool = True
) -> list[Rule]:
    """TSM's `get_optim_policies`.

    | group | lr_mult | decay_mult |
    |---|---|---|
    | first_conv_weight | 1, Flow: 5 | 1 |
    | first_conv_bias | 2, Flow: 10 | 0 |
    | normal_weight | 1 | 1 |
    | normal_bias | 2 | 0 |
    | BN scale/shift | 1 | 0 |
    | lr5_weight, with `fc_lr5` that of linear layers | 5 | 1 |
    | lr10_bias, with `fc_lr5` that of linear layers | 10 | 0 |

    Args:
        model: a torch or equinox model of convolutions, linear layers and batch norms.
        modality: what the network sees; the first convolution of one for flow is new, and so learns faster.
        fc_lr5: whether linear layers learn faster.
        partial_bn: whether all batch norms but the first are frozen.

    Returns:
        The rules.

    Raises:
        ValueError: for a parameter of any other layer, which has no policy.
    """
    policies = {record.name: policy for record, policy in _policies(model, fc_lr5, partial_bn)}
    flow = modality == "Flow"
    table: list[tuple[str, float, float]] = [
        ("first_conv_weight", 5 if flow else 1, 1),
        ("first_conv_bias", 10 if flow else 2, 0),
        ("normal_weight", 1, 1),
        ("normal_bias", 2, 0),
        ("BN scale/shift", 1, 0),
        ("lr5_weight", 5, 1),
        ("lr10_bias", 10, 0),
    ]
    rules = [
        Rule(where=lambda p, g=group: policies[p.name] == g, lr_mult=lr, decay_mult=decay, group=group, name=group)
        for group, lr, decay in table
    ]
    return [*rules, Rule(where=lambda p: policies[p.name] == "partial BN", freeze=True, name="partial BN")]


def _policies(model: Any, fc_lr5: bool, partial_bn: bool) -> list[tuple[Param, str]]:
    policies = []
    layers: dict[str, str] = {}  # the first convolution and the first norm, by what they are
    for param in [record for first in list_params(model) for record in (first, *first.aliases)]:
        role = "bias" if "bias" in param.kinds else "weight"
        if param.is_in(*_CONVOLUTIONS):
            first = layers.setdefault("convolution", param.layer) == param.layer
            policies.append((param, f"{'first_conv' if first else 'normal'}_{role}"))
        elif param.is_in("Linear"):
            policies.append(
                (param, {"weight": "lr5_weight", "bias": "lr10_bias"}[role] if fc_lr5 else f"normal_{role}")
            )
        elif param.is_in(*_BATCH_NORMS):
            first = layers.setdefault("norm", param.layer) == param.layer
            policies.append((param, "BN scale/shift" if first or not partial_bn else "partial BN"))
        else:
            raise ValueError(
                f"tsm_rules: {param.name!r} must be a parameter of a convolution, a linear layer or a batch norm to "
                f"have a policy, got one of {type(param.module).__name__}"
            )
    return policies


def tsm_schedules(
    lr: float,
    weight_decay: float,
    *,
    lr_type: Literal["step", "cos"] = "step",
    lr_steps: Sequence[int] = (),
    epochs: int | None = None,
    steps_per_epoch: int = 1,
) -> dict[str, Schedule]:
    """TSM's `adjust_learning_rate`: learning rate and weight decay of each epoch, before the groups' multipliers.

    Args:
        lr: learning rate of the first epoch.
        weight_decay: weight decay, the same in each epoch.
        lr_type: "step": a tenth at each of `lr_steps`; "cos": half a cosine down to 0 at `epochs`.
        lr_steps: the epochs of the steps.
        epochs: length of the run.
        steps_per_epoch: updates per epoch.

    Returns:
        Schedules by name of the hyperparameter, for `TorchBridge` and `Groups.optimizer`.

    Raises:
        ValueError: for another `lr_type`, or a cosine without `epochs`.

    Example:
        >>> schedules = tsm_schedules(0.1, 1e-4, lr_steps=[2], steps_per_epoch=10)
        >>> [round(float(schedules["lr"](step)), 9) for step in (0, 19, 20)]
        [0.1, 0.1, 0.01]
    """
    if lr_type == "step":
        schedule = multi_step_lr(lr, lr_steps, gamma=0.1)
    elif lr_type == "cos":
        if epochs is None:
            _checks.fail("tsm_schedules", "epochs", "given for a cosine", epochs)
        schedule = ramp(lr, 0.0, epochs, "cosine")
    else:
        _checks.fail("tsm_schedules", "lr_type", "'step' or 'cos'", lr_type)
    return {"lr": by_epoch(schedule, steps_per_epoch), "weight_decay": ramp(weight_decay, weight_decay, 0)}
