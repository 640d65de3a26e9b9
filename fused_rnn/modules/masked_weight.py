"""What the masked convolutions share: a weight whose masked entries are zero, and the checks of arguments."""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn.modules.conv import _ConvNd

from fused_rnn.functional.checks import check_activation

# What the masked convolutions do in place of the arguments of torch.nn's convolutions.
INSTEAD = {
    "stride": "its stride is always 1",
    "padding": "its output always has the size of its input, and everything outside of the input is zero",
    "padding_mode": "everything outside of the input is zero",
    "groups": "data_channels divides the channels into groups, of which later ones see the earlier ones",
}


class MaskedWeight(_ConvNd):
    """The base of the masked convolutions: initialisation, loading and the mask itself.

    Masked entries of the weight are never used. They are zero nevertheless, so that code that reads the weight, such as
    a norm of it or torch.nn.functional.conv2d, sees what the layer computes. Layers with different masks must therefore
    not share a weight: loading a state_dict would write the zeros of each.
    """

    mask_type: str
    data_channels: int
    activation: str | None = None  # also of layers that convert made, and of those pickled by an earlier version

    def reset_parameters(self) -> None:
        """Initialise weight and bias as torch.nn does, but with a fan-in that counts only active taps."""
        bound = 1 / math.sqrt(max(self._active_taps(), 1) * self.in_channels)
        torch.nn.init.uniform_(self.weight, -bound, bound)
        self.zero_masked_weights()
        if self.bias is not None:
            torch.nn.init.uniform_(self.bias, -bound, bound)

    @property
    def mask(self) -> Tensor:
        """Which entries of the weight are active: a boolean tensor of its shape, made anew each time."""
        return self._make_mask(next(self.parameters()).device)

    @torch.no_grad()
    def zero_masked_weights(self) -> None:
        """Set the masked entries of the weight to zero.

        Initialisation and load_state_dict do so, and with a gradient of exactly zero every optimizer of torch.optim
        leaves them at zero. Call this after something else has written to them: another initialisation, or an optimizer
        that adds noise, with ``optimizer.register_step_post_hook(lambda *_: layer.zero_masked_weights())``.

        If the weight is computed from other parameters, as by torch.nn.utils.parametrize, those that have its shape are
        masked instead. Under spectral_norm with several groups of channels that is needed after each step, since the
        derivative of the norm by masked entries is not zero. load_state_dict leaves such parameters as they are, since
        the norm of a checkpoint may count masked entries.
        """
        for parameter in self.parameters():
            if parameter.shape == self._weight_shape():
                parameter.masked_fill_(self._masked_like(parameter), 0)

    def extra_repr(self) -> str:
        """Return the arguments in the style of torch.nn's convolutions."""
        text = f"{self.in_channels}, {self.out_channels}, kernel_size={self.kernel_size}, mask_type={self.mask_type!r}"
        if self.data_channels != 1:
            text += f", data_channels={self.data_channels}"
        if any(distance != 1 for distance in self.dilation):
            text += f", dilation={self.dilation}"
        if self.activation is not None:
            text += f", activation={self.activation!r}"
        return text if self.bias is not None else f"{text}, bias=False"

    def _active_taps(self) -> int:
        """Return the number of taps that are active for any channel."""
        raise NotImplementedError

    def _make_mask(self, device: torch.device) -> Tensor:
        """Return the mask on ``device``."""
        raise NotImplementedError

    def _identify(self, mask: Tensor) -> tuple[str, int] | None:
        """Return the mask_type and data_channels of a mask of the weight's shape, if there are such."""
        raise NotImplementedError

    def _weight_shape(self) -> tuple[int, ...]:
        return self.out_channels, self.in_channels, *self.kernel_size

    def _masked_like(self, weight: Tensor) -> Tensor:
        """Return the masked entries, distributed over processes if ``weight`` is."""
        masked = ~self._make_mask(weight.device)
        if not hasattr(weight, "device_mesh"):
            return masked
        from torch.distributed.tensor import DTensor, distribute_tensor

        assert isinstance(weight, DTensor)
        return distribute_tensor(masked, weight.device_mesh, weight.placements, src_data_rank=None)

    def _load_from_state_dict(
        self,
        state_dict: dict[str, Any],
        prefix: str,
        local_metadata: dict[str, Any],
        strict: bool,
        missing_keys: list[str],
        unexpected_keys: list[str],
        error_msgs: list[str],
    ) -> None:
        """Load the weight with zeros where it is masked; a ``mask``, as other packages save it, must be ours."""
        key = f"{prefix}mask"
        if key in state_dict:
            difference = self._difference(state_dict[key])
            if difference is not None:
                error_msgs.append(f"{key} is not the mask of this layer, {self}: {difference}.")
            if "mask" not in self._buffers:  # a layer that convert made has it
                state_dict = {name: value for name, value in state_dict.items() if name != key}
        super()._load_from_state_dict(
            state_dict, prefix, local_metadata, strict, missing_keys, unexpected_keys, error_msgs
        )
        weight = self._parameters.get("weight")
        if weight is None or weight.is_meta or f"{prefix}weight" not in state_dict:
            return
        if local_metadata.get("assign_to_params_buffers", False):
            # The weight is the checkpoint's own tensor now, which must not be written to.
            masked = self._masked_like(weight)
            if weight.masked_fill(~masked, 0).any():
                self.weight = torch.nn.Parameter(weight.detach().masked_fill(masked, 0), weight.requires_grad)
        else:
            self.zero_masked_weights()

    def _difference(self, given: Tensor) -> str | None:
        """Return how a mask differs from this layer's, in words, or None if it does not."""
        if given.is_meta:
            return None  # it has no values
        active = given != 0
        try:
            active = active.expand(self._weight_shape())
        except RuntimeError:
            return f"its shape is {list(given.shape)}, not {list(self._weight_shape())}"
        if (given[given != 0] != 1).any():
            return "it has other values than 0 and 1"
        different = active != self._make_mask(given.device)
        if not different.any():
            return None
        words = describe(active, self._identify)
        if words is not None:
            return f"it is that of {words}"
        first = tuple(different.nonzero()[0].tolist())
        verb = "uses" if active[first] else "masks"
        return f"{int(different.sum())} of {different.numel()} entries differ; it {verb} weight{list(first)}"


def describe(active: Tensor, identify: Callable[[Tensor], tuple[str, int] | None]) -> str | None:
    """Describe the mask of a weight in words, or return None if it is unknown.

    Args:
        active: the mask, boolean.
        identify: returns the mask_type and data_channels of a mask of this package.
    """
    found = identify(active)
    if found is not None:
        return f"mask_type={found[0]!r} and data_channels={found[1]}"
    # Other packages put channel c into group c modulo the number of groups. Sorted by group it would be one of ours.
    groups = len(active.unique(dim=0))
    outputs, inputs = (torch.arange(size, device=active.device) for size in active.shape[:2])
    sort = [(channels % groups).argsort(stable=True) for channels in (outputs, inputs)]
    found = identify(active[sort[0]][:, sort[1]])
    if found is None or found[1] == 1:
        return None
    return (
        f"mask_type={found[0]!r} and data_channels={found[1]}, but with channel c in group c modulo {groups} instead "
        "of all channels of a group in a row"
    )


def check_channels(in_channels: int, out_channels: int, data_channels: int) -> None:
    """Check that every group has an input and an output channel.

    Raises:
        ValueError: ``data_channels`` is not positive, or there are fewer channels than groups.
    """
    if data_channels < 1 or min(in_channels, out_channels) < data_channels:
        raise ValueError(
            f"data_channels must be positive and must not exceed in_channels and out_channels, got "
            f"data_channels={data_channels}, in_channels={in_channels}, out_channels={out_channels}"
        )


def check_gate(activation: str | None, out_channels: int, data_channels: int) -> None:
    """Check that a layer has such an activation, and that its channels can be halved in each group if it is a gate.

    Raises:
        ValueError: they are not so.
    """
    check_activation(activation)
    if activation == "gated" and out_channels % (2 * data_channels) != 0:
        raise ValueError(
            "with activation='gated', out_channels must be a multiple of 2 * data_channels, got "
            f"out_channels={out_channels} and data_channels={data_channels}"
        )


def check_arguments(
    layer: str, in_channels: Any, mask_type: Any, excess: tuple[Any, ...], others: dict[str, Any]
) -> None:
    """Raise an error that explains what to write if a layer is given the arguments of torch.nn's convolutions.

    Args:
        layer: the name of the layer.
        in_channels: its first argument.
        mask_type: its fourth argument.
        excess: all arguments by position after ``data_channels``.
        others: all arguments by name that the layer does not have.

    Raises:
        TypeError: there is anything to explain.
    """
    order = f"{layer}(in_channels, out_channels, kernel_size, mask_type, data_channels)"
    for name in others:
        if name not in INSTEAD:
            raise TypeError(f"{layer} got an unexpected keyword argument {name!r}")
        raise TypeError(f"{layer} has no {name}: {INSTEAD[name]}. Leave out {name}={others[name]!r}")
    if isinstance(in_channels, str):
        raise TypeError(f"in_channels must be a number, got {in_channels!r}; the order is {order}")
    if excess or not isinstance(mask_type, str):
        what = f"{len(excess)} more arguments by position" if excess else f"mask_type={mask_type!r}"
        raise TypeError(
            f"the order is {order}, and bias, dilation, dtype and device are given by name, but got {what}. Unlike "
            f"torch.nn's convolutions it has no stride, since {INSTEAD['stride']}, and no padding, since "
            f"{INSTEAD['padding']}"
        )
