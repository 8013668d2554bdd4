"""pytest's plugin of funcopt: `pytest --funcopt-conformance my_package:MyOptimizer`.

Runs the laws that every optimizer obeys (`funcopt.tools._laws`) on anyone's, one test each, and compares it with a
reference if one is given. Nothing of funcopt is imported without the option.
"""

import importlib
from collections.abc import Callable
from typing import Any

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("funcopt", "conformance of optimizers (funcopt)")
    group.addoption(
        "--funcopt-conformance",
        action="append",
        default=[],
        metavar="MODULE:NAME",
        help="run the laws of optimizers on this torch optimizer, or function that returns an optax transformation; "
        'with arguments as "my_package:MyOptimizer(lr=0.1)". Without paths nothing else is run.',
    )
    group.addoption(
        "--funcopt-reference",
        metavar="MODULE:NAME",
        help="an optimizer of any framework that it must equal, such as torch.optim:AdamW",
    )


def pytest_ignore_collect(config: pytest.Config) -> bool | None:
    """Without paths the command is about the optimizer alone."""
    alone = config.getoption("--funcopt-conformance") and config.args_source is not pytest.Config.ArgsSource.ARGS
    return True if alone else None


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(session: pytest.Session, config: pytest.Config, items: list[pytest.Item]) -> None:
    subjects = config.getoption("--funcopt-conformance")
    if not subjects:
        return
    laws: Any = importlib.import_module("funcopt.tools._laws")
    for subject in subjects:
        try:
            found = laws.laws_of(subject, config.getoption("--funcopt-reference"))
        except (ValueError, TypeError) as error:
            raise pytest.UsageError(f"--funcopt-conformance: {error}") from error
        items.extend(Law.from_parent(session, name=f"{subject}::{name}", law=law) for name, law in found.items())


class Law(pytest.Item):
    """One law of one optimizer."""

    def __init__(self, *, law: Callable[[], None], **rest: Any) -> None:
        super().__init__(**rest)
        self.law = law

    def runtest(self) -> None:
        self.law()

    def repr_failure(self, excinfo: pytest.ExceptionInfo[BaseException], style: Any = None) -> Any:
        del style
        broken = importlib.import_module("funcopt._law_error").LawError
        return str(excinfo.value) if isinstance(excinfo.value, broken) else super().repr_failure(excinfo)

    def reportinfo(self) -> tuple[Any, int | None, str]:
        return self.path, None, f"{self.name}: {(self.law.__doc__ or '').splitlines()[0]}"
