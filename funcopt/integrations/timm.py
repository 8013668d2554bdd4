"""funcopt's optimizers in timm's registry: `timm.optim.create_optimizer_v2(model, "funcopt-adamw")`."""

from collections.abc import Mapping
from typing import Any

from timm.optim._optim_factory import (  # pyright: ignore[reportMissingImports]
    OptimInfo,
    default_registry,  # timm has no other way in
    get_optimizer_info,
)

from funcopt import _checks
from funcopt.groups._algorithms import Factory, arguments_of
from funcopt.integrations._recipes import PREFIX, maker, recipes_or_own, refuse_taken

_OWNER = "funcopt.integrations.timm.register"


def register(
    recipes: Mapping[str, Factory] | None = None, *, prefix: str = PREFIX, force: bool = False
) -> tuple[str, ...]:
    """Gives timm's `create_optimizer_v2`, and with it `train.py --opt`, further names.

    timm reads what stands behind the last underscore of a name, so names have none: `schedule_free_adamw` is
    "funcopt-schedulefreeadamw". timm's own prefix goes before: "lookahead_funcopt-adamw". As with its own optimizers
    timm hands on a `weight_decay`, and a `momentum` (0.9 if nothing is said) to those that have one.

    Args:
        recipes: factories by name, such as `{"mine": recipe}`, each with arguments `lr` and `weight_decay`; None for
            all of funcopt's optimizers that have these.
        prefix: what the names begin with, without underscores; "" for none.
        force: whether to replace what has a name already.

    Returns:
        The names.

    Raises:
        ValueError: for a name that is taken, a prefix with an underscore, or a recipe that takes no `weight_decay`.

    Example:
        >>> import timm, torch
        >>> from funcopt.integrations.timm import register
        >>> names = register()
        >>> optimizer = timm.optim.create_optimizer_v2(torch.nn.Linear(2, 1), "funcopt-lion", lr=1e-4, weight_decay=0.1)
        >>> type(optimizer).__name__, [group["weight_decay"] for group in optimizer.param_groups]
        ('TorchBridge', [0.0, 0.1])
    """
    if "_" in prefix:
        _checks.fail(_OWNER, "prefix", "without '_', behind which timm would look for the name", prefix)
    infos = {}
    for name, factory in recipes_or_own(recipes).items():
        arguments = arguments_of(factory)
        if {"lr", "weight_decay"} <= {*arguments}:
            has: dict[str, Any] = {f"has_{key}": key in arguments for key in ("eps", "momentum", "betas")}
            make: Any = maker(factory)
            info = OptimInfo(f"{prefix}{name.replace('_', '')}".lower(), make, f"funcopt's {name}", **has)
            infos[info.name] = info
        elif recipes is not None:
            _checks.fail(_OWNER, name, "a recipe with arguments lr and weight_decay, which timm gives", factory)
    known = default_registry.list_optimizers()
    fresh = [info for name, info in infos.items() if name not in known or get_optimizer_info(name) != info]
    for info in fresh:
        if info.name in known and not force:
            refuse_taken(_OWNER, info.name)
    for info in fresh:
        default_registry.register(info)
    return tuple(infos)
