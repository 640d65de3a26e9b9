"""The images of the examples `pixelcnn` and `codec`: scikit-learn's handwritten digits, or Fashion-MNIST from files."""

from __future__ import annotations

import argparse
import gzip
import math
from dataclasses import dataclass
from pathlib import Path

import torch
from sklearn.datasets import load_digits
from torch import Tensor

from fused_rnn.models import Categorical, Distribution, LogisticMixture

FASHION_FOLDER = Path("/usr/share/datasets/fashion-mnist")
FASHION_FILES = ("train-images-idx3-ubyte", "t10k-images-idx3-ubyte")
UNSIGNED_BYTES = 0x08  # the code of the type of the values in an IDX file
HELD_OUT_DIGITS = 300


@dataclass(frozen=True)
class Images:
    """A set of grey images.

    Attributes:
        training: The levels of the images to train on, `[images, 1, height, width]`, uint8.
        held_out: Those of the images to evaluate on, in the same layout.
        levels: How many levels there are; they begin at 0.
    """

    training: Tensor
    held_out: Tensor
    levels: int

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of an image."""
        return self.training.shape[2], self.training.shape[3]

    def make_distribution(self) -> Distribution:
        """What to predict of a pixel: the score of each level if they are few, otherwise a mixture of logistics."""
        if self.levels <= 32:
            return Categorical(self.levels)
        return LogisticMixture(components=5, levels=self.levels, channels=1)


def add_image_options(parser: argparse.ArgumentParser) -> None:
    """Add the options that `load_images` takes."""
    add = parser.add_argument_group("images").add_argument
    add("--data", choices=("digits", "fashion"), default="digits", help="8x8 digits or 28x28 garments (%(default)s)")
    add("--folder", type=Path, default=FASHION_FOLDER, help="where the files of Fashion-MNIST are (%(default)s)")
    add("--images", type=int, help="how many images to train on (all)")


def load_images(options: argparse.Namespace) -> Images:
    """Load the images that the options ask for.

    Args:
        options: Those of `add_image_options`.

    Returns:
        Of the digits, 17 levels, the last 300, by other writers, are held out; of Fashion-MNIST, 256 levels, the 10,000
        of its test set.

    Raises:
        FileNotFoundError: A file of Fashion-MNIST is missing.
        ValueError: A file is damaged.

    Example:
        >>> images = load_images(argparse.Namespace(data="digits", images=None))
        >>> images.training.shape, images.held_out.shape, images.levels
        (torch.Size([1497, 1, 8, 8]), torch.Size([300, 1, 8, 8]), 17)
    """
    if options.data == "fashion":
        training, held_out = (read_idx(find_fashion(options.folder, name))[:, None] for name in FASHION_FILES)
        return Images(training[: options.images], held_out, levels=256)
    digits = torch.from_numpy(load_digits().images).to(torch.uint8)[:, None]
    return Images(digits[:-HELD_OUT_DIGITS][: options.images], digits[-HELD_OUT_DIGITS:], levels=17)


def find_fashion(folder: Path, name: str) -> Path:
    """The path of a file of Fashion-MNIST, which may be compressed by gzip.

    Args:
        folder: Where to look.
        name: The name of the file, without the suffix ".gz".

    Raises:
        FileNotFoundError: There is none; the message says how to get it.
    """
    for path in (folder / name, folder / f"{name}.gz"):
        if path.is_file():
            return path
    raise FileNotFoundError(
        f"--data fashion: there is no {name} and no {name}.gz in {folder}. On Debian and Ubuntu, `apt-get install "
        f"dataset-fashion-mnist` puts both files into {FASHION_FOLDER}; elsewhere, download them from "
        "https://github.com/zalandoresearch/fashion-mnist and name their folder with --folder"
    )


def read_idx(path: Path) -> Tensor:
    """Read a file of bytes in the format IDX, in which MNIST and its kin are distributed.

    It begins with two zeros, the code of the type, the number of dimensions, and each dimension's size as a big-endian
    number of four bytes; then come the values, those of the last dimension side by side.

    Args:
        path: The file; one whose name ends in ".gz" is decompressed.

    Returns:
        The values in the shape that the file states, uint8.

    Raises:
        ValueError: The file is not in this format, holds values other than bytes, or is too short or too long.
    """
    content = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    if len(content) < 4 or content[:2] != b"\0\0" or content[2] != UNSIGNED_BYTES:
        raise ValueError(f"{path} is not an IDX file of bytes, it begins with {content[:4].hex() or 'nothing'}")
    begin = 4 + 4 * content[3]
    shape = [int.from_bytes(content[at : at + 4], "big") for at in range(4, begin, 4)]
    if len(content) != begin + math.prod(shape):
        raise ValueError(
            f"{path} should have {begin + math.prod(shape)} bytes for the shape {shape}, not {len(content)}"
        )
    return torch.frombuffer(bytearray(content), dtype=torch.uint8)[begin:].view(shape)
