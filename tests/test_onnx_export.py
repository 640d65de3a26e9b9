"""Exported models compute in ONNX Runtime what they do here, or an error says why they cannot."""

from typing import Any

import pytest
import torch
from cases import KINDS, flatten
from onnx_runtime import assert_agree, infer
from torch import Tensor, nn

import fused_rnn
from fused_rnn.onnx import writing

pytest.importorskip("onnxscript", reason="onnxscript is not installed: pip install onnxscript")

TIME, BATCH, INPUT, HIDDEN = 5, 3, 4, 6


def export(module: nn.Module, inputs: tuple[Any, ...], dynamic: Any = None, table: Any = None) -> Any:
    return torch.onnx.export(
        module.eval(),
        inputs,
        dynamo=True,
        dynamic_shapes=dynamic,
        verbose=False,
        custom_translation_table=table or fused_rnn.onnx.translation_table(),
    )


def operators(program: Any) -> list[str]:
    return [node.op_type for node in program.model.graph]


def states(kind: str, *shape: int) -> Any:
    h, c = torch.randn(shape), torch.randn(shape)
    return (h, c) if kind == "LSTM" else h


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "kwargs",
    [
        {},
        {"bias": False, "batch_first": True},
        {"bidirectional": True, "num_layers": 2},
    ],
    ids=str,
)
def test_exported_layer(kind: str, kwargs: dict[str, Any]) -> None:
    """Exported once, it runs for other numbers of steps and sequences."""
    module = getattr(fused_rnn, kind)(INPUT, HIDDEN, **kwargs)
    time, batch = torch.export.Dim("time"), torch.export.Dim("batch")
    dims = {0: batch, 1: time} if module.batch_first else {0: time, 1: batch}
    rows = module.num_layers * (2 if module.bidirectional else 1)
    dynamic = (dims, ({1: batch}, {1: batch}) if kind == "LSTM" else {1: batch})
    program = export(module, (torch.randn(TIME, TIME, INPUT), states(kind, rows, TIME, HIDDEN)), dynamic)
    assert operators(program).count(kind) == module.num_layers
    for first, second in ((7, 3), (2, 9)):
        inputs = torch.randn(first, second, INPUT), states(kind, rows, first if module.batch_first else second, HIDDEN)
        assert_agree(infer(program.model_proto.SerializeToString(), flatten(inputs)), module, inputs)


class Model(nn.Module):
    """Layers, cells and convolutions at work together, from zero states."""

    def __init__(self) -> None:
        super().__init__()
        self.first = fused_rnn.MaskedConv2d(3, 6, (5, 3), mask_type="A", data_channels=3)
        self.second = fused_rnn.MaskedConv2d(6, 4, 3, mask_type="B", dilation=(1, 2), bias=False)
        self.gru = fused_rnn.GRU(8, 7, batch_first=True)
        self.lstm_cell = fused_rnn.LSTMCell(7, 6)
        self.gru_cell = fused_rnn.GRUCell(6, 5, bias=False)

    def forward(self, images: Tensor) -> list[Tensor]:
        features = self.second(torch.relu(self.first(images)))
        output, h_n = self.gru(features.mean(2).transpose(1, 2).repeat(1, 1, 2))
        h, c = self.lstm_cell(output[:, -1])
        return [features, h_n, c, self.gru_cell(h)]


def test_exported_model() -> None:
    model = Model()
    program = export(model, (torch.randn(2, 3, 6, 7),), ({0: torch.export.Dim("batch")},))
    assert sorted(name for name in operators(program) if name in ("Conv", *KINDS)) == ["Conv"] * 2 + ["GRU"] * 2 + [
        "LSTM"
    ]
    input = torch.randn(5, 3, 6, 7)
    assert_agree(infer(program.model_proto.SerializeToString(), [input]), model, [input])


def test_a_masked_entry_is_not_exported() -> None:
    conv = fused_rnn.MaskedConv2d(1, 1, 3)
    with torch.no_grad():
        conv.weight[0, 0, 1, 1:] = torch.nan
    program = export(conv, (torch.randn(1, 1, 4, 4),))
    input = torch.randn(1, 1, 4, 4)
    assert_agree(infer(program.model_proto.SerializeToString(), [input]), conv, [input])


@pytest.mark.parametrize("hidden_size", [HIDDEN, 100])
@pytest.mark.parametrize("kind", KINDS)
def test_there_and_back(kind: str, hidden_size: int) -> None:
    layer = getattr(fused_rnn, kind)(INPUT, hidden_size, bidirectional=True)
    program = export(layer, (torch.randn(TIME, BATCH, INPUT),))
    again = fused_rnn.from_onnx(program.model_proto)
    for name, weight in layer.state_dict().items():
        assert torch.equal(weight, again.state_dict()[name])


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


SCHEMAS = {
    "LSTM": "(Tensor input, Tensor h0, Tensor c0, Tensor[] weights, Tensor? batch_sizes, Tensor? lengths, "
    "bool save_states) -> (Tensor, Tensor, Tensor, Tensor, Tensor)",
    "GRU": "(Tensor input, Tensor h0, Tensor[] weights, Tensor? batch_sizes, Tensor? lengths, bool save_states) -> "
    "(Tensor, Tensor, Tensor)",
}


@pytest.mark.parametrize("kind", KINDS)
def test_lengths(kind: str) -> None:
    """An operator that takes lengths has them as ONNX's sequence_lens; tried with one that the reference computes."""
    reference = getattr(fused_rnn.reference, kind.lower())
    with torch.library._scoped_library("fused_rnn_tests", "FRAGMENT") as library:
        library.define(kind.lower() + SCHEMAS[kind])

        def run(*args: Any) -> Any:
            *tensors, weights, batch_sizes, lengths, _ = args
            none = [args[0].new_zeros(0)] * len(tensors[1:])
            return *reference(*tensors, weights, batch_sizes, lengths), *none

        def shapes(*args: Any) -> Any:
            return (*map(torch.empty_like, run(*args[:-2], None, False)),)

        library.impl(kind.lower(), run, "CPU")
        torch.library.register_fake(f"fused_rnn_tests::{kind.lower()}", shapes, lib=library)
        operator = getattr(torch.ops.fused_rnn_tests, kind.lower()).default

        class Module(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.layer = getattr(fused_rnn, kind)(INPUT, HIDDEN, bidirectional=True)

            def forward(self, input: Tensor, lengths: Tensor) -> list[Tensor]:
                states = [input.new_zeros(2, BATCH, HIDDEN)] * (2 if kind == "LSTM" else 1)
                weights = list(self.layer.parameters())
                outputs = operator(input, *states, weights, None, lengths, False)
                return list(outputs[: len(states) + 1])

        write = writing._lstm if kind == "LSTM" else writing._gru
        inputs = torch.randn(TIME, BATCH, INPUT), torch.tensor([2, 5, 3])
        module = Module().requires_grad_(False)
        program = export(module, inputs, table={operator: writing._translation(operator, write)})
        assert_agree(infer(program.model_proto.SerializeToString(), inputs), module, inputs)
