"""The checks of recurrent layers and cells, with the exceptions and messages of torch.nn.

The operator itself checks the shapes of the weights, and that the batch sizes fit the rows.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

KERNEL_DTYPES = frozenset({torch.float32, torch.float64, torch.bfloat16, torch.float16})


def _kernel_devices(operator: str) -> frozenset[str]:
    """Return the devices for which an operator has kernels, and meta, where every operator computes only shapes."""
    has_kernel = torch._C._dispatch_has_kernel_for_dispatch_key
    built = {device for device in ("cpu", "cuda") if has_kernel(f"fused_rnn::{operator}", device.upper())}
    return frozenset(built | {"meta"})


# Looked up at import, since torch.compile cannot trace the query.
KERNEL_DEVICES = {operator: _kernel_devices(operator) for operator in ("recurrent", "masked_conv2d")}


def check_layer_ranks(name: str, input: Tensor, hx: Sequence[Tensor] | None, packed: bool) -> None:
    """Check the numbers of dimensions of ``input`` and the initial states."""
    rank = input.dim()
    if packed:
        if rank != 2:
            raise RuntimeError(f"input must have 2 dimensions, got {rank}")
        rank = 3
    elif rank not in (2, 3):
        kind = " tensor" if name == "RNN" else ""  # torch.nn's words for an RNN differ from those for the others
        raise ValueError(f"{name}: Expected input to be 2D or 3D, got {rank}D{kind} instead")
    if hx is None or all(state.dim() == rank for state in hx):
        return
    kind = "batched" if rank == 3 else "unbatched"
    ranks = ", ".join(f"{state.dim()}-D" for state in hx)
    names, got = ("hx", f"{ranks} tensor") if len(hx) == 1 else ("hx and cx", f"({ranks}) tensors")
    raise RuntimeError(f"For {kind} {rank}-D input, {names} should also be {rank}-D but got {got}")


def check_layer_input(input: Tensor, batch_sizes: Tensor | None, weight_ih: Tensor) -> None:
    """Check the dtype and sizes of ``input``, ``[time, batch, input_size]``, or ``[rows, input_size]`` if packed."""
    if input.dtype != weight_ih.dtype:
        raise ValueError(
            f"RNN input dtype ({input.dtype}) does not match weight dtype ({weight_ih.dtype}). "
            f"Convert input: input.to({weight_ih.dtype}), or convert model: model.to({input.dtype})"
        )
    if input.size(-1) != weight_ih.size(-1):
        raise RuntimeError(
            f"input.size(-1) must be equal to input_size. Expected {weight_ih.size(-1)}, got {input.size(-1)}"
        )
    if (input if batch_sizes is None else batch_sizes).size(0) == 0:
        raise RuntimeError("Expected sequence length to be larger than 0 in RNN")


def check_layer_states(hx: Sequence[Tensor], expected: Sequence[tuple[int, int, int]]) -> None:
    """Check the shapes of the initial states."""
    for index, (state, shape) in enumerate(zip(hx, expected, strict=True)):
        if state.shape != shape:
            name = "hidden" if len(hx) == 1 else f"hidden[{index}]"
            raise RuntimeError(f"Expected {name} size {shape}, got {list(state.shape)}")


def check_lengths(lengths: Tensor, input: Tensor) -> None:
    """Check the lengths of the sequences of ``input [time, batch, input_size]``.

    The operator checks the values if ``input`` is on the CPU. If it is on another device, they are checked here, but
    only if ``lengths`` are still on the CPU: reading them from the device would wait for all its work.
    """
    time, batch = input.shape[:2]
    if lengths.is_floating_point() or lengths.is_complex() or lengths.dtype == torch.bool:
        raise TypeError(f"lengths must be integers, got {lengths.dtype}")
    if torch.jit.is_tracing():
        return  # a comparison of sizes would fix them in the trace; the operator compares them when it runs
    if lengths.shape != (batch,):
        raise ValueError(f"lengths must have shape [batch] = [{batch}], got {list(lengths.shape)}")
    if lengths.is_cpu and not input.is_cpu and not torch.compiler.is_compiling():
        for length in lengths.tolist():
            if not 0 <= length <= time:
                raise ValueError(f"lengths must lie between 0 and the number of time steps, {time}, got {length}")


def check_cell_ranks(name: str, input: Tensor, hx: Sequence[Tensor] | None) -> None:
    """Check the numbers of dimensions of ``input`` and the states; ``name`` is the kind of the cell, such as LSTM."""
    rank = input.dim()
    if rank not in (1, 2):
        raise ValueError(f"{name}Cell: Expected input to be 1D or 2D, got {rank}D instead")
    for index, state in enumerate(hx or ()):
        if state.dim() != rank:
            label = f"hx[{index}]" if hx is not None and len(hx) > 1 else "hidden"
            if state.dim() not in (1, 2):
                raise ValueError(f"{name}Cell: Expected {label} to be 1D or 2D, got {state.dim()}D instead")
            raise RuntimeError(f"{name}Cell: Expected {label} to be {rank}D as input is, got {state.dim()}D instead")


def check_cell_sizes(input: Tensor, hx: Sequence[Tensor], weight_ih: Tensor, hidden_size: int) -> None:
    """Check the shapes of ``input``, ``[batch, input_size]``, and of the states, ``[batch, hidden_size]``."""
    batch, input_size = input.shape
    if input_size != weight_ih.size(-1):
        raise RuntimeError(f"input has inconsistent input_size: got {input_size} expected {weight_ih.size(-1)}")
    for index, state in enumerate(hx):
        if state.size(0) != batch:
            raise RuntimeError(f"Input batch size {batch} doesn't match hidden{index} batch size {state.size(0)}")
        if state.size(1) != hidden_size:
            raise RuntimeError(
                f"hidden{index} has inconsistent hidden_size: got {state.size(1)}, expected {hidden_size}"
            )


def check_attributes(input: Tensor, hx: Sequence[Tensor], weights: Sequence[Tensor], operator: str) -> None:
    """Check that all tensors share one dtype and one device, and that ``operator`` has kernels for both."""
    device, dtype = input.device, input.dtype
    for name, tensors in (("hidden", hx), ("parameter", weights)):
        for tensor in tensors:
            if tensor.device != device:
                raise RuntimeError(
                    f"Input and {name} tensors are not at the same device, "
                    f"found input tensor at {device} and {name} tensor at {tensor.device}"
                )
            if tensor.dtype != dtype:
                raise RuntimeError(
                    f"Input and {name} tensors are not the same dtype, "
                    f"found input tensor with {dtype} and {name} tensor with {tensor.dtype}"
                )
    if dtype not in KERNEL_DTYPES:
        raise NotImplementedError(f"input has dtype {dtype}, for which fused_rnn has no kernel")
    if device.type not in KERNEL_DEVICES[operator]:
        raise NotImplementedError(f"input is on device {device}, for which fused_rnn has no kernel")


def check_epilogue(input: Tensor, activation: str | None, residual: Tensor | None) -> None:
    """Check what a masked convolution is to do with its sums; the operator checks the sizes."""
    check_activation(activation)
    if residual is not None and residual.dim() != input.dim():
        raise RuntimeError(f"Expected residual to be {input.dim()}D as input is, got {residual.dim()}D instead")


def check_activation(activation: str | None) -> None:
    """Check that a masked convolution has such an activation.

    Raises:
        ValueError: it is unknown.
    """
    if activation not in (None, "relu", "gated"):
        raise ValueError(f"activation must be None, 'relu' or 'gated', got {activation!r}")


def check_residual(input: Tensor, residual: Tensor) -> None:
    """Check that a residual has the dtype and device of the input."""
    if residual.device != input.device:
        raise RuntimeError(f"input is on {input.device}, but residual is on {residual.device}")
    if residual.dtype != input.dtype:
        raise RuntimeError(f"Input type ({input.dtype}) and residual type ({residual.dtype}) should be the same")
