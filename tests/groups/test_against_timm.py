"""weight_decay_rules, layer_decay_rules and swin_rules against timm's helpers and models, parameter by parameter."""

import warnings
from typing import Any

import pytest
import torch
from groups.client_models import MODELS, cached, import_timm, values_by_name

from funcopt.groups import group_params, layer_decay_rules, swin_rules, weight_decay_rules

pytestmark = pytest.mark.clients


def timm_groups(groups: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{"lr": 0.1, **group} for group in groups]


def no_weight_decay(model: torch.nn.Module) -> set[str]:
    return model.no_weight_decay() if hasattr(model, "no_weight_decay") else set()  # pyright: ignore[reportCallIssue]


@pytest.mark.parametrize("exclude_1d", [True, False])
@pytest.mark.parametrize("name", MODELS)
def test_weight_decay(name: str, exclude_1d: bool) -> None:
    model, timm = cached(name), import_timm()
    theirs = timm.optim.param_groups_weight_decay(model, 0.05, exclude_1d, no_weight_decay(model))
    rules = weight_decay_rules(model, weight_decay_exclude_1d=exclude_1d)
    ours = group_params(model, rules).param_groups(lr=0.1, weight_decay=0.05)
    assert values_by_name(model, ours) == values_by_name(model, timm_groups(theirs))
    assert len(ours) == len(theirs)


def test_listed_names_may_be_patterns() -> None:
    model, timm = cached("vit"), import_timm()
    patterns = ["blocks.*.attn.qkv.weight", "pos_*"]
    theirs = timm.optim.param_groups_weight_decay(model, 0.05, True, patterns)
    rules = weight_decay_rules(model, no_weight_decay_list=patterns)
    ours = group_params(model, rules).param_groups(lr=0.1, weight_decay=0.05)
    assert values_by_name(model, ours) == values_by_name(model, timm_groups(theirs))


def test_fallback_list_is_another_algorithm() -> None:
    model, timm = cached("vit"), import_timm()
    theirs = timm.optim.param_groups_weight_decay(model, 0.05, True, (), ["head*", "*norm*"])
    fallback = {id(p) for group in theirs if group.get("use_fallback") for p in group["params"]}
    groups = group_params(model, weight_decay_rules(model, fallback_list=["head*", "*norm*"]), "sgd").param_groups()
    assert {id(p) for group in groups if group["algorithm"] == "adamw" for p in group["params"]} == fallback


@pytest.mark.parametrize(
    "options",
    [
        {"layer_decay": 0.75},
        {"layer_decay": 0.5, "min_scale": 0.2},
        {"layer_decay": 0.5, "no_opt_scale": 0.3},
        {"layer_decay": 0.9, "weight_decay_exclude_1d": False},
    ],
    ids=str,
)
@pytest.mark.parametrize("name", MODELS)
def test_layer_decay(name: str, options: dict[str, Any]) -> None:
    model, timm = MODELS[name](), import_timm()  # timm freezes parameters of the model
    ours = group_params(model, layer_decay_rules(model, **options)).param_groups(lr=0.1, weight_decay=0.05)
    theirs = timm.optim.param_groups_layer_decay(model, 0.05, no_weight_decay(model), **options)
    expected = values_by_name(model, timm_groups(theirs))
    assert values_by_name(model, ours) == expected
    assert len({value["lr"] for value in expected.values()}) > 1


def test_layers_of_a_model_without_a_matcher() -> None:
    timm = import_timm()
    model = torch.nn.Sequential(*[torch.nn.Linear(2, 2) for _ in range(16)])
    model.pretrained_cfg = {"classifier": "15"}  # pyright: ignore[reportAttributeAccessIssue]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        theirs = timm.optim.param_groups_layer_decay(model, 0.05, layer_decay=0.5)
    ours = group_params(model, layer_decay_rules(model, 0.5)).param_groups(lr=0.1, weight_decay=0.05)
    assert values_by_name(model, ours) == values_by_name(model, timm_groups(theirs))


def set_weight_decay(model: Any) -> list[dict[str, Any]]:
    """Swin's function, as its document states it."""
    skip = model.no_weight_decay() if hasattr(model, "no_weight_decay") else {}
    keywords = model.no_weight_decay_keywords() if hasattr(model, "no_weight_decay_keywords") else {}
    decay, no_decay = [], []
    for name, p in model.named_parameters():
        if not p.requires_grad:
            continue
        without = len(p.shape) == 1 or name.endswith(".bias") or name in skip or any(k in name for k in keywords)
        (no_decay if without else decay).append(p)
    return [{"params": decay, "weight_decay": 0.05}, {"params": no_decay, "weight_decay": 0.0}]


@pytest.mark.parametrize("keywords", [None, {"relative_position_bias_table"}])
@pytest.mark.parametrize("name", MODELS)
def test_swin(name: str, keywords: set[str] | None) -> None:
    model = MODELS[name]()
    next(iter(model.parameters())).requires_grad_(False)
    if keywords:
        model.no_weight_decay_keywords = lambda: keywords  # pyright: ignore[reportAttributeAccessIssue]
    ours = group_params(model, swin_rules(model)).param_groups(lr=0.1, weight_decay=0.05)
    assert values_by_name(model, ours) == values_by_name(model, timm_groups(set_weight_decay(model)))
    wrapped = torch.nn.ModuleDict({"module": model})
    assert group_params(wrapped, swin_rules(wrapped)).explain() == group_params(model, swin_rules(model)).explain()
