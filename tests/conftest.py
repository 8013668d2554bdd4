"""Shared set-up, before JAX and torch are imported."""

import contextlib
import gc
import importlib.util
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from subjects import TRIED

os.environ.setdefault("JAX_PLATFORMS", "cpu")
# torch's and XLA's threads wait for each other actively; with a test process per core that takes most of the time.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("XLA_FLAGS", "--xla_cpu_multi_thread_eigen=false")
# Traced without noting each operation's place in the tests.
os.environ.setdefault("JAX_TRACEBACK_IN_LOCATIONS_LIMIT", "0")


def _share_programs() -> None:
    """The same program is compiled once, whichever test or run it is in.

    But not those of the processes that tests start: one that is killed may leave half a program behind.
    """
    import jax

    jax.config.update("jax_compilation_cache_dir", str(Path(__file__).parents[1] / ".pytest_cache" / "jax"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)


_share_programs()

# MMEngine's formatter writes its grammar when first imported, and what a second process reads meanwhile may be empty.
if importlib.util.find_spec("yapf"):
    importlib.import_module("yapf")

if importlib.util.find_spec("torchvision"):
    import torch

    # torchvision has no build for the CPU build of torch: without its compiled half, its Python half fails to import
    # (and timm, Lightning and transformers with it) unless these are declared.
    torchvision = torch.library.Library("torchvision", "FRAGMENT")
    for operator in ("nms", "qnms"):
        with contextlib.suppress(RuntimeError):  # the compiled half is there
            torchvision.define(f"{operator}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")


@pytest.fixture(autouse=True, scope="module")
def quick_collections() -> None:
    """What torch, JAX and other modules consist of stays anyway: garbage collections, which are many, pass it by."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def quick_compilation(request: pytest.FixtureRequest) -> Iterator[None]:
    """Laws hold whatever XLA makes of a program, and most of their time is its: a third less without optimization."""
    path = request.path
    if path.parent.name not in ("contract", "rule", "oracles", "transforms") and path.name != "test_reference.py":
        yield
        return
    import jax

    before = jax.config.values["jax_disable_most_optimizations"]
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", before)


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: Sequence[pytest.Item]) -> None:
    """Marks what is crossed with further algorithms, and their further options, as thorough."""
    import funcopt

    known = {*funcopt.algorithms(), *(f"scale_by_{name}" for name in funcopt.algorithms())}
    seen: set[tuple[Any, ...]] = set()
    for item in items:
        values = _values(item)
        subject = next((name for name in map(_subject, values) if name in known or "(" in name), "")
        further = bool(subject) and subject not in TRIED
        if item.path.name == "test_oracles.py" and not further:
            first = item.name.partition("[")[0], subject, *(value for value in values if value in ("xla", "torch"))
            further = first in seen
            seen.add(first)
        if further:
            item.add_marker("thorough")


def _values(item: pytest.Item) -> Sequence[Any]:
    parts = ("contract", "rule", "oracles")
    return [*item.callspec.params.values()] if item.path.parent.name in parts and hasattr(item, "callspec") else []  # pyright: ignore[reportAttributeAccessIssue]


def _subject(value: Any) -> str:
    """The algorithm that a parameter of a test stands for."""
    if isinstance(value, str):
        return value
    name = str(getattr(value, "algorithm", getattr(value, "name", "")))
    return name.partition(",")[0]
