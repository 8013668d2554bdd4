"""The parameters of a model as one list of records, whatever the model is: a torch module or a JAX pytree."""

import dataclasses
import itertools
import re
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import jax

from funcopt._flax import nnx
from funcopt._names import nearest
from funcopt.groups._kinds import class_names, kinds_of
from funcopt.rule import PyTree

# Wrappers that add a segment to every name: DistributedDataParallel and flax's variable collections as the first one,
# torch.compile, FSDP and activation checkpointing anywhere.
_FIRST_SEGMENTS = ("module.", "params.")
_SEGMENTS = re.compile(r"(?:^|(?<=\.))(?:_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.")

# flax's boxes around an array, which are no layers. nnx's variables that are no `Param` (batch statistics, caches,
# random keys) are not trained; linen's boxes carry the axes of a mesh.
_BOXES = frozenset({"Variable", "VariableState", "AxisMetadata"})
_TRAINED_BOXES = frozenset({"Param", "AxisMetadata"})


@dataclasses.dataclass(frozen=True, eq=False)
class Param:
    """What a rule may ask about one parameter.

    Attributes:
        name: path with `.` between segments, without the prefixes of wrappers.
        shape: its shape.
        kinds: which of `funcopt.groups.KINDS` it is; a norm's bias is both.
        module: the layer that holds it, None in plain containers.
        parent: what holds that layer, None as above.
        value: the tensor or array.
        aliases: further names of the same parameter, if it is tied.
        trainable: False for what has `requires_grad=False`, is no floating or complex array, or is a variable of flax's
            other than a `Param`.
    """

    name: str
    shape: tuple[int, ...]
    kinds: frozenset[str] = frozenset()
    module: Any = None
    parent: Any = None
    value: Any = None
    aliases: "tuple[Param, ...]" = ()
    trainable: bool = True

    @property
    def ndim(self) -> int:
        return len(self.shape)

    @property
    def layer(self) -> str:
        """Path of the layer that holds it, "" at the top."""
        return self.name.rpartition(".")[0]

    @property
    def leaf(self) -> str:
        """Last segment of the name."""
        return self.name.rpartition(".")[2]

    def is_in(self, *classes: str) -> bool:
        """Whether the layer is of a class with one of these names, or derived from it."""
        return any(name in classes for name in class_names(self.module))

    def is_below(self, *classes: str) -> bool:
        """Whether what holds the layer is of such a class."""
        return any(name in classes for name in class_names(self.parent))


def is_torch_module(model: object) -> bool:
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(model, torch.nn.Module)


def is_tensor(value: object) -> bool:
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(value, torch.Tensor)


def unwrap(model: Any) -> Any:
    """The module inside DistributedDataParallel, torch.compile and the like; their methods hide those of the model."""
    while is_torch_module(model):
        children = dict(model.named_children())
        if list(children) not in (["module"], ["_orig_mod"], ["_fsdp_wrapped_module"], ["_checkpoint_wrapped_module"]):
            break
        if next(model.parameters(recurse=False), None) is not None:
            break
        (model,) = children.values()
    return model


def submodule(model: Any, name: str) -> Any:
    """A part of a model by its name, with `.` between segments: a torch module, or a subtree of a pytree.

    Raises:
        ValueError: with the names that there are.
    """
    part = unwrap(model)
    for i, segment in enumerate(name.split(".")):
        children = _children(part)
        if segment not in children:
            where = ".".join(name.split(".")[:i]) or "the model"
            known = ", ".join(children) or "none"
            fix = nearest(segment, children)
            raise ValueError(f"{name!r} must be a part of the model, but {where} has {known}{fix and '; ' + fix}")
        part = unwrap(children[segment])
    return part


def _children(model: Any) -> dict[str, Any]:
    """What a model consists of by the last segment of the name; not what is a single array."""
    if is_torch_module(model):
        return dict(model.named_children())
    return dict(_items(model))


def _items(node: Any) -> list[tuple[str, Any]]:
    """A pytree's children with their segments; none of a leaf."""
    # Only the root is asked first, and a child may be the root again, where an nnx module refers to itself.
    calls = itertools.count()
    children = jax.tree_util.tree_flatten_with_path(node, is_leaf=lambda x: next(calls) > 0)[0]
    return [(_segment(path[-1]), child) for path, child in children if path]


def param_tree(model: Any) -> PyTree:
    """The pytree of a JAX model's parameters, with the structure that an optimizer of flax's sees for an nnx module."""
    module = _nnx_of(model)
    return model if module is None else module.state(model, module.Param)


def list_params(model: Any) -> list[Param]:
    """The parameters of a model in its own order.

    Args:
        model: a torch module; tensors, as (name, tensor) pairs, as a mapping by name or without names; or a pytree of
            arrays, in which what is no array (an activation function, say) is no parameter. Of an nnx module, or a
            pytree of them, the `Param`s are its parameters, in the order of `param_tree`.

    Raises:
        ValueError: if there are none, or one that is not initialised yet.
    """
    if is_torch_module(model):
        params = _strip_prefixes(_list_module(model))
    elif isinstance(model, Iterable) and not isinstance(model, Mapping | str) and jax.tree_util.all_leaves([model]):
        params = _strip_prefixes(_list_pairs(model))  # a generator, such as model.named_parameters()
    elif isinstance(model, list) and model and all(map(_is_named_tensor, model)):
        params = _strip_prefixes(_list_pairs(model))
    elif _nnx_of(model) is not None:
        params = _strip_prefixes(*_list_nnx(model))
    else:
        params = _strip_prefixes([param for param, _ in _visit_tree(model)])
    if not params:
        raise ValueError(f"group_params: the model must have parameters, got {type(model).__name__} without any")
    return params


def _list_module(model: Any) -> list[Param]:
    modules = dict(model.named_modules(remove_duplicate=False))
    return [
        _record(f"{prefix}.{name}" if prefix else name, value, module, modules.get(prefix.rpartition(".")[0]))
        for prefix, module in modules.items()
        for name, value in module.named_parameters(recurse=False, remove_duplicate=False)
    ]


def _list_pairs(pairs: Iterable[Any]) -> list[Param]:
    named = [pair if isinstance(pair, tuple) else (str(i), pair) for i, pair in enumerate(pairs)]
    return [_record(name, value) for name, value in named]


def _is_named_tensor(item: object) -> bool:
    return isinstance(item, tuple) and len(item) == 2 and isinstance(item[0], str) and is_tensor(item[1])


def _visit_tree(tree: PyTree) -> Iterator[tuple[Param, Any]]:
    """The arrays of a tree in its order, each with the module that holds it and what holds that, and with its box."""

    def visit(
        node: Any, segments: tuple[str, ...], module: Any, parent: Any, box: Any, above: tuple[Any, ...]
    ) -> Iterator[tuple[Param, Any]]:
        if jax.tree_util.all_leaves([node]):
            if hasattr(node, "shape") and hasattr(node, "dtype"):
                record = _record(".".join(segments), node, module, parent)
                yield dataclasses.replace(record, trainable=record.trainable and (box is None or _is_trained(box))), box
            return
        if any(node is other for other in above):
            return  # an nnx module may refer to what holds it
        is_box = not _BOXES.isdisjoint(class_names(node))
        below = (module, parent) if is_box or isinstance(node, Mapping | list | tuple) else (node, module)
        for segment, child in _items(node):
            names = segments if is_box else (*segments, segment)
            yield from visit(child, names, *below, node if is_box else box, (*above, node))

    return visit(tree, (), None, None, None, ())


def _nnx_of(model: Any) -> Any:
    """The module `flax.nnx` if a model is made of its modules, in containers or not."""
    module = nnx()

    def has_modules(node: Any) -> bool:
        children = node.values() if isinstance(node, Mapping) else node if isinstance(node, list | tuple) else ()
        return isinstance(node, module.Module) or any(map(has_modules, children))

    return module if module is not None and has_modules(model) else None


def _list_nnx(model: Any) -> tuple[list[Param], list[Any]]:
    """The parameters of an nnx model, and for each what is the same where two names are those of one variable."""
    places = {param.name: (param, box) for param, box in _visit_tree(model)}
    names: dict[Any, list[str]] = {}  # of each variable's arrays
    for param, box in places.values():
        names.setdefault((id(box), id(param.value)), []).append(param.name)
    params: list[Param] = []
    keys: list[Any] = []
    for param, box in _visit_tree(param_tree(model)):
        # A module that is no pytree is known by its state only.
        own, variable = places.get(param.name, (param, box))
        key = (id(variable), id(own.value))
        aliases = [places[name][0] for name in names.get(key, []) if name != own.name]
        params += [own, *aliases]
        keys += [key] * (1 + len(aliases))
    return params, keys


def _is_trained(box: Any) -> bool:
    """Whether a box of flax's is a parameter; a `VariableState` names the class of its variable as `type`."""
    kind = getattr(box, "type", None)
    return not _TRAINED_BOXES.isdisjoint([*class_names(box), *(cls.__name__ for cls in getattr(kind, "__mro__", ()))])


def _segment(key: Any) -> str:
    return str(next(getattr(key, field) for field in ("key", "idx", "name") if hasattr(key, field)))


def _record(name: str, value: Any, module: Any = None, parent: Any = None) -> Param:
    if is_tensor(value) and sys.modules["torch"].nn.parameter.is_lazy(value):
        raise ValueError(f"group_params: {name!r} must have a shape, which it gets when the model is called first")
    trainable = value.requires_grad if is_tensor(value) else jax.numpy.issubdtype(value.dtype, jax.numpy.inexact)
    return Param(name, tuple(value.shape), module=module, parent=parent, value=value, trainable=bool(trainable))


def _strip_prefixes(params: list[Param], keys: Sequence[Any] | None = None) -> list[Param]:
    """Final names, the kinds that follow from them, and tied parameters as aliases of their first name.

    Args:
        params: the records.
        keys: for each what is equal where a parameter is the same; by default tensors are themselves, and two places
            of a pytree with the same array are two parameters: each gets an update of its own.
    """
    names = [_SEGMENTS.sub("", param.name) for param in params]
    for first in _FIRST_SEGMENTS:
        while names and all(name.startswith(first) for name in names):
            names = [name.removeprefix(first) for name in names]
    params = [dataclasses.replace(param, name=name) for param, name in zip(params, names, strict=True)]
    shapes = {param.name: param.shape for param in params}
    params = [dataclasses.replace(param, kinds=kinds_of(param, shapes)) for param in params]
    tied: dict[Any, list[Param]] = {}
    for i, param in enumerate(params):
        default = id(param.value) if is_tensor(param.value) else id(param)
        tied.setdefault(default if keys is None else keys[i], []).append(param)
    return [dataclasses.replace(first, aliases=tuple(rest)) for first, *rest in tied.values()]
