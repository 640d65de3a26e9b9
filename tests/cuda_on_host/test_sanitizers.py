"""The kernels under AddressSanitizer and UndefinedBehaviorSanitizer."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from planting import Edit

from cuda_on_host.build import CXX, HERE, build_variant

FLAGS = "-O0 -g1 -fsanitize=address,undefined -fno-sanitize-recover=all"
# Fewer kernels to compile.
FEW: Edit = (
    "cuda/persistent/plan.h",
    "row_tiles * batch_tiles > 16",
    "chunks_in_registers > 2 || (gates > 1 && row_tiles * batch_tiles != 4 && row_tiles * batch_tiles != 6)",
)
STEMS = ["fibers", "exports", "recurrent", "lstm_forward_float32", "lstm_backward_float32"]
STEMS += ["gru_forward_bfloat16", "gru_backward_bfloat16", "rnn_forward_float16", "rnn_backward_float16"]


def runtime(name: str) -> str:
    """Return the path of a library of the compiler, or skip the test."""
    path = subprocess.check_output([CXX, f"-print-file-name={name}"], text=True).strip()
    if not Path(path).is_absolute():
        pytest.skip(f"{CXX} has no {name}")
    return path


# Of masked convolution.
FEW_TILES: Edit = (
    "cuda/conv/plan.h",
    "return channel_groups == 1 || (channel_groups == 2 && rows >= 16);",
    "return channel_groups == 2 && rows == 16;",
)
CONVOLUTION_STEMS = ["boxes", "convolutions", "copies", "exports", "fibers", "masked_conv2d", "plan", "warpgroup"]
CONVOLUTION_STEMS += ["mma_masked_conv2d", "mma_plan", "mma_forward_float32", "mma_input_gradient_float32"]
CONVOLUTION_STEMS += [f"mma_{kernel}_bfloat16" for kernel in ("forward", "input_gradient", "weight_gradient")]
CONVOLUTION_STEMS += [
    f"{kernel}_bfloat16" for kernel in ("first_layer", "forward", "input_gradient", "weight_gradient")
]


@pytest.mark.parametrize(
    ("module", "edits", "stems", "place"),
    [
        ("sanitized", [FEW], STEMS, "persistent/handover.cuh"),
        ("sanitized_convolutions", [FEW_TILES], CONVOLUTION_STEMS, "conv/weight_gradient.cuh"),
        ("sanitized_pixels", [], ["exports", "fibers", "pixel_network", "pixels"], "pixelwise/network.cuh"),
    ],
)
def test_nothing_is_out_of_bounds(module: str, edits: list[Edit], stems: list[str], place: str) -> None:
    # Python itself is built without; so the runtime has to be there first, and the library whose calls it replaces.
    preload = f"{runtime('libasan.so')}:{runtime('libstdc++.so')}"
    library = build_variant(module, edits, stems, FLAGS)
    environment = {**os.environ, "LD_PRELOAD": preload, "ASAN_OPTIONS": "detect_leaks=0"}
    environment["PYTHONPATH"] = os.pathsep.join(map(str, (HERE.parent, HERE.parent / "support", HERE.parent.parent)))
    command = [sys.executable, "-m", f"cuda_on_host.{module}", str(library)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    text = done.stdout + done.stderr
    assert "all have run" in done.stdout, text
    assert done.returncode != 0, text
    assert "heap-buffer-overflow" in done.stderr, text
    assert place in done.stderr, text
