"""One loop for all results of an update on the CPU, in place of one for each.

By itself XLA:CPU computes every result in a loop of its own. AdamW then moves 40 bytes per parameter where 28 would do,
and where one loop reads what another one replaces XLA copies that first, into new memory. Its pass that merges loops,
`xla_cpu_use_multi_output_fusion`, is off by default; `compile_merging` switches it on for one program. It merges what
is computed apart (`_apart`): AdamW then moves its 28 bytes, clip + AdamW + EMA 40 of 56. Computed apart and not merged,
an update would be several times slower, so what came of it is looked at (`moves_little`).

`XLA_FLAGS=--xla_disable_hlo_passes=cpu_multi_output_fusion` keeps XLA from merging anything.
"""

from typing import Any

import jax

_PASS = b"xla_cpu_use_multi_output_fusion"

FEW = 1.25
"""Bytes that a merged update may move, relative to each argument read and each result written once. A global norm reads
the gradients once more; loops that did not merge move 1.4 times as much at least."""

FEW_WITH_SUMS = 1.9
"""The same of a recipe that takes norms of what it computes: LAMB's needs all arrays twice. Loops that did not merge
move as much for each result."""

ALLOCATING = 8
"""Bytes moved that take as long as a byte of memory that is taken from the system and given back at each step. Measured
on large arrays: 6 to 11."""

SCALARS = 2**16
"""Bytes that make no difference."""


def compile_merging(lowered: jax.stages.Lowered) -> jax.stages.Compiled:
    """Compiles a program for the CPU with the pass that merges loops; without it where JAX gives no access to it.

    The pass is an option of XLA's that JAX's `compiler_options` cannot express (its field is a map). It is written into
    the serialized options on their way from JAX to XLA.
    """
    arguments = getattr(lowered._lowering, "compile_args", {})
    if "backend" in arguments:
        arguments["backend"] = _MergingClient(arguments["backend"])
    return lowered.compile()


class _MergingClient:
    """A client of XLA that compiles with the pass."""

    def __init__(self, client: Any) -> None:
        self._client = client
        # JAX's compilation cache keeps programs by it and by the options that it knows: this is another compiler.
        self.platform_version = f"{client.platform_version} {_PASS.decode()}"

    def __getattr__(self, name: str) -> Any:
        return getattr(self._client, name)

    def compile_and_load(self, *arguments: Any, compile_options: Any, **further: Any) -> Any:
        # CompileOptionsProto.executable_build_options.debug_options.xla_backend_extra_options, an entry of the map.
        # What follows a serialized message is merged into it.
        option = _field(3, _field(3, _field(500, _field(1, _PASS) + _field(2, b"true"))))
        merging = compile_options.ParseFromString(compile_options.SerializeAsString() + option)
        return self._client.compile_and_load(*arguments, compile_options=merging, **further)


def _field(number: int, content: bytes) -> bytes:
    """A field of a protocol buffer with content of a length."""
    return _varint(number << 3 | 2) + _varint(len(content)) + content


def _varint(value: int) -> bytes:
    low, high = value & 0x7F, value >> 7
    return bytes([low | 0x80]) + _varint(high) if high else bytes([low])


def moves_little(program: jax.stages.Compiled, few: float = FEW) -> bool:
    """Whether a program hardly costs more than to read its arguments and to write its results."""
    memory: Any = program.memory_analysis()
    return cost(program) <= few * (memory.argument_size_in_bytes + memory.output_size_in_bytes) + SCALARS


def cost(program: jax.stages.Compiled) -> float:
    """What a step takes, in bytes moved."""
    memory: Any = program.memory_analysis()
    return bytes_moved(program) + ALLOCATING * memory.temp_size_in_bytes


def bytes_moved(program: jax.stages.Compiled) -> float:
    """The bytes that a program reads and writes, as XLA counts them."""
    costs: Any = program.cost_analysis()
    return costs["bytes accessed"]
