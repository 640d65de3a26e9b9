"""The layer ``MaskedConv1d``."""

from typing import Any

import torch
from torch import Tensor
from torch.fx import Proxy
from torch.nn.functional import pad

from fused_rnn import functional
from fused_rnn.functional.masked_conv1d import as_row
from fused_rnn.modules.fx import leaf
from fused_rnn.modules.masked_weight import check_arguments, check_channels, check_gate
from fused_rnn.modules.scripting import refuse_script
from fused_rnn.modules.stepping import PixelState, Stepping
from fused_rnn.reference.masked_conv1d import check_mask_type, mask
from fused_rnn.reference.masked_conv2d import identify


class MaskedConv1d(Stepping, torch.nn.Conv1d):
    """A causal convolution over time: no output sees a later time step.

    Van den Oord et al., "WaveNet: A Generative Model for Raw Audio", 2016, section 2.1. With type B and one group of
    channels it computes what torch.nn.Conv1d does with ``(kernel_size - 1) * dilation`` zeros before the input, and the
    state_dict of that loads unchanged. The output is as long as the input. The last tap of the kernel reads the step
    itself, the one before it the step ``dilation`` earlier, and so on.

    Masked entries of the weight are never used and are zero, as in :class:`fused_rnn.MaskedConv2d`, whose kernel
    computes this layer. Its threads share the sequences of a batch, so a single sequence is computed by one thread.

    Args:
        in_channels: the number of input channels.
        out_channels: the number of output channels.
        kernel_size: the number of taps, odd or even.
        mask_type: ``"A"``, where an output does not see its own step, for the first layer of a model; or ``"B"``, where
            it does, for all others.
        data_channels: the number of groups into which the channels are divided, such as 2 for the left and the right
            channel of sound. At its own step, an output sees only the channels of earlier groups, with type B also
            those of its own. Channel ``c`` of ``C`` is in group ``floor(c * data_channels / C)``.
        bias: whether the layer has a bias.
        dilation: the distance between neighbouring taps, in time steps.
        activation: what is applied to the convolution's result: ``"relu"``; ``"gated"``, which is
            :class:`fused_rnn.GatedActivation` with ``data_channels`` and halves the number of channels, so that the
            layer returns ``out_channels / 2``; or None.
        dtype: the dtype of the weights.
        device: the device of the weights.

    Raises:
        ValueError: ``mask_type`` is unknown, a size is not positive, there are fewer channels than groups,
            ``activation`` is unknown, or the channels cannot be halved in each group.
        TypeError: it is given an argument of torch.nn.Conv1d that it does not have. The stride is always 1, the
            output has the size of the input, everything before the input is zero, and ``data_channels`` takes the
            place of ``groups``.

    Example:
        >>> import torch, fused_rnn
        >>> layer = fused_rnn.MaskedConv1d(1, 32, 2, mask_type="B", dilation=8)
        >>> layer(torch.randn(4, 1, 1000)).shape
        torch.Size([4, 32, 1000])
    """

    __prepare_scriptable__ = refuse_script

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | tuple[int],
        mask_type: str,
        data_channels: int = 1,
        *excess: Any,
        bias: bool = True,
        dilation: int | tuple[int] = 1,
        activation: str | None = None,
        dtype: torch.dtype | None = None,
        device: Any = None,
        **others: Any,
    ) -> None:
        check_arguments("MaskedConv1d", in_channels, mask_type, excess, others)
        check_mask_type(mask_type)
        for name, value in (("kernel_size", kernel_size), ("dilation", dilation)):
            sizes = (value,) if isinstance(value, int) else tuple(value)
            if len(sizes) != 1 or sizes[0] < 1:
                raise ValueError(f"{name} must be a positive number, got {value}")
        check_channels(in_channels, out_channels, data_channels)
        check_gate(activation, out_channels, data_channels)
        # Set before torch.nn.Conv1d's constructor, since it calls reset_parameters(), which reads them.
        self.mask_type = mask_type
        self.data_channels = data_channels
        self.activation = activation
        super().__init__(
            in_channels, out_channels, kernel_size, dilation=dilation, bias=bias, dtype=dtype, device=device
        )

    def forward(self, input: Tensor, residual: Tensor | None = None) -> Tensor:
        """Convolve sequences, apply the activation, and add a residual: ``activation(conv(input) + bias) + residual``.

        Args:
            input: ``[batch, in_channels, time]`` or ``[in_channels, time]``.
            residual: in the shape of the result; None for nothing.

        Returns:
            ``[batch, out_channels, time]``, without ``batch`` if the input is; with ``activation="gated"`` of
            ``out_channels / 2`` channels.

        Raises:
            RuntimeError: ranks or sizes do not fit, or dtype or device differ from the weight's.
            NotImplementedError: there is no kernel for the dtype or device of ``input``.
        """
        if isinstance(input, Proxy) and (node := leaf(self, MaskedConv1d.forward, input, residual)) is not None:
            return node
        # A subclass may override this method with the arguments that torch.nn gives it.
        added = () if residual is None else (residual,)
        return self._conv_forward(input, self.weight, self.bias, *added)

    def init_state(self, batch: int, time: int) -> PixelState:
        """Return the state before the first time step, from which :meth:`step` goes on.

        It has packed the weights, so that later changes of them have no effect on it.

        Args:
            batch: the number of sequences.
            time: the most time steps that will be computed.

        Returns:
            The state, which has memory for that many steps.

        Raises:
            ValueError: ``time`` is not positive, or the layer is of type A and has several groups of channels.
            NotImplementedError: the weights are not float32 or float64, or not on the CPU.

        Example:
            >>> import torch, fused_rnn
            >>> layer, sound = fused_rnn.MaskedConv1d(1, 8, 2, "B", dilation=4), torch.randn(3, 1, 20)
            >>> state = layer.init_state(3, time=20)
            >>> steps = [layer.step(sound[:, :, time], state) for time in range(20)]
            >>> torch.equal(torch.stack(steps, 2), layer(sound))
            True
        """
        return self._state(as_row(self.weight), (1, self.dilation[0]), batch, 1, time)

    def _conv_forward(
        self, input: Tensor, weight: Tensor, bias: Tensor | None, residual: Tensor | None = None
    ) -> Tensor:
        """Convolve with another weight, as subclasses of torch.nn.Conv1d do."""
        return functional.masked_conv1d(
            input, weight, bias, self.mask_type, self.data_channels, self.dilation[0], self.activation, residual
        )

    def _active_taps(self) -> int:
        return self.kernel_size[0] - (self.mask_type == "A" and self.data_channels == 1)

    def _make_mask(self, device: torch.device) -> Tensor:
        return mask(
            self.out_channels, self.in_channels, self.kernel_size[0], self.mask_type, self.data_channels, device
        )

    def _identify(self, mask: Tensor) -> tuple[str, int] | None:
        row = pad(mask, (0, self.kernel_size[0] - 1)).unsqueeze(2)
        found = identify(row)
        return found if found is not None and found[0] in ("A", "B") else None
