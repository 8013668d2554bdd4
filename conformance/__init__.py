"""How far funcopt is from torch.optim: every algorithm, in JAX and through the bridge, in one matrix.

    python -m conformance                     the table; exits with 1 if anything is above its bound
    python -m conformance --algorithm Adam    some rows
    python -m conformance --quick             two option sets each, one parameter per group
    python -m conformance --markdown          the page of the documentation

A row is an algorithm. Its cells are option set x {float64, float32} x {JAX, bridge} x {constant, changing learning
rate} x {one group, several groups with an option set each}: 30 steps under the same gradients as torch's class, those
of one step all zero and some of the last combination's missing, and the parameters compared after the last.
"""

try:
    import torch as _torch  # noqa: F401
except ImportError as error:
    raise ImportError(
        "conformance compares with torch.optim, and PyTorch is not installed; install it with: "
        "pip install 'funcopt[torch]'"
    ) from error

from conformance._algorithms import ALGORITHMS as ALGORITHMS
from conformance._algorithms import Algorithm as Algorithm
from conformance._check import Row as Row
from conformance._check import check as check
from conformance._lbfgs import Lbfgs as Lbfgs
from conformance._lbfgs import check_lbfgs as check_lbfgs
