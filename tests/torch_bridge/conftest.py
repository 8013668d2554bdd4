"""The ways in which the bridge runs an elementwise recipe."""

import pytest

from funcopt import TorchBridge
from funcopt.torch_bridge.store import _store

PATHS = {"joined": (True, _store.JOIN_UP_TO), "alone": (True, -1), "plain": (False, -1)}


@pytest.fixture(params=PATHS)
def each_path(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Small parameters joined into one array, each an array of its own, or each in its own shape and memory."""
    fast, join_up_to = PATHS[request.param]
    monkeypatch.setattr(TorchBridge, "fast_path", fast)
    monkeypatch.setattr(_store, "JOIN_UP_TO", join_up_to)
    return request.param
