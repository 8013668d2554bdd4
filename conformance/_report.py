"""The matrix as text: for a terminal, and as the page of the documentation."""

from collections.abc import Sequence

import jax
import torch

import funcopt
from conformance._check import ROUNDINGS, Errors, Row
from conformance._problem import HALF, MISSING_STEPS, STEPS, ZERO_STEP

HEADERS = (
    "algorithm",
    "option sets",
    "float64: JAX / bridge",
    "bound",
    "float32: JAX / bridge",
    "bound",
    "bfloat16",
    "state",
    "checkpoints",
)

_PAGE = """# Conformance with torch.optim

funcopt {funcopt}, torch {torch}, jax {jax}. Made by

```sh
{command}
```

{table}

- **float64, float32**: largest difference of any parameter from torch's after {steps} steps under the same gradients,
  relative to the largest entry of its tensor, in the worst cell of option set x {{constant, changing learning rate}} x
  {{one group, several groups with an option set each}}. The gradients of step {zero} are all zero, and in the last of
  these combinations some are None at steps {missing}.
- **bfloat16**: largest difference after one step from torch's own state, in roundings of the group's largest entry, on
  the bridge; at most {roundings:g}. torch rounds after each operation, funcopt once.
- **state**: names, dtypes and shapes of state and groups are torch's.
- **checkpoints**: after {half} steps torch goes on from the bridge's checkpoint and the bridge from torch's, within the
  same bounds.
- **Bounds**: 1e-12 in float64 and 16 ulp (1.9e-06) of the largest entry in float32 are what is left of rounding a
  handful of operations per step. Muon's iteration is in bfloat16, where the order of a matrix product's sums decides
  the last of 8 bits; without its iterations Muon is held to the same bounds as the others. LBFGS consists of inner
  products, whose last digits its iterations amplify; it is compared after every step, and in float64 the closure must
  be called exactly as often as by torch. In float32 its line search ends where the loss no longer changes in its last
  digit, which determines a parameter to the square root of that.
"""


def table(rows: Sequence[Row]) -> str:
    """The rows in aligned columns, which Markdown takes for a table, too."""
    cells = [HEADERS, *map(_cells, rows)]
    widths = [max(len(row[i]) for row in cells) for i in range(len(HEADERS))]
    lines = [
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) + " |" for row in cells
    ]
    return "\n".join([lines[0], "|" + "|".join("-" * (width + 2) for width in widths) + "|", *lines[1:]])


def page(rows: Sequence[Row], command: str) -> str:
    """The page of the documentation."""
    return _PAGE.format(
        command=command,
        table=table(rows),
        funcopt=funcopt.__version__,
        torch=torch.__version__.split("+")[0],
        jax=jax.__version__,
        steps=STEPS,
        half=HALF,
        zero=ZERO_STEP,
        missing=" and ".join(map(str, MISSING_STEPS)),
        roundings=ROUNDINGS,
    )


def _cells(row: Row) -> tuple[str, ...]:
    checkpoints = {
        (True, True): "both ways",
        (True, False): "to torch only",
        (False, True): "from torch only",
        (False, False): "neither way",
    }
    return (
        row.name,
        str(row.option_sets),
        *_error_cells(row.float64),
        *_error_cells(row.float32),
        "" if row.roundings is None else f"{row.roundings:.2g}",
        "equal" if row.same_state else "DIFFERENT",
        checkpoints[row.to_torch, row.from_torch],
    )


def _error_cells(errors: Errors) -> tuple[str, str]:
    return f"{errors.jax:.1e} / {errors.bridge:.1e}", f"{errors.bound:.1e}"
