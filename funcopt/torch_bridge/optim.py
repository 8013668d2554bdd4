"""torch.optim, run by funcopt: `from funcopt.torch_bridge import optim` replaces `from torch import optim`.

Each class takes the constructor of torch's class of the same name, with its defaults and its checks, and is an instance
of it; the numbers come from the funcopt recipe that it names. Options that only choose among torch's implementations
(foreach, fused, capturable) are accepted and change nothing. A JAX update is differentiable by nature, a step on torch
tensors is not: `differentiable=True` is an error.
"""

# A class that is torch's, constructor and all, and the bridge's in everything else: type checkers see two bases that
# disagree.
# pyright: reportAssignmentType=false, reportIncompatibleMethodOverride=false
# pyright: reportIncompatibleVariableOverride=false

import torch

from funcopt.algorithms import (
    adadelta,
    adafactor,
    adagrad,
    adam,
    adamax,
    adamw,
    asgd,
    muon,
    nadam,
    radam,
    rmsprop,
    rprop,
    sgd,
    sparse_adam,
)
from funcopt.torch_bridge._binding import Binding
from funcopt.torch_bridge._bridge import TorchBridge
from funcopt.torch_bridge._holdings import Gradients
from funcopt.torch_bridge._lbfgs import LBFGS as LBFGS


class _RealParametersOnly(TorchBridge):
    """What torch's class refuses at its first step, and not before."""

    def _check_parameters(self) -> None:
        if any(p.is_complex() for group in self.param_groups for p in group["params"] if p.grad is not None):
            raise RuntimeError(f"{type(self).__name__} does not support complex parameters")


class Adadelta(TorchBridge, torch.optim.Adadelta):
    """`torch.optim.Adadelta`, run by `funcopt.adadelta`."""

    _binding = Binding(adadelta)
    __init__ = torch.optim.Adadelta.__init__


class Adafactor(_RealParametersOnly, torch.optim.Adafactor):
    """`torch.optim.Adafactor`, run by `funcopt.adafactor`."""

    _binding = Binding(adafactor)
    __init__ = torch.optim.Adafactor.__init__


class Adagrad(TorchBridge, torch.optim.Adagrad):
    """`torch.optim.Adagrad`, run by `funcopt.adagrad`."""

    _binding = Binding(adagrad)
    __init__ = torch.optim.Adagrad.__init__


class Adam(TorchBridge, torch.optim.Adam):
    """`torch.optim.Adam`, run by `funcopt.adam`."""

    _binding = Binding(adam)
    __init__ = torch.optim.Adam.__init__


class AdamW(TorchBridge, torch.optim.AdamW):
    """`torch.optim.AdamW`, run by `funcopt.adamw`."""

    _binding = Binding(adamw)
    __init__ = torch.optim.AdamW.__init__


class Adamax(TorchBridge, torch.optim.Adamax):
    """`torch.optim.Adamax`, run by `funcopt.adamax`."""

    _binding = Binding(adamax)
    __init__ = torch.optim.Adamax.__init__


class ASGD(TorchBridge, torch.optim.ASGD):
    """`torch.optim.ASGD`, run by `funcopt.asgd`; `optimizer.state[p]["ax"]` is a parameter's average."""

    _binding = Binding(asgd)
    __init__ = torch.optim.ASGD.__init__


class Muon(_RealParametersOnly, torch.optim.Muon):
    """`torch.optim.Muon`, run by `funcopt.muon`."""

    _binding = Binding(muon)
    __init__ = torch.optim.Muon.__init__


class NAdam(TorchBridge, torch.optim.NAdam):
    """`torch.optim.NAdam`, run by `funcopt.nadam`."""

    _binding = Binding(nadam)
    __init__ = torch.optim.NAdam.__init__


class RAdam(TorchBridge, torch.optim.RAdam):
    """`torch.optim.RAdam`, run by `funcopt.radam`."""

    _binding = Binding(radam)
    __init__ = torch.optim.RAdam.__init__


class RMSprop(TorchBridge, torch.optim.RMSprop):
    """`torch.optim.RMSprop`, run by `funcopt.rmsprop`."""

    _binding = Binding(rmsprop)
    __init__ = torch.optim.RMSprop.__init__


class Rprop(TorchBridge, torch.optim.Rprop):
    """`torch.optim.Rprop`, run by `funcopt.rprop`."""

    _binding = Binding(rprop)
    __init__ = torch.optim.Rprop.__init__


class SGD(TorchBridge, torch.optim.SGD):
    """`torch.optim.SGD`, run by `funcopt.sgd`."""

    _binding = Binding(sgd)
    __init__ = torch.optim.SGD.__init__


class SparseAdam(TorchBridge, torch.optim.SparseAdam):
    """`torch.optim.SparseAdam`, run by `funcopt.sparse_adam`."""

    _binding = Binding(sparse_adam)
    __init__ = torch.optim.SparseAdam.__init__

    def _check_gradients(self, grads: Gradients) -> None:
        super()._check_gradients(grads)
        if any(own is not None and not own[0].is_sparse for own in grads):
            raise RuntimeError("SparseAdam does not support dense gradients, please consider Adam instead")
