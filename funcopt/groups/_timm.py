"""timm's parameter groups: no decay for some, and a learning rate that falls from the head to the stem."""

import fnmatch
import math
import re
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Any, TypeAlias

from funcopt import _checks
from funcopt.groups._algorithms import Algorithm
from funcopt.groups._params import Param, list_params, unwrap
from funcopt.groups._rule import Rule
from funcopt.groups._swin import no_decay_names

GroupMatcher: TypeAlias = Mapping[str, Any] | Callable[[str], Any]

# In a group matcher: the last number of what belongs to the group before.
_WITH_PREVIOUS = 99999


def weight_decay_rules(
    model: Any = None,
    *,
    no_weight_decay_list: Collection[str] | None = None,
    weight_decay_exclude_1d: bool = True,
    fallback_list: Collection[str] = (),
    fallback_algorithm: Algorithm = "adamw",
) -> list[Rule]:
    """No decay for what has at most one dimension, is a `.bias`, or is listed: timm's `param_groups_weight_decay`.

    Args:
        model: asked for `no_weight_decay()` if it has that method.
        no_weight_decay_list: names, with `*` and `?`, instead of the model's.
        weight_decay_exclude_1d: whether the first two do not decay.
        fallback_list: names of what gets `fallback_algorithm`, for optimizers such as Muon.
        fallback_algorithm: the optimizer for these.

    Returns:
        The rules.

    Example:
        >>> [rule.name for rule in weight_decay_rules(no_weight_decay_list=["pos_embed"])]
        ['ndim <= 1 or .bias', 'no_weight_decay']
    """
    rules = [Rule(where=lambda p: p.ndim <= 1 or p.name.endswith(".bias"), decay_mult=0.0, name="ndim <= 1 or .bias")]
    listed = _listed_rules(model, no_weight_decay_list, fallback_list, fallback_algorithm)
    return (rules if weight_decay_exclude_1d else []) + listed


def layer_decay_rules(
    model: Any,
    layer_decay: float = 0.75,
    *,
    group_matcher: GroupMatcher | None = None,
    min_scale: float = 0.0,
    no_opt_scale: float | None = None,
    no_weight_decay_list: Collection[str] | None = None,
    weight_decay_exclude_1d: bool = True,
    fallback_list: Collection[str] = (),
    fallback_algorithm: Algorithm = "adamw",
) -> list[Rule]:
    """A learning rate times `layer_decay**(layers above)`: timm's `param_groups_layer_decay`.

    The layers are the model's own (`group_matcher(coarse=False)`), or else twelve parameters each with the head last.
    timm puts the factor into `lr_scale`, which its own schedulers alone obey; here it is `lr_mult`.

    Args:
        model: the model.
        layer_decay: factor from a layer to the one below, > 0.
        group_matcher: which layer a name belongs to, instead of the model's own: a function from the name to a number,
            or timm's regular expressions by name of a part.
        min_scale: smallest factor.
        no_opt_scale: layers with a smaller factor are frozen.
        no_weight_decay_list: names, with `*` and `?`, that do not decay, instead of the model's `no_weight_decay()`.
        weight_decay_exclude_1d: whether what has at most one dimension does not decay.
        fallback_list: names of what gets `fallback_algorithm`.
        fallback_algorithm: the optimizer for these.

    Returns:
        The rules.

    Raises:
        ValueError: for a factor that is not positive.

    Example:
        >>> import jax.numpy as jnp
        >>> params = {"stem": jnp.ones((2, 2)), "head": jnp.ones((2, 2))}
        >>> layer_of = {"stem": 0, "head": 1}.get
        >>> [rule.settings for rule in layer_decay_rules(params, 0.5, group_matcher=layer_of)[:2]]
        [{'lr_mult': 0.5}, {'lr_mult': 1.0}]
    """
    _checks.check_real("layer_decay_rules", "layer_decay", layer_decay, _checks.POSITIVE)
    model = unwrap(model)
    layer_of = _layers(model, group_matcher)
    top = max(layer_of.values())
    rules = []
    for layer in range(top + 1):
        factor = max(min_scale, layer_decay ** (top - layer))
        frozen = bool(no_opt_scale) and factor < (no_opt_scale or 0.0)
        where = lambda p, layer=layer: layer_of[p.name] == layer  # noqa: E731
        setting: dict[str, Any] = {"freeze": True} if frozen else {"lr_mult": factor}
        rules.append(Rule(where=where, name=f"layer {layer}", **setting))
    if weight_decay_exclude_1d:
        rules.append(Rule(ndim=lambda ndim: ndim <= 1, decay_mult=0.0, name="ndim <= 1"))
    return rules + _listed_rules(model, no_weight_decay_list, fallback_list, fallback_algorithm)


def _listed_rules(
    model: Any, no_weight_decay: Collection[str] | None, fallback: Collection[str], algorithm: Algorithm
) -> list[Rule]:
    names = no_decay_names(model, no_weight_decay)
    rules = [Rule(where=_matches_any(names), decay_mult=0.0, name="no_weight_decay")]
    if fallback:
        rules.append(Rule(where=_matches_any(fallback), algorithm=algorithm, name="fallback_list"))
    return rules


def _matches_any(patterns: Iterable[str]) -> Callable[[Param], bool]:
    patterns = list(patterns)
    return lambda param: any(fnmatch.fnmatch(param.name, pattern) for pattern in patterns)


def _layers(model: Any, matcher: GroupMatcher | None) -> dict[str, int]:
    """The layer of each parameter by name, 0 for the lowest."""
    names = [record.name for param in list_params(model) for record in (param, *param.aliases)]
    if matcher is None and hasattr(model, "group_matcher"):
        matcher = model.group_matcher(coarse=False)
    if matcher is not None:
        return _match_layers(names, matcher)
    config = getattr(model, "pretrained_cfg", None) or {}
    prefixes = config.get("classifier") or ""
    heads = (prefixes,) if isinstance(prefixes, str) else tuple(prefixes)
    trunk = [name for name in names if not name.startswith(heads)]
    layers = {name: i // 12 for i, name in enumerate(trunk)}
    return {name: layers.get(name, math.ceil(len(trunk) / 12)) for name in names}


def _match_layers(names: Iterable[str], matcher: GroupMatcher) -> dict[str, int]:
    """Layers by a model's group matcher: regular expressions by name of a part, whose groups count the layers in it."""
    places: dict[tuple[float, ...], list[str]] = {}
    for name in names:
        places.setdefault(_place(name, matcher), []).append(name)
    layers: dict[str, int] = {}
    layer = -1
    for place in sorted(places):
        if layer < 0 or place[-1] != _WITH_PREVIOUS:
            layer += 1
        layers |= dict.fromkeys(places[place], layer)
    return layers


def _place(name: str, matcher: GroupMatcher) -> tuple[float, ...]:
    if callable(matcher):
        place = matcher(name)
        return tuple(place) if isinstance(place, Iterable) else (place,)
    for part, spec in enumerate(matcher.values()):
        specs = [] if spec is None else [(spec, None)] if isinstance(spec, str) else spec
        for pattern, suffix in specs:
            match = re.match(pattern, name)
            if match:
                numbers = (part, *(group for group in match.groups() if group is not None), *(suffix or ()))
                return tuple(map(float, numbers))
    return (math.inf,)
