"""One step of a gated recurrent unit, in plain PyTorch: the definition that the kernels are tested against."""

import torch
from torch import Tensor
from torch.nn import functional

from fused_rnn.reference.quantized import Linear


def gru_cell(
    input: Tensor,
    h: Tensor,
    weight_ih: Tensor,
    weight_hh: Tensor,
    bias_ih: Tensor | None = None,
    bias_hh: Tensor | None = None,
    *,
    reset_after: bool = True,
    linear: Linear = functional.linear,
) -> Tensor:
    """One step of a GRU.

    Cho et al., "Learning Phrase Representations using RNN Encoder-Decoder for Statistical Machine Translation",
    EMNLP 2014, where the reset gate acts on ``h`` before the recurrent product (``reset_after=False``). In torch.nn
    and cuDNN it acts on the product instead (``reset_after=True``), so that one product serves all three gates; the
    operators of this package do the same. The gates are in torch.nn's order: r, z, n.

    Args:
        input: ``[batch, input_size]``.
        h: ``[batch, hidden_size]``.
        weight_ih: ``[3 * hidden_size, input_size]``.
        weight_hh: ``[3 * hidden_size, hidden_size]``.
        bias_ih: ``[3 * hidden_size]``, or None for zero.
        bias_hh: ``[3 * hidden_size]``, or None for zero.
        reset_after: whether the reset gate acts after the recurrent product, as in torch.nn, or before it.
        linear: the product of a vector with a weight matrix; :func:`fused_rnn.reference.quantized_linear` for weights
            that are frozen as int8.

    Returns:
        The new ``h``, ``[batch, hidden_size]``.

    Example:
        >>> import torch
        >>> from fused_rnn import reference
        >>> h = reference.gru_cell(torch.randn(3, 4), torch.zeros(3, 8), torch.randn(24, 4), torch.randn(24, 8))
        >>> h.shape
        torch.Size([3, 8])
    """
    w_r, w_z, w_n = weight_hh.chunk(3)
    b_r, b_z, b_n = (None, None, None) if bias_hh is None else bias_hh.chunk(3)
    x_r, x_z, x_n = linear(input, weight_ih, bias_ih).chunk(3, dim=1)
    r = torch.sigmoid(x_r + linear(h, w_r, b_r))
    z = torch.sigmoid(x_z + linear(h, w_z, b_z))
    n = torch.tanh(x_n + (r * linear(h, w_n, b_n) if reset_after else linear(r * h, w_n, b_n)))
    return (1 - z) * n + z * h
