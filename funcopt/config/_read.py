"""Configs as plain dicts, whatever they come as: dicts of any library, argparse namespaces, YAML and JSON files."""

import argparse
import importlib
import inspect
import json
import pathlib
import re
from collections.abc import Callable, Mapping
from typing import Any

from funcopt import _checks
from funcopt._names import nearest

_SUFFIXES = (".json", ".yaml", ".yml")
_WITHOUT_DOT = re.compile(r"[-+]?\d+[eE][-+]?\d+")  # a number that YAML 1.1 reads as text, for want of a dot


def is_file(cfg: object) -> bool:
    return isinstance(cfg, pathlib.Path) or (isinstance(cfg, str) and cfg.endswith(_SUFFIXES))


def read_config(cfg: Any) -> Any:
    """A config as dicts, lists and values of its own: what is done to it leaves the original alone.

    Args:
        cfg: a mapping (yacs, addict and MMEngine's are); an object with `cfg_dict` (SCEPTER's); a namespace; a path to
            a YAML or JSON file; or a plain value, which is returned.

    Raises:
        ValueError: for a file with another suffix.
        ImportError: for a YAML file without PyYAML.
    """
    if is_file(cfg):
        return _load(pathlib.Path(cfg))
    if isinstance(cfg, argparse.Namespace):
        cfg = vars(cfg)
    if not isinstance(cfg, Mapping | list | tuple | type) and isinstance(getattr(cfg, "cfg_dict", None), Mapping):
        cfg = cfg.cfg_dict
    if isinstance(cfg, Mapping):
        return {key: read_config(value) for key, value in cfg.items()}
    if type(cfg) is tuple:
        return tuple(map(read_config, cfg))
    return list(map(read_config, cfg)) if type(cfg) is list else cfg


def _load(path: pathlib.Path) -> Any:
    if path.suffix == ".json":
        return json.loads(path.read_text(encoding="utf-8"))
    if path.suffix not in _SUFFIXES:
        _checks.fail("config", "the file's suffix", f"one of {', '.join(_SUFFIXES)}", path.suffix)
    try:
        yaml = importlib.import_module("yaml")
    except ImportError as error:
        raise ImportError(
            "YAML configs need PyYAML, which is not installed; install it with: pip install 'funcopt[config]'"
        ) from error
    return _with_numbers(yaml.safe_load(path.read_text(encoding="utf-8")))


def _with_numbers(value: Any) -> Any:
    """What was read of YAML with 1e-3 as a number; other texts stay texts, such as the path "0"."""
    if isinstance(value, dict):
        return {key: _with_numbers(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_with_numbers(item) for item in value]
    return float(value) if isinstance(value, str) and _WITHOUT_DOT.fullmatch(value) else value


def name_of_type(kind: Any) -> Any:
    """A `type` by name: MMEngine's configs in Python have the class itself."""
    return kind.__name__ if isinstance(kind, type) else kind


def check_given(owner: str, cfg: Mapping[str, Any], *needed: str) -> None:
    """Refuses a config that lacks a key.

    Raises:
        ValueError: for the first one.
    """
    for key in needed:
        if key not in cfg:
            _checks.fail(owner, key, "given", None)


def check_called(owner: str, function: Callable[..., Any], arguments: Mapping[str, Any]) -> None:
    """Refuses arguments that do not suffice for a call.

    Raises:
        ValueError: for the first one that has neither a value nor a default.
    """
    every = inspect.signature(function).parameters.values()
    known = [p for p in every if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]
    check_given(owner, arguments, *(p.name for p in known if p.default is p.empty))


def check_keys(owner: str, cfg: Mapping[str, Any], known: Any) -> None:
    """Refuses keys that nothing reads.

    Raises:
        ValueError: with the nearest valid key.
    """
    known = list(known)
    for key in cfg:
        if key not in known:
            _checks.fail(owner, "each key", f"one of {', '.join(known)}", key, nearest(str(key), known))


def check_base_lr(owner: str, base_lr: float | None) -> float:
    """Refuses a schedule of nothing.

    Raises:
        ValueError: without a base value.
    """
    if base_lr is None:
        _checks.fail(owner, "base_lr", "given", None)
    return base_lr
