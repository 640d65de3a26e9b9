"""Large results are written to huge pages, if Linux has them for those who ask."""

import re
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

import fused_rnn

SETTING = Path("/sys/kernel/mm/transparent_hugepage/enabled")
# Of the header line of a mapping its first and last address, and further down what was advised.
MAPPING = re.compile(r"^([0-9a-f]+)-([0-9a-f]+) .*?^VmFlags: ([\w ]*)$", re.MULTILINE | re.DOTALL)

pytestmark = pytest.mark.skipif(
    sys.platform != "linux" or not SETTING.exists() or "[never]" in SETTING.read_text(),
    reason="this machine has no huge pages for those who ask",
)


def asks_for_huge_pages(tensor: Tensor) -> bool:
    """Whether the middle of a tensor lies in memory for which huge pages were asked."""
    address = tensor.data_ptr() + tensor.nbytes // 2
    for begin, end, flags in MAPPING.findall(Path("/proc/self/smaps").read_text()):
        if int(begin, 16) <= address < int(end, 16):
            return "hg" in flags.split()
    raise AssertionError("the address of a tensor is in no mapping")


@pytest.mark.parametrize(
    "compute",
    [
        lambda: fused_rnn.LSTM(4, 512)(torch.randn(300, 64, 4))[0],
        lambda: fused_rnn.GRU(4, 512)(torch.randn(300, 64, 4).requires_grad_())[0],
        lambda: fused_rnn.MaskedConv2d(1, 64, 3, "A")(torch.randn(4, 1, 190, 190)),
    ],
)
def test_large_output(compute: Callable[[], Tensor]) -> None:
    output = compute()
    assert output.nbytes > 32 << 20
    assert asks_for_huge_pages(output)
    assert not asks_for_huge_pages(torch.zeros(output.numel()))
