"""The function ``masked_conv1d``, which computes what the module :class:`fused_rnn.MaskedConv1d` does."""

import torch
from torch import Tensor
from torch.nn.functional import pad

from fused_rnn.functional.checks import check_epilogue
from fused_rnn.functional.fx import node_of_graph
from fused_rnn.functional.masked_conv2d import masked_conv2d
from fused_rnn.reference.masked_conv1d import check_mask_type


@node_of_graph
def masked_conv1d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    mask_type: str = "A",
    data_channels: int = 1,
    dilation: int | tuple[int] = 1,
    activation: str | None = None,
    residual: Tensor | None = None,
) -> Tensor:
    """Convolve sequences so that no output sees a later time step.

    Van den Oord et al., "WaveNet: A Generative Model for Raw Audio", 2016, section 2.1;
    :func:`fused_rnn.reference.masked_conv1d` states the definition. The output is as long as the input, and earlier
    steps than its first are zero. Masked entries of ``weight`` are never multiplied, not even with NaN, and get a
    gradient of exactly zero. The result is ``activation(conv(input) + bias) + residual``.

    Args:
        input: ``[batch, in_channels, time]`` or ``[in_channels, time]``.
        weight: ``[out_channels, in_channels, kernel_size]``; the last tap reads the step itself, the one before it the
            step ``dilation`` earlier, and so on.
        bias: ``[out_channels]``, or None for zero.
        mask_type: ``"A"``, where an output does not see its own step, for a first layer; or ``"B"``, where it does.
        data_channels: the number of groups into which the channels are divided, such as 2 for the left and the right
            channel of sound. At its own step, an output sees only the channels of earlier groups, with type B also
            those of its own. Channel ``c`` of ``C`` is in group ``floor(c * data_channels / C)``.
        dilation: the distance between neighbouring taps, in time steps.
        activation: what is applied to the convolution's result: ``"relu"``; ``"gated"``, which is
            :func:`fused_rnn.functional.gated_activation` with ``data_channels`` and halves the channels; or None.
        residual: what is added after the activation, in the shape of the result; None for nothing.

    Returns:
        ``[batch, out_channels, time]``, without ``batch`` if the input is; with ``"gated"`` of ``out_channels / 2``
        channels.

    Raises:
        ValueError: ``mask_type`` is unknown, the kernel has no taps, there are fewer channels than groups,
            ``activation`` is unknown, or the channels cannot be halved in each group.
        RuntimeError: ranks or sizes do not fit, or tensors differ in dtype or device.
        NotImplementedError: there is no kernel for the dtype or device of ``input``.

    Example:
        >>> import torch
        >>> from fused_rnn import functional
        >>> functional.masked_conv1d(torch.randn(2, 1, 100), torch.randn(16, 1, 2), mask_type="B", dilation=8).shape
        torch.Size([2, 16, 100])
    """
    check_mask_type(mask_type)
    if input.dim() not in (2, 3):
        raise RuntimeError(
            "Expected 2D (unbatched) or 3D (batched) input to masked_conv1d, but got input of size: "
            f"{list(input.shape)}"
        )
    if weight.dim() != 3:
        raise RuntimeError(f"Expected 3D weight for masked_conv1d, but got weight of size: {list(weight.shape)}")
    check_epilogue(input, activation, residual)
    if not torch.jit.is_tracing():  # a trace serves other sizes, which the operator checks
        _check_sizes(input, weight)
    if not isinstance(dilation, int) and len(dilation) != 1:
        raise RuntimeError(f"expected dilation to be a single integer value or a list of 1 value, got {dilation}")
    distance = dilation if isinstance(dilation, int) else dilation[0]
    # An image of one row.
    row, added = input.unsqueeze(-2), None if residual is None else residual.unsqueeze(-2)
    return masked_conv2d(row, as_row(weight), bias, mask_type, data_channels, (1, distance), activation, added).squeeze(
        -2
    )


def as_row(weight: Tensor) -> Tensor:
    """Return the weight of a masked convolution in two dimensions that does the same in an image of one row.

    The last tap becomes the centre of the kernel. The taps after it are masked.

    Args:
        weight: ``[out_channels, in_channels, kernel_size]``.

    Returns:
        ``[out_channels, in_channels, 1, 2 * kernel_size - 1]``.
    """
    return pad(weight, (0, weight.size(2) - 1)).unsqueeze(2)


def _check_sizes(input: Tensor, weight: Tensor) -> None:
    """Raise an error if the sizes of an input and a weight do not fit."""
    if input.size(-2) != weight.size(1):
        raise RuntimeError(
            f"Given weight of size {list(weight.shape)}, expected input{list(input.shape)} to have {weight.size(1)} "
            f"channels, but got {input.size(-2)} channels instead"
        )
    if input.size(-1) == 0:
        raise RuntimeError(f"Expected input to have time steps, but got input of size {list(input.shape)}")
    if weight.size(2) == 0:
        raise ValueError(f"kernel_size must be positive, got weight of size {list(weight.shape)}")
