"""funcopt's recipes as torch optimizers; the only package that imports torch."""

try:
    import torch as _torch  # noqa: F401
except ImportError as error:
    raise ImportError(
        "funcopt.TorchBridge needs PyTorch, which is not installed; install it with: pip install 'funcopt[torch]'"
    ) from error

from funcopt.torch_bridge._bridge import TorchBridge as TorchBridge
from funcopt.torch_bridge._convert import from_torch_state_dict as from_torch_state_dict
from funcopt.torch_bridge._convert import to_torch_state_dict as to_torch_state_dict
from funcopt.torch_bridge._functional import TorchTransformation as TorchTransformation
from funcopt.torch_bridge._functional import functional as functional
from funcopt.torch_bridge._lr_scheduler import LRScheduler as LRScheduler
from funcopt.torch_bridge._matching import LoadReport as LoadReport
from funcopt.torch_bridge._sam import SAM as SAM
