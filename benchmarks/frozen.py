"""Times single steps of layers whose weights are frozen, as in a model that is served, against their peers.

Every peer is timed alone: its calls follow each other as in a program that does nothing else, so that each finds the
caches as its own last call left them. The peers are the ordinary layer, torch.nn, torch.nn quantised dynamically, and
ONNX Runtime with float32 and with dynamically quantised weights.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from torch import Tensor, nn

import fused_rnn
from benchmarks.cases import Kind, RecurrentCase
from benchmarks.machine import Peak, describe_machine, measure_peak
from benchmarks.problem import FUSED, CheckError
from benchmarks.recurrent_peers import flatten_result, make_layers, onnx_is_installed, onnx_model, onnx_session
from benchmarks.report import make_progress
from benchmarks.results import Result, Run
from benchmarks.timing import Measurement, time_together

Compute = Callable[[], tuple[Tensor, ...]]

ORDINARY, FROZEN_BFLOAT16, FROZEN_INT8 = "fused, not frozen", "fused, bfloat16", "fused, int8"
TORCH, TORCH_INT8 = "torch.nn", "torch.nn, int8"
ONNX, ONNX_INT8 = "ONNX Runtime", "ONNX Runtime, int8"
# The largest difference from the ordinary layer's outputs, which are between -1 and 1. Those of quantised layers only
# show that they compute the same function.
TOLERANCES = {FUSED: 1e-5, TORCH: 1e-5, ONNX: 1e-5, FROZEN_BFLOAT16: 0.01}
QUANTISED = 0.05


@dataclass(frozen=True)
class FrozenCase:
    """A layer that is called for one step at a time."""

    layer: RecurrentCase

    @property
    def group(self) -> str:
        """What the sizes of a kind of layer have in common."""
        return f"{self.layer.kind}, one step, frozen, each peer alone"

    @property
    def label(self) -> str:
        """Batch and sizes."""
        return f"batch {self.layer.batch}, hidden {self.layer.hidden_size}"


def default_cases() -> list[FrozenCase]:
    """LSTMs and GRUs of 64 to 1024 units, for one stream, for a few and for many."""
    kinds: Sequence[tuple[Kind, Sequence[int]]] = (("LSTM", (64, 128, 256, 512, 768, 1024)), ("GRU", (64, 256, 512)))
    return [
        FrozenCase(RecurrentCase(kind, 1, batch, hidden, hidden))
        for kind, sizes in kinds
        for hidden in sizes
        for batch in (1, 8, 32)
    ]


def run_frozen(cases: Sequence[FrozenCase], console: Console, seconds: float) -> Run:
    """Check and time every case.

    Args:
        cases: The layers.
        console: The console for the progress bar.
        seconds: About how long to time each case; 0 only checks.

    Returns:
        A result for each case.

    Raises:
        CheckError: A peer computes something else.
    """
    run = Run(describe_machine())
    with make_progress(console) as progress, torch.no_grad():
        task = progress.add_task("limits of this machine", total=len(cases))
        peak = measure_peak() if seconds else Peak()
        for case in cases:
            progress.update(task, description=f"{case.group}, {case.label}")
            makers = peers(case)
            check(case, makers)
            if seconds:
                times = {
                    name: Measurement.of(time_together({name: make()}, seconds / len(makers))[name])
                    for name, make in makers.items()
                }
                operations = case.layer.operations("forward")
                limit = 1e-9 * operations / max(peak.gflops.values())
                run.results.append(Result(case.group, case.label, "forward", operations, limit, times))
            progress.advance(task)
    run.peak_gflops = peak.gflops
    return run


def peers(case: FrozenCase) -> dict[str, Callable[[], Compute]]:
    """For each peer, what makes the function that computes the case; all have the same weights and input."""
    torch.manual_seed(0)
    theirs, ours = make_layers(case.layer)
    input = torch.randn(1, case.layer.batch, case.layer.input_size)

    def call(layer: Any) -> Compute:
        return lambda: flatten_result(layer(input))

    def frozen(dtype: torch.dtype | None) -> Callable[[], Compute]:
        return lambda: call(fused_rnn.freeze(deepcopy(ours).eval(), dtype))

    made: dict[str, Callable[[], Compute]] = {
        FUSED: frozen(None),
        FROZEN_BFLOAT16: frozen(torch.bfloat16),
        FROZEN_INT8: frozen(torch.int8),
        ORDINARY: lambda: call(ours),
        TORCH: lambda: call(theirs),
        TORCH_INT8: lambda: call(quantised(theirs)),
    }
    if onnx_is_installed():
        model = onnx_model(case.layer, list(theirs.parameters()))
        made[ONNX] = lambda: onnx_session(model, input)
        if case.layer.kind == "LSTM":  # the only recurrent operator that ONNX Runtime quantises
            made[ONNX_INT8] = lambda: onnx_session(quantised_onnx(model), input)
    return made


def quantised(layer: nn.Module) -> nn.Module:
    """The layer of torch.nn as torch.ao quantises it dynamically."""
    result: nn.Module = torch.ao.quantization.quantize_dynamic(nn.Sequential(layer), {type(layer)}, torch.qint8)
    return result[0]  # type: ignore[index]


def quantised_onnx(model: bytes) -> bytes:
    """The model as ONNX Runtime quantises it dynamically."""
    import onnx
    from onnxruntime.quantization import QuantType, quantize_dynamic

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "quantised.onnx"
        quantize_dynamic(onnx.load_from_string(model), path, weight_type=QuantType.QInt8)
        return path.read_bytes()


def check(case: FrozenCase, makers: dict[str, Callable[[], Compute]]) -> None:
    """Compare what the peers compute with the ordinary layer."""
    expected = makers[ORDINARY]()()
    for name, make in makers.items():
        for ours, theirs in zip(make()(), expected, strict=True):
            difference = (ours - theirs).abs().max().item()
            if not difference <= TOLERANCES.get(name, QUANTISED):
                raise CheckError(f"{case.group}, {case.label}: {name} differs by {difference:.1e}")
