"""Which entry of a checkpoint belongs to which parameter: by position, as torch has it, or by name."""

import difflib
from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple

from funcopt import _checks
from funcopt.torch_bridge._units import Entry, Place

_OWNER = "load_state_dict"
_NO_NAMES = "make the optimizer with model.named_parameters() before saving and before loading"


class LoadReport(NamedTuple):
    """What `TorchBridge.load_state_dict` matched; parameters by name, or as "group/position" where they have none."""

    matched: tuple[str, ...]
    missing: tuple[str, ...]  # in the optimizer only: their state starts anew
    unexpected: tuple[str, ...]  # in the checkpoint only: left out


class Match(NamedTuple):
    """Entries for the optimizer's parameters, and for each of its groups the fields that the checkpoint has."""

    entries: dict[Place, Entry]
    fields: list[dict[str, Any]]
    report: LoadReport


def keys_of(group: Mapping[str, Any]) -> tuple[str | int, ...]:
    """What the parameters of a group are called: by name, or by their place in the group."""
    return tuple(group.get("param_names", range(len(group["params"]))))


def match_by_position(groups: Sequence[Mapping[str, Any]], saved: Mapping[str, Any]) -> Match:
    """Matches groups and parameters in order.

    Raises:
        ValueError: for other numbers of groups or of parameters, and for names that are not in the same order: the
            shapes of swapped parameters may well fit.
    """
    saved_groups = saved["param_groups"]
    if len(saved_groups) != len(groups):
        raise ValueError(f"{_OWNER}: there must be {len(groups)} parameter groups, got {len(saved_groups)}")
    entries: dict[Place, Entry] = {}
    for i, (theirs, ours) in enumerate(zip(saved_groups, groups, strict=True)):
        if len(theirs["params"]) != len(ours["params"]):
            raise ValueError(
                f"{_OWNER}: parameter group {i} must have {len(ours['params'])} parameters, got {len(theirs['params'])}"
            )
        both_named = "param_names" in theirs and "param_names" in ours
        for key, their_key, index in zip(keys_of(ours), keys_of(theirs), theirs["params"], strict=True):
            if both_named and key != their_key:
                raise ValueError(
                    f"{_OWNER}: group {i} must have {key!r} where it has {their_key!r}; load with match='name'"
                )
            entries[i, key] = saved["state"].get(index, {})
    names = tuple(_label(place) for place in entries)
    return Match(entries, [_fields(group) for group in saved_groups], LoadReport(names, (), ()))


def match_by_name(
    groups: Sequence[Mapping[str, Any]], saved: Mapping[str, Any], strict: bool, rename: Mapping[str, str]
) -> Match:
    """Matches parameters by name, whatever their order and their groups.

    Raises:
        ValueError: without names on either side, for a `rename` of what is not there, and with `strict` for parameters
            that only one side has.
    """
    found: dict[str, tuple[Entry, Mapping[str, Any]]] = {}
    for i, group in enumerate(saved["param_groups"]):
        if "param_names" not in group:
            _checks.fail(_OWNER, f"parameter group {i} of the checkpoint", "named", "no param_names", _NO_NAMES)
        for name, index in zip(group["param_names"], group["params"], strict=True):
            found[rename.get(name, name)] = saved["state"].get(index, {}), group
    known = {name for group in saved["param_groups"] for name in group["param_names"]}
    for old, new in rename.items():
        if old not in known:
            _unknown(f"rename[{old!r}]", old, known)
        if new not in {name for group in groups for name in group.get("param_names", ())}:
            _unknown(f"rename[{old!r}]", new, {name for group in groups for name in group.get("param_names", ())})
    entries: dict[Place, Entry] = {}
    fields: list[dict[str, Any]] = []
    for i, group in enumerate(groups):
        if "param_names" not in group:
            _checks.fail(_OWNER, f"parameter group {i}", "named", "no param_names", _NO_NAMES)
        sources = [found[name][1] for name in group["param_names"] if name in found]
        fields.append(_fields(sources[0]) if sources else {})
        entries |= {(i, name): found[name][0] if name in found else {} for name in group["param_names"]}
    names = [str(name) for _, name in entries]
    report = LoadReport(
        tuple(name for name in names if name in found),
        tuple(name for name in names if name not in found),
        tuple(name for name in found if name not in names),
    )
    if strict and (report.missing or report.unexpected):
        raise ValueError(
            f"{_OWNER}: checkpoint and optimizer must have the same parameters; only in the optimizer: "
            f"{', '.join(report.missing) or 'none'}; only in the checkpoint: {', '.join(report.unexpected) or 'none'}; "
            "map names with rename, or load what fits with strict=False"
        )
    return Match(entries, fields, report)


def match(
    groups: Sequence[Mapping[str, Any]],
    saved: Mapping[str, Any],
    by: Literal["position", "name"],
    strict: bool,
    rename: Mapping[str, str] | None,
) -> Match:
    """Matches as asked for; `groups` are the optimizer's, `saved` is the checkpoint. See the two ways for errors."""
    if by == "position":
        if rename:
            _checks.fail(_OWNER, "match", "'name' with rename", by)
        return match_by_position(groups, saved)
    if by != "name":
        _checks.fail(_OWNER, "match", "'position' or 'name'", by)
    return match_by_name(groups, saved, strict, rename or {})


def _unknown(argument: str, name: str, known: set[str]) -> None:
    near = difflib.get_close_matches(name, known, n=1)
    _checks.fail(_OWNER, argument, "a known parameter", name, f"did you mean {near[0]!r}?" if near else "")


def _fields(group: Mapping[str, Any]) -> dict[str, Any]:
    """A saved group without what says which parameters it has."""
    return {name: value for name, value in group.items() if name not in ("params", "param_names")}


def _label(place: Place) -> str:
    group, key = place
    return key if isinstance(key, str) else f"{group}/{key}"
