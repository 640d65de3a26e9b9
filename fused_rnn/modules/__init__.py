"""The layers and cells as torch.nn.Module classes, for use in place of those of torch.nn."""

from fused_rnn.modules.freezing import freeze, unfreeze
from fused_rnn.modules.gated_activation import GatedActivation
from fused_rnn.modules.gru import GRU
from fused_rnn.modules.gru_cell import GRUCell
from fused_rnn.modules.gru_reset_before import GRUCellResetBefore, GRUResetBefore
from fused_rnn.modules.lstm import LSTM
from fused_rnn.modules.lstm_cell import LSTMCell
from fused_rnn.modules.masked_conv1d import MaskedConv1d
from fused_rnn.modules.masked_conv2d import MaskedConv2d
from fused_rnn.modules.merged_directions import MergedDirections
from fused_rnn.modules.reversed import Reversed
from fused_rnn.modules.rnn import RNN
from fused_rnn.modules.rnn_cell import RNNCell
from fused_rnn.modules.with_defaults import WithDefaults

__all__ = [
    "GRU",
    "LSTM",
    "RNN",
    "GRUCell",
    "GRUCellResetBefore",
    "GRUResetBefore",
    "GatedActivation",
    "LSTMCell",
    "MaskedConv1d",
    "MaskedConv2d",
    "MergedDirections",
    "RNNCell",
    "Reversed",
    "WithDefaults",
    "freeze",
    "unfreeze",
]
