"""The definition of every operator in plain PyTorch: written for clarity, differentiable, and for any dtype."""

from fused_rnn.reference.gated_activation import gated_activation
from fused_rnn.reference.gru import gru
from fused_rnn.reference.gru_cell import gru_cell
from fused_rnn.reference.lstm import lstm
from fused_rnn.reference.lstm_cell import lstm_cell
from fused_rnn.reference.masked_conv1d import masked_conv1d
from fused_rnn.reference.masked_conv2d import mask, masked_conv2d
from fused_rnn.reference.quantized import quantize, quantized_linear
from fused_rnn.reference.recurrent import CELLS, recurrent
from fused_rnn.reference.rnn import rnn
from fused_rnn.reference.rnn_cell import rnn_cell
from fused_rnn.reference.sample import sample

__all__ = [
    "CELLS",
    "gated_activation",
    "gru",
    "gru_cell",
    "lstm",
    "lstm_cell",
    "mask",
    "masked_conv1d",
    "masked_conv2d",
    "quantize",
    "quantized_linear",
    "recurrent",
    "rnn",
    "rnn_cell",
    "sample",
]
