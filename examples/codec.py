"""A lossless image codec: a PixelCNN predicts each pixel, and an arithmetic coder stores what it cannot foresee.

    python -m examples.codec
    python -m examples.codec --data fashion --epochs 1 --batch 16 --dropout 0 --checkpoint runs/pixelcnn.pt --resume

The second line compresses with the model that `examples.pixelcnn` has trained on the garments.

A pixel to which the model gives the probability p takes -log2(p) bits. The encoder has the whole image and computes all
probabilities in one pass, of many images at once. The decoder has only the pixels that it has decoded, so it goes on
from pixel to pixel, one image at a time. Both must get the same probabilities to the last bit: if a single one differs,
everything after it is decoded wrongly. Elsewhere this is where such codecs break, since a convolution commonly rounds
differently with the number of images and threads (CompressAI's issue 279). `fused_rnn.models` computes the same bits in
either way, as long as encoder and decoder run on the same kind of processor and the same version of PyTorch.
"""

from __future__ import annotations

import argparse
import io
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch
from constriction import stream
from PIL import Image
from torch import Tensor

from examples.common import Numbers, base_parser, format_numbers, make_figure, save_figure, train
from examples.layers import CHOICES
from examples.pixelcnn import ImagesTask, add_task_options
from fused_rnn.models import AutoregressiveImageModel, Distribution

ENCODED_AT_ONCE = 64  # images; the decoder takes one at a time
ENCODER_THREADS, DECODER_THREADS = 2, 1
SHOWN = 10  # images of the picture


@contextmanager
def threads(count: int) -> Iterator[None]:
    """Let PyTorch compute with a number of threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def probabilities(distribution: Distribution, outputs: Tensor) -> np.ndarray:
    """The probabilities of all levels of one pixel.

    It computes one pixel at a time, always in the same shapes: the result of a vectorised function may depend on where
    in a tensor a number lies, and so on how many pixels are computed together.

    Args:
        distribution: What the outputs mean.
        outputs: The outputs of the model at the pixel, `[outputs]`.

    Returns:
        `[levels]`, float64.
    """
    levels = torch.arange(distribution.levels).view(-1, 1, 1, 1)
    repeated = outputs.double().contiguous().view(1, -1, 1, 1).expand(len(levels), -1, 1, 1)
    return distribution.log_prob(repeated, levels).exp().flatten().numpy()


def make_table(distribution: Distribution, outputs: Tensor) -> Any:
    """The probabilities of one pixel in the form that the arithmetic coder takes: as integers, none of them zero."""
    return stream.model.Categorical(probabilities(distribution, outputs), perfect=False)


@torch.no_grad()
def encode(model: AutoregressiveImageModel, images: Tensor) -> bytes:
    """Compress images.

    Args:
        model: The model in eval mode.
        images: Levels, `[count, 1, height, width]`.

    Returns:
        The compressed images, one after the other in one stream.
    """
    encoder = stream.queue.RangeEncoder()
    for batch in images.split(ENCODED_AT_ONCE):
        # A pixel's outputs depend on the pixels before it only, which are all that the decoder will know.
        outputs = model(batch)
        with threads(1):  # the table of a pixel is too little work to be shared
            for index, row, column in product(*map(range, batch[:, 0].shape)):
                table = make_table(model.distribution, outputs[index, :, row, column])
                encoder.encode(int(batch[index, 0, row, column]), table)
    return encoder.get_compressed().astype("<u4").tobytes()


@torch.no_grad()
def decode(model: AutoregressiveImageModel, compressed: bytes, count: int, size: tuple[int, int]) -> Tensor:
    """Decompress images, one at a time.

    Args:
        model: The model of the encoder.
        compressed: The result of `encode`.
        count: The number of images.
        size: Their height and width.

    Returns:
        Levels, `[count, 1, height, width]`, uint8.
    """
    decoder = stream.queue.RangeDecoder(np.frombuffer(compressed, "<u4").astype(np.uint32))
    images = torch.zeros(count, 1, *size, dtype=torch.uint8)
    for image in images[:, 0]:
        state, level = model.init_state(1, size), None
        for row, column in product(*map(range, size)):
            outputs = model.step(state, level)[0]
            image[row, column] = decoder.decode(make_table(model.distribution, outputs))
            level = image[row, column].view(1, 1)
    return images


@torch.no_grad()
def share_that_differs(model: AutoregressiveImageModel, images: Tensor) -> float:
    """The share of outputs that are not the same, bit for bit, for all images on two threads and for each on one."""
    with threads(ENCODER_THREADS):
        together = model(images)
    with threads(DECODER_THREADS):
        one_by_one = torch.cat([model(image[None]) for image in images])
    return (together != one_by_one).double().mean().item()


def png_bits(images: Tensor) -> float:
    """Bits per pixel of a PNG file with all images below each other, so that its header counts for little."""
    file = io.BytesIO()
    Image.fromarray(images.flatten(0, 2).numpy()).save(file, "PNG", optimize=True)
    return 8 * len(file.getvalue()) / images.numel()


@torch.no_grad()
def draw_picture(model: AutoregressiveImageModel, images: Tensor, decoded: Tensor, path: Path) -> None:
    """Draw the images, what was decoded, and how many bits each pixel takes."""
    bits = -model.distribution.log_prob(model(images), images) / np.log(2)
    figure = make_figure(9, 3)
    axes = figure.subplots(3, 1)
    rows = ("held out", images[:, 0], "gray_r"), ("decoded", decoded[:, 0], "gray_r"), ("bits", bits, "magma")
    for axis, (title, row, colours) in zip(axes, rows, strict=True):
        shown = axis.imshow(torch.nn.functional.pad(row, (1, 1)).transpose(0, 1).flatten(1).numpy(), cmap=colours)
        axis.set_ylabel(title, rotation=0, ha="right", va="center", fontsize=8)
        axis.set(xticks=[], yticks=[])
    figure.colorbar(shown, ax=axes, label="bits of a pixel", fraction=0.02)
    save_figure(figure, path)


def make_parser() -> argparse.ArgumentParser:
    """The options on the command line."""
    parser = base_parser("codec", __doc__, epochs=10, batch=32, learning_rate=2e-3)
    add_task_options(parser)
    parser.add_argument("--compress", type=int, default=64, help="how many held-out images to compress (%(default)s)")
    return parser


def make_tasks(options: argparse.Namespace) -> dict[str, ImagesTask]:
    """The model, and its data and loss: those of `examples.pixelcnn`."""
    return {options.data: ImagesTask(options)}


def main(arguments: list[str] | None = None) -> Numbers:
    """Train, compress held-out images, decompress them, and compare with PNG."""
    options = make_parser().parse_args(arguments)
    if options.compress < 1:
        raise ValueError(f"--compress must be positive, got {options.compress}")
    tasks = make_tasks(options)
    train(tasks, options)
    task = tasks[options.data]
    images = task.images.held_out[: options.compress]
    models = {layer: task.make_model(layers).eval() for layer, layers in CHOICES.items()}
    for trained in models.values():
        trained.load_state_dict(task.model.state_dict())
    # With --layer torch, too, the weights are those of the training, but masked convolutions of fused_rnn compute with
    # them here: dense ones do not give the same bits twice.
    model = models["fused"]
    task.model.eval()
    with threads(ENCODER_THREADS):
        compressed = encode(model, images)
    with threads(DECODER_THREADS):
        decoded = decode(model, compressed, len(images), task.images.size)
    if not torch.equal(decoded, images):
        raise RuntimeError("the decoded images are not those that were encoded")
    numbers = {
        "bits per dimension": 8 * len(compressed) / images.numel(),
        "of the model": task.bits_of(images),
        "PNG": png_bits(images),
        "outputs that differ": share_that_differs(model, images),
        "with dense convolutions": share_that_differs(models["torch"], images),
    }
    print(format_numbers(numbers))
    draw_picture(model, images[:SHOWN], decoded[:SHOWN], options.picture)
    return numbers


if __name__ == "__main__":
    main()
