"""The model ``GatedPixelCNN``."""

from torch import Tensor, nn

from fused_rnn.models.base import AutoregressiveImageModel
from fused_rnn.models.categorical import Categorical
from fused_rnn.models.distribution import Distribution
from fused_rnn.modules import GatedActivation, MaskedConv2d


class GatedPixelCNN(AutoregressiveImageModel):
    """Two stacks of gated masked convolutions, which together see all pixels above and to the left: no blind spot.

    Van den Oord et al., "Conditional Image Generation with PixelCNN Decoders", NeurIPS 2016. The vertical stack sees
    whole rows above the pixel, the horizontal stack the pixels to the left in its own row, and each layer hands the
    features of the vertical stack to the horizontal one. Images may depend on a class or any other vector.

    Args:
        channels: the channels of each stack, for all groups of colours together.
        layers: the number of layers, the first one included.
        distribution: what is predicted of each pixel; None for 256 levels of one channel.
        condition_size: the length of the vector on which images depend, such as the number of classes; 0 for none.
        kernel_size: the size of the convolutions after the first layer, odd.
        first_kernel_size: the size of the convolutions in the first layer, odd.
        dropout: the probability with which channels of the horizontal stack become zero in training.

    Raises:
        ValueError: ``channels`` is not a multiple of the number of groups of colours, a kernel size is even or less
            than 3, or ``layers`` is not positive.

    Example:
        >>> import torch
        >>> from fused_rnn.models import Categorical, GatedPixelCNN
        >>> model = GatedPixelCNN(channels=8, layers=3, distribution=Categorical(levels=4), condition_size=10)
        >>> images, labels = torch.randint(4, (2, 1, 8, 8)), torch.tensor([3, 9])
        >>> model(images, labels).shape
        torch.Size([2, 4, 8, 8])
        >>> model.loss(images, labels).backward()
    """

    def __init__(
        self,
        channels: int = 64,
        layers: int = 8,
        distribution: Distribution | None = None,
        condition_size: int = 0,
        kernel_size: int = 3,
        first_kernel_size: int = 7,
        dropout: float = 0.0,
    ) -> None:
        if distribution is None:
            distribution = Categorical()
        groups = distribution.data_channels
        if channels < 1 or channels % groups != 0:
            raise ValueError(f"channels must be a positive multiple of the {groups} groups of colours, got {channels}")
        if layers < 1:
            raise ValueError(f"layers must be positive, got {layers}")
        for name, size in (("kernel_size", kernel_size), ("first_kernel_size", first_kernel_size)):
            if size < 3 or size % 2 == 0:
                raise ValueError(f"{name} must be odd and at least 3, got {size}")
        stack = [
            GatedLayer(
                channels,
                kernel_size if index else first_kernel_size,
                None if index else distribution.channels,
                groups,
                condition_size,
                dropout,
                is_last=index == layers - 1,
            )
            for index in range(layers)
        ]
        head = nn.Sequential(
            nn.ReLU(),
            MaskedConv2d(channels, channels, 1, "B", groups, activation="relu"),
            MaskedConv2d(channels, distribution.outputs, 1, "B", groups),
        )
        super().__init__(GatedNetwork(stack, head), distribution, condition_size)


class GatedNetwork(nn.Module):
    """The layers of a gated PixelCNN, of which each contributes to the sum that the head reads.

    Args:
        layers: the layers, the first one of which takes the images.
        head: maps the sum of all contributions to the outputs.

    Example:
        >>> import torch
        >>> from fused_rnn import MaskedConv2d
        >>> from fused_rnn.models.gated_pixelcnn import GatedLayer, GatedNetwork
        >>> network = GatedNetwork([GatedLayer(8, 3, image_channels=1), GatedLayer(8, 3)], MaskedConv2d(8, 4, 1, "B"))
        >>> network(torch.randn(2, 1, 6, 6)).shape
        torch.Size([2, 4, 6, 6])
    """

    def __init__(self, layers: list["GatedLayer"], head: nn.Module) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)
        self.head = head

    def forward(self, images: Tensor, cond: Tensor | None = None) -> Tensor:
        """Apply all layers.

        Args:
            images: scaled images, ``[batch, image_channels, height, width]``.
            cond: the condition, ``[batch, condition_size]``, if the layers have one.

        Returns:
            ``[batch, outputs, height, width]``.
        """
        first, *others = self.layers
        vertical, horizontal, total = first(images, images, cond)
        for layer in others:
            vertical, horizontal, skip = layer(vertical, horizontal, cond)
            total = total + skip
        return self.head(total)


class GatedLayer(nn.Module):
    """One layer of both stacks: figure 2 of the paper.

    The features of the vertical stack at a pixel come from the rows above it only. So the horizontal stack may use
    those of its own pixel, in any colour, and the vertical masks need no groups. The horizontal stack has a residual
    connection, except in the first layer, whose input is the image itself, which no pixel may see.

    Args:
        channels: the channels of each stack.
        kernel_size: height and width of the vertical convolution, and width of the horizontal one; odd.
        image_channels: in the first layer the channels of the image, which is the input of both stacks; otherwise None.
        data_channels: the number of groups of colours.
        condition_size: the length of the condition, 0 for none.
        dropout: the probability with which channels of the horizontal stack become zero in training.
        is_last: whether nothing follows that reads the stacks. The layer then returns the horizontal stack as it is.

    Example:
        >>> import torch
        >>> from fused_rnn.models.gated_pixelcnn import GatedLayer
        >>> vertical, horizontal, skip = GatedLayer(8, 3)(torch.randn(2, 8, 6, 6), torch.randn(2, 8, 6, 6))
        >>> vertical.shape == horizontal.shape == skip.shape == (2, 8, 6, 6)
        True
    """

    def __init__(
        self,
        channels: int,
        kernel_size: int,
        image_channels: int | None = None,
        data_channels: int = 1,
        condition_size: int = 0,
        dropout: float = 0.0,
        is_last: bool = False,
    ) -> None:
        super().__init__()
        self.is_first = image_channels is not None
        mask, inputs = ("B", channels) if image_channels is None else ("A", image_channels)
        # Twice the channels, because a gate has two arguments.
        self.vertical = MaskedConv2d(inputs, 2 * channels, kernel_size, f"vertical_{mask}")
        self.horizontal = MaskedConv2d(inputs, 2 * channels, (1, kernel_size), mask, data_channels)
        self.vertical_to_horizontal = MaskedConv2d(2 * channels, 2 * channels, 1, "B")
        self.vertical_gate = GatedActivation()
        self.horizontal_gate = GatedActivation(data_channels)
        self.dropout = nn.Dropout2d(dropout)
        self.residual = None if is_last else MaskedConv2d(channels, channels, 1, "B", data_channels)
        self.skip = MaskedConv2d(channels, channels, 1, "B", data_channels)
        self.vertical_condition = nn.Linear(condition_size, 2 * channels, bias=False) if condition_size else None
        self.horizontal_condition = nn.Linear(condition_size, 2 * channels, bias=False) if condition_size else None

    def forward(
        self, vertical: Tensor, horizontal: Tensor, cond: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Apply the layer.

        Args:
            vertical: the vertical stack, ``[batch, channels, height, width]``; in the first layer the images.
            horizontal: the horizontal stack, in the same shape; in the first layer the images.
            cond: the condition, ``[batch, condition_size]``, if there is one.

        Returns:
            The vertical stack, the horizontal stack, and the contribution to the sum that the head reads, each
            ``[batch, channels, height, width]``.
        """
        above = self.vertical(vertical)
        left = self.horizontal(horizontal)
        if self.vertical_condition is not None and self.horizontal_condition is not None:
            above = above + self.vertical_condition(cond)[:, :, None, None]
            left = left + self.horizontal_condition(cond)[:, :, None, None]
        gated = self.dropout(self.horizontal_gate(self.vertical_to_horizontal(above, residual=left)))
        if self.residual is not None:
            horizontal = self.residual(gated, residual=None if self.is_first else horizontal)
        return self.vertical_gate(above), horizontal, self.skip(gated)
