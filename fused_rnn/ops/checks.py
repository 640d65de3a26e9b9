"""The operators' checks of their arguments for the fake kernels, which compute only shapes.

csrc/ops/ checks the arguments of every call that computes values. Fake kernels are called for tensors on the device
meta, and while torch.compile and torch.export trace, when sizes may be symbols, which C++ cannot compare. So these
functions state the conditions on shapes, dtypes and devices again, with the same messages; the tests of the one run
for the other.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from fused_rnn.ops.cells import CELLS
from fused_rnn.ops.shapes import accumulation_dtype, directions_of, gates_dtype

KERNEL_DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)


def require(condition: bool, message: str) -> None:
    """Raise a RuntimeError unless ``condition`` holds."""
    if not condition:
        raise RuntimeError(message)


def check_dtype(input: Tensor) -> None:
    """Check that there are kernels for the dtype of ``input``."""
    if input.dtype not in KERNEL_DTYPES:
        raise NotImplementedError(f"input must be float32, float64, bfloat16 or float16, got {input.dtype}")


def check_tensor(tensor: Tensor, name: str, rank: int, input: Tensor) -> None:
    """Check that a tensor has ``rank`` dimensions and the dtype and device of ``input``."""
    require(tensor.dim() == rank, f"{name} must have {rank} dimensions, got shape {list(tensor.shape)}")
    require(tensor.device == input.device, f"{name} is on {tensor.device}, but input is on {input.device}")
    require(tensor.dtype == input.dtype, f"{name} has dtype {tensor.dtype}, but input has dtype {input.dtype}")


def check_shape(tensor: Tensor, name: str, expected: Sequence[int]) -> None:
    """Check the shape of a tensor."""
    require(
        tuple(tensor.shape) == tuple(expected), f"{name} must have shape {list(expected)}, got {list(tensor.shape)}"
    )


def check_layer(
    cell: str,
    input: Tensor,
    states: Sequence[Tensor],
    weights: Sequence[Tensor],
    batch_sizes: Tensor | None,
    lengths: Tensor | None,
    resets: Tensor | None,
    reset_states: Sequence[Tensor],
) -> None:
    """Check the arguments of a recurrent layer, except the values of ``batch_sizes`` and ``lengths``."""
    if cell not in CELLS:
        raise ValueError(f"cell must be one of {', '.join(CELLS)}, got '{cell}'")
    check_dtype(input)
    require(
        batch_sizes is None or lengths is None,
        "lengths are for padded input, batch_sizes for packed input: give one of both",
    )
    one_step = len(states) > 0 and states[0].dim() == 2
    require(
        not one_step or (batch_sizes is None and lengths is None),
        "one step, with h0 of 2 dimensions, has no batch_sizes or lengths",
    )
    check_tensor(input, "input", 2 if one_step or batch_sizes is not None else 3, input)
    _check_states(cell, input, states, one_step)
    batch = states[0].size(-2)
    if batch_sizes is None:
        require(input.size(-2) == batch, f"h0 must have input's batch size {input.size(-2)}, got {batch}")
        require(one_step or input.size(0) > 0, "input must have at least one time step")
    else:
        on_cpu = batch_sizes.dim() == 1 and batch_sizes.dtype == torch.int64 and batch_sizes.device.type == "cpu"
        require(on_cpu, "batch_sizes must be a one-dimensional int64 tensor on the CPU")
        require(batch_sizes.size(0) > 0, "input must have at least one time step")
    sizes = states[0].size(-1), states[-1].size(-1)
    # A cell may have no hidden units, as in torch.nn.
    require(
        (sizes[0] > 0 and sizes[1] > 0) or (one_step and sizes[0] == 0 and sizes[1] == 0),
        f"the states must not be empty, got shape {list(states[0].shape)}",
    )
    _check_weights(cell, input, states, weights)
    if lengths is not None:
        require(
            lengths.dim() == 1 and lengths.size(0) == batch and lengths.dtype == torch.int64,
            f"lengths must be int64 of shape [batch] = [{batch}], got {lengths.dtype} of shape {list(lengths.shape)}",
        )
        require(lengths.device == input.device, f"lengths is on {lengths.device}, but input is on {input.device}")
    if resets is not None or reset_states:
        _check_resets(input, states, batch_sizes, resets, reset_states)


def _check_resets(
    input: Tensor,
    states: Sequence[Tensor],
    batch_sizes: Tensor | None,
    resets: Tensor | None,
    reset_states: Sequence[Tensor],
) -> None:
    if resets is None:
        raise ValueError("reset_states are given without resets")
    if states[0].dim() == 2:
        raise ValueError("one step, with h0 of 2 dimensions, has no resets")
    rows = input.shape[:-1]
    if resets.dtype != torch.bool:
        raise TypeError(f"resets must be bool, got {resets.dtype}")
    if resets.shape != rows:
        raise ValueError(f"resets must have shape {list(rows)}, got {list(resets.shape)}")
    if resets.device != input.device:
        raise ValueError(f"resets is on {resets.device}, but input is on {input.device}")
    if reset_states and len(reset_states) != len(states):
        raise ValueError(f"reset_states must have {len(states)} tensors, got {len(reset_states)}")
    time = (input if batch_sizes is None else batch_sizes).size(0)
    for index, (reset_state, state) in enumerate(zip(reset_states, states, strict=bool(reset_states))):
        shape = [time, *state.shape] if reset_states[0].dim() > 3 else list(state.shape)
        if list(reset_state.shape) != shape:
            raise ValueError(f"reset_states[{index}] must have shape {shape}, got {list(reset_state.shape)}")
        check_tensor(reset_state, "a tensor of reset_states", len(shape), input)


def _check_states(cell: str, input: Tensor, states: Sequence[Tensor], one_step: bool) -> None:
    expected = CELLS[cell].states
    require(len(states) == expected, f"{cell} has {expected} states, got {len(states)}")
    h0 = states[0]
    check_tensor(h0, "h0", 2 if one_step else 3, input)
    require(one_step or h0.size(0) in (1, 2), f"h0 must have 1 or 2 directions, got shape {list(h0.shape)}")
    for index, state in enumerate(states[1:], 1):
        name = "c0" if expected == 2 else f"state {index}"
        check_tensor(state, name, h0.dim(), input)
        require(
            state.shape[:-1] == h0.shape[:-1] and state.size(-1) == states[1].size(-1),
            f"{name} must have shape {list(h0.shape)} but for the last dimension, got {list(state.shape)}",
        )


def _check_weights(cell: str, input: Tensor, states: Sequence[Tensor], weights: Sequence[Tensor]) -> None:
    output_size, hidden_size = states[0].size(-1), states[-1].size(-1)
    directions = int(directions_of(states[0]))  # a number, which it is also where sizes are symbols
    each, rest = divmod(len(weights), directions)
    require(
        rest == 0 and each in CELLS[cell].weight_counts,
        "weights must be weight_ih, weight_hh, with biases bias_ih, bias_hh, with a projection (LSTM only) weight_hr, "
        f"for each of {directions} directions; got {len(weights)} tensors",
    )
    projected = each % 2 == 1
    require(
        projected or output_size == hidden_size,
        f"h0 and c0 must have the same size without a projection, got {output_size} and {hidden_size}",
    )
    rows = CELLS[cell].gates * hidden_size
    shapes: dict[str, tuple[int, ...]] = {"weight_ih": (rows, input.size(-1)), "weight_hh": (rows, output_size)}
    if each >= 4:
        shapes |= {"bias_ih": (rows,), "bias_hh": (rows,)}
    if projected:
        shapes["weight_hr"] = (output_size, hidden_size)
    for first in range(0, len(weights), each):
        for (name, shape), weight in zip(shapes.items(), weights[first : first + each], strict=True):
            check_tensor(weight, name, len(shape), input)
            check_shape(weight, name, shape)


def check_gradients(
    cell: str,
    grad_output: Tensor | None,
    grad_final_states: Sequence[Tensor | None],
    grad_history: Sequence[Tensor | None],
    input: Tensor,
    states: Sequence[Tensor],
    output: Tensor | None,
    gates: Tensor,
    history: Sequence[Tensor],
) -> None:
    """Check what :func:`fused_rnn.ops.recurrent_backward` takes besides the arguments of a checked layer."""
    count, cells = len(states), len(states) - 1
    counts = len(grad_final_states), len(grad_history), len(history)
    require(
        counts == (count, cells, cells),
        f"grad_final_states, grad_history and history must have {count}, {cells} and {cells} tensors, "
        f"got {counts[0]}, {counts[1]} and {counts[2]}",
    )
    directions, hidden_size = directions_of(states[0]), states[-1].size(-1)
    output_shape = (*input.shape[:-1], directions * states[0].size(-1))
    rows = math.prod(input.shape[:-1])
    wide = accumulation_dtype(input.dtype)

    def check(tensor: Tensor | None, name: str, shape: Sequence[int], dtype: torch.dtype) -> None:
        if tensor is None:
            return
        check_shape(tensor, name, shape)
        require(tensor.device == input.device, f"{name} is on {tensor.device}, but input is on {input.device}")
        require(
            tensor.dtype == dtype,
            f"{name} has dtype {tensor.dtype}, but must have {dtype} for an input of {input.dtype}",
        )

    check(grad_output, "grad_output", output_shape, input.dtype)
    for gradient, state in zip(grad_final_states, states, strict=True):
        check(gradient, "a tensor of grad_final_states", state.shape, input.dtype)
    time = input.size(0) if input.dim() == 3 else 1  # how many steps a packed input has is not known here
    require(output is not None or time == 1, f"output may be None only if there is one time step, got {time}")
    check(output, "output", output_shape, input.dtype)
    check(gates, "gates", (directions, rows, CELLS[cell].sums * hidden_size), gates_dtype(input))
    for gradient, values in zip(grad_history, history, strict=True):
        dtype = values.dtype if values.dtype == input.dtype else wide  # narrow on a GPU
        check(gradient, "a tensor of grad_history", (directions, rows, hidden_size), dtype)
        check(values, "a tensor of history", (directions, rows, hidden_size), dtype)


def check_masked_conv2d(
    input: Tensor, weight: Tensor, bias: Tensor | None, data_channels: int, dilation: Sequence[int]
) -> None:
    """Check the arguments of a masked convolution, except the type of its mask."""
    check_dtype(input)
    require(
        input.dim() == 4,
        f"Expected 3D (unbatched) or 4D (batched) input to masked_conv2d, but got input of size: {list(input.shape)}",
    )
    require(weight.dim() == 4, f"Expected 4D weight for masked_conv2d, but got weight of size: {list(weight.shape)}")
    _check_like_input(weight, "weight", input)
    out_channels, in_channels, height, width = weight.shape
    if height % 2 == 0 or width % 2 == 0:
        raise ValueError(f"kernel_size must be odd, got ({height}, {width})")
    if data_channels < 1:
        raise ValueError(f"data_channels must be positive, got {data_channels}")
    if data_channels > 1 and (data_channels > in_channels or data_channels > out_channels):
        raise ValueError(
            f"data_channels must not exceed in_channels and out_channels, got data_channels={data_channels}, "
            f"in_channels={in_channels}, out_channels={out_channels}"
        )
    require(
        len(dilation) == 2,
        f"expected dilation to be a single integer value or a list of 2 values, got {list(dilation)}",
    )
    require(dilation[0] > 0 and dilation[1] > 0, "non-positive dilation is not supported")
    size = list(weight.shape)
    require(out_channels > 0, f"expected weight to be at least 1 at dimension 0, but got weight of size {size} instead")
    require(
        input.size(1) == in_channels,
        f"Given weight of size {size}, expected input{list(input.shape)} to have {in_channels} channels, "
        f"but got {input.size(1)} channels instead",
    )
    require(
        input.size(2) > 0 and input.size(3) > 0,
        f"Expected input to have height and width, but got input of size {list(input.shape)}",
    )
    if bias is not None:
        require(
            bias.dim() == 1 and bias.size(0) == out_channels,
            f"Given weight of size {size}, expected bias to be 1-dimensional with {out_channels} elements, "
            f"but got bias of size {list(bias.shape)} instead",
        )
        _check_like_input(bias, "bias", input)


def check_epilogue(input: Tensor, weight: Tensor, residual: Tensor | None, data_channels: int, activation: str) -> int:
    """Check the further arguments of a fused masked convolution, and return the number of its output's channels."""
    if activation not in ("none", "relu", "gated"):
        raise ValueError(f"activation must be 'none', 'relu' or 'gated', got {activation!r}")
    channels = weight.size(0)
    if activation == "gated":
        if channels % (2 * data_channels) != 0:
            raise ValueError(
                "with activation 'gated', out_channels must be a multiple of 2 * data_channels, "
                f"got out_channels={channels} and data_channels={data_channels}"
            )
        channels //= 2
    if residual is not None:
        check_images(residual, "residual", input, channels)
    return channels


def check_gated_activation(input: Tensor, data_channels: int) -> None:
    """Check the arguments of a gated activation."""
    check_dtype(input)
    if input.dim() != 4:
        raise ValueError(f"input must have 4 dimensions, [batch, channels, height, width], got {input.dim()}")
    if data_channels < 1 or input.size(1) % (2 * data_channels) != 0:
        raise ValueError(
            f"the channels of input must be a multiple of 2 * data_channels, got {input.size(1)} channels and "
            f"data_channels={data_channels}"
        )


def check_images(images: Tensor, name: str, input: Tensor, channels: int) -> None:
    """Check that images have the size of the input's, ``channels`` channels, and the dtype and device of the input."""
    expected = [input.size(0), channels, input.size(2), input.size(3)]
    require(
        list(images.shape) == expected,
        f"Expected {name} of size {expected}, but got {name} of size {list(images.shape)}",
    )
    _check_like_input(images, name, input)


def _check_like_input(tensor: Tensor, name: str, input: Tensor) -> None:
    require(
        tensor.dtype == input.dtype,
        f"Input type ({input.dtype}) and {name} type ({tensor.dtype}) should be the same",
    )
    require(tensor.device == input.device, f"input is on {input.device}, but {name} is on {tensor.device}")
