"""PixelCNN: draw handwritten digits or garments pixel by pixel, each pixel from those above it and to its left.

    python -m examples.pixelcnn
    python -m examples.pixelcnn --layer torch     # the same model, each convolution dense, with half its weight zero
    python -m examples.pixelcnn --data fashion --epochs 1 --batch 16 --dropout 0     # 28x28 pixels of 256 levels

The probability of an image is the product over its pixels, in raster order, of the probability of each pixel given
those before it (van den Oord et al., "Pixel Recurrent Neural Networks", 2016). A masked convolution sees only those, so
one pass over a training image computes the probabilities of all its pixels. An image is drawn pixel by pixel: the
network says how likely each level is, one of them is drawn, and the network goes on from there. What it gives for each
pixel is in `fused_rnn.models`: scores of all levels for the 17 levels of a digit, a mixture of logistic distributions
for the 256 of a garment. The digits are the 1797 of scikit-learn; the garments, Fashion-MNIST, are read from files.
"""

from __future__ import annotations

import argparse
import math
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from examples.common import Numbers, Task, base_parser, format_numbers, make_figure, save_figure, train
from examples.images import Images, add_image_options, load_images
from examples.layers import CHOICES, Layers
from fused_rnn.models import AutoregressiveImageModel

TEMPERATURES = (0.6, 0.8, 1.0)
EACH = 10  # images of each row of the picture
AT_ONCE = 100  # images that are evaluated together
EVALUATED = 1000  # images that are evaluated after each epoch; in the end all of them are


class ResidualBlock(nn.Module):
    """Convolutions 1x1, masked 3x3 and 1x1, each after a ReLU, added to the input: figure 5 of the paper.

    All are of type B, which sees the pixel itself: what arrives here comes from the pixels before it only.

    Args:
        layers: The choice of layers, from which it takes the masked convolution.
        channels: The channels of input and output; the 3x3 convolution has half of them.
        dilation: How far apart the pixels are that the 3x3 convolution reads.
        dropout: The probability with which the inner channels become zero in training.
    """

    def __init__(self, layers: Layers, channels: int, dilation: int, dropout: float) -> None:
        super().__init__()
        half = channels // 2
        self.steps = nn.Sequential(
            nn.ReLU(),
            layers.masked_conv2d(channels, half, 1, mask_type="B"),
            nn.ReLU(),
            layers.masked_conv2d(half, half, 3, mask_type="B", dilation=dilation),
            nn.ReLU(),
            nn.Dropout2d(dropout),
            layers.masked_conv2d(half, channels, 1, mask_type="B"),
        )

    def forward(self, input: Tensor) -> Tensor:
        """Map `[batch, channels, height, width]` to the same shape."""
        return input + self.steps(input)


class Network(nn.Module):
    """Computes the distribution of each pixel from the pixels before it.

    Only the first convolution is of type A, which does not see the pixel itself. The dilations 1, 2, 4, 1, 2, 4, ...
    let the last block see 17 rows up with six blocks. The learned `position` tells the network where a pixel is.

    Args:
        layers: The choice of layers, from which it takes the masked convolution.
        size: Height and width of an image.
        channels: The channels of the residual blocks.
        blocks: The number of residual blocks.
        outputs: The number of outputs for each pixel.
        dropout: The dropout within the blocks.

    Example:
        >>> Network(CHOICES["fused"], (8, 8), channels=16, blocks=2, outputs=17)(torch.zeros(2, 1, 8, 8)).shape
        torch.Size([2, 17, 8, 8])
    """

    def __init__(
        self, layers: Layers, size: tuple[int, int], channels: int, blocks: int, outputs: int, dropout: float = 0.0
    ) -> None:
        super().__init__()
        self.first = layers.masked_conv2d(1, channels, 7, mask_type="A")
        self.position = nn.Parameter(torch.zeros(1, channels, *size))
        self.blocks = nn.Sequential(
            *(ResidualBlock(layers, channels, 2 ** (index % 3), dropout) for index in range(blocks))
        )
        self.head = nn.Sequential(
            nn.ReLU(),
            layers.masked_conv2d(channels, channels, 1, mask_type="B"),
            nn.ReLU(),
            layers.masked_conv2d(channels, outputs, 1, mask_type="B"),
        )

    def forward(self, images: Tensor) -> Tensor:
        """Map images `[batch, 1, height, width]` with values from -1 to 1 to `[batch, outputs, height, width]`."""
        return self.head(self.blocks(self.first(images) + self.position))


class ImagesTask(Task):
    """The training of a PixelCNN."""

    unit = "images"
    model: AutoregressiveImageModel

    def __init__(self, options: argparse.Namespace) -> None:
        torch.manual_seed(options.seed)
        self.images = load_images(options)
        self.options = options
        model = self.make_model(CHOICES[options.layer])
        super().__init__(model, len(self.images.training), options, clip=1.0, decay=True)

    def make_model(self, layers: Layers) -> AutoregressiveImageModel:
        """Make the model with either choice of layers."""
        options, distribution = self.options, self.images.make_distribution()
        network = Network(
            layers, self.images.size, options.channels, options.blocks, distribution.outputs, options.dropout
        )
        return AutoregressiveImageModel(network, distribution)

    def loss(self, step: int) -> Tensor:
        """Bits per pixel of a batch of images."""
        return self.model.bits_per_dimension(self.images.training[self.batch_of(step)])

    def evaluate(self) -> Numbers:
        """Bits per pixel of the first images held out."""
        return {"bits per dimension": self.bits_of(self.images.held_out[:EVALUATED])}

    @torch.no_grad()
    def bits_of(self, images: Tensor) -> float:
        """Bits per pixel of any number of images; call it in eval mode."""
        parts = images.split(AT_ONCE)
        return sum(len(part) * self.model.bits_per_dimension(part).item() for part in parts) / len(images)


def histogram_bits(images: Images) -> float:
    """Bits per pixel of a baseline: each pixel's own distribution of levels, independent of all other pixels.

    It is counted in the training images, each count increased by 1, so that no probability is zero.
    """
    pixels = math.prod(images.size)
    begins = torch.arange(pixels, dtype=torch.int32) * images.levels
    counts = torch.bincount((images.training.flatten(1) + begins).flatten(), minlength=pixels * images.levels)
    chances = counts.view(pixels, images.levels) + 1.0
    bits = -torch.log2(chances / chances.sum(1, keepdim=True))
    return bits.flatten()[images.held_out.flatten(1) + begins].mean().item()


def draw(model: AutoregressiveImageModel, images: Tensor, rows: int, temperature: float, seed: int) -> Tensor:
    """Draw images pixel by pixel.

    Args:
        model: The model in eval mode.
        images: `[batch, 1, height, width]`, of which some rows are given.
        rows: The number of rows that are given, from above; 0 draws everything.
        temperature: Below 1 likely levels become likelier.
        seed: The seed of the random numbers.

    Returns:
        Levels in the shape of `images`.
    """
    batch, _, height, width = images.shape
    given = (torch.arange(height) < rows)[:, None].expand(height, width)
    generator = torch.Generator().manual_seed(seed)
    return model.sample(
        batch, (height, width), temperature=temperature, generator=generator, observed=images, observed_mask=given
    )


def draw_picture(model: AutoregressiveImageModel, images: Images, seed: int, path: Path) -> None:
    """Draw a grid of held-out images, images drawn at several temperatures, and halves with their completions."""
    real, halves = images.held_out[:EACH], images.held_out[EACH : 2 * EACH]
    half = images.size[0] // 2
    rows = {"real, held out": real}
    rows |= {f"drawn,\ntemperature {t}": draw(model, real, 0, t, seed) for t in TEMPERATURES}
    rows["real, held out "] = halves
    rows["upper half given"] = torch.cat([halves[:, :, :half], torch.zeros_like(halves[:, :, half:])], dim=2)
    rows |= {f"completed,\ntemperature {t}": draw(model, halves, half, t, seed) for t in TEMPERATURES}
    figure = make_figure(9, 0.75 * len(rows))
    for axis, (title, row) in zip(figure.subplots(len(rows), 1), rows.items(), strict=True):
        strip = pad(row[:, 0], (1, 1)).transpose(0, 1).flatten(1).numpy()
        axis.imshow(strip, cmap="gray_r", vmin=0, vmax=images.levels - 1)
        axis.set_ylabel(title, rotation=0, ha="right", va="center", fontsize=8)
        axis.set(xticks=[], yticks=[])
    save_figure(figure, path)


def add_task_options(parser: argparse.ArgumentParser) -> None:
    """Add the options that `ImagesTask` takes."""
    add = parser.add_argument_group("model").add_argument
    add("--channels", type=int, default=64, help="of the residual blocks (%(default)s)")
    add("--blocks", type=int, default=6, help="how many residual blocks (%(default)s)")
    add("--dropout", type=float, default=0.2, help="within the blocks (%(default)s)")
    add_image_options(parser)


def make_parser() -> argparse.ArgumentParser:
    """The options on the command line."""
    parser = base_parser("pixelcnn", __doc__, epochs=40, batch=32, learning_rate=2e-3)
    add_task_options(parser)
    return parser


def make_tasks(options: argparse.Namespace) -> dict[str, ImagesTask]:
    """The model, and its data and loss."""
    return {options.data: ImagesTask(options)}


def main(arguments: list[str] | None = None) -> Numbers:
    """Train, compare with the baselines, and draw."""
    options = make_parser().parse_args(arguments)
    tasks = make_tasks(options)
    train(tasks, options)
    task = tasks[options.data]
    task.model.eval()
    numbers = {
        "bits per dimension": task.bits_of(task.images.held_out),
        "histogram of each pixel": histogram_bits(task.images),
        "uniform": math.log2(task.images.levels),
    }
    print(format_numbers(numbers))
    draw_picture(task.model, task.images, options.seed, options.picture)
    return numbers


if __name__ == "__main__":
    main()
