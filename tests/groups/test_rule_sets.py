"""Ready rule sets by hand-computed tables, as their documents state them."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import pytest
import torch

import funcopt
from funcopt.groups import (
    Rule,
    group_params,
    layer_decay_rules,
    muon_rules,
    nanogpt_rules,
    paramwise_rules,
    swin_rules,
    tsm_rules,
    tsm_schedules,
    weight_decay_rules,
)


def tsm_model() -> torch.nn.Sequential:
    return torch.nn.Sequential(
        torch.nn.Conv2d(3, 4, 3),
        torch.nn.BatchNorm2d(4),
        torch.nn.Conv2d(4, 4, 3, bias=False),
        torch.nn.BatchNorm2d(4),
        torch.nn.Conv1d(4, 4, 3),
        torch.nn.Linear(4, 2),
    )


TSM = [
    # name, group, lr_mult and decay_mult: RGB; Flow; with fc_lr5
    ("0.weight", "first_conv_weight", (1, 1), (5, 1), (1, 1)),
    ("0.bias", "first_conv_bias", (2, 0), (10, 0), (2, 0)),
    ("1.weight", "BN scale/shift", (1, 0), (1, 0), (1, 0)),
    ("1.bias", "BN scale/shift", (1, 0), (1, 0), (1, 0)),
    ("2.weight", "normal_weight", (1, 1), (1, 1), (1, 1)),
    ("3.weight", "frozen", None, None, None),
    ("3.bias", "frozen", None, None, None),
    ("4.weight", "normal_weight", (1, 1), (1, 1), (1, 1)),
    ("4.bias", "normal_bias", (2, 0), (2, 0), (2, 0)),
    ("5.weight", "normal_weight", (1, 1), (1, 1), (5, 1)),
    ("5.bias", "normal_bias", (2, 0), (2, 0), (10, 0)),
]


@pytest.mark.parametrize(
    ("options", "column"), [({}, 2), ({"modality": "Flow"}, 3), ({"fc_lr5": True}, 4)], ids=["RGB", "Flow", "fc_lr5"]
)
def test_tsm_policies(options: dict[str, Any], column: int) -> None:
    groups = group_params(tsm_model(), tsm_rules(tsm_model(), **options))
    table = groups.explain(lr=1.0, weight_decay=1.0)
    for row, expected in zip(table.rows, TSM, strict=True):
        values = expected[column]
        assert row.name == expected[0]
        assert (row.lr, row.weight_decay) == (("-", "-") if values is None else tuple(map(str, values)))
    names = {row.name: row.group for row in table.rows}
    if column == 2:
        assert names == {row[0]: row[1] for row in TSM}
    if column == 4:
        assert (names["5.weight"], names["5.bias"]) == ("lr5_weight", "lr10_bias")


def test_tsm_without_partial_bn_trains_all_norms() -> None:
    groups = group_params(tsm_model(), tsm_rules(tsm_model(), partial_bn=False)).param_groups()
    norms = next(g for g in groups if g["name"] == "BN scale/shift")
    assert norms["param_names"] == ["1.weight", "1.bias", "3.weight", "3.bias"]


def test_tsm_has_no_policy_for_other_layers() -> None:
    model = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.GroupNorm(1, 4))
    with pytest.raises(ValueError, match=r"tsm_rules: '1.weight' must be a parameter of .*, got one of GroupNorm"):
        tsm_rules(model)


# Epochs 0 to 5 of base values 0.1 and 5e-4, computed by hand from adjust_learning_rate; cosine over 6 epochs.
TSM_STEP = [0.1, 0.1, 0.01, 0.01, 0.001, 0.001]
TSM_COSINE = [0.1, 0.0933012702, 0.075, 0.05, 0.025, 0.0066987298]


@pytest.mark.parametrize(
    ("options", "expected"), [({"lr_steps": [2, 4]}, TSM_STEP), ({"lr_type": "cos", "epochs": 6}, TSM_COSINE)]
)
def test_tsm_adjusts_lr_and_weight_decay_of_each_group(options: dict[str, Any], expected: list[float]) -> None:
    model = tsm_model()
    schedules = tsm_schedules(0.1, 5e-4, steps_per_epoch=2, **options)
    optimizer = group_params(model, tsm_rules(model), funcopt.sgd).optimizer(**schedules)
    for p in model.parameters():
        p.grad = torch.zeros_like(p)
    for epoch in range(6):
        for _ in range(2):
            optimizer.step()
            for group in optimizer.param_groups:
                assert group["lr"] == pytest.approx(expected[epoch], rel=1e-8)
                assert group["weight_decay"] == 5e-4
                assert group["lr_mult" if group["name"].endswith("bias") else "params"]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: tsm_schedules(0.1, 0, lr_type="linear"), "lr_type must be 'step' or 'cos', got 'linear'"),  # pyright: ignore[reportArgumentType]
        (lambda: tsm_schedules(0.1, 0, lr_type="cos"), "tsm_schedules: epochs must be given for a cosine, got None"),
        (
            lambda: paramwise_rules({"bias_decay_mul": 0}),
            "flat_decay_mult, bypass_duplicate, custom_keys, got 'bias_decay_mul'; did you mean 'bias_decay_mult'?",
        ),
        (
            lambda: group_params(tsm_model(), paramwise_rules({"custom_keys": {"bakbone": {}}}, strict=True)),
            "the pattern 'bakbone' must match a parameter, but matches none",
        ),
        (lambda: layer_decay_rules({"w": jnp.ones(2)}, -0.5), "layer_decay_rules: layer_decay must be > 0, got -0.5"),
    ],
)
def test_errors(call: Callable[[], Any], message: str) -> None:
    with pytest.raises(ValueError, match="must") as error:
        call()
    assert message in str(error.value)


def settings(params: Any, rules: list[Rule]) -> dict[str, dict[str, Any]]:
    return {a.param.name: a.settings for a in group_params(params, rules).assignments}


GPT = {
    "wte": {"weight": jnp.ones((5, 2))},
    "h": [{"ln_1": {"weight": jnp.ones(2)}, "attn": {"weight": jnp.ones((2, 2)), "bias": jnp.ones(2)}}],
}


def test_nanogpt() -> None:
    none = {"decay_mult": 0.0}
    assert settings(GPT, nanogpt_rules()) == {
        "h.0.attn.bias": none,
        "h.0.attn.weight": {},
        "h.0.ln_1.weight": none,
        "wte.weight": {},
    }


def test_swin_by_hand() -> None:
    params = {
        "absolute_pos_embed": jnp.ones((1, 4, 2)),
        "scale": jnp.ones(()),
        "attn": {"relative_position_bias_table": jnp.ones((4, 2)), "qkv": {"weight": jnp.ones((2, 2))}},
        "norm": {"bias": jnp.ones((1, 2)), "weight": jnp.ones(2)},
    }
    rules = swin_rules(skip=["absolute_pos_embed"], skip_keywords=["relative_position_bias_table"])
    none = {"decay_mult": 0.0}
    assert settings(params, rules) == {
        "absolute_pos_embed": none,
        "attn.qkv.weight": {},
        "attn.relative_position_bias_table": none,
        "norm.bias": none,
        "norm.weight": none,
        "scale": {},
    }


def test_timm_by_hand() -> None:
    assert settings({"scale": jnp.ones(()), "w": jnp.ones((2, 2))}, weight_decay_rules()) == {
        "scale": {"decay_mult": 0.0},
        "w": {},
    }
    rules = layer_decay_rules(GPT, 0.5, group_matcher={"stem": "^wte", "blocks": r"^h\.(\d+)"})
    assert {name: s.get("lr_mult", 1.0) for name, s in settings(GPT, rules).items()} == {
        "h.0.attn.bias": 1.0,
        "h.0.attn.weight": 1.0,
        "h.0.ln_1.weight": 1.0,
        "wte.weight": 0.5,
    }


def test_strict_paramwise_merges_field_by_field() -> None:
    config = {
        "norm_decay_mult": 0.0,
        "bias_decay_mult": 0.0,
        "custom_keys": {"h": {"lr_mult": 0.1, "decay_mult": 0.5}, "ln_1": {"lr_mult": 0.2}},
    }
    as_mmengine, strict = (settings(GPT, paramwise_rules(config, strict=strict)) for strict in (False, True))
    assert as_mmengine["h.0.ln_1.weight"] == {"lr_mult": 0.2}
    assert strict["h.0.ln_1.weight"] == {"lr_mult": 0.2, "decay_mult": 0.5}
    config["custom_keys"]["h"] = {"lr_mult": 0.1}
    as_mmengine, strict = (settings(GPT, paramwise_rules(config, strict=strict)) for strict in (False, True))
    assert as_mmengine["h.0.attn.bias"] == {"lr_mult": 0.1}
    assert strict["h.0.attn.bias"] == {"lr_mult": 0.1, "decay_mult": 0.0}
    assert strict["h.0.ln_1.weight"] == {"lr_mult": 0.2, "decay_mult": 0.0}


def test_muon() -> None:
    params = {
        "embed": {"embedding": jnp.ones((5, 2))},
        "conv": {"kernel": jnp.ones((3, 3, 2, 4)), "bias": jnp.ones(4)},
        "mlp": {"weight": jnp.ones((2, 2))},
        "norm": {"scale": jnp.ones(2)},
        "head": {"kernel": jnp.ones((2, 5))},
    }
    others = {"use_muon": False, "lr_mult": 0.1}
    assert settings(params, muon_rules(adamw_lr_mult=0.1)) == {
        "conv.bias": others,
        "conv.kernel": {"outputs_last": True},
        "embed.embedding": others,
        "head.kernel": others,
        "mlp.weight": {},
        "norm.scale": others,
    }
    tx = group_params(params, muon_rules(), "muon_with_adamw").optimizer(lr=0.02)
    state = tx.init(params)
    kept = {name: (state.momentum_buffer[name], state.exp_avg[name], state.exp_avg_sq[name]) for name in params}
    leaves = {name: [x.shape for x in jax.tree.leaves(own)] for name, own in kept.items()}
    assert leaves["mlp"] == [(2, 2)]
    assert leaves["head"] == leaves["head"][:1] * 2


def test_muon_with_adamw_takes_the_groups_of_its_reference() -> None:
    """One bridge beside two of torch's optimizers, whose eps differ: no gradient is as small as 1e-7."""
    nets = [torch.nn.Sequential(torch.nn.Linear(6, 4), torch.nn.Linear(4, 5)) for _ in range(2)]
    nets[1].load_state_dict(nets[0].state_dict())
    hidden, others = ([[net[0].weight] for net in nets], [[net[0].bias, *net[1].parameters()] for net in nets])
    groups = [
        {"params": hidden[0], "use_muon": True, "lr": 0.02, "momentum": 0.9, "weight_decay": 0.1},
        {"params": others[0], "use_muon": False, "lr": 3e-3, "betas": (0.8, 0.95), "eps": 1e-10, "weight_decay": 0.1},
    ]
    bridge = funcopt.TorchBridge(groups, funcopt.muon_with_adamw)
    theirs = [
        torch.optim.Muon(hidden[1], lr=0.02, momentum=0.9, weight_decay=0.1),
        torch.optim.AdamW(others[1], lr=3e-3, betas=(0.8, 0.95), eps=1e-10, weight_decay=0.1),
    ]
    schedulers = [torch.optim.lr_scheduler.StepLR(o, 2) for o in (bridge, *theirs)]
    for seed in range(5):
        for net in nets:
            torch.manual_seed(seed)
            for p in net.parameters():
                p.grad = torch.randn_like(p)
        for o in (bridge, *theirs, *schedulers):
            o.step()
    assert set(bridge.state[hidden[0][0]]) == {"step", "momentum_buffer"}
    assert set(bridge.state[others[0][0]]) == {"step", "exp_avg", "exp_avg_sq"}
    for p, q in zip(nets[0].parameters(), nets[1].parameters(), strict=True):
        # Muon's iteration is in bfloat16, so a product summed in another order differs in its last digit.
        torch.testing.assert_close(p, q, rtol=0, atol=1e-3 if p.ndim == 2 else 1e-6)
