"""What kind a parameter is: from the class of its layer where there is one, from names and shapes where not.

Classes are told by their names, so that torch's, timm's, equinox's and flax's layers need not be imported to be known.
"""

import re
from collections.abc import Mapping
from typing import Any

KINDS = ("bias", "norm", "depthwise", "dcn_offset", "embedding", "head")
"""bias; norm (scale and bias of a normalisation); depthwise (convolution: one input channel per group); dcn_offset (it
computes the offsets of a deformable convolution); embedding (tables, position embeddings); head (the last layer)."""

_NORM_CLASS = re.compile(r"norm(act)?([123]d)?$", re.IGNORECASE)
_CONV_CLASS = re.compile(r"conv(transpose)?([123]d)?$", re.IGNORECASE)
_EMBEDDING_CLASS = re.compile(r"embed(ding)?(bag)?$", re.IGNORECASE)
_LINEAR_CLASS = re.compile(r"(linear|dense)$", re.IGNORECASE)
_DEFORMABLE_CLASS = re.compile(r"deformconv2d(pack)?$", re.IGNORECASE)

_NORM_NAME = re.compile(r"(^|_)(\w*norm|ln|bn|gn)(_?\d+|_f)?$", re.IGNORECASE)
_EMBEDDING_NAME = re.compile(r"(^|_)(embed(ding)?s?|wte|wpe)(_?\d+)?$", re.IGNORECASE)
_HEAD_NAME = re.compile(r"(^|_)heads?$|^classifier$", re.IGNORECASE)
_HEAD_AT_TOP = ("fc", "linear_head", "output_layer")


def class_names(module: Any) -> list[str]:
    """Names of an object's class and of the classes that it is derived from."""
    return [] if module is None else [cls.__name__ for cls in type(module).__mro__]


def kinds_of(param: Any, shapes: Mapping[str, tuple[int, ...]]) -> frozenset[str]:
    """The kinds of a `Param`.

    Args:
        param: the parameter.
        shapes: shape by name of all parameters, to find a bias's weight by.
    """
    classes = class_names(param.module)
    layer, leaf = param.layer.rpartition(".")[2], param.leaf
    norm, conv, embedding, linear = (
        any(map(pattern.search, classes)) for pattern in (_NORM_CLASS, _CONV_CLASS, _EMBEDDING_CLASS, _LINEAR_CLASS)
    )
    known = norm or conv or embedding or linear
    bias = leaf == "bias" or leaf.endswith("_bias") or (param.module is None and leaf == "b")
    weight = _weight_shape(param, shapes)
    kinds = {
        "bias": bias,
        "norm": norm or (param.module is None and param.ndim <= 1 and bool(_NORM_NAME.search(layer))),
        "depthwise": _is_depthwise_layer(param.module) if conv else not known and _is_depthwise(*weight),
        "dcn_offset": "offset" in layer and (conv or (not known and len(weight[1]) == 4)),
        "embedding": embedding
        or (not known and not bias and 2 <= param.ndim <= 3 and _is_embedding_name(layer, leaf, param.module)),
        "head": _is_head(param),
    }
    return frozenset(kind for kind, has in kinds.items() if has)


def _weight_shape(param: Any, shapes: Mapping[str, tuple[int, ...]]) -> tuple[str, tuple[int, ...]]:
    """Name and shape of the weight of the parameter's layer."""
    for leaf in ("weight", "kernel", "w"):
        name = f"{param.layer}.{leaf}" if param.layer else leaf
        if name in shapes:
            return leaf, shapes[name]
    return param.leaf, param.shape


def _is_depthwise_layer(module: Any) -> bool:
    groups = getattr(module, "groups", getattr(module, "feature_group_count", 1))
    channels = getattr(module, "in_channels", getattr(module, "in_features", None))
    return groups > 1 and groups == channels


def _is_depthwise(leaf: str, shape: tuple[int, ...]) -> bool:
    """By shape: flax's kernels end with (inputs per group, outputs), torch's weights start with (outputs, inputs)."""
    if not 3 <= len(shape) <= 5:
        return False
    inputs, outputs = (shape[-2], shape[-1]) if leaf == "kernel" else (shape[1], shape[0])
    return inputs == 1 and outputs > 1


def _is_embedding_name(layer: str, leaf: str, module: Any) -> bool:
    return bool(_EMBEDDING_NAME.search(leaf)) or (module is None and bool(_EMBEDDING_NAME.search(layer)))


def _is_head(param: Any) -> bool:
    segments = param.layer.split(".")
    return segments[0] in _HEAD_AT_TOP or any(map(_HEAD_NAME.search, segments))
