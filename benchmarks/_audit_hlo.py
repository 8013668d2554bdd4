"""Counting what a compiled XLA program does, from the text of its optimized HLO.

    traffic     each instruction that runs reads each of its operands and writes its result, whole, once
    launches    instructions that run: fusions, copies, library calls, collectives
    aliases     outputs that live in a donated argument's memory, from the module's head

`call`, asynchronous wrappers, loops of known length and branches are followed to the instructions in them; a fusion is
one instruction, whatever it contains, which reads slices only of what it slices. Views (`bitcast`,
`get-tuple-element`) cost nothing. Where an instruction touches a part of an operand otherwise (a gather, an update of a
slice in place) the count is above the truth.
"""

import re
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from typing import Any, NamedTuple


class Instruction(NamedTuple):
    """One line of a computation."""

    name: str
    opcode: str
    bytes: int  # of the result
    operands: tuple[str, ...]
    attributes: str  # what follows the operands
    parameter: int | None  # its number, where it is one


class Module(NamedTuple):
    """A program's computations by name, in the order of the text."""

    entry: str
    computations: Mapping[str, Mapping[str, Instruction]]
    aliases: Mapping[int, int]  # flat output -> flat argument


class Count(NamedTuple):
    """What running a computation once costs."""

    bytes: int = 0
    launches: int = 0
    copies: int = 0
    collectives: tuple[tuple[str, int], ...] = ()  # (kind, how many), by kind

    def __add__(self, other: "Count") -> "Count":  # type: ignore[override]
        collectives = Counter(dict(self.collectives)) + Counter(dict(other.collectives))
        return Count(
            self.bytes + other.bytes,
            self.launches + other.launches,
            self.copies + other.copies,
            tuple(sorted(collectives.items())),
        )


_DTYPE = re.compile(r"\b([a-z]\w*)\[([\d,]*)\]")
_BITS = re.compile(r"[a-z]+(\d+)")
_NAME = re.compile(r"%([\w.\-]+)")
_ALIAS = re.compile(r"\{(\d*)\}: \((\d+), \{\}, (?:may|must)-alias\)")
_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"\}')
_CALLEE = re.compile(r"\b(?:to_apply|calls|called_computations)=\{?%([\w.\-]+)")
_BRANCHES = re.compile(r"\b(?:branch_computations=\{([^}]*)\}|(?:true|false)_computation=(%[\w.\-]+))")
_COMMENT = re.compile(r"/\*.*?\*/")

_FREE = {
    "add-dependency",
    "after-all",
    "bitcast",
    "constant",
    "domain",
    "get-tuple-element",
    "opt-barrier",
    "parameter",
    "partition-id",
    "replica-id",
    "tuple",
}
_COLLECTIVES = {
    "all-gather",
    "all-reduce",
    "all-to-all",
    "collective-broadcast",
    "collective-permute",
    "ragged-all-to-all",
    "reduce-scatter",
}


def shape_bytes(shape: str) -> int:
    """Bytes of an array or of all arrays of a tuple, from HLO's text such as `(f32[8,2]{1,0}, s32[])`."""
    total = 0
    for dtype, dims in _DTYPE.findall(shape):
        size = 1
        for dim in dims.split(","):
            size *= int(dim or 1)
        total += size * _bits(dtype) // 8
    return total


def _bits(dtype: str) -> int:
    if dtype in ("token", "opaque"):
        return 0
    if dtype == "pred":
        return 8
    match = _BITS.match(dtype)
    if match is None:
        raise ValueError(f"unknown HLO type {dtype!r}")
    return int(match[1])


def parse(text: str) -> Module:
    """Reads a module.

    Raises:
        ValueError: if there is no entry computation, or one without instructions.
    """
    computations: dict[str, dict[str, Instruction]] = {}
    entry, current = "", None
    for line in text.splitlines():
        if line.endswith("{") and (line.startswith(("%", "ENTRY"))):
            name = _NAME.search(line)
            assert name is not None
            current = computations[name[1]] = {}
            entry = name[1] if line.startswith("ENTRY") else entry
        elif line.startswith("}"):
            current = None
        elif current is not None and " = " in line:
            instruction = _parse_instruction(line)
            current[instruction.name] = instruction
    if not computations.get(entry):
        raise ValueError("no HLO with an entry computation in this text")
    head = text.split("entry_computation_layout", 1)[0]
    return Module(entry, computations, {int(output or 0): int(arg) for output, arg in _ALIAS.findall(head)})


def _parse_instruction(line: str) -> Instruction:
    left, right = _COMMENT.sub("", line).split(" = ", 1)
    end = _closing(right, 0) if right.startswith("(") else right.index(" ")
    opcode, _, rest = right[end:].lstrip().partition("(")
    close = _closing("(" + rest, 0) - 2
    operands = tuple(_NAME.findall(rest[:close]))
    name = left.strip().removeprefix("ROOT ").lstrip("%")
    parameter = int(rest[:close]) if opcode == "parameter" else None
    return Instruction(name, opcode, shape_bytes(right[:end]), operands, rest[close + 1 :], parameter)


def _closing(text: str, start: int) -> int:
    """The place behind the parenthesis that closes the one at `start`."""
    depth = 0
    for i in range(start, len(text)):
        depth += {"(": 1, ")": -1}.get(text[i], 0)
        if depth == 0:
            return i + 1
    raise ValueError(f"unbalanced HLO: {text[:80]!r}")


def count(module: Module, computation: str | None = None) -> Count:
    """What one run of a computation, by default the whole program, costs.

    Raises:
        ValueError: for a loop whose length is not known.
    """
    instructions = module.computations[computation or module.entry]
    total = Count()
    for instruction in instructions.values():
        total += _count_instruction(module, instructions, instruction)
    return total


def _count_instruction(module: Module, scope: Mapping[str, Instruction], instruction: Instruction) -> Count:
    opcode = instruction.opcode
    if opcode in _FREE or opcode in ("async-update", "async-done"):
        return Count()
    if opcode in ("call", "async-start"):
        return count(module, _callee(instruction))
    if opcode == "while":
        body, condition = (_callee(instruction, rf"\b{part}=%([\w.\-]+)") for part in ("body", "condition"))
        trips = _TRIPS.search(instruction.attributes)
        if trips is None:
            raise ValueError(f"{instruction.name}: a loop of unknown length cannot be counted")
        return sum([count(module, body) + count(module, condition)] * int(trips[1]), start=Count())
    if opcode == "conditional":
        found = "".join(map("".join, _BRANCHES.findall(instruction.attributes)))
        branches = _NAME.findall(found)
        return max((count(module, branch) for branch in branches), key=lambda cost: cost.bytes)
    if opcode.endswith("-done"):
        return Count(bytes=instruction.bytes)
    places = {name: place for place, name in enumerate(instruction.operands)}  # an operand named twice is read once
    read = sum(_read_bytes(module, scope, instruction, place) for place in places.values())
    kind = opcode.removesuffix("-start")
    return Count(
        bytes=read + (0 if opcode.endswith("-start") else instruction.bytes),
        launches=1,
        copies=int(kind == "copy"),
        collectives=((kind, 1),) if kind in _COLLECTIVES else (),
    )


def _read_bytes(module: Module, scope: Mapping[str, Instruction], instruction: Instruction, place: int) -> int:
    """Bytes that an instruction reads of its operand number `place`."""
    whole = scope[instruction.operands[place]].bytes
    if instruction.opcode != "fusion":
        return whole
    inside = module.computations[_callee(instruction)].values()
    slices = _slices(inside, next(i for i in inside if i.parameter == place))
    return min(whole, sum(size for _, size in slices)) if slices else whole


def _slices(inside: Collection[Instruction], value: Instruction) -> set[tuple[Any, int]]:
    """The slices, and their bytes, that a fusion takes of a value or of what is computed from it element by element;
    none if it uses all of it.
    """
    users: dict[str, list[Instruction]] = {}
    for instruction in inside:
        for name in instruction.operands:
            users.setdefault(name, []).append(instruction)
    found: set[tuple[Any, int]] = set()
    waiting, seen = [value.name], {value.name}
    while waiting:
        own = users.get(waiting.pop())
        if own is None:  # a result of the fusion
            return set()
        for user in own:
            if user.opcode in ("slice", "dynamic-slice"):
                found.add(((user.operands[1:], user.attributes.partition("metadata")[0]), user.bytes))
            elif user.bytes != value.bytes:
                return set()
            elif user.name not in seen:
                seen.add(user.name)
                waiting.append(user.name)
    return found


def _callee(instruction: Instruction, pattern: str | re.Pattern[str] = _CALLEE) -> str:
    match = re.search(pattern, instruction.attributes)
    if match is None:
        raise ValueError(f"{instruction.name}: {instruction.opcode} calls nothing")
    return match[1]


def largest(module: Module, number: int) -> Sequence[tuple[int, Instruction]]:
    """The entry's own instructions that move the most, with their bytes: where to look when a count is too high."""
    scope = module.computations[module.entry]
    costs = [(_count_instruction(module, scope, instruction).bytes, instruction) for instruction in scope.values()]
    return sorted(costs, key=lambda cost: -cost[0])[:number]
