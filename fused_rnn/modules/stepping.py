"""What lets a masked convolution be computed step by step: pixel by pixel, or time step by time step."""

import torch
from torch import Tensor

from fused_rnn.functional.pixel_network import PixelNetwork, PixelState
from fused_rnn.modules.masked_weight import MaskedWeight


class Stepping(MaskedWeight):
    """The method ``step`` of the masked convolutions. A subclass adds ``init_state``."""

    @torch.no_grad()
    def step(self, input: Tensor | None, state: PixelState) -> Tensor:
        """Compute the next step: the next pixel in raster order, or the next time step.

        On the CPU the result is what ``forward`` computes for the whole input, bit for bit, at any batch size and with
        any number of threads; on a GPU it agrees up to rounding. Gradients are not recorded.

        Args:
            input: ``[batch, in_channels]``: with type B the input of this step; with the other types, which do not see
                it, the input of the step before, and None at the first step.
            state: what ``init_state`` returned; it changes.

        Returns:
            ``[batch, out_channels]``, after the activation, without any residual; with ``activation="gated"``
            ``[batch, out_channels / 2]``.

        Raises:
            ValueError: ``input`` is missing, has another shape than ``[batch, in_channels]``, or is given at a first
                step that does not see it; or all steps have been computed.
            TypeError: ``input`` has another dtype than the state.
        """
        sees_itself = self.mask_type == "B"
        step = state.step if sees_itself else state.step - 1
        if (input is None) != (step < 0):
            raise ValueError(
                f"input is {'missing' if input is None else 'given'}, but a layer of type {self.mask_type} takes the "
                f"input of {'each step' if sees_itself else 'the step before, and None at the first'}"
            )
        if input is not None and state.step < state.steps:
            place = state.pixel(0, step)
            if input.shape != place.shape:
                raise ValueError(f"input must have shape {list(place.shape)}, got {list(input.shape)}")
            if input.dtype != place.dtype:
                raise TypeError(f"input must be {place.dtype}, got {input.dtype}")
            place.copy_(input)
        state.advance(1)
        return state.pixel(state.output, state.step - 1).clone()

    def _state(self, weight: Tensor, dilation: tuple[int, int], batch: int, height: int, width: int) -> PixelState:
        """Return the state before the first step of this layer alone, whose weight is given as that of an image."""
        for name, size in (("batch", batch), ("height", height), ("width", width)):
            if size < (name != "batch"):
                raise ValueError(f"{name} must be {'not negative' if name == 'batch' else 'positive'}, got {size}")
        if self.mask_type == "A" and self.data_channels > 1:
            raise ValueError(
                "a layer of type A with several groups of channels cannot step by itself, since each group sees other "
                "channels of the same step: fused_rnn.models steps group by group"
            )
        if self.mask_type == "vertical_B":
            raise ValueError("a layer of type vertical_B cannot step by itself, since it sees later pixels of a row")
        network = PixelNetwork()
        network.add_value(self.in_channels)
        above = self.mask_type == "vertical_A"
        sums = network.add_convolution(0, weight, self.bias, self.mask_type, self.data_channels, dilation, above)
        network.add_activation(sums, self.activation, self.data_channels, above)
        return PixelState(network, batch, height, width)
