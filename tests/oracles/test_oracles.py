"""Every algorithm against an independent specification, in JAX and through the bridge under both engines."""

from typing import Any

import harness
import jax
import jax.numpy as jnp
import pytest
import rows
import torch
from report import names_on_page

import funcopt

EACH = pytest.mark.parametrize("row", rows.ROWS, ids=lambda row: row.label)
WRONG = [pytest.param(row, edit, id=f"{row.label}, {i}") for row in rows.ROWS for i, edit in enumerate(row.wrong)]


@EACH
def test_jax_agrees_with_the_specification(row: harness.Row) -> None:
    of = harness.problem(row)
    expected = harness.run_spec(row, of)
    with jax.enable_x64(True):
        assert harness.difference(harness.run_jax(row, of, jnp.float64), expected, of.starts) <= row.float64
    assert harness.difference(harness.run_jax(row, of, jnp.float32), expected, of.starts) <= row.float32


@EACH
@pytest.mark.parametrize("engine", ["xla", "torch"])
def test_bridge_agrees_with_the_specification(row: harness.Row, engine: Any) -> None:
    of = harness.problem(row)

    def make(groups: Any) -> Any:
        return funcopt.TorchBridge(groups, row.make, engine=engine, lr=row.lr, **row.options)

    assert harness.difference(harness.run_bridge(row, of, make), harness.run_spec(row, of), of.starts) <= row.float64


@pytest.mark.parametrize(("row", "edit"), WRONG)
def test_an_error_would_be_noticed(row: harness.Row, edit: tuple[str, str]) -> None:
    of = harness.problem(row)
    wrong = harness.run_spec(row, of, harness.edited(row.spec, *edit))
    assert harness.difference(wrong, harness.run_spec(row, of), of.starts) > 100 * row.float64


def test_the_page_has_a_row_for_each_algorithm() -> None:
    assert names_on_page() == list(funcopt.algorithms())


def test_every_algorithm_that_torch_has_not_has_a_row() -> None:
    theirs = {"sgd", *(name.lower() for name in vars(torch.optim))}
    named = {row.algorithm for row in rows.ROWS}
    assert {name for name in funcopt.algorithms() if name.replace("_", "") not in theirs} <= named
