"""from_onnx finds nodes in branches, loops and functions, and its errors name every node by its path."""

from typing import Any

import numpy
import pytest
import torch
from cases import hx_of
from onnx_models import BATCH, HIDDEN, INPUT, TIME, node_model
from onnx_runtime import assert_agree, infer
from torch import Tensor

import fused_rnn

onnx: Any = pytest.importorskip("onnx", reason="onnx is not installed: pip install onnx")


def float_value(name: str, shape: tuple[int, ...] | None = None) -> Any:
    return onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, shape)


def branch(name: str, suffix: str, node_name: str) -> tuple[Any, list[Any]]:
    """Return a graph whose LSTM reads W of the graph around it, and the initializers that it shares with others.

    R is its own constant, and B comes from a node of its own that negates a value of the graph around it.
    """
    model = node_model("LSTM", name=node_name)
    node, weights = model.graph.node[0], {each.name: each for each in model.graph.initializer}
    node.input[:] = ["X", "W", f"R_{suffix}", f"B_{suffix}", "", "h", "c"]
    node.output[:] = [f"{output}_{suffix}" for output in node.output]
    recurrent = onnx.numpy_helper.to_array(weights["R"]) * (1 if suffix == "then" else -1)
    own = onnx.numpy_helper.from_array(recurrent, f"R_{suffix}")
    negate = onnx.helper.make_node("Neg", ["minus_B"], [f"B_{suffix}"])
    graph = onnx.helper.make_graph([negate, node], name, [], [float_value(name) for name in node.output], [own])
    minus = onnx.numpy_helper.from_array(-onnx.numpy_helper.to_array(weights["B"]), "minus_B")
    return graph, [weights["W"], minus]


def model_of(nodes: list[Any], initializers: list[Any], inputs: list[Any], outputs: list[str], **options: Any) -> Any:
    graph = onnx.helper.make_graph(nodes, "graph", inputs, [float_value(name) for name in outputs], initializers)
    opsets = [onnx.helper.make_opsetid("", 17), *options.pop("opsets", ())]
    return onnx.helper.make_model(graph, opset_imports=opsets, ir_version=8, **options)


def sequence_inputs() -> list[Any]:
    return [float_value("X", (TIME, BATCH, INPUT)), *(float_value(name, (1, BATCH, HIDDEN)) for name in "hc")]


def branching_model(names: tuple[str, str] = ("lstm", "lstm")) -> Any:
    """Return a model with an LSTM in each branch of an If, which both have the weights W and B of the outer graph."""
    then, shared = branch("then", "then", names[0])
    other, _ = branch("else", "else", names[1])
    condition = onnx.helper.make_tensor_value_info("condition", onnx.TensorProto.BOOL, ())
    outputs = ["Y", "Y_h", "Y_c"]
    node = onnx.helper.make_node("If", ["condition"], outputs, "if_1", then_branch=then, else_branch=other)
    return model_of([node], shared, [condition, *sequence_inputs()], outputs)


def sequence() -> tuple[Tensor, tuple[Tensor, Tensor]]:
    return torch.randn(TIME, BATCH, INPUT), (torch.randn(1, BATCH, HIDDEN), torch.randn(1, BATCH, HIDDEN))


@pytest.mark.parametrize("named", [True, False])
def test_branches(named: bool) -> None:
    """Each branch has recurrent weights of its own, and shares the others with the graph around it."""
    model = branching_model(("lstm", "lstm") if named else ("", ""))
    last = ("lstm", "lstm") if named else ("Y_then", "Y_else")
    paths = [f"if_1/then_branch/{last[0]}", f"if_1/else_branch/{last[1]}"]
    input, states = sequence()
    for condition, path in zip((True, False), paths, strict=True):
        output, *finals = infer(model.SerializeToString(), [torch.tensor(condition), input, *states])
        layer = fused_rnn.from_onnx(model, path)
        assert_agree([output.squeeze(1), *finals], layer, [input, hx_of(states)])
    with pytest.raises(ValueError, match=f"which are: '{paths[1]}', '{paths[0]}'; got None"):
        fused_rnn.from_onnx(model)


def test_a_name_that_several_nodes_have() -> None:
    model = branching_model()
    message = "got 'lstm', which several are: 'if_1/else_branch/lstm', 'if_1/then_branch/lstm'; "
    message += "their first outputs are: 'Y_else', 'Y_then'$"
    with pytest.raises(ValueError, match=message):
        fused_rnn.from_onnx(model, "lstm")
    other, then = (branch.g.node[1] for branch in model.graph.node[0].attribute)
    by_path: Any = fused_rnn.from_onnx(model, "if_1/then_branch/lstm")
    for node in ("Y_then", then):
        layer: Any = fused_rnn.from_onnx(model, node)
        assert torch.equal(layer.weight_hh_l0, by_path.weight_hh_l0)
    layer = fused_rnn.from_onnx(model, other)
    assert torch.equal(layer.weight_hh_l0, -by_path.weight_hh_l0)


def loop_model(weights_are_carried: bool) -> Any:
    """Return a model that runs an LSTM in a Loop, twice, on its own states; W may be a value of the loop."""
    single = node_model("LSTM").graph
    node, weights = single.node[0], {each.name: each for each in single.initializer}
    node.input[:] = ["X", "W_in" if weights_are_carried else "W", "R", "B", "", "h_in", "c_in"]
    whole = [onnx.helper.make_tensor_value_info(name, *spec) for name, spec in
             {"iteration": (onnx.TensorProto.INT64, ()), "go_on": (onnx.TensorProto.BOOL, ())}.items()]  # fmt: skip
    keep = onnx.helper.make_node("Identity", ["go_on"], ["go_on_out"])
    carried = ["h_in", "c_in"] + (["W_in"] if weights_are_carried else [])
    results = ["h_n", "c_n"] + (["W_out"] if weights_are_carried else [])
    nodes = [keep, node]
    if weights_are_carried:
        nodes.append(onnx.helper.make_node("Identity", ["W_in"], ["W_out"]))
    body = onnx.helper.make_graph(
        nodes,
        "body",
        [*whole, *map(float_value, carried)],
        [onnx.helper.make_tensor_value_info("go_on_out", onnx.TensorProto.BOOL, ()), *map(float_value, results)],
        [weights["R"]],
    )
    count = onnx.numpy_helper.from_array(numpy.array(2), "count")
    initial = ["h", "c"] + (["W"] if weights_are_carried else [])
    outputs = [f"final_{name}" for name in results]
    loop = onnx.helper.make_node("Loop", ["count", "", *initial], outputs, "loop", body=body)
    return model_of([loop], [weights["W"], weights["B"], count], sequence_inputs(), outputs[:2])


def test_loop() -> None:
    model = loop_model(weights_are_carried=False)
    input, states = sequence()

    class Twice(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = fused_rnn.from_onnx(model)

        def forward(self, input: Tensor, hx: Any) -> Any:
            return self.layer(input, self.layer(input, hx)[1])[1]

    assert_agree(infer(model.SerializeToString(), [input, *states]), Twice(), [input, states])
    with pytest.raises(ValueError, match="which are: 'loop/body/node'; got 'other'"):
        fused_rnn.from_onnx(model, "other")


def test_a_value_of_a_loop_is_no_constant() -> None:
    with pytest.raises(ValueError, match="node 'loop/body/node' must have a constant W, but 'W_in' depends on inputs"):
        fused_rnn.from_onnx(loop_model(weights_are_carried=True))


def test_weights_that_a_branch_computes() -> None:
    """A node with graphs inside it may compute a constant from constants that only these graphs read."""
    model = node_model("LSTM")
    weight = next(each for each in model.graph.initializer if each.name == "W")
    expected = fused_rnn.from_onnx(model).state_dict()
    weight.name = "W_outer"
    model.graph.initializer.append(onnx.numpy_helper.from_array(numpy.array(True), "condition"))
    same, negative = (
        onnx.helper.make_graph([onnx.helper.make_node(kind, ["W_outer"], [name])], name, [], [float_value(name)])
        for kind, name in (("Identity", "same"), ("Neg", "negative"))
    )
    choose = onnx.helper.make_node("If", ["condition"], ["W"], then_branch=same, else_branch=negative)
    model.graph.node.insert(0, choose)
    actual = fused_rnn.from_onnx(model).state_dict()
    assert all(torch.equal(actual[name], expected[name]) for name in expected)
    model.graph.initializer.remove(next(each for each in model.graph.initializer if each.name == "W_outer"))
    with pytest.raises(ValueError, match="'W' depends on inputs"):
        fused_rnn.from_onnx(model)


def test_function() -> None:
    single = node_model("LSTM")
    expected = fused_rnn.from_onnx(single)
    node = single.graph.node[0]
    arguments = [name for name in node.input if name]
    function = onnx.helper.make_function(
        "local", "Wrapper", arguments, list(node.output), [node], [onnx.helper.make_opsetid("", 17)]
    )
    call = onnx.helper.make_node("Wrapper", arguments, list(node.output), "call", domain="local")
    model = model_of(
        [call], list(single.graph.initializer), sequence_inputs(), list(node.output),
        functions=[function], opsets=[onnx.helper.make_opsetid("local", 1)],
    )  # fmt: skip
    actual = fused_rnn.from_onnx(model)
    assert all(torch.equal(value, expected.state_dict()[name]) for name, value in actual.state_dict().items())
    assert len(model.functions) == 1  # the caller's model does not change


def test_nodes_of_other_kinds_are_named() -> None:
    """Quantized nodes and loops are no layers; an error names them, without the contents of any node."""
    loop = loop_model(weights_are_carried=False).graph.node[0]
    body = next(each.g for each in loop.attribute if each.name == "body")
    del body.node[1]
    quantized = onnx.helper.make_node("DynamicQuantizeLSTM", ["X"], ["Y"], "quantized", domain="com.microsoft")
    other = onnx.helper.make_node("Relu", ["X"], ["Z"])
    model = model_of([quantized, loop, other], [], sequence_inputs(), ["Y"])
    for node in (None, "quantized", quantized, other):
        with pytest.raises(ValueError, match="which are: none; got") as raised:
            fused_rnn.from_onnx(model, node)
        named = ("com.microsoft.DynamicQuantizeLSTM 'quantized'", "Loop 'loop'")
        assert str(raised.value).endswith(f"of other kinds, which cannot be read, are: {', '.join(named)}")
        assert "\n" not in str(raised.value)
        assert "op_type" not in str(raised.value)
