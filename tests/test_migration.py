"""Who follows a guide in docs/migrate gets equal parameters; what else must be true of the guides."""

import pytest

pytest.importorskip("torch")

import numpy as np
import optax
from guides import AFTER, BEFORE, GUIDES, OF_CLIENTS, PAGES, SHARED, blocks_of, check_guide

from funcopt.schedules import warmup_cosine


@pytest.mark.parametrize("page", GUIDES)
def test_equal_parameters(page: str) -> None:
    check_guide(page)


def test_optax_s_schedule_is_the_same_but_for_rounding() -> None:
    """What docs/migrate/optax.md says about it."""
    theirs = optax.warmup_cosine_decay_schedule(0.0, 1e-2, 5, 20)
    values = [float(theirs(step)) for step in range(25)]
    np.testing.assert_allclose(warmup_cosine(1e-2, 5, 20)(np.arange(25)), values, rtol=1e-6, atol=1e-9)


def test_every_guide_is_tested_and_in_the_index() -> None:
    pages = {path.stem for path in PAGES.glob("*.md")} - {"index"}
    assert pages == {*GUIDES, *OF_CLIENTS}
    index = (PAGES / "index.md").read_text(encoding="utf-8")
    assert all(f"({page}.md)" in index for page in pages)


@pytest.mark.parametrize("page", [*GUIDES, *OF_CLIENTS])
def test_guides_have_the_same_parts(page: str) -> None:
    assert {SHARED, BEFORE, AFTER} <= {*blocks_of(page)}
