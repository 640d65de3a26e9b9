"""Thin typed calls of the operators torch.ops.fused_rnn.*, and their fake kernels, which know shapes only.

The operators have no gradients of their own; :mod:`fused_rnn.autograd` gives them some.
"""

# Loading it registers the operators, so it comes first.
import fused_rnn._C  # noqa: F401
from fused_rnn.ops.cells import CELLS, Cell
from fused_rnn.ops.masked_conv2d import masked_conv2d, masked_conv2d_backward
from fused_rnn.ops.recurrent import recurrent, recurrent_backward

__all__ = ["CELLS", "Cell", "masked_conv2d", "masked_conv2d_backward", "recurrent", "recurrent_backward"]
