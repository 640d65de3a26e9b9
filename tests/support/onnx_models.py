"""ONNX models of one LSTM, GRU or RNN node, for the tests of from_onnx."""

from collections.abc import Sequence
from typing import Any

import numpy
import pytest
from cases import structure_of

onnx: Any = pytest.importorskip("onnx", reason="onnx is not installed: pip install onnx")

TIME, BATCH, INPUT, HIDDEN = 5, 3, 4, 6


def node_model(
    kind: str,
    direction: str = "forward",
    bias: bool = True,
    sequence_lens: bool = False,
    name: str = "node",
    extra: Sequence[str] = (),
    constants: dict[str, numpy.ndarray] | None = None,
    **attributes: Any,
) -> Any:
    """Return a model of one node, with random weights, and with states and lengths as inputs or as ``constants``.

    Their names are h and c, and lengths if ``sequence_lens``; ``extra`` are the names of the inputs after the states.
    """
    op_type, cell = kind.partition("_")[0], structure_of(kind)
    directions, size = 2 if direction == "bidirectional" else 1, cell.gates * HIDDEN
    generator = numpy.random.default_rng(1)
    shapes: dict[str, tuple[int, ...]] = {"W": (directions, size, INPUT), "R": (directions, size, HIDDEN)}
    shapes |= {"B": (directions, 2 * size)} if bias else {}
    weights = {name: generator.normal(size=shape).astype("f4") for name, shape in shapes.items()} | (constants or {})
    states = ["h", "c"][: cell.states]
    if kind == "GRU":
        attributes = {"linear_before_reset": 1, **attributes}
    if kind == "RNN_RELU":
        attributes = {"activations": ["Relu"] * directions, **attributes}
    node = onnx.helper.make_node(
        op_type,
        ["X", "W", "R", "B" if bias else "", "lengths" if sequence_lens else "", *states, *extra],
        ["Y", *(f"{state}_n" for state in states)],
        name=name,
        hidden_size=HIDDEN,
        direction=direction,
        **attributes,
    )
    real, whole = onnx.TensorProto.FLOAT, onnx.TensorProto.INT32
    inputs: list[Any] = [("X", real, (TIME, BATCH, INPUT))]
    inputs += [("lengths", whole, (BATCH,))] if sequence_lens and "lengths" not in weights else []
    inputs += [(state, real, (directions, BATCH, HIDDEN)) for state in states if state not in weights]
    graph = onnx.helper.make_graph(
        [node],
        "graph",
        [onnx.helper.make_tensor_value_info(*each) for each in inputs],
        [onnx.helper.make_tensor_value_info(each, real, None) for each in node.output],
        [onnx.numpy_helper.from_array(array, each) for each, array in weights.items()],
    )
    return onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=8)
