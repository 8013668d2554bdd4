"""paramwise_rules against MMEngine's DefaultOptimWrapperConstructor, parameter by parameter."""

import logging
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from groups.client_models import MODELS, cached, values_by_name

from funcopt.groups import group_params, paramwise_rules

pytestmark = pytest.mark.clients
optim = pytest.importorskip("mmengine.optim")

CONFIGS: dict[str, dict[str, Any]] = {
    "nothing": {},
    "norm": {"norm_decay_mult": 0.0},
    "bias": {"bias_lr_mult": 2.0, "bias_decay_mult": 0.0},
    "dwconv": {"dwconv_decay_mult": 0.0},
    "flat": {"flat_decay_mult": 0.0},
    "all": {
        "norm_decay_mult": 0.1,
        "bias_lr_mult": 2.0,
        "bias_decay_mult": 0.2,
        "dwconv_decay_mult": 0.3,
        "flat_decay_mult": 0.4,
        "dcn_offset_lr_mult": 0.5,
    },
    "bias wins over depthwise, norm over bias": {
        "norm_decay_mult": 0.1,
        "bias_decay_mult": 0.2,
        "dwconv_decay_mult": 0.3,
    },
    "custom": {"custom_keys": {"layer1": {"lr_mult": 0.1}, "blocks": {"lr_mult": 0.1, "decay_mult": 0.5}}},
    "custom keys exclude the rest": {
        "norm_decay_mult": 0.0,
        "bias_lr_mult": 2.0,
        "custom_keys": {"layer": {"lr_mult": 0.1}, "blocks": {"lr_mult": 0.1}},
    },
    "longest custom key": {
        "custom_keys": {
            "blocks": {"lr_mult": 0.1},
            "blocks.1": {"lr_mult": 0.2},
            "layers.0": {"decay_mult": 0.3},
            "layers": {"lr_mult": 0.4, "decay_mult": 0.0},
            "bias": {"lr_mult": 3.0},
            "norm": {"decay_mult": 0.0},
        }
    },
    "equal length in alphabetical order": {"custom_keys": {"weight": {"lr_mult": 0.1}, "blocks": {"lr_mult": 0.2}}},
    "key of a parameter at the top": {
        "custom_keys": {".cls_token": {"decay_mult": 0.0}, ".pos_embed": {"decay_mult": 0.0}}
    },
    "own values": {"custom_keys": {"head": {"lr": 0.5, "lr_mult": 3.0}, "fc": {"weight_decay": 0.7}}},
    "mobilevit": {
        "norm_decay_mult": 0.0,
        "bias_decay_mult": 0.0,
        "flat_decay_mult": 0.0,
        "custom_keys": {
            "relative_position_bias_table": {"decay_mult": 0.0},
            "absolute_pos_embed": {"decay_mult": 0.0},
        },
    },
    "zeros": {"custom_keys": {"head": {"lr_mult": 0.0, "decay_mult": 0.0}}, "bias_lr_mult": 0.0},
}


@pytest.fixture(autouse=True)
def silence() -> Iterator[None]:
    logging.disable(logging.CRITICAL)
    yield
    logging.disable(logging.NOTSET)


def mmengine_groups(model: torch.nn.Module, paramwise_cfg: dict[str, Any]) -> Any:
    cfg = {"optimizer": {"type": "SGD", "lr": 0.1, "weight_decay": 0.05, "momentum": 0.9}}
    return optim.DefaultOptimWrapperConstructor(cfg, paramwise_cfg)(model).optimizer.param_groups


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
@pytest.mark.parametrize("name", MODELS)
def test_equal_values(name: str, config: dict[str, Any]) -> None:
    model = cached(name)
    groups = group_params(model, paramwise_rules(config), "sgd").param_groups(lr=0.1, weight_decay=0.05)
    expected = values_by_name(model, mmengine_groups(model, config))
    assert values_by_name(model, groups) == expected
    assert len(groups) <= 8
    assert len(expected) == len(list(model.parameters()))


def test_configs_can_be_told_apart() -> None:
    model = cached("mobilenet")
    results = [values_by_name(model, mmengine_groups(model, config)) for config in CONFIGS.values()]
    assert sum(result != results[0] for result in results) >= 10


class DeformConv2d(torch.nn.Module):
    """Stands for mmcv's, which has this name and a convolution `conv_offset` in it."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(2, 2, 3, 3))
        self.bias = torch.nn.Parameter(torch.ones(2))
        self.conv_offset = torch.nn.Conv2d(2, 18, 3)


def test_deformable_convolutions_by_the_rules_of_the_code() -> None:
    model = torch.nn.Sequential(DeformConv2d(), torch.nn.Conv2d(2, 2, 1))
    config = {"dcn_offset_lr_mult": 0.1, "bias_lr_mult": 2.0, "bias_decay_mult": 0.0, "flat_decay_mult": 0.5}
    values = values_by_name(model, group_params(model, paramwise_rules(config)).param_groups(lr=1.0, weight_decay=1.0))
    assert {name: tuple(value.values()) for name, value in values.items()} == {
        "0.weight": (1.0, 1.0),
        "0.bias": (2.0, 0.0),
        "0.conv_offset.weight": (0.1, 1.0),
        "0.conv_offset.bias": (0.1, 1.0),
        "1.weight": (1.0, 1.0),
        "1.bias": (2.0, 0.0),
    }


def test_bypass_duplicate() -> None:
    model = torch.nn.ModuleDict({"a": torch.nn.Linear(2, 2), "b": torch.nn.Linear(2, 2)})
    model["b"].weight = model["a"].weight
    config = {"custom_keys": {"a": {"lr_mult": 0.1}, "b": {"lr_mult": 0.2}}, "bypass_duplicate": True}
    groups = group_params(model, paramwise_rules(config), tied="first").param_groups(lr=0.1, weight_decay=0.05)
    assert values_by_name(model, groups) == values_by_name(model, mmengine_groups(model, config))
