"""What the tools need of torch: its devices and its files."""

import pickle
from collections.abc import Callable, Sequence
from typing import Any

import torch

from funcopt.torch_bridge._bridge import TorchBridge
from funcopt.torch_bridge._convert import from_torch_state_dict, to_torch_state_dict
from funcopt.torch_bridge.engines import _choice


def engines() -> dict[str, dict[str, str]]:
    """By device: the name of the engine, and the reason for it."""
    found = [torch.device("cpu"), *_accelerators()]
    return {str(device): _choice.choose("auto", [_at(device)])._asdict() for device in found}


def _accelerators() -> list[torch.device]:
    current = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    return [torch.device(current.type, i) for i in range(torch.accelerator.device_count())] if current else []


def _at(device: torch.device) -> torch.Tensor:
    return torch.empty(0, device=device)


def read_checkpoint(path: str, key: str | None) -> dict[str, Any]:
    """An optimizer's `state_dict` in a file that `torch.save` wrote; nothing in the file is executed.

    Raises:
        ValueError: if there is none.
    """
    try:
        found = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise ValueError(f"{path}: the file must hold tensors and plain data only, and would run code") from error
    for name in (key or "").split(".") if key else ():
        if not isinstance(found, dict) or name not in found:
            raise ValueError(f"--key {key}: the file must have it, got {_keys(found)}")
        found = found[name]
    if not isinstance(found, dict) or not {"state", "param_groups"} <= found.keys():
        raise ValueError(
            f"{path}: an optimizer's state_dict must have state and param_groups, got {_keys(found)}; see --key"
        )
    return found


def read_state(path: str, key: str | None, template: Any, params: Any, names: Sequence[str]) -> Any:
    """The state of a JAX loop from such a file; `names` are in the order of a checkpoint that has none."""
    saved = read_checkpoint(path, key)
    named = all("param_names" in group for group in saved["param_groups"])
    return from_torch_state_dict(saved, template, params, None if named else names)


def write_checkpoint(path: str, state: Any, params: Any, names: Sequence[str], factory: Callable[..., Any]) -> None:
    """Writes a JAX state as the checkpoint of a bridge of that recipe with one group."""
    tensors = [(name, torch.nn.Parameter(torch.empty(params[name].shape))) for name in names]
    groups = TorchBridge(tensors, factory).state_dict()["param_groups"]
    torch.save(to_torch_state_dict(state, params, groups, names), path)


def _keys(found: Any) -> str:
    return ", ".join(map(str, found)) if isinstance(found, dict) else type(found).__name__
