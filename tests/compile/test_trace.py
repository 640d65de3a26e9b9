"""torch.jit.trace: a trace contains the operators, serves other times and batches, is saved, and has gradients."""

import io
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from cases import KINDS, Case, flatten
from every_module import NAMES, SHAPES, pair
from torch import Tensor
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

import fused_rnn


class Call(torch.nn.Module):
    """A module that calls another one by a function of it and of tensors, and returns a flat tuple of tensors."""

    def __init__(self, module: torch.nn.Module, call: Callable[..., Any]) -> None:
        super().__init__()
        self.module = module
        self.call = call

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        """Call the module."""
        return tuple(flatten(self.call(self.module, *inputs)))


def saved_trace(model: torch.nn.Module, inputs: tuple[Tensor, ...]) -> Any:
    """Trace a model, without a warning, save the trace, and load it."""
    with warnings.catch_warnings():
        warnings.simplefilter("error", torch.jit.TracerWarning)
        traced = torch.jit.trace(model, inputs)
    file = io.BytesIO()
    torch.jit.save(traced, file)
    file.seek(0)
    return torch.jit.load(file)


def check(model: torch.nn.Module, example: tuple[Tensor, ...], others: Sequence[tuple[Tensor, ...]]) -> None:
    """Assert that outputs and gradients of a saved trace are those of the model, bit for bit, for all inputs."""
    loaded = saved_trace(model, example)
    names = [name for name, _ in model.named_parameters()]
    weights = dict(loaded.named_parameters())
    for inputs in (example, *others):
        results = []
        for function, parameters in ((model, dict(model.named_parameters())), (loaded, weights)):
            outputs = flatten(function(*inputs))
            loss = torch.stack([out.double().cos().sum() for out in outputs]).sum()
            results.append([*outputs, *torch.autograd.grad(loss, [parameters[name] for name in names])])
        assert all(map(torch.equal, *results))
        with torch.no_grad():
            assert all(map(torch.equal, flatten(loaded(*inputs)), flatten(model(*inputs))))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", NAMES)
def test_every_module(name: str, dtype: torch.dtype) -> None:
    module, _ = pair(name, dtype)
    shape = SHAPES[name]
    doubled, one = tuple(2 * size for size in shape[:-1]), (1,) * (len(shape) - 1)
    if name in ("MaskedConv1d", "MaskedConv2d"):  # whose second dimension is not free
        doubled, one = (5, 2, 4)[: len(shape) - 1], (1, 2, 1)[: len(shape) - 1]
    others = [(torch.randn(*sizes, shape[-1]).to(dtype),) for sizes in (doubled, one)]
    check(Call(module, lambda module, input: module(input)), (torch.randn(shape).to(dtype),), others)


@pytest.mark.parametrize("form", [{}, {"num_layers": 2, "bidirectional": True, "batch_first": True}], ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_states_and_lengths(kind: str, form: dict[str, Any]) -> None:
    def inputs(time: int, batch: int) -> tuple[Tensor, ...]:
        input, states = Case(kind, time, batch, **form).tensors(torch.float32)
        return input, torch.randint(0, time + 1, (batch,)), *states

    def call(module: torch.nn.Module, input: Tensor, lengths: Tensor, *states: Tensor) -> Any:
        return module(input, states if len(states) > 1 else states[0], lengths=lengths)

    module = Case(kind, **form).module(fused_rnn, torch.float32)
    check(Call(module, call), inputs(5, 3), [inputs(8, 2), inputs(1, 4)])


@pytest.mark.parametrize("enforce_sorted", [True, False])
@pytest.mark.parametrize("kind", KINDS)
def test_packed_sequences(kind: str, enforce_sorted: bool) -> None:
    """The batch size is that of each call, not that of the example."""

    def inputs(time: int, batch: int) -> tuple[Tensor, Tensor]:
        lengths = torch.randint(1, time + 1, (batch,)).sort(descending=True)[0]
        return torch.randn(time, batch, 4), lengths if enforce_sorted else lengths.flip(0)

    def call(module: torch.nn.Module, input: Tensor, lengths: Tensor) -> Any:
        packed = pack_padded_sequence(input, lengths, enforce_sorted=enforce_sorted)
        output, states = module(packed)
        return pad_packed_sequence(output)[0], states

    module = Case(kind, num_layers=2, bidirectional=True).module(fused_rnn, torch.float32)
    check(Call(module, call), inputs(5, 3), [inputs(8, 2), inputs(6, 7)])


def test_projections_and_every_state() -> None:
    module = fused_rnn.LSTM(4, 8, 2, bidirectional=True, proj_size=3)
    model = Call(module, lambda module, input: module(input, return_states=True))
    check(model, (torch.randn(5, 3, 4),), [(torch.randn(7, 2, 4),), (torch.randn(1, 1, 4),)])


@pytest.mark.parametrize("kind", KINDS)
def test_a_trace_without_gradients_has_them_later(kind: str) -> None:
    module = getattr(fused_rnn, kind)(4, 6)
    input = torch.randn(5, 3, 4)
    with torch.no_grad():
        traced = saved_trace(module, (input,))
    gradients = [
        torch.autograd.grad(flatten(call(input))[0].cos().sum(), [call.weight_hh_l0])[0] for call in (traced, module)
    ]
    assert torch.equal(*gradients)


@pytest.mark.parametrize("name", NAMES)
def test_second_derivatives_of_a_trace_raise_an_error(name: str) -> None:
    """The operators have first derivatives alone; the layers themselves have all of them."""
    module, _ = pair(name)
    input = torch.randn(SHAPES[name], dtype=torch.float64, requires_grad=True)
    output = flatten(torch.jit.trace(module, (input,))(input))[0]
    (first,) = torch.autograd.grad(output.square().sum(), input, create_graph=True)
    with pytest.raises(RuntimeError, match="not implemented"):
        first.square().sum().backward()


@pytest.mark.parametrize("name", NAMES)
def test_gradients_of_a_trace_for_some_arguments(name: str) -> None:
    """Arguments that need no gradient get none, and the others the same as otherwise."""
    module, _ = pair(name)
    input = torch.randn(SHAPES[name], dtype=torch.float64)
    traced = torch.jit.trace(module, (input,))
    for frozen in dict(module.named_parameters()):
        gradients = []
        for function in (module, traced):
            for parameter_name, parameter in function.named_parameters():
                parameter.requires_grad_(parameter_name != frozen)
                parameter.grad = None
            flatten(function(input))[0].cos().sum().backward()
            gradients.append({name: parameter.grad for name, parameter in function.named_parameters()})
        assert gradients[1][frozen] is None
        assert all(torch.equal(gradients[0][other], gradients[1][other]) for other in gradients[0] if other != frozen)
