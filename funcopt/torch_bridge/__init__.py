"""funcopt's recipes as torch optimizers; the only package that imports torch."""

try:
    import torch as _torch  # noqa: F401
except ImportError as error:
    raise ImportError(
        "funcopt.TorchBridge needs PyTorch, which is not installed; install it with: pip install 'funcopt[torch]'"
    ) from error

from funcopt.torch_bridge._bridge import TorchBridge as TorchBridge
