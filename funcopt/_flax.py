"""flax's nnx, where it is in use; it is never imported from here."""

import sys
from typing import Any

import jax


def nnx() -> Any:
    """The module `flax.nnx` if it is imported, else None."""
    return sys.modules.get("flax.nnx")


def unboxed(tree: Any) -> Any:
    """A tree of masks, labels or numbers with nnx's variables replaced by their values.

    `jax.tree.map` over `nnx.state(module, nnx.Param)` makes a tree of variables. `nnx.Optimizer` calls `init` with
    variables and `update` with arrays; a value in a variable's place is a prefix of both.
    """
    module = nnx()
    if module is None:
        return tree
    is_box = lambda x: isinstance(x, module.Variable) and len(jax.tree.leaves(x)) == 1  # noqa: E731
    return jax.tree.map(lambda x: jax.tree.leaves(x)[0] if is_box(x) else x, tree, is_leaf=is_box)
