"""The examples about images: their files, their baseline, and that the codec loses nothing."""

import argparse
import gzip
import math
import struct
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.distributions import Categorical

from examples import codec, pixelcnn
from examples.images import FASHION_FILES, Images, load_images, read_idx
from examples.layers import CHOICES
from fused_rnn.models import AutoregressiveImageModel


def write_idx(path: Path, values: Tensor) -> None:
    """Write bytes in the format IDX, as it is described at http://yann.lecun.com/exdb/mnist."""
    header = struct.pack(f">BBBB{values.dim()}I", 0, 0, 8, values.dim(), *values.shape)
    content = header + values.numpy().tobytes()
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)


def write_fashion(folder: Path) -> tuple[Tensor, Tensor]:
    """Write a small data set in the format of Fashion-MNIST: bright rectangles with noise on black, 8x7 pixels."""
    generator = torch.Generator().manual_seed(0)
    images = torch.zeros(52, 8, 7, dtype=torch.uint8)
    images[:, 1:7, 1:6] = torch.randint(150, 256, (52, 6, 5), generator=generator, dtype=torch.uint8)
    parts = images[:32], images[32:]
    for name, part, suffix in zip(FASHION_FILES, parts, ("", ".gz"), strict=True):
        write_idx(folder / f"{name}{suffix}", part)
    return parts


@pytest.mark.parametrize("suffix", ["", ".gz"])
@pytest.mark.parametrize("shape", [(3,), (2, 5), (4, 3, 2), (0, 3, 2)])
def test_idx_files_are_read(shape: tuple[int, ...], suffix: str, tmp_path: Path) -> None:
    values = torch.arange(math.prod(shape)).mul(11).to(torch.uint8).view(shape)
    write_idx(tmp_path / f"values{suffix}", values)
    assert torch.equal(read_idx(tmp_path / f"values{suffix}"), values)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is not an IDX file of bytes, it begins with nothing"),
        (b"\x89PNG\r\n", "is not an IDX file of bytes, it begins with 89504e47"),
        (struct.pack(">BBBBI", 0, 0, 13, 1, 2) + bytes(8), "is not an IDX file of bytes"),  # floats
        (struct.pack(">BBBBI", 0, 0, 8, 1, 9) + bytes(8), r"should have 17 bytes for the shape \[9\], not 16"),
        (struct.pack(">BBBBI", 0, 0, 8, 1, 7) + bytes(8), r"should have 15 bytes for the shape \[7\], not 16"),
        (struct.pack(">BBBB", 0, 0, 8, 3), "should have 16 bytes"),  # ends before the sizes
    ],
)
def test_other_files_are_refused(content: bytes, message: str, tmp_path: Path) -> None:
    (tmp_path / "values").write_bytes(content)
    with pytest.raises(ValueError, match=message):
        read_idx(tmp_path / "values")


def test_fashion_is_read_from_a_folder(tmp_path: Path) -> None:
    training, held_out = write_fashion(tmp_path)
    images = load_images(argparse.Namespace(data="fashion", folder=tmp_path, images=20))
    assert torch.equal(images.training, training[:20, None])
    assert torch.equal(images.held_out, held_out[:, None])
    assert (images.levels, images.size) == (256, (8, 7))


def test_missing_files_say_how_to_get_them(tmp_path: Path) -> None:
    options = pixelcnn.make_parser().parse_args(["--data", "fashion", "--folder", str(tmp_path)])
    with pytest.raises(FileNotFoundError, match=r"train-images-idx3-ubyte.gz in .*dataset-fashion-mnist.*--folder"):
        pixelcnn.make_tasks(options)


@pytest.mark.parametrize("layer", CHOICES)
def test_garments_are_learned_and_drawn(layer: str, tmp_path: Path) -> None:
    write_fashion(tmp_path)
    command = "--data fashion --epochs 6 --batch 4 --dropout 0 --channels 16 --blocks 2"
    files = [
        f"--{name}={tmp_path / path}" for name, path in (("folder", ""), ("checkpoint", "c"), ("picture", "p.png"))
    ]
    numbers = pixelcnn.main([*command.split(), *files, "--layer", layer])
    # Of 56 pixels 26 are black, and the others have 106 levels, equally likely.
    entropy = 30 / 56 * math.log2(106)
    assert entropy < numbers["bits per dimension"] < numbers["histogram of each pixel"] < numbers["uniform"] == 8


def test_histogram_is_that_of_each_pixel() -> None:
    generator = torch.Generator().manual_seed(0)
    training = torch.randint(5, (30, 1, 2, 3), generator=generator, dtype=torch.uint8)
    held_out = torch.randint(5, (7, 1, 2, 3), generator=generator, dtype=torch.uint8)
    bits = 0.0
    for row in range(2):
        for column in range(3):
            counts = torch.tensor([float((training[:, 0, row, column] == level).sum() + 1) for level in range(5)])
            bits -= Categorical(counts).log_prob(held_out[:, 0, row, column]).sum().item() / math.log(2)
    assert pixelcnn.histogram_bits(Images(training, held_out, levels=5)) == pytest.approx(bits / held_out.numel())


def make_codec_model(data: str, folder: Path) -> tuple[AutoregressiveImageModel, Tensor]:
    """A briefly trained model, so that its probabilities are far from uniform, and images that it has not seen."""
    write_fashion(folder)
    command = f"--data {data} --folder {folder} --batch 8 --channels 16 --blocks 3"
    task = codec.make_tasks(codec.make_parser().parse_args(command.split()))[data]
    for _ in range(20):
        task.step()
    return task.model.eval(), task.images.held_out


@pytest.mark.parametrize("data", ["digits", "fashion"])
def test_decoder_reproduces_the_images_with_other_batches_and_threads(data: str, tmp_path: Path) -> None:
    model, images = make_codec_model(data, tmp_path)
    images = torch.cat([images] * 4)[:66]  # a batch of 64, and one of 2
    images[0] = torch.arange(images[0].numel()).view(images[0].shape) % model.distribution.levels  # an unlikely image
    with codec.threads(2):
        compressed = codec.encode(model, images)
    with codec.threads(1):
        decoded = codec.decode(model, compressed, len(images), (images.shape[2], images.shape[3]))
    assert torch.equal(decoded, images)
    bits = model.bits_per_dimension(images).item()
    assert 8 * len(compressed) / images.numel() == pytest.approx(bits, rel=0.02)


def test_tables_do_not_depend_on_where_the_outputs_lie(tmp_path: Path) -> None:
    model, images = make_codec_model("fashion", tmp_path)
    with torch.no_grad():
        outputs = model(images)
    for row, column in ((0, 0), (5, 4), (7, 6)):
        strided = outputs[3, :, row, column]
        copies = torch.full((3, outputs.shape[1] + 1), math.nan)
        copies[1, 1:] = strided  # begins at another alignment
        tables = [codec.probabilities(model.distribution, values).tolist() for values in (strided, copies[1, 1:])]
        assert tables[0] == tables[1]
        assert sum(tables[0]) == pytest.approx(1)


def test_something_must_be_compressed() -> None:
    with pytest.raises(ValueError, match="--compress must be positive, got 0"):
        codec.main(["--compress", "0"])
