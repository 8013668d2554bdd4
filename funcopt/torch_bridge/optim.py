"""torch.optim, run by funcopt: `from funcopt.torch_bridge import optim` replaces `from torch import optim`.

There is a class for each algorithm of funcopt that torch.optim has a class of, by its name. It takes the constructor of
torch's class, with its defaults and its checks, and is an instance of it; the numbers come from funcopt's definition.
`engine` and `compiled` are the bridge's own. `foreach` is accepted and changes nothing; with `fused`, where torch's
class has it, the step unscales gradients and skips by itself under a GradScaler, as torch's. With `differentiable`
autograd goes through the steps, and with `capturable`, elsewhere than on the CPU, a graph can hold them.
"""

# A class that is torch's, constructor and all, and the bridge's in everything else: two bases that disagree.
# pyright: reportIncompatibleMethodOverride=false, reportIncompatibleVariableOverride=false

import functools
import inspect
from typing import TYPE_CHECKING, Any

import torch

from funcopt._catalogue import Algorithm, algorithms
from funcopt._names import simplify
from funcopt.torch_bridge._binding import Binding
from funcopt.torch_bridge._bridge import TorchBridge
from funcopt.torch_bridge._lbfgs import LBFGS as LBFGS
from funcopt.torch_bridge.engines._choice import Wanted


class _RealParametersOnly(TorchBridge):
    """What torch's class refuses at its first step, and not before."""

    def _check_parameters(self) -> None:
        super()._check_parameters()
        if any(p.is_complex() for group in self.param_groups for p in group["params"] if p.grad is not None):
            raise RuntimeError(f"{type(self).__name__} does not support complex parameters")


class _RowsOnly(TorchBridge):
    """The same of gradients that are dense."""

    def _check_parameters(self) -> None:
        super()._check_parameters()
        if any(p.grad is not None and not p.grad.is_sparse for group in self.param_groups for p in group["params"]):
            raise RuntimeError(f"{type(self).__name__} does not support dense gradients, please consider Adam instead")


def _make(algorithm: Algorithm, torch_class: type[torch.optim.Optimizer]) -> type[torch.optim.Optimizer]:
    """The class of an algorithm, with the constructor of torch's."""
    base: Any = TorchBridge if algorithm.complex_numbers else _RealParametersOnly
    if torch_class is torch.optim.SparseAdam:
        base = _RowsOnly
    name = torch_class.__name__
    namespace = {
        "__doc__": f"`torch.optim.{name}`, run by `funcopt.{algorithm.name}`.",
        "__module__": __name__,
        "__init__": _constructor(torch_class),
        "_binding": Binding(algorithm.factory, multiplied=False),
    }
    return type(name, (base, torch_class), namespace)


def _constructor(torch_class: type[torch.optim.Optimizer]) -> Any:
    """The constructor of torch's class, with the bridge's choice of engine."""

    @functools.wraps(torch_class.__init__)
    def init(self: Any, *args: Any, engine: Wanted = "auto", compiled: bool = False, **kwargs: Any) -> None:
        self._compiled = compiled
        self.engine = engine
        torch_class.__init__(self, *args, **kwargs)

    signature = inspect.signature(torch_class.__init__)
    own = [p for name, p in inspect.signature(init, follow_wrapped=False).parameters.items() if name in _OWN]
    vars(init)["__signature__"] = signature.replace(parameters=[*signature.parameters.values(), *own])
    return init


_OWN = "engine", "compiled"

_TORCH_CLASSES = {
    simplify(name): found
    for name, found in vars(torch.optim).items()
    if isinstance(found, type) and issubclass(found, torch.optim.Optimizer)
}

for _algorithm in algorithms().values():
    _found = _TORCH_CLASSES.get(simplify(_algorithm.name))
    if _found is not None and _found is not torch.optim.LBFGS:
        globals()[_found.__name__] = _make(_algorithm, _found)

if TYPE_CHECKING:  # what the loop makes, with torch's constructors first

    class Adadelta(torch.optim.Adadelta, TorchBridge): ...

    class Adafactor(torch.optim.Adafactor, TorchBridge): ...

    class Adagrad(torch.optim.Adagrad, TorchBridge): ...

    class Adam(torch.optim.Adam, TorchBridge): ...

    class Adamax(torch.optim.Adamax, TorchBridge): ...

    class AdamW(torch.optim.AdamW, TorchBridge): ...

    class ASGD(torch.optim.ASGD, TorchBridge): ...

    class Muon(torch.optim.Muon, TorchBridge): ...

    class NAdam(torch.optim.NAdam, TorchBridge): ...

    class RAdam(torch.optim.RAdam, TorchBridge): ...

    class RMSprop(torch.optim.RMSprop, TorchBridge): ...

    class Rprop(torch.optim.Rprop, TorchBridge): ...

    class SGD(torch.optim.SGD, TorchBridge): ...

    class SparseAdam(torch.optim.SparseAdam, TorchBridge): ...
