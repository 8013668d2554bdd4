"""docs/troubleshooting.md has an entry for every message that funcopt raises or warns with, which its text finds."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "troubleshooting.md"

GAP = "\0"  # what depends on values
WARNINGS = {"warn", "_warn_once"}
# Of a call by one of these names the arguments are owner, argument and allowed set, or the last two.
CHECKS = {"fail": 3, "Refused": 2}
# What they return or collect are messages, or ends of them.
SPEAKERS = re.compile(r"_find_\w+|refuse_unless_\w+")
# What these say is caught inside of funcopt, and is at most part of a message.
INSIDE = {"NotByRows", "NotCovered", "_NoCompilerError"}
# Where a message is handed on that is made elsewhere: it is read there, or is a law, which says all by itself.
HANDED_ON = {"funcopt/_law_error.py", "funcopt/schedules/_inspect.py", "funcopt/torch_bridge/_binding.py"}


class Message(NamedTuple):
    place: str
    text: str

    @property
    def fragment(self) -> str:
        """The longest part of it that is always the same."""
        return max(map(str.strip, self.text.split(GAP)), key=len)


class Reader:
    """The messages of one module."""

    def __init__(self, path: Path, tree: ast.Module, speakers: dict[str, list[ast.expr]]) -> None:
        self.place, self.tree, self.speakers = path.relative_to(ROOT).as_posix(), tree, speakers
        self.constants = {
            target.id: node.value
            for node in self.tree.body
            if isinstance(node, ast.Assign)
            for target in node.targets
            if isinstance(target, ast.Name)
        }

    def texts(self, node: ast.expr) -> list[str]:
        """What an expression may be as a string, with gaps."""
        match node:
            case ast.Constant(value=str(text)):
                return [text]
            case ast.JoinedStr(values=parts):
                return ["".join(self.texts(part)[0] for part in parts)]
            case ast.FormattedValue(value=ast.Name(id=name)) if name in self.constants:
                return self.texts(self.constants[name])
            case ast.Name(id=name) if name in self.constants:
                return self.texts(self.constants[name])
            case ast.BinOp(left=left, op=ast.Add(), right=right):
                return [a + b for a in self.texts(left) for b in self.texts(right)]
            case ast.Call(func=ast.Name(id="next"), args=[ast.GeneratorExp(elt=item)]):
                return self.texts(item)
            case ast.Call() if name_of(node.func) in self.speakers:
                return [text for said in self.speakers[name_of(node.func)] for text in self.texts(said)]
        return [GAP]

    def messages(self) -> Iterator[Message]:
        for node in ast.walk(self.tree):
            for text in filter(None, self._said(node)):
                yield Message(f"{self.place}:{getattr(node, 'lineno', 0)}", text)

    def _said(self, node: ast.AST) -> list[str]:
        match node:
            case ast.Call(func=function, args=[*args]) if name_of(function) in CHECKS and args:
                *owner, argument, allowed = (self.texts(arg)[0] for arg in args[: CHECKS[name_of(function)]])
                return ["".join([*(f"{text}: " for text in owner), f"{argument} must be {allowed}, got {GAP}"])]
            case ast.Call(func=function, args=[text, *_]) if name_of(function) in WARNINGS:
                return self.texts(text)
            case ast.Raise(exc=ast.Call(func=function, args=[text, *_])) if name_of(function) not in {*CHECKS, *INSIDE}:
                return self.texts(text)
            case ast.FunctionDef(name=name) if SPEAKERS.fullmatch(name):
                return [text for said in returned(node) for text in self.texts(said) if text != GAP]
        return []


def name_of(function: ast.expr) -> str:
    return getattr(function, "attr", getattr(function, "id", ""))


def returned(function: ast.AST) -> Iterator[ast.expr]:
    """What a function returns or appends, and the items of lists that it returns."""
    for node in ast.walk(function):
        match node:
            case ast.Return(value=ast.List(elts=[*items])):
                yield from items
            case ast.Return(value=ast.ListComp(elt=item)):
                yield item
            case ast.Return(value=ast.expr() as value):
                yield value
            case ast.Call(func=ast.Attribute(attr="append"), args=[item]):
                yield item


def modules() -> list[Path]:
    return sorted((ROOT / "funcopt").rglob("*.py"))


def messages() -> list[Message]:
    trees = [ast.parse(path.read_text(encoding="utf-8")) for path in modules()]
    nodes = [node for tree in trees for node in ast.walk(tree)]
    makers = {
        name_of(call.func)
        for node in nodes
        if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call) and node.exc.args
        for call in ast.walk(node.exc.args[0])
        if isinstance(call, ast.Call)
    }
    speakers: dict[str, list[ast.expr]] = {}
    for node in nodes:
        if isinstance(node, ast.FunctionDef) and node.name in makers:
            speakers.setdefault(node.name, []).extend(returned(node))
    readers = [Reader(path, tree, speakers) for path, tree in zip(modules(), trees, strict=True)]
    return [message for reader in readers for message in reader.messages()]


def entries() -> list[str]:
    """The messages at the heads of the page's entries."""
    text = PAGE.read_text(encoding="utf-8")
    return [line for _, line in re.findall(r"^\*\*(`+) ?(.+?) ?\1\*\*$", text, re.MULTILINE)]


def is_of(entry: str, message: Message) -> bool:
    """Whether an entry has a message's fragment; one that says little by itself must be there as a whole."""
    if len(message.fragment) > 16:
        return message.fragment in entry
    return bool(message.fragment) and entry.endswith(re.sub(r"(\.\.\.)+", "...", message.text.replace(GAP, "...")))


def test_every_message_has_an_entry() -> None:
    page = entries()
    said = [m for m in messages() if m.fragment or m.place.partition(":")[0] not in HANDED_ON]
    missing = [f"{m.place}: {m.text.replace(GAP, '...')}" for m in said if not any(is_of(entry, m) for entry in page)]
    assert not missing, "docs/troubleshooting.md lacks\n" + "\n".join(missing)


def test_every_range_is_on_the_page() -> None:
    text = " ".join(PAGE.read_text(encoding="utf-8").split())
    written = [re.findall(r"\bRange\(\"(.+?)\"", path.read_text(encoding="utf-8")) for path in modules()]
    assert not {own for found in written for own in found if f"`{own}`" not in text}


def test_every_entry_is_of_a_message() -> None:
    """None stays behind when a message is changed, and none stands there twice."""
    said, page = messages(), entries()
    assert not [entry for entry in page if not any(is_of(entry, message) for message in said)]
    assert len(page) == len(set(page))


def test_a_new_message_would_be_missed() -> None:
    source = """
_OWNER = "somebody"
raise ValueError(f"{_OWNER}: this is what nobody has said, got {value!r}")
_checks.fail("somebody", "something", "what nobody has asked for", value)
raise Refused("something", "what nobody has refused", value)
warnings.warn(f"{value} is what nobody has warned of", stacklevel=2)
raise ValueError(text)
"""
    found = [*Reader(ROOT / "funcopt" / "new.py", ast.parse(source), {}).messages()]
    assert len(found) == 5
    assert not any(is_of(entry, message) for entry in entries() for message in found if message.fragment)
    assert [message.text for message in found if not message.fragment] == [GAP]
