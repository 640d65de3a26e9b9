"""Exported models compute in ONNX Runtime what they do here; where they cannot, an error says why."""

from typing import Any

import pytest
import torch
from cases import CELLS, class_of, flatten, hx_of, structure_of
from comparing import assert_identical
from conversions import NONLINEARITIES
from onnx_runtime import assert_agree, infer
from torch import Tensor, nn

import fused_rnn
from fused_rnn import ops
from fused_rnn.onnx.gates import TO_ONNX
from fused_rnn.onnx.writing import NODES

pytest.importorskip("onnxscript", reason="onnxscript is not installed: pip install onnxscript")
pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore:.*axis name:UserWarning")

TIME, BATCH, INPUT, HIDDEN = 5, 3, 4, 6


def export(module: nn.Module, inputs: tuple[Any, ...], dynamic: Any = None, optimize: bool = True) -> Any:
    return torch.onnx.export(
        module.eval(),
        inputs,
        dynamo=True,
        dynamic_shapes=dynamic,
        verbose=False,
        optimize=optimize,
        custom_translation_table=fused_rnn.onnx.translation_table(),
    )


def operators(program: Any) -> list[Any]:
    """Return the nodes of an exported model that were translated from our operators."""
    return [node for node in program.model.graph if node.op_type in ("Conv", "LSTM", "GRU", "RNN")]


class Layers(nn.Module):
    """Layers of one kind with various options, each run on the same input."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        layer = class_of(fused_rnn, kind)
        self.states = structure_of(kind).states
        self.plain = layer(INPUT, HIDDEN)
        self.no_bias = layer(INPUT, HIDDEN, bias=False, bidirectional=True)
        self.stacked = layer(INPUT, HIDDEN, num_layers=2, bidirectional=True, batch_first=True)
        self.large = layer(INPUT, 100)

    def forward(self, input: Tensor, h: Tensor, c: Tensor) -> list[Tensor]:
        given = hx_of((h, c)[: self.states])
        outputs = [
            self.plain(input),
            self.no_bias(input),
            self.stacked(input.transpose(0, 1), given),
            self.large(input),
        ]
        return flatten(outputs)


@pytest.mark.parametrize("kind", CELLS)
def test_layers(kind: str) -> None:
    """Layers exported once run for other numbers of steps and sequences, and can be imported again."""
    module = Layers(kind)
    time, batch = torch.export.Dim("time"), torch.export.Dim("batch")

    def inputs(time: int, batch: int) -> list[Tensor]:
        return [torch.randn(time, batch, INPUT), torch.randn(4, batch, HIDDEN), torch.randn(4, batch, HIDDEN)]

    program = export(module, tuple(inputs(TIME, BATCH)), ({0: time, 1: batch}, {1: batch}, {1: batch}))
    assert not [node.op_type for node in program.model.graph if node.op_type.startswith("Sequence")]
    for given in (inputs(7, 3), inputs(2, 9)):
        assert_agree(infer(program.model_proto.SerializeToString(), given), module, given)
    nodes = operators(program)
    assert [node.op_type for node in nodes] == [kind.partition("_")[0]] * 5
    for layer, node in ((module.plain, nodes[0]), (module.no_bias, nodes[1]), (module.large, nodes[4])):
        again = fused_rnn.from_onnx(program.model_proto, node.outputs[0].name)
        assert_identical(again.state_dict(), layer.state_dict())
        assert repr(again) == repr(layer)
        assert getattr(again, "nonlinearity", None) == NONLINEARITIES.get(kind)


class Model(nn.Module):
    """A model of layers, cells and convolutions, with zero initial states."""

    def __init__(self) -> None:
        super().__init__()
        self.first = fused_rnn.MaskedConv2d(3, 6, (5, 3), mask_type="A", data_channels=3)
        self.second = fused_rnn.MaskedConv2d(6, 4, 3, mask_type="vertical_B", dilation=(1, 2), bias=False)
        with torch.no_grad():
            self.first.weight[:, :, 3:] = torch.nan  # masked, so never used
        self.causal = fused_rnn.MaskedConv1d(4, 4, 2, mask_type="B", dilation=2)
        self.gru = fused_rnn.GRU(8, 7, batch_first=True)
        self.lstm_cell = fused_rnn.LSTMCell(7, 6)
        self.gru_cell = fused_rnn.GRUCell(6, 5, bias=False)
        self.rnn_cells = nn.ModuleList([fused_rnn.RNNCell(5, 4), fused_rnn.RNNCell(5, 4, nonlinearity="relu")])

    def forward(self, images: Tensor) -> list[Tensor]:
        features = self.second(torch.relu(self.first(images)))
        output, h_n = self.gru(self.causal(features.mean(2)).transpose(1, 2).repeat(1, 1, 2))
        h, c = self.lstm_cell(output[:, -1])
        h = self.gru_cell(h)
        return [features, h_n, c, h, *(cell(h) for cell in self.rnn_cells)]


def test_model() -> None:
    model = Model()
    program = export(model, (torch.randn(2, 3, 6, 7),), ({0: torch.export.Dim("batch")},))
    assert [node.op_type for node in operators(program)] == ["Conv"] * 3 + ["GRU", "LSTM", "GRU", "RNN", "RNN"]
    input = torch.randn(5, 3, 6, 7)
    theirs = infer(program.model_proto.SerializeToString(), [input])
    assert all(tensor.isfinite().all() for tensor in theirs)
    assert_agree(theirs, model, [input])


class Packed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = fused_rnn.GRU(INPUT, HIDDEN)

    def forward(self, input: Tensor) -> Tensor:
        packed = nn.utils.rnn.PackedSequence(input, torch.tensor([3, 2, 1]))
        return self.layer(packed)[1]


@pytest.mark.parametrize(
    ("module", "shape", "message"),
    [
        (fused_rnn.LSTM(INPUT, HIDDEN, proj_size=2), (TIME, BATCH, INPUT), "proj_size cannot be exported"),
        (Packed(), (6, INPUT), "a PackedSequence cannot be exported to ONNX"),
    ],
    ids=["proj_size", "packed"],
)
def test_what_cannot_be_exported(module: nn.Module, shape: tuple[int, ...], message: str) -> None:
    with pytest.raises(torch.onnx.errors.OnnxExporterError) as raised:
        export(module, (torch.randn(shape),))
    causes, error = [], raised.value
    while error is not None:
        causes.append(repr(error))
        error = error.__cause__  # type: ignore[assignment]
    assert message in "".join(causes)


@pytest.mark.parametrize("optimize", [True, False])
def test_states_of_every_step_are_never_wrong(optimize: bool) -> None:
    """ONNX's LSTM does not return c of every step: a model that uses it does not run, one that does not use it does."""

    class Model(nn.Module):
        def __init__(self, uses: bool) -> None:
            super().__init__()
            self.uses = uses
            self.layer = fused_rnn.LSTM(INPUT, HIDDEN)

        def forward(self, input: Tensor) -> Any:
            output, _, cells = self.layer(input, return_states=True)
            return (output, cells) if self.uses else output

    input, model = torch.randn(TIME, BATCH, INPUT), Model(uses=False)
    assert_agree(
        infer(export(model, (input,), optimize=optimize).model_proto.SerializeToString(), [input]), model, [input]
    )
    program = export(Model(uses=True), (input,), optimize=optimize)
    with pytest.raises(Exception, match="Invalid sequence index"):
        infer(program.model_proto.SerializeToString(), [input])


class WithLengths(nn.Module):
    def __init__(self, kind: str) -> None:
        super().__init__()
        layer = class_of(fused_rnn, kind)
        self.layer = layer(INPUT, HIDDEN, num_layers=2, bidirectional=True, batch_first=True)

    def forward(self, input: Tensor, lengths: Tensor) -> Any:
        return self.layer(input, lengths=lengths)


@pytest.mark.parametrize("kind", CELLS)
def test_lengths(kind: str) -> None:
    batch, time = torch.export.Dim("batch"), torch.export.Dim("time")
    given = torch.randn(BATCH, TIME, INPUT), torch.tensor([2, 5, 3])
    module = WithLengths(kind)
    program = export(module, given, ({0: batch, 1: time}, {0: batch}))
    inputs = torch.randn(4, 7, INPUT), torch.tensor([7, 1, 2, 6])
    assert_agree(infer(program.model_proto.SerializeToString(), inputs), module, inputs)


def test_every_cell_has_a_node() -> None:
    assert NODES.keys() == ops.CELLS.keys()
    for cell, (kind, _) in NODES.items():
        assert len(TO_ONNX[kind]) == ops.CELLS[cell].gates
