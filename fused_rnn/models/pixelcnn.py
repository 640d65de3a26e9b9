"""The model ``PixelCNN``."""

from torch import Tensor, nn

from fused_rnn.models.base import AutoregressiveImageModel
from fused_rnn.models.categorical import Categorical
from fused_rnn.models.distribution import Distribution
from fused_rnn.modules import MaskedConv2d


class PixelCNN(AutoregressiveImageModel):
    """A masked convolution of type A, residual blocks of type B, and two 1x1 convolutions that score the levels.

    Van den Oord, Kalchbrenner and Kavukcuoglu, "Pixel Recurrent Neural Networks", ICML 2016, sections 3.3 to 3.6. It
    is short, and a good model to learn from. Stacks of these masks have a blind spot: no pixel sees those that lie far
    to the right in the rows just above it. :class:`fused_rnn.models.GatedPixelCNN` has none.

    Args:
        channels: the channels of the residual blocks, for all groups of colours together.
        blocks: the number of residual blocks.
        distribution: what is predicted of each pixel; None for 256 levels of one channel.
        kernel_size: height and width of the first convolution, odd.
        dropout: the probability with which inner channels of the blocks become zero in training.

    Raises:
        ValueError: there are fewer than two channels for each group of colours, or ``blocks`` is negative.

    Example:
        >>> import torch
        >>> from fused_rnn.models import Categorical, PixelCNN
        >>> model = PixelCNN(channels=12, blocks=2, distribution=Categorical(levels=17, channels=3))
        >>> images = torch.randint(17, (2, 3, 8, 8))
        >>> model(images).shape
        torch.Size([2, 51, 8, 8])
        >>> model.loss(images).backward()
    """

    def __init__(
        self,
        channels: int = 64,
        blocks: int = 5,
        distribution: Distribution | None = None,
        kernel_size: int = 7,
        dropout: float = 0.0,
    ) -> None:
        if distribution is None:
            distribution = Categorical()
        groups = distribution.data_channels
        if channels < 2 * groups:
            raise ValueError(f"channels must be at least 2 for each of {groups} groups of colours, got {channels}")
        if blocks < 0:
            raise ValueError(f"blocks must not be negative, got {blocks}")
        network = nn.Sequential(
            MaskedConv2d(distribution.channels, channels, kernel_size, "A", groups),
            *(ResidualBlock(channels, groups, dropout) for _ in range(blocks)),
            nn.ReLU(),
            MaskedConv2d(channels, channels, 1, "B", groups, activation="relu"),
            MaskedConv2d(channels, distribution.outputs, 1, "B", groups),
        )
        super().__init__(network, distribution)


class ResidualBlock(nn.Module):
    """Convolutions 1x1, 3x3 and 1x1, each after a ReLU, added to the input.

    Van den Oord, Kalchbrenner and Kavukcuoglu, "Pixel Recurrent Neural Networks", ICML 2016, figure 5 (left). All
    three are of type B: since the first layer of the model has shut out the pixel itself, its features may be seen.

    Args:
        channels: the channels of input and output; the 3x3 convolution has half of them.
        data_channels: the number of groups of colours.
        dropout: the probability with which inner channels become zero in training.

    Example:
        >>> import torch
        >>> from fused_rnn.models.pixelcnn import ResidualBlock
        >>> ResidualBlock(channels=16)(torch.randn(2, 16, 8, 8)).shape
        torch.Size([2, 16, 8, 8])
    """

    def __init__(self, channels: int, data_channels: int = 1, dropout: float = 0.0) -> None:
        super().__init__()
        half = channels // 2
        self.steps = nn.Sequential(
            nn.ReLU(),
            MaskedConv2d(channels, half, 1, "B", data_channels, activation="relu"),
            MaskedConv2d(half, half, 3, "B", data_channels, activation="relu"),
            nn.Dropout2d(dropout),
        )
        self.last = MaskedConv2d(half, channels, 1, "B", data_channels)

    def forward(self, input: Tensor) -> Tensor:
        """Apply the block.

        Args:
            input: ``[batch, channels, height, width]``.

        Returns:
            ``[batch, channels, height, width]``.
        """
        return self.last(self.steps(input), residual=input)
