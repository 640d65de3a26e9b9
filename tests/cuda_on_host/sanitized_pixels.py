"""Runs the kernel that draws images, built with sanitizers, in a process of its own; see test_sanitizers.py.

    python -m cuda_on_host.sanitized_pixels LIBRARY

Ends by letting the kernel write past the end of the outputs, for AddressSanitizer to show that it looks.
"""

import sys
from pathlib import Path

import torch
from comparing import assert_accurate
from image_models import MODELS, SIZE, condition, random_images
from pixel_networks import FEW_PIXELS, network_of, stepped

from cuda_on_host.pixels import Pixels
from fused_rnn import reference
from fused_rnn.models import sampling

F64 = torch.float64


def main(library: Path) -> None:
    torch.set_num_threads(1)
    pixels = Pixels(library)
    for index, case in enumerate(FEW_PIXELS[::5]):
        pixels.library.choose_schedule(index)
        print(case, flush=True)
        dtype = (torch.float32, F64)[index % 2]
        tensors, exact = case.tensors(dtype).values(), case.oracle(*case.tensors(F64).values())
        input, weight, *bias = tensors
        state_type = pixels.state_type((1, 132)[index // 2 % 2])
        assert_accurate(stepped(network_of(case, weight, *bias), input, state_type), exact, case.oracle(*tensors))
    for index, (name, model) in enumerate([*MODELS.items()][1::2]):
        print(name, flush=True)
        sampling.PixelState = pixels.state_type((1, 132)[index % 2])  # type: ignore[misc]
        distribution, cond = model.double().distribution, condition(model, 3)
        shape = (3, *SIZE, distribution.data_channels, distribution.uniforms)
        uniforms = torch.rand(shape, dtype=F64, generator=torch.Generator().manual_seed(5))
        observed, mask = random_images(model, 3), torch.rand(3, *SIZE) < 0.3
        drawn = model.sample(3, SIZE, cond, 1.0, torch.Generator().manual_seed(5), observed, mask)
        assert torch.equal(drawn, reference.sample(model, uniforms, cond, 1.0, observed, mask))
    print("all have run", flush=True)
    input, weight, *bias = FEW_PIXELS[0].tensors(torch.float32).values()
    state = pixels.state_type()(network_of(FEW_PIXELS[0], weight, *bias), *input[:, 0].shape)
    state.advance(state.steps, torch.empty(state.batch * weight.size(0) * input[0, 0].numel() - 1).as_strided(
        (state.batch, weight.size(0), *input.shape[2:]), (0, 0, 0, 0)
    ))  # fmt: skip


if __name__ == "__main__":
    main(Path(sys.argv[1]))
