"""The pointwise kernels on the CPU between products by torch: the stepwise path of csrc/ops/cuda/, without its glue.

test_glue.py runs the real glue, over more shapes. This loop is for what needs another library of the kernels in each
test: faults that are planted into them, and sanitizers. Torch loads a library of operators once for a process.
"""

import torch
from torch import Tensor

from cuda_on_host.host import OnHost
from cuda_on_host.structs import PointwiseBackward, PointwiseForward


def forward(host: OnHost, save_for_backward: bool = True) -> None:
    """Run all steps."""
    layer, state_dtype = host.layer, host.empty(0, state=True).dtype
    for direction in range(layer.directions):
        hidden = host.states[0][direction].clone()
        # What is carried from step to step unrounded: see PointwiseForwardParams::cell.
        unrounded = host.states[-1][direction].to(state_dtype, copy=True)
        carries_hidden = layer.structure["reads_hidden"] and layer.is_half
        cell = unrounded if layer.has_cell_state or carries_hidden else None
        for t, rows in _steps(host, direction):
            sums = hidden[: len(rows)].to(state_dtype) @ host.weight(direction, 1).to(state_dtype).T
            biases = [host.weight(direction, 2), host.weight(direction, 3)] if layer.bias else [None, None]
            params = host.params(
                PointwiseForward, t=t, sequences=len(rows), direction=direction, sums=sums, bias_ih=biases[0],
                bias_hh=biases[1], before=hidden, hidden=hidden, cell=cell, output=host.output,
                gates=host.gates, save_for_backward=save_for_backward, **host.cells,
            )  # fmt: skip
            host.kernels.run("pointwise_forward", layer.cell, layer.dtype, params)
        host.final["h_n"][direction] = hidden
        if layer.has_cell_state:
            host.final["c_n"][direction] = unrounded.to(layer.dtype)


def backward(host: OnHost) -> None:
    """Run all steps backward, after :func:`forward`."""
    layer, state_dtype = host.layer, host.empty(0, state=True).dtype
    grads = host.output_gradients()
    for direction in range(layer.directions):
        hidden = _initial(grads.get("grad_h_n"), direction, host, state_dtype)
        cell = _initial(grads.get("grad_c_n"), direction, host, state_dtype) if layer.has_cell_state else None
        steps = _steps(host, direction)
        for index, (t, rows) in reversed(list(enumerate(steps))):
            of_recurrent = host.empty(len(rows), layer.gates * layer.hidden_size)
            params = host.params(
                PointwiseBackward, t=t, before=steps[index - 1][0] if index > 0 else -1, sequences=len(rows),
                direction=direction, output=host.output, gates=host.gates, grad_gates=host.grad_gates,
                grad_h_direct=hidden, grad_h_recurrent=torch.zeros_like(hidden), grad_cell=cell,
                grad_recurrent=of_recurrent, grad_output=grads.get("grad_output"), grad_cells=grads.get("grad_cells"),
                **host.initial, **host.cells,
            )  # fmt: skip
            host.kernels.run("pointwise_backward", layer.cell, layer.dtype, params)
            side_by_side = layer.structure["hidden_sums"] == tuple(range(layer.gates))
            of_sums = host.grad_gates[direction, rows] if side_by_side else of_recurrent
            hidden[: len(rows)] += of_sums.to(state_dtype) @ host.weight(direction, 1).to(state_dtype)
        host.grad_initial["grad_h0"][direction] = hidden
        if cell is not None:
            host.grad_initial["grad_c0"][direction] = cell


def _steps(host: OnHost, direction: int) -> list[tuple[int, Tensor]]:
    """Return each step and its rows, of padded input all of them, in the order of a direction."""
    layer = host.layer
    if layer.batch_sizes:
        steps = [rows for rows, _ in layer.steps()]
    else:
        steps = list(torch.arange(layer.rows).view(layer.time, layer.batch))
    return list(enumerate(steps))[:: -1 if direction else 1]


def _initial(grad: Tensor | None, direction: int, host: OnHost, dtype: torch.dtype) -> Tensor:
    zero = torch.zeros(host.layer.batch, host.layer.hidden_size, dtype=dtype)
    return zero if grad is None else grad[direction].to(dtype, copy=True)
