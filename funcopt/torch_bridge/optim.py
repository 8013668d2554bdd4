"""torch.optim, run by funcopt: `from funcopt.torch_bridge import optim` replaces `from torch import optim`.

There is a class for each algorithm of funcopt that torch.optim has a class of, by its name. It takes the constructor of
torch's class, with its defaults and its checks, and is an instance of it; the numbers come from funcopt's definition.
`engine` and `compiled` are the bridge's own. `foreach` is accepted and changes nothing; with `fused`, where torch's
class has it, the step unscales gradients and skips by itself under a GradScaler, as torch's. With `differentiable`
autograd goes through the steps, and with `capturable`, elsewhere than on the CPU, a graph can hold them.

What torch has not is here by the name of its reference's class, such as `Lion`: a `TorchBridge` of the algorithm, which
takes the arguments of funcopt's function after the parameters, and the reference's checkpoints. `AdafactorHF` is
transformers' `Adafactor`, since torch has one of that name.
"""

# A class that is torch's, constructor and all, and the bridge's in everything else: two bases that disagree.
# pyright: reportIncompatibleMethodOverride=false, reportIncompatibleVariableOverride=false

import functools
import inspect
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Concatenate, Generic, ParamSpec, overload

import torch

from funcopt._catalogue import Algorithm, factories, read
from funcopt._names import simplify
from funcopt.torch_bridge._binding import Binding
from funcopt.torch_bridge._bridge import Params, TorchBridge
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


def _make_own(factory: Any) -> type[TorchBridge]:
    """The class of an algorithm that torch has not."""
    own = inspect.signature(factory)

    def init(
        self: Any,
        params: Params,
        *args: Any,
        engine: Wanted = "auto",
        compiled: bool = False,
        differentiable: bool = False,
        capturable: bool = False,
        foreach: bool | None = None,
        fused: bool = False,
        **kwargs: Any,
    ) -> None:
        del foreach
        unknown = {argument: kwargs.pop(argument) for argument in [*kwargs] if argument not in own.parameters}
        try:
            given = own.bind_partial(*args, **kwargs).arguments
        except TypeError as error:
            raise TypeError(f"{factory.keys.torch_class}: {error}; it takes {', '.join(own.parameters)}") from None
        options = {"engine": engine, "compiled": compiled, "differentiable": differentiable, "capturable": capturable}
        TorchBridge.__init__(self, params, factory, fused=fused, **options, **given, **unknown)

    parameters = inspect.signature(init).parameters.values()
    first, *further = [p for p in parameters if p.name not in ("args", "kwargs", "self")]
    itself = inspect.Parameter("self", first.kind)
    vars(init)["__signature__"] = inspect.Signature([itself, first, *own.parameters.values(), *further])
    namespace = {"__doc__": _doc_of(factory), "__module__": __name__, "__init__": init}
    return type(factory.keys.torch_class, (TorchBridge,), namespace)


def _doc_of(factory: Any) -> str:
    """What the function says, with the arguments that are the bridge's."""
    head, _, arguments = inspect.cleandoc(factory.__doc__).partition("\n\nReturns:")[0].partition("Args:\n")
    return (
        f"{head}Run by `funcopt.{factory.__name__}`.\n\nArgs:\n"
        "    params: tensors, (name, tensor) pairs, or group dicts, as for any torch optimizer.\n"
        f"{arguments}\n"
        "    engine, compiled, differentiable, capturable, fused: see `TorchBridge`.\n"
        "    foreach: changes nothing.\n"
    )


_TORCH_CLASSES = {
    simplify(name): found
    for name, found in vars(torch.optim).items()
    if isinstance(found, type) and issubclass(found, torch.optim.Optimizer)
}

for _name, _factory in factories().items():
    _found = _TORCH_CLASSES.get(simplify(_name))
    if _found is torch.optim.LBFGS:  # which is no bridge
        continue
    if _found is not None:
        globals()[_found.__name__] = _make(read(_name, _factory), _found)
    elif _factory.keys.torch_class is not None:
        globals()[_factory.keys.torch_class] = _make_own(_factory)

if TYPE_CHECKING:  # what the loop makes
    import funcopt.algorithms as own

    P = ParamSpec("P")

    class _Constructor(Generic[P]):
        """A constructor that takes further arguments of the bridge by keyword."""

        @overload
        def __call__(self, params: Params, *args: P.args, **kwargs: P.kwargs) -> None: ...
        @overload
        def __call__(
            self,
            params: Params,
            *args: Any,
            engine: Wanted = "auto",
            compiled: bool = False,
            differentiable: bool = False,
            capturable: bool = False,
            foreach: bool | None = None,
            fused: bool = False,
            **kwargs: Any,
        ) -> None: ...
        def __call__(self, *args: Any, **kwargs: Any) -> None: ...

    def _of(factory: Callable[P, Any]) -> Callable[[Any], _Constructor[P]]: ...
    def _as(torch_class: Callable[Concatenate[Any, P], Any]) -> Callable[[Any], _Constructor[P]]: ...

    class Adadelta(torch.optim.Adadelta, TorchBridge):
        @_as(torch.optim.Adadelta)
        def __init__(self) -> None: ...

    class Adafactor(torch.optim.Adafactor, TorchBridge):
        @_as(torch.optim.Adafactor)
        def __init__(self) -> None: ...

    class Adagrad(torch.optim.Adagrad, TorchBridge):
        @_as(torch.optim.Adagrad)
        def __init__(self) -> None: ...

    class Adam(torch.optim.Adam, TorchBridge):
        @_as(torch.optim.Adam)
        def __init__(self) -> None: ...

    class Adamax(torch.optim.Adamax, TorchBridge):
        @_as(torch.optim.Adamax)
        def __init__(self) -> None: ...

    class AdamW(torch.optim.AdamW, TorchBridge):
        @_as(torch.optim.AdamW)
        def __init__(self) -> None: ...

    class ASGD(torch.optim.ASGD, TorchBridge):
        @_as(torch.optim.ASGD)
        def __init__(self) -> None: ...

    class Muon(torch.optim.Muon, TorchBridge):
        @_as(torch.optim.Muon)
        def __init__(self) -> None: ...

    class NAdam(torch.optim.NAdam, TorchBridge):
        @_as(torch.optim.NAdam)
        def __init__(self) -> None: ...

    class RAdam(torch.optim.RAdam, TorchBridge):
        @_as(torch.optim.RAdam)
        def __init__(self) -> None: ...

    class RMSprop(torch.optim.RMSprop, TorchBridge):
        @_as(torch.optim.RMSprop)
        def __init__(self) -> None: ...

    class Rprop(torch.optim.Rprop, TorchBridge):
        @_as(torch.optim.Rprop)
        def __init__(self) -> None: ...

    class SGD(torch.optim.SGD, TorchBridge):
        @_as(torch.optim.SGD)
        def __init__(self) -> None: ...

    class SparseAdam(torch.optim.SparseAdam, TorchBridge):
        @_as(torch.optim.SparseAdam)
        def __init__(self) -> None: ...

    class AdaBelief(TorchBridge):
        @_of(own.adabelief)
        def __init__(self) -> None: ...

    class AdafactorBigVision(TorchBridge):
        @_of(own.adafactor_bv)
        def __init__(self) -> None: ...

    class AdafactorHF(TorchBridge):
        @_of(own.adafactor_hf)
        def __init__(self) -> None: ...

    class Adam_mini(TorchBridge):  # noqa: N801
        @_of(own.adam_mini)
        def __init__(self) -> None: ...

    class AdamP(TorchBridge):
        @_of(own.adamp)
        def __init__(self) -> None: ...

    class AdamWScheduleFree(TorchBridge):
        @_of(own.schedule_free_adamw)
        def __init__(self) -> None: ...

    class Adan(TorchBridge):
        @_of(own.adan)
        def __init__(self) -> None: ...

    class AdEMAMix(TorchBridge):
        @_of(own.ademamix)
        def __init__(self) -> None: ...

    class ADOPT(TorchBridge):
        @_of(own.adopt)
        def __init__(self) -> None: ...

    class APOLLOAdamW(TorchBridge):
        @_of(own.apollo)
        def __init__(self) -> None: ...

    class CAME(TorchBridge):
        @_of(own.came)
        def __init__(self) -> None: ...

    class DAdaptAdam(TorchBridge):
        @_of(own.dadapt_adam)
        def __init__(self) -> None: ...

    class Dion(TorchBridge):
        @_of(own.dion)
        def __init__(self) -> None: ...

    class DistributedShampoo(TorchBridge):
        @_of(own.shampoo)
        def __init__(self) -> None: ...

    class FTRL(TorchBridge):
        @_of(own.ftrl)
        def __init__(self) -> None: ...

    class GaLoreAdamW(TorchBridge):
        @_of(own.galore)
        def __init__(self) -> None: ...

    class Grams(TorchBridge):
        @_of(own.grams)
        def __init__(self) -> None: ...

    class Kron(TorchBridge):
        @_of(own.kron)
        def __init__(self) -> None: ...

    class Lamb(TorchBridge):
        @_of(own.lamb)
        def __init__(self) -> None: ...

    class LaProp(TorchBridge):
        @_of(own.laprop)
        def __init__(self) -> None: ...

    class Lars(TorchBridge):
        @_of(own.lars)
        def __init__(self) -> None: ...

    class Lion(TorchBridge):
        @_of(own.lion)
        def __init__(self) -> None: ...

    class MARS(TorchBridge):
        @_of(own.mars_adamw)
        def __init__(self) -> None: ...

    class MuonWithAuxAdam(TorchBridge):
        @_of(own.muon_with_adamw)
        def __init__(self) -> None: ...

    class NorMuon(TorchBridge):
        @_of(own.normuon)
        def __init__(self) -> None: ...

    class NvNovoGrad(TorchBridge):
        @_of(own.novograd)
        def __init__(self) -> None: ...

    class Prodigy(TorchBridge):
        @_of(own.prodigy)
        def __init__(self) -> None: ...

    class RAdamScheduleFree(TorchBridge):
        @_of(own.schedule_free_radam)
        def __init__(self) -> None: ...

    class Scion(TorchBridge):
        @_of(own.scion)
        def __init__(self) -> None: ...

    class SGDP(TorchBridge):
        @_of(own.sgdp)
        def __init__(self) -> None: ...

    class SGDScheduleFree(TorchBridge):
        @_of(own.schedule_free_sgd)
        def __init__(self) -> None: ...

    class SignSGD(TorchBridge):
        @_of(own.signum)
        def __init__(self) -> None: ...

    class SOAP(TorchBridge):
        @_of(own.soap)
        def __init__(self) -> None: ...

    class SophiaG(TorchBridge):
        @_of(own.sophia_g)
        def __init__(self) -> None: ...

    class StableAdamW(TorchBridge):
        @_of(own.stable_adamw)
        def __init__(self) -> None: ...

    class Tiger(TorchBridge):
        @_of(own.tiger)
        def __init__(self) -> None: ...

    class Yogi(TorchBridge):
        @_of(own.yogi)
        def __init__(self) -> None: ...
