"""What rules select, how they merge, and what they refuse."""

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import pytest
import torch
from groups.models import TorchNet, numpy_tree

import funcopt
from funcopt.groups import KINDS, Rule, group_params

STEM = ["backbone.stem.weight", "backbone.stem.bias"]
NORM = ["backbone.norm.weight", "backbone.norm.bias"]
LAYER_0 = ["backbone.layers.0.weight", "backbone.layers.0.bias"]
LAYER_1 = ["backbone.layers.1.weight", "backbone.layers.1.bias"]
HEAD = ["head.weight", "head.bias"]
ALL = ["embed.weight", *STEM, *NORM, *LAYER_0, *LAYER_1, *HEAD]


def selected(model: Any, rule: Rule) -> list[str]:
    """Names of the parameters that the rule selects, in the order of `ALL`."""
    found = {a.param.name for a in group_params(model, [rule]).assignments if a.rules}
    assert found <= set(ALL)
    return [name for name in ALL if name in found]


SELECTIONS = [
    (Rule(path="backbone", lr_mult=2), [*STEM, *NORM, *LAYER_0, *LAYER_1]),
    (Rule(path="backbone.layers", lr_mult=2), [*LAYER_0, *LAYER_1]),
    (Rule(path="backbone.layers.*.bias", lr_mult=2), [LAYER_0[1], LAYER_1[1]]),
    (Rule(path="backbone.*.bias", lr_mult=2), [STEM[1], NORM[1]]),
    (Rule(path="**.bias", lr_mult=2), [name for name in ALL if name.endswith(".bias")]),
    (Rule(path="**", lr_mult=2), ALL),
    (Rule(path="backbone.**", lr_mult=2), [*STEM, *NORM, *LAYER_0, *LAYER_1]),
    (Rule(path="backbone.layers.?", lr_mult=2), [*LAYER_0, *LAYER_1]),
    (Rule(path=("backbone.s*", "head"), lr_mult=2), [*STEM, *HEAD]),
    (Rule(regex=r"layers\.[1-9]", lr_mult=2), LAYER_1),
    (Rule(regex=r"norm|stem", lr_mult=2), [*STEM, *NORM]),
    (Rule(regex=r"^head", lr_mult=2), HEAD),
    (Rule(kind="bias", lr_mult=2), [name for name in ALL if name.endswith(".bias")]),
    (Rule(kind="norm", lr_mult=2), NORM),
    (Rule(kind="depthwise", lr_mult=2), STEM),
    (Rule(kind="embedding", lr_mult=2), ["embed.weight"]),
    (Rule(kind="head", lr_mult=2), HEAD),
    (Rule(kind=("norm", "head"), lr_mult=2), [*NORM, *HEAD]),
    (Rule(ndim=1, lr_mult=2), [STEM[1], *NORM, LAYER_0[1], LAYER_1[1], HEAD[1]]),
    (Rule(ndim=lambda n: n > 2, lr_mult=2), [STEM[0]]),
    (Rule(shape=(4, 4), lr_mult=2), [LAYER_0[0], LAYER_1[0]]),
    (Rule(shape=(None, 4), lr_mult=2), ["embed.weight", LAYER_0[0], LAYER_1[0], HEAD[0]]),
    (Rule(shape=lambda shape: 5 in shape, lr_mult=2), ["embed.weight"]),
    (Rule(where=lambda p: p.layer == "head", lr_mult=2), HEAD),
    (Rule(path="backbone", kind="bias", lr_mult=2), [STEM[1], NORM[1], LAYER_0[1], LAYER_1[1]]),
]


@pytest.mark.parametrize("make", [TorchNet, numpy_tree])
@pytest.mark.parametrize(("rule", "names"), SELECTIONS, ids=[rule.name for rule, _ in SELECTIONS])
def test_selection(make: Callable[[], Any], rule: Rule, names: Sequence[str]) -> None:
    assert selected(make(), rule) == list(names)


@pytest.mark.parametrize(
    ("regex", "matches"),
    [("head", False), ("decode_head", True), ("code_head", False), ("decode_head\\.conv", True)],
)
def test_regex_covers_whole_segments(regex: str, matches: bool) -> None:
    params = {"decode_head": {"conv": jnp.ones(2)}}
    assert Rule(regex=regex, lr_mult=2).matches(group_params(params).assignments[0].param) is matches


KIND_TABLE = [
    # name, shape, kinds, of parameters in plain dicts
    ("layer1.0.bn1.weight", (8,), {"norm"}),
    ("layer1.0.bn1.bias", (8,), {"norm", "bias"}),
    ("h.0.ln_1.weight", (8,), {"norm"}),
    ("ln_f.bias", (8,), {"norm", "bias"}),
    ("LayerNorm_0.scale", (8,), {"norm"}),
    ("input_layernorm.weight", (8,), {"norm"}),
    ("wte.weight", (50, 8), {"embedding"}),
    ("Embed_0.embedding", (50, 8), {"embedding"}),
    ("pos_embed", (1, 5, 8), {"embedding"}),
    ("patch_embed.proj.weight", (8, 3, 4, 4), set()),
    ("Conv_0.kernel", (3, 3, 1, 8), {"depthwise"}),
    ("conv.weight", (8, 1, 3, 3), {"depthwise"}),
    ("conv.weight", (8, 2, 3, 3), set()),
    ("conv_offset.weight", (18, 8, 3, 3), {"dcn_offset"}),
    ("attn.in_proj_bias", (24,), {"bias"}),
    ("mlp.fc1.weight", (8, 8), set()),
    ("fc.weight", (10, 8), {"head"}),
    ("decode_head.conv.bias", (10,), {"head", "bias"}),
    ("classifier.weight", (10, 8), {"head"}),
    ("multihead.weight", (10, 8), set()),
]


@pytest.mark.parametrize(("name", "shape", "kinds"), KIND_TABLE)
def test_kinds_from_names_and_shapes(name: str, shape: tuple[int, ...], kinds: set[str]) -> None:
    (assignment,) = group_params({name: jnp.ones(shape)}).assignments
    assert assignment.param.kinds == kinds
    assert kinds <= set(KINDS)


def test_kinds_from_modules_come_before_names() -> None:
    class Scale(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = torch.nn.Parameter(torch.ones(3))

    model = torch.nn.ModuleDict(
        {
            "plain": torch.nn.GroupNorm(1, 3),
            "norm1": Scale(),
            "pos_embed": torch.nn.Linear(3, 3, bias=False),
            "one_channel": torch.nn.Conv2d(1, 4, 3, bias=False),
            "deep": torch.nn.Conv2d(4, 8, 3, groups=4),
        }
    )
    kinds = {a.param.name: a.param.kinds for a in group_params(model).assignments}
    assert kinds == {
        "plain.weight": {"norm"},
        "plain.bias": {"norm", "bias"},
        "norm1.weight": set(),
        "pos_embed.weight": set(),
        "one_channel.weight": set(),
        "deep.weight": {"depthwise"},
        "deep.bias": {"depthwise", "bias"},
    }


def test_rules_merge_field_by_field_and_later_ones_win() -> None:
    rules = [
        Rule(path="backbone", lr_mult=0.1),
        Rule(kind="bias", decay_mult=0.0, lr_mult=2.0),
        Rule(path="backbone.norm", decay_mult=0.5),
        Rule(path="head", lr_mult=1.0),
    ]
    settings = {a.param.name: a.settings for a in group_params(numpy_tree(), rules).assignments}
    assert settings["backbone.stem.weight"] == {"lr_mult": 0.1}
    assert settings["backbone.stem.bias"] == {"lr_mult": 2.0, "decay_mult": 0.0}
    assert settings["backbone.norm.bias"] == {"lr_mult": 2.0, "decay_mult": 0.5}
    assert settings["head.bias"] == {"decay_mult": 0.0}


def test_prefixes_of_wrappers_do_not_count() -> None:
    class Wrapper(torch.nn.Module):
        def __init__(self, name: str, module: torch.nn.Module) -> None:
            super().__init__()
            setattr(self, name, module)

    net = TorchNet()
    setattr(net, "head", Wrapper("_orig_mod", net.head))  # noqa: B010  # as torch.compile does
    for model in (net, Wrapper("module", net), Wrapper("_orig_mod", Wrapper("module", net))):
        assert selected(model, Rule(path="head.weight", lr_mult=2)) == ["head.weight"]
        assert [a.param.name for a in group_params(model).assignments] == ALL
    assert [a.param.name for a in group_params({"params": numpy_tree()}).assignments[:1]] == ["backbone.layers.0.bias"]


ERRORS = [
    (
        lambda: group_params(TorchNet(), [Rule(path="bakbone", lr_mult=0.1)]),
        (
            "Rule(path='bakbone', lr_mult=0.1): the pattern 'bakbone' must match a parameter, but matches none; "
            "did you mean 'backbone'? (optional=True allows it)"
        ),
    ),
    (
        lambda: group_params(TorchNet(), [Rule(path=("head", "**.wieght"), lr_mult=0.1)]),
        "the pattern '**.wieght' must match a parameter, but matches none; did you mean 'weight'?",
    ),
    (
        lambda: group_params(numpy_tree(), [Rule(regex="layer", lr_mult=0.1)]),
        "the pattern 'layer' must match a parameter, but matches none; did you mean 'backbone.layers'?",
    ),
    (
        lambda: group_params(TorchNet(), [Rule(path="head", kind="norm", lr_mult=0.1)]),
        "Rule(path='head', kind='norm', lr_mult=0.1): the rule must match a parameter, but matches none",
    ),
    (
        lambda: group_params(TorchNet(), [Rule(pth="head", lr_mult=0.1)]),
        "Rule(lr_mult=0.1, pth='head'): pth must be a hyperparameter, which it is not; did you mean 'path'?",
    ),
    (
        lambda: group_params(TorchNet(), [Rule(kind="bias", momentun=0.1)], "sgd"),
        "momentun must be a hyperparameter of sgd, which it is not; did you mean 'momentum'?",
    ),
    (
        lambda: Rule(kind="biases"),
        (
            "Rule: kind must be one of bias, norm, depthwise, dcn_offset, embedding, head, got "
            "'biases'; did you mean 'bias'?"
        ),
    ),
    (lambda: Rule(algorithm="admw"), "got 'admw'; did you mean 'adamw'?"),
    (lambda: Rule(lr_mult=-1.0), "Rule: lr_mult must be >= 0, got -1.0"),
    (lambda: Rule(regex="("), "Rule: regex must be a regular expression, got '('"),
    (
        lambda: group_params(
            TorchNet(), [Rule(path="head", algorithm="muon"), Rule(path="head.weight", algorithm="sgd")], "adamw"
        ),
        (
            "group_params: 'head.weight' must have one algorithm, got 'muon' from Rule(path='head', algorithm='muon') "
            "and 'sgd' from Rule(path='head.weight', algorithm='sgd')"
        ),
    ),
    (
        lambda: group_params(
            TorchNet(), [Rule(path="head", algorithm=lambda lr: funcopt.sgd(lr))], lambda lr: funcopt.adam(lr)
        ),
        "group_params: algorithms must have names of their own, got two that are '<lambda>'",
    ),
    (
        lambda: group_params(torch.nn.Sequential(torch.nn.LazyLinear(3))),
        "group_params: '0.weight' must have a shape, which it gets when the model is called first",
    ),
    (lambda: group_params({}), "group_params: the model must have parameters, got dict without any"),
    (
        lambda: group_params(numpy_tree(), [Rule(path="head", lr_mult=0.1)]).hyperparams(weight_decay=0.1),
        "hyperparams: lr must be given, since a rule sets lr_mult; pass lr=...",
    ),
    (
        lambda: group_params(numpy_tree(), [Rule(path="head", algorithm="sgd")], "adamw").hyperparams(lr=0.1),
        "hyperparams: rules set several algorithms, which have different ones; use optimizer(...)",
    ),
    (lambda: group_params(TorchNet()).hyperparams(lr=0.1), "hyperparams: the model must be a pytree"),
    (lambda: group_params(numpy_tree()).param_groups(), "param_groups: the model must be a torch model"),
    (
        lambda: group_params(TorchNet(), [Rule(path="head", decay_mult=0.0)]).param_groups(lr=0.1),
        "param_groups: weight_decay must be given, since a rule sets decay_mult=0.0",
    ),
    (
        lambda: group_params(TorchNet(), [Rule(path="head", algorithm="muon")]).param_groups(lr=0.1),
        "param_groups: a torch optimizer has one algorithm; use optimizer(lr=..., ...)",
    ),
    (lambda: group_params(TorchNet()).optimizer(lr=0.1), "optimizer: the algorithm must be known"),
    (
        lambda: group_params(TorchNet(), [], "sgd").optimizer(lr=0.1, weight_deacy=0.1),
        "optimizer: weight_deacy must be a hyperparameter of sgd, which it is not; did you mean 'weight_decay'?",
    ),
    (
        lambda: group_params(numpy_tree(), [Rule(path="head", decay_mult=0.0)], "rprop").optimizer(lr=0.1),
        "hyperparams: a rule sets decay_mult, but rprop has no weight_decay",
    ),
]


@pytest.mark.parametrize(("make", "message"), ERRORS, ids=range(len(ERRORS)))
def test_error_says_what_is_wrong(make: Callable[[], Any], message: str) -> None:
    with pytest.raises(ValueError, match=r"must|use|but") as error:
        make()
    assert message in str(error.value)


def test_ready_transformation_is_no_algorithm() -> None:
    with pytest.raises(TypeError, match=r"such as funcopt.adamw instead of funcopt.adamw\(1e-3\)"):
        Rule(algorithm=funcopt.adamw(1e-3))  # pyright: ignore[reportArgumentType]


def test_optional_pattern_may_match_nothing() -> None:
    assert selected(TorchNet(), Rule(path="neck", lr_mult=2, optional=True)) == []


def tied_model() -> torch.nn.Module:
    model = torch.nn.ModuleDict({"wte": torch.nn.Embedding(5, 4), "lm_head": torch.nn.Linear(4, 5, bias=False)})
    model["lm_head"].weight = model["wte"].weight
    return model


def test_tied_parameters() -> None:
    (assignment,) = group_params(tied_model(), [Rule(ndim=2, decay_mult=0.5)]).assignments
    assert assignment.param.name == "wte.weight"
    assert [alias.name for alias in assignment.param.aliases] == ["lm_head.weight"]
    rule = Rule(path="lm_head", lr_mult=0.1)
    with pytest.raises(ValueError, match=r"'wte.weight' and 'lm_head.weight' are one tied parameter") as e:
        group_params(tied_model(), [rule])
    assert "got nothing from no rule and lr_mult=0.1 from ('path=lm_head',)" in str(e.value)
    (first,) = group_params(tied_model(), [rule], tied="first").assignments
    assert first.settings == {}


def test_arrays_that_are_one_object_are_two_parameters_in_jax() -> None:
    zeros = jnp.zeros(2)
    groups = group_params({"a": zeros, "b": zeros}, [Rule(path="a", lr_mult=0.1)])
    assert groups.hyperparams(lr=1.0) == {"lr": {"a": 0.1, "b": 1.0}}


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class Variable:
    """Stands for flax nnx's, which has this name, as those below."""

    value: Any


class Param(Variable): ...


class BatchStat(Variable): ...


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class BatchNorm:
    scale: Any
    bias: Any
    mean: Any


for box in (Param, BatchStat):
    jax.tree_util.register_dataclass(box, ["value"], [])


class State(Mapping[str, Any]):
    """Stands for nnx's mapping, which is no dict."""

    def __init__(self, **content: Any) -> None:
        self.content = content

    def __getitem__(self, key: str) -> Any:
        return self.content[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self.content)

    def __len__(self) -> int:
        return len(self.content)


jax.tree_util.register_pytree_with_keys(
    State,
    lambda state: ([(jax.tree_util.DictKey(key), value) for key, value in state.items()], tuple(state)),
    lambda keys, values: State(**dict(zip(keys, values, strict=True))),
)


def test_boxes_around_arrays_are_no_layers() -> None:
    norm = BatchNorm(Param(jnp.ones(2)), Param(jnp.ones(2)), BatchStat(jnp.ones(2)))
    model = {"norm": norm, "linear": {"kernel": Param(jnp.ones((2, 2)))}}
    groups = group_params(model, [Rule(kind="norm", decay_mult=0.0)])
    assert [(a.param.name, a.param.module is norm, a.frozen) for a in groups.assignments] == [
        ("linear.kernel", False, False),
        ("norm.scale", True, False),
        ("norm.bias", True, False),
        ("norm.mean", True, True),
    ]
    assert groups.hyperparams(weight_decay=1.0)["weight_decay"]["linear"] == 1.0


def test_mapping_is_no_layer_whatever_its_class() -> None:
    state = State(
        norm=State(scale=Param(jnp.ones(2)), mean=BatchStat(jnp.ones(2))), dense=State(kernel=jnp.ones((2, 2)))
    )
    records = {a.param.name: a for a in group_params(state).assignments}
    assert records["norm.scale"].param.kinds == {"norm"}
    assert records["norm.scale"].param.module is None
    assert {name: record.frozen for name, record in records.items()} == {
        "norm.scale": False,
        "norm.mean": True,
        "dense.kernel": False,
    }


def test_param_knows_its_layer() -> None:
    seen: list[funcopt.groups.Param] = []
    group_params(TorchNet(), [Rule(where=lambda p: bool(seen.append(p)), lr_mult=2)])
    layer = next(param for param in seen if param.name == "backbone.layers.0.weight")
    assert (layer.layer, layer.leaf, layer.ndim) == ("backbone.layers.0", "weight", 2)
    assert layer.is_in("Linear")
    assert layer.is_in("Module")
    assert not layer.is_in("Conv1d", "Embedding")
    assert type(layer.parent).__name__ == "ModuleList"
