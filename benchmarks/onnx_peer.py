"""ONNX Runtime as a peer: the same network as an ONNX model with the same weights. It only infers."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from benchmarks.cases import GATES, RecurrentCase
from benchmarks.problem import Compute, Outputs, Peer

if TYPE_CHECKING:
    from onnx import NodeProto, TensorProto

ONNX_RUNTIME = "ONNX Runtime"
OPSET = 17
IR_VERSION = 8
# Where ONNX's gates lie in torch.nn's order: i, o, f, g from i, f, g, o; z, r, n from r, z, n.
GATE_ORDER = {"LSTM": (0, 3, 1, 2), "GRU": (1, 0, 2)}


def onnx_is_installed() -> bool:
    """Whether the `bench` extra with onnx and onnxruntime is there."""
    return find_spec("onnx") is not None and find_spec("onnxruntime") is not None


def onnx_peer(case: RecurrentCase, weights: Sequence[Tensor], input: Tensor) -> Peer:
    """A session with as many threads as torch has, made when it is timed and gone afterwards: its threads spin.

    Args:
        case: The sizes.
        weights: All weights in torch.nn's order.
        input: `[time, batch, input_size]`.

    Returns:
        The peer.
    """
    return Peer(ONNX_RUNTIME, lambda _: _session(_model(case, weights), input), modes=("forward",), alone=True)


def _session(model: bytes, input: Tensor) -> Compute:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    feed = {"input": input.detach().numpy()}

    def compute() -> Outputs:
        return tuple(torch.from_numpy(value) for value in session.run(None, feed))

    return compute


def _model(case: RecurrentCase, weights: Sequence[Tensor]) -> bytes:
    """The network as torch's own exporter would write it: an LSTM or GRU node a layer, directions joined after each."""
    from onnx import TensorProto, helper

    states = ("h", "c") if case.kind == "LSTM" else ("h",)
    nodes: list[NodeProto] = []
    constants: list[TensorProto] = [_constant("shape", torch.tensor([0, 0, -1]))]
    layer_input = "input"
    layer_weights = len(weights) // case.num_layers
    for layer in range(case.num_layers):
        own = _stack_directions(case, weights[layer * layer_weights : (layer + 1) * layer_weights])
        names = [f"{name}{layer}" for name in ("W", "R", "B")]
        constants += [_constant(name, tensor) for name, tensor in zip(names, own, strict=True)]
        attributes: dict[str, Any] = {"hidden_size": case.hidden_size}
        attributes["direction"] = "bidirectional" if case.bidirectional else "forward"
        if case.kind == "GRU":
            attributes["linear_before_reset"] = 1  # the reset gate after the product, as in torch.nn
        results = [f"raw{layer}", *(f"{state}{layer}" for state in states)]
        nodes.append(helper.make_node(case.kind, [layer_input, *names], results, **attributes))
        layer_input = f"output{layer}"
        # [time, directions, batch, hidden] -> [time, batch, directions * hidden]
        nodes.append(helper.make_node("Transpose", [results[0]], [f"turned{layer}"], perm=[0, 2, 1, 3]))
        nodes.append(helper.make_node("Reshape", [f"turned{layer}", "shape"], [layer_input]))
    for state in states:
        parts = [f"{state}{layer}" for layer in range(case.num_layers)]
        nodes.append(helper.make_node("Concat", parts, [f"{state}_n"], axis=0))
    outputs = [layer_input, *(f"{state}_n" for state in states)]
    graph = helper.make_graph(
        nodes,
        "recurrent",
        [helper.make_tensor_value_info("input", TensorProto.FLOAT, [case.time, case.batch, case.input_size])],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in outputs],
        constants,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION)
    return bytes(model.SerializeToString())


def _constant(name: str, tensor: Tensor) -> TensorProto:
    from onnx import numpy_helper

    return numpy_helper.from_array(tensor.detach().numpy(), name)


def _stack_directions(case: RecurrentCase, weights: Sequence[Tensor]) -> tuple[Tensor, Tensor, Tensor]:
    """ONNX's W `[directions, gates * hidden, input]`, R `[.., hidden]` and B `[directions, 2 * gates * hidden]`."""

    def reorder(tensor: Tensor) -> Tensor:
        gates = tensor.detach().chunk(GATES[case.kind])
        return torch.cat([gates[gate] for gate in GATE_ORDER[case.kind]])

    each = len(weights) // case.directions
    directions = [
        [reorder(weight) for weight in weights[start : start + each]] for start in range(0, len(weights), each)
    ]
    return (
        torch.stack([weight_ih for weight_ih, _, _, _ in directions]),
        torch.stack([weight_hh for _, weight_hh, _, _ in directions]),
        torch.stack([torch.cat(biases) for _, _, *biases in directions]),
    )
