"""The operators with gradients: torch.autograd.Function classes over :mod:`fused_rnn.ops`, differentiable twice."""

from fused_rnn.autograd.gru import gru
from fused_rnn.autograd.lstm import lstm
from fused_rnn.autograd.masked_conv2d import masked_conv2d

__all__ = ["gru", "lstm", "masked_conv2d"]
