"""Conversion from and to ONNX: layers from its nodes, and standard nodes from the operators of this package."""

from fused_rnn.onnx.reading import from_onnx
from fused_rnn.onnx.writing import translation_table

__all__ = ["from_onnx", "translation_table"]
