"""How parameters become flat arrays: of which length, since XLA vectorizes loops over some only."""

import re

import pytest
import torch
from twins import ROUNDING, largest_difference, make_parameters, programs, take_steps

from funcopt.torch_bridge import optim
from funcopt.torch_bridge._parts import ALIGNMENT, Candidate, Part, make_parts


def parts_of(*shapes: tuple[int, ...], even: bool) -> list[Part]:
    candidates = (Candidate((0, i), torch.zeros(shape), None, flat=True) for i, shape in enumerate(shapes))
    return make_parts(candidates, even=even)


@pytest.mark.parametrize("even", [False, True])
def test_joined_parameters_end_as_they_begin_at_multiples(even: bool) -> None:
    (part,) = parts_of((3,), (), (5, 7), even=even)
    assert [(member.start, member.stop) for member in part.members] == [(0, 3), (16, 17), (32, 67)]
    assert part.size == 5 * ALIGNMENT
    assert not part.is_bare
    assert part.join([torch.ones(3), torch.ones(()), torch.ones(5, 7)]).sum() == 3 + 1 + 35


def test_without_padding_joined_parameters_are_still_several() -> None:
    (part,) = parts_of((16,), (4, 8), even=True)
    assert part.size == 48
    assert not part.is_bare


@pytest.mark.parametrize(("even", "expected"), [(False, (60_501, True)), (True, (60_502, False))])
def test_one_parameter_is_longer_only_where_an_even_number_is_wanted(even: bool, expected: tuple[int, bool]) -> None:
    parts = parts_of((301, 201), (40_000,), even=even)
    assert [(part.size, part.is_bare) for part in parts] == [expected, (40_000, True)]


def test_loops_on_the_cpu_are_over_even_numbers() -> None:
    """Large odd parameters, one of them transposed, beside joined ones with an odd number of elements."""
    shapes = [(301, 201), (5,), (3, 3), (40_001,)]
    ours, theirs = make_parameters(shapes), make_parameters(shapes)
    for params in (ours, theirs):
        params[0].data = params[0].data.t().contiguous().t()
    optimizer = optim.AdamW(ours, weight_decay=0.1)
    take_steps(ours, optimizer, range(3))
    take_steps(theirs, torch.optim.AdamW(theirs, weight_decay=0.1), range(3))
    assert largest_difference(ours, theirs) <= ROUNDING
    (program,) = programs(optimizer)
    sizes = {int(size) for size in re.findall(r"f64\[(\d+)\]", program.as_text() or "") if int(size) > ALIGNMENT}
    assert sizes == {60_502, 40_002, 2 * ALIGNMENT}
