"""Runs kernels of masked convolution that were built with sanitizers, in a process of its own; see test_sanitizers.py.

    python -m cuda_on_host.sanitized_convolutions LIBRARY

Ends by letting a kernel write past the end of the weight's gradient, for AddressSanitizer to show that it looks.
"""

import sys
from pathlib import Path

import torch
from comparing import assert_all_accurate

from cuda_on_host import convolution
from cuda_on_host.convolution import CASES, FIRST_LAYERS, Convolutions, Guarded, OnHost, Tiles

DTYPE = torch.bfloat16


def main(library: Path) -> None:
    torch.set_num_threads(1)
    convolution.GUARD = 0  # AddressSanitizer watches the ends of arrays
    kernels = Convolutions(library)
    for index, case in enumerate([*CASES[::4], *FIRST_LAYERS[::4]]):
        kernels.choose_schedule(index)
        host = OnHost(
            kernels, case, Tiles(16, 2), Tiles(4 + 2 * (index % 2), 1 + index % 2), first_layer=case in FIRST_LAYERS
        )
        print(case, flush=True)
        results = [case.result(host, DTYPE), case.result(case.oracle, torch.float64), case.result(case.oracle, DTYPE)]
        if host.first_layer:  # whose kernels do not compute it
            for result in results:
                del result["grad input"]
        assert_all_accurate(*results)
    for index, case in enumerate(CASES[::3]):
        kernels.choose_schedule(index)
        for dtype in (torch.bfloat16, torch.float32):
            channels = 1 + index % 2
            host = OnHost(kernels, case, Tiles(channel_groups=channels), Tiles(channel_groups=3 - channels), mma=True)
            print(case, dtype, flush=True)
            case.result(host, dtype)  # the values are compared elsewhere
    print("all have run", flush=True)
    case = CASES[0]
    host = OnHost(kernels, case, gradient_tiles=Tiles(4, 2))
    grads, input = (torch.zeros(case.batch, channels, *case.size, dtype=DTYPE) for channels in (136, 72))
    small = {"grad_weight": Guarded((case.out_channels * case.in_channels * host.taps - 1,), DTYPE)}
    host.run("parameter_gradients", small, grad_output=host.images(grads, 136, DTYPE), input=host.input(input))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
