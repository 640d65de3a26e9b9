"""LSTM and GRU on a GPU against torch.nn with cuDNN: `python -m benchmarks.gpu`, which checks, times and writes JSON.

Times are those of CUDA events around one call, ours and the peer's in turn, in microseconds for each time step.
"""

from __future__ import annotations

import argparse
import itertools
import json
import subprocess
import sys
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from math import exp, log
from pathlib import Path
from statistics import fmean, median, quantiles

import torch
from rich.console import Console
from rich.progress import track
from rich.table import Table

import fused_rnn
from benchmarks.machine import describe_machine

RESULTS = Path(__file__).parent / "results"
DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}
PASSES = ("forward", "forward + backward")
WARM_UP, ROUNDS = 2, 7


@dataclass(frozen=True)
class Row:
    """One layer in one pass: medians and distances between the quartiles, in microseconds for each time step."""

    kind: str
    dtype: str
    time: int
    batch: int
    hidden_size: int
    bidirectional: bool
    what: str
    fused: float
    fused_spread: float
    cudnn: float
    cudnn_spread: float

    @property
    def ratio(self) -> float:
        """How many times as long as ours cuDNN takes."""
        return self.cudnn / self.fused


def main(arguments: list[str] | None = None) -> int:
    """Do what the command line says; return 1 if a check failed, 2 without a GPU."""
    options = _parser().parse_args(arguments)
    console = Console()
    if not torch.cuda.is_available():
        console.print("benchmarks.gpu needs an NVIDIA GPU, and a PyTorch that was built with CUDA.")
        return 2
    layers = list(
        itertools.product(
            options.kind, options.dtype, options.time, options.batch, options.hidden, options.bidirectional
        )
    )
    rows: list[Row] = []
    for kind, dtype, time, batch, hidden_size, both in track(layers, "layers", console=console):
        fused, peer = _layers(kind, DTYPES[dtype], hidden_size, bool(both))
        input = torch.randn(time, batch, hidden_size, device="cuda", dtype=DTYPES[dtype])
        if not _agree(fused, peer, input):
            console.print(f"{kind} {dtype} {(time, batch, hidden_size)}: the results differ; nothing is timed.")
            return 1
        for what in PASSES:
            ours, theirs = _timed([_call(fused, input, what), _call(peer, input, what)], time)
            rows.append(Row(kind, dtype, time, batch, hidden_size, bool(both), what, *ours, *theirs))
    _print(console, rows)
    gpu = _gpu()
    machine = {**describe_machine(), **gpu}
    path = options.output / f"{gpu['gpu'].lower().replace(' ', '-')}.json"
    path.write_text(json.dumps({"machine": machine, "rows": [asdict(row) for row in rows]}, indent=1) + "\n")
    console.print(f"Written: {path}")
    return 0


def _layers(kind: str, dtype: torch.dtype, hidden_size: int, both: bool) -> tuple[torch.nn.Module, torch.nn.Module]:
    """Our layer and torch.nn's, with the same weights."""
    torch.manual_seed(0)
    sizes = {"input_size": hidden_size, "hidden_size": hidden_size, "bidirectional": both}
    peer = getattr(torch.nn, kind)(**sizes, device="cuda", dtype=dtype)
    fused = getattr(fused_rnn, kind)(**sizes, device="cuda", dtype=dtype)
    fused.load_state_dict(peer.state_dict())
    peer.flatten_parameters()
    return fused, peer


def _agree(fused: torch.nn.Module, peer: torch.nn.Module, input: torch.Tensor) -> bool:
    """Whether both outputs are equal but for some roundings to their dtype (of tf32 for float32)."""
    epsilon = torch.finfo(torch.float16 if input.dtype == torch.float32 else input.dtype).eps
    with torch.no_grad():
        difference = (fused(input)[0].float() - peer(input)[0].float()).abs().max()
    return bool(difference <= 4 * epsilon)


def _call(module: torch.nn.Module, input: torch.Tensor, what: str) -> Callable[[], object]:
    if what == "forward":

        def forward() -> object:
            with torch.no_grad():
                return module(input)

        return forward
    input = input.detach().requires_grad_()
    tensors = [input, *module.parameters()]
    grad = torch.randn_like(module(input)[0])
    return lambda: torch.autograd.grad(module(input)[0], tensors, grad)


def _timed(calls: Iterable[Callable[[], object]], time: int) -> list[tuple[float, float]]:
    """Return for each call the median and the distance between the quartiles, in microseconds for each time step."""
    samples: dict[int, list[float]] = {}
    for round in range(WARM_UP + ROUNDS):
        for index, call in enumerate(calls):
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            start.record()
            call()
            end.record()
            end.synchronize()
            if round >= WARM_UP:
                samples.setdefault(index, []).append(1e3 * start.elapsed_time(end) / time)
    quartiles = {index: quantiles(values, n=4, method="inclusive") for index, values in samples.items()}
    return [(median(values), quartiles[index][2] - quartiles[index][0]) for index, values in samples.items()]


def _print(console: Console, rows: list[Row]) -> None:
    table = Table("layer", "time, batch, hidden", "pass", "fused_rnn us/step", "cuDNN us/step", "ratio")
    for row in rows:
        name = f"{row.kind} {row.dtype}{' both ways' if row.bidirectional else ''}"
        sizes = f"{row.time}, {row.batch}, {row.hidden_size}"
        times = [f"{value:.2f} ± {spread:.2f}" for value, spread in
                 ((row.fused, row.fused_spread), (row.cudnn, row.cudnn_spread))]  # fmt: skip
        table.add_row(name, sizes, row.what, *times, f"{row.ratio:.2f}x")
    console.print(table)
    for kind, dtype, what in sorted({(row.kind, row.dtype, row.what) for row in rows}):
        ratios = [row.ratio for row in rows if (row.kind, row.dtype, row.what) == (kind, dtype, what)]
        mean = exp(fmean(map(log, ratios)))
        console.print(f"{kind} {dtype} {what}: {mean:.2f}x cuDNN, worst {min(ratios):.2f}x")


def _gpu() -> dict[str, str]:
    """The GPU, its driver, its clocks just now, and the versions of CUDA and cuDNN."""
    query = ["nvidia-smi", "--query-gpu=driver_version,clocks.sm,clocks.mem", "--format=csv,noheader"]
    answer = subprocess.run(query, capture_output=True, text=True, check=True).stdout
    driver, sm, memory = answer.splitlines()[0].split(", ")
    return {
        "gpu": torch.cuda.get_device_name(),
        "driver": driver,
        "clocks": f"{sm}, memory {memory}",
        "cuda": str(torch.version.cuda),
        "cudnn": str(torch.backends.cudnn.version()),
    }


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description=__doc__)
    parser.add_argument("--kind", nargs="+", default=["LSTM", "GRU"], choices=["LSTM", "GRU"])
    parser.add_argument("--dtype", nargs="+", default=list(DTYPES), choices=list(DTYPES))
    parser.add_argument("--time", type=int, nargs="+", default=[128, 1024], help="time steps")
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 16, 32, 64, 128])
    parser.add_argument("--hidden", type=int, nargs="+", default=[128, 256, 384, 512, 768, 1024, 1536, 2048])
    parser.add_argument("--bidirectional", type=int, nargs="+", default=[0], choices=[0, 1])
    parser.add_argument("--output", type=Path, default=RESULTS, help="the folder for the JSON (%(default)s)")
    return parser


if __name__ == "__main__":
    sys.exit(main())
