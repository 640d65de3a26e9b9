"""torch.export with dynamic time and batch, and AOTInductor's package of it."""

import io
from pathlib import Path
from typing import Any

import pytest
import torch
from cases import KINDS, flatten
from torch import Tensor
from torch.export import Dim

import fused_rnn

TIME_AND_BATCH = {0: Dim("time"), 1: Dim("batch")}


class Model(torch.nn.Module):
    """A model with every layer and cell, with lengths and the states of every step."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = fused_rnn.LSTM(4, 8, 2, bidirectional=True)
        self.gru = fused_rnn.GRU(16, 8)
        self.rnn = fused_rnn.RNN(8, 8, nonlinearity="relu")
        self.lstm_cell, self.gru_cell = fused_rnn.LSTMCell(8, 6), fused_rnn.GRUCell(8, 6)
        self.rnn_cell = fused_rnn.RNNCell(8, 6)
        self.convolution = fused_rnn.MaskedConv2d(1, 2, 3)

    def forward(self, input: Tensor, lengths: Tensor) -> tuple[Tensor, ...]:
        """Map ``[time, batch, 4]`` and ``[batch]`` to some tensors."""
        output, _, cells = self.lstm(input, lengths=lengths, return_states=True)
        output, _ = self.gru(output + cells, lengths=lengths)
        output, h_n = self.rnn(output, lengths=lengths)
        h = h_n[0]
        return *self.lstm_cell(h), self.gru_cell(h), self.rnn_cell(h), self.convolution(output.transpose(0, 1)[:, None])


def inputs(time: int, batch: int) -> tuple[Tensor, Tensor]:
    return torch.randn(time, batch, 4), torch.randint(0, time + 1, (batch,))


def exported(strict: bool) -> tuple[Model, Any]:
    """Return a model and its exported program."""
    model = Model().eval()
    shapes = {"input": TIME_AND_BATCH, "lengths": {0: TIME_AND_BATCH[1]}}
    return model, torch.export.export(model, inputs(5, 3), dynamic_shapes=shapes, strict=strict)


@pytest.mark.parametrize("strict", [True, False])
def test_export_save_and_load(strict: bool) -> None:
    model, program = exported(strict)
    file = io.BytesIO()
    torch.export.save(program, file)
    file.seek(0)
    loaded = torch.export.load(file).module()
    for time, batch in ((9, 2), (2, 7)):
        given = inputs(time, batch)
        assert all(map(torch.equal, loaded(*given), model(*given)))


@pytest.mark.parametrize("kind", KINDS)
def test_exported_operators_stay_whole(kind: str) -> None:
    """A layer is one operator in the graph for any number of steps; the loop is not unrolled."""
    module = getattr(fused_rnn, kind)(4, 8, 2, bidirectional=True)
    program = torch.export.export(module, (torch.randn(5, 3, 4),), dynamic_shapes=(TIME_AND_BATCH,))
    for graph in (program, program.run_decompositions()):
        called = [node.target for node in graph.graph.nodes if "fused_rnn" in str(node.target)]
        assert called == [torch.ops.fused_rnn.recurrent.default] * 2
    input = torch.randn(9, 2, 4)
    assert all(map(torch.equal, flatten(program.module()(input)), flatten(module(input))))


def test_ahead_of_time_package(tmp_path: Path) -> None:
    module = fused_rnn.LSTM(4, 8, bidirectional=True).eval()
    example = inputs(5, 3)
    program = torch.export.export(
        module,
        example[:1],
        {"lengths": example[1]},
        dynamic_shapes={"input": TIME_AND_BATCH, "lengths": {0: TIME_AND_BATCH[1]}},
    )
    path = torch._inductor.aoti_compile_and_package(program, package_path=str(tmp_path / "lstm.pt2"))
    package = torch._inductor.aoti_load_package(path)
    for time, batch in ((9, 2), (2, 7)):
        input, lengths = inputs(time, batch)
        with torch.no_grad():
            expected = flatten(module(input, lengths=lengths))
        assert all(map(torch.equal, flatten(package(input, lengths=lengths)), expected))


@pytest.mark.long
def test_ahead_of_time_package_of_everything(tmp_path: Path) -> None:
    model, program = exported(strict=False)
    path = torch._inductor.aoti_compile_and_package(program, package_path=str(tmp_path / "model.pt2"))
    package = torch._inductor.aoti_load_package(path)
    given = inputs(9, 2)
    for actual, expected in zip(package(*given), model(*given), strict=True):
        torch.testing.assert_close(actual, expected)
