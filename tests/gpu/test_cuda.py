"""Recurrent layers on a GPU: every path in every precision, and features that only a GPU has.

All tests with the fixture ``device`` run on a GPU as well, among them those of odd shapes and of the cells.
"""

import copy
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import product
from typing import Any

import pytest
import torch
from cases import CELLS, DTYPES, KINDS, Case, check_accuracy, flatten, hx_of, layer_inputs
from comparing import assert_accurate, assert_all_accurate, assert_identical
from on_gpu import captured, float32_precision, require_path
from torch import Tensor

import fused_rnn
from fused_rnn import _C

pytestmark = pytest.mark.needs_cuda

HALF = (torch.bfloat16, torch.float16)
# Sizes that persistent kernels accept, as they are or after padding: a block's hidden units are multiples of 16 bytes.
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
        {"time": 18, "batch": 6, "hidden_size": 101, "lengths": (18, 9, 18, 1, 2, 7), "bidirectional": True},
        {"time": 16, "batch": 20, "input_size": 33, "hidden_size": 650, "bias": False},
    )
]


@pytest.fixture(params=["ieee", "tf32"])
def precision(request: pytest.FixtureRequest) -> Iterator[str]:
    """Compute float32 in full precision, or with tf32."""
    with float32_precision(request.param):
        yield request.param


@pytest.mark.parametrize("dtype", HALF, ids=str)
@pytest.mark.parametrize("case", PERSISTENT, ids=str)
def test_paths(case: Case, dtype: torch.dtype, path: str) -> None:
    require_path(path, case.paths(dtype))
    check_accuracy(case, dtype, "cuda")


@pytest.mark.parametrize("case", PERSISTENT, ids=str)
def test_paths_in_float32(case: Case, path: str, precision: str) -> None:
    require_path(path, case.paths(torch.float32))
    # cuDNN uses tf32 only for some sizes, so the peer of tf32 is float16, which has the same number of mantissa bits.
    check_accuracy(case, torch.float32, "cuda", torch.float16 if precision == "tf32" else None)


@pytest.mark.parametrize("kind", KINDS)
def test_one_setting_for_tf32(kind: str) -> None:
    """``torch.backends.cuda.matmul`` has no influence on the use of tf32, not even in the products of one step."""
    case = Case(kind, time=1, batch=17, input_size=64, hidden_size=72)
    matmul: Any = torch.backends.cuda.matmul
    results = {}
    for precision, other in product(("ieee", "tf32"), repeat=2):
        with float32_precision(precision):
            matmul.fp32_precision = other
            results[precision, other] = case.result(fused_rnn, torch.float32, "cuda")
    for precision in ("ieee", "tf32"):
        assert_identical(results[precision, "ieee"], results[precision, "tf32"])
    assert not torch.equal(*(results[precision, "ieee"]["grad input"] for precision in ("ieee", "tf32")))


@pytest.mark.parametrize("dtype", DTYPES[1:], ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_every_path_is_taken(kind: str, dtype: torch.dtype) -> None:
    """The tests above skip little: each persistent path runs several sizes, the stepwise path runs all."""
    cases = [case for case in PERSISTENT if case.kind == kind]
    taken: Counter[tuple[str, str, str]] = Counter()
    for plan_override in ("stepwise", "grid", "cluster", "warpgroup"):
        _C.set_plan_override(plan_override)
        taken.update((plan_override, name, path) for case in cases for name, path in case.paths(dtype).items())
    _C.set_plan_override("any")
    capability = torch.cuda.get_device_capability()
    has_clusters, has_warpgroups = capability >= (9, 0), capability == (9, 0) and dtype.itemsize == 2
    for name in ("forward", "backward"):
        assert taken["stepwise", name, "stepwise"] == len(cases)
        assert taken["grid", name, "grid"] >= len(cases) - 1
        assert taken["cluster", name, "cluster"] >= 4 * has_clusters
        assert taken["warpgroup", name, "warpgroup"] >= 4 * has_warpgroups
    # Without an override, small layers have a persistent kernel.
    assert all({*case.paths(dtype).values()} <= {"grid", "cluster"} for case in cases if case.hidden_size < 512)


SMALL = {"time": 3, "batch": 9, "hidden_size": 32, "bidirectional": True, "lengths": (3, 1, 2, 3, 3, 1, 1, 2, 3)}


@pytest.mark.sanitize
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32], ids=str)
@pytest.mark.parametrize("path", ["stepwise", "grid", "cluster", "warpgroup"], indirect=True)
@pytest.mark.parametrize("kind", KINDS)
def test_small(kind: str, path: str, dtype: torch.dtype) -> None:
    """Both passes of each path, small, since compute-sanitizer makes them a hundred times as slow."""
    case = Case(kind, **SMALL)  # type: ignore[arg-type]
    with float32_precision("ieee"):
        require_path(path, case.paths(dtype))
        ours = case.result(fused_rnn, dtype, "cuda")
    # The peer runs on the CPU, so that compute-sanitizer does not check cuDNN's kernels.
    assert_all_accurate(ours, case.torch_result(torch.float64), case.torch_result(dtype))


@pytest.mark.parametrize("dtype", DTYPES[1:], ids=str)
@pytest.mark.parametrize("case", PERSISTENT, ids=str)
def test_deterministic(case: Case, dtype: torch.dtype, path: str) -> None:
    require_path(path, case.paths(dtype))
    first = case.result(fused_rnn, dtype, "cuda")
    for _ in range(2):
        assert_identical(case.result(fused_rnn, dtype, "cuda"), first)


@pytest.mark.parametrize("value", [float("inf"), float("-inf")], ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_infinite_states_in_float32(kind: str, path: str, precision: str, value: float) -> None:
    """They spread as in torch.nn, also where products of float32 are split into parts."""
    case = Case(kind, time=8, batch=5, input_size=16, hidden_size=256)
    input, states = case.tensors(torch.float32)
    states[0][0, 1, 7] = value

    def outputs_of(package: Any, dtype: torch.dtype, device: str) -> list[Tensor]:
        hx = hx_of([state.to(device, dtype) for state in states])
        with torch.no_grad():
            return flatten(case.module(package, dtype, device)(input.to(device, dtype), hx))

    ours = outputs_of(fused_rnn, torch.float32, "cuda")
    # float16 has as many bits of mantissa as tf32.
    exact, peer = (outputs_of(torch.nn, dtype, "cpu") for dtype in (torch.float64, torch.float16))
    assert_all_accurate(*(dict(enumerate(outputs)) for outputs in (ours, exact, peer)))


@pytest.mark.parametrize("hidden_size", [64, 72])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_fake_kernels_know_what_is_saved(kind: str, dtype: torch.dtype, hidden_size: int, path: str) -> None:
    """The dtypes of results do not depend on the path, which tracing does not know."""
    arguments = (CELLS[kind], *layer_inputs(Case(kind, hidden_size=hidden_size), dtype, "cuda"), None, None, True)
    torch.library.opcheck(torch.ops.fused_rnn.recurrent.default, arguments, test_utils="test_faketensor")


@pytest.mark.parametrize("kind", KINDS)
def test_more_steps_than_65535(kind: str) -> None:
    """A persistent kernel with 70,000 hand-overs; tests/operators/test_values.py tests the stepwise path."""
    case = Case(kind, time=70_000, batch=1, input_size=1, hidden_size=8)
    dtype = torch.float16
    assert case.paths(dtype)["forward"] != "stepwise"
    with torch.no_grad():
        ours = case.module(fused_rnn, dtype, "cuda")(case.tensors(dtype, "cuda")[0])
        exact = case.module(torch.nn, torch.float64)(case.tensors(torch.float64)[0])
        peer = case.module(torch.nn, dtype)(
            case.tensors(dtype)[0]
        )  # on the CPU, since cuDNN does not support so many steps
    for results in zip(*map(flatten, (ours, exact, peer)), strict=True):
        assert_accurate(*results)


def layer_on_gpu(kind: str = "LSTM") -> tuple[Any, Tensor]:
    """Return a layer that runs in a persistent kernel of several blocks, and an input."""
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

    graph, replayed = captured(both)
    input.copy_(other)
    graph.replay()
    torch.cuda.synchronize()
    assert all(map(torch.equal, replayed, both()))


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


@pytest.mark.sanitize
def test_threads() -> None:
    layer, input = layer_on_gpu()
    expected = layer(input)[0]
    with ThreadPoolExecutor(2) as threads:
        outputs = list(threads.map(lambda _: layer(input)[0], range(8)))
    assert all(torch.equal(output, expected) for output in outputs)


@pytest.mark.sanitize
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


def test_explain(path: str) -> None:
    layer, input = layer_on_gpu()
    _, *lines = fused_rnn.explain(layer, input).splitlines()
    taken = Case("LSTM", 20, 16, 64, 256).paths(torch.bfloat16)
    assert [line.split(",")[0].strip() for line in lines] == [f"{name}: {path}" for name, path in taken.items()]
    require_path(path, taken)
    assert "stepwise, since float64" in fused_rnn.explain(layer.double(), input.double())


@pytest.mark.parametrize("dtype", HALF, ids=str)
@pytest.mark.parametrize("kind", [*KINDS, *(f"{kind}Cell" for kind in KINDS)])
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
