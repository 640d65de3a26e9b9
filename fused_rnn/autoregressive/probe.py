"""Running a copy of a model on images that differ in one value, to see which outputs depend on that value."""

import copy
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.dropout import _DropoutNd

BATCH = 64
"""How many changed images go through a model at once."""

Index = tuple[int, int, int]
"""Channel, row and column of a value of an image."""


class Probe:
    """A copy of a model, the images that it is given, and how its outputs are divided into colours.

    Args:
        model: a module, of which a copy is made on the CPU, or another callable, which is called as it is.
        shape: channels, height and width of the images.
        data_channels: the number of groups of colours.
        levels: the number of levels of integer images; None for images of real numbers.
        encode: what to apply to images before the model gets them.
        args: what the model is given after the images, for a batch of one.
        interleaved: whether colours alternate in the output channels, instead of being contiguous blocks.
        random_weights: whether every point has other random weights.
        dtype: the dtype of the copy and of images of real numbers.
    """

    def __init__(
        self,
        model: Callable[..., Any],
        shape: tuple[int, int, int],
        data_channels: int,
        levels: int | None,
        encode: Callable[[Tensor], Any] | None,
        args: Sequence[Any],
        interleaved: bool,
        random_weights: bool,
        dtype: torch.dtype,
    ) -> None:
        self.shape, self.data_channels, self.levels, self.dtype = shape, data_channels, levels, dtype
        self.encode, self.interleaved, self.random_weights = encode, interleaved, random_weights
        self.args = [arg.cpu() if isinstance(arg, Tensor) else arg for arg in args]
        self.args = [arg.to(dtype) if _is_real(arg) else arg for arg in self.args]
        self.module: nn.Module | None = None
        self.call = model
        self.batch = min(BATCH, math.prod(shape))
        if isinstance(model, nn.Module):
            self.call = self.module = copy.deepcopy(model).to(device="cpu", dtype=dtype)
            # Dropout acts on every value by itself, so it cannot leak, but it hides dependencies.
            for module in self.module.modules():
                if isinstance(module, _DropoutNd):
                    module.eval()
            self.buffers = {name: buffer.clone() for name, buffer in self.module.named_buffers()}

    def set_point(self, seed: int) -> None:
        """Choose random weights and two random images, which differ in every value.

        Args:
            seed: the same seed gives the same weights and images.
        """
        self.seed = seed
        generator = torch.Generator().manual_seed(seed)
        if self.levels is None:
            images = torch.randn((2, *self.shape), generator=generator, dtype=torch.float64).to(self.dtype)
            self.image, self.other = images
        else:
            self.image = torch.randint(self.levels, self.shape, generator=generator)
            steps = torch.randint(1, self.levels, self.shape, generator=generator)
            self.other = (self.image + steps) % self.levels
        if self.module is not None and self.random_weights:
            for parameter in self.module.parameters():
                # A mask is sometimes a parameter too, but one that is not trained.
                if parameter.requires_grad and parameter.is_floating_point() and parameter.numel():
                    fan_in = parameter[0].numel() if parameter.dim() > 1 else 2
                    values = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
                    parameter.data.copy_(values * math.sqrt(2 / max(fan_in, 1)))
        if self.mixes_images().any():
            self.batch = 1
        self.expected = self.run(self._repeated())
        if not self.expected.isfinite().all():
            weights = " with random weights (random_weights=False keeps those it has)" if self.random_weights else ""
            raise ValueError(f"model returned Inf or NaN for finite images{weights}")
        if not torch.equal(self.expected, self.run(self._repeated())):
            raise ValueError("model is not deterministic: it returned two results for the same images and random seed")

    def run(self, images: Tensor) -> Tensor:
        """Run the model without gradients, from the same random state and the same buffers each time.

        Args:
            images: ``[batch, channels, height, width]``.

        Returns:
            ``[batch, outputs, height, width]``.

        Raises:
            ValueError: the model returns anything else.
        """
        if self.module is not None:
            for name, buffer in self.module.named_buffers():
                buffer.copy_(self.buffers[name])
        args = [
            arg.expand(len(images), *arg.shape[1:]) if isinstance(arg, Tensor) and arg.dim() and len(arg) == 1 else arg
            for arg in self.args
        ]
        with torch.no_grad(), torch.random.fork_rng(devices=[]), torch.autocast("cpu", enabled=False):
            torch.manual_seed(self.seed)
            outputs = self.call(images if self.encode is None else self.encode(images), *args)
        if not isinstance(outputs, Tensor):
            raise ValueError(f"model must return a tensor, got {type(outputs).__name__}")
        batch, (_, height, width) = len(images), self.shape
        if outputs.dim() != 4 or (outputs.size(0), *outputs.shape[2:]) != (batch, height, width):
            raise ValueError(
                f"model must return [batch, outputs, height, width] = [{batch}, outputs, {height}, {width}], "
                f"got {list(outputs.shape)}"
            )
        if outputs.size(1) < self.data_channels:
            raise ValueError(
                f"data_channels must not exceed the outputs of model, got {self.data_channels} and {outputs.size(1)}"
            )
        return outputs

    def dependencies(self, nan: bool = False) -> Tensor:
        """Find which outputs change with each value of the image.

        Args:
            nan: whether to replace the value by NaN, instead of by that of the other image.

        Returns:
            ``[data_channels, height, width, channels, height, width]``, boolean: output colour and pixel, input
            channel and pixel.
        """
        changed = []
        values = [tuple(index) for index in torch.ones(self.shape).nonzero().tolist()]
        for start in range(0, len(values), self.batch):
            chunk = values[start : start + self.batch]
            images = self._repeated()
            for place, index in enumerate(chunk):
                images[place] = self.changed_image(index, nan)
            difference = differs(self.run(images), self.expected)[: len(chunk)]
            changed += list(self.by_colour(difference, self.interleaved))
        return torch.stack(changed, -1).unflatten(-1, self.shape)

    def changed_image(self, index: Index, nan: bool = False) -> Tensor:
        """Return the image of this point with one value replaced.

        Args:
            index: the place of the value.
            nan: whether to replace it by NaN, instead of by that of the other image.

        Returns:
            ``[channels, height, width]``.
        """
        image = self.image.clone()
        image[index] = math.nan if nan else self.other[index]
        return image

    def by_colour(self, changed: Tensor, interleaved: bool = False) -> Tensor:
        """Return whether any of the channels of each colour changed.

        Args:
            changed: ``[batch, outputs, height, width]``, boolean.
            interleaved: whether colours alternate.

        Returns:
            ``[batch, data_channels, height, width]``, boolean. With fewer channels than colours all colours have all.
        """
        outputs, colours = changed.size(1), self.data_channels
        if outputs < colours:
            return changed.any(1, keepdim=True).expand(-1, colours, -1, -1)
        channel = torch.arange(outputs)
        colour = channel % colours if interleaved else channel * colours // outputs
        return torch.stack([changed[:, colour == one].any(1) for one in range(colours)], 1)

    def layers(self) -> list[str]:
        """Return the names of the modules whose outputs are images of the model's size, in the order of execution."""
        return [name for name, _ in self._recorded(self.image[None])]

    def history(self, index: Index, nan: bool = False) -> Tensor:
        """Find which outputs of each module change with one value of the image.

        Args:
            index: the place of the value.
            nan: whether to replace it by NaN.

        Returns:
            ``[layers, data_channels, height, width]``, boolean, in the order of ``layers``.
        """
        return self._compared(self.image[None], self.changed_image(index, nan)[None])

    def mixes_images(self) -> Tensor:
        """Find which outputs of each module for one image change with the other image of a batch of two.

        Returns:
            ``[layers, data_channels, height, width]``, boolean, in the order of ``layers``.
        """
        return self._compared(torch.stack([self.image, self.image]), torch.stack([self.image, self.other]))

    def _compared(self, before: Tensor, after: Tensor) -> Tensor:
        """Return which outputs of each module differ between two batches, for the first image of each."""
        pairs = list(zip(self._recorded(before), self._recorded(after), strict=True))
        return torch.cat(
            [
                self.by_colour(differs(new, old), self.interleaved and place == len(pairs) - 1)
                for place, ((_, old), (_, new)) in enumerate(pairs)
            ]
        )

    def _recorded(self, images: Tensor) -> list[tuple[str, Tensor]]:
        """Run the model, and return the outputs of all modules and, last, of the model itself, for the first image."""
        found: list[tuple[str, Tensor]] = []
        with self._hooks(found):
            outputs = self.run(images)
        return [*found, ("(the model itself)", outputs[:1])]

    @contextmanager
    def _hooks(self, found: list[tuple[str, Tensor]]) -> Iterator[None]:
        """Append to ``found`` the outputs of all modules inside the model, as long as the context lasts."""

        def record(label: str, output: Any) -> None:
            for tensor in output if isinstance(output, (tuple, list)) else [output]:
                if isinstance(tensor, Tensor) and tensor.dim() == 4 and tensor.shape[2:] == self.shape[1:]:
                    # A copy, since the next module may work in place.
                    found.append((label, tensor[:1].clone()))

        handles = []
        for name, module in self.module.named_modules() if self.module is not None else ():
            if name:
                label = f"{name} ({type(module).__name__})"
                handles.append(module.register_forward_hook(lambda _, __, output, at=label: record(at, output)))
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _repeated(self) -> Tensor:
        """Return as many copies of the image as a batch has."""
        return self.image.repeat(self.batch, 1, 1, 1)


def differs(new: Tensor, old: Tensor) -> Tensor:
    """Return where two tensors differ in any bit of their values; two NaNs do not differ."""
    return (new != old) & ~(new.isnan() & old.isnan())


def _is_real(arg: Any) -> bool:
    """Whether an argument is a tensor of real numbers."""
    return isinstance(arg, Tensor) and arg.is_floating_point()
