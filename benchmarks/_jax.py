"""optax against funcopt in a JAX loop: one jitted step that takes parameters and state by donation."""

import os
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np
import torch

import funcopt
from benchmarks._case import BenchmarkCase
from benchmarks._measure import Finding, Triad, duration, ratio
from benchmarks._settings import Results, Row, Settings, rejected
from benchmarks._workloads import Workload


class Loop:
    """A transformation compiled for a workload, and its parameters."""

    def __init__(self, tx: Any, problem: "Arrays") -> None:
        self.params = problem.params()
        self.state = tx.init(self.params)
        self._grads = problem.grads

        def update(params: Any, state: Any, grads: Any) -> Any:
            updates, state = tx.update(grads, state, params)
            return funcopt.apply_updates(params, updates), state

        start = time.perf_counter()
        lowered = jax.jit(update, donate_argnums=(0, 1)).lower(self.params, self.state, self._grads)
        traced = time.perf_counter()
        self._compiled = lowered.compile()
        self.trace_seconds, self.compile_seconds = traced - start, time.perf_counter() - traced

    def step(self) -> None:
        """One update, waited for."""
        self.params, self.state = jax.block_until_ready(self._compiled(self.params, self.state, self._grads))

    def extra_bytes(self) -> int:
        """Memory that the program takes beside its arguments."""
        memory: Any = self._compiled.memory_analysis()
        return memory.temp_size_in_bytes + memory.output_size_in_bytes - memory.alias_size_in_bytes


class Arrays(NamedTuple):
    """Parameters and gradients of a workload."""

    start: list[np.ndarray]
    grads: list[jax.Array]

    @staticmethod
    def of(workload: Workload) -> "Arrays":
        rng = np.random.default_rng(0)
        start = [0.05 * rng.standard_normal(shape, np.float32) for shape in workload.shapes]
        # On the device and of its own, so that the start survives the donation.
        return Arrays(start, [jax.device_put(20 * np.roll(array, 1)) for array in start])

    def params(self) -> list[jax.Array]:
        return [jax.numpy.array(array) for array in self.start]

    def error(self, actual: Loop, expected: Loop) -> float:
        """The largest difference between parameters, relative to the largest change."""
        difference = change = 0.0
        for a, b, start in zip(actual.params, expected.params, self.start, strict=True):
            difference = max(difference, float(np.abs(np.asarray(a) - np.asarray(b)).max()))
            change = max(change, float(np.abs(np.asarray(b) - start).max()))
        return difference / change


def measure(case: BenchmarkCase, workload: Workload, settings: Settings, triad: Triad) -> Results:
    """The comparison of a case on a workload.

    Findings: `jax/CASE/WORKLOAD/CANDIDATE`, how many times faster `funcopt` or `joined` (small leaves in one array)
    steps than optax, and `compile/...`, the same of tracing and compiling.
    """
    assert case.optax is not None
    ours: dict[str, Callable[[], Any]] = {"funcopt": lambda: case.jax(workload.shapes)}
    if case.joinable:
        ours["joined"] = lambda: funcopt.join_small_leaves(case.jax(workload.shapes))
    problem = Arrays.of(workload)
    loops: dict[str, Loop] = {}
    compiling: dict[str, Finding] = {}

    def make(name: str, tx: Any) -> None:
        loops[name] = Loop(tx, problem)

    optax = case.optax
    for name, factory in {"optax": lambda: optax(workload.shapes), **ours}.items():
        quiet = triad.once(lambda name=name, factory=factory: make(name, factory()))
        seconds = loops[name].trace_seconds + loops[name].compile_seconds
        compiling[name] = quiet._replace(value=seconds, low=seconds, high=seconds, best=seconds)
    for _ in range(settings.warmup):
        for loop in loops.values():
            loop.step()
    rounds = settings.run({name: loop.step for name, loop in loops.items()}, triad)
    results = Results()
    for name, loop in loops.items():
        step, versus, error = duration(rounds, name), None, None
        if name in ours:
            error = problem.error(loop, loops["optax"])
            wrong = "" if error <= case.tolerance else f"{error:.1e} from optax"
            step = step._replace(wrong=wrong)
            versus = ratio(rounds, name, "optax", wrong)
            results.findings[f"jax/{case.name}/{workload.name}/{name}"] = versus
            times = compiling["optax"].value / compiling[name].value
            noise = compiling["optax"].noise or compiling[name].noise
            results.findings[f"compile/{case.name}/{workload.name}/{name}"] = Finding.exact(times)._replace(noise=noise)
        efficiency = None
        if case.min_bytes is not None:
            efficiency = case.min_bytes * workload.elements / step.value / rounds.bandwidth()
        extra = loop.extra_bytes() / (4 * workload.elements)
        results.rows.append(
            Row(
                "jax",
                case.name,
                workload.name,
                name,
                step,
                versus,
                efficiency,
                compiling[name],
                extra,
                error,
                rejected(rounds),
            )
        )
    return results


def device_of(device: torch.device) -> Any:
    """The JAX device that the loops run on; a GPU's memory is shared with torch."""
    if device.type == "cuda":
        os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    return jax.devices(device.type)[device.index or 0]
