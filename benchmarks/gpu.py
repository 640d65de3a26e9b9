"""Checks and times the recurrent layers on a GPU against torch.nn, with cuDNN and without, and writes JSON.

`python -m benchmarks.gpu` runs a grid that takes some minutes; `--full`, or chosen sizes, runs another one. No case is
started after `--limit` seconds. The file is written after each case, so it always contains all results so far.
"""

from __future__ import annotations

import argparse
import copy
import gc
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from time import perf_counter
from typing import Any

import torch
from rich.console import Console
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from benchmarks.cases import LAYERS, MODE_TITLES, PRECISIONS, GpuCase, Mode, gpu_grid, gpu_product_grid
from benchmarks.chart import draw_chart
from benchmarks.machine import CLOCKS, ask_nvidia_smi, clocks_under_load, describe_gpu, gpu_name
from benchmarks.problem import FUSED, CheckError, Compute, Outputs, Peer, Problem, check, torch_peer
from benchmarks.recurrent_peers import flatten_result, make_input, make_layers, state_names
from benchmarks.report import make_console, make_progress, print_gpu_run
from benchmarks.resets import reset_problem
from benchmarks.results import Result, Run
from benchmarks.timing import Function, Measurement, time_together

RESULTS = Path(__file__).parent / "results"
LIMIT_SECONDS = 360.0
SECONDS = 0.15  # for each case, mode, and way of calling; at least five rounds are made
# The number of steps over which results are checked; more steps run the same kernels. The tests check the rounding
# errors; here results only have to agree within 16 eps of the dtype, for tf32 of float16, which has the same mantissa.
CHECKED_STEPS = 128
CLOCKS_EVERY = 20  # cases
CUDNN, TORCH = "cuDNN", "torch.nn"


def gpu_problem(case: GpuCase, mode: Mode, device: str = "cuda") -> Problem:
    """Make the data and peers of `case`, the same in every run, and set torch's float32 precision to that of the case.

    Args:
        case: The case to compute.
        mode: Forward calls are made in evaluation mode, in which cuDNN saves nothing for backward.
        device: The device; on a CPU both peers of torch.nn are the same.

    Returns:
        The problem, in which every peer has the weights of torch.nn's layer.
    """
    _set_float32(case.tf32)
    if case.resets is not None:
        return reset_problem(case, mode, device)
    torch.manual_seed(0)
    theirs, ours = (layer.train(mode == "training") for layer in make_layers(case, device))
    leaf, input = make_input(case, device)
    shape = (*leaf.shape[:-1], case.directions * case.hidden_size)
    grad_output = torch.randn(shape, dtype=leaf.dtype, device=device)

    def peer(name: str, layer: nn.Module, with_cudnn: bool = True) -> Peer:
        compute = _with_cudnn(lambda: flatten_result(layer(input)), with_cudnn)
        return torch_peer(name, compute, [leaf, *layer.parameters()], grad_output)

    return Problem(
        [peer(FUSED, ours), peer(CUDNN, theirs), peer(TORCH, theirs, with_cudnn=False)],
        _oracle(theirs, leaf, input, grad_output),
        yardstick=CUDNN,
        forward_names=("output", *state_names(case)),
        gradient_names=("input", *(name for name, _ in theirs.named_parameters())),
    )


def _set_float32(tf32: bool) -> None:
    settings: Any = (torch.backends.cudnn.rnn, torch.backends.cuda.matmul)
    for setting in settings:
        setting.fp32_precision = "tf32" if tf32 else "ieee"


def _with_cudnn(compute: Compute, enabled: bool) -> Compute:
    """Return `compute` with cuDNN enabled or disabled; a backward pass uses cuDNN if its forward pass did.

    `torch.backends.cudnn.flags` raises an error where the float32 precision is set only for recurrent networks.
    """

    def computed() -> Outputs:
        torch._C._set_cudnn_enabled(enabled)
        try:
            return compute()
        finally:
            torch._C._set_cudnn_enabled(True)

    return computed


def _oracle(layer: nn.Module, leaf: Tensor, input: Tensor | PackedSequence, grad_output: Tensor) -> Peer:
    """torch.nn in float64 without cuDNN, from the same rounded weights and input."""
    double = copy.deepcopy(layer).double()
    leaf_double = leaf.detach().double().requires_grad_()
    input_double = PackedSequence(leaf_double, input.batch_sizes) if isinstance(input, PackedSequence) else leaf_double
    compute = _with_cudnn(lambda: flatten_result(double(input_double)), False)
    return torch_peer("torch.nn in float64", compute, [leaf_double, *double.parameters()], grad_output.double())


def captured(function: Function) -> Function | None:
    """Return a function that replays `function` as a CUDA graph, or None if it cannot be captured."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        function()
        function()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    try:
        with torch.cuda.graph(graph):
            function()
    except RuntimeError:
        torch.cuda.synchronize()
        return None
    return graph.replay


def time_on_gpu(
    problem: Problem, mode: Mode, seconds: float, wait: Function, capture: Callable[[Function], Function | None]
) -> dict[str, dict[str, Measurement]]:
    """Time all peers, as CUDA graphs and as ordinary calls.

    Args:
        problem: The peers.
        mode: Forward calls run without gradients.
        seconds: About how long to time graphs, and then calls.
        wait: Returns when the GPU has finished.
        capture: Returns a call as a graph, or None.

    Returns:
        The times of one call by peer, for graphs and for calls; graphs only if ours can be captured, and only of the
        peers that can be.
    """
    with torch.set_grad_enabled(mode == "training"):
        calls: dict[str, Function] = {peer.name: peer.prepare(mode) for peer in problem.peers}
        graphs = {name: graph for name, call in calls.items() if (graph := capture(call)) is not None}
        ways = {"graphs": graphs if FUSED in graphs else {}, "calls": calls}
        samples = {way: time_together(functions, seconds, wait) for way, functions in ways.items() if functions}
    return {way: {name: Measurement.of(values) for name, values in times.items()} for way, times in samples.items()}


@dataclass
class Gpu:
    """The functions of the device that timing needs; tests replace them by those of a CPU."""

    name: str = "cuda"
    wait: Function = torch.cuda.synchronize
    capture: Callable[[Function], Function | None] = captured


def run_on_gpu(
    run: Run, cases: list[GpuCase], path: Path, limit: float, console: Console, gpu: Gpu | None = None
) -> None:
    """Check and time cases one after another, and write the file after each.

    Args:
        run: The run to which results are added, and the failures of cases that differ from the reference, untimed.
        cases: The cases, the most important ones first.
        path: The JSON file to write.
        limit: The seconds after which no further case is started.
        console: The console for the progress bar.
        gpu: The device.
    """
    gpu = gpu or Gpu()
    end = perf_counter() + limit
    with make_progress(console) as progress:
        task = progress.add_task("", total=len(cases))
        for done, case in enumerate(cases):
            run.machine["cases"] = f"{done} of {len(cases)}"
            if perf_counter() > end:
                console.print(f"stopped after {limit:.0f} s: {run.machine['cases']} cases are done")
                return
            progress.update(task, description=f"{case.group} {case.label}")
            _measure(run, case, gpu, ask_clocks=done % CLOCKS_EVERY == 0)
            run.machine["cases"] = f"{done + 1} of {len(cases)}"
            run.save(path)
            progress.advance(task)


def _measure(run: Run, case: GpuCase, gpu: Gpu, ask_clocks: bool) -> None:
    """Check and time both modes of a case; failures are recorded, and the run goes on."""
    for mode, title in MODE_TITLES.items():
        try:
            _check(case, mode, gpu)
            problem = gpu_problem(case, mode, gpu.name)
            for way, times in time_on_gpu(problem, mode, SECONDS, gpu.wait, gpu.capture).items():
                run.results.append(Result(f"{case.group}, {way}", case.label, mode, case.operations(mode), 0.0, times))
            if ask_clocks and mode == "training":
                _note_clocks(run, problem, gpu)
            del problem
        except CheckError as error:
            run.failures.append(str(error))
        except RuntimeError as error:  # such as too little memory
            run.failures.append(f"{case.group} {case.label}, {title}: {error}")
        gc.collect()


def _check(case: GpuCase, mode: Mode, gpu: Gpu) -> None:
    """Compare outputs and gradients of all peers with float64, over the first steps."""
    short = replace(case, time=min(case.time, CHECKED_STEPS))
    problem = gpu_problem(short, mode, gpu.name)
    check(replace(short, dtype="float16") if case.tf32 else short, problem, mode, rounding=False)


def _note_clocks(run: Run, problem: Problem, gpu: Gpu) -> None:
    call = next(peer for peer in problem.peers if peer.name == FUSED).prepare("training")
    clocks = clocks_under_load(call, gpu.wait)
    seen = [text for text in (str(run.machine.get("clocks under load", "")), clocks) if text]
    run.machine["clocks under load"] = "; ".join(seen)


def _grid(options: argparse.Namespace) -> list[GpuCase]:
    chosen = {
        "kinds": options.kind,
        "precisions": options.precision,
        "times": options.time,
        "batches": options.batch,
        "hidden_sizes": options.hidden,
    }
    chosen = {name: values for name, values in chosen.items() if values}
    return gpu_product_grid(**chosen) if chosen or options.full else gpu_grid()


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description=__doc__)
    parser.add_argument(
        "--full", action="store_true", help="all combinations of all sizes, which take hours; see --limit"
    )
    parser.add_argument("--kind", nargs="+", choices=list(LAYERS), help="these, and of what is not chosen everything")
    parser.add_argument("--precision", nargs="+", choices=PRECISIONS)
    parser.add_argument("--time", type=int, nargs="+", help="time steps")
    parser.add_argument("--batch", type=int, nargs="+")
    parser.add_argument("--hidden", type=int, nargs="+", help="of the hidden state and of the input")
    parser.add_argument("--limit", type=float, default=LIMIT_SECONDS, help="seconds (%(default)s)")
    parser.add_argument("--output", type=Path, default=RESULTS, help="the folder for the JSON (%(default)s)")
    return parser


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; return 1 if a check failed, 2 without a GPU."""
    options = _parser().parse_args(arguments)
    console = make_console()
    if not torch.cuda.is_available():
        console.print("benchmarks.gpu needs an NVIDIA GPU, and a PyTorch that was built with CUDA.")
        return 2
    run = Run(describe_gpu())
    path = options.output / f"{gpu_name(run.machine)}.json"
    run_on_gpu(run, _grid(options), path, options.limit, console)
    run.machine["clocks after"] = ask_nvidia_smi(CLOCKS)
    run.save(path)
    print_gpu_run(console, run)
    console.print(f"written: {path}", soft_wrap=True)
    if run.results:
        draw_chart(run, path.with_suffix(".png"))
    return 1 if run.failures else 0


if __name__ == "__main__":
    sys.exit(main())
