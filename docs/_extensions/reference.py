"""Writes the API reference: docstrings by autodoc, and of each optimizer what its definition says.

`python docs/_extensions/reference.py` lists public names without an entry, or without an example, and exits with 1 if
there are some.
"""

import importlib
import inspect
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import torch

import funcopt
from funcopt.rule import DEFINITIONS
from funcopt.torch_bridge import optim

DOCS = Path(__file__).parents[1]
ROOT = DOCS.parent
SIDE = 1024

MODULES = {
    "funcopt": "Transformations, wrappers and functions of the top level; the optimizers have a [page](optimizers.md).",
    "funcopt.schedules": "Pure functions of the step.",
    "funcopt.groups": "Hyperparameters by rule.",
    "funcopt.config": "Optimizers from configs.",
    "funcopt.torch_bridge": "Recipes as torch optimizers.",
    "funcopt.torch_bridge.optim": "Classes with their references' names and constructors.",
    "funcopt.plot": "Pictures.",
    "funcopt.kinds": "What an argument may be.",
    "funcopt.rule": "What an algorithm is made of.",
    "funcopt.frame": "What algorithms share.",
}

MADE = ("gallery", "project", "reference")  # folders that the build fills
PAPERS = ("ARCHITECTURE", "CONTRIBUTING", "SECURITY", "CHANGELOG")
SHARED = ("bias_correction", "lerp", "once", "root")  # which `funcopt.frame` takes from below

# What functions return: nobody writes its name.
RESULTS = {
    "Algorithm": "algorithms",
    "Comparison": "compare",
    "CycledSchedule": "one_cycle_lr",
    "Explanation": "explain",
    "Groups": "group_params",
    "LoadReport": "load_state_dict",
    "Memory": "memory",
    "Optimizers": "build_optimizer",
    "Table": "explain",
}


def public(module: Any) -> list[str]:
    """The names of a module that are its own, in the order of the alphabet."""
    return [
        name
        for name in sorted(dir(module), key=str.lower)
        if not name.startswith("_") and _is_own(module, getattr(module, name))
    ]


def _is_own(module: Any, value: Any) -> bool:
    origin = getattr(value, "__module__", None) or ""
    if inspect.ismodule(value) or not callable(value):
        return False
    if module.__name__ == "funcopt.frame":
        return origin == module.__name__ or value.__name__ in SHARED
    if module.__name__ in ("funcopt.kinds", "funcopt.rule", "funcopt.plot", "funcopt.torch_bridge.optim"):
        own = (
            not inspect.isclass(value) or issubclass(value, torch.optim.Optimizer) or module.__name__ == "funcopt.rule"
        )
        return origin.startswith(module.__name__) and own
    return origin.startswith("funcopt")


def optimizers() -> list[str]:
    return [*funcopt.algorithms()]


def entries() -> dict[str, list[str]]:
    """By page: the full names that have an entry on it."""
    directions = [name for name in public(funcopt) if name.startswith("scale_by_") and name in DEFINITIONS]
    of_pages = {"optimizers": optimizers(), "directions": [*directions, "trace"]}
    found = {page: [f"funcopt.{name}" for name in names] for page, names in of_pages.items()}
    placed = {full for names in found.values() for full in names}
    for name in MODULES:
        found[name] = [
            f"{name}.{own}" for own in public(importlib.import_module(name)) if f"{name}.{own}" not in placed
        ]
    return found


def _shown(value: Any) -> str:
    return f"`{value!r}`".replace("|", "\\|")


def _documented(names: list[str]) -> Iterator[str]:
    for full in names:
        if full == "funcopt.TorchBridge":
            yield "\n`funcopt.TorchBridge` is [](#funcopt.torch_bridge.TorchBridge)\n"
            continue
        value = _value(full)
        kind = "autoclass" if inspect.isclass(value) else "autofunction"
        # A state is a tuple of trees: its fields are in its source, and on the page of its algorithm.
        options = ["   :members:"] if kind == "autoclass" and not _is_state(value) else []
        body = "\n".join([f".. {kind}:: {full}", *options])
        yield f"\n```{{eval-rst}}\n{body}\n```\n"


def _is_state(value: Any) -> bool:
    return inspect.isclass(value) and issubclass(value, tuple)


def _of_optimizer(name: str) -> Iterator[str]:
    found = funcopt.algorithms()[name]
    yield f"\n## {name}\n\n```{{eval-rst}}\n.. autofunction:: funcopt.{name}\n```\n"
    yield "| argument | may be | default |\n|---|---|---|"
    for argument, kind in found.kinds.items():
        default = found.defaults[argument]
        shown = "required" if default is inspect.Parameter.empty else _shown(default)
        yield f"| `{argument}` | {str(kind.text).replace('|', chr(92) + '|')} | {shown} |"
    state = funcopt.memory(found.factory(), jax.ShapeDtypeStruct((SIDE, SIDE), jnp.float32))
    keys = ", ".join(f"`{key}`" for key in found.state_keys)
    own = class_of(found)
    yield f"\nState: {keys}; {state.bytes_per_element:.3g} bytes for each element of a float32 matrix of 1,024 x 1,024."
    yield f"Formula and source: [{name}](../algorithms.md#{name}).\n"
    yield f"```python\n{example_of(found, own)}```"


def _of_direction(full: str) -> Iterator[str]:
    name = full.rpartition(".")[2]
    required = {"scale_by_learning_rate": "1e-3", "scale_by_multipliers": "0.5"}.get(name, "")
    yield f"\n```{{eval-rst}}\n.. autofunction:: {full}\n```\n"
    yield (
        "```python\nimport jax.numpy as jnp\n\nimport funcopt\n\n"
        f"tx = funcopt.chain(funcopt.{name}({required}), funcopt.scale(-1e-3))\n"
        "state = tx.init(jnp.ones((4, 3)))\n```"
    )


def class_of(found: Any) -> str:
    """The class in `funcopt.torch_bridge.optim`, "" if there is none."""
    named = getattr(getattr(found.factory, "keys", None), "torch_class", None)
    by_name = {name.lower(): name for name in dir(optim)}
    return named or by_name.get(found.name.replace("_", ""), "")


def example_of(found: Any, own: str) -> str:
    """A step in each framework."""
    lines = ["import jax.numpy as jnp", "import torch", "", "import funcopt"]
    lines += ["from funcopt.torch_bridge import optim"] if own else []
    lines += ["", f"tx = funcopt.{found.name}()", 'params = {"w": jnp.ones((4, 3))}']
    if found.name == "lbfgs":
        lines += ["state = tx.init(params)", ""]
    else:
        lines += ["params, state = funcopt.step(tx, params, tx.init(params), params)", ""]
    lines += ["w = torch.nn.Parameter(torch.ones(4, 3))"]
    lines += [f"optimizer = optim.{own}([w])" if own else f"optimizer = funcopt.TorchBridge([w], funcopt.{found.name})"]
    if found.name == "lbfgs":
        lines += ["", "", "def closure():", "    optimizer.zero_grad()", "    loss = w.square().sum()"]
        lines += ["    loss.backward()", "    return loss", "", "", "optimizer.step(closure)"]
    else:
        of_rows = "torch.nn.functional.embedding(torch.tensor([0, 2]), w, sparse=True).sum()"
        lines += [f"{of_rows if own == 'SparseAdam' else 'w.square().sum()'}.backward()", "optimizer.step()"]
    return "\n".join(lines) + "\n"


def pages() -> dict[str, str]:
    """The reference's pages, by name."""
    found = entries()
    toctree = "\n".join(["optimizers", "directions", *MODULES])
    optimizers_head = (
        "# Optimizers\n\nEach is a function that returns a transformation; all arguments may be numbers, schedules or "
        "prefixes of the parameters' tree, but for flags, integers and names.\n"
    )
    directions_head = (
        "# Directions\n\nWhat optimizers do to a gradient before the learning rate: parts of a chain, as in optax."
    )
    texts = {
        "index": f"# API reference\n\n```{{toctree}}\n:maxdepth: 1\n\n{toctree}\n```\n",
        "optimizers": "\n".join([optimizers_head, *(line for name in optimizers() for line in _of_optimizer(name))]),
        "directions": "\n".join(
            [directions_head, *(line for full in found["directions"] for line in _of_direction(full))]
        )
        + "\n",
    }
    for module, text in MODULES.items():
        body = "\n".join(_documented(found[module]))
        texts[module] = f"# {module}\n\n{text}\n{body}\n"
    return texts


def write(folder: Path) -> None:
    """Writes the pages of the reference."""
    folder.mkdir(exist_ok=True)
    for name, text in pages().items():
        _replace(folder / f"{name}.md", text)


def _replace(path: Path, text: str) -> None:
    """Writes a page if it is another one, so that an unchanged one is not built again."""
    if not path.exists() or path.read_text(encoding="utf-8") != text:
        path.write_text(text, encoding="utf-8")


def examples() -> str:
    """All code that shows how something is used: written pages and made ones, examples, and those of docstrings."""
    written = [path for path in DOCS.rglob("*.md") if path.relative_to(DOCS).parts[0] not in MADE]
    texts = [*(path.read_text(encoding="utf-8") for path in [*written, ROOT / "README.md"]), *pages().values()]
    blocks = [block for text in texts for block in re.findall(r"```(?:python|sh)\n(.*?)```", text, re.DOTALL)]
    scripts = [path.read_text() for path in (ROOT / "examples").rglob("*.py")]
    docstrings = [
        line
        for path in (ROOT / "funcopt").rglob("*.py")
        for line in path.read_text().splitlines()
        if re.match(r"\s*(>>>|\.\.\.) ", line)
    ]
    return "\n".join([*blocks, *scripts, *docstrings])


def _value(full: str) -> Any:
    module, _, name = full.rpartition(".")
    return getattr(importlib.import_module(module), name)


def without_example() -> list[str]:
    """Public names that no example uses; classes of states are what functions return, and nobody writes their names."""
    text = set(re.findall(r"\w+", examples()))
    names = [full for own in entries().values() for full in own]
    shown = {full: full.rpartition(".")[2] for full in names}
    return [full for full in names if RESULTS.get(shown[full], shown[full]) not in text and not _is_state(_value(full))]


def without_entry() -> list[str]:
    """Public names that the reference leaves out."""
    found = {name for names in entries().values() for name in names}
    return [
        f"{module}.{name}"
        for module in MODULES
        for name in public(importlib.import_module(module))
        if f"{module}.{name}" not in found
    ]


def copy_papers(folder: Path) -> None:
    """The project's own papers as pages, with their links from there."""
    folder.mkdir(exist_ok=True)
    for name in PAPERS:
        text = (ROOT / f"{name}.md").read_text(encoding="utf-8").replace("](docs/", "](../")
        for other in PAPERS:
            text = text.replace(f"]({other}.md)", f"]({other.lower()}.md)")
        _replace(folder / f"{name.lower()}.md", text)


def as_rst(app: Any, what: str, name: str, value: Any, options: Any, lines: list[str]) -> None:
    """Docstrings are written as Markdown has it: code in single backticks, tables with bars."""
    del app, what, name, value, options
    text = "\n".join(lines)
    text = re.sub(r"((?:^ *\|.*\n?)+)", lambda found: _as_list_table(found[1]), text, flags=re.MULTILINE)
    text = re.sub(r"(?<!`)`([^`\n]+)`(?!`)(?=(\w?))", lambda m: f"``{m[1]}``" + ("\\ " if m[2] else ""), text)
    outside = re.split(r"(``[^`]*``|^ *>>>.*$|^ *\.\.\. .*$)", text, flags=re.MULTILINE)
    outside[::2] = [re.sub(r"(?<!\\)\*(?! )", r"\\*", part) for part in outside[::2]]
    lines[:] = "".join(outside).split("\n")


def _as_list_table(table: str) -> str:
    rows = [
        [cell.strip() for cell in line.strip().strip("|").split("|")] for line in table.splitlines() if line.strip()
    ]
    rows = [row for row in rows if not all(set(cell) <= set("-:") and cell for cell in row)]
    lines = ["", ".. list-table::", "   :header-rows: 1", ""]
    for row in rows:
        lines += [f"   {'* -' if i == 0 else '  -'} {cell}" for i, cell in enumerate(row)]
    return "\n".join([*lines, "", ""])


def _make_pages(app: Any) -> None:
    write(Path(app.srcdir) / "reference")
    copy_papers(Path(app.srcdir) / "project")


def setup(app: Any) -> dict[str, Any]:
    app.connect("builder-inited", _make_pages, priority=1)
    app.connect("autodoc-process-docstring", as_rst, priority=1)  # before napoleon reads sections
    return {"parallel_read_safe": True}


if __name__ == "__main__":
    missing = {"without an entry": without_entry(), "without an example": without_example()}
    for what, names in missing.items():
        print(f"{what}: {len(names)}", *names, sep="\n  ")
    sys.exit(any(missing.values()))
