"""flax's nnx, where it is in use; it is never imported from here."""

import sys
from typing import Any


def nnx() -> Any:
    """The module `flax.nnx` if it is imported, else None."""
    return sys.modules.get("flax.nnx")


def unboxed(tree: Any) -> Any:
    """A tree of masks, labels or numbers with nnx's variables replaced by their values.

    `jax.tree.map` over `nnx.state(module, nnx.Param)` makes a tree of variables. `nnx.Optimizer` calls `init` with
    variables and `update` with arrays; a value in a variable's place is a prefix of both.
    """
    module = nnx()
    return tree if module is None else module.as_pure(tree)
