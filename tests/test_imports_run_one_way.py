"""Imports run one way: from the lower layers to the higher ones, in no circle, and at the top of each file."""

import ast
import graphlib
import itertools
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).parents[1]

# From low to high, without `funcopt.`; a layer imports itself and what stands above it here. What is not named belongs
# to its package.
LAYERS = (
    ("_checks", "_flax", "_law_error", "_names", "_numerics", "_parts", "_rows", "_tree"),
    ("kinds",),
    ("_program",),
    ("_lift",),
    ("rule",),
    ("frame",),
    ("algorithms", "transforms", "schedules", "_inspect", "_memory", "_catalogue", "interop_optax"),
    ("groups",),
    ("config._read", "config._spec", "config._optimizers"),
    ("config._registry",),
    ("config.dialects",),
    ("config._assemble", "config._schedule"),
    ("config._build",),
    ("config._explain",),
    ("config",),
    ("plot",),
    ("tools",),
    ("",),  # the public names
    ("__main__",),
    ("integrations",),  # asked for, each by its name
)
# The bridge stands beside them: what it sees, and who sees it.
BRIDGE = "torch_bridge"
BELOW_BRIDGE = (*itertools.chain(*LAYERS[:6]), "algorithms", "transforms", "_catalogue")
ABOVE_BRIDGE = ("groups", "config._build", "tools", "", "integrations")  # what makes the optimizer of a torch model
BRIDGE_LAYERS = (
    ("_buffers", "_groups", "_metrics", "_processes", "_sam", "_shards"),
    ("_units", "_matching", "_binding", "_evaluation"),
    ("engines",),
    ("store",),
    ("_bridge", "_convert", "_functional", "_lbfgs", "_sam"),
    ("_lr_scheduler", "optim"),
    ("_laws", "_tools", "_trials"),
    ("",),
)
# Importing funcopt imports no torch, so these import the bridge when it is asked for.
LATE = {
    *((source, "funcopt.torch_bridge") for source in ("funcopt", "funcopt.groups._groups", "funcopt.config._build")),
    *((f"funcopt.tools.{name}", "funcopt.torch_bridge._tools") for name in ("_command", "_show_config")),
    *((f"funcopt.tools.{name}", f"funcopt.torch_bridge.{name}") for name in ("_laws", "_trials")),
    ("funcopt.tools._command", "funcopt.plot"),  # which needs matplotlib
}


class Import(NamedTuple):
    """One arrow."""

    source: str
    target: str  # a module, whatever of it is imported
    late: bool = False  # whether a function imports it

    def __str__(self) -> str:
        return f"{self.source} imports {self.target}"


def imports_of(source: str, text: str, modules: Sequence[str] = ()) -> Iterator[Import]:
    """What a file imports, `import_module` with a name included.

    Args:
        source: the module's name.
        text: the file.
        modules: names of modules: `from package import name` is an import of the module if there is one.
    """
    return _imports(source, ast.parse(text), frozenset(modules), late=False)


def _imports(source: str, node: ast.AST, modules: frozenset[str], late: bool) -> Iterator[Import]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Import):
            yield from (Import(source, alias.name, late) for alias in child.names)
        elif isinstance(child, ast.ImportFrom):
            assert child.module is not None, f"{source}: a relative import"
            for alias in child.names:
                full = f"{child.module}.{alias.name}"
                yield Import(source, full if full in modules else child.module, late)
        elif isinstance(child, ast.Call) and ast.unparse(child.func).endswith("import_module"):
            yield from (Import(source, name.value, late) for name in child.args if isinstance(name, ast.Constant))
        within = late or isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        yield from _imports(source, child, modules, within)


def files() -> dict[str, str]:
    """The text of each module of funcopt."""
    found = {}
    for path in sorted((ROOT / "funcopt").rglob("*.py")):
        name = ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
        found[name] = path.read_text()
    return found


def all_imports() -> list[Import]:
    texts = files()
    return [arrow for name, text in texts.items() for arrow in imports_of(name, text, [*texts])]


def within_funcopt(arrows: Sequence[Import]) -> list[Import]:
    return [arrow for arrow in arrows if arrow.target.split(".")[0] == "funcopt"]


def place(module: str) -> str:
    """The longest name in the tables that a module falls under; an error for a part of funcopt that is in none."""
    name = module.removeprefix("funcopt").removeprefix(".")
    known = [*(name for layer in LAYERS for name in layer if name), BRIDGE]
    found = [k for k in known if name == k or name.startswith(f"{k}.")]
    assert found or not name, f"{module} has no layer: give it one in LAYERS"
    return max(found, key=len, default="")


RANK = {name: rank for rank, layer in enumerate(LAYERS) for name in layer}


def upward(arrows: Sequence[Import]) -> list[Import]:
    """Arrows from a layer to a higher one."""

    def allowed(source: str, target: str) -> bool:
        if BRIDGE in (source, target):
            return source == target or (target in BELOW_BRIDGE if source == BRIDGE else source in ABOVE_BRIDGE)
        return RANK[target] <= RANK[source]

    return [arrow for arrow in arrows if not allowed(place(arrow.source), place(arrow.target))]


def cycle(arrows: Sequence[Import]) -> list[str]:
    """Modules that import each other in a circle; none if there is no circle."""
    graph: dict[str, set[str]] = {}
    for arrow in arrows:
        graph.setdefault(arrow.source, set()).add(arrow.target)
    try:
        graphlib.TopologicalSorter(graph).prepare()
    except graphlib.CycleError as error:
        return error.args[1]
    return []


def late(arrows: Sequence[Import]) -> list[Import]:
    """Arrows that a function hides, without those that there is a reason for."""
    return [arrow for arrow in arrows if arrow.late and arrow[:2] not in LATE]


def test_no_arrow_goes_up() -> None:
    assert [*map(str, upward(within_funcopt(all_imports())))] == []


def test_no_arrow_goes_up_in_the_bridge() -> None:
    within = f"funcopt.{BRIDGE}"
    height = {name: i for i, layer in enumerate(BRIDGE_LAYERS) for name in layer}

    def layer(module: str) -> int:
        return height[module.removeprefix(within).removeprefix(".").split(".")[0]]

    own = [a for a in all_imports() if a.source.startswith(within) and a.target.startswith(within)]
    assert len(own) > 30
    assert [str(arrow) for arrow in own if layer(arrow.source) < layer(arrow.target)] == []


def test_there_is_no_circle() -> None:
    assert cycle(within_funcopt(all_imports())) == []


def test_imports_stand_at_the_top() -> None:
    assert [*map(str, late(within_funcopt(all_imports())))] == []


def test_only_the_bridge_imports_torch() -> None:
    importers = {place(arrow.source) for arrow in all_imports() if arrow.target.split(".")[0] == "torch"}
    assert importers == {BRIDGE}


def test_every_module_is_read() -> None:
    assert {place(name) for name in files()} >= {"", "_tree", "transforms", "config.dialects", BRIDGE}
    assert len(within_funcopt(all_imports())) > 200


def arrows(graph: Mapping[str, Sequence[str]]) -> list[Import]:
    return [Import(f"funcopt.{a}", f"funcopt.{b}") for a, targets in graph.items() for b in targets]


SOUND = {
    "transforms._clip": ["_tree", "rule", "transforms._scale"],
    "torch_bridge._binding": ["kinds", "transforms"],
    "config._build": ["torch_bridge", "config._registry", "groups"],
    "groups._params": ["_checks"],
}


@pytest.mark.parametrize(
    ("source", "target"),
    [
        ("_tree", "transforms._clip"),
        ("kinds", "rule"),
        ("schedules._step", "groups"),
        ("groups._names", "config"),
        ("config._registry", "config.dialects.timm"),
        ("config.dialects.torch", "config._build"),
        ("config._schedule", "torch_bridge"),
        ("transforms._lbfgs", "torch_bridge"),
        ("torch_bridge.optim", "schedules"),
        ("torch_bridge.optim", "config._build"),
        ("config", "integrations.timm"),
        ("torch_bridge", "integrations._recipes"),
    ],
)
def test_an_upward_arrow_is_found(source: str, target: str) -> None:
    assert upward(arrows(SOUND)) == []
    (found,) = upward(arrows({**SOUND, source: [target]}))
    assert found == Import(f"funcopt.{source}", f"funcopt.{target}")


def test_the_public_names_are_above_everything() -> None:
    assert upward([Import("funcopt", "funcopt.torch_bridge")]) == []
    assert upward([Import("funcopt.torch_bridge.optim", "funcopt"), Import("funcopt.config", "funcopt")]) != []


def test_a_circle_is_found() -> None:
    """Within a layer, where no arrow goes up."""
    graph = {**SOUND, "transforms._scale": ["transforms._mask"], "transforms._mask": ["transforms._clip"]}
    assert upward(arrows(graph)) == []
    assert cycle(arrows(SOUND)) == []
    assert {*cycle(arrows(graph))} == {f"funcopt.transforms.{name}" for name in ("_clip", "_scale", "_mask")}


def test_a_part_without_a_layer_is_found() -> None:
    with pytest.raises(AssertionError, match=r"funcopt\.utils has no layer"):
        upward(arrows({"utils": ["_tree"]}))


def test_all_kinds_of_imports_are_read() -> None:
    text = """
import funcopt.rule, os
from funcopt import config, sgd
from funcopt.groups import Rule
class A:
    from funcopt import kinds
    def f(self):
        with x:
            from funcopt.config import build
        g = lambda: importlib.import_module("funcopt.torch_bridge")
"""
    modules = ["funcopt.config", "funcopt.kinds"]
    assert [*imports_of("funcopt.x", text, modules)] == [
        Import("funcopt.x", "funcopt.rule"),
        Import("funcopt.x", "os"),
        Import("funcopt.x", "funcopt.config"),
        Import("funcopt.x", "funcopt"),
        Import("funcopt.x", "funcopt.groups"),
        Import("funcopt.x", "funcopt.kinds"),
        Import("funcopt.x", "funcopt.config", late=True),
        Import("funcopt.x", "funcopt.torch_bridge", late=True),
    ]
    assert len(late([*imports_of("funcopt.x", text)])) == 2
    assert late([*imports_of("funcopt.config._build", "def f():\n from funcopt.torch_bridge import X")]) == []
