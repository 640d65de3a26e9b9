"""What torch.onnx.export writes for the operators of this package: nodes that any ONNX runtime knows."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy
import torch

from fused_rnn.foreign import Kind
from fused_rnn.onnx.gates import TO_ONNX
from fused_rnn.reference.masked_conv2d import mask

# For each cell the operator of ONNX, and the attributes that make it compute the same; activations of one direction.
NODES: dict[str, tuple[Kind, dict[str, Any]]] = {
    "lstm": ("LSTM", {}),
    "gru": ("GRU", {"linear_before_reset": 1}),
    "rnn_tanh": ("RNN", {"activations": ["Tanh"]}),
    "rnn_relu": ("RNN", {"activations": ["Relu"]}),
}


def translation_table() -> dict[Any, Callable[..., Any]]:
    """Return what to give to torch.onnx.export, with ``dynamo=True``, as ``custom_translation_table``.

    LSTM, GRU and RNN layers and cells become LSTM, GRU and RNN nodes, a layer each, and MaskedConv2d becomes a Conv
    node. Time and batch may be dynamic, and ``lengths`` are ONNX's ``sequence_lens``. ONNX has no PackedSequence and no
    projection (``proj_size``): these raise an error. Nor has it an LSTM's c of every step (``return_states``): a model
    that uses them is written, but raises an error when it is run. Without the table torch.onnx.export refuses all
    layers of this package.

    Returns:
        For each operator the function that writes its nodes.

    Raises:
        ModuleNotFoundError: onnxscript is not installed, which torch.onnx.export needs too.

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
    _opset()  # says at once if onnxscript is missing
    operators = torch.ops.fused_rnn
    writers = {
        operators.recurrent.default: _recurrent,
        operators.masked_conv2d.default: _masked_conv2d,
    }
    return {operator: _translation(operator, write) for operator, write in writers.items()}


def _translation(operator: Any, write: Callable[[dict[str, Any]], Any]) -> Callable[..., Any]:
    """Return a function of the operator's arguments that calls ``write`` with their names, as its schema has them."""
    names = [argument.name for argument in operator._schema.arguments]

    def translate(*args: Any) -> Any:
        return write(dict(zip(names, args, strict=True)))

    return translate


def _recurrent(given: dict[str, Any]) -> tuple[Any, ...]:
    """Write the node of one recurrent layer; see :func:`fused_rnn.ops.recurrent` for what is given."""
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
        turned = op.Transpose(output, perm=[0, 2, 1, 3])
        output = op.Reshape(turned, op.Constant(value_ints=[0, 0, -1]))
    # Where an operator of PyTorch returns a list of tensors, the exporter expects one value, of ONNX's type sequence.
    # Its optimizer takes the final states out of theirs again, and drops that of the history, which stays empty.
    return output, op.SequenceConstruct(*finals), _nothing(), op.SequenceEmpty()


def _stack_weights(kind: Kind, weights: Sequence[Any], directions: int) -> tuple[Any, Any, Any]:
    """Return ONNX's W, R and B, ``[directions, gates * hidden_size, ...]``, the last one None without biases."""
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
    """Write a Conv node; see :func:`fused_rnn.ops.masked_conv2d` for what is given."""
    op = _opset()
    weight, dilation = given["weight"], list(given["dilation"])
    out_channels, in_channels, *kernel = map(int, weight.shape)
    active = mask(out_channels, in_channels, (kernel[0], kernel[1]), given["mask_type"], given["data_channels"])
    zero = op.CastLike(op.Constant(value_float=0.0), weight)
    padding = [size // 2 * distance for size, distance in zip(kernel, dilation, strict=True)]
    weight = op.Where(_constant(active.numpy()), weight, zero)
    return op.Conv(given["input"], weight, given["bias"], dilations=dilation, kernel_shape=kernel, pads=padding * 2)


def _opset() -> Any:
    """The operators of ONNX, imported late: onnxscript is needed for nothing else."""
    from onnxscript import opset18

    return opset18


def _constant(array: numpy.ndarray) -> Any:
    from onnx import numpy_helper

    return _opset().Constant(value=numpy_helper.from_array(array))


def _nothing() -> Any:
    """What an operator would save for its backward pass, which an ONNX model does not have."""
    return _constant(numpy.zeros(0, numpy.float32))
