"""What the tests set and ask where they run on a GPU."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch

from fused_rnn import _C


@contextmanager
def float32_precision(precision: str) -> Iterator[None]:
    """Let float32 be computed exactly ("ieee") or with tf32: by ours and cuDNN, which ask one setting, and without."""
    settings: Any = [torch.backends.cudnn.rnn, torch.backends.cuda.matmul]
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
    """Let torch.nn use cuDNN or not.

    ``torch.backends.cudnn.flags`` raises where ``fp32_precision`` was set, ``torch.backends.cudnn.enabled`` where
    PyTorch's own test helpers were imported.
    """
    before = torch._C._get_cudnn_enabled()
    try:
        torch._C._set_cudnn_enabled(enabled)
        yield
    finally:
        torch._C._set_cudnn_enabled(before)


def paths(kind: str, dtype: torch.dtype, time: int, batch: int, hidden_size: int, directions: int) -> dict[str, str]:
    """Return the path that each pass of a layer without a projection takes: stepwise, grid or cluster."""
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
    """Skip a test if neither pass takes the path: it would test another one."""
    if path != "any" and path not in taken.values():
        pytest.skip(f"nothing takes the path {path}, but {taken}")
