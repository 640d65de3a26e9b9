"""The operators with gradients: torch.autograd.Function classes over :mod:`fused_rnn.ops`, differentiable twice."""

from fused_rnn.autograd.masked_conv2d import masked_conv2d
from fused_rnn.autograd.recurrent import recurrent
from fused_rnn.ops import CELLS, Cell

__all__ = ["CELLS", "Cell", "masked_conv2d", "recurrent"]
