"""Code that the whole process uses again."""

import collections
import threading
from collections.abc import Callable
from typing import Any

from funcopt.torch_bridge.engines import _recipes

MAX_CODES = 1024
"""Pieces of code that are kept; after that the one that was used least recently goes."""

_codes: collections.OrderedDict[Any, Any] = collections.OrderedDict()
_lock = threading.RLock()


def kept(key: Any, make: Callable[[], Any]) -> Any:
    with _lock:
        if key not in _codes:
            _codes[key] = make()
            while len(_codes) > MAX_CODES:
                _codes.popitem(last=False)
        _codes.move_to_end(key)
        return _codes[key]


def forget_codes() -> None:
    """Has everything written anew."""
    with _lock:
        _codes.clear()
        _recipes.forget()
