"""Shared set-up, before JAX and torch are imported."""

import contextlib
import gc
import importlib.util
import os

os.environ.setdefault("JAX_PLATFORMS", "cpu")
# torch's and XLA's threads wait for each other actively; with a test process per core that takes most of the time.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("XLA_FLAGS", "--xla_cpu_multi_thread_eigen=false")

if importlib.util.find_spec("torchvision"):
    import torch

    # torchvision has no build for the CPU build of torch: without its compiled half, its Python half fails to import
    # (and timm, Lightning and transformers with it) unless these are declared.
    torchvision = torch.library.Library("torchvision", "FRAGMENT")
    for operator in ("nms", "qnms"):
        with contextlib.suppress(RuntimeError):  # the compiled half is there
            torchvision.define(f"{operator}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")


def pytest_collection_finish() -> None:
    """What torch, JAX and the tests consist of stays anyway: garbage collections, which are many, can pass it by."""
    gc.collect()
    gc.freeze()
