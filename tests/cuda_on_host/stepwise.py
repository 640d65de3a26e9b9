"""The stepwise path of csrc/ops/cuda/stepwise.cpp: products by torch, and the pointwise kernels on the CPU."""

import torch
from torch import Tensor

from cuda_on_host.host import OnHost
from cuda_on_host.layer import Result
from cuda_on_host.structs import PointwiseBackward, PointwiseForward


def forward(host: OnHost, save_for_backward: bool = True, projected: bool = False) -> None:
    """Run all steps; with ``projected`` as if a projection, here the identity, came behind the hidden values."""
    layer, state_dtype = host.layer, host.empty(0, state=True).dtype
    for direction in range(layer.directions):
        hidden = host.states[0][direction].clone()
        # Of the GRU the hidden values that are not rounded, in half precision.
        unrounded = host.states[-1][direction].to(state_dtype, copy=True)
        cell = unrounded if layer.is_lstm or layer.is_half else None
        for index, (rows, _) in enumerate(_steps(host, direction)):
            t = layer.time - 1 - index if direction else index
            sequences = len(rows)
            before = hidden.clone()
            sums = hidden[:sequences].to(state_dtype) @ host.weight(direction, 1).to(state_dtype).T
            biases = [host.weight(direction, 2), host.weight(direction, 3)] if layer.bias else [None, None]
            params = host.params(
                PointwiseForward, t=t, sequences=sequences, direction=direction, sums=sums, bias_ih=biases[0],
                bias_hh=biases[1], before=hidden, hidden=hidden, cell=cell, output=None if projected else host.output,
                gates=host.gates, save_for_backward=save_for_backward, **host.cells,
            )  # fmt: skip
            host.kernels.run("pointwise_forward", layer.kind, layer.dtype, params)
            if projected:
                runs = _running(host, t, sequences)
                output = host.output[:, direction * layer.hidden_size : (direction + 1) * layer.hidden_size]
                output[rows] = torch.where(runs, hidden[:sequences], 0)
                assert torch.equal(hidden[:sequences][~runs[:, 0]], before[:sequences][~runs[:, 0]])
        host.final["h_n"][direction] = hidden
        if layer.is_lstm:
            host.final["c_n"][direction] = unrounded.to(layer.dtype)


def backward(host: OnHost, projected: bool = False) -> None:
    """Run all steps backwards, after :func:`forward`."""
    layer, state_dtype = host.layer, host.empty(0, state=True).dtype
    grads = host.output_gradients()
    for direction in range(layer.directions):
        hidden = _initial(grads.get("grad_h_n"), direction, host, state_dtype)
        cell = _initial(grads.get("grad_c_n"), direction, host, state_dtype) if layer.is_lstm else None
        steps = list(enumerate(_steps(host, direction)))
        for index, (rows, _) in reversed(steps):
            t = layer.time - 1 - index if direction else index
            before = -1 if index == 0 else t + 1 if direction else t - 1
            carried, total = hidden[: len(rows)], None
            of_recurrent = host.empty(len(rows), layer.gates * layer.hidden_size)
            if projected:
                total = _all_of(carried, grads, host, rows, direction, t)
            params = host.params(
                PointwiseBackward, t=t, before=before, sequences=len(rows), direction=direction, output=host.output,
                gates=host.gates, grad_gates=host.grad_gates, grad_h_direct=hidden, grad_h_recurrent=torch.zeros_like(hidden),
                grad_cell=cell, grad_recurrent=of_recurrent,
                grad_output=None if projected else grads.get("grad_output"), grad_cells=grads.get("grad_cells"),
                grad_projected=total, **host.initial, **host.cells,
            )  # fmt: skip
            host.kernels.run("pointwise_backward", layer.kind, layer.dtype, params)
            of_sums = host.grad_gates[direction, rows] if layer.is_lstm else of_recurrent
            carried += of_sums.to(state_dtype) @ host.weight(direction, 1).to(state_dtype)
        host.grad_initial["grad_h0"][direction] = hidden
        if cell is not None:
            host.grad_initial["grad_c0"][direction] = cell


def _steps(host: OnHost, direction: int) -> list[tuple[Tensor, Tensor]]:
    """Return rows and sequences of each step, of padded input all of them."""
    layer = host.layer
    if layer.batch_sizes:
        return layer.steps()[:: -1 if direction else 1]
    everyone = torch.arange(layer.batch)
    steps = [(t * layer.batch + everyone, everyone) for t in range(layer.time)]
    return steps[:: -1 if direction else 1]


def _running(host: OnHost, t: int, sequences: int) -> Tensor:
    lengths = host.integers["lengths"]
    return torch.ones(sequences, 1, dtype=torch.bool) if lengths is None else (lengths > t).unsqueeze(1)


def _initial(grad: Tensor | None, direction: int, host: OnHost, dtype: torch.dtype) -> Tensor:
    zero = torch.zeros(host.layer.batch, host.layer.hidden_size, dtype=dtype)
    return zero if grad is None else grad[direction].to(dtype, copy=True)


def _all_of(carried: Tensor, grads: Result, host: OnHost, rows: Tensor, direction: int, t: int) -> Tensor:
    """Return the whole gradient of a step's hidden values, and leave nothing of it in ``carried`` where it runs."""
    size, runs = host.layer.hidden_size, _running(host, t, len(rows))
    total = carried.clone()
    if "grad_output" in grads:
        total += grads["grad_output"][rows, direction * size : (direction + 1) * size].to(total.dtype)
    carried.masked_fill_(runs, 0)
    return total
