"""Runs models in ONNX Runtime, which computes in float32, and compares the results."""

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from cases import flatten
from comparing import assert_accurate
from torch import Tensor, nn

onnxruntime: Any = pytest.importorskip("onnxruntime", reason="ONNX Runtime is not installed: pip install onnxruntime")


def infer(model: bytes, inputs: Sequence[Tensor]) -> list[Tensor]:
    """Return the outputs of an ONNX model."""
    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    feed = {each.name: tensor.numpy() for each, tensor in zip(session.get_inputs(), inputs, strict=True)}
    return [torch.from_numpy(value) for value in session.run(None, feed)]


def assert_agree(theirs: Sequence[Tensor], module: nn.Module, inputs: Sequence[Any], **kwargs: Any) -> None:
    """Assert that ONNX Runtime's outputs are as accurate as ``module`` in float32, compared with it in float64."""

    def run(dtype: torch.dtype) -> list[Tensor]:
        return flatten(module.to(dtype)(*(_in_dtype(input, dtype) for input in inputs), **kwargs))

    peer, exact = run(torch.float32), run(torch.float64)
    module.float()
    assert len(theirs) == len(exact)
    for index, tensor in enumerate(theirs):
        assert_accurate(tensor, exact[index], peer[index])


def _in_dtype(input: Any, dtype: torch.dtype) -> Any:
    if isinstance(input, tuple):
        return tuple(state.to(dtype) for state in input)
    return input.to(dtype) if input.is_floating_point() else input
