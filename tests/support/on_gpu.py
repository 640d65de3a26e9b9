"""Settings and queries for tests on a GPU."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import pytest
import torch

from fused_rnn import _C

Result = TypeVar("Result")


@contextmanager
def float32_precision(precision: str) -> Iterator[None]:
    """Compute float32 with full precision ("ieee") or tf32: in ours, in cuDNN and in torch.nn without cuDNN."""
    backends: Any = torch.backends
    settings = [backends.cudnn.rnn, backends.cudnn.conv, backends.cuda.matmul]
    before = [setting.fp32_precision for setting in settings]
    try:
        for setting in settings:
            setting.fp32_precision = precision
        yield
    finally:
        for setting, value in zip(settings, before, strict=True):
            setting.fp32_precision = value


@contextmanager
def cudnn(enabled: bool) -> Iterator[None]:
    """Enable or disable cuDNN for torch.nn.

    ``torch.backends.cudnn.flags`` raises an error after ``fp32_precision`` was set, ``torch.backends.cudnn.enabled``
    after PyTorch's own test helpers were imported.
    """
    before = torch._C._get_cudnn_enabled()
    try:
        torch._C._set_cudnn_enabled(enabled)
        yield
    finally:
        torch._C._set_cudnn_enabled(before)


def paths(kind: str, dtype: torch.dtype, time: int, batch: int, hidden_size: int, directions: int) -> dict[str, str]:
    """Return the path of each pass of a layer without a projection: stepwise, grid or cluster."""
    problem: dict[str, Any] = {
        "cell": "rnn_tanh" if kind == "RNN" else kind.lower(),
        "element_bytes": dtype.itemsize,
        "batch": batch,
        "hidden_size": hidden_size,
        "directions": directions,
        "projected": False,
        "time": time,
    }
    plans = {name: _C.cuda_plan(**problem, backward=name == "backward") for name in ("forward", "backward")}
    return {name: str(plan["path"]) for name, plan in plans.items()}


def require_path(path: str, taken: dict[str, str]) -> None:
    """Skip a test if neither pass uses the path, since it would test another one."""
    if path != "any" and path not in taken.values():
        pytest.skip(f"nothing takes the path {path}, but {taken}")


def captured(call: Callable[[], Result]) -> tuple[torch.cuda.CUDAGraph, Result]:
    """Return a CUDA graph of a call, and what the call returned while it was captured."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        call()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        result = call()
    return graph, result
