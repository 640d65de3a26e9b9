"""What torch.onnx.export writes for our layers and cells: standard nodes, which any ONNX runtime knows.

While torch.onnx.export runs a model, the functions of this package compute by the operators of ONNX, so that it meets
none of ours. With ``dynamo=True`` a node is an operator of ``torch.onnx.ops``, with ``dynamo=False`` an autograd
function that has a method ``symbolic``. Everything around the node is written in PyTorch.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, NamedTuple, NoReturn

import torch
from torch import Tensor
from torch.autograd import Function

from fused_rnn import reference


class Node(NamedTuple):
    """The node of ONNX that computes one layer."""

    op_type: str
    gates: tuple[int, ...]
    """For each gate in ONNX's order (i, o, f, c for an LSTM, and z, r, h for a GRU), its index in torch.nn's."""
    linear_before_reset: bool = False
    """Whether a GRU's reset gate acts after the recurrent product."""
    activation: str | None = None
    """The activation of an RNN."""


NODES = {
    "lstm": Node("LSTM", (0, 3, 1, 2)),
    "gru": Node("GRU", (1, 0, 2), linear_before_reset=True),
    "gru_reset_before": Node("GRU", (1, 0, 2)),
    "rnn_tanh": Node("RNN", (0,), activation="Tanh"),
    "rnn_relu": Node("RNN", (0,), activation="Relu"),
}
"""The node of each cell; ``gru_reset_before`` is the cell of :class:`fused_rnn.modules.GRUResetBefore`."""


def exports_to_onnx(input: Tensor) -> bool:
    """Whether torch.onnx.export runs the model that calls a function of this package with ``input``."""
    # The usual case is decided by cheap queries, since the last one takes about as long as a small step. In an export
    # with dynamo=True tensors are fake, and with dynamo=False they are traced.
    if torch.compiler.is_compiling() or type(input) is not Tensor or torch._C._get_tracing_state() is not None:
        return _is_in_onnx_export()
    return False


@torch.compiler.assume_constant_result
def _is_in_onnx_export() -> bool:
    """Whether torch.onnx.export runs. TorchDynamo, which it tries when all else fails, would always answer no."""
    return torch.onnx.is_in_onnx_export()


def refuse_packed() -> NoReturn:
    """Raise the error for a PackedSequence."""
    raise NotImplementedError(
        "a PackedSequence cannot be exported to ONNX; give the model padded sequences and lengths"
    )


def recurrent(
    node: Node | None,
    compute: Callable[..., Sequence[Tensor]],
    input: Tensor,
    states: Sequence[Tensor],
    weights: Sequence[Tensor],
    batch_sizes: Tensor | None = None,
    lengths: Tensor | None = None,
    return_states: bool = False,
    resets: Tensor | None = None,
    reset_states: Sequence[Tensor] = (),
) -> tuple[Tensor, ...]:
    """Write one layer, or one step of a cell, as a node.

    Args:
        node: the node; None if ONNX has none for the cell.
        compute: the function that computes the layer otherwise, with the arguments that follow. It is called with
            ``dynamo=False``, where a model's own code may depend on values.
        input: ``[time, batch, input_size]``, or for one step ``[batch, input_size]``.
        states: the initial states, each ``[directions, batch, hidden_size]``, for one step ``[batch, hidden_size]``.
        weights: the weights of all directions, in torch.nn's order.
        batch_sizes: must be None, since a packed input cannot be exported.
        lengths: ``[batch]``, int64, the steps of each sequence; None for all of them.
        return_states: must be False.
        resets: must be None, since ONNX's layers cannot replace their states between two steps.
        reset_states: must be empty.

    Returns:
        The output, ``[time, batch, directions * hidden_size]``, and the final states; for one step all are shaped like
        ``states``.

    Raises:
        NotImplementedError: ONNX has no such layer.
    """
    if node is None:
        raise NotImplementedError("a cell that ONNX does not have cannot be exported")
    if batch_sizes is not None:
        refuse_packed()
    if resets is not None or reset_states:
        raise NotImplementedError(
            "resets cannot be exported to ONNX, whose layers keep their states: export a cell with reset"
        )
    one_step = states[0].dim() == 2
    with _unrecorded():
        if return_states:
            raise NotImplementedError(
                "return_states=True cannot be exported: ONNX's LSTM does not return c of every step"
            )
        directions = 1 if one_step else states[0].size(0)
        hidden_size = weights[1].size(-1)
    if len(weights) // directions % 2:
        raise NotImplementedError("proj_size cannot be exported: ONNX's LSTM has no projection")

    def values() -> tuple[Tensor, ...]:
        """Compute the node's outputs, in the shapes of ONNX."""
        output, *finals = compute(input, states, weights, None, lengths)
        if one_step:
            return output[None, None], *(state[None] for state in finals)
        return output.unflatten(2, (directions, -1)).transpose(1, 2), *finals

    attributes: dict[str, Any] = {
        "hidden_size": hidden_size,
        "direction": "bidirectional" if directions == 2 else "forward",
    }
    if node.linear_before_reset:
        attributes["linear_before_reset"] = 1
    if node.activation is not None:
        attributes["activations"] = [node.activation] * directions
    sequence, initial = input, list(states)
    if one_step:
        sequence, initial = input.unsqueeze(0), [state.unsqueeze(0) for state in states]
    inputs = [
        sequence,
        *_stacked(node.gates, weights, directions, hidden_size),
        None if lengths is None else lengths.to(torch.int32),
        *initial,
    ]
    shapes = [[*sequence.shape[:1], directions, sequence.size(1), hidden_size], *(state.shape for state in initial)]
    if torch.jit.is_tracing():
        output, *finals = TracedNode.apply(node.op_type, attributes, values, *inputs)
    else:
        dtypes = [input.dtype] * len(shapes)
        outputs = torch.onnx.ops.symbolic_multi_out(node.op_type, inputs, attributes, dtypes=dtypes, shapes=shapes)
        output, *finals = (each.to(input.device) for each in outputs)  # they are always on the CPU
    if one_step:
        new = tuple(state.squeeze(0) for state in finals)
        return new[0], *new
    return output.squeeze(1) if directions == 1 else output.transpose(1, 2).flatten(2), *finals


def masked_conv2d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    mask_type: str,
    data_channels: int,
    dilation: tuple[int, int],
    activation: str | None = None,
    residual: Tensor | None = None,
) -> Tensor:
    """Convolve with a weight whose masked entries are replaced by zero; they may be NaN.

    The arguments are those of :func:`fused_rnn.functional.masked_conv2d`, for a batch of images.
    """
    with _unrecorded():
        out_channels, in_channels, height, width = weight.shape
        active = reference.mask(out_channels, in_channels, (height, width), mask_type, data_channels, weight.device)
    padding = (height // 2 * dilation[0], width // 2 * dilation[1])
    weight = torch.where(active, weight, torch.zeros_like(weight))
    output = torch.nn.functional.conv2d(input, weight, bias, padding=padding, dilation=dilation)
    if activation == "relu":
        output = output.relu()
    elif activation == "gated":
        output = reference.gated_activation(output, data_channels)
    return output if residual is None else output + residual


def _stacked(
    gates: Sequence[int], weights: Sequence[Tensor], directions: int, hidden_size: int
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Return ONNX's W, R and B, each ``[directions, gates * hidden_size, ...]``; B is None without biases."""
    each = len(weights) // directions

    def reordered(weight: Tensor) -> Tensor:
        # In contrast to chunks, the exporter computes slices of a weight once and for all.
        parts = [weight[gate * hidden_size : (gate + 1) * hidden_size] for gate in gates]
        return torch.cat(parts) if len(parts) > 1 else weight

    def stack(index: int) -> Tensor:
        return torch.stack([reordered(weight) for weight in weights[index::each]])

    return stack(0), stack(1), torch.cat([stack(2), stack(3)], dim=1) if each == 4 else None


@contextmanager
def _unrecorded() -> Iterator[None]:
    """Do not record what follows in an export with ``dynamo=False``: sizes are numbers, and tensors are constants."""
    state = torch._C._get_tracing_state()
    if state is None:
        yield
        return
    set_state = torch._C._set_tracing_state  # type: ignore[attr-defined]  # not in torch's stubs
    set_state(None)
    try:
        yield
    finally:
        set_state(state)


class TracedNode(Function):
    """A node in an export with ``dynamo=False``, which calls ``symbolic`` for what it has recorded."""

    @staticmethod
    def forward(
        ctx: Any, op_type: str, attributes: dict[str, Any], values: Callable[[], tuple[Tensor, ...]], *inputs: Any
    ) -> tuple[Tensor, ...]:
        """Return the outputs of the node, which ``values`` computes without being recorded."""
        with _unrecorded():
            outputs = values()
        return tuple(output.clone() for output in outputs)  # recorded, as the outputs must be

    @staticmethod
    def symbolic(g: Any, op_type: str, attributes: dict[str, Any], values: Any, *inputs: Any) -> Any:
        """Add the node to the graph ``g``; an input that it does not have is None."""
        typed = {f"{name}_{'i' if isinstance(value, int) else 's'}": value for name, value in attributes.items()}
        absent = partial(torch.onnx.symbolic_helper._optional_input_placeholder_tensor, g)
        given = [absent() if each is None else each for each in inputs]
        # After X, W, R, B and sequence_lens there is an input for each state, and after Y an output.
        return g.op(op_type, *given, **typed, outputs=1 + len(inputs) - 5)
