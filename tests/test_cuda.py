"""LSTM and GRU on a GPU, on every path, against torch.nn in float64 on the CPU and in the same dtype on the GPU."""

from collections.abc import Iterator

import pytest
import torch
from cases import DTYPES, KINDS, Case, shapes_of_layers, tails
from comparing import assert_all_accurate, assert_identical

import fused_rnn
from fused_rnn import _C

pytestmark = pytest.mark.needs_cuda

# Sizes that the persistent kernels take, which share out hidden units in multiples of 16 bytes.
PERSISTENT = [
    Case(kind, **sizes)  # type: ignore[arg-type]
    for kind in KINDS
    for sizes in (
        {"time": 7, "batch": 3, "input_size": 5, "hidden_size": 8},
        {"time": 6, "batch": 17, "input_size": 8, "hidden_size": 72, "bidirectional": True},
        {"time": 9, "batch": 1, "input_size": 16, "hidden_size": 256},
        {"time": 12, "batch": 33, "input_size": 40, "hidden_size": 320, "num_layers": 2},
        {"time": 5, "batch": 20, "input_size": 64, "hidden_size": 512, "bias": False},
        {"time": 8, "batch": 5, "hidden_size": 136, "lengths": (3, 8, 8, 1, 5), "bidirectional": True},
        {"time": 4, "batch": 64, "input_size": 128, "hidden_size": 1024},
    )
]


@pytest.fixture(params=["any", "plain", "grid", "cluster"])
def path(request: pytest.FixtureRequest) -> Iterator[str]:
    """Let the kernels take one path only."""
    _C.set_cuda_wish(request.param)
    yield request.param
    _C.set_cuda_wish("any")


@pytest.fixture(params=["ieee", "tf32"])
def precision(request: pytest.FixtureRequest) -> Iterator[str]:
    """Let float32 be computed exactly, or with tf32."""
    before = torch.backends.cudnn.rnn.fp32_precision, torch.backends.cuda.matmul.fp32_precision
    torch.backends.cudnn.rnn.fp32_precision = torch.backends.cuda.matmul.fp32_precision = request.param
    yield request.param
    torch.backends.cudnn.rnn.fp32_precision, torch.backends.cuda.matmul.fp32_precision = before


def check(case: Case, dtype: torch.dtype, peer_dtype: torch.dtype | None = None) -> None:
    ours, exact = case.result(fused_rnn, dtype, "cuda"), case.torch_result(torch.float64)
    assert_all_accurate(ours, exact, case.result(torch.nn, peer_dtype or dtype, "cuda"))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("case", [case for kind in KINDS for case in shapes_of_layers(kind) + tails(kind)], ids=str)
def test_equals_torch(case: Case, dtype: torch.dtype) -> None:
    if dtype == torch.float32:
        pytest.skip("test_paths has float32, in both precisions")
    check(case, dtype)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("case", PERSISTENT, ids=str)
def test_paths(case: Case, dtype: torch.dtype, path: str) -> None:
    check(case, dtype)


@pytest.mark.parametrize("case", PERSISTENT, ids=str)
def test_paths_in_float32(case: Case, path: str, precision: str) -> None:
    # cuDNN takes tf32 for some sizes only; float16 has as many bits of mantissa.
    check(case, torch.float32, torch.float16 if precision == "tf32" else None)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("case", PERSISTENT, ids=str)
def test_deterministic(case: Case, dtype: torch.dtype) -> None:
    first = case.result(fused_rnn, dtype, "cuda")
    for _ in range(3):
        assert_identical(case.result(fused_rnn, dtype, "cuda"), first)
