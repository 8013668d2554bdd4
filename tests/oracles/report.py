"""Writes docs/algorithms.md from the definitions and from the measured rows: `python tests/oracles/report.py`."""

import inspect
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import torch

sys.path.insert(0, str(Path(__file__).parent))

import harness
import rows

import funcopt
from funcopt.torch_bridge import optim

PAGE = Path(__file__).parents[2] / "docs" / "algorithms.md"
SIDE = 1024

HEAD = """# Algorithms

Every optimizer is one definition: a transformation in JAX, a factory for `TorchBridge`, a class of
`funcopt.torch_bridge.optim` under the name in the second column, and a name in configs. Made by

```sh
python tests/oracles/report.py
```

- **kind**: what an element's update depends on beside itself: nothing (element), numbers of all parameters (total), its
  array (array), or products of matrices (matrix).
- **bytes**: of state for each element of a float32 matrix of 1,024 x 1,024, with default options.
- **difference**: the largest one to the oracle's parameters after each of 30 steps in float64, relative to the way that
  an array has gone, under learning rates that change at every step and with two groups. Specifications are independent
  NumPy code (`tests/oracles/specs.py`); the packages are compared by `pytest -m clients`.

![Ways of all optimizers over two test functions, and their losses on handwritten digits](_static/all_algorithms.png)

Each with the best of 16 learning rates, the same in both frameworks: `python examples/algorithms.py`.

"""


def kind_of(found: Any) -> str:
    if found.name in MATRICES:
        return "matrix"
    rule = getattr(found.factory, "rule", None)
    totals = rule is not None and rule(**dict.fromkeys(REQUIRED.get(found.name, ()), 1.0)).total is not None
    return "total" if totals and found.elementwise else "element" if found.elementwise else "array"


MATRICES = frozenset(
    {"muon", "muon_with_adamw", "normuon", "scion", "dion", "soap", "shampoo", "kron", "galore", "apollo"}
)
REQUIRED: dict[str, tuple[str, ...]] = {}


def bytes_of(found: Any) -> float:
    param = jax.ShapeDtypeStruct((SIDE, SIDE), jnp.float32)
    state = jax.eval_shape(found.factory().init, param)
    return sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(state)) / SIDE**2


def torch_name(found: Any) -> str:
    named = {name.lower(): name for name in vars(torch.optim) if name[0].isupper()}
    return (
        found.factory.keys.torch_class
        if hasattr(found.factory, "keys") and found.factory.keys.torch_class
        else (named.get(found.name.replace("_", ""), ""))
    )


def document(found: Any) -> tuple[str, str]:
    """The first paragraph of the module of an algorithm, and its formula."""
    text = inspect.cleandoc(sys.modules[found.factory.__module__].__doc__ or "")
    paragraphs = text.split("\n\n")
    formula = "\n\n".join(part for part in paragraphs[1:] if part.startswith("    "))
    return " ".join(paragraphs[0].split()), formula


def measured(row: harness.Row) -> float:
    of = harness.problem(row)
    with jax.enable_x64(True):
        ours = harness.run_jax(row, of, jnp.float64)
    return harness.difference(ours, harness.run_spec(row, of), of.starts)


def against_torch(found: Any) -> float:
    """The largest difference of an algorithm that torch has, with its defaults."""
    shapes = ((6, 4), (4, 7)) if found.matrices_only else harness.SHAPES
    row = harness.Row(found.name, lambda *_: None, shapes=shapes, weight_decay=None)
    of = harness.problem(row)
    paths = []
    for module in (optim, torch.optim):
        make = getattr(module, torch_name(found))
        paths.append(harness.run_bridge(row, of, lambda groups, make=make: make(groups, lr=0.05)))
    return harness.difference(paths[0], paths[1], of.starts)


def oracle_of(found: Any) -> tuple[str, float | None]:
    own = [row for row in rows.ROWS if row.algorithm == found.name]
    if own:
        return "specification", max(map(measured, own))
    if found.name in ("lbfgs", "sparse_adam"):
        return "torch.optim, see [conformance](conformance.md)", None
    return "torch.optim", against_torch(found)


def lines() -> Iterator[str]:
    yield "| `funcopt.` | class | kind | bytes | state keys | oracle | difference |"
    yield "|---|---|---|---|---|---|---|"
    for name, found in funcopt.algorithms().items():
        oracle, difference = oracle_of(found)
        shown = "" if difference is None else f"{difference:.0e}"
        keys = ", ".join(f"`{key}`" for key in found.state_keys)
        size = f"{bytes_of(found):.3g}" if bytes_of(found) > 1e-4 else "0"
        cells = f"[{name}](#{name})", torch_name(found), kind_of(found), size, keys, oracle, shown
        yield f"| {' | '.join(cells)} |"
    for name, found in funcopt.algorithms().items():
        title, formula = document(found)
        yield f"\n## {name}\n\n{title}\n"
        if formula:
            yield f"```text\n{inspect.cleandoc(formula)}\n```"


def names_on_page() -> list[str]:
    """What the page has rows for."""
    return re.findall(r"^\| \[(\w+)\]", PAGE.read_text(), re.MULTILINE)


if __name__ == "__main__":
    PAGE.write_text(HEAD + "\n".join(lines()) + "\n")
