"""A GRU layer: the operator against the reference, the module against torch.nn."""

from collections.abc import Callable

import pytest
import torch
from cases import DTYPES, Case, batch_sizes, check_accuracy, layer_inputs, shapes_of_layers, tails
from comparing import assert_accurate, assert_all_accurate, differentiate
from torch import Tensor

import fused_rnn
from fused_rnn import autograd, ops, reference

OPERATOR_CASES = [
    Case("GRU"),
    Case("GRU", bias=False, bidirectional=True),
    Case("GRU", bidirectional=True, lengths=(5, 4, 1)),
    Case("GRU", time=9, batch=17, input_size=7, hidden_size=33),
]


def layer_result(layer: Callable[..., tuple[Tensor, ...]], case: Case, device: str = "cpu") -> dict[str, Tensor]:
    """Return the outputs of an operator or its reference, and all gradients."""
    input, (h0,), weights = layer_inputs(case, device=device)
    inputs = {"input": input, "h0": h0, **{f"weights[{i}]": weight for i, weight in enumerate(weights)}}
    for tensor in inputs.values():
        tensor.requires_grad_()
    outputs = layer(input, h0, weights, batch_sizes(case))
    return {**dict(zip(("output", "h_n"), outputs, strict=True)), **differentiate(outputs, inputs)}


@pytest.mark.parametrize("case", OPERATOR_CASES, ids=str)
def test_operator_equals_reference(case: Case, device: str) -> None:
    assert_all_accurate(layer_result(autograd.gru, case, device), layer_result(reference.gru, case))


@pytest.mark.parametrize("case", OPERATOR_CASES, ids=str)
def test_outputs_do_not_depend_on_saving(case: Case, device: str) -> None:
    input, (h0,), weights = layer_inputs(case, device=device)
    *outputs, gates = ops.gru(input, h0, weights, batch_sizes(case), None, False)
    *saving, _ = ops.gru(input, h0, weights, batch_sizes(case), None, True)
    assert gates.shape == (0,)
    assert all(map(torch.equal, outputs, saving))


def test_saved_states_are_the_gates(device: str) -> None:
    input, (h0,), weights = layer_inputs(Case("GRU"), device=device)
    output, _, gates = ops.gru(input, h0, weights, None, None, True)
    r, z, n, hn = gates.view(5, 3, 4, 6).unbind(2)
    weight_ih, weight_hh, bias_ih, bias_hh = weights
    h = torch.cat((h0, output[:-1]))
    assert_accurate(hn, (h @ weight_hh.T + bias_hh)[..., 12:], name="W_hn h + b_hn")
    assert_accurate(n, torch.tanh((input @ weight_ih.T + bias_ih)[..., 12:] + r * hn), name="n")
    assert_accurate(output, (1 - z) * n + z * h, name="output")


@pytest.mark.parametrize(
    "wanted", [(False, False, False), (True, False, False), (False, True, False), (False, False, True)]
)
def test_backward_computes_what_is_wanted(wanted: tuple[bool, bool, bool], device: str) -> None:
    input, (h0,), weights = layer_inputs(Case("GRU"), device=device)
    output, _, gates = ops.gru(input, h0, weights, None, None, True)
    grads = (torch.ones_like(output), None)

    def backward(input_grad: bool, state_grad: bool, weight_grad: bool) -> list[Tensor]:
        *gradients, of_weights = ops.gru_backward(
            *grads, input, h0, weights, None, None, output, gates, input_grad, state_grad, weight_grad
        )
        assert len(of_weights) == (len(weights) if weight_grad else 0)
        assert [gradient.shape == (0,) for gradient in gradients] == [not input_grad, not state_grad]
        return [*gradients, *of_weights]

    complete = backward(True, True, True)
    input_grad, state_grad, weight_grad = wanted
    needed = [input_grad, state_grad, *[weight_grad] * len(weights)]
    expected = [gradient for gradient, need in zip(complete, needed, strict=True) if need]
    actual = [gradient for gradient in backward(*wanted) if gradient.shape != (0,)]
    assert all(map(torch.equal, actual, expected))
    assert len(actual) == len(expected)


@pytest.mark.parametrize("case", shapes_of_layers("GRU"), ids=str)
def test_equals_torch(case: Case, device: str) -> None:
    assert_all_accurate(case.result(fused_rnn, torch.float64, device), case.torch_result(torch.float64))


@pytest.mark.instruction_sets
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("case", tails("GRU"), ids=str)
def test_tails_equal_torch(case: Case, dtype: torch.dtype, device: str) -> None:
    check_accuracy(case, dtype, device)


@pytest.mark.instruction_sets
@pytest.mark.parametrize("dtype", DTYPES[1:], ids=str)
@pytest.mark.parametrize("case", shapes_of_layers("GRU"), ids=str)
def test_accuracy(case: Case, dtype: torch.dtype, device: str) -> None:
    check_accuracy(case, dtype, device)
