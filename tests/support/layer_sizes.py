"""Sizes of recurrent layers at which a CPU changes what it does: whole blocks of a sum, and every plan."""

from dataclasses import replace
from itertools import product
from typing import Any

from cases import Case, structure_of

PLANS: dict[tuple[str, bool, str], tuple[int, int, int, int]] = {
    ("in place", False, "in place"): (2, 2, 200, 100),
    ("transposed", False, "in place"): (1, 20, 9, 40),
    ("transposed", False, "packed before"): (1, 130, 33, 70),
    ("packed before", True, "in place"): (6, 3, 33, 40),
    ("packed before", True, "packed before"): (12, 3, 9, 40),
    ("packed before", False, "in place"): (2, 9, 7, 35),
    ("packed before", False, "packed before"): (12, 27, 20, 70),
}
"""For every plan, time, batch, input size and hidden size of a layer that has it with any vectors of a CPU.

A plan is how the weights of the forward pass are read, whether the product with the input comes first, and how the
weights of the backward pass are read; tests/operators/test_cpu_plan.py asserts that there are no others.
"""


def ragged_lengths(time: int, batch: int) -> tuple[int, ...]:
    """Return unsorted lengths from 1 to ``time``, which is among them; they differ as much as ``batch`` allows."""
    return time, *(1 + 5 * b % time for b in range(1, batch))


def every_plan(kind: str) -> list[Case]:
    """Return layers with every plan, in one and two directions, padded and packed, and with a projection."""
    cases = []
    sizes: Any
    for sizes, bidirectional in product((*PLANS.values(), (12, 9, 7, 7)), (False, True)):
        time, batch, _, hidden_size = sizes
        for lengths in (None, ragged_lengths(time, batch)):
            form: dict[str, Any] = {"bidirectional": bidirectional, "lengths": lengths}
            case = Case(kind, *sizes, **form)
            cases.append(case)
            if structure_of(kind).may_project:
                cases.append(replace(case, proj_size=hidden_size * 3 // 4, bias=False))
    return cases


def whole_blocks(kind: str) -> list[Case]:
    """Return layers with sums of a whole number of blocks of terms, for blocks of up to 512 terms.

    Of each product one layer has sums of 256 and of 512 terms or more: over the rows of all steps, over the input,
    over the hidden values, and over the gates' gradients.
    """
    cases = [
        # The weights' gradients are sums over all rows, and of those over the first step apart from the others.
        Case(kind, 16, 16, 3, 5),
        Case(kind, 17, 16, 5, 7),
        Case(kind, 16, 32, 40, 40),
        Case(kind, 3, 256, 3, 5),
        Case(kind, 2, 512, 3, 4),
        Case(kind, 9, 64, 4, 5, lengths=(9, 7) * 32),
        # The input's part of the gates: within the step, before the first step, and read in place.
        Case(kind, 5, 8, 512, 64),
        Case(kind, 5, 8, 1024, 64),
        Case(kind, 5, 8, 1536, 16),
        Case(kind, 10, 2, 256, 16),
        Case(kind, 10, 2, 512, 16),
        Case(kind, 2, 2, 512, 16),
        # The hidden values' part, and in the backward pass the gradients of one to four times as many gates.
        Case(kind, 10, 2, 5, 64),
        Case(kind, 10, 7, 5, 128),
        Case(kind, 10, 2, 5, 256),
        Case(kind, 10, 4, 16, 512),
        Case(kind, 2, 2, 16, 512),
        Case(kind, 1, 16, 16, 512),
    ]
    if structure_of(kind).may_project:
        cases += [
            Case(kind, 10, 3, 5, 520, proj_size=512),
            Case(kind, 10, 3, 5, 512, proj_size=256),
            Case(kind, 17, 16, 5, 256, proj_size=7),
        ]
    return cases
