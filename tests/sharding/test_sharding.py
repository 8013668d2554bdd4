"""State is made like its parameter and stays so; an elementwise update needs no collective."""

import collections
import functools
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from subjects import TRIED

import funcopt

# What the release before had, where a rule looks at whole matrices; XLA makes an all-reduce for each axis of a mesh.
COLLECTIVES = {
    ("adafactor", "fsdp"): {"all-reduce": 2},
    ("adafactor", "tensor"): {"all-reduce": 2},
    ("adafactor", "mixed"): {"all-reduce": 5},
    ("muon", "fsdp"): {"all-reduce": 2},
    ("muon", "tensor"): {"all-reduce": 3, "all-gather": 1, "collective-permute": 3},
    ("muon", "mixed"): {"all-reduce": 4, "all-gather": 2, "collective-permute": 1},
    ("muon_with_adamw", "fsdp"): {"all-reduce": 2},
    ("muon_with_adamw", "tensor"): {"all-reduce": 3, "all-gather": 1, "collective-permute": 3},
    ("muon_with_adamw", "mixed"): {"all-reduce": 4, "all-gather": 2, "collective-permute": 1},
    ("normuon", "fsdp"): {"all-reduce": 3},
    ("normuon", "tensor"): {"all-reduce": 5, "all-gather": 1, "collective-permute": 3},
    ("normuon", "mixed"): {"all-reduce": 7, "all-gather": 2, "collective-permute": 1},
    ("scion", "fsdp"): {"all-reduce": 2},
    ("scion", "tensor"): {"all-reduce": 3, "all-gather": 1, "collective-permute": 3},
    ("scion", "mixed"): {"all-reduce": 5, "all-gather": 2, "collective-permute": 1},
    ("galore", "fsdp"): {"all-gather": 1},
    ("galore", "tensor"): {"all-reduce": 1, "all-gather": 2, "collective-permute": 1},
    ("galore", "mixed"): {"all-gather": 4},
    ("apollo", "fsdp"): {"all-reduce": 2, "all-gather": 2},
    ("apollo", "tensor"): {"all-reduce": 3},
    ("apollo", "mixed"): {"all-reduce": 5, "all-gather": 2},
    ("soap", "fsdp"): {"all-reduce": 3, "all-gather": 13, "all-to-all": 1, "collective-permute": 1},
    ("soap", "tensor"): {"all-reduce": 4, "all-gather": 12, "all-to-all": 1, "collective-permute": 5},
    ("soap", "mixed"): {"all-reduce": 6, "all-gather": 26, "all-to-all": 2, "collective-permute": 3},
    ("shampoo", "fsdp"): {"all-reduce": 2, "all-gather": 6},
    ("shampoo", "tensor"): {"all-reduce": 2, "all-gather": 6, "collective-permute": 2},
    ("shampoo", "mixed"): {"all-reduce": 5, "all-gather": 9},
    ("kron", "fsdp"): {"all-reduce": 5, "all-gather": 5},
    ("kron", "tensor"): {"all-reduce": 5, "all-gather": 5},
    ("kron", "mixed"): {"all-reduce": 9, "all-gather": 10},
    ("dion", "fsdp"): {"all-reduce": 1, "all-gather": 1},
    ("dion", "tensor"): {"all-reduce": 2},
    ("dion", "mixed"): {"all-reduce": 3, "all-gather": 1},
    ("adafactor_bv", "fsdp"): {"all-reduce": 1},
    ("adafactor_bv", "tensor"): {"all-reduce": 1},
    ("adafactor_bv", "mixed"): {"all-reduce": 2},
    ("adafactor_hf", "fsdp"): {"all-reduce": 2},
    ("adafactor_hf", "tensor"): {"all-reduce": 2},
    ("adafactor_hf", "mixed"): {"all-reduce": 5},
    ("adam_mini", "tensor"): {"all-reduce": 1},
    ("adam_mini", "mixed"): {"all-reduce": 1},
    ("adamp", "fsdp"): {"all-reduce": 2},
    ("adamp", "tensor"): {"all-reduce": 1},
    ("adamp", "mixed"): {"all-reduce": 3},
    ("came", "fsdp"): {"all-reduce": 3},
    ("came", "tensor"): {"all-reduce": 3},
    ("came", "mixed"): {"all-reduce": 7},
    ("lamb", "fsdp"): {"all-reduce": 2},
    ("lamb", "tensor"): {"all-reduce": 2},
    ("lamb", "mixed"): {"all-reduce": 6},
    ("mars_adamw", "fsdp"): {"all-reduce": 1},
    ("mars_adamw", "tensor"): {"all-reduce": 1},
    ("mars_adamw", "mixed"): {"all-reduce": 2},
    ("novograd", "fsdp"): {"all-reduce": 1},
    ("novograd", "tensor"): {"all-reduce": 1},
    ("novograd", "mixed"): {"all-reduce": 3},
    ("sgdp", "fsdp"): {"all-reduce": 2},
    ("sgdp", "tensor"): {"all-reduce": 1},
    ("sgdp", "mixed"): {"all-reduce": 3},
    # Their totals are theirs to have.
    **{
        (name, layout): {"all-reduce": count}
        for name in ("prodigy", "dadapt_adam")
        for layout, count in {"fsdp": 1, "tensor": 1, "mixed": 3}.items()
    },
    ("stable_adamw", "fsdp"): {"all-reduce": 1},
    ("stable_adamw", "tensor"): {"all-reduce": 1},
    ("stable_adamw", "mixed"): {"all-reduce": 3},
}
# One vector of all parameters is sharded as none of them is.
REFUSED = {"lbfgs", "join_small_leaves"}


ALGORITHMS = {
    "one of each kind": {*funcopt.algorithms()} & (TRIED | {"lbfgs"}),
    "the others": {*funcopt.algorithms()} - TRIED - {"lbfgs"},
}
EACH = pytest.mark.parametrize(
    "which", ["one of each kind", pytest.param("the others", marks=pytest.mark.thorough)], ids=lambda which: which
)


@functools.cache
def tables(which: str) -> dict[str, list[dict[str, Any]]]:
    script = [sys.executable, str(Path(__file__).parent / "table.py"), *sorted(ALGORITHMS[which])]
    result = subprocess.run(script, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr[-2000:]
    return json.loads(result.stdout)


@EACH
def test_state_has_the_shardings_of_its_parameters_before_and_after_an_update(which: str) -> None:
    rows = tables(which)["automatic"]
    assert {row["name"] for row in rows} >= ALGORITHMS[which] - REFUSED
    assert [row for row in rows if not row["state"] or not row["kept"]] == []
    for row in rows:
        whole, one_device = row["bytes"]
        if row["layout"] == "fsdp":
            assert whole == 8 * one_device, row


@EACH
def test_collectives_are_those_that_the_rule_needs(which: str) -> None:
    rows = tables(which)["automatic"]
    clip = {row["layout"]: row["collectives"] for row in rows if row["name"] == "optax's clip"}
    assert clip["fsdp"] == {"all-reduce": 1}
    for row in rows:
        expected = COLLECTIVES.get((row["name"], row["layout"]), {})
        if "clip" in row["name"]:
            expected = clip[row["layout"]]
        more = collections.Counter(row["collectives"]) - collections.Counter(expected)
        assert not more, row


@EACH
def test_types_that_say_how_arrays_are_sharded_are_kept_or_refused(which: str) -> None:
    for row in tables(which)["typed"]:
        if row["name"] in REFUSED:
            assert "must not be sharded by their types, since one vector has no such sharding" in row["outcome"], row
        else:
            assert row["outcome"] == "kept", row


@EACH
@pytest.mark.parametrize("memory", ["device", "pinned_host"])
def test_state_is_where_its_parameter_was_put(memory: str, which: str) -> None:
    rows = [row for row in tables(which)["placed"] if row["memory"] == memory]
    assert {row["name"] for row in rows} >= ALGORITHMS[which]
    assert [row["name"] for row in rows if not row["kept"]] == []
