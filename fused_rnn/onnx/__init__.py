"""Conversion from and to ONNX: layers from its nodes, and its operators in place of those of this package."""

from fused_rnn.onnx.reading import from_onnx
from fused_rnn.onnx.writing import decomposition_table

__all__ = ["decomposition_table", "from_onnx"]
