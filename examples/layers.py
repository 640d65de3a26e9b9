"""The choice of layers, `--layer fused` or `--layer torch`, with the same arguments, weights and results.

Where torch.nn lacks a feature, the classes here add it: `lengths` by packing, `resets` by a loop over the steps, masked
convolution by masking the weight. Two functions compute resets in the other ways that are in use.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import conv2d
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

import fused_rnn


class Packed(nn.RNNBase):
    """A base class that adds arguments to the torch.nn layer after it: `lengths` by packing, `resets` by steps."""

    def forward(
        self, input: Tensor, hx: Any = None, lengths: Tensor | None = None, resets: Tensor | None = None
    ) -> tuple:
        """Run sequences through the layers.

        Args:
            input: As torch.nn has it.
            hx: As torch.nn has it.
            lengths: `[batch]`: each sequence ends at its own length, followed by zeros.
            resets: `[time, batch]`, with the time first: before which steps the states become zero.
        """
        if resets is not None:
            return self._step_by_step(input, hx, resets)
        if lengths is None:
            return super().forward(input, hx)
        packed = pack_padded_sequence(input, lengths, self.batch_first, enforce_sorted=False)
        output, state = super().forward(packed, hx)
        padded, _ = pad_packed_sequence(
            output, self.batch_first, total_length=input.shape[1 if self.batch_first else 0]
        )
        return padded, state

    def _step_by_step(self, input: Tensor, hx: Any, resets: Tensor) -> tuple:
        outputs = []
        for step, reset in zip(input.split(1), resets, strict=True):
            if hx is not None:
                states = [state.masked_fill(reset[:, None], 0) for state in (hx if isinstance(hx, tuple) else (hx,))]
                hx = tuple(states) if len(states) > 1 else states[0]
            output, hx = super().forward(step, hx)
            outputs.append(output)
        return torch.cat(outputs), hx


class PackedLSTM(Packed, nn.LSTM):  # type: ignore[misc]
    """torch.nn.LSTM that takes `lengths`.

    Example:
        >>> import torch
        >>> layer = PackedLSTM(4, 8, batch_first=True)
        >>> output, (h_n, _) = layer(torch.ones(2, 5, 4), lengths=torch.tensor([3, 5]))
        >>> output.shape, bool(output[0, 3:].any()), torch.equal(h_n[0, 0], output[0, 2])
        (torch.Size([2, 5, 8]), False, True)
    """


class PackedGRU(Packed, nn.GRU):  # type: ignore[misc]
    """torch.nn.GRU that takes `lengths`.

    Example:
        >>> import torch
        >>> layer = PackedGRU(4, 8)
        >>> output, h_n = layer(torch.ones(5, 2, 4), lengths=torch.tensor([3, 5]))
        >>> output.shape, bool(output[3:, 0].any()), torch.equal(h_n[0, 0], output[2, 0])
        (torch.Size([5, 2, 8]), False, True)
    """


class PackedRNN(Packed, nn.RNN):  # type: ignore[misc]
    """torch.nn.RNN that takes `lengths`.

    Example:
        >>> import torch
        >>> layer = PackedRNN(4, 8, nonlinearity="relu")
        >>> output, h_n = layer(torch.ones(5, 2, 4), lengths=torch.tensor([3, 5]))
        >>> output.shape, bool(output[3:, 0].any()), torch.equal(h_n[0, 0], output[2, 0])
        (torch.Size([5, 2, 8]), False, True)
    """


class DenseMaskedConv2d(fused_rnn.MaskedConv2d):
    """fused_rnn.MaskedConv2d as most PixelCNNs implement it: a dense convolution with a weight times the mask.

    Example:
        >>> import torch
        >>> layer, image = DenseMaskedConv2d(2, 3, 5, mask_type="B"), torch.randn(1, 2, 8, 8)
        >>> fused = fused_rnn.MaskedConv2d(2, 3, 5, mask_type="B")
        >>> _ = fused.load_state_dict(layer.state_dict())
        >>> torch.allclose(layer(image), fused(image), atol=1e-5)
        True
    """

    def forward(self, input: Tensor, residual: Tensor | None = None) -> Tensor:
        """Convolve images `[batch, in_channels, height, width]`, and add a residual if there is one."""
        output = conv2d(input, self.weight * self.mask, self.bias, padding="same", dilation=self.dilation)
        return output if residual is None else output + residual


def loop_over_cell(cell: Any, input: Tensor, resets: Tensor) -> Tensor:
    """The output of torch.nn's cell, `[time, batch, hidden_size]`, whose states become zero before some steps.

    Args:
        cell: The cell.
        input: `[time, batch, input_size]`.
        resets: `[time, batch]`, where the states become zero.
    """
    keeps = resets.logical_not().to(input.dtype).unsqueeze(2)
    h = input.new_zeros(input.size(1), cell.hidden_size)
    c = h
    outputs = []
    for step, keep in zip(input, keeps, strict=True):
        if isinstance(cell, nn.LSTMCell):
            h, c = cell(step, (h * keep, c * keep))
        else:
            h = cell(step, h * keep)
        outputs.append(h)
    return torch.stack(outputs)


def split_and_pad(layer: nn.Module, input: Tensor, resets: Tensor) -> Tensor:
    """The output of torch.nn's layer, `[time, batch, hidden_size]`, for all segments as one padded batch.

    Args:
        layer: The layer, with the time first.
        input: `[time, batch, input_size]`.
        resets: `[time, batch]`, where a segment begins.
    """
    time, batch = resets.shape
    begins = resets.clone()
    begins[0] = True
    lengths = begins.T.flatten().nonzero().flatten().diff(append=torch.tensor([time * batch], device=input.device))
    steps = torch.arange(int(lengths.max()), device=input.device).unsqueeze(1)
    inside = (steps < lengths).T
    # An index rather than pad_sequence, whose backward pass copies the whole padded batch for each segment.
    at = (lengths.cumsum(0) - lengths + steps).clamp(max=time * batch - 1)
    output, _ = layer(input.transpose(0, 1).flatten(0, 1)[at])
    return output.transpose(0, 1)[inside].view(batch, time, -1).transpose(0, 1)


@dataclass(frozen=True)
class Layers:
    """The classes of layers that a model uses.

    Example:
        >>> CHOICES["torch"].lstm(4, 8, num_layers=2)
        PackedLSTM(4, 8, num_layers=2)
    """

    lstm: type[nn.Module]
    gru: type[nn.Module]
    rnn: type[nn.Module]
    masked_conv2d: type[nn.Module]


CHOICES = {
    "fused": Layers(fused_rnn.LSTM, fused_rnn.GRU, fused_rnn.RNN, fused_rnn.MaskedConv2d),
    "torch": Layers(PackedLSTM, PackedGRU, PackedRNN, DenseMaskedConv2d),
}
