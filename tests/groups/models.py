"""One small network in torch, as nested dicts, and (if it is installed) in equinox, with the same names and shapes."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import torch


class TorchNet(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = torch.nn.Embedding(5, 4)
        self.backbone = torch.nn.ModuleDict(
            {
                "stem": torch.nn.Conv1d(4, 4, 3, groups=4),
                "norm": torch.nn.LayerNorm(4),
                "layers": torch.nn.ModuleList([torch.nn.Linear(4, 4), torch.nn.Linear(4, 4)]),
            }
        )
        self.head = torch.nn.Linear(4, 2)


def numpy_tree() -> dict[str, Any]:
    return {
        "embed": {"weight": jnp.ones((5, 4))},
        "backbone": {
            "stem": {"weight": jnp.ones((4, 1, 3)), "bias": jnp.ones(4)},
            "norm": {"weight": jnp.ones(4), "bias": jnp.ones(4)},
            "layers": [{"weight": jnp.ones((4, 4)), "bias": jnp.ones(4)} for _ in range(2)],
        },
        "head": {"weight": jnp.ones((2, 4)), "bias": jnp.ones(2)},
    }


@functools.cache
def equinox_net() -> Any:
    import equinox as eqx  # pyright: ignore[reportMissingImports]  # an extra

    class Backbone(eqx.Module):
        stem: eqx.nn.Conv1d
        norm: eqx.nn.LayerNorm
        layers: list

    class Net(eqx.Module):
        embed: eqx.nn.Embedding
        backbone: Backbone
        head: eqx.nn.Linear
        activation: Any

    key = jax.random.key(0)
    backbone = Backbone(
        eqx.nn.Conv1d(4, 4, 3, groups=4, key=key),
        eqx.nn.LayerNorm(4),
        [eqx.nn.Linear(4, 4, key=key), eqx.nn.Linear(4, 4, key=key)],
    )
    return Net(eqx.nn.Embedding(5, 4, key=key), backbone, eqx.nn.Linear(4, 2, key=key), jax.nn.relu)
