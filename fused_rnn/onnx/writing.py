"""Translates the operators of this package for torch.onnx.export, into standard nodes that any ONNX runtime knows."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy
import torch

from fused_rnn.foreign import Kind
from fused_rnn.onnx.gates import TO_ONNX
from fused_rnn.reference.masked_conv2d import mask

# For each cell, the ONNX operator and the attributes with which it computes the same; activations are of one direction.
NODES: dict[str, tuple[Kind, dict[str, Any]]] = {
    "lstm": ("LSTM", {}),
    "gru": ("GRU", {"linear_before_reset": 1}),
    "rnn_tanh": ("RNN", {"activations": ["Tanh"]}),
    "rnn_relu": ("RNN", {"activations": ["Relu"]}),
}


def translation_table() -> dict[Any, Callable[..., Any]]:
    """Return the ``custom_translation_table`` for torch.onnx.export with ``dynamo=True``.

    Each layer of an LSTM, GRU or RNN, and each cell, becomes an LSTM, GRU or RNN node, and MaskedConv2d becomes a Conv
    node. Time and batch may be dynamic, and ``lengths`` become ONNX's ``sequence_lens``. ONNX has no PackedSequence and
    no projection (``proj_size``), so these raise an error. Its LSTM does not return c of every step
    (``return_states``): a model that uses it is written, but raises an error when it is run. Without this table
    torch.onnx.export refuses all layers of this package.

    Returns:
        For each operator, the function that writes its nodes.

    Raises:
        ModuleNotFoundError: onnxscript is not installed, which torch.onnx.export needs, too.

    Example:
        >>> import io, torch, fused_rnn
        >>> program = torch.onnx.export(
        ...     fused_rnn.GRU(4, 8).eval(),
        ...     (torch.randn(5, 3, 4),),
        ...     dynamo=True,
        ...     verbose=False,
        ...     custom_translation_table=fused_rnn.onnx.translation_table(),
        ... )
        >>> [node.op_type for node in program.model.graph if node.op_type == "GRU"]
        ['GRU']
    """
    _opset()  # raises the error now if onnxscript is missing
    operators = torch.ops.fused_rnn
    writers = {
        operators.recurrent.default: _recurrent,
        operators.masked_conv2d.default: _masked_conv2d,
    }
    return {operator: _translation(operator, write) for operator, write in writers.items()}


def _translation(operator: Any, write: Callable[[dict[str, Any]], Any]) -> Callable[..., Any]:
    """Return a function of the operator's arguments that passes them to ``write`` by their names in the schema."""
    names = [argument.name for argument in operator._schema.arguments]

    def translate(*args: Any) -> Any:
        return write(dict(zip(names, args, strict=True)))

    return translate


def _recurrent(given: dict[str, Any]) -> tuple[Any, ...]:
    """Write the node of one recurrent layer; ``given`` are the arguments of :func:`fused_rnn.ops.recurrent`."""
    op, (kind, attributes) = _opset(), NODES[given["cell"]]
    if given["batch_sizes"] is not None:
        raise NotImplementedError("a PackedSequence cannot be exported to ONNX; give the model padded sequences")
    input, states, lengths = given["input"], given["states"], given["lengths"]
    one_step = len(states[0].shape) == 2
    if one_step:
        first = op.Constant(value_ints=[0])
        input, *states = (op.Unsqueeze(each, first) for each in (input, *states))
    directions = 1 if one_step else int(given["states"][0].shape[0])
    output, *finals = getattr(op, kind)(
        input,
        *_stack_weights(kind, given["weights"], directions),
        None if lengths is None else op.Cast(lengths, to=6),  # 6 is ONNX's int32
        *states,
        hidden_size=int(given["states"][-1].shape[-1]),
        direction="forward" if directions == 1 else "bidirectional",
        **{name: value * directions if name == "activations" else value for name, value in attributes.items()},
    )
    if one_step:
        finals = [op.Squeeze(state, first) for state in finals]
        output = finals[0]
    else:  # [time, directions, batch, hidden] -> [time, batch, directions * hidden]
        batch_first = op.Transpose(output, perm=[0, 2, 1, 3])
        output = op.Reshape(batch_first, op.Constant(value_ints=[0, 0, -1]))
    # For a list of tensors that an operator of PyTorch returns, the exporter expects one value of ONNX's sequence type.
    # Its optimizer replaces the sequence of final states by the states themselves, and drops the empty history.
    return output, op.SequenceConstruct(*finals), _no_gates(), op.SequenceEmpty()


def _stack_weights(kind: Kind, weights: Sequence[Any], directions: int) -> tuple[Any, Any, Any]:
    """Return ONNX's W, R and B, each ``[directions, gates * hidden_size, ...]``; B is None without biases."""
    op = _opset()
    each = len(weights) // directions
    if each % 2:
        raise NotImplementedError("proj_size cannot be exported: ONNX's LSTM has no projection")
    rows = numpy.arange(int(weights[0].shape[0])).reshape(len(TO_ONNX[kind]), -1)[list(TO_ONNX[kind])].flatten()
    sorted_weights = [op.Gather(weight, _constant(rows), axis=0) for weight in weights]

    def stack(index: int) -> Any:
        axis = op.Constant(value_ints=[0])
        parts = [op.Unsqueeze(weight, axis) for weight in sorted_weights[index::each]]
        return parts[0] if directions == 1 else op.Concat(*parts, axis=0)

    return stack(0), stack(1), op.Concat(stack(2), stack(3), axis=1) if each == 4 else None


def _masked_conv2d(given: dict[str, Any]) -> Any:
    """Write a Conv node; ``given`` are the arguments of :func:`fused_rnn.ops.masked_conv2d`."""
    op = _opset()
    weight, dilation = given["weight"], list(given["dilation"])
    out_channels, in_channels, *kernel = map(int, weight.shape)
    size, mask_type, data_channels = (kernel[0], kernel[1]), given["mask_type"], given["data_channels"]
    active = mask(out_channels, in_channels, size, mask_type, data_channels, device="cpu")
    zero = op.CastLike(op.Constant(value_float=0.0), weight)
    padding = [size // 2 * distance for size, distance in zip(kernel, dilation, strict=True)]
    weight = op.Where(_constant(active.numpy()), weight, zero)
    return op.Conv(given["input"], weight, given["bias"], dilations=dilation, kernel_shape=kernel, pads=padding * 2)


def _opset() -> Any:
    """The operators of ONNX, imported only when used, since the rest of the package does not need onnxscript."""
    from onnxscript import opset18

    return opset18


def _constant(array: numpy.ndarray) -> Any:
    from onnx import numpy_helper

    return _opset().Constant(value=numpy_helper.from_array(array))


def _no_gates() -> Any:
    """An empty tensor in place of the gates saved for backward, since an ONNX model has no backward pass."""
    return _constant(numpy.zeros(0, numpy.float32))
