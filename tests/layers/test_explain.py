"""fused_rnn.explain without a GPU; tests/gpu/test_cuda.py tests it with one."""

from collections.abc import Sequence

import pytest
import torch
from cases import CELLS, KINDS, class_of
from torch._subclasses.fake_tensor import FakeTensorMode

import fused_rnn
from fused_rnn import _C


@pytest.mark.parametrize("kind", KINDS)
def test_on_a_cpu(kind: str) -> None:
    capability = torch.backends.cpu.get_cpu_capability()
    text = fused_rnn.explain(getattr(fused_rnn, kind)(4, 8), torch.randn(5, 3, 4))
    assert text == f"{kind} on cpu, torch.float32: kernels for {capability}"


CONVOLUTIONS = [
    # Rows above the centre, and its own row up to the centre.
    (fused_rnn.MaskedConv2d(4, 8, 3, "B"), (2, 4, 9, 9), 2),
    (fused_rnn.MaskedConv2d(4, 8, 3, "B"), (4, 9, 9), 2),
    # The centre by itself for each group that sees any channel there.
    (fused_rnn.MaskedConv2d(4, 8, 3, "B", 4), (2, 4, 9, 9), 6),
    (fused_rnn.MaskedConv2d(4, 8, 3, "A", 4), (2, 4, 9, 9), 5),
    (fused_rnn.MaskedConv2d(4, 8, 5, "vertical_A"), (2, 4, 9, 9), 1),
    # No row above meets a pixel of an image of one row.
    (fused_rnn.MaskedConv2d(4, 8, 3, "B"), (2, 4, 1, 9), 1),
    (fused_rnn.MaskedConv2d(4, 8, 3, "B", dilation=(9, 1)), (2, 4, 9, 9), 1),
    (fused_rnn.MaskedConv2d(4, 8, 1, "A"), (2, 4, 9, 9), 0),
    # Three rows above, of three taps each, are not computed at once.
    (fused_rnn.MaskedConv2d(4, 8, (7, 3), "B"), (2, 4, 9, 9), 3),
    (fused_rnn.MaskedConv1d(4, 8, 2, "B", dilation=4), (2, 4, 9), 1),
    (fused_rnn.MaskedConv1d(4, 8, 2, "B", 2, dilation=4), (4, 9), 3),
]


@pytest.mark.parametrize(("module", "shape", "count"), CONVOLUTIONS, ids=str)
def test_masked_convolutions(
    module: fused_rnn.MaskedConv1d | fused_rnn.MaskedConv2d, shape: tuple[int, ...], count: int
) -> None:
    name = type(module).__name__
    capability = torch.backends.cpu.get_cpu_capability()
    text = fused_rnn.explain(module, torch.randn(shape))
    assert text == f"{name} on cpu, torch.float32: kernels for {capability}"
    with FakeTensorMode():
        input = torch.empty(shape, device="cuda:15", dtype=torch.bfloat16)
    if hasattr(_C, "cuda_masked_conv2d_plan"):
        text = fused_rnn.explain(module, input)
        assert text.startswith(f"{name} on cuda:15, torch.bfloat16:\n  forward: {count} convolution")
        assert "of torch over rectangles of active taps, since" in text


def test_masked_convolution_on_hopper(monkeypatch: pytest.MonkeyPatch) -> None:
    def planned(input: Sequence[int], *_: object, element_bytes: int, **__: object) -> dict[str, dict[str, object]]:
        assert tuple(input) == (3, 8, 28, 28)
        assert element_bytes == 2
        first: dict[str, object] = {"blocks": 12, "shared_bytes": 1000}
        boxes = {**first, "rows": 28, "channels": 64}
        return {"forward": first, "input gradient": {"rectangles": 2, "reason": "so"}, "parameter gradients": boxes}

    monkeypatch.setattr(_C, "cuda_masked_conv2d_plan", planned, raising=False)
    monkeypatch.setattr(_C, "cuda_plan", None, raising=False)
    with FakeTensorMode():
        input = torch.empty(3, 8, 28, 28, device="cuda:15", dtype=torch.float16)
    lines = fused_rnn.explain(fused_rnn.MaskedConv2d(8, 8, 3, mask_type="B"), input).splitlines()
    assert [line.split(":")[0].strip() for line in lines[1:]] == ["forward", "input gradient", "parameter gradients"]
    assert "a kernel for first layers" in lines[1]
    assert lines[2].endswith("2 convolutions of torch over rectangles of active taps, since so")
    assert "in tiles of 28 x 8 pixels and 64 channels on 12 blocks of 1000 bytes" in lines[3]


def test_masked_convolution_by_single_warps(monkeypatch: pytest.MonkeyPatch) -> None:
    def planned(*_: object, element_bytes: int, **__: object) -> dict[str, dict[str, object]]:
        assert element_bytes == 4
        mma: dict[str, object] = {"blocks": 12, "shared_bytes": 1000, "mma_channels": 128}
        return {"forward": mma, "input gradient": mma, "parameter gradients": {"rectangles": 2, "reason": "so"}}

    monkeypatch.setattr(_C, "cuda_masked_conv2d_plan", planned, raising=False)
    monkeypatch.setattr(_C, "cuda_plan", None, raising=False)
    with FakeTensorMode():
        input = torch.empty(3, 8, 28, 28, device="cuda:15")
    lines = fused_rnn.explain(fused_rnn.MaskedConv2d(8, 8, 3, mask_type="B"), input).splitlines()
    for line in lines[1:3]:
        assert line.endswith(
            "warps multiply by themselves, in tiles of 128 channels on 12 blocks of 1000 bytes of shared memory"
        )
    assert lines[3].endswith("over rectangles of active taps, since so")


def test_other_modules() -> None:
    with pytest.raises(TypeError, match=r"must be a fused_rnn\.LSTM, GRU, RNN, MaskedConv1d or MaskedConv2d, got LSTM"):
        fused_rnn.explain(torch.nn.LSTM(4, 8), torch.randn(5, 3, 4))  # type: ignore[arg-type]


def test_autocast() -> None:
    with torch.autocast("cpu", torch.bfloat16):
        text = fused_rnn.explain(fused_rnn.LSTM(4, 8), torch.randn(5, 3, 4))
    assert "torch.bfloat16: kernels for" in text


@pytest.mark.parametrize(("hidden_size", "padded"), [(656, ""), (650, "padded to hidden size 656, ")])
def test_padding(hidden_size: int, padded: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def planned(time: int, **problem: object) -> dict[str, str | float]:
        assert time == 20
        plan: dict[str, str | float] = {"path": "grid", "hidden_size": 656, "groups": 1, "blocks": 41, "units": 16}
        return {**plan, "sequences": 3, "launches": 1, "shared_bytes": 1000, "microseconds": 2.0}

    monkeypatch.setattr(_C, "cuda_plan", planned, raising=False)
    with FakeTensorMode():
        input = torch.empty(20, 3, 4, device="cuda:15", dtype=torch.bfloat16)
    lines = fused_rnn.explain(fused_rnn.LSTM(4, hidden_size), input).splitlines()[1:]
    assert [line.split(": ")[1].split("1 groups")[0] for line in lines] == [f"grid, {padded}"] * 2


@pytest.mark.parametrize(("kind", "cell"), CELLS.items(), ids=str)
def test_cell_that_is_planned_for(kind: str, cell: str, monkeypatch: pytest.MonkeyPatch) -> None:
    cells = []

    def planned(cell: str, **problem: object) -> dict[str, str]:
        cells.append(cell)
        return {"path": "stepwise", "reason": "it is a test"}

    monkeypatch.setattr(_C, "cuda_plan", planned, raising=False)
    with FakeTensorMode():
        input = torch.empty(20, 3, 4, device="cuda:15")
    assert fused_rnn.explain(class_of(fused_rnn, kind)(4, 8), input).count("stepwise, since it is a test") == 2
    assert cells == [cell, cell]


def test_input_on_a_gpu_that_is_not_there() -> None:
    with FakeTensorMode():
        input = torch.empty(5, 3, 4, device="cuda:15")
    module = fused_rnn.LSTM(4, 8, dtype=torch.float64)
    if hasattr(_C, "cuda_plan"):
        assert fused_rnn.explain(module, input.double()).count("stepwise, since float64 has no persistent kernel") == 2
    else:
        with pytest.raises(NotImplementedError, match="built without CUDA kernels"):
            fused_rnn.explain(module, input)
