"""Typed functions that call the operators torch.ops.fused_rnn.*, and the fake kernels, which compute only shapes.

The operators have no gradients; :mod:`fused_rnn.autograd` adds them.
"""

# Imported first, since loading it registers the operators.
import fused_rnn._C  # noqa: F401
from fused_rnn.ops.cells import CELLS, Cell
from fused_rnn.ops.gated_activation import gated_activation, gated_activation_backward
from fused_rnn.ops.masked_conv2d import masked_conv2d, masked_conv2d_backward, masked_conv2d_fused
from fused_rnn.ops.pixel_network import pixel_network, pixel_network_pack
from fused_rnn.ops.recurrent import plain_recurrent, recurrent, recurrent_backward
from fused_rnn.ops.recurrent_frozen import find_change, plain_frozen, recurrent_freeze, recurrent_frozen

__all__ = [
    "CELLS",
    "Cell",
    "find_change",
    "gated_activation",
    "gated_activation_backward",
    "masked_conv2d",
    "masked_conv2d_backward",
    "masked_conv2d_fused",
    "pixel_network",
    "pixel_network_pack",
    "plain_frozen",
    "plain_recurrent",
    "recurrent",
    "recurrent_backward",
    "recurrent_freeze",
    "recurrent_frozen",
]
