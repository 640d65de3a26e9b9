"""An LSTM layer: the operator against the reference, the module against torch.nn."""

from collections.abc import Callable

import pytest
import torch
from cases import DTYPES, Case, batch_sizes, check_accuracy, layer_inputs, shapes_of_layers, tails
from comparing import assert_accurate, assert_all_accurate, differentiate
from torch import Tensor

import fused_rnn
from fused_rnn import autograd, ops, reference

OPERATOR_CASES = [
    Case("LSTM"),
    Case("LSTM", bias=False, bidirectional=True),
    Case("LSTM", proj_size=3, bidirectional=True),
    Case("LSTM", proj_size=5, bias=False, lengths=(5, 4, 1)),
    Case("LSTM", bidirectional=True, lengths=(5, 4, 1)),
    Case("LSTM", time=9, batch=17, input_size=7, hidden_size=33),
]


def layer_result(layer: Callable[..., tuple[Tensor, ...]], case: Case, device: str = "cpu") -> dict[str, Tensor]:
    """Return the outputs of an operator or its reference, and all gradients."""
    input, (h0, c0), weights = layer_inputs(case, device=device)
    inputs = {"input": input, "h0": h0, "c0": c0, **{f"weights[{i}]": weight for i, weight in enumerate(weights)}}
    for tensor in inputs.values():
        tensor.requires_grad_()
    outputs = layer(input, h0, c0, weights, batch_sizes(case))
    return {**dict(zip(("output", "h_n", "c_n"), outputs, strict=True)), **differentiate(outputs, inputs)}


@pytest.mark.parametrize("case", OPERATOR_CASES, ids=str)
def test_operator_equals_reference(case: Case, device: str) -> None:
    assert_all_accurate(layer_result(autograd.lstm, case, device), layer_result(reference.lstm, case))


@pytest.mark.parametrize("case", OPERATOR_CASES, ids=str)
def test_outputs_do_not_depend_on_saving(case: Case, device: str) -> None:
    input, (h0, c0), weights = layer_inputs(case, device=device)
    *outputs, gates, cells = ops.lstm(input, h0, c0, weights, batch_sizes(case), None, False)
    *saving, _, _ = ops.lstm(input, h0, c0, weights, batch_sizes(case), None, True)
    assert gates.shape == cells.shape == (0,)
    assert all(map(torch.equal, outputs, saving))


def test_saved_states_are_the_gates_and_cells(device: str) -> None:
    input, (h0, c0), weights = layer_inputs(Case("LSTM"), device=device)
    output, _, c_n, gates, cells = ops.lstm(input, h0, c0, weights, None, None, True)
    i, f, g, o = gates.view(5, 3, 4, 6).unbind(2)
    c = cells.view(5, 3, 6)
    assert_accurate(c, f * torch.cat((c0, c[:-1])) + i * g, name="cells")
    assert_accurate(output, o * c.tanh(), name="output")
    assert_accurate(c_n, c[-1:], name="c_n")


@pytest.mark.parametrize(
    "wanted", [(False, False, False), (True, False, False), (False, True, False), (False, False, True)]
)
def test_backward_computes_what_is_wanted(wanted: tuple[bool, bool, bool], device: str) -> None:
    input, (h0, c0), weights = layer_inputs(Case("LSTM"), device=device)
    output, _, _, gates, cells = ops.lstm(input, h0, c0, weights, None, None, True)
    grads = (torch.ones_like(output), None, None, None)

    def backward(input_grad: bool, state_grad: bool, weight_grad: bool) -> list[Tensor]:
        *gradients, of_weights = ops.lstm_backward(
            *grads, input, h0, c0, weights, None, None, output, gates, cells, input_grad, state_grad, weight_grad
        )
        assert len(of_weights) == (len(weights) if weight_grad else 0)
        assert [gradient.shape == (0,) for gradient in gradients] == [not input_grad, *[not state_grad] * 2]
        return [*gradients, *of_weights]

    complete = backward(True, True, True)
    input_grad, state_grad, weight_grad = wanted
    needed = [input_grad, state_grad, state_grad, *[weight_grad] * len(weights)]
    expected = [gradient for gradient, need in zip(complete, needed, strict=True) if need]
    actual = [gradient for gradient in backward(*wanted) if gradient.shape != (0,)]
    assert all(map(torch.equal, actual, expected))
    assert len(actual) == len(expected)


@pytest.mark.parametrize("case", shapes_of_layers("LSTM"), ids=str)
def test_equals_torch(case: Case, device: str) -> None:
    assert_all_accurate(case.result(fused_rnn, torch.float64, device), case.torch_result(torch.float64))


@pytest.mark.instruction_sets
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("case", tails("LSTM"), ids=str)
def test_tails_equal_torch(case: Case, dtype: torch.dtype, device: str) -> None:
    check_accuracy(case, dtype, device)


@pytest.mark.instruction_sets
@pytest.mark.parametrize("dtype", DTYPES[1:], ids=str)
@pytest.mark.parametrize("case", shapes_of_layers("LSTM"), ids=str)
def test_accuracy(case: Case, dtype: torch.dtype, device: str) -> None:
    check_accuracy(case, dtype, device)
