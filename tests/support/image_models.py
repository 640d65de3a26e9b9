"""Small models of images of every kind, and their outputs, by steps and by dense convolutions."""

import copy

import torch
from torch import Tensor, nn

from fused_rnn import GatedActivation, MaskedConv2d
from fused_rnn.models import AutoregressiveImageModel, Categorical, GatedPixelCNN, LogisticMixture, PixelCNN

SIZE = (6, 5)


class Joined(nn.Module):
    """Uses all that a network may consist of besides the layers of the package's own models."""

    def __init__(self) -> None:
        super().__init__()
        self.first = MaskedConv2d(1, 24, 5, "A")
        self.second = MaskedConv2d(12, 12, (3, 5), dilation=(2, 1), mask_type="B")
        self.last = nn.Sequential(nn.Identity(), nn.ReLU(inplace=True), MaskedConv2d(36, 6, 1, "B", bias=False))
        self.scale = nn.Parameter(torch.randn(24, 1, 1))
        self.places = nn.Parameter(torch.randn(24, *SIZE))

    def forward(self, images: Tensor, cond: Tensor) -> Tensor:
        """Compute six outputs."""
        all_channels = self.first(images) * self.scale + self.places
        left, right = torch.chunk(all_channels.relu_(), 2, 1)
        left = torch.relu(left) * 0.5 + self.second(right)
        left += torch.tanh(cond)[:, :, None, None]
        return self.last(torch.cat([left, all_channels], dim=1))


def gated(groups: int) -> nn.Module:
    return nn.Sequential(
        MaskedConv2d(groups, 12 * groups, 3, "A", groups), GatedActivation(groups),
        MaskedConv2d(6 * groups, 6 * groups, (1, 3), "B", groups),
    )  # fmt: skip


class Halves(Categorical):
    """A distribution that the kernel does not know: each level is as likely as its half says."""

    def draw(self, outputs: Tensor, uniforms: Tensor, temperature: float = 1.0) -> Tensor:
        return super().draw(outputs[:, ::2].repeat_interleave(2, 1), uniforms, temperature)


def models() -> dict[str, AutoregressiveImageModel]:
    """Return small models of every kind, with weights that make their outputs differ widely."""
    torch.manual_seed(0)
    made: dict[str, AutoregressiveImageModel] = {
        "PixelCNN": PixelCNN(16, 2, Categorical(5)),
        "three colours": PixelCNN(18, 2, Categorical(4, 3), dropout=0.5),
        "mixture": PixelCNN(40, 1, LogisticMixture(3, 16, 3)),
        "gated, with classes": GatedPixelCNN(12, 3, Categorical(5), condition_size=4),
        "gated, three colours": GatedPixelCNN(12, 3, Categorical(5, 3)),
        "gated, mixture": GatedPixelCNN(70, 2, LogisticMixture(3, 8, 1), kernel_size=5),
        "joined": AutoregressiveImageModel(Joined(), Categorical(6), condition_size=12),
        "gates of colours": AutoregressiveImageModel(gated(3), Categorical(6, 3)),
    }
    for model in made.values():
        for parameter in model.parameters():
            nn.init.normal_(parameter, std=0.4)
    return {name: model.eval() for name, model in made.items()}


MODELS = models()


def condition(model: AutoregressiveImageModel, batch: int) -> Tensor | None:
    generator = torch.Generator().manual_seed(1)
    if model.condition_size == 4:
        return torch.randint(4, (batch,), generator=generator)
    return torch.randn(batch, model.condition_size, generator=generator) if model.condition_size else None


def random_images(model: AutoregressiveImageModel, batch: int, size: tuple[int, int] = SIZE) -> Tensor:
    return torch.randint(model.distribution.levels, (batch, model.distribution.channels, *size))


@torch.no_grad()
def stepped_outputs(model: AutoregressiveImageModel, images: Tensor, cond: Tensor | None) -> Tensor:
    """Return the outputs that :meth:`step` computes for images that are given."""
    batch, _, height, width = images.shape
    groups = model.distribution.data_channels
    state, levels, rows = model.init_state(batch, (height, width), cond), None, []
    for row in range(height):
        for column in range(width):
            for group in range(groups):
                rows.append(model.step(state, levels))
                levels = images[:, :, row, column].chunk(groups, 1)[group]
    pixels = torch.stack(rows, 1).view(batch, height, width, -1)
    return pixels.permute(0, 3, 1, 2)


@torch.no_grad()
def dense_outputs(model: AutoregressiveImageModel, images: Tensor, cond: Tensor | None, dtype: torch.dtype) -> Tensor:
    """Return the outputs by torch's dense convolutions, which share no kernel with ours."""

    def dense(self: MaskedConv2d, input: Tensor, residual: Tensor | None = None) -> Tensor:
        padding = [dilation * (size // 2) for size, dilation in zip(self.kernel_size, self.dilation, strict=True)]
        output = nn.functional.conv2d(input, self.weight * self.mask, self.bias, 1, padding, self.dilation)
        if self.activation == "relu":
            output = output.relu()
        return output if residual is None else output + residual

    own = MaskedConv2d.forward
    MaskedConv2d.forward = dense  # type: ignore[method-assign]
    try:
        return copy.deepcopy(model).to(dtype)(images, cond)
    finally:
        MaskedConv2d.forward = own  # type: ignore[method-assign]
