"""PixelCNN: draw handwritten digits pixel by pixel, each level of grey from the pixels above it and to its left.

    python -m examples.pixelcnn
    python -m examples.pixelcnn --layer torch     # the same model, each convolution dense, with half its weight zero

The probability of an image is the product over its pixels, in raster order, of the probability of each pixel given
those before it (van den Oord et al., "Pixel Recurrent Neural Networks", 2016). A masked convolution sees only those, so
one pass over a training image computes the probabilities of all its pixels; drawing an image takes a pass for each
pixel. The data are the 1797 digits of 8x8 pixels and 17 levels in scikit-learn; the last 300, by other writers, are
held out.
"""

from __future__ import annotations

import argparse
import math
from pathlib import Path

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from examples.common import Numbers, Task, base_parser, format_numbers, make_figure, save_figure, train
from examples.layers import CHOICES, Layers

SIZE, LEVELS, HELD_OUT = 8, 17, 300
TEMPERATURES = (0.6, 0.8, 1.0)
EACH = 10  # images of each row of the picture


def load_images() -> tuple[Tensor, Tensor]:
    """Levels of grey `[images, 8, 8]`, 0 to 16, of the training images and the held-out images.

    Example:
        >>> training, held_out = load_images()
        >>> training.shape, held_out.shape
        (torch.Size([1497, 8, 8]), torch.Size([300, 8, 8]))
    """
    images = torch.from_numpy(load_digits().images).long()
    return images[:-HELD_OUT], images[-HELD_OUT:]


class ResidualBlock(nn.Module):
    """Convolutions 1x1, masked 3x3 of type B, and 1x1, each after a ReLU, added to the input: figure 5 of the paper.

    Args:
        layers: The choice of layers, from which it takes the masked convolution.
        channels: The channels of input and output; the masked convolution has half of them.
        dropout: The probability with which the inner channels become zero in training.
    """

    def __init__(self, layers: Layers, channels: int, dropout: float) -> None:
        super().__init__()
        half = channels // 2
        self.steps = nn.Sequential(
            nn.ReLU(),
            nn.Conv2d(channels, half, 1),
            nn.ReLU(),
            layers.masked_conv2d(half, half, 3, mask_type="B"),
            nn.ReLU(),
            nn.Dropout2d(dropout),
            nn.Conv2d(half, channels, 1),
        )

    def forward(self, input: Tensor) -> Tensor:
        """Map `[batch, channels, height, width]` to the same shape."""
        return input + self.steps(input)


class PixelCNN(nn.Module):
    """Scores all levels of each pixel from the pixels before it.

    Args:
        layers: The choice of layers, from which it takes the masked convolution.
        channels: The channels of the residual blocks.
        blocks: The number of residual blocks.
        dropout: The dropout within them.

    Example:
        >>> PixelCNN(CHOICES["fused"])(torch.zeros(2, 8, 8, dtype=torch.long)).shape
        torch.Size([2, 17, 8, 8])
    """

    def __init__(self, layers: Layers, channels: int = 64, blocks: int = 5, dropout: float = 0.2) -> None:
        super().__init__()
        self.first = layers.masked_conv2d(1, channels, 7, mask_type="A")
        self.blocks = nn.Sequential(*(ResidualBlock(layers, channels, dropout) for _ in range(blocks)))
        self.head = nn.Sequential(
            nn.ReLU(), nn.Conv2d(channels, channels, 1), nn.ReLU(), nn.Conv2d(channels, LEVELS, 1)
        )
        # Channels last is the faster layout for either choice of layers.
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def forward(self, images: Tensor) -> Tensor:
        """Scores `[batch, 17, 8, 8]` from levels `[batch, 8, 8]`."""
        grey = images[:, None].float() / (LEVELS - 1)
        return self.head(self.blocks(self.first(grey)))


def bits_per_pixel(model: PixelCNN, images: Tensor) -> Tensor:
    """The mean cross entropy in bits of all pixels of `images` `[batch, 8, 8]`."""
    return cross_entropy(model(images), images) / math.log(2)


class DigitsTask(Task):
    """The training of a PixelCNN on the digits."""

    unit = "images"

    def __init__(self, options: argparse.Namespace) -> None:
        torch.manual_seed(options.seed)
        self.training, self.held_out = load_images()
        self.training = self.training[: options.images]
        self.network = PixelCNN(CHOICES[options.layer], options.channels, options.blocks, options.dropout)
        super().__init__(self.network, len(self.training), options, clip=1.0, decay=True)

    def loss(self, step: int) -> Tensor:
        """Bits per pixel of a batch of images."""
        return bits_per_pixel(self.network, self.training[self.batch_of(step)])

    def evaluate(self) -> Numbers:
        """Bits per pixel of the images held out."""
        return {"bits per dimension": bits_per_pixel(self.network, self.held_out).item()}


def histogram_bits(training: Tensor, held_out: Tensor) -> float:
    """Bits per pixel of a baseline: each pixel's own distribution of levels, independent of all other pixels.

    Args:
        training: The levels to count, `[images, 8, 8]`; each count is increased by 1, so that no probability is zero.
        held_out: The levels to predict, `[images, 8, 8]`.
    """
    counts = nn.functional.one_hot(training, LEVELS).sum(0) + 1.0
    bits = -torch.log2(counts / counts.sum(-1, keepdim=True))
    return bits.expand(len(held_out), -1, -1, -1).gather(-1, held_out[..., None]).mean().item()


@torch.no_grad()
def draw(model: PixelCNN, images: Tensor, temperature: float, seed: int, first_row: int = 0) -> Tensor:
    """Draw images pixel by pixel.

    Args:
        model: The model in eval mode.
        images: `[batch, 8, 8]`, of which the rows above `first_row` are given and the others are drawn.
        temperature: A divisor of the scores; below 1 likely levels become likelier.
        seed: The seed of the random numbers.
        first_row: The first row to draw; 4 completes the upper halves of `images`.

    Returns:
        `[batch, 8, 8]`.
    """
    generator = torch.Generator().manual_seed(seed)
    images = images.clone()
    for row in range(first_row, SIZE):
        for column in range(SIZE):
            probabilities = torch.softmax(model(images)[:, :, row, column] / temperature, dim=1)
            images[:, row, column] = torch.multinomial(probabilities, 1, generator=generator)[:, 0]
    return images


def draw_picture(model: PixelCNN, held_out: Tensor, seed: int, path: Path) -> None:
    """Draw a grid of held-out images, images drawn at several temperatures, and halves with their completions."""
    blank = torch.zeros(EACH, SIZE, SIZE, dtype=torch.long)
    rows = {"real, held out": held_out[:EACH]}
    rows |= {f"drawn, temperature {t}": draw(model, blank, t, seed) for t in TEMPERATURES}
    halves = held_out[EACH : 2 * EACH]
    rows["real, held out "] = halves
    rows["upper half given"] = torch.cat([halves[:, : SIZE // 2], blank[:, SIZE // 2 :]], dim=1)
    rows["lower half drawn"] = draw(model, halves, 0.8, seed, first_row=SIZE // 2)
    figure = make_figure(9, 0.75 * len(rows))
    for axis, (title, images) in zip(figure.subplots(len(rows), 1), rows.items(), strict=True):
        strip = nn.functional.pad(images, (1, 1)).transpose(0, 1).flatten(1).numpy()
        axis.imshow(strip, cmap="gray_r", vmin=0, vmax=LEVELS - 1)
        axis.set_ylabel(title.replace(", ", "\n"), rotation=0, ha="right", va="center", fontsize=8)
        axis.set(xticks=[], yticks=[])
    save_figure(figure, path)


def make_parser() -> argparse.ArgumentParser:
    """The options on the command line."""
    parser = base_parser("pixelcnn", __doc__, epochs=40, batch=32, learning_rate=2e-3)
    add = parser.add_argument_group("model").add_argument
    add("--channels", type=int, default=64, help="of the residual blocks (%(default)s)")
    add("--blocks", type=int, default=5, help="how many residual blocks (%(default)s)")
    add("--dropout", type=float, default=0.2, help="within the blocks (%(default)s)")
    add("--images", type=int, help="how many images to train on (all)")
    return parser


def make_tasks(options: argparse.Namespace) -> dict[str, DigitsTask]:
    """The model, and its data and loss."""
    return {"digits": DigitsTask(options)}


def main(arguments: list[str] | None = None) -> Numbers:
    """Train, compare with the baselines, and draw."""
    options = make_parser().parse_args(arguments)
    tasks = make_tasks(options)
    train(tasks, options)
    task = tasks["digits"]
    numbers = {
        **task.scores[-1],
        "histogram of each pixel": histogram_bits(task.training, task.held_out),
        "uniform": math.log2(LEVELS),
    }
    print(format_numbers(numbers))
    task.network.eval()
    draw_picture(task.network, task.held_out, options.seed, options.picture)
    return numbers


if __name__ == "__main__":
    main()
