"""Drawing images pixel by pixel, with a full pass of the model for each: the definition of sampling."""

from typing import Any

import torch
from torch import Tensor


@torch.no_grad()
def sample(
    model: Any,
    uniforms: Tensor,
    cond: Tensor | None = None,
    temperature: float = 1.0,
    observed: Tensor | None = None,
    observed_mask: Tensor | None = None,
) -> Tensor:
    """Draw images pixel by pixel, in raster order, each pixel given those before it.

    Van den Oord, Kalchbrenner and Kavukcuoglu, "Pixel Recurrent Neural Networks", ICML 2016, equations 1 and 2. It
    takes ``height * width * data_channels`` passes of the model, since each pass depends on the levels drawn before.

    Args:
        model: a :class:`fused_rnn.models.AutoregressiveImageModel` in eval mode.
        uniforms: the random numbers, from 0, included, to 1, excluded, in the order in which they are consumed:
            ``[batch, height, width, distribution.data_channels, distribution.uniforms]``. They determine the images.
        cond: the condition of each image, if the model has one.
        temperature: below 1 likely levels become likelier; 0 takes the likeliest.
        observed: levels ``[batch, channels, height, width]``, of which some are kept as they are.
        observed_mask: which pixels of ``observed`` are kept: ``[batch, height, width]``, boolean.

    Returns:
        Levels, ``[batch, channels, height, width]``, int64.

    Example:
        >>> import torch
        >>> from fused_rnn import models, reference
        >>> model = models.PixelCNN(channels=8, blocks=1, distribution=models.Categorical(levels=4)).eval()
        >>> reference.sample(model, torch.rand(2, 5, 6, 1, 1)).shape
        torch.Size([2, 1, 5, 6])
    """
    distribution = model.distribution
    batch, height, width, steps, _ = uniforms.shape
    images = torch.zeros(batch, distribution.channels, height, width, dtype=torch.int64, device=uniforms.device)
    kept = torch.zeros(batch, height, width, dtype=torch.bool, device=uniforms.device)
    if observed is not None and observed_mask is not None:
        kept = observed_mask
        images = torch.where(kept[:, None], observed.long(), images)
    for row in range(height):
        for column in range(width):
            for step in range(steps):
                # A step draws one group of colours, from the block of outputs that belongs to it.
                outputs = model(images, cond)[:, :, row, column].chunk(steps, 1)[step]
                levels = distribution.draw(outputs, uniforms[:, row, column, step], temperature)
                pixel = images[:, :, row, column].chunk(steps, 1)[step]  # a view, through which images change
                pixel.copy_(torch.where(kept[:, row, column, None], pixel, levels))
    return images
