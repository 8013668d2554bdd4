"""Runs the guides in docs/migrate: each has a block that both sides need, one from before and one from after."""

import re
from pathlib import Path
from typing import Any

import jax
import numpy as np
from parity import worst_error

PAGES = Path(__file__).parents[1] / "docs" / "migrate"
GUIDES = ("torch", "optax", "scepter", "swin", "tsm")
# What the code from before imports: tests/clients/test_migration_clients.py.
OF_CLIENTS = {
    "timm": "timm",
    "pytorch_optimizer": "pytorch_optimizer",
    "huggingface": "transformers",
    "lightning": "lightning",
    "mmengine": "mmengine.optim",
}
SHARED, BEFORE, AFTER, UNDER_WAY = "Both need", "Before", "After", "A run that is under way"

# float64: both sides do the same arithmetic, in another order.
ROUNDING = 1e-12


def blocks_of(page: str) -> dict[str, str]:
    """A guide's Python blocks by the heading that each stands under."""
    sections = re.split(r"^## ", (PAGES / f"{page}.md").read_text(encoding="utf-8"), flags=re.MULTILINE)[1:]
    found = {section.partition("\n")[0]: re.findall(r"```python\n(.*?)```", section, re.DOTALL) for section in sections}
    return {heading: block for heading, (block,) in ((heading, own) for heading, own in found.items() if own)}


def weights(page: str, heading: str | None) -> list[np.ndarray]:
    """The parameters after the shared block, and what stands under a heading, have run: `model`'s, or `params`."""
    blocks = blocks_of(page)
    names: dict[str, Any] = {"__name__": "page"}
    with jax.enable_x64(True):
        for own in (SHARED, heading):
            if own is not None:
                exec(compile(blocks[own], f"{page}.md, {own}", "exec"), names)
        model = names.get("model")
        leaves = jax.tree.leaves(names["params"]) if model is None else [p.detach().numpy() for p in model.parameters()]
        return [np.array(leaf, np.float64) for leaf in leaves]


def check_guide(page: str, within: float = ROUNDING) -> None:
    """After the guide a run ends with the same parameters as before, and so does one that changed halfway."""
    start, before = weights(page, None), weights(page, BEFORE)
    assert worst_error(before, start) > 1e-2
    for heading in (AFTER, UNDER_WAY):
        if heading in blocks_of(page):
            assert worst_error(weights(page, heading), before) <= within, heading
