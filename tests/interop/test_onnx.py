"""Layers made from ONNX nodes compute what ONNX Runtime does; where they cannot, an error says why."""

from typing import Any

import numpy
import pytest
import torch
from cases import CELLS, flatten, hx_of, structure_of
from conversions import NONLINEARITIES
from onnx_models import BATCH, HIDDEN, INPUT, TIME, node_model
from onnx_runtime import assert_agree, infer
from torch.nn.utils.rnn import pack_padded_sequence

import fused_rnn

onnx: Any = pytest.importorskip("onnx", reason="onnx is not installed: pip install onnx")

DIRECTIONS = ("forward", "reverse", "bidirectional")


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize(("kind", "reset_after"), [*((kind, True) for kind in CELLS), ("GRU", False)])
def test_node(kind: str, reset_after: bool, direction: str, bias: bool) -> None:
    kwargs: dict[str, Any] = {} if reset_after else {"linear_before_reset": 0}
    model = node_model(kind, direction, bias, sequence_lens=True, **kwargs)
    layer: Any = fused_rnn.from_onnx(model)
    inner = layer.layer if direction == "reverse" else layer
    expected = getattr(fused_rnn, kind.partition("_")[0])
    assert type(inner) is (expected if reset_after else fused_rnn.modules.GRUResetBefore)
    assert getattr(inner, "nonlinearity", None) == NONLINEARITIES.get(kind)
    rows = 2 if direction == "bidirectional" else 1
    states = tuple(torch.randn(rows, BATCH, HIDDEN) for _ in range(structure_of(kind).states))
    input = torch.randn(TIME, BATCH, INPUT)
    for lengths in ([TIME] * BATCH, [2, TIME, 3]):
        ends = torch.tensor(lengths, dtype=torch.int32)
        output, *finals = infer(model.SerializeToString(), [input, ends, *states])
        joined = output.transpose(1, 2).reshape(TIME, BATCH, rows * HIDDEN)
        given: dict[str, Any] = {} if min(lengths) == TIME else {"lengths": ends.long()}
        assert_agree([joined, *finals], layer, [input, hx_of(states)], **given)


@pytest.mark.parametrize("kind", CELLS)
@pytest.mark.parametrize("direction", DIRECTIONS)
def test_batch_first(kind: str, direction: str) -> None:
    """Layers of both layouts are compared with each other, since ONNX Runtime does not support layout=1."""
    time_first: Any = fused_rnn.from_onnx(node_model(kind, direction))
    batch_first: Any = fused_rnn.from_onnx(node_model(kind, direction, layout=1))
    input = torch.randn(TIME, BATCH, INPUT)
    torch.testing.assert_close(batch_first(input.transpose(0, 1))[0].transpose(0, 1), time_first(input)[0])
    unbatched = input[:, 0]
    torch.testing.assert_close(batch_first(unbatched)[0], time_first(unbatched)[0])


def test_choice_of_the_node() -> None:
    model = node_model("LSTM")
    assert type(fused_rnn.from_onnx(model)) is fused_rnn.LSTM
    second = node_model("GRU", name="").graph
    for each in second.initializer:
        each.name += "2"
    second.node[0].input[:] = [f"{name}2" if name in "WRB" and name else name for name in second.node[0].input]
    second.node[0].output[:] = ["Z"]
    model.graph.node.append(second.node[0])
    model.graph.initializer.extend(second.initializer)
    with pytest.raises(ValueError, match=r"node must name one LSTM, GRU or RNN .* 'node', 'Z'; got None"):
        fused_rnn.from_onnx(model)
    for name in ("node", "Y", model.graph.node[0]):
        assert type(fused_rnn.from_onnx(model, name)) is fused_rnn.LSTM
    for name in ("Z", model.graph.node[1]):
        assert type(fused_rnn.from_onnx(model, name)) is fused_rnn.GRU
    with pytest.raises(ValueError, match="got 'other'"):
        fused_rnn.from_onnx(model, "other")


def test_computed_weights() -> None:
    """Weights may come from Constant nodes, and from other nodes that need no input."""
    model = node_model("GRU")
    expected = fused_rnn.from_onnx(model).state_dict()
    weight, recurrent = (next(each for each in model.graph.initializer if each.name == name) for name in "WR")
    model.graph.initializer.remove(weight)
    recurrent.name = "R0"
    for node in (
        onnx.helper.make_node("Constant", [], ["W"], value=weight),
        onnx.helper.make_node("Neg", ["R1"], ["R"]),
        onnx.helper.make_node("Neg", ["R0"], ["R1"]),
    ):
        model.graph.node.insert(0, node)
    actual = fused_rnn.from_onnx(model).state_dict()
    assert all(torch.equal(actual[name], expected[name]) for name in expected)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16], ids=str)
def test_dtypes(dtype: torch.dtype) -> None:
    """Weights and constant states keep their dtype, also bfloat16, which numpy does not have."""
    onnx_dtype = {torch.float64: "DOUBLE", torch.bfloat16: "BFLOAT16", torch.float16: "FLOAT16"}[dtype]
    model = node_model("LSTM", constants={name: numpy.ones((1, BATCH, HIDDEN), "f4") for name in "hc"})
    expected = fused_rnn.from_onnx(model).to(dtype).state_dict()
    for each in model.graph.initializer:
        values = onnx.numpy_helper.to_array(each)
        number = getattr(onnx.TensorProto, onnx_dtype)
        each.CopyFrom(onnx.helper.make_tensor(each.name, number, values.shape, values.flatten()))
    actual = fused_rnn.from_onnx(model).state_dict()
    assert {"initial_h", "initial_c"} <= actual.keys()
    for name, value in actual.items():
        assert value.dtype == dtype
        assert torch.equal(value, expected[name])


STATE = numpy.ones((1, BATCH, HIDDEN), "f4")


@pytest.mark.parametrize(
    ("kind", "kwargs", "message"),
    [
        ("LSTM", {"activations": ["Sigmoid", "Tanh", "Relu"]}, r"activations must be \['sigmoid', 'tanh', 'tanh'\]"),
        ("RNN", {"activations": ["Sigmoid"]}, r"activations must be \['tanh'\] or \['relu'\], got \['sigmoid'\]"),
        (
            "RNN",
            {"direction": "bidirectional", "activations": ["Tanh", "Relu"]},
            r"must be \['tanh', 'tanh'\] or \['relu', 'relu'\], got \['tanh', 'relu'\]",
        ),
        ("LSTM", {"clip": 3.0}, "clip has no counterpart"),
        ("RNN", {"clip": 3.0}, "clip has no counterpart"),
        ("RNN", {"activations": ["Affine"], "activation_alpha": [2.0]}, r"got \['affine'\]"),
        ("LSTM", {"input_forget": 1}, "input_forget=1"),
        ("LSTM", {"extra": ["P"], "constants": {"P": numpy.ones((1, 3 * HIDDEN), "f4")}}, "peepholes"),
        ("LSTM", {"extra": ["P"]}, "node 'node' has peepholes"),
        ("LSTM", {"constants": {"c": STATE}}, "constant initial_c other than zero, while its other initial state"),
        (
            "LSTM",
            {"constants": {"W": numpy.ones((2, 4 * HIDDEN, INPUT), "f4")}},
            r"direction='forward' has W of shape \(2, 24, 4\)",
        ),
    ],
)
def test_nodes_without_counterpart(kind: str, kwargs: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        fused_rnn.from_onnx(node_model(kind, **kwargs))


def test_nodes_with_harmless_attributes() -> None:
    """The default activations may be given explicitly, and their names may be in lower case."""
    for direction, count in (("forward", 1), ("bidirectional", 2)):
        layer = fused_rnn.from_onnx(node_model("RNN", direction, activations=["tanh"] * count))
        assert repr(layer) == repr(fused_rnn.from_onnx(node_model("RNN", direction)))
        assert layer.nonlinearity == "tanh"
    expected = fused_rnn.from_onnx(node_model("GRU")).state_dict()
    same = node_model("GRU", activations=["Sigmoid", "Tanh"], layout=0, constants={"h": 0 * STATE})
    assert all(torch.equal(weight, expected[name]) for name, weight in fused_rnn.from_onnx(same).state_dict().items())


@pytest.mark.parametrize(("name", "named"), [("node", "node"), ("", "Y")])
def test_weights_that_are_no_constants(name: str, named: str) -> None:
    """A node without a name is called by its first output."""
    model = node_model("LSTM", name=name)
    del model.graph.initializer[0]
    with pytest.raises(ValueError, match=f"node '{named}' must have a constant W, but 'W' depends on inputs"):
        fused_rnn.from_onnx(model)
    model.graph.node[0].input[1] = ""
    with pytest.raises(ValueError, match=f"node '{named}' must have a constant W, but has none"):
        fused_rnn.from_onnx(model)


def test_peepholes_of_zero() -> None:
    model = node_model("LSTM", extra=["P"], constants={"P": numpy.zeros((1, 3 * HIDDEN), "f4")})
    input, *states = torch.randn(TIME, BATCH, INPUT), *torch.randn(2, 1, BATCH, HIDDEN)
    output, *finals = infer(model.SerializeToString(), [input, *states])
    assert_agree([output.squeeze(1), *finals], fused_rnn.from_onnx(model), [input, hx_of(states)])


@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("kind", CELLS)
def test_constant_lengths_and_states(kind: str, direction: str) -> None:
    """Constants hold in every call that gives no others, and batch_first changes their layout in ONNX only."""
    rows = 2 if direction == "bidirectional" else 1
    names = ["h", "c"][: structure_of(kind).states]
    states = {name: torch.randn(rows, BATCH, HIDDEN) for name in names}
    ends = torch.tensor([2, 5, 3])
    constants = {name: state.numpy() for name, state in states.items()} | {"lengths": ends.int().numpy()}
    model = node_model(kind, direction, sequence_lens=True, constants=constants)
    input = torch.randn(TIME, BATCH, INPUT)
    output, *finals = infer(model.SerializeToString(), [input])
    joined = [output.transpose(1, 2).reshape(TIME, BATCH, rows * HIDDEN), *finals]
    layer: Any = fused_rnn.from_onnx(model)
    assert_agree(joined, layer, [input])

    others, other_ends = tuple(torch.randn_like(state) for state in states.values()), torch.tensor([5, 0, 1])
    free: Any = fused_rnn.from_onnx(node_model(kind, direction))
    for given in ({"hx": hx_of(others)}, {"lengths": other_ends}):
        expected = free(input, **{"hx": hx_of(tuple(states.values())), "lengths": ends, **given})
        for actual, value in zip(flatten(layer(input, **given)), flatten(expected), strict=True):
            assert torch.equal(actual, value)

    by_batch = {name: numpy.swapaxes(value, 0, 1) if value.ndim == 3 else value for name, value in constants.items()}
    batch_first: Any = fused_rnn.from_onnx(
        node_model(kind, direction, sequence_lens=True, constants=by_batch, layout=1)
    )
    output, final = batch_first(input.transpose(0, 1))
    for actual, value in zip(flatten((output.transpose(0, 1), final)), flatten(layer(input)), strict=True):
        torch.testing.assert_close(actual, value)


def test_one_constant_state() -> None:
    """A state that an LSTM node does not have is zero."""
    states = {"c": numpy.ones((1, BATCH, HIDDEN), "f4")}
    model = node_model("LSTM", constants=states)
    model.graph.node[0].input[5] = ""
    del model.graph.input[1]
    input = torch.randn(TIME, BATCH, INPUT)
    output, *finals = infer(model.SerializeToString(), [input])
    layer = fused_rnn.from_onnx(model)
    assert repr(layer).splitlines()[0] == "WithDefaults("
    assert "initial_h=[1, 3, 6]" in repr(layer)
    assert {"initial_h", "initial_c"} <= layer.state_dict().keys()
    assert_agree([output.squeeze(1), *finals], layer, [input])


def test_reversed_takes_padded_sequences_of_one_direction() -> None:
    layer = fused_rnn.modules.Reversed(fused_rnn.LSTM(4, 8))
    with pytest.raises(TypeError, match="input must be a Tensor, got PackedSequence"):
        layer(pack_padded_sequence(torch.randn(5, 3, 4), torch.tensor([5, 4, 3])))
    with pytest.raises(ValueError, match="layer must have one direction"):
        fused_rnn.modules.Reversed(fused_rnn.GRU(4, 8, bidirectional=True))
