"""LSTM and GRU on a GPU, on every path, against torch.nn in float64 on the CPU and in the same dtype on the GPU."""

import copy
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from cases import DTYPES, KINDS, Case, flatten, shapes_of_layers, tails
from comparing import assert_accurate, assert_all_accurate, assert_identical
from torch import Tensor

import fused_rnn
from fused_rnn import _C

pytestmark = pytest.mark.needs_cuda

# Sizes that the persistent kernels take, which share out hidden units in multiples of 16 bytes.
PERSISTENT = [
    Case(kind, **sizes)
    for kind in KINDS
    for sizes in (
        {"time": 7, "batch": 3, "input_size": 5, "hidden_size": 8},
        {"time": 6, "batch": 17, "input_size": 8, "hidden_size": 72, "bidirectional": True},
        {"time": 9, "batch": 1, "input_size": 16, "hidden_size": 256},
        {"time": 12, "batch": 33, "input_size": 40, "hidden_size": 320, "num_layers": 2},
        {"time": 5, "batch": 20, "input_size": 64, "hidden_size": 512, "bias": False},
        {"time": 8, "batch": 5, "hidden_size": 136, "lengths": (3, 8, 8, 1, 5), "bidirectional": True},
        {"time": 4, "batch": 64, "input_size": 128, "hidden_size": 1024},
    )
]


@pytest.fixture(params=["any", "plain", "grid", "cluster"])
def path(request: pytest.FixtureRequest) -> Iterator[str]:
    """Let the kernels take one path only."""
    _C.set_cuda_wish(request.param)
    yield request.param
    _C.set_cuda_wish("any")


@pytest.fixture(params=["ieee", "tf32"])
def precision(request: pytest.FixtureRequest) -> Iterator[str]:
    """Let float32 be computed exactly, or with tf32."""
    settings: Any = [torch.backends.cudnn.rnn, torch.backends.cuda.matmul]
    before = [setting.fp32_precision for setting in settings]
    for setting in settings:
        setting.fp32_precision = request.param
    yield request.param
    for setting, value in zip(settings, before, strict=True):
        setting.fp32_precision = value


def check(case: Case, dtype: torch.dtype, peer_dtype: torch.dtype | None = None) -> None:
    ours, exact = case.result(fused_rnn, dtype, "cuda"), case.torch_result(torch.float64)
    assert_all_accurate(ours, exact, case.result(torch.nn, peer_dtype or dtype, "cuda"))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("case", [case for kind in KINDS for case in shapes_of_layers(kind) + tails(kind)], ids=str)
def test_equals_torch(case: Case, dtype: torch.dtype) -> None:
    if dtype == torch.float32:
        pytest.skip("test_paths has float32, in both precisions")
    check(case, dtype)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("case", PERSISTENT, ids=str)
def test_paths(case: Case, dtype: torch.dtype, path: str) -> None:
    check(case, dtype)


@pytest.mark.parametrize("case", PERSISTENT, ids=str)
def test_paths_in_float32(case: Case, path: str, precision: str) -> None:
    # cuDNN takes tf32 for some sizes only; float16 has as many bits of mantissa.
    check(case, torch.float32, torch.float16 if precision == "tf32" else None)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("case", PERSISTENT, ids=str)
def test_deterministic(case: Case, dtype: torch.dtype) -> None:
    first = case.result(fused_rnn, dtype, "cuda")
    for _ in range(3):
        assert_identical(case.result(fused_rnn, dtype, "cuda"), first)


def layer_on_gpu(kind: str = "LSTM") -> tuple[Any, Tensor]:
    """Return a layer that takes a persistent kernel of several blocks, and an input."""
    torch.manual_seed(0)
    layer = getattr(fused_rnn, kind)(64, 256, device="cuda", dtype=torch.bfloat16)
    return layer, torch.randn(20, 16, 64, device="cuda", dtype=torch.bfloat16)


@pytest.mark.parametrize("kind", KINDS)
def test_graph_capture(kind: str) -> None:
    layer, input = layer_on_gpu(kind)
    other = torch.randn_like(input)

    def both() -> list[Tensor]:
        output = layer(input)[0]
        return [output, *torch.autograd.grad(output.sum(), list(layer.parameters()))]

    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        both()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = both()
    input.copy_(other)
    graph.replay()
    torch.cuda.synchronize()
    assert all(map(torch.equal, captured, both()))


@pytest.mark.parametrize("kind", KINDS)
def test_streams(kind: str) -> None:
    layer, input = layer_on_gpu(kind)
    expected = layer(input)[0]
    streams = [torch.cuda.Stream() for _ in range(2)]
    outputs = []
    for stream in streams * 4:
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            outputs.append(layer(input)[0])
    torch.cuda.synchronize()
    assert all(torch.equal(output, expected) for output in outputs)


def test_threads() -> None:
    layer, input = layer_on_gpu()
    expected = layer(input)[0]
    with ThreadPoolExecutor(2) as threads:
        outputs = list(threads.map(lambda _: layer(input)[0], range(8)))
    assert all(torch.equal(output, expected) for output in outputs)


def test_lengths_on_the_gpu() -> None:
    layer, input = layer_on_gpu()
    lengths = torch.tensor([20, 0, 3, 20, 7, 1, 19, 20, 5, 6, 7, 8, 9, 10, 11, 12])
    double = copy.deepcopy(layer).cpu().double()
    exact, (h_n, c_n) = double(input.cpu().double(), lengths=lengths)
    input[3:, 2] = torch.nan
    output, states = layer(input, lengths=lengths.cuda())
    peer = layer.cpu()(input.cpu().nan_to_num(), lengths=lengths)
    for name, ours, truth, other in zip(
        ("output", "h_n", "c_n"), (output, *states), (exact, h_n, c_n), (peer[0], *peer[1]), strict=True
    ):
        assert_accurate(ours.cpu(), truth, other, name)


@pytest.mark.parametrize("kind", KINDS)
def test_cells(kind: str) -> None:
    ours, state = getattr(fused_rnn, f"{kind}Cell")(40, 72, device="cuda"), torch.randn(5, 72, device="cuda")
    peer = getattr(torch.nn, f"{kind}Cell")(40, 72, device="cuda")
    peer.load_state_dict(ours.state_dict())
    input, hx = torch.randn(5, 40, device="cuda"), (state, state) if kind == "LSTM" else state
    exact = copy.deepcopy(peer).cpu().double()
    double = (state.cpu().double(),) * 2 if kind == "LSTM" else state.cpu().double()
    for mine, other, truth in zip(
        flatten(ours(input, hx)), flatten(peer(input, hx)), flatten(exact(input.cpu().double(), double)), strict=True
    ):
        assert_accurate(mine.cpu(), truth, other.cpu())


def test_dropout_obeys_the_seed() -> None:
    layer = fused_rnn.LSTM(8, 16, num_layers=2, dropout=0.5, device="cuda")
    input = torch.randn(5, 3, 8, device="cuda")
    outputs = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        outputs.append(layer(input)[0])
    assert torch.equal(outputs[0], outputs[1])
    assert not torch.equal(outputs[0], outputs[2])


def test_explain() -> None:
    layer, input = layer_on_gpu()
    assert "cluster" in fused_rnn.explain(layer, input) or "grid" in fused_rnn.explain(layer, input)
    assert "plain, since float64" in fused_rnn.explain(layer.double(), input.double())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("kind", ["LSTM", "GRU", "LSTMCell", "GRUCell"])
def test_autocast_and_gradient_scaler(kind: str, dtype: torch.dtype) -> None:
    module: Any = getattr(fused_rnn, kind)(16, 32, device="cuda")
    input = torch.randn(*(() if "Cell" in kind else (5,)), 3, 16, device="cuda")
    with torch.autocast("cuda", dtype):
        outputs = flatten(module(input))
    assert {output.dtype for output in outputs} == {dtype}
    assert all(map(torch.equal, outputs, flatten(copy.deepcopy(module).to(dtype)(input.to(dtype)))))
    scaler, optimizer = torch.amp.GradScaler("cuda", init_scale=2.0**8), torch.optim.SGD(module.parameters(), 0.1)
    before = [parameter.detach().clone() for parameter in module.parameters()]
    scaler.scale(outputs[0].float().sum()).backward()
    gradients = [parameter.grad / 2**8 for parameter in module.parameters()]
    scaler.step(optimizer)
    for old, new, gradient in zip(before, module.parameters(), gradients, strict=True):
        torch.testing.assert_close(new, old - 0.1 * gradient)
