"""What torch.onnx.export writes for the operators of this package: nodes that any ONNX runtime knows."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy
import torch

from fused_rnn.foreign import Kind
from fused_rnn.onnx.gates import TO_ONNX
from fused_rnn.reference.masked_conv2d import mask


def translation_table() -> dict[Any, Callable[..., Any]]:
    """Return what to give to torch.onnx.export, with ``dynamo=True``, as ``custom_translation_table``.

    LSTM and GRU layers and cells become LSTM and GRU nodes, a layer each, and MaskedConv2d becomes a Conv node. Time
    and batch may be dynamic, and ``lengths`` are ONNX's ``sequence_lens``. ONNX has no PackedSequence and no projection
    (``proj_size``): these raise an error. Without the table torch.onnx.export refuses all layers of this package.

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
        operators.lstm.default: _lstm,
        operators.gru.default: _gru,
        operators.masked_conv2d.default: _masked_conv2d,
    }
    return {operator: _translation(operator, write) for operator, write in writers.items()}


def _translation(operator: Any, write: Callable[[dict[str, Any]], Any]) -> Callable[..., Any]:
    """Return a function of the operator's arguments that calls ``write`` with their names, as its schema has them."""
    names = [argument.name for argument in operator._schema.arguments]

    def translate(*args: Any) -> Any:
        return write(dict(zip(names, args, strict=True)))

    return translate


def _lstm(given: dict[str, Any]) -> tuple[Any, ...]:
    """Write an LSTM node; see :func:`fused_rnn.ops.lstm` for what is given."""
    output, h_n, c_n = _layer("LSTM", given, [given["h0"], given["c0"]])
    return output, h_n, c_n, _nothing(), _nothing()


def _gru(given: dict[str, Any]) -> tuple[Any, ...]:
    """Write a GRU node; see :func:`fused_rnn.ops.gru` for what is given."""
    output, h_n = _layer("GRU", given, [given["h0"]], linear_before_reset=1)
    return output, h_n, _nothing()


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


def _layer(kind: Kind, given: dict[str, Any], states: Sequence[Any], **attributes: int) -> tuple[Any, ...]:
    """Write the node of one recurrent layer, and return its output in torch.nn's form and its final states."""
    op = _opset()
    if given["batch_sizes"] is not None:
        raise NotImplementedError("a PackedSequence cannot be exported to ONNX; give the model padded sequences")
    one_step = len(given["h0"].shape) == 2
    if one_step:
        first = op.Constant(value_ints=[0])
        given = given | {"input": op.Unsqueeze(given["input"], first)}
        states = [op.Unsqueeze(state, first) for state in states]
    directions, gates = 1 if one_step else int(given["h0"].shape[0]), len(TO_ONNX[kind])
    weights = given["weights"]
    each = len(weights) // directions
    if each % 2:
        raise NotImplementedError("proj_size cannot be exported: ONNX's LSTM has no projection")
    hidden_size = int(weights[1].shape[-1])
    order = numpy.arange(gates * hidden_size).reshape(gates, hidden_size)[list(TO_ONNX[kind])].flatten()
    sorted_weights = [op.Gather(weight, _constant(order), axis=0) for weight in weights]

    def stack(index: int) -> Any:
        axis = op.Constant(value_ints=[0])
        parts = [op.Unsqueeze(weight, axis) for weight in sorted_weights[index::each]]
        return parts[0] if directions == 1 else op.Concat(*parts, axis=0)

    lengths = given.get("lengths")
    output, *finals = getattr(op, kind)(
        given["input"],
        stack(0),
        stack(1),
        op.Concat(stack(2), stack(3), axis=1) if each == 4 else None,
        None if lengths is None else op.Cast(lengths, to=6),  # 6 is ONNX's int32
        *states,
        hidden_size=hidden_size,
        direction="forward" if directions == 1 else "bidirectional",
        **attributes,
    )
    if one_step:
        finals = [op.Squeeze(state, first) for state in finals]
        return finals[0], *finals
    # [time, directions, batch, hidden] -> [time, batch, directions * hidden]
    turned = op.Transpose(output, perm=[0, 2, 1, 3])
    return op.Reshape(turned, op.Constant(value_ints=[0, 0, -1])), *finals


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
