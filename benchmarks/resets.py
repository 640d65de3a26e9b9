"""Times layers whose states are replaced where episodes end, as in a rollout of a recurrent policy.

The peers are what is done without such a layer: a loop in Python over the steps of torch.nn's cell, which sets the
states to zero before each step that has a reset, and torch.nn's layer on the episodes, split and padded to the longest.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from rich.console import Console
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

import fused_rnn
from benchmarks.cases import RecurrentCase
from benchmarks.machine import Peak, describe_machine, measure_peak
from benchmarks.problem import FUSED, CheckError
from benchmarks.report import make_progress
from benchmarks.results import Result, Run
from benchmarks.timing import Measurement, time_together

LOOP, PADDED, WITHOUT = "loop over torch.nn's cell", "torch.nn, split and padded", "fused, without resets"
TOLERANCE = 1e-4  # of outputs, which are between -1 and 1
FRACTIONS = (0.0, 0.001, 0.01, 0.1)


@dataclass(frozen=True)
class ResetCase:
    """A layer, and how often its states are replaced.

    Attributes:
        layer: The layer and its input.
        fraction: Of all steps of all sequences, how many have a reset.
    """

    layer: RecurrentCase
    fraction: float

    @property
    def group(self) -> str:
        """What the fractions of a layer have in common."""
        return f"{self.layer.kind} {self.layer.label}"

    @property
    def label(self) -> str:
        """The fraction."""
        return f"{100 * self.fraction:g} % resets"

    def resets(self) -> Tensor:
        """The resets, `[time, batch]`, at random."""
        generator = torch.Generator().manual_seed(0)
        return torch.rand(self.layer.time, self.layer.batch, generator=generator) < self.fraction


def default_cases() -> list[ResetCase]:
    """Two sizes of LSTM and GRU, and resets from none to one in ten steps."""
    sizes = ((128, 64, 64, 128), (64, 256, 128, 256))
    layers = [RecurrentCase(kind, *size) for kind in ("LSTM", "GRU") for size in sizes]
    return [ResetCase(layer, fraction) for layer in layers for fraction in FRACTIONS]


def run_resets(cases: Sequence[ResetCase], console: Console, seconds: float) -> Run:
    """Check and time every case, forward and backward.

    Args:
        cases: The layers.
        console: The console for the progress bar.
        seconds: About how long to time each case; 0 only checks.

    Returns:
        A result for each case.

    Raises:
        CheckError: The ways to compute do not agree.
    """
    run = Run(describe_machine())
    with make_progress(console) as progress:
        task = progress.add_task("limits of this machine", total=len(cases))
        peak = measure_peak() if seconds else Peak()
        for case in cases:
            progress.update(task, description=f"{case.group}, {case.label}")
            functions = peers(case)
            check(case, functions)
            if seconds:
                samples = time_together(functions, seconds)
                times = {name: Measurement.of(each) for name, each in samples.items()}
                operations = case.layer.operations("training")
                limit = 1e-9 * operations / max(peak.gflops.values())
                run.results.append(Result(case.group, case.label, "training", operations, limit, times))
            progress.advance(task)
    run.peak_gflops = peak.gflops
    return run


def peers(case: ResetCase) -> dict[str, Callable[[], dict[str, Tensor]]]:
    """Functions that compute the output and all gradients in each way, from the same weights and input."""
    sizes = case.layer.input_size, case.layer.hidden_size
    torch.manual_seed(0)
    layer = getattr(nn, case.layer.kind)(*sizes)
    cell, ours = getattr(nn, f"{case.layer.kind}Cell")(*sizes), getattr(fused_rnn, case.layer.kind)(*sizes)
    ours.load_state_dict(layer.state_dict())
    cell.load_state_dict({name.removesuffix("_l0"): weight for name, weight in layer.state_dict().items()})
    input = torch.randn(case.layer.time, case.layer.batch, case.layer.input_size, requires_grad=True)
    gradient = torch.randn(case.layer.time, case.layer.batch, case.layer.hidden_size)
    resets = case.resets()

    def train(module: nn.Module, forward: Callable[[], Tensor]) -> dict[str, Tensor]:
        output = forward()
        weights = {name.removesuffix("_l0"): weight for name, weight in module.named_parameters()}
        gradients = torch.autograd.grad(output, [input, *weights.values()], gradient)
        return {"output": output, **dict(zip(("input", *weights), gradients, strict=True))}

    return {
        FUSED: partial(train, ours, lambda: ours(input, resets=resets)[0]),
        WITHOUT: partial(train, ours, lambda: ours(input)[0]),
        LOOP: partial(train, cell, partial(loop, cell, input, resets)),
        PADDED: partial(train, layer, partial(split_and_pad, layer, input, resets)),
    }


def check(case: ResetCase, functions: dict[str, Callable[[], dict[str, Tensor]]]) -> None:
    """Compare what the peers compute with the loop."""
    expected = functions[LOOP]()
    compared = [FUSED, PADDED] if case.resets().any() else [FUSED, PADDED, WITHOUT]
    for peer in compared:
        for name, tensor in functions[peer]().items():
            scale = max(1.0, expected[name].abs().max().item())
            difference = (tensor - expected[name]).abs().max().item() / scale
            if not difference <= TOLERANCE:
                raise CheckError(f"{case.group}, {case.label}: {name} of {peer} differs by {difference:.1e}")


def loop(cell: Any, input: Tensor, resets: Tensor) -> Tensor:
    """Run the steps one by one, `[time, batch, hidden_size]`, as is done where a layer cannot reset its states."""
    keeps = resets.logical_not().to(input.dtype).unsqueeze(2)
    h = input.new_zeros(input.size(1), cell.hidden_size)
    c = h
    outputs = []
    for step, keep in zip(input, keeps, strict=True):
        if isinstance(cell, nn.LSTMCell):
            h, c = cell(step, (h * keep, c * keep))
        else:
            h = cell(step, h * keep)
        outputs.append(h)
    return torch.stack(outputs)


def split_and_pad(layer: nn.RNNBase, input: Tensor, resets: Tensor) -> Tensor:
    """Run all segments as one padded batch, and put their outputs back in place, `[time, batch, hidden_size]`."""
    time, batch = resets.shape
    begins = resets.clone()
    begins[0] = True
    lengths = begins.T.flatten().nonzero().flatten().diff(append=torch.tensor([time * batch]))
    segments = input.transpose(0, 1).flatten(0, 1).split(lengths.tolist())
    output, _ = layer(pad_sequence(list(segments)))
    inside = torch.arange(output.size(0)) < lengths.unsqueeze(1)
    return output.transpose(0, 1)[inside].view(batch, time, -1).transpose(0, 1)
