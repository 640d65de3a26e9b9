"""Faults that are planted into kernels of masked convolution, all into one copy, and switched on one at a time."""

from collections.abc import Sequence
from dataclasses import dataclass

import pytest
import torch
from comparing import assert_all_accurate
from convolution_cases import ConvolutionCase, as_made
from nan_in_images import check_nan_in_the_future
from planting import Edit

from cuda_on_host.build import build_variant
from cuda_on_host.convolution import Convolutions, OnHost, Tiles

# What a missing wait leads to depends on the schedule.
WRONG = (
    "error|NaN or Inf|waits for threads that do not come|more threads arrive at a barrier|more bytes were copied|"
    "ends before|sums were written before"
)

FEW_CHANNELS = 4  # for the kernels of first layers
CASE = ConvolutionCase(72, 136, (3, 3), "B", size=(11, 13))
GROUPS = ConvolutionCase(72, 144, (3, 3), "A", 3, size=(5, 9))
# Many parts of one sum.
LARGE = ConvolutionCase(8, 8, (1, 1), "B", size=(40, 40), batch=3)


@dataclass(frozen=True)
class Fault:
    file: str
    old: str
    """A text that occurs once."""
    new: str
    """What replaces it, where FAULT is whether the fault is on."""
    says: str = WRONG
    """What the failure says."""
    case: ConvolutionCase = CASE
    multiprocessors: int = 2
    nan: bool = False
    """Whether only NaN in what is not seen shows it, by an assertion without a message."""
    mma: torch.dtype | None = None
    """The dtype of the kernels for single warps, if it is in them; otherwise it is in those for Hopper."""


def left_out(statement: str, before: str = "") -> tuple[str, str]:
    """Return the edit that leaves out a statement; of several, that before some other text."""
    return statement + before, f"if (!FAULT) {statement}{before}"


def instead(old: str, new: str) -> tuple[str, str]:
    return old, f"(FAULT ? {new} : {old})"


def plant(name: str, faults: dict[str, Fault], stems: list[str], edits: Sequence[Edit] = ()) -> Convolutions:
    """Build the kernels with all faults, which are off at first, and with further edits."""
    planted = list(edits)
    for number, fault in enumerate(faults.values()):
        planted.append((fault.file, fault.old, fault.new.replace("FAULT", f"host::has_fault({number})")))
    return Convolutions(build_variant(name, planted, stems))


def run_and_compare(kernels: Convolutions, fault: Fault, schedules: int) -> None:
    """Run what shows a fault, under several schedules, and compare the results with the oracle."""
    case, dtype = fault.case, fault.mma or torch.bfloat16
    host = OnHost(
        kernels, case, Tiles(16, 2), Tiles(4, 2), fault.multiprocessors, gap=8,
        first_layer=case.in_channels < FEW_CHANNELS, mma=fault.mma is not None,
    )  # fmt: skip
    for seed in range(schedules):
        kernels.choose_schedule(seed)
        if fault.nan:
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(ConvolutionCase, "ours", lambda _, *tensors: host(*tensors))
                check_nan_in_the_future(case, dtype, as_made, "cpu")
        else:
            results = [
                case.result(host, dtype),
                case.result(case.oracle, torch.float64),
                case.result(case.oracle, dtype),
            ]
            for result in results:  # leaving out what the kernels do not compute
                if host.first_layer:
                    del result["grad input"]
                if dtype == torch.float32:
                    del result["grad weight"], result["grad bias"]
            assert_all_accurate(*results)


def check_that_a_fault_is_seen(kernels: Convolutions, faults: dict[str, Fault], name: str) -> None:
    """Switch a fault on, and assert that something is wrong then, and says what it should."""
    kernels.choose_fault([*faults].index(name))
    with pytest.raises((AssertionError, RuntimeError), match=faults[name].says):
        run_and_compare(kernels, faults[name], schedules=4)


def check_without_a_fault(kernels: Convolutions, faults: dict[str, Fault]) -> None:
    """Assert that nothing is wrong in all that shows faults as long as none is on."""
    kernels.choose_fault(-1)
    for fault in {(f.case, f.multiprocessors, f.nan, f.mma): f for f in faults.values()}.values():
        run_and_compare(kernels, fault, schedules=2)
