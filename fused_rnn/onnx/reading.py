"""Makes layers of this package from the LSTM, GRU and RNN nodes of an ONNX model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, cast

import numpy
import torch
from torch import Tensor

from fused_rnn.foreign import Kind, Layer, Network, Weights, layer_of, reorder
from fused_rnn.modules import Reversed, WithDefaults
from fused_rnn.onnx.gates import FROM_ONNX
from fused_rnn.onnx.graphs import Located, constant, locate, without_functions

if TYPE_CHECKING:
    from onnx import ModelProto, NodeProto

# The activations of one direction that our layers can compute, ONNX's default first.
ACTIVATIONS: dict[Kind, list[list[str]]] = {
    "LSTM": [["sigmoid", "tanh", "tanh"]],
    "GRU": [["sigmoid", "tanh"]],
    "RNN": [["tanh"], ["relu"]],
}
# The inputs of an LSTM node, in order; those of a GRU or an RNN end before initial_c.
INPUTS = ("X", "W", "R", "B", "sequence_lens", "initial_h", "initial_c", "P")
# How many initial states each kind has: initial_h, and for an LSTM initial_c.
STATES: dict[Kind, int] = {"LSTM": 2, "GRU": 1, "RNN": 1}
KNOWN_ATTRIBUTES = {"activations", "direction", "hidden_size", "input_forget", "layout", "linear_before_reset"}


def from_onnx(model: ModelProto, node: str | NodeProto | None = None) -> Layer | Reversed | WithDefaults:
    """Make a layer of this package from an LSTM, GRU or RNN node of an ONNX model.

    The output has torch.nn's shape, ``[time, batch, directions * hidden_size]``, where ONNX has ``[time, directions,
    batch, hidden_size]``; with ``layout=1`` the layer is ``batch_first``. The caller passes to the layer what the node
    gets as ``sequence_lens``, ``initial_h`` and ``initial_c``, unless these are constants of the model.

    Nodes are found in the branches of If and the bodies of Loop and Scan too, and in the model's functions, which are
    inlined. There a node's path names it: ``"if_1/then_branch/lstm"`` is the node ``lstm`` in the attribute
    ``then_branch`` of the node ``if_1``. A node without a name is called by its first output.

    Args:
        model: the model, as ``onnx.load`` returns it.
        node: the node, its path, its name, or the name of its first output; None if the model has only one LSTM, GRU or
            RNN.

    Returns:
        A layer with a copy of the node's weights, in their dtype. For a GRU with ``linear_before_reset=0``, ONNX's
        default, it is a :class:`fused_rnn.modules.GRUResetBefore`, for which there is no kernel. With
        ``direction="reverse"`` it is inside a :class:`fused_rnn.modules.Reversed`, which runs it backwards in time.
        Where ``sequence_lens`` is constant, or an initial state is constant and not zero, a
        :class:`fused_rnn.modules.WithDefaults` around it holds these constants.

    Raises:
        ValueError: there is no such node, or several; its weights are not constant; or it computes something else,
            because of other activations (an RNN must have tanh or ReLU, the same in both directions), peepholes other
            than zero, ``clip`` or ``input_forget``. Quantized nodes, such as DynamicQuantizeLSTM, cannot be read:
            convert the model that they were made from.

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

    model = without_functions(model)
    found = locate(model, node)
    kind = cast(Kind, found.node.op_type)
    attributes = {attribute.name: helper.get_attribute_value(attribute) for attribute in found.node.attribute}
    direction = attributes.get("direction", b"forward").decode()
    directions = 2 if direction == "bidirectional" else 1
    network = _network(kind, attributes, directions)
    inputs = _Inputs(model, found)
    if inputs.given("P") and ((peepholes := inputs.constant("P")) is None or peepholes.any()):
        raise ValueError(f"node {found.path!r} has peepholes (input P), which have no counterpart here")

    def parts(name: str) -> tuple[Tensor, ...]:
        array = inputs.constant(name)
        if array is None:
            raise ValueError(f"node {found.path!r} must have a constant {name}, {inputs.source(name)}")
        if len(array) != directions:
            raise ValueError(f"node {found.path!r} with direction={direction!r} has {name} of shape {array.shape}")
        return _tensor(array).unbind()

    biases: Sequence[Tensor | None] = parts("B") if inputs.given("B") else [None] * directions
    weights = [_weights(kind, *each) for each in zip(parts("W"), parts("R"), biases, strict=True)]
    batch_first = attributes.get("layout", 0) == 1
    layer: Any = layer_of(network, weights, batch_first)
    if direction == "reverse":
        layer = Reversed(layer)
    states, lengths = inputs.states(batch_first), inputs.constant("sequence_lens")
    if states or lengths is not None:
        return WithDefaults(layer, states, None if lengths is None else torch.from_numpy(lengths.astype("int64")))
    return layer


class _Inputs:
    """The inputs of an LSTM, GRU or RNN node, by their names in ONNX."""

    def __init__(self, model: ModelProto, found: Located) -> None:
        self.model, self.found = model, found
        self.names = dict(zip(INPUTS, found.node.input, strict=False))

    def given(self, name: str) -> bool:
        """Return whether the node has this input."""
        return bool(self.names.get(name))

    def constant(self, name: str) -> numpy.ndarray | None:
        """Return the value of an input, or None if the node does not have it or it depends on the model's inputs."""
        return constant(self.model, self.found.scope, self.names.get(name, ""))

    def source(self, name: str) -> str:
        """Return what an input that is not constant is instead, for an error message."""
        return f"but {self.names[name]!r} depends on inputs" if self.given(name) else "but has none"

    def states(self, batch_first: bool) -> list[Tensor]:
        """Return the constant initial states, in torch.nn's shape; an empty list if they are zero or not constant.

        Raises:
            ValueError: one state is constant and not zero, and the other depends on the model's inputs.
        """
        names = [name for name in ("initial_h", "initial_c") if self.given(name)]
        values = {name: self.constant(name) for name in names}
        fixed = {name: value for name, value in values.items() if value is not None}
        if not any(value.any() for value in fixed.values()):
            return []
        if len(fixed) < len(names):
            raise ValueError(
                f"node {self.found.path!r} has a constant {', '.join(fixed)} other than zero, while its other initial "
                "state depends on inputs: a layer takes both from the caller or none"
            )
        shape = next(iter(fixed.values())).shape
        all_names = ("initial_h", "initial_c")[: STATES[cast(Kind, self.found.node.op_type)]]
        states = [fixed.get(name, numpy.zeros(shape, next(iter(fixed.values())).dtype)) for name in all_names]
        tensors = [_tensor(state) for state in states]
        return [state.transpose(0, 1).contiguous() for state in tensors] if batch_first else tensors


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


def _tensor(array: numpy.ndarray) -> Tensor:
    """Return a tensor with a copy of an array, which may be of a bfloat16 that torch does not know."""
    if array.dtype.name == "bfloat16":
        return torch.from_numpy(array.view("int16").copy()).view(torch.bfloat16)
    return torch.from_numpy(array.copy())


def _weights(kind: Kind, W: Tensor, R: Tensor, B: Tensor | None) -> Weights:
    """Return one direction's weights in the layout of torch.nn."""
    order = FROM_ONNX[kind]
    if B is None:
        return reorder(W, order), reorder(R, order), None, None
    bias_ih, bias_hh = B.chunk(2)
    return reorder(W, order), reorder(R, order), reorder(bias_ih, order), reorder(bias_hh, order)
