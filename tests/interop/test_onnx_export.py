"""Exported models compute in ONNX Runtime what they do here; where they cannot, an error says why."""

import importlib
import io
import warnings
from collections.abc import Sequence
from typing import Any, cast

import pytest
import torch
from cases import CELLS, class_of, flatten, structure_of
from comparing import assert_identical
from conversions import NONLINEARITIES
from onnx_runtime import assert_agree, infer
from torch import Tensor, nn

import fused_rnn
from fused_rnn import ops
from fused_rnn.functional import onnx_export
from fused_rnn.functional.onnx_export import NODES
from fused_rnn.modules import GRUCellResetBefore, GRUResetBefore, Reversed

onnx: Any = pytest.importorskip("onnx", reason="onnx is not installed: pip install onnx")
pytest.importorskip("onnxscript", reason="onnxscript is not installed: pip install onnxscript")
pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore:.*axis name:UserWarning")

TIME, BATCH, INPUT, HIDDEN = 5, 3, 4, 6


NAMES = {"time": torch.export.Dim("time"), "batch": torch.export.Dim("batch")}


def export(module: nn.Module, inputs: Sequence[Tensor], dynamic: Sequence[dict[int, str]], exporter: str) -> Any:
    """Return the model that one of the exporters writes; ``dynamic`` are the names of the inputs' dynamic dimensions.

    ``"dynamo"`` and ``"traced"`` are torch.onnx.export with ``dynamo=True`` and ``dynamo=False``, and ``"program"`` is
    a program of torch.export.
    """
    module, args = module.eval(), tuple(inputs)
    shapes = tuple({dim: NAMES[name] for dim, name in dims.items()} for dims in dynamic)
    if exporter == "traced":
        file, names = io.BytesIO(), [f"input{index}" for index in range(len(args))]
        with warnings.catch_warnings():  # that the exporter is the older one, and that sizes of weights are constants
            warnings.simplefilter("ignore")
            axes = dict(zip(names, dynamic, strict=True))
            torch.onnx.export(module, args, cast(Any, file), dynamo=False, input_names=names, dynamic_axes=axes)
        return onnx.load_from_string(file.getvalue())
    if exporter == "program":
        program = torch.export.export(module, args, dynamic_shapes=shapes)
        decomposed = program.run_decompositions(fused_rnn.onnx.decomposition_table())
        return cast(Any, torch.onnx.export(decomposed, verbose=False)).model_proto
    return cast(Any, torch.onnx.export(module, args, dynamo=True, dynamic_shapes=shapes, verbose=False)).model_proto


def operators(model: Any) -> list[Any]:
    """Return the nodes of an exported model that were written for our layers."""
    return [node for node in model.graph.node if node.op_type in ("Conv", "LSTM", "GRU", "RNN")]


SEQUENCE, STATE, BATCH_FIRST, ROWS = {0: "time", 1: "batch"}, {1: "batch"}, {0: "batch", 1: "time"}, {0: "batch"}
"""The dynamic dimensions of sequences, of a layer's states, of sequences with the batch first, and of anything else."""


class Layers(nn.Module):
    """Layers of one kind with various options, each run on the same input."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        layer = class_of(fused_rnn, kind)
        self.plain = layer(INPUT, HIDDEN)
        self.no_bias = layer(INPUT, HIDDEN, bias=False, bidirectional=True)
        self.stacked = layer(INPUT, HIDDEN, num_layers=2, bidirectional=True, batch_first=True)
        self.large = layer(INPUT, 100)

    def forward(self, input: Tensor, h: Tensor, c: Tensor | None = None) -> list[Tensor]:
        outputs = [
            self.plain(input),
            self.no_bias(input),
            self.stacked(input.transpose(0, 1), h if c is None else (h, c)),
            self.large(input),
            self.plain(input[:, 0]),
        ]
        return flatten(outputs)


@pytest.mark.parametrize(
    ("kind", "exporter"),
    [*((kind, exporter) for kind in CELLS for exporter in ("dynamo", "traced")), ("LSTM", "program")],
)
def test_layers(kind: str, exporter: str) -> None:
    """Layers exported once run for other numbers of steps and sequences, and can be imported again."""
    module, count = Layers(kind), 1 + structure_of(kind).states

    def inputs(time: int, batch: int) -> list[Tensor]:
        return [torch.randn(time, batch, INPUT), *torch.randn(2, 4, batch, HIDDEN)][:count]

    model = export(module, inputs(TIME, BATCH), [SEQUENCE, STATE, STATE][:count], exporter)
    for given in (inputs(7, 3), inputs(2, 9), inputs(1, 1)):
        assert_agree(infer(model.SerializeToString(), given), module, given)
    nodes = operators(model)
    assert [node.op_type for node in nodes] == [kind.partition("_")[0]] * 6
    for layer, node in ((module.plain, nodes[0]), (module.no_bias, nodes[1]), (module.large, nodes[4])):
        again: Any = fused_rnn.from_onnx(model, node.output[0])
        assert_identical(again.state_dict(), layer.state_dict())
        assert repr(again) == repr(layer)
        assert getattr(again, "nonlinearity", None) == NONLINEARITIES.get(kind)


@pytest.mark.parametrize(
    ("kind", "exporter"),
    [*((kind, "traced") for kind in (*CELLS, "reset before")), ("GRU", "dynamo"), ("reset before", "dynamo")],
)
def test_layers_and_cells_alone(kind: str, exporter: str) -> None:
    """The exporter with ``dynamo=False`` gives the default arguments of a model by position."""
    resets_before = kind == "reset before"
    layer = GRUResetBefore if resets_before else class_of(fused_rnn, kind)
    cell = GRUCellResetBefore if resets_before else class_of(fused_rnn, kind, cell=True)
    for module, shapes, dynamic in (
        (layer(INPUT, HIDDEN), [(TIME, BATCH, INPUT), (2, 7, INPUT)], SEQUENCE),
        (layer(INPUT, HIDDEN, 2, bidirectional=True), [(TIME, BATCH, INPUT), (7, 2, INPUT)], SEQUENCE),
        (cell(INPUT, HIDDEN), [(BATCH, INPUT), (7, INPUT)], ROWS),
    ):
        model = export(module, [torch.randn(shapes[0])], [dynamic], exporter)
        given = [torch.randn(shapes[1])]
        assert_agree(infer(model.SerializeToString(), given), module, given)


class Acting(nn.Module):
    """Cells whose states are replaced before the step."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm, self.gru = fused_rnn.LSTMCell(INPUT, HIDDEN), fused_rnn.GRUCell(HIDDEN, HIDDEN)

    def forward(self, input: Tensor, h: Tensor, c: Tensor, reset: Tensor) -> list[Tensor]:
        h, c = self.lstm(input, (h, c), reset=reset)
        return [h, c, self.gru(h, c, reset=reset, reset_states=h + 1)]


@pytest.mark.parametrize("exporter", ["dynamo", "traced", "program"])
def test_cells_with_reset(exporter: str) -> None:
    model = Acting()

    def inputs(batch: int) -> list[Tensor]:
        return [torch.randn(batch, INPUT), *torch.randn(2, batch, HIDDEN), torch.arange(batch) % 3 == 1]

    exported = export(model, inputs(BATCH), [ROWS] * 4, exporter).SerializeToString()
    for given in (inputs(7), inputs(1)):
        assert_agree(infer(exported, given), model, given)


class Model(nn.Module):
    """A model of layers, cells and convolutions, with zero initial states."""

    def __init__(self) -> None:
        super().__init__()
        self.first = fused_rnn.MaskedConv2d(3, 6, (5, 3), mask_type="A", data_channels=3)
        self.second = fused_rnn.MaskedConv2d(6, 4, 3, mask_type="vertical_B", dilation=(1, 2), bias=False)
        with torch.no_grad():
            self.first.weight[:, :, 3:] = torch.nan  # masked, so never used
        self.third = fused_rnn.MaskedConv2d(4, 8, 3, mask_type="B", data_channels=2, activation="gated")
        self.causal = fused_rnn.MaskedConv1d(4, 4, 2, mask_type="B", dilation=2, activation="relu")
        self.gru = fused_rnn.GRU(8, 7, batch_first=True)
        self.lstm_cell = fused_rnn.LSTMCell(7, 6)
        self.gru_cell = fused_rnn.GRUCell(6, 5, bias=False)
        self.rnn_cells = nn.ModuleList([fused_rnn.RNNCell(5, 4), fused_rnn.RNNCell(5, 4, nonlinearity="relu")])

    def forward(self, images: Tensor) -> list[Tensor]:
        features = self.second(torch.relu(self.first(images)))
        features = self.third(features, residual=features)
        output, h_n = self.gru(self.causal(features.mean(2)).transpose(1, 2).repeat(1, 1, 2))
        h, c = self.lstm_cell(output[:, -1])
        h = self.gru_cell(h)
        return [features, h_n, c, h, *(cell(h) for cell in self.rnn_cells)]


@pytest.mark.parametrize("exporter", ["dynamo", "traced", "program"])
def test_model(exporter: str) -> None:
    model = Model()
    exported = export(model, [torch.randn(2, 3, 6, 7)], [ROWS], exporter)
    assert [node.op_type for node in operators(exported)] == ["Conv"] * 4 + ["GRU", "LSTM", "GRU", "RNN", "RNN"]
    input = torch.randn(5, 3, 6, 7)
    theirs = infer(exported.SerializeToString(), [input])
    assert all(tensor.isfinite().all() for tensor in theirs)
    assert_agree(theirs, model, [input])


class WithLengths(nn.Module):
    """A layer that is given lengths, and one that runs backwards in time."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        layer = class_of(fused_rnn, kind)
        self.layer = layer(INPUT, HIDDEN, num_layers=2, bidirectional=True, batch_first=True)
        self.reversed = Reversed(layer(INPUT, HIDDEN, batch_first=True))

    def forward(self, input: Tensor, lengths: Tensor) -> list[Tensor]:
        return flatten([self.layer(input, lengths=lengths), self.reversed(input, lengths=lengths)])


@pytest.mark.parametrize(
    ("kind", "exporter"),
    [*((kind, "traced") for kind in CELLS), ("LSTM", "dynamo"), ("GRU", "dynamo"), ("RNN", "program")],
)
def test_lengths(kind: str, exporter: str) -> None:
    module = WithLengths(kind)
    given = [torch.randn(BATCH, TIME, INPUT), torch.tensor([2, 5, 3])]
    model = export(module, given, [BATCH_FIRST, ROWS], exporter)
    inputs = [torch.randn(4, 7, INPUT), torch.tensor([7, 0, 2, 6])]
    assert_agree(infer(model.SerializeToString(), inputs), module, inputs)


class Steps(nn.Module):
    """Takes steps until a state is large enough, so how many it takes depends on values."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = fused_rnn.RNN(INPUT, INPUT, nonlinearity="relu")
        with torch.no_grad():
            for weight in self.layer.parameters():
                weight.fill_(1.0)

    def forward(self, input: Tensor) -> Tensor:
        while input.max() < 1000:
            input, _ = self.layer(input)
        return input


def test_values_are_computed_where_a_model_is_traced() -> None:
    module, given = Steps(), torch.ones(1, 1, INPUT)
    model = export(module, [given], [{}], "traced")
    assert len(operators(model)) == 5
    assert_agree(infer(model.SerializeToString(), [given]), module, [given])


class Packed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = fused_rnn.GRU(INPUT, HIDDEN)

    def forward(self, input: Tensor) -> Tensor:
        packed = nn.utils.rnn.PackedSequence(input, torch.tensor([3, 2, 1]))
        return self.layer(packed)[1]


class States(nn.Module):
    """An LSTM that returns c of every step, which the model may use or not."""

    def __init__(self, uses: bool) -> None:
        super().__init__()
        self.uses = uses
        self.layer = fused_rnn.LSTM(INPUT, HIDDEN)

    def forward(self, input: Tensor) -> Any:
        output, _, cells = self.layer(input, return_states=True)
        return (output, cells) if self.uses else output


def messages(error: BaseException | None) -> str:
    """Return an error and all its causes as text."""
    return "" if error is None else repr(error) + messages(error.__cause__)


@pytest.mark.parametrize("exporter", ["dynamo", "traced"])
@pytest.mark.parametrize(
    ("module", "shape", "message"),
    [
        (fused_rnn.LSTM(INPUT, HIDDEN, proj_size=2), (TIME, BATCH, INPUT), "proj_size cannot be exported"),
        (Packed(), (6, INPUT), "a PackedSequence cannot be exported to ONNX"),
        (States(uses=True), (TIME, BATCH, INPUT), "return_states=True cannot be exported"),
    ],
    ids=["proj_size", "packed", "return_states"],
)
def test_what_cannot_be_exported(module: nn.Module, shape: tuple[int, ...], message: str, exporter: str) -> None:
    with pytest.raises((torch.onnx.errors.OnnxExporterError, NotImplementedError)) as raised:
        export(module, [torch.randn(shape)], [{}], exporter)
    assert message in messages(raised.value)


def test_what_cannot_be_exported_from_a_program() -> None:
    input, h = torch.randn(6, INPUT), torch.zeros(1, BATCH, HIDDEN)
    weights = [torch.zeros(3 * HIDDEN, size) for size in (INPUT, HIDDEN)]
    recurrent = fused_rnn.onnx.decomposition_table()[torch.ops.fused_rnn.recurrent.default]
    with pytest.raises(NotImplementedError, match="a PackedSequence cannot be exported to ONNX"):
        recurrent("gru", input, [h], weights, torch.tensor([3, 2, 1]), None, False)
    projecting = fused_rnn.LSTM(INPUT, HIDDEN, proj_size=2)
    with pytest.raises(NotImplementedError, match="proj_size cannot be exported"):
        export(projecting, [torch.randn(TIME, BATCH, INPUT)], [{}], "program")


def test_states_of_every_step_in_a_program() -> None:
    """A program that uses c of every step becomes a model that no runtime loads; one that does not use it runs."""
    input, module = torch.randn(TIME, BATCH, INPUT), States(uses=False)
    assert_agree(infer(export(module, [input], [SEQUENCE], "program").SerializeToString(), [input]), module, [input])
    model = export(States(uses=True), [input], [SEQUENCE], "program")
    with pytest.raises(Exception, match=r"StatesOfEveryStep.* is not a registered"):
        infer(model.SerializeToString(), [input])


def test_a_cell_that_onnx_does_not_have(monkeypatch: pytest.MonkeyPatch) -> None:
    cell = importlib.import_module("fused_rnn.functional.gru_cell")
    monkeypatch.setattr(cell, "MODE", cell.MODE._replace(node=None))
    with pytest.raises(NotImplementedError, match="a cell that ONNX does not have cannot be exported"):
        export(fused_rnn.GRUCell(INPUT, HIDDEN), [torch.randn(BATCH, INPUT)], [ROWS], "traced")


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_nodes_are_on_the_device_of_the_model(device: str) -> None:
    """Without this the rest of a model on a GPU, for which meta stands, could not be run after a node."""
    with torch.device(device):
        input, h, images, weight = map(torch.empty, ((5, 3, 4), (1, 3, 6), (2, 4, 5, 5), (6, 4, 3, 3)))
        weights = [torch.empty(18, size) for size in (4, 6)]
    for output in onnx_export.recurrent(NODES["gru"], tuple, input, [h], weights):
        assert output.device.type == device
    assert onnx_export.masked_conv2d(images, weight, None, "A", 1, (1, 1)).device.type == device


def test_every_cell_has_a_node() -> None:
    assert NODES.keys() == {*ops.CELLS, "gru_reset_before"}
    for cell, structure in ops.CELLS.items():
        assert sorted(NODES[cell].gates) == [*range(structure.gates)]
