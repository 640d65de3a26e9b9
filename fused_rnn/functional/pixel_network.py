"""Networks of masked convolutions that are evaluated pixel by pixel; each layer keeps what it reads again."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from torch import Tensor

from fused_rnn import ops
from fused_rnn.ops.pixel_network import Distribution as DrawnFrom
from fused_rnn.ops.pixel_network import Draw, Kind, Node, encode
from fused_rnn.reference.masked_conv2d import MASK_TYPES


@dataclass
class PixelNetwork:
    """A network of masked convolutions as a list of operations, without any state."""

    groups: int = 1
    """How many groups of channels, such as colours, are computed one after the other at every pixel."""
    nodes: list[Node] = field(default_factory=list)
    parameters: list[Tensor] = field(default_factory=list)
    channels: list[int] = field(default_factory=list)
    """For each value the number of its channels. Value 0 is the input."""
    constants: dict[int, Tensor] = field(default_factory=dict)
    """The values that do not depend on the images: ``[batch, rows, columns, channels]``."""

    def add_value(self, channels: int) -> int:
        """Return the position of a new value."""
        self.channels.append(channels)
        return len(self.channels) - 1

    def add_constant(self, constant: Tensor) -> int:
        """Return the position of a new value that is given, ``[batch, channels, height or 1, width or 1]``."""
        value = self.add_value(constant.size(1))
        self.constants[value] = constant.permute(0, 2, 3, 1).contiguous()
        return value

    def add(
        self, kind: Kind, inputs: Sequence[int], output: int, whole_row: bool = False, details: tuple[int, ...] = ()
    ) -> int:
        """Append an operation, and return the position of its output."""
        self.nodes.append(Node(kind, whole_row, (inputs[0], inputs[-1]), output, details))
        return output

    def add_convolution(
        self,
        input: int,
        weight: Tensor,
        bias: Tensor | None,
        mask_type: str,
        data_channels: int,
        dilation: tuple[int, int],
        whole_row: bool = False,
    ) -> int:
        """Append a masked convolution, and return the position of its output."""
        at = len(self.parameters)
        tensors = [weight] if bias is None else [weight, bias]
        self.parameters += [tensor.detach().contiguous() for tensor in tensors]
        details = (at, -1 if bias is None else at + 1, MASK_TYPES.index(mask_type), data_channels, *dilation)
        return self.add(Kind.CONVOLUTION, (input,), self.add_value(weight.size(0)), whole_row, details)

    def add_activation(self, input: int, activation: str | None, data_channels: int, whole_row: bool = False) -> int:
        """Append the activation of a masked convolution, if it has one, and return the position of its output."""
        channels = self.channels[input]
        if activation == "relu":
            return self.add(Kind.RELU, (input,), self.add_value(channels), whole_row)
        if activation == "gated":
            return self.add(Kind.GATE, (input,), self.add_value(channels // 2), whole_row, (0, 0, data_channels))
        return input


class PixelState:
    """What the layers of a network know about the pixels before the current one.

    Args:
        network: the network. Its weights are packed here, so that later changes of them have no effect.
        batch: the number of images.
        height: their height.
        width: their width.
    """

    def __init__(self, network: PixelNetwork, batch: int, height: int, width: int) -> None:
        self.network = network
        self.batch, self.height, self.width = batch, height, width
        self.step = 0
        """The step that is computed next: ``(row * width + column) * groups + group``."""
        self._nodes = encode(network.nodes)
        self._packed = ops.pixel_network_pack(network.parameters, self._nodes, network.groups)
        reaches = self._reaches()
        self.values = [
            network.constants[value]
            if value in network.constants
            else network.parameters[0].new_zeros(
                (batch, min(reaches[value][0], height - 1) + 1, width + 2 * reaches[value][1], channels)
            )
            for value, channels in enumerate(network.channels)
        ]
        self.margin = reaches[0][1]

    @property
    def steps(self) -> int:
        """The number of all steps."""
        return self.height * self.width * self.network.groups

    @property
    def output(self) -> int:
        """The position of the network's output among its values."""
        return self.network.nodes[-1].output

    def advance(self, steps: int, outputs: Tensor | None = None, draw: Draw | None = None) -> None:
        """Compute the next steps; see :func:`fused_rnn.ops.pixel_network.pixel_network`."""
        end = self.step + steps
        if end > self.steps:
            raise ValueError(f"all {self.steps} steps of the images have been computed")
        ops.pixel_network(
            self.values, self.network.parameters, self._packed, self._nodes, self.network.groups, self.width,
            self.step, end, outputs, draw,
        )  # fmt: skip
        self.step = end

    def position(self, step: int) -> tuple[int, int]:
        """Return row and column of a step."""
        return divmod(step // self.network.groups, self.width)

    def pixel(self, value: int, step: int) -> Tensor:
        """Return a value at the pixel of a step, ``[batch, channels]``, to be read or written."""
        row, column = self.position(step)
        kept = self.values[value]
        margin = (kept.size(2) - self.width) // 2
        return kept[:, row % kept.size(1), column + margin]

    def _reaches(self) -> list[tuple[int, int]]:
        """Return for each value how many rows above, and how many pixels beyond the ends of a row, are read."""
        reaches = [(0, 0)] * len(self.network.channels)
        for node in self.network.nodes:
            if node.kind == Kind.CONVOLUTION:
                weight = self.network.parameters[node.details[0]]
                above, beyond = reaches[node.inputs[0]]
                # Sums over several taps of a row read beyond its ends, which they do only without dilation.
                margin = weight.size(3) // 2 if node.details[5] == 1 else 0
                reaches[node.inputs[0]] = (max(above, weight.size(2) // 2 * node.details[4]), max(beyond, margin))
        return reaches


__all__ = ["Draw", "DrawnFrom", "Kind", "PixelNetwork", "PixelState"]
