"""Runs kernels that were built with sanitizers, in a process of its own; see test_sanitizers.py.

    python -m cuda_on_host.sanitized LIBRARY

Ends by letting a kernel write past the end of the output, for AddressSanitizer to show that it looks.
"""

import sys
from dataclasses import replace
from itertools import cycle, islice
from pathlib import Path

import torch
from comparing import assert_all_accurate

from cuda_on_host import stepwise
from cuda_on_host.host import OnHost
from cuda_on_host.layer import Layer, by_reference, peer_of
from cuda_on_host.plans import plan_of, random_case
from cuda_on_host.structs import Kernels

KINDS = {"LSTM": torch.float32, "GRU": torch.bfloat16, "RNN": torch.float16}


def main(library: Path) -> None:
    torch.set_num_threads(1)
    kernels = Kernels(library)
    for kind, dtype in KINDS.items():
        for cluster in (False, True):
            of_forward, of_backward = (
                [
                    tiles
                    for tiles in kernels.built(Layer(kind).gates, backward, dtype.itemsize, cluster)
                    if tiles.batch_tiles > 1 or tiles.chunks_in_registers
                ]
                for backward in (False, True)
            )
            for index, forward in enumerate(of_forward):
                tiles = {False: forward, True: of_backward[(index * 3 + cluster) % len(of_backward)]}
                layer, plans = random_case(f"{kind} {cluster} {index}", kind, dtype, True, cluster, tiles)
                print(layer, f"forward {plans[False]}", f"backward {plans[True]}", sep="\n", flush=True)
                host = OnHost(kernels, layer)
                host.forward(plans[False])
                host.backward(plans[True])
                assert_all_accurate(host.result(), by_reference(layer, torch.float64), peer_of(layer))
                outside = (layer.time + 5, -1, 2**62, layer.time, -(2**62))
                lengths = tuple(islice(cycle(outside), layer.batch))
                host = OnHost(kernels, replace(layer, lengths=lengths, batch_sizes=None))
                host.forward(plans[False])
                host.backward(plans[True])
        for lengths in ((3, 0, 2, 1, 3), (8, -1, 2**62, 3, -(2**62))):
            host = OnHost(kernels, Layer(kind, dtype, batch=5, hidden_size=7, lengths=lengths))
            stepwise.forward(host)
            stepwise.backward(host)
    print("all have run", flush=True)
    host = OnHost(kernels, Layer("LSTM", batch=9, hidden_size=20))
    host.output = host.output[:-1].clone()
    host.forward(plan_of(host.layer, False, True, units=16))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
