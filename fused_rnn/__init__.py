"""Fused LSTM, GRU, RNN and masked-convolution kernels for PyTorch, for use in place of the modules of torch.nn."""

from fused_rnn import flops, functional, models, onnx, reference
from fused_rnn._version import __version__
from fused_rnn.autoregressive import check_autoregressive
from fused_rnn.config import set_debug, set_multiprocessor_limit, show_config
from fused_rnn.convert import convert, revert
from fused_rnn.explain import explain
from fused_rnn.keras import from_keras
from fused_rnn.modules import (
    GRU,
    LSTM,
    RNN,
    GatedActivation,
    GRUCell,
    LSTMCell,
    MaskedConv1d,
    MaskedConv2d,
    RNNCell,
    freeze,
    unfreeze,
)
from fused_rnn.onnx import from_onnx

__all__ = [
    "GRU",
    "LSTM",
    "RNN",
    "GRUCell",
    "GatedActivation",
    "LSTMCell",
    "MaskedConv1d",
    "MaskedConv2d",
    "RNNCell",
    "__version__",
    "check_autoregressive",
    "convert",
    "explain",
    "flops",
    "freeze",
    "from_keras",
    "from_onnx",
    "functional",
    "models",
    "onnx",
    "reference",
    "revert",
    "set_debug",
    "set_multiprocessor_limit",
    "show_config",
    "unfreeze",
]
