"""Small pictures of handwritten digits, and a small convolutional network that reads them."""

from functools import cache

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn

HELD_OUT = 300  # the last of the 1797 pictures, which are by other writers


def draw_pictures(steps: int, batch: int, held_out: bool, seed: int) -> tuple[Tensor, Tensor]:
    """Random pictures `[steps, batch, 8, 8]` of one part of the data, from 0 to 1, and their digits."""
    images, digits = _load()
    first, end = (len(images) - HELD_OUT, len(images)) if held_out else (0, len(images) - HELD_OUT)
    rows = torch.randint(first, end, (steps, batch), generator=torch.Generator().manual_seed(seed))
    return images[rows], digits[rows]


@cache
def _load() -> tuple[Tensor, Tensor]:
    data = load_digits()
    return torch.from_numpy(data.images).float() / 16, torch.from_numpy(data.target)


class Eye(nn.Module):
    """Maps pictures `[..., 8, 8]` to features `[..., size]`, with all leading dimensions treated as one batch."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
            nn.Conv2d(16, 32, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(32 * 4 * 4, size), nn.Tanh(),
        )  # fmt: skip

    def forward(self, pictures: Tensor) -> Tensor:
        """Return the features of all pictures."""
        return self.layers(pictures.reshape(-1, 1, *pictures.shape[-2:])).unflatten(0, pictures.shape[:-2])
