"""What becomes of rules: torch's groups, JAX's prefixes, one optimizer of several algorithms, the table."""

import copy
import pickle
import subprocess
import sys
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch
from groups.models import TorchNet, numpy_tree

import funcopt
from funcopt.groups import Rule, group_params
from funcopt.schedules import clip, step_lr

RULES = [
    Rule(kind=("bias", "norm"), decay_mult=0.0),
    Rule(path="backbone", lr_mult=0.1),
    Rule(path="backbone.layers.1", lr_mult=0.5),
]


def seeded_net() -> TorchNet:
    torch.manual_seed(0)
    return TorchNet().double()


def set_grads(model: torch.nn.Module, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    for p in model.parameters():
        p.grad = torch.randn(p.shape, generator=generator, dtype=p.dtype) if p.requires_grad else None


def as_tree(model: torch.nn.Module, value: str = "data") -> Any:
    """A torch net's tensors in the structure of `numpy_tree`."""
    tree: dict[str, Any] = {}
    for name, p in model.named_parameters():
        *above, leaf = name.split(".")
        node = tree
        for segment in above:
            node = node.setdefault(segment, {})
        node[leaf] = jnp.asarray(getattr(p, value).numpy(), dtype=jnp.float64)
    tree["backbone"]["layers"] = [tree["backbone"]["layers"][i] for i in "01"]
    return tree


def test_torch_groups_are_coalesced_and_named() -> None:
    groups = group_params(TorchNet(), RULES).param_groups()
    assert [(g["name"], g["param_names"]) for g in groups] == [
        ("default", ["embed.weight", "head.weight"]),
        ("lr_mult=0.1", ["backbone.stem.weight", "backbone.layers.0.weight"]),
        (
            "decay_mult=0.0, lr_mult=0.1",
            ["backbone.stem.bias", "backbone.norm.weight", "backbone.norm.bias", "backbone.layers.0.bias"],
        ),
        ("lr_mult=0.5", ["backbone.layers.1.weight"]),
        ("decay_mult=0.0, lr_mult=0.5", ["backbone.layers.1.bias"]),
        ("decay_mult=0.0", ["head.bias"]),
    ]
    assert groups[2]["lr_mult"] == 0.1
    assert "lr" not in groups[2]


def test_names_of_groups_are_short_and_tell_them_apart() -> None:
    rules = [Rule(path="head", lr_mult=0.7**4), Rule(path="embed", lr_mult=0.7**4 + 1e-9)]
    groups = group_params(TorchNet(), rules)
    assert [g.name for g in groups.groups] == ["lr_mult=0.2401", "default", f"lr_mult={0.7**4}"]
    assert [total.params for total in groups.explain().totals] == [1, 8, 2]
    assert repr(groups) == "Groups(11 parameters, 0 of them frozen, in 3 groups)"


def test_group_field_keeps_groups_apart() -> None:
    rules = [Rule(path="head", group="top"), Rule(path="embed", group="bottom")]
    groups = group_params(TorchNet(), rules).param_groups()
    assert [(g["name"], len(g["params"])) for g in groups] == [("bottom", 1), ("default", 8), ("top", 2)]
    assert all("group" not in g for g in groups)


def test_baked_groups_in_torch_equal_live_ones_in_the_bridge() -> None:
    ours, theirs = seeded_net(), seeded_net()
    bridge = funcopt.TorchBridge(group_params(ours, RULES).param_groups(), funcopt.adamw, lr=1e-2, weight_decay=0.1)
    baked = group_params(theirs, RULES).param_groups(lr=1e-2, weight_decay=0.1)
    assert all({"lr_mult", "decay_mult"}.isdisjoint(g) for g in baked)
    optimizer = torch.optim.AdamW(baked)
    schedulers = [torch.optim.lr_scheduler.ExponentialLR(o, 0.9) for o in (bridge, optimizer)]
    for seed in range(10):
        for model, o, scheduler in zip((ours, theirs), (bridge, optimizer), schedulers, strict=True):
            set_grads(model, seed)
            o.step()
            scheduler.step()
    for p, q in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-12, atol=1e-14)


def test_multipliers_scale_the_floor_of_a_schedule_and_of_a_torch_scheduler() -> None:
    net = seeded_net()
    bridge = group_params(net, [Rule(path="head", lr_mult=0.1)], "sgd").optimizer(lr=1.0)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(bridge, T_max=1, eta_min=0.5)
    bridge.step()
    scheduler.step()
    before = net.head.weight.detach().clone()
    for p in net.parameters():
        p.grad = torch.ones_like(p)
    bridge.step()
    torch.testing.assert_close(before - net.head.weight.detach(), torch.full_like(before, 0.05), rtol=1e-6, atol=0)

    schedule = clip(step_lr(1.0, 1, 0.1), floor=0.5)
    lr = group_params(numpy_tree(), [Rule(path="head", lr_mult=0.1)]).hyperparams(lr=schedule)["lr"]
    assert float(lr["head"](3)) == pytest.approx(0.05)
    assert float(lr["backbone"](3)) == 0.5
    assert lr["backbone"] is schedule


def test_jax_hyperparams_are_the_shortest_prefixes() -> None:
    hyperparams = group_params(numpy_tree(), RULES).hyperparams(lr=1.0, weight_decay=0.5)
    assert hyperparams == {
        "lr": {
            "embed": 1.0,
            "backbone": {"stem": 0.1, "norm": 0.1, "layers": [0.1, 0.5]},
            "head": 1.0,
        },
        "weight_decay": {
            "embed": 0.5,
            "backbone": {
                "stem": {"weight": 0.5, "bias": 0.0},
                "norm": 0.0,
                "layers": [{"weight": 0.5, "bias": 0.0}, {"weight": 0.5, "bias": 0.0}],
            },
            "head": {"weight": 0.5, "bias": 0.0},
        },
    }


def test_hyperparams_of_a_rule_take_the_others_from_the_algorithm() -> None:
    rules = [Rule(path="head", betas=(0.8, 0.9)), Rule(path="embed", amsgrad=True)]
    hyperparams = group_params(numpy_tree(), rules, "adamw").hyperparams(lr=0.1)
    default = (0.9, 0.999)
    assert hyperparams["betas"] == {"embed": default, "backbone": default, "head": (0.8, 0.9)}
    assert hyperparams["amsgrad"] == {"embed": True, "backbone": False, "head": False}
    state = funcopt.adamw(**hyperparams).init(numpy_tree())
    assert state.max_exp_avg_sq["head"]["bias"] is None


@pytest.mark.parametrize("algorithms", [False, True])
def test_torch_and_jax_run_the_same(algorithms: bool) -> None:
    rules = [*RULES, Rule(path="embed", freeze=True)]
    if algorithms:
        rules.append(Rule(path="backbone.layers", ndim=2, algorithm="sgd", momentum=0.9, lr_mult=3.0))
    with jax.enable_x64(True):
        net = seeded_net()
        params = as_tree(net)
        bridge = group_params(net, rules, funcopt.adamw).optimizer(lr=step_lr(1e-2, 3), weight_decay=0.1)
        tx = group_params(params, rules, funcopt.adamw).optimizer(lr=step_lr(1e-2, 3), weight_decay=0.1)
        state = tx.init(params)
        update = jax.jit(tx.update)
        for seed in range(8):
            set_grads(net, seed)
            updates, state = update(as_tree(net, "grad"), state, params)
            params = funcopt.apply_updates(params, updates)
            bridge.step()
        expected = as_tree(net)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-12, atol=1e-15), params, expected)


def test_frozen_means_no_update_no_decay_no_state() -> None:
    net = seeded_net()
    groups = group_params(net, [Rule(path="backbone", freeze=True)], "adamw")
    optimizer = groups.optimizer(lr=0.1, weight_decay=0.5)
    before = copy.deepcopy(net.state_dict())
    set_grads(net, 0)
    optimizer.step()
    for name, p in net.named_parameters():
        frozen = name.startswith("backbone")
        assert torch.equal(p, before[name]) is frozen
        assert (p in optimizer.state) is not frozen
    assert groups.freeze() == [name for name, _ in net.named_parameters() if name.startswith("backbone")]
    assert not any(p.requires_grad for p in net.backbone.parameters())

    params = numpy_tree()
    tx = group_params(params, [Rule(path="backbone", freeze=True)], "adamw").optimizer(lr=0.1, weight_decay=0.5)
    state = tx.init(params)
    moments = 2 * sum(x.size for x in jax.tree.leaves([params["embed"], params["head"]]))
    assert sum(x.size for x in jax.tree.leaves(state) if x.ndim) == moments
    updates, _ = tx.update(jax.tree.map(jnp.ones_like, params), state, params)
    assert not any(jnp.any(x) for x in jax.tree.leaves(updates["backbone"]))
    assert all(jnp.all(x != 0) for x in jax.tree.leaves(updates["head"]))


def test_hyperparams_never_move_what_is_frozen() -> None:
    params = numpy_tree()
    hyperparams = group_params(params, [Rule(path="embed", freeze=True)]).hyperparams(lr=0.1, weight_decay=0.5)
    tx = funcopt.sgd(**hyperparams)
    updates, _ = tx.update(jax.tree.map(jnp.ones_like, params), tx.init(params), params)
    assert not jnp.any(updates["embed"]["weight"])
    assert jnp.all(updates["head"]["bias"] != 0)


def test_requires_grad_false_is_frozen() -> None:
    net = TorchNet()
    net.head.requires_grad_(False)
    table = group_params(net, [Rule(kind="head", lr_mult=2)], "sgd").explain(lr=1.0)
    assert [row[2:] for row in table.rows[-2:]] == [("not trainable", "-", "-", "frozen", "frozen")] * 2
    assert len(group_params(net).param_groups()[0]["params"]) == 9


def muon_rules() -> list[Rule]:
    hidden = Rule(ndim=2, where=lambda p: p.kinds.isdisjoint({"embedding", "head"}), algorithm="muon", lr_mult=20.0)
    return [hidden, Rule(ndim=1, decay_mult=0.0)]


def test_muon_and_adamw_in_one_optimizer_equal_torch_s_two() -> None:
    ours, theirs = seeded_net().float(), seeded_net().float()
    bridge = group_params(ours, muon_rules(), "adamw").optimizer(lr=1e-3, weight_decay=0.1)
    matrices = [p for name, p in theirs.named_parameters() if "layers" in name and p.ndim == 2]
    vectors = [p for p in theirs.parameters() if p.ndim == 1]
    rest = [theirs.embed.weight, theirs.backbone["stem"].weight, theirs.head.weight]
    optimizers = [
        torch.optim.Muon(matrices, lr=0.02, weight_decay=0.1),
        torch.optim.AdamW([{"params": rest}, {"params": vectors, "weight_decay": 0.0}], lr=1e-3, weight_decay=0.1),
    ]
    schedulers = [torch.optim.lr_scheduler.StepLR(o, 2) for o in (bridge, *optimizers)]
    for seed in range(5):
        set_grads(ours, seed)
        set_grads(theirs, seed)
        for o in (bridge, *optimizers):
            o.step()
        for scheduler in schedulers:
            scheduler.step()
    for (name, p), q in zip(ours.named_parameters(), theirs.parameters(), strict=True):
        # Muon's iteration is in bfloat16, so a product summed in another order differs in its last digit.
        tolerance = 1e-3 if name.startswith("backbone.layers") and p.ndim == 2 else 1e-6
        torch.testing.assert_close(p, q, rtol=tolerance, atol=tolerance * 0.1)


def test_several_algorithms_have_one_state_dict() -> None:
    first, second = seeded_net(), seeded_net()
    make = lambda net: group_params(net, muon_rules(), "adamw").optimizer(lr=1e-3, weight_decay=0.1)  # noqa: E731
    one, two = make(first), make(second)
    set_grads(first, 0)
    one.step()
    keys = {name: set(one.state[p]) for name, p in first.named_parameters()}
    assert keys["backbone.layers.0.weight"] == {"momentum_buffer"}
    assert keys["head.weight"] == {"step", "exp_avg", "exp_avg_sq"}
    second.load_state_dict(first.state_dict())
    two.load_state_dict(copy.deepcopy(one.state_dict()))  # otherwise, as in torch, they would share it
    three = pickle.loads(pickle.dumps(two))
    for o, net in ((one, first), (two, second)):
        set_grads(net, 1)
        o.step()
    for p, q in zip(first.parameters(), second.parameters(), strict=True):
        assert torch.equal(p, q)
    assert three.state_dict()["param_groups"][0]["algorithm"] == "adamw"


def test_each_algorithm_has_its_own_defaults() -> None:
    bridge = group_params(TorchNet(), muon_rules(), "adamw").optimizer(lr=1e-3)
    decay = {g["algorithm"]: g["weight_decay"] for g in bridge.param_groups}
    assert decay == {"adamw": 0.01, "muon": 0.1}


def test_rule_that_gives_the_default_algorithm_makes_no_group() -> None:
    groups = group_params(TorchNet(), [Rule(path="head", algorithm="adamw")], "adamw")
    assert [g.name for g in groups.groups] == ["default"]


@pytest.mark.parametrize("rules", [RULES, [*RULES, Rule(path="embed", algorithm="sgd")]])
def test_wrap_sees_all_parameters(rules: list[Rule]) -> None:
    clip_all = lambda tx: funcopt.chain(funcopt.clip_by_global_norm(0.5), tx)  # noqa: E731
    net, clipped = seeded_net(), seeded_net()
    bridge = group_params(net, rules, "sgd").optimizer(lr=1.0, wrap=clip_all)
    plain = group_params(clipped, rules, "sgd").optimizer(lr=1.0)
    set_grads(net, 0)
    set_grads(clipped, 0)
    torch.nn.utils.clip_grad_norm_(clipped.parameters(), 0.5)
    bridge.step()
    plain.step()
    for p, q in zip(net.parameters(), clipped.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-12, atol=1e-14)


def test_labels_are_for_partition() -> None:
    rules = [Rule(path="backbone", freeze=True), Rule(path="head", algorithm="sgd")]
    assert group_params(numpy_tree(), rules, "adamw").labels() == {
        "embed": "adamw",
        "backbone": "frozen",
        "head": "sgd",
    }


def test_what_rules_set_for_one_algorithm_another_has_a_default_for() -> None:
    """No base value is given: AdamW's decay is multiplied, SGD has 0, and its learning rate is its own default."""
    params = numpy_tree()
    rules = [Rule(kind="bias", decay_mult=0.5, lr_mult=2.0), Rule(path="head.weight", algorithm="sgd")]
    tx = group_params(params, rules, "adamw").optimizer()
    updates, _ = tx.update(params, tx.init(params), params)
    np.testing.assert_allclose(updates["head"]["weight"], -1e-3, rtol=1e-6)
    np.testing.assert_allclose(updates["head"]["bias"], -2e-3 * (1 + 0.5e-2), rtol=1e-5)
    np.testing.assert_allclose(updates["embed"]["weight"], -1e-3 * (1 + 1e-2), rtol=1e-5)


def test_value_without_a_default_is_asked_for() -> None:
    rules = [Rule(kind="bias", lr_mult=2.0), Rule(path="head.weight", algorithm=optax.sgd)]
    with pytest.raises(ValueError, match="optimizer: lr must be given, sgd has no default for it"):
        group_params(numpy_tree(), rules, "adamw").optimizer()


TABLE = [
    "name shape rule lr weight decay algorithm group",
    "embed.weight 5x4 - 0.001 0.1 adamw default",
    "backbone.stem.weight 4x1x3 path=backbone - - frozen frozen",
    "head.bias 2 kind=bias|norm + path=head 0.01 0 adamw decay_mult=0.0, lr_mult=10.0",
]


def test_explain_prints_a_table() -> None:
    rules = [
        Rule(kind=("bias", "norm"), decay_mult=0.0),
        Rule(path="backbone", freeze=True),
        Rule(path="head", lr_mult=10.0),
    ]
    table = group_params(TorchNet(), rules, "adamw").explain(lr=1e-3, weight_decay=0.1)
    lines = str(table).splitlines()
    assert set(TABLE) <= {" ".join(line.split()) for line in lines}
    assert lines[-6:] == [
        "group                         parameters  elements",
        "default                                1        20",
        "frozen                                 8        64",
        "lr_mult=10.0                           1         8",
        "decay_mult=0.0, lr_mult=10.0           1         2",
        "total                                 11        94",
    ]


def test_explain_without_base_values_shows_multipliers() -> None:
    rows = group_params(TorchNet(), RULES).explain(lr=step_lr(0.1, 2)).rows
    assert (rows[1].lr, rows[1].weight_decay) == ("schedule * 0.1", "base")
    assert rows[2].weight_decay == "base * 0"


def test_same_rules_give_the_same_table_on_a_tree() -> None:
    torch_table = group_params(TorchNet(), RULES, "adamw").explain(lr=1e-3, weight_decay=0.1)
    tree_table = group_params(numpy_tree(), RULES, "adamw").explain(lr=1e-3, weight_decay=0.1)
    assert sorted(torch_table.rows) == sorted(tree_table.rows)
    assert sorted(torch_table.totals) == sorted(tree_table.totals)
    other = group_params(numpy_tree(), RULES[1:], "adamw").explain(lr=1e-3, weight_decay=0.1)
    assert sorted(other.rows) != sorted(tree_table.rows)


@pytest.mark.parametrize(
    "model",
    [
        lambda net: list(net.named_parameters()),
        lambda net: net.named_parameters(),
        lambda net: dict(net.named_parameters()),
        lambda net: torch.nn.Sequential(net)[0],
    ],
)
def test_named_tensors_are_a_model_too(model: Any) -> None:
    net = TorchNet()
    groups = group_params(model(net), [Rule(path="backbone", lr_mult=0.1)], "sgd")
    sizes = {g["name"]: len(g["params"]) for g in groups.param_groups()}
    assert sizes == {"default": 3, "lr_mult=0.1": 8}
    groups.optimizer(lr=0.1)


@pytest.mark.parametrize("package", ["groups", "config"])
def test_importing_imports_no_torch(package: str) -> None:
    code = f"import sys, funcopt.{package}; print('torch' in sys.modules, 'yaml' in sys.modules)"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert result.stdout.split() == ["False", "False"], result.stderr
