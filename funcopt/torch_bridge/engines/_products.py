"""Matrix products of bfloat16 whose sums are rounded to bfloat16: torch's own round by themselves.

JAX's products have float32 sums, and what is computed from them is rounded once. Written out like that torch would copy
its operands to float32 and multiply those, for which CPUs and GPUs are several times slower.
"""

import collections
from collections.abc import Callable, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

from funcopt.torch_bridge.engines._lowering import Operand, needed
from funcopt.torch_bridge.engines._operations import Constant, Op, Value

_HALF = np.dtype(jnp.bfloat16)
_MATRICES = (((1,), (0,)), ((), ()))


def rounded_products(ops: Sequence[Op], outputs: Sequence[Operand], is_number: Callable[[Operand], bool]) -> list[Op]:
    """With `torch.mm` and `torch.addmm` of bfloat16 for what is a product, or a sum with a product, and rounded."""
    made: dict[Operand, Op] = {x: op for op in ops for x in op.outputs}
    uses = collections.Counter(x for x in (*(x for op in ops for x in op.inputs), *outputs) if isinstance(x, Value))

    def alone(x: Any, name: str) -> Op | None:
        """The operation that a value comes from, if nothing else reads it."""
        op = made.get(x)
        return op if op is not None and op.name == name and uses[x] == 1 else None

    def scaled(x: Operand) -> tuple[Operand, Operand]:
        """An array and a number of which a value is the product."""
        op = alone(x, "mul")
        if op is not None and any(map(is_number, op.inputs)):
            a, b = op.inputs
            return (b, a) if is_number(a) else (a, b)
        return x, Constant(np.float32(1.0))

    def product(x: Operand) -> Op | None:
        op = alone(x, "dot_general")
        if op is None or op.params["dimension_numbers"] != _MATRICES or op.out.dtype != np.float32:
            return None
        return op if {own.dtype for own in op.inputs} == {_HALF} else None

    def match(op: Op) -> Op | None:
        rounding = made.get(op.inputs[0]) if op.name == "convert_element_type" and op.out.dtype == _HALF else None
        if rounding is None or rounding.name != "reduce_precision" or rounding.out.dtype != np.float32:
            return None
        if (rounding.params["exponent_bits"], rounding.params["mantissa_bits"]) != (8, 7):
            return None
        (source,) = rounding.inputs
        whole = product(source)
        if whole is not None:
            return whole._replace(outputs=op.outputs, params={**whole.params, "preferred_element_type": _HALF})
        total = alone(source, "add")
        for x, y in (total.inputs, total.inputs[::-1]) if total is not None else ():
            (of_product, alpha), (array, beta) = scaled(x), scaled(y)
            own, widened = product(of_product), made.get(array)
            if own is None or widened is None or widened.name != "convert_element_type":
                continue
            if widened.inputs[0].dtype == _HALF and widened.inputs[0].shape == op.out.shape:
                return Op("addmm", (widened.inputs[0], *own.inputs, beta, alpha), op.outputs, {})
        return op._replace(inputs=rounding.inputs)

    return needed([match(op) or op for op in ops], outputs)
