"""One step of a plain recurrent network, in plain PyTorch: the definition that the kernels are tested against."""

import torch
from torch import Tensor
from torch.nn import functional

from fused_rnn.reference.quantized import Linear

NONLINEARITIES = {"tanh": torch.tanh, "relu": torch.relu}


def rnn_cell(
    input: Tensor,
    h: Tensor,
    weight_ih: Tensor,
    weight_hh: Tensor,
    bias_ih: Tensor | None = None,
    bias_hh: Tensor | None = None,
    *,
    nonlinearity: str = "tanh",
    linear: Linear = functional.linear,
) -> Tensor:
    """One step of a plain recurrent network.

    Elman, "Finding Structure in Time", Cognitive Science 14(2), 1990, with the weights of torch.nn.RNNCell.

    Args:
        input: ``[batch, input_size]``.
        h: ``[batch, hidden_size]``.
        weight_ih: ``[hidden_size, input_size]``.
        weight_hh: ``[hidden_size, hidden_size]``.
        bias_ih: ``[hidden_size]``, or None for zero.
        bias_hh: ``[hidden_size]``, or None for zero.
        nonlinearity: ``"tanh"`` or ``"relu"``.
        linear: the product of a vector with a weight matrix; :func:`fused_rnn.reference.quantized_linear` for weights
            that are frozen as int8.

    Returns:
        The new ``h``, ``[batch, hidden_size]``.

    Example:
        >>> import torch
        >>> from fused_rnn import reference
        >>> reference.rnn_cell(torch.randn(3, 4), torch.zeros(3, 8), torch.randn(8, 4), torch.randn(8, 8)).shape
        torch.Size([3, 8])
    """
    return NONLINEARITIES[nonlinearity](linear(input, weight_ih, bias_ih) + linear(h, weight_hh, bias_hh))
