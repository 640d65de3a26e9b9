"""The layers and cells as functions of their weights, with the shapes and errors of torch.nn."""

from fused_rnn.functional.gated_activation import gated_activation
from fused_rnn.functional.gru import gru
from fused_rnn.functional.gru_cell import gru_cell
from fused_rnn.functional.lstm import lstm
from fused_rnn.functional.lstm_cell import lstm_cell
from fused_rnn.functional.masked_conv1d import masked_conv1d
from fused_rnn.functional.masked_conv2d import masked_conv2d
from fused_rnn.functional.rnn import rnn
from fused_rnn.functional.rnn_cell import rnn_cell

__all__ = [
    "gated_activation",
    "gru",
    "gru_cell",
    "lstm",
    "lstm_cell",
    "masked_conv1d",
    "masked_conv2d",
    "rnn",
    "rnn_cell",
]
