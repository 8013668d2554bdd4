"""How a law says that it is broken."""

from typing import Any


class LawError(AssertionError):
    """An optimizer does not obey a law."""


def expect(condition: Any, text: str) -> None:
    """Raises `LawError` with a text unless something holds."""
    if not condition:
        raise LawError(text)
