"""torch.compile(fullgraph=True): one graph for every time, batch and length, forward and backward."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from cases import KINDS, flatten
from torch import Tensor
from torch._dynamo.utils import counters
from torch.nn.utils.rnn import pack_padded_sequence
from torch.utils.checkpoint import checkpoint

import fused_rnn

Inputs = Callable[[int, int], tuple[Any, ...]]


@pytest.fixture(autouse=True)
def _fresh_compiler() -> Iterator[None]:
    torch._dynamo.reset()
    counters.clear()
    yield
    torch._dynamo.reset()


def padded(time: int, batch: int) -> tuple[Tensor]:
    return (torch.randn(time, batch, 4),)


def with_lengths(time: int, batch: int) -> tuple[Tensor, Tensor]:
    return torch.randn(time, batch, 4), torch.randint(0, time + 1, (batch,))


def packed(time: int, batch: int) -> tuple[Any]:
    lengths = torch.randint(1, time + 1, (batch,))
    lengths[1] = time
    return (pack_padded_sequence(torch.randn(time, batch, 4), lengths, enforce_sorted=False),)


def single(time: int, batch: int) -> tuple[Tensor]:
    return (torch.randn(batch, 4),)


def sequences(time: int, batch: int) -> tuple[Tensor]:
    return (torch.randn(batch, 4, time),)


def images(time: int, batch: int) -> tuple[Tensor]:
    return (torch.randn(batch, 4, time, time + 1),)


def plain(module: torch.nn.Module, *args: Any) -> Any:
    return module(*args)


def lengths(module: torch.nn.Module, input: Tensor, lengths: Tensor) -> Any:
    return module(input, lengths=lengths)


def every_state(module: torch.nn.Module, input: Tensor, lengths: Tensor) -> Any:
    return module(input, lengths=lengths, return_states=True)


LAYER: dict[str, Any] = {"bidirectional": True}
CASES: list[tuple[str, dict[str, Any], Callable[..., Any], Inputs]] = [
    *((kind, LAYER, plain, padded) for kind in KINDS),
    *((kind, LAYER, lengths, with_lengths) for kind in KINDS),
    *((kind, LAYER, plain, packed) for kind in KINDS),
    ("LSTM", LAYER, every_state, with_lengths),
    *((f"{kind}Cell", {}, plain, single) for kind in KINDS),
    ("MaskedConv1d", {"kernel_size": 2, "mask_type": "B", "data_channels": 2, "dilation": 2}, plain, sequences),
    ("MaskedConv2d", {"kernel_size": 3, "mask_type": "B", "data_channels": 2}, plain, images),
]


@pytest.mark.parametrize(
    ("name", "options", "call", "inputs"),
    CASES,
    ids=[f"{name}-{call.__name__}-{made.__name__}" for name, _, call, made in CASES],
)
def test_one_graph_for_all_sizes(name: str, options: dict[str, Any], call: Callable[..., Any], inputs: Inputs) -> None:
    module = getattr(fused_rnn, name)(4, 8, **options)
    weights = list(module.parameters())

    def check(*args: Any) -> None:
        expected, actual = flatten(call(module, *args)), flatten(compiled(module, *args))
        assert all(map(torch.equal, actual, expected))
        gradients = [
            torch.autograd.grad([out.cos().sum() for out in outputs], weights) for outputs in (expected, actual)
        ]
        assert all(map(torch.equal, *gradients))

    compiled = torch.compile(call, fullgraph=True, backend="aot_eager", dynamic=True)
    check(*inputs(5, 3))
    with torch._dynamo.config.patch(error_on_recompile=True):
        for time, batch in ((5, 3), (7, 3), (7, 4), (11, 6)):
            check(*inputs(time, batch))
    assert counters["stats"]["unique_graphs"] == 1
    with torch.no_grad():
        arguments = inputs(6, 2)
        assert all(map(torch.equal, flatten(compiled(module, *arguments)), flatten(call(module, *arguments))))


@pytest.mark.parametrize("kind", KINDS)
def test_a_loop_over_a_cell(kind: str) -> None:
    cell = getattr(fused_rnn, f"{kind}Cell")(4, 8)

    def run(input: Tensor) -> list[Tensor]:
        state, outputs = None, []
        for step in input.unbind():
            state = cell(step, state)
            outputs.append(flatten(state)[0])
        return outputs

    input = torch.randn(3, 2, 4)
    compiled = torch.compile(run, fullgraph=True, backend="aot_eager")
    assert all(map(torch.equal, compiled(input), run(input)))


@pytest.mark.parametrize(("name", "shape"), [("LSTM", (1, 3, 8)), ("LSTMCell", (3, 8))])
def test_one_tensor_for_both_states(name: str, shape: tuple[int, ...]) -> None:
    module, state = getattr(fused_rnn, name)(4, 8), torch.randn(shape, requires_grad=True)
    input = torch.randn(*shape[:-1], 4)
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
    gradients = [
        torch.autograd.grad([out.cos().sum() for out in flatten(call(input, (state, state)))], state)[0]
        for call in (module, compiled)
    ]
    assert torch.equal(*gradients)


def test_autocast_and_checkpointing_in_a_graph() -> None:
    module, input = fused_rnn.LSTM(4, 8, 2), torch.randn(5, 3, 4)

    def run(input: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            return checkpoint(lambda input: module(input)[0], input, use_reentrant=False)

    gradients = []
    for function in (run, torch.compile(run, fullgraph=True, backend="aot_eager")):
        output: Any = function(input)
        assert output.dtype == torch.bfloat16
        gradients.append([output, *torch.autograd.grad(output.float().square().sum(), list(module.parameters()))])
    assert all(map(torch.equal, *gradients))


def test_inductor() -> None:
    """The default backend generates code for the operations around the layer; other tests stop before that."""
    module = fused_rnn.LSTM(4, 8)

    def run(input: Tensor, lengths: Tensor) -> Tensor:
        output, (h_n, _), cells = module(input.tanh() * 2, lengths=lengths, return_states=True)
        return (output.cos() + cells).sum() + h_n.square().sum()

    gradients = []
    input, lengths = with_lengths(5, 3)
    for function in (run, torch.compile(run, fullgraph=True)):
        loss = function(input, lengths)
        gradients.append([loss, *torch.autograd.grad(loss, list(module.parameters()))])
    for actual, expected in zip(*gradients, strict=True):
        torch.testing.assert_close(actual, expected)
