"""What steps of one process owe to each other, and what a forked one may not do."""

import os
import threading
import warnings

from jax._src import xla_bridge

STEPPING = threading.RLock()
"""Held by whoever makes a step. A parameter of several optimizers lives in the memory of one of them, so that steps of
two threads over one model would lose each other's updates; XLA has all cores in any case."""

_forked = False


def _after_fork() -> None:
    global _forked
    _forked = xla_bridge.backends_are_initialized()
    STEPPING._at_fork_reinit()  # pyright: ignore[reportAttributeAccessIssue]  # which a thread that is not here may have


os.register_at_fork(after_in_child=_after_fork)

# JAX warns of every fork, as it has threads. A process that only loads data never calls it.
warnings.filterwarnings("ignore", r"os\.fork\(\) was called", RuntimeWarning)


def refuse_forked() -> None:
    """To be called before anything is asked of JAX, and before a lock is taken that another thread may have had.

    Raises:
        RuntimeError: in a process in which JAX would wait for threads that only its parent has.
    """
    if _forked:
        raise RuntimeError(
            "TorchBridge: this process was forked from one in which JAX was already at work, as it is after an "
            "optimizer's first step, and JAX's threads are not here; start it with the 'spawn' method, or fork before"
        )
