"""Objects as a command line names them."""

import ast
import functools
import importlib
from typing import Any

from funcopt._catalogue import algorithms
from funcopt._names import nearest


def _resolve(text: str) -> Any:
    """What `module:name` names."""
    module, _, name = text.partition(":")
    if not name:
        raise ValueError(f"{text!r} must be MODULE:FUNCTION, such as my_package.models:make")
    try:
        found: Any = importlib.import_module(module)
        for part in name.split("."):
            found = getattr(found, part)
    except (ImportError, AttributeError) as error:
        raise ValueError(f"{text!r} must be importable: {error}") from error
    return found


def call(text: str) -> Any:
    """What the function that `module:function` names returns."""
    return _resolve(text)()


def parse(text: str) -> tuple[str, Any]:
    """An optimizer as the command line has it: its name, and what makes it with the options that are given."""
    name, opened, rest = text.partition("(")
    try:
        call = ast.parse(f"f({rest}" if opened else "f()", mode="eval").body
        assert isinstance(call, ast.Call)
        positional = [ast.literal_eval(value) for value in call.args]
        options = {str(keyword.arg): ast.literal_eval(keyword.value) for keyword in call.keywords}
    except (SyntaxError, ValueError, AssertionError) as error:
        raise ValueError(f"{text!r} must be a name with literals as arguments, such as adamw(lr=0.1)") from error
    if ":" in name:
        factory = _resolve(name)
    else:
        known = {known: found.factory for known, found in algorithms().items()}
        if name not in known:
            near = nearest(name, known)
            raise ValueError(f"{name!r} must be one of funcopt's optimizers, or MODULE:NAME{near and '; ' + near}")
        factory = known[name]
    return name.rpartition(":")[2], functools.partial(factory, *positional, **options)
