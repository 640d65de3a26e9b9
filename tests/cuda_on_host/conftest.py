"""The kernels, and the operators that call them, built once for all tests of this folder."""

import importlib
from collections.abc import Iterator
from typing import Any

import pytest
import torch

from cuda_on_host.build import build, build_glue
from cuda_on_host.structs import Kernels

PATHS = {"any": 0, "stepwise": 1, "cluster": 2, "grid": 3, "warpgroup": 4}
"""The values of the enumeration cuda::Path."""


@pytest.fixture(scope="session")
def kernels() -> Kernels:
    return Kernels(build())


@pytest.fixture(scope="session")
def operators() -> Any:
    torch.ops.load_library(str(build_glue()))
    return torch.ops.cuda_on_host


@pytest.fixture
def glue(operators: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Let the operators replace those for the CPU, with memory that is NaN at first, and without tf32."""
    module = importlib.import_module("fused_rnn.ops.recurrent")
    for name in ("recurrent", "recurrent_backward"):
        monkeypatch.setattr(module, f"_{name}", getattr(operators, name).default)
    monkeypatch.setattr("fused_rnn.ops.plain_recurrent", lambda *args: None)  # it calls the operators by themselves
    setting: Any = torch.backends.cudnn.rnn
    monkeypatch.setattr(setting, "fp32_precision", "ieee")
    operators.set_path(PATHS["stepwise"])
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


@pytest.fixture
def convolution_glue(operators: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the operators of masked convolution replace those for the CPU."""
    names = {
        "masked_conv2d": ("masked_conv2d", "masked_conv2d_fused", "masked_conv2d_backward"),
        "gated_activation": ("gated_activation", "gated_activation_backward"),
    }
    for file, replaced in names.items():
        module = importlib.import_module(f"fused_rnn.ops.{file}")
        for name in replaced:
            monkeypatch.setattr(module, f"_{name}", getattr(operators, name).default)


@pytest.fixture(params=["stepwise", "cluster", "grid"])
def path(request: pytest.FixtureRequest, operators: Any) -> str:
    """Let the kernels take one path only."""
    operators.set_path(PATHS[request.param])
    return request.param
