"""What this machine has for funcopt."""

import importlib.metadata
import platform
from typing import Any

import jax
import numpy as np

_NEEDED = ("jax", "jaxlib", "numpy", "optax")
_EXTRAS = {"torch": "the bridge", "matplotlib": "funcopt.plot", "pyyaml": "configs from YAML files"}


def read_config() -> dict[str, Any]:
    """Versions, devices, engines and what is missing, as plain data."""
    versions = {name: _version(name) for name in ("funcopt", *_NEEDED, *_EXTRAS)}
    found: dict[str, Any] = {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "versions": {name: version for name, version in versions.items() if version},
        "jax": {
            "devices": [f"{device.platform}:{device.id} {device.device_kind}" for device in jax.devices()],
            "float64": jax.dtypes.canonicalize_dtype(float) == np.dtype("float64"),
        },
        "missing": [f"{name}, for {_EXTRAS[name]}" for name in _EXTRAS if not versions[name]],
    }
    if versions["torch"]:
        found["torch"] = _engines()
    return found


def show_config() -> None:
    """Prints versions, devices, the engine that each device gets, and what is not installed.

    What a report of a problem should have in it; `python -m funcopt config --json` prints it as JSON.

    Example:
        >>> import funcopt
        >>> funcopt.show_config()  # doctest: +ELLIPSIS
        funcopt ...
    """
    found = read_config()
    lines = [f"{name:11} {version}" for name, version in found["versions"].items()]
    lines += [f"{'python':11} {found['python']}, {found['platform']}"]
    lines += [f"{'JAX has':11} {device}" for device in found["jax"]["devices"]]
    lines += [f"{'':11} {'float64 and float32' if found['jax']['float64'] else 'float32, until jax_enable_x64'}"]
    for device, engine in found.get("torch", {}).items():
        lines.append(f"{'torch has':11} {device}, engine {engine['name']}: {engine['reason']}")
    lines += [f"{'missing':11} {text}" for text in found["missing"]]
    print("\n".join(lines))


def _version(name: str) -> str:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return ""


def _engines() -> dict[str, Any]:
    """The bridge's engine for each device, which loads torch."""
    from funcopt.torch_bridge import _tools

    return _tools.engines()
