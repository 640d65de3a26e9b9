"""Checks and times masked convolution on a GPU against cuDNN, pass by pass, and writes JSON.

Beside the kernels that are chosen, those for single warps ("mma") and PyTorch's convolutions over rectangles of active
taps ("rectangles") are timed, on every GPU. The other peers are cuDNN's convolution with the whole kernel, zero where
it is masked ("dense"), and with its rows down to the centre alone, which anyone can write: either rows of zeros are put
above the image, or rows that are too many are cut off below ("cropped, padded" and "cropped, cut"). Their weights are
masked beforehand, and cuDNN may try all its algorithms. In float32 all may round to tf32.
`python -m benchmarks.gpu_convolutions` takes a minute or two.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path
from time import perf_counter
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor
from torch.nn.functional import conv2d, pad

from benchmarks.cases import ConvolutionCase
from benchmarks.gpu import RESULTS, captured
from benchmarks.machine import describe_gpu, gpu_name
from benchmarks.problem import FUSED, PEER_TOLERANCE, CheckError
from benchmarks.report import make_console, make_progress
from benchmarks.results import Result, Run
from benchmarks.timing import Function, Measurement, time_together
from fused_rnn import _C, ops
from fused_rnn.reference.masked_conv2d import mask

SECONDS = 0.1  # for each case, pass and way of calling; at least five rounds are made
LIMIT_SECONDS = 120.0
DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}
PASSES = ("forward", "input gradient", "weight gradient", "step")
CASES = (
    ConvolutionCase(64, 128, 128, 32, 3),
    ConvolutionCase(64, 128, 128, 32, 5),
    ConvolutionCase(64, 128, 128, 32, 7),
    ConvolutionCase(64, 64, 64, 32, 3),
    ConvolutionCase(64, 256, 256, 32, 3),
    ConvolutionCase(64, 192, 192, 32, 5),
    ConvolutionCase(128, 256, 256, 64, 3),
    ConvolutionCase(16, 64, 64, 28, 7),
    ConvolutionCase(8, 192, 384, 32, 5, "A"),
    ConvolutionCase(256, 1, 64, 28, 7, "A"),
    ConvolutionCase(64, 3, 128, 32, 7, "A"),
)

Pass = Callable[[], Tensor | tuple[Tensor, ...]]
Passes = dict[str, Pass]


def make_passes(case: ConvolutionCase, dtype: torch.dtype, device: str) -> dict[str, Passes]:
    """Make the data and the peers of a case.

    Args:
        case: The sizes.
        dtype: The dtype of all tensors.
        device: The device.

    Returns:
        For each peer, the function that makes each pass.
    """
    torch.manual_seed(0)
    size, half = case.kernel_size, case.kernel_size // 2

    def on_device(tensor: Tensor) -> Tensor:
        return tensor.to(device, dtype).contiguous(memory_format=torch.channels_last)

    def images(channels: int) -> Tensor:
        return on_device(torch.randn(case.batch, channels, case.size, case.size))

    input, grad = images(case.in_channels), images(case.out_channels)
    scale = (case.in_channels * size * size / 2) ** -0.5
    weight = on_device(torch.randn(case.out_channels, case.in_channels, size, size) * scale)
    active = mask(case.out_channels, case.in_channels, (size, size), case.mask_type, case.data_channels, weight.device)
    masked = on_device(weight * active)
    options = (case.mask_type, case.data_channels, (1, 1))
    above = masked[:, :, : half + 1].contiguous(memory_format=torch.channels_last)
    padded = pad(input, (0, 0, half, 0)).contiguous(memory_format=torch.channels_last)
    longer = pad(grad, (0, 0, 0, half)).contiguous(memory_format=torch.channels_last)

    def fused(input_grad: bool, weight_grad: bool) -> Pass:
        return lambda: ops.masked_conv2d_backward(grad, input, weight, *options, input_grad, weight_grad, False)

    def vendor(
        grad: Tensor, input: Tensor, weight: Tensor, padding: tuple[int, int], wanted: tuple[bool, bool]
    ) -> Pass:
        return lambda: torch.ops.aten.convolution_backward(
            grad, input, weight, None, (1, 1), padding, (1, 1), False, (0, 0), 1, (*wanted, False)
        )

    both = {"input gradient": (True, False), "weight gradient": (False, True), "step": (True, True)}

    def peer(forward: Pass, backward: Callable[[tuple[bool, bool]], Pass]) -> Passes:
        passes = {"forward": forward} | {name: backward(wanted) for name, wanted in both.items()}
        gradients = passes["step"]
        return passes | {"step": lambda: (forward(), gradients())}  # type: ignore[return-value]

    def by(path: str, call: Pass) -> Pass:
        def restricted() -> Tensor | tuple[Tensor, ...]:
            _C.set_convolution_path(path)
            try:
                return call()
            finally:
                _C.set_convolution_path("any")

        return restricted

    ours = peer(lambda: ops.masked_conv2d(input, weight, None, *options), lambda wanted: fused(*wanted))
    return {
        FUSED: ours,
        **{path: {name: by(path, call) for name, call in ours.items()} for path in ("mma", "rectangles")},
        "cropped, padded": peer(
            lambda: conv2d(pad(input, (0, 0, half, 0)), above, padding=(0, half)),
            lambda wanted: vendor(grad, padded, above, (0, half), wanted),
        ),
        "cropped, cut": peer(
            lambda: conv2d(input, above, padding=half)[:, :, : case.size],
            lambda wanted: vendor(longer, input, above, (half, half), wanted),
        ),
        "dense": peer(
            lambda: conv2d(input, masked, padding=half),
            lambda wanted: vendor(grad, input, masked, (half, half), wanted),
        ),
    }


def check(case: ConvolutionCase, peers: dict[str, Passes]) -> None:
    """Compare the outputs, the input gradients and the weight gradients of all peers with the dense convolution.

    Raises:
        CheckError: They differ by more than rounding.
    """
    half = case.kernel_size // 2

    def results(passes: Passes) -> list[Tensor]:
        output: Any = passes["forward"]()
        gradients: Any = passes["input gradient"](), passes["weight gradient"]()
        input_grad, weight_grad = gradients[0][0], gradients[1][1]
        input_grad = input_grad[:, :, input_grad.size(2) - case.size :]
        return [output, input_grad, weight_grad[:, :, :half], weight_grad[:, :, half, :half]]

    expected = results(peers["dense"])
    for name, passes in peers.items():
        for what, ours, theirs in zip(("output", "input", "rows above", "row"), results(passes), expected, strict=True):
            error = (ours.double() - theirs.double()).norm() / theirs.double().norm().clamp(min=1e-30)
            if not error <= PEER_TOLERANCE["bfloat16"]:
                raise CheckError(f"{case.label}: {what} of {name} differs by {error:.2e}")


def measure(case: ConvolutionCase, dtype: torch.dtype, run: Run) -> None:
    """Check and time a case, as replayed CUDA graphs and as calls; a failure is recorded, and the run goes on."""
    try:
        peers = make_passes(case, dtype, "cuda")
        for passes in peers.values():
            for function in passes.values():
                function()  # cuDNN tries its algorithms
        check(case, peers)
        for name in PASSES:
            calls: dict[str, Function] = {peer: passes[name] for peer, passes in peers.items()}
            graphs = {peer: graph for peer, call in calls.items() if (graph := captured(call)) is not None}
            for way, functions in (("graphs", graphs), ("calls", calls)):
                samples = time_together(functions, SECONDS, torch.cuda.synchronize)
                times = {peer: Measurement.of(values) for peer, values in samples.items()}
                operations = case.operations("forward") * (3 if name == "step" else 1)
                run.results.append(
                    Result(f"masked_conv2d {name}, {way}", case.label, "forward", operations, 0.0, times)
                )
    except (CheckError, RuntimeError) as error:
        run.failures.append(f"{case.label}: {error}")


def print_run(console: Console, run: Run) -> None:
    """Print a table for each pass: our time, operations over active taps, and the ratio to each peer."""
    for (group, _), results in run.groups().items():
        table = Table(title=group)
        peers = [name for name in results[0].times if name != FUSED]
        for column in ("case", "us", "TFLOP/s", *peers):
            table.add_column(column)
        for result in results:
            ratios = [f"{result.ratios()[peer]:.2f}" if peer in result.times else "" for peer in peers]
            table.add_row(result.label, f"{1e6 * result.fused.median:.1f}", f"{result.gflops / 1000:.0f}", *ratios)
        console.print(table)
        best = [min(ratio for peer, ratio in result.ratios().items() if "cropped" in peer) for result in results]
        dense = [result.ratios()["dense"] for result in results]
        for name, of_all in (("the faster cropped one", best), ("dense", dense)):
            mean = torch.tensor(of_all).log().mean().exp().item()
            console.print(f"  {name}: geometric mean {mean:.2f}x, worst {min(of_all):.2f}x")
    for failure in run.failures:
        console.print(f"[bold red]failed, not timed:[/] {failure}")


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; return 1 if a check failed, 2 without a GPU."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu_convolutions", description=__doc__)
    parser.add_argument("--limit", type=float, default=LIMIT_SECONDS, help="seconds (%(default)s)")
    parser.add_argument("--output", type=Path, default=RESULTS, help="the folder for the JSON (%(default)s)")
    parser.add_argument("--dtype", choices=DTYPES, default="bfloat16", help="of all tensors (%(default)s)")
    options = parser.parse_args(arguments)
    console = make_console()
    if not torch.cuda.is_available():
        console.print("benchmarks.gpu_convolutions needs an NVIDIA GPU, and a PyTorch that was built with CUDA.")
        return 2
    torch.backends.cudnn.benchmark = True
    torch.backends.cudnn.conv.fp32_precision = "tf32"  # type: ignore[attr-defined]
    run = Run(describe_gpu())
    suffix = "" if options.dtype == "bfloat16" else f"-{options.dtype}"
    path = options.output / f"{gpu_name(run.machine)}-masked-conv{suffix}.json"
    end = perf_counter() + options.limit
    with make_progress(console) as progress:
        task = progress.add_task("", total=len(CASES))
        for case in CASES:
            if perf_counter() > end:
                run.failures.append(f"stopped after {options.limit:.0f} s, before {case.label}")
                break
            progress.update(task, description=case.label)
            measure(case, DTYPES[options.dtype], run)
            run.save(path)
            torch.cuda.empty_cache()
            progress.advance(task)
    print_run(console, run)
    console.print(f"written: {path}", soft_wrap=True)
    return 1 if run.failures else 0


if __name__ == "__main__":
    sys.exit(main())
