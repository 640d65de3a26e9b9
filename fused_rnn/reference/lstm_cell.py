"""One step of a long short-term memory, in plain PyTorch: the definition that the kernels are tested against."""

import torch
from torch import Tensor
from torch.nn import functional

from fused_rnn.reference.quantized import Linear


def lstm_cell(
    input: Tensor,
    h: Tensor,
    c: Tensor,
    weight_ih: Tensor,
    weight_hh: Tensor,
    bias_ih: Tensor | None = None,
    bias_hh: Tensor | None = None,
    weight_hr: Tensor | None = None,
    *,
    linear: Linear = functional.linear,
) -> tuple[Tensor, Tensor]:
    """One step of an LSTM.

    Hochreiter and Schmidhuber, "Long Short-Term Memory", Neural Computation 9(8), 1997, with the forget gate of Gers,
    Schmidhuber and Cummins, "Learning to Forget", Neural Computation 12(10), 2000. With ``weight_hr`` the output is
    projected to a smaller size: Sak, Senior and Beaufays, "Long Short-Term Memory Recurrent Neural Network
    Architectures for Large Scale Acoustic Modeling", Interspeech 2014. The gates are in torch.nn's order: i, f, g, o.

    Args:
        input: ``[batch, input_size]``.
        h: ``[batch, output_size]``, where ``output_size`` is ``proj_size`` with a projection, else ``hidden_size``.
        c: ``[batch, hidden_size]``.
        weight_ih: ``[4 * hidden_size, input_size]``.
        weight_hh: ``[4 * hidden_size, output_size]``.
        bias_ih: ``[4 * hidden_size]``, or None for zero.
        bias_hh: ``[4 * hidden_size]``, or None for zero.
        weight_hr: ``[proj_size, hidden_size]``, or None for no projection.
        linear: the product of a vector with a weight matrix; :func:`fused_rnn.reference.quantized_linear` for weights
            that are frozen as int8.

    Returns:
        The new ``h``, ``[batch, output_size]``, and the new ``c``, ``[batch, hidden_size]``.

    Example:
        >>> import torch
        >>> from fused_rnn import reference
        >>> h, c = reference.lstm_cell(
        ...     torch.randn(3, 4), torch.zeros(3, 8), torch.zeros(3, 8), torch.randn(32, 4), torch.randn(32, 8)
        ... )
        >>> h.shape, c.shape
        (torch.Size([3, 8]), torch.Size([3, 8]))
    """
    gates = linear(input, weight_ih, bias_ih) + linear(h, weight_hh, bias_hh)
    i, f, g, o = gates.chunk(4, dim=1)
    c_new = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
    h_new = torch.sigmoid(o) * torch.tanh(c_new)
    if weight_hr is not None:
        h_new = functional.linear(h_new, weight_hr)
    return h_new, c_new
