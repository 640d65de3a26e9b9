"""Makes layers of this package from the LSTM, GRU and RNN nodes of an ONNX model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, cast

import numpy
import torch
from torch import Tensor

from fused_rnn.foreign import Kind, Layer, Network, Weights, layer_of, reorder
from fused_rnn.modules import Reversed
from fused_rnn.onnx.gates import FROM_ONNX

if TYPE_CHECKING:
    from onnx import GraphProto, ModelProto, NodeProto

# The activations of one direction that our layers can compute, ONNX's default first.
ACTIVATIONS: dict[Kind, list[list[str]]] = {
    "LSTM": [["sigmoid", "tanh", "tanh"]],
    "GRU": [["sigmoid", "tanh"]],
    "RNN": [["tanh"], ["relu"]],
}
# The inputs of an LSTM node, in order; those of a GRU or an RNN end before initial_c.
INPUTS = ("X", "W", "R", "B", "sequence_lens", "initial_h", "initial_c", "P")
KNOWN_ATTRIBUTES = {"activations", "direction", "hidden_size", "input_forget", "layout", "linear_before_reset"}


def from_onnx(model: ModelProto, node: str | NodeProto | None = None) -> Layer | Reversed:
    """Make a layer of this package from an LSTM, GRU or RNN node of an ONNX model.

    The output has torch.nn's shape, ``[time, batch, directions * hidden_size]``, where ONNX has ``[time, directions,
    batch, hidden_size]``; with ``layout=1`` the layer is ``batch_first``. The caller passes to the layer what the node
    gets as ``sequence_lens``, ``initial_h`` and ``initial_c``; initial states may not be constants other than zero.

    Args:
        model: the model, as ``onnx.load`` returns it.
        node: the node, its name, or the name of its first output; None if the model has only one LSTM, GRU or RNN.

    Returns:
        A layer with a copy of the node's weights, in their dtype. For a GRU with ``linear_before_reset=0``, ONNX's
        default, it is a :class:`fused_rnn.modules.GRUResetBefore`, for which there is no kernel. With
        ``direction="reverse"`` it is inside a :class:`fused_rnn.modules.Reversed`, which runs it backwards in time.

    Raises:
        ValueError: there is no such node; its weights are not constant; or it computes something else, because of other
            activations (an RNN must have tanh or ReLU, the same in both directions), peepholes, ``clip`` or
            ``input_forget``.

    Example:
        >>> import numpy, torch, fused_rnn
        >>> from onnx import helper, numpy_helper
        >>> node = helper.make_node("LSTM", ["X", "W", "R"], ["Y"], hidden_size=8)
        >>> shapes = {"W": (1, 32, 4), "R": (1, 32, 8)}
        >>> weights = [numpy_helper.from_array(numpy.zeros(shape, "f4"), name) for name, shape in shapes.items()]
        >>> fused_rnn.from_onnx(helper.make_model(helper.make_graph([node], "graph", [], [], weights)))
        LSTM(4, 8, bias=False)
    """
    from onnx import helper

    found = _find(model.graph, node)
    kind = cast(Kind, found.op_type)
    attributes = {attribute.name: helper.get_attribute_value(attribute) for attribute in found.attribute}
    direction = attributes.get("direction", b"forward").decode()
    directions = 2 if direction == "bidirectional" else 1
    network = _network(kind, attributes, directions)
    inputs = dict(zip(INPUTS, found.input, strict=False))
    if inputs.get("P"):
        raise ValueError(f"node {found.name!r} has peepholes (input P), which have no counterpart here")
    for name in ("initial_h", "initial_c"):
        if (state := _evaluate(model, inputs.get(name, ""))) is not None and state.any():
            raise ValueError(f"node {found.name!r} has a constant {name} other than zero, which a layer cannot hold")

    def parts(name: str) -> tuple[Tensor, ...]:
        array = _evaluate(model, inputs[name])
        if array is None:
            raise ValueError(f"node {found.name!r} must have a constant {name}, but {inputs[name]!r} depends on inputs")
        if len(array) != directions:
            raise ValueError(f"node {found.name!r} with direction={direction!r} has {name} of shape {array.shape}")
        return torch.from_numpy(array.copy()).unbind()

    biases: Sequence[Tensor | None] = parts("B") if inputs.get("B") else [None] * directions
    weights = [_weights(kind, *each) for each in zip(parts("W"), parts("R"), biases, strict=True)]
    layer = layer_of(network, weights, attributes.get("layout", 0) == 1)
    return Reversed(layer) if direction == "reverse" else layer


def _find(graph: GraphProto, node: str | NodeProto | None) -> NodeProto:
    """Return the LSTM, GRU or RNN node that ``node`` names or is."""
    found = [each for each in graph.node if each.op_type in FROM_ONNX and each.domain in ("", "ai.onnx")]
    names = ", ".join(repr(each.name or each.output[0]) for each in found) or "none"
    if isinstance(node, str):
        found = [each for each in found if node in (each.name, each.output[0])]
    elif node is not None:
        found = [each for each in found if each == node]
    if len(found) != 1:
        raise ValueError(f"node must name one LSTM, GRU or RNN of the model's graph, which are: {names}; got {node!r}")
    return found[0]


def _network(kind: Kind, attributes: dict[str, Any], directions: int) -> Network:
    """Return the network that a node computes, or raise an error if no layer of ours computes it."""
    allowed = [activations * directions for activations in ACTIVATIONS[kind]]
    given = [name.decode().lower() for name in attributes.get("activations", [])] or allowed[0]
    if given not in allowed:
        raise ValueError(f"activations must be {' or '.join(map(str, allowed))}, got {given}")
    if attributes.get("input_forget", 0):
        raise ValueError("input_forget=1, which couples the gates i and f, has no counterpart here")
    for name in attributes.keys() - KNOWN_ATTRIBUTES:  # clip, and the parameters of other activations
        raise ValueError(f"{name} has no counterpart here")
    return Network(kind, attributes.get("linear_before_reset", 0) != 0, given[0])


def _evaluate(model: ModelProto, name: str) -> numpy.ndarray | None:
    """Return the constant value called ``name``, or None if there is none or it depends on the model's inputs."""
    from onnx import TensorProto, helper, numpy_helper
    from onnx.reference import ReferenceEvaluator

    needed, nodes = {name}, []
    for node in reversed(model.graph.node):
        if needed.intersection(node.output):
            nodes.append(node)
            needed.update(node.input)
    constants = {each.name: each for each in model.graph.initializer if each.name in needed}
    if not name or needed - constants.keys() - {""} - {output for node in nodes for output in node.output}:
        return None
    if name in constants:
        return numpy_helper.to_array(constants[name])
    result = [helper.make_tensor_value_info(name, TensorProto.FLOAT, None)]
    graph = helper.make_graph(nodes[::-1], "constant", [], result, list(constants.values()))
    (value,) = ReferenceEvaluator(helper.make_model(graph, opset_imports=model.opset_import)).run(None, {})
    return numpy.asarray(value)


def _weights(kind: Kind, W: Tensor, R: Tensor, B: Tensor | None) -> Weights:
    """Return one direction's weights in the layout of torch.nn."""
    order = FROM_ONNX[kind]
    if B is None:
        return reorder(W, order), reorder(R, order), None, None
    bias_ih, bias_hh = B.chunk(2)
    return reorder(W, order), reorder(R, order), reorder(bias_ih, order), reorder(bias_hh, order)
