"""The ways in which the bridge runs an elementwise recipe."""

import pytest

from funcopt import TorchBridge
from funcopt.torch_bridge.engines import _choice
from funcopt.torch_bridge.store import _store

PATHS = {"joined": (True, _store.JOIN_UP_TO), "alone": (True, -1), "plain": (False, -1)}


ENGINES = "xla", "torch"


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Runs everything under both engines that is not marked as `one_engine`."""
    if next(metafunc.definition.iter_markers("one_engine"), None) is None:
        metafunc.parametrize("engine", ENGINES, indirect=True)


@pytest.fixture(autouse=True)
def engine(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """The engine that optimizers get which ask for none."""
    name = getattr(request, "param", _choice.PREFERRED)
    monkeypatch.setattr(_choice, "PREFERRED", name)
    return name


@pytest.fixture(autouse=True)
def _nothing_has_grown() -> None:
    """A process that has seen many networks joins large parameters at first."""
    _store._sizes_of.cache_clear()


@pytest.fixture(params=PATHS)
def each_path(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Small parameters joined into one array, each an array of its own, or each in its own shape and memory."""
    fast, join_up_to = PATHS[request.param]
    monkeypatch.setattr(TorchBridge, "fast_path", fast)
    monkeypatch.setattr(_store, "JOIN_UP_TO", join_up_to)
    return request.param
